//! A root folder with nothing in it but what QEMU reads.
//!
//! Files are reached while this process is still vmd's user, who may; the folder is filled once it is the machine's
//! user, who owns it.

use super::{DEVICES, HandedFile, Spec};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};
use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
/// Room for names and folders, beside the copies.
const OVERHEAD: u64 = 1 << 20;
const INODES: usize = 4096;

/// What is to be in the folder, held open.
pub struct Prepared<'a> {
    mounts: Vec<(PathBuf, Tree)>,
    devices: Vec<(PathBuf, Tree)>,
    copies: Vec<&'a HandedFile>,
}

struct Tree {
    mount: OwnedFd,
    folder: bool,
}

/// Opens all that is to be there, and mounts an empty folder at `place`, a folder that nobody needs in this namespace.
/// It belongs to `owner` and is the working folder then.
pub fn prepare<'a>(spec: &'a Spec, place: &Path, owner: super::ids::Ids) -> Result<Prepared<'a>, String> {
    let failed = |error: Errno| format!("cannot make a root folder: {error}");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed)?;
    let trees = |paths: &mut dyn Iterator<Item = &Path>| -> Result<Vec<_>, String> {
        paths.map(|path| Ok((path.to_owned(), tree(path)?))).collect()
    };
    let mut mounts = trees(&mut spec.read.iter().map(PathBuf::as_path))?;
    let devices = trees(&mut DEVICES.iter().map(Path::new).chain(spec.devices.iter().map(PathBuf::as_path)))?;
    let mut copies = Vec::new();
    for file in &spec.files {
        match file.public.then(|| tree(&file.path)) {
            // A file that is another one by now is not the one that vmd opened.
            Some(Ok(tree)) if same(&tree.mount, file)? => mounts.push((file.inside.clone(), tree)),
            _ => copies.push(file),
        }
    }
    let size = copies.iter().map(|file| file.size).sum::<u64>() + OVERHEAD;
    let options = format!("mode=0755,uid={},gid={},size={size},nr_inodes={INODES}", owner.uid, owner.gid);
    let options = CString::new(options).map_err(|e| e.to_string())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", place, "tmpfs", flags, Some(options.as_c_str())).map_err(failed)?;
    rustix::process::chdir(place).map_err(failed)?;
    Ok(Prepared { mounts, devices, copies })
}

/// A mount of its own of what is at a path.
fn tree(path: &Path) -> Result<Tree, String> {
    let failed = |error: Errno| format!("cannot take `{}` into the root folder: {error}", path.display());
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let open = |flags| rustix::mount::open_tree(CWD, path, flags);
    // A folder that others are mounted in, and that may not be seen without them.
    let mount = match open(clone) {
        Err(Errno::INVAL) => open(clone | OpenTreeFlags::AT_RECURSIVE),
        result => result,
    };
    let mount = mount.map_err(failed)?;
    let meta = rustix::fs::fstat(&mount).map_err(failed)?;
    let folder = rustix::fs::FileType::from_raw_mode(meta.st_mode).is_dir();
    Ok(Tree { mount, folder })
}

fn same(mount: &OwnedFd, file: &HandedFile) -> Result<bool, String> {
    let failed = |e: Errno| format!("cannot look at `{}`: {e}", file.path.display());
    let found = rustix::fs::fstat(mount).map_err(failed)?;
    // SAFETY: vmd put this file here for the whole life of this process.
    let handed = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(file.fd) }).map_err(failed)?;
    Ok((found.st_dev, found.st_ino) == (handed.st_dev, handed.st_ino))
}

impl Prepared<'_> {
    /// Fills the working folder and makes it the root, from which nothing leads out.
    pub fn enter(self) -> Result<(), String> {
        let failed = |error: Errno| format!("cannot enter the root folder: {error}");
        for (path, tree) in &self.mounts {
            place(path, tree)?;
        }
        for file in &self.copies {
            copy(file)?;
        }
        for (path, _) in &self.devices {
            make(path, false)?;
        }
        set_attributes(".", READ_ONLY | libc::MOUNT_ATTR_NODEV, libc::AT_RECURSIVE)?;
        for (path, tree) in &self.devices {
            place(path, tree)?;
            set_attributes(inside(path), READ_ONLY | libc::MOUNT_ATTR_NOEXEC, 0)?;
        }
        // The old root ends up on top of the new one, and goes.
        rustix::process::pivot_root(".", ".").map_err(failed)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed)?;
        rustix::process::chdir("/").map_err(failed)
    }
}

/// A path of the host in the working folder.
fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn make(path: &Path, folder: bool) -> Result<(), String> {
    let failed =
        |error: Errno| format!("cannot make `{}` in the root folder: {error}", inside(path).display());
    let exists = |result: Result<(), Errno>| match result {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error)),
    };
    let mode = Mode::from_raw_mode(0o755);
    let above: Vec<&Path> = inside(path).ancestors().skip(1).filter(|p| *p != Path::new("")).collect();
    for part in above.into_iter().rev() {
        exists(rustix::fs::mkdir(part, mode))?;
    }
    if folder {
        return exists(rustix::fs::mkdir(inside(path), mode));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    exists(rustix::fs::open(inside(path), flags, Mode::from_raw_mode(0o444)).map(drop))
}

fn place(path: &Path, tree: &Tree) -> Result<(), String> {
    // A folder that is there already holds the file.
    make(path, tree.folder)?;
    rustix::mount::move_mount(&tree.mount, "", CWD, inside(path), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| format!("cannot mount `{}` in the root folder: {e}", path.display()))
}

/// For files that the machine's user may not read where they are.
fn copy(file: &HandedFile) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot copy `{}`: {error}", file.path.display());
    // SAFETY: vmd put this file here for this purpose, and nothing else in this process uses the number.
    let mut from = unsafe { File::from_raw_fd(file.fd) };
    let mut to = File::create_new(inside(&file.inside)).map_err(failed)?;
    let copied = io::copy(&mut from, &mut to).map_err(failed)?;
    if copied != file.size || from.metadata().map_err(failed)?.size() != file.size {
        return Err(failed(io::Error::other("it was changed meanwhile")));
    }
    Ok(())
}

fn set_attributes(path: impl AsRef<Path>, attributes: u64, flags: i32) -> Result<(), String> {
    let path = CString::new(path.as_ref().as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: path and structure live over the call, which reads as many bytes of the structure as it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            CWD.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(format!("cannot make `{}` read-only: {}", path.to_string_lossy(), io::Error::last_os_error()))
}
