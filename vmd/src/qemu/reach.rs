//! Which files of the host a machine may be given: an operator's only what lies in certain folders and belongs to them.

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};
use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where a machine's files may be.
#[derive(Clone, Debug)]
pub enum Reach {
    /// Wherever vmd itself can open them: an admin's.
    Anywhere,
    /// In one of these folders, by no link. What is written to belongs to the owner; what is read only belongs to the
    /// owner or may be read by everybody.
    Beneath {
        /// Absolute paths.
        folders: Arc<[PathBuf]>,
        /// The machine's owner.
        owner: u32,
        /// The group that all users of the socket are in, if there is one: it may not write to a machine's file.
        socket_group: Option<u32>,
    },
}

impl Reach {
    /// Whether it has bounds.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        matches!(self, Self::Beneath { .. })
    }

    /// Opens a file, to read and, if `write`, to write, with `more` flags. Bounds are checked on what was opened, so that nobody can
    /// exchange it in between.
    ///
    /// # Errors
    /// What the kernel said, or PermissionDenied with the bound.
    pub fn open(&self, path: &str, write: bool, more: OFlags) -> io::Result<File> {
        // A FIFO must not block the open.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
        let Self::Beneath { folders, owner, socket_group } = self else {
            return File::options()
                .read(true)
                .write(write)
                .custom_flags(flags.bits().cast_signed())
                .open(path);
        };
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file = open_beneath(folders, Path::new(path), flags | access)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(denied("it is not a regular file".into()));
        }
        if write {
            writers(&meta, *socket_group)?;
        }
        if meta.uid() == *owner || (!write && meta.mode() & 0o004 != 0) {
            return Ok(file);
        }
        Err(denied(format!(
            "it belongs to uid {}, and the machine to uid {owner}{}",
            meta.uid(),
            if write { "" } else { "; not everybody may read it" }
        )))
    }
}

/// Refuses a file to be written that other users may write to as well: they would get into the guest.
fn writers(meta: &Metadata, socket_group: Option<u32>) -> io::Result<()> {
    if meta.mode() & 0o002 != 0 {
        return Err(denied("everybody may write to it; take that away with `chmod o-w`".into()));
    }
    if meta.mode() & 0o020 != 0 && socket_group == Some(meta.gid()) {
        return Err(denied(format!(
            "all of the socket's group, gid {}, may write to it; give it to vmd's own group with `chgrp`, or take \
             that away with `chmod g-w`",
            meta.gid()
        )));
    }
    Ok(())
}

fn open_beneath(folders: &[PathBuf], path: &Path, flags: OFlags) -> io::Result<File> {
    // No component of the rest may be a link or lead out; the folder itself is root's choice.
    let bounds = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for folder in folders {
        let Ok(rest) = path.strip_prefix(folder) else { continue };
        let folder = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        return openat2(folder, rest, flags, Mode::empty(), bounds).map(File::from).map_err(
            |error| match error {
                Errno::LOOP => denied("there is a symbolic link in its path".into()),
                Errno::XDEV => denied("its path leads out of the folder".into()),
                other => other.into(),
            },
        );
    }
    let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Err(denied(format!("operators' files have to be in {}", folders.join(" or "))))
}

fn denied(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        sync::atomic::{AtomicBool, Ordering},
    };

    const OWNER: u32 = 3_999_000_002;
    const GROUP: u32 = 3_999_000_003;

    fn own(path: &Path, uid: u32, mode: u32) {
        std::os::unix::fs::chown(path, Some(uid), None).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_own_files_in_the_folders_are_opened() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: only root can make files of others");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir_all(images.join("sub")).unwrap();
        let path = |name: &str| images.join(name);
        for (name, uid, mode) in
            [("own", OWNER, 0o600), ("sub/own", OWNER, 0o600), ("base", 0, 0o644), ("other", 0, 0o640)]
        {
            fs::write(path(name), name).unwrap();
            own(&path(name), uid, mode);
        }
        fs::write(dir.path().join("secret"), "secret").unwrap();
        own(&dir.path().join("secret"), OWNER, 0o644);
        fs::hard_link(path("other"), path("hard")).unwrap();
        symlink(dir.path().join("secret"), path("link")).unwrap();
        symlink(dir.path(), path("up")).unwrap();
        symlink("own", path("near")).unwrap();
        rustix::fs::mknodat(CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
        let reach =
            Reach::Beneath { folders: [images.clone()].into(), owner: OWNER, socket_group: Some(GROUP) };
        let open = |name: &str, write| {
            reach.open(path(name).to_str().unwrap(), write, OFlags::empty()).map_err(|e| e.to_string())
        };
        open("own", true).unwrap();
        open("sub/own", true).unwrap();
        open("base", false).unwrap();
        for (name, gid, mode) in
            [("open", 0, 0o602), ("shared", GROUP, 0o660), ("vmd's", 0, 0o660), ("read", GROUP, 0o640)]
        {
            fs::write(path(name), name).unwrap();
            own(&path(name), OWNER, mode);
            std::os::unix::fs::chown(path(name), None, Some(gid)).unwrap();
            open(name, false).unwrap();
        }
        open("vmd's", true).unwrap();
        open("read", true).unwrap();
        for (name, write, says) in [
            ("base", true, "belongs to uid 0"),
            ("open", true, "everybody may write"),
            ("shared", true, "all of the socket's group"),
            ("other", false, "not everybody"),
            ("hard", true, "belongs to uid 0"),
            ("link", false, "symbolic link"),
            ("near", true, "symbolic link"),
            ("up/secret", false, "symbolic link"),
            ("../secret", false, "leads out"),
            ("sub/../../secret", false, "leads out"),
            ("sub", false, "not a regular file"),
            ("fifo", false, "not a regular file"),
            ("missing", false, "No such file"),
        ] {
            let error = open(name, write).unwrap_err();
            assert!(error.contains(says), "{name}: {error}");
        }
        for outside in ["/etc/passwd", "/proc/self/exe", "/dev/null", "", "images/own", "/var/../etc/passwd"]
        {
            let error = reach.open(outside, false, OFlags::empty()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{outside}: {error}");
        }
        Reach::Anywhere.open(path("link").to_str().unwrap(), false, OFlags::empty()).unwrap();
    }

    /// Whoever exchanges the file while it is opened gets it opened, or nothing, but never the other one.
    #[test]
    fn a_file_that_is_exchanged_for_a_link_meanwhile_is_never_followed() {
        const TRIES: usize = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        let (target, secret) = (images.join("disk"), dir.path().join("secret"));
        fs::write(&secret, "secret").unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let reach = Reach::Beneath { folders: [images.clone()].into(), owner, socket_group: None };
        let done = AtomicBool::new(false);
        let (mut opened, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let new = images.join("new");
                while !done.load(Ordering::Relaxed) {
                    fs::write(&new, "mine").unwrap();
                    fs::rename(&new, &target).unwrap();
                    symlink(&secret, &new).unwrap();
                    fs::rename(&new, &target).unwrap();
                }
            });
            for _ in 0..TRIES {
                match reach.open(target.to_str().unwrap(), false, OFlags::empty()) {
                    Ok(file) => {
                        opened += 1;
                        assert_eq!(io::read_to_string(file).unwrap(), "mine");
                    }
                    Err(_) => refused += 1,
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        println!("{TRIES} opens while a file was exchanged for a link: {opened} opened, {refused} refused");
        assert!(opened > 0 && refused > 0, "there was no race: {opened} and {refused}");
    }
}
