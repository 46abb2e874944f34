//! Opens what the guest is given: disks are opened by vmd and handed over, so that a missing or unreadable file
//! fails before anything else happens, and QEMU needs no path.

use super::{
    qcow2::{self, Header},
    reach::Reach,
};
use crate::model::{Disk, DiskFormat, KernelBoot, Spec};
use rustix::fs::OFlags;
use shared::{
    fault::{Fault, Kind},
    name::printable,
};
use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

/// Most images in a chain of backing files.
const MAX_CHAIN: usize = 32;
/// What a qcow2 image may take beyond twice what the guest sees: tables, snapshots.
const OVERHEAD: u64 = 1 << 30;

/// An open disk.
#[derive(Debug)]
pub struct OpenDisk {
    /// Its access mode is the disk's.
    pub image: Image,
    /// The files behind it, for reading, in the order in which QEMU asks them.
    pub backing: Vec<Image>,
    /// Bytes that the file may grow to; 0: it is not written, or no file.
    pub largest: u64,
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    /// The file.
    pub file: File,
    /// A block device, not a file.
    pub block_device: bool,
    /// Never guessed.
    pub format: DiskFormat,
}

/// Checks all files of a spec, and opens none for longer than that takes.
///
/// # Errors
/// FAILED_PRECONDITION that names the file and why it cannot be used.
pub fn check(spec: &Spec, reach: &Reach) -> Result<(), Fault> {
    for disk in &spec.disks {
        open_disk(disk, reach)?;
    }
    spec.kernel_boot.as_ref().map_or(Ok(()), |boot| open_boot(boot, reach).map(drop))
}

/// Opens a disk for QEMU, and all that is behind it.
///
/// # Errors
/// FAILED_PRECONDITION that names the file and why it cannot be used.
pub fn open_disk(disk: &Disk, reach: &Reach) -> Result<OpenDisk, Fault> {
    let access = Access { write: !disk.read_only, direct: disk.cache.direct() };
    let image = open_image(&disk.path, disk.format, access, reach)?;
    let mut next = header(&disk.path, &image)?;
    let largest = match (&next, image.block_device || disk.read_only) {
        (_, true) => 0,
        (Some(header), false) => header.virtual_size.saturating_mul(2).saturating_add(OVERHEAD),
        // Rounded up to what a block may be.
        (None, false) => length(&image, &disk.path)?.saturating_add(1 << 20),
    };
    let mut seen = vec![identity(&image, &disk.path)?];
    let (mut backing, mut path) = (Vec::new(), disk.path.clone());
    while let Some(reference) = next.and_then(|header| header.backing) {
        let refuse = |why: &str, hint: &str| refused(&path, why, hint);
        if seen.len() == MAX_CHAIN {
            return Err(refuse(
                &format!("is the last of {MAX_CHAIN} images, and has a backing file still"),
                "shorten the chain: qemu-img rebase, or qemu-img convert into one image",
            ));
        }
        let format = match reference.format.as_deref() {
            Some("raw") => DiskFormat::Raw,
            Some("qcow2") => DiskFormat::Qcow2,
            other => {
                let other = other.map_or("does not say the format of its backing file".into(), |other| {
                    format!(
                        "has a backing file of format `{}`, and vmd opens raw and qcow2",
                        printable(other)
                    )
                });
                return Err(refuse(&other, "name it: qemu-img rebase -u -b BACKING -F FORMAT FILE"));
            }
        };
        let behind = resolve(&path, &reference.name).ok_or_else(|| {
            refuse(
                &format!("has a backing file that is no path, `{}`", printable(&reference.name)),
                "give it a path: qemu-img rebase -u -b /PATH/OF/BACKING -F FORMAT FILE",
            )
        })?;
        let access = Access { write: false, direct: access.direct };
        let image = open_image(&behind, format, access, reach).map_err(|fault| {
            fault.context(format!("the backing file of `{}` is not usable", printable_path(&path)))
        })?;
        let found = identity(&image, &behind)?;
        if seen.contains(&found) {
            return Err(refused(
                &behind,
                "is behind itself",
                "its chain of backing files must end: see qemu-img rebase",
            ));
        }
        seen.push(found);
        next = header(&behind, &image)?;
        backing.push(image);
        path = behind;
    }
    Ok(OpenDisk { image, backing, largest })
}

#[derive(Clone, Copy)]
struct Access {
    write: bool,
    direct: bool,
}

fn refused(path: &str, why: &str, hint: &str) -> Fault {
    Fault::new(Kind::FailedPrecondition, "DISK_UNUSABLE", format!("disk `{}` {why}", printable_path(path)))
        .meta("path", path)
        .hint(hint)
}

fn unreadable(path: &str, error: &io::Error) -> Fault {
    unusable("DISK_UNUSABLE", "disk", path, error)
}

fn open_image(path: &str, format: DiskFormat, access: Access, reach: &Reach) -> Result<Image, Fault> {
    let failed = |error: &io::Error| {
        let access = if access.write { "read and write" } else { "read" };
        unreadable(path, error)
            .hint(format!("vmd's user must be able to {access} it, and to search the folders above it"))
    };
    // An admin's may be a device, which might do anything: looked at first.
    if !reach.is_bounded() {
        let meta = std::fs::metadata(path).map_err(|e| failed(&e))?;
        if !meta.is_file() && !meta.file_type().is_block_device() {
            let why = "is neither a regular file nor a block device";
            return Err(refused(path, why, "name a disk image or a block device"));
        }
    }
    let direct = if access.direct { OFlags::DIRECT } else { OFlags::empty() };
    let file = reach.open(path, access.write, direct).map_err(|error| {
        let fault = failed(&error);
        if access.direct && error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) {
            return fault.hint("its file system cannot do O_DIRECT: use cache `writeback`");
        }
        fault
    })?;
    let block_device = file.metadata().map_err(|e| failed(&e))?.file_type().is_block_device();
    Ok(Image { file, block_device, format })
}

/// What the header of a qcow2 image says; `None` for a raw image, which has none.
fn header(path: &str, image: &Image) -> Result<Option<Header>, Fault> {
    // The open file itself, without O_DIRECT, whose reads would have to be aligned.
    let plain = File::open(format!("/proc/self/fd/{}", image.file.as_raw_fd()));
    let mut head = Vec::new();
    let most = match image.format {
        DiskFormat::Raw => 1,
        DiskFormat::Qcow2 => qcow2::HEAD,
    };
    plain.and_then(|plain| plain.take(most).read_to_end(&mut head)).map_err(|e| unreadable(path, &e))?;
    match image.format {
        DiskFormat::Raw if head.is_empty() => {
            Err(refused(path, "is empty", "`truncate -s 10G FILE` or `qemu-img create` gives it a size"))
        }
        DiskFormat::Raw => Ok(None),
        DiskFormat::Qcow2 => qcow2::parse(&head).map(Some).map_err(|why| {
            refused(
                path,
                &why,
                "`qemu-img info FILE` tells its format; `qemu-img convert` makes a new image of it",
            )
        }),
    }
}

/// The path of a backing file, as QEMU understands it: a relative one is beside the image that names it. `None` for
/// what QEMU would take for a protocol: no path has a colon before its first slash there.
fn resolve(image: &str, name: &str) -> Option<String> {
    if name.starts_with('/') {
        return Some(name.to_owned());
    }
    let protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    let beside = Path::new(image).parent()?.join(name);
    (!protocol).then(|| beside.to_str().map(str::to_owned)).flatten()
}

fn identity(image: &Image, path: &str) -> Result<(u64, u64), Fault> {
    image.file.metadata().map(|meta| (meta.dev(), meta.ino())).map_err(|e| unreadable(path, &e))
}

fn length(image: &Image, path: &str) -> Result<u64, Fault> {
    image.file.metadata().map(|meta| meta.len()).map_err(|e| unreadable(path, &e))
}

/// Largest kernel or initramfs that is taken: one that only vmd's user may read is copied into memory.
const MAX_BOOT_FILE: u64 = 1 << 30;

/// Opens kernel and initramfs, in this order.
///
/// # Errors
/// FAILED_PRECONDITION that names the file and why it cannot be used.
pub fn open_boot(boot: &KernelBoot, reach: &Reach) -> Result<Vec<File>, Fault> {
    let files = [("kernel", Some(&boot.kernel)), ("initrd", boot.initrd.as_ref())];
    let files = files.into_iter().filter_map(|(what, path)| Some((what, path?)));
    files.map(|(what, path)| open_boot_file(what, path, reach)).collect()
}

fn open_boot_file(what: &str, path: &str, reach: &Reach) -> Result<File, Fault> {
    let failed = |error: &io::Error| {
        unusable("KERNEL_UNUSABLE", what, path, error)
            .hint("vmd's user must be able to read it, and to search the folders above it")
    };
    let open = || {
        if !reach.is_bounded() && !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = reach.open(path, false, OFlags::empty())?;
        if file.metadata()?.len() > MAX_BOOT_FILE {
            return Err(io::Error::other("it is larger than 1 GiB"));
        }
        Ok(file)
    };
    open().map_err(|e| failed(&e))
}

fn unusable(reason: &str, what: &str, path: &str, error: &io::Error) -> Fault {
    let denied = error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none();
    // The bounds of an operator, not the kernel's word.
    let (kind, reason) = if denied {
        (Kind::PermissionDenied, "PATH_NOT_ALLOWED")
    } else {
        (Kind::FailedPrecondition, reason)
    };
    Fault::new(kind, reason, format!("cannot use {what} `{}`", printable_path(path)))
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
            let fault = open_disk(&disk(&path, DiskFormat::Raw), &Reach::Anywhere).unwrap_err();
            assert_eq!(fault.reason(), "DISK_UNUSABLE", "{path:?}");
            assert!(fault.to_string().contains(path.to_str().unwrap()), "{fault}");
            assert!(!fault.hints().is_empty());
        }
    }

    #[test]
    fn a_chain_is_opened_to_its_end_and_none_that_has_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
        let image =
            |name: &str, backing: &str, format: &str| write(name, &qcow2::test::image(backing, format));
        let open = |name: &str| open_disk(&disk(&path(name), DiskFormat::Qcow2), &Reach::Anywhere);
        let refused = |name: &str| open(name).unwrap_err().chain();
        write("zeros", &[0; 512]);
        assert!(refused("zeros").contains("not a qcow2 image"));
        image("alone", "", "");
        let alone = open("alone").unwrap();
        assert_eq!((alone.backing.len(), alone.largest), (0, 3 << 30));
        // Relative ones are beside the image.
        image("top", "middle", "qcow2");
        image("middle", path("zeros").to_str().unwrap(), "raw");
        let formats: Vec<_> = open("top").unwrap().backing.iter().map(|image| image.format).collect();
        assert_eq!(formats, [DiskFormat::Qcow2, DiskFormat::Raw]);
        image("guess", "zeros", "");
        assert!(refused("guess").contains("does not say the format"), "{}", refused("guess"));
        image("other", "zeros", "vmdk");
        assert!(refused("other").contains("`vmdk`"));
        for name in ["json:{}", "nbd://host/x", "fat:/"] {
            image("protocol", name, "raw");
            assert!(refused("protocol").contains("no path"), "{name}");
        }
        image("missing", "nowhere", "raw");
        assert!(refused("missing").contains("the backing file of"), "{}", refused("missing"));
        image("self", "self", "qcow2");
        assert!(refused("self").contains("behind itself"));
        image("a", "b", "qcow2");
        image("b", "a", "qcow2");
        assert!(refused("a").contains("behind itself"));
        image("folder", "/", "raw");
        assert!(refused("folder").contains("neither a regular file"));
        for step in 0..MAX_CHAIN {
            image(&format!("long{step}"), &format!("long{}", step + 1), "qcow2");
        }
        image(&format!("long{MAX_CHAIN}"), "", "");
        assert!(refused("long0").contains("the last of 32"), "{}", refused("long0"));
        assert_eq!(open("long1").unwrap().backing.len(), MAX_CHAIN - 1);
    }

    #[test]
    fn a_raw_disk_may_not_grow_and_one_that_is_only_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        std::fs::write(&path, [0; 4096]).unwrap();
        let mut disk = disk(&path, DiskFormat::Raw);
        assert_eq!(open_disk(&disk, &Reach::Anywhere).unwrap().largest, 4096 + (1 << 20));
        disk.read_only = true;
        assert_eq!(open_disk(&disk, &Reach::Anywhere).unwrap().largest, 0);
    }
}
