//! Two machines that write to one image would destroy it: which image a run has is recorded with the run.
//!
//! QEMU's own locks refuse the second one too, and other programs of this host besides; but not with a name.

use super::Context;
use crate::{
    model::{Disk, Image, KIND_RUN, Record, Run},
    ports::Ports,
    qemu::files::{OpenDisk, printable_path},
};
use shared::fault::{Fault, Kind};
use std::{io, os::unix::fs::MetadataExt as _};

/// What the open disks are, in their order.
///
/// # Errors
/// What the file system said.
pub(super) fn images(disks: &[Disk], open: &[OpenDisk]) -> io::Result<Vec<Image>> {
    let image = |(disk, open): (&Disk, &OpenDisk)| {
        let meta = open.image.file.metadata()?;
        // A block device may have several nodes.
        let (device, inode) =
            if open.image.block_device { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) };
        Ok(Image { device, inode, writable: !disk.read_only })
    };
    disks.iter().zip(open).map(image).collect()
}

/// Refuses images that another machine has, unless both only read.
///
/// # Errors
/// FAILED_PRECONDITION with the other machine's name, or what the store says.
pub(super) async fn check<P: Ports>(
    context: &Context<P>,
    record: &Record,
    images: &[Image],
) -> Result<(), Fault> {
    if images.is_empty() {
        return Ok(());
    }
    let runs = context.store.load::<Run>(KIND_RUN).await?.records;
    let Some((index, other)) = taken(record.name.as_str(), images, &runs) else { return Ok(()) };
    let path = record.spec.disks.get(index).map(|disk| printable_path(&disk.path)).unwrap_or_default();
    Err(Fault::new(
        Kind::FailedPrecondition,
        "DISK_IN_USE",
        format!("disk `{path}` is in use by machine `{other}`"),
    )
    .meta("path", path)
    .meta("vm", other)
    .hint(format!("stop `{other}` first, or set `read_only` in both")))
}

/// The first image that another machine has, and which.
fn taken<'a>(own: &str, images: &[Image], runs: &'a [(String, Run)]) -> Option<(usize, &'a str)> {
    let others = || runs.iter().filter(|(name, _)| name != own);
    images.iter().enumerate().find_map(|(index, image)| {
        let same = |other: &Image| {
            (other.device, other.inode) == (image.device, image.inode) && (other.writable || image.writable)
        };
        others().find(|(_, run)| run.images.iter().any(same)).map(|(name, _)| (index, name.as_str()))
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::test_run;

    #[test]
    fn only_readers_share_an_image() {
        let image = |inode, writable| Image { device: 1, inode, writable };
        let runs = [
            ("a".to_owned(), Run { images: vec![image(7, true)], ..test_run() }),
            ("b".to_owned(), Run { images: vec![image(8, false)], ..test_run() }),
        ];
        assert_eq!(taken("c", &[image(7, true)], &runs), Some((0, "a")));
        assert_eq!(taken("c", &[image(7, false)], &runs), Some((0, "a")));
        assert_eq!(taken("c", &[image(9, true), image(8, true)], &runs), Some((1, "b")));
        assert_eq!(taken("c", &[image(8, false)], &runs), None);
        assert_eq!(taken("c", &[Image { device: 2, ..image(7, true) }], &runs), None);
        // What an earlier run of its own left.
        assert_eq!(taken("a", &[image(7, true)], &runs), None);
    }
}
