//! Opens what the guest is given: disks are opened by vmd and handed over, so that a missing or unreadable file
//! fails before anything else happens, and QEMU needs no path.

use crate::model::{Disk, DiskFormat, KernelBoot, Spec};
use rustix::fs::OFlags;
use shared::{
    fault::{Fault, Kind},
    name::printable,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _},
};

const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Longest backing file name that the format allows.
const MAX_BACKING: u32 = 1023;

/// An open disk.
#[derive(Debug)]
pub struct OpenDisk {
    /// Its access mode is the disk's.
    pub file: File,
    /// A block device, not a file.
    pub block_device: bool,
}

/// Checks all files of a spec, and opens none for longer than that takes.
///
/// # Errors
/// FAILED_PRECONDITION that names the file and why it cannot be used.
pub fn check(spec: &Spec) -> Result<(), Fault> {
    for disk in &spec.disks {
        open_disk(disk)?;
    }
    spec.kernel_boot.as_ref().map_or(Ok(()), |boot| open_boot(boot).map(drop))
}

/// Opens a disk for QEMU.
///
/// # Errors
/// FAILED_PRECONDITION that names the file and why it cannot be used.
pub fn open_disk(disk: &Disk) -> Result<OpenDisk, Fault> {
    let failed = |error: &io::Error| {
        let access = if disk.read_only { "read" } else { "read and write" };
        unusable("DISK_UNUSABLE", "disk", &disk.path, error)
            .hint(format!("vmd's user must be able to {access} it, and to search the folders above it"))
    };
    // A FIFO would block the open, a device might do anything: looked at first.
    let meta = std::fs::metadata(&disk.path).map_err(|e| failed(&e))?;
    let block_device = meta.file_type().is_block_device();
    let refuse = |why: &str, hint: &str| {
        Err(Fault::new(
            Kind::FailedPrecondition,
            "DISK_UNUSABLE",
            format!("disk `{}` {why}", printable_path(&disk.path)),
        )
        .meta("path", &disk.path)
        .hint(hint))
    };
    if !meta.is_file() && !block_device {
        return refuse("is neither a regular file nor a block device", "name a disk image or a block device");
    }
    let direct = if disk.cache.direct() { OFlags::DIRECT } else { OFlags::empty() };
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | direct;
    let file = OpenOptions::new()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(&disk.path)
        .map_err(|error| {
            let fault = failed(&error);
            if disk.cache.direct() && error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) {
                return fault.hint("its file system cannot do O_DIRECT: use cache `writeback`");
            }
            fault
        })?;
    // Without O_DIRECT, whose reads would have to be aligned.
    let mut head = [0; 20];
    let read =
        File::open(&disk.path).and_then(|plain| read_head(&plain, &mut head)).map_err(|e| failed(&e))?;
    match disk.format {
        DiskFormat::Raw if read == 0 => {
            refuse("is empty", "`truncate -s 10G FILE` or `qemu-img create` gives it a size")
        }
        DiskFormat::Raw => Ok(OpenDisk { file, block_device }),
        DiskFormat::Qcow2 if read < head.len() || head[..4] != QCOW2_MAGIC => {
            refuse("is not a qcow2 image", "`qemu-img info FILE` tells its format; use `raw` for a raw image")
        }
        DiskFormat::Qcow2 => match backing(&disk.path, &head).map_err(|e| failed(&e))? {
            // QEMU sees the disk as a descriptor and would look beside that.
            Some(name) if !name.starts_with('/') => refuse(
                &format!("has a backing file with a relative path, `{}`", printable(&name)),
                "give it the whole path: qemu-img rebase -u -b /PATH/OF/BACKING -F FORMAT FILE",
            ),
            _ => Ok(OpenDisk { file, block_device }),
        },
    }
}

fn read_head(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < head.len() {
        match (&*file).read(&mut head[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

/// The backing file's name in the header of a qcow2 image: offset in bytes 8 to 15, length in 16 to 19.
fn backing(path: &str, head: &[u8; 20]) -> io::Result<Option<String>> {
    let [.., o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = *head;
    let offset = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_BACKING {
        return Err(io::Error::other("the name of its backing file is longer than the format allows"));
    }
    let mut name = vec![0; length as usize];
    File::open(path)?.read_exact_at(&mut name, offset)?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

/// Largest kernel or initramfs that is taken: one that only vmd's user may read is copied into memory.
const MAX_BOOT_FILE: u64 = 1 << 30;

/// Opens kernel and initramfs, in this order.
///
/// # Errors
/// FAILED_PRECONDITION that names the file and why it cannot be used.
pub fn open_boot(boot: &KernelBoot) -> Result<Vec<File>, Fault> {
    let files = [("kernel", Some(&boot.kernel)), ("initrd", boot.initrd.as_ref())];
    let files = files.into_iter().filter_map(|(what, path)| Some((what, path?)));
    files.map(|(what, path)| open_boot_file(what, path)).collect()
}

fn open_boot_file(what: &str, path: &str) -> Result<File, Fault> {
    let failed = |error: &io::Error| {
        unusable("KERNEL_UNUSABLE", what, path, error)
            .hint("vmd's user must be able to read it, and to search the folders above it")
    };
    let open = || {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(path)?;
        if file.metadata()?.len() > MAX_BOOT_FILE {
            return Err(io::Error::other("it is larger than 1 GiB"));
        }
        Ok(file)
    };
    open().map_err(|e| failed(&e))
}

fn unusable(reason: &str, what: &str, path: &str, error: &io::Error) -> Fault {
    Fault::new(Kind::FailedPrecondition, reason, format!("cannot use {what} `{}`", printable_path(path)))
        .cause(error)
        .meta("path", path)
}

/// Paths are for people to find the file by: escaped, but not shortened as other untrusted text.
#[must_use]
pub fn printable_path(path: &str) -> String {
    path.chars().flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{DiskBus, DiskCache, DiskMedia};

    fn disk(path: &std::path::Path, format: DiskFormat) -> Disk {
        Disk {
            path: path.to_str().unwrap().into(),
            format,
            bus: DiskBus::Virtio,
            cache: DiskCache::Writeback,
            read_only: false,
            media: DiskMedia::Disk,
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        for path in [dir.path().to_owned(), dir.path().join("missing"), fifo, empty, "/dev/null".into()] {
            let fault = open_disk(&disk(&path, DiskFormat::Raw)).unwrap_err();
            assert_eq!(fault.reason(), "DISK_UNUSABLE", "{path:?}");
            assert!(fault.to_string().contains(path.to_str().unwrap()), "{fault}");
            assert!(!fault.hints().is_empty());
        }
    }

    #[test]
    fn a_qcow2_image_has_its_magic_and_no_relative_backing_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || open_disk(&disk(&path, DiskFormat::Qcow2));
        assert!(open().unwrap_err().to_string().contains("not a qcow2 image"));
        let image = |name: &[u8]| {
            let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
            image.extend(if name.is_empty() { 0 } else { 20_u64 }.to_be_bytes());
            image.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
            image.extend(name);
            image
        };
        std::fs::write(&path, image(b"")).unwrap();
        open().unwrap();
        std::fs::write(&path, image(b"/abs/base")).unwrap();
        open().unwrap();
        std::fs::write(&path, image(b"base.qcow2")).unwrap();
        let fault = open().unwrap_err();
        assert!(fault.to_string().contains("`base.qcow2`"), "{fault}");
        assert!(fault.hints()[0].contains("rebase"));
    }
}
