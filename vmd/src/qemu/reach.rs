//! Which files of the host a machine may be given: an operator's only what lies in certain folders and belongs to them.

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};
use shared::access::groups_of;
use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Bits of a mode.
const READ: u32 = 0o4;
const SEARCH: u32 = 0o1;

/// Where a machine's files may be.
#[derive(Clone, Debug)]
pub enum Reach {
    /// Wherever vmd itself can open them: an admin's.
    Anywhere,
    /// In one of these folders, by no link, and in folders there that let the owner through. What is written to belongs
    /// to the owner; what is read only belongs to the owner or may be read by everybody.
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
        let file = open_beneath(folders, Path::new(path), flags | access, *owner)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(denied("it is not a regular file".into()));
        }
        if write {
            writers(&meta, *socket_group)?;
        }
        if meta.uid() == *owner || (!write && meta.mode() & 0o004 != 0 && may(&meta, READ, *owner)?) {
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

/// Opens a file in one of the folders. The folder itself is root's choice; those in it have to let the owner through, as
/// they would if the owner opened it: what is in a closed folder may well be readable by everybody.
fn open_beneath(folders: &[PathBuf], path: &Path, flags: OFlags, owner: u32) -> io::Result<File> {
    for folder in folders {
        let Ok(rest) = path.strip_prefix(folder) else { continue };
        let top = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Each is held, so that none is exchanged between the look at it and its use.
        let mut way = vec![top];
        let mut parts = rest.components().peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            match (part, way.last()) {
                (Component::ParentDir, _) if !last => {
                    way.pop();
                }
                (Component::Normal(name), Some(folder)) if last => {
                    return step(folder, name, flags).map(File::from);
                }
                (Component::Normal(name), Some(folder)) => {
                    let next = step(folder, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
                    let file = File::from(next);
                    if !may(&file.metadata()?, SEARCH, owner)? {
                        let name = Path::new(name).display();
                        return Err(denied(format!("its folder `{name}` does not let uid {owner} through")));
                    }
                    way.push(file.into());
                }
                (_, None) => break,
                _ => return Err(denied("it is not a regular file".into())),
            }
        }
        let why =
            if way.is_empty() { "its path leads out of the folder" } else { "it is not a regular file" };
        return Err(denied(why.into()));
    }
    let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Err(denied(format!("operators' files have to be in {}", folders.join(" or "))))
}

/// Opens what is in a folder, and is no link.
fn step(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let bounds = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(folder, name, flags, Mode::empty(), bounds).map_err(|error| match error {
        Errno::LOOP => denied("there is a symbolic link in its path".into()),
        other => other.into(),
    })
}

/// Whether its mode lets a user do that: the bit of owner, group or others, whichever the user is. Access lists do not
/// count.
fn may(meta: &Metadata, bit: u32, uid: u32) -> io::Result<bool> {
    let [own, group, others] = [6, 3, 0].map(|shift| meta.mode() >> shift & bit != 0);
    if meta.uid() == uid {
        return Ok(own);
    }
    // The user database is asked only where it matters.
    Ok(if group != others && groups_of(uid)?.contains(&meta.gid()) { group } else { others })
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
        time::{Duration, Instant},
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
        open("sub/../own", true).unwrap();
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
            ("sub/..", false, "not a regular file"),
            ("", false, "not a regular file"),
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

    /// As the kernel would decide for the owner, who is asked by a program that runs as that user.
    #[test]
    fn what_is_in_a_folder_that_is_closed_to_the_owner_is_not_opened() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: only root can make files of others");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        own(dir.path(), 0, 0o711);
        // A user whom the database knows, and its group.
        let user = ids_of("nobody");
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        // Root's grant: what this one's mode says does not matter.
        own(&images, 0, 0o755);
        let reach = Reach::Beneath { folders: [images.clone()].into(), owner: user.0, socket_group: None };
        let (mut opened, mut refused) = (0, 0);
        for (place, (uid, gid)) in
            [("own", (user.0, 0)), ("group", (0, user.1)), ("others", (0, 0)), ("both", user)]
        {
            for mode in
                [0o700, 0o711, 0o710, 0o701, 0o755, 0o750, 0o677, 0o070, 0o007, 0o100, 0o010, 0o001, 0o000]
            {
                let closed = images.join(format!("{place}-{mode:o}"));
                let inner = closed.join("inner");
                fs::create_dir_all(&inner).unwrap();
                let image = inner.join("base");
                fs::write(&image, "image").unwrap();
                own(&image, 0, 0o644);
                own(&inner, 0, 0o755);
                std::os::unix::fs::chown(&closed, Some(uid), Some(gid)).unwrap();
                own(&closed, uid, mode);
                let here = reach.open(image.to_str().unwrap(), false, OFlags::empty());
                let id = |id: u32| id.to_string();
                let kernel = std::process::Command::new("setpriv")
                    .args(["--reuid", &id(user.0), "--regid", &id(user.1), "--init-groups", "cat"])
                    .arg(&image)
                    .stderr(std::process::Stdio::null())
                    .output()
                    .unwrap();
                assert_eq!(here.is_ok(), kernel.status.success(), "{place} {mode:o}: {here:?}");
                if let Err(error) = &here {
                    assert!(
                        error.to_string().contains(&format!("`{place}-{mode:o}` does not let uid")),
                        "{error}"
                    );
                    refused += 1;
                } else {
                    opened += 1;
                }
            }
        }
        println!("{opened} images opened and {refused} refused, as the kernel does for their reader");
        assert!(opened >= 10 && refused >= 10, "{opened} {refused}");
        // A file that everybody may read but its group, of which the owner is.
        let image = images.join("odd");
        fs::write(&image, "image").unwrap();
        std::os::unix::fs::chown(&image, Some(0), Some(user.1)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(reach.open(image.to_str().unwrap(), false, OFlags::empty()).is_err());
    }

    /// Uid and primary group of a user.
    fn ids_of(name: &str) -> (u32, u32) {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let fields =
            passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f[0] == name).unwrap();
        (fields[2].parse().unwrap(), fields[3].parse().unwrap())
    }

    /// Whoever exchanges the file while it is opened gets it opened, or nothing, but never the other one.
    #[test]
    fn a_file_that_is_exchanged_for_a_link_meanwhile_is_never_followed() {
        const TRIES: usize = 20_000;
        const PATIENCE: Duration = Duration::from_secs(60);
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
            let begin = Instant::now();
            let mut tries = 0;
            // The other thread may be slow to begin.
            while tries < TRIES || (opened == 0 || refused == 0) && begin.elapsed() < PATIENCE {
                tries += 1;
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
        println!(
            "{} opens while a file was exchanged for a link: {opened} opened, {refused} refused",
            opened + refused
        );
        assert!(opened > 0 && refused > 0, "there was no race: {opened} and {refused}");
    }
}
