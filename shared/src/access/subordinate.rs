//! Uids that belong to users besides their own: subuid(5).

use std::{
    collections::BTreeSet, fs, io, ops::Range, os::unix::fs::MetadataExt as _, path::Path, path::PathBuf,
};

/// Who has which.
pub const SUBUID: &str = "/etc/subuid";
/// The host's own users.
const PASSWD: &str = "/etc/passwd";

/// The ranges of the lines `user:first:count`; none if the file is not there.
///
/// # Errors
/// If it cannot be read.
pub fn ranges(subuid: &Path) -> io::Result<Vec<Range<u64>>> {
    let bytes = read(subuid)?;
    let range = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(|field| field.trim().parse::<u64>().ok());
        let (first, count) = (numbers.next()??, numbers.next()??);
        Some(first..first.saturating_add(count))
    };
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(range).collect())
}

/// Tells subordinate uids from others, for those who have no time to ask a user database: the files are read again
/// when they have changed.
#[derive(Debug)]
pub struct Subordinates {
    subuid: PathBuf,
    passwd: PathBuf,
    read: Option<[Option<Stamp>; 2]>,
    ranges: Vec<Range<u64>>,
    /// Host's users within them: containers may be given one's uid, which is no less that user's for it.
    users: BTreeSet<u64>,
}

/// What tells one state of a file from another: inode, length, and when it was changed.
type Stamp = (u64, u64, i64, i64);

impl Default for Subordinates {
    fn default() -> Self {
        Self::of(Path::new(SUBUID), Path::new(PASSWD))
    }
}

impl Subordinates {
    fn of(subuid: &Path, passwd: &Path) -> Self {
        let (subuid, passwd) = (subuid.to_owned(), passwd.to_owned());
        Self { subuid, passwd, read: None, ranges: Vec::new(), users: BTreeSet::new() }
    }

    /// Whether somebody has the uid besides their own. What cannot be read stays as it was.
    pub fn have(&mut self, uid: u32) -> bool {
        let now = [stamp(&self.subuid), stamp(&self.passwd)];
        if self.read != Some(now) {
            self.read = Some(now);
            if let Err(error) = self.load() {
                tracing::warn!(%error, "cannot read which uids are subordinate");
            }
        }
        let uid = u64::from(uid);
        !self.users.contains(&uid) && self.ranges.iter().any(|range| range.contains(&uid))
    }

    fn load(&mut self) -> io::Result<()> {
        let (ranges, passwd) = (ranges(&self.subuid)?, read(&self.passwd)?);
        let text = String::from_utf8_lossy(&passwd);
        let users = text.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok());
        self.users = users.filter(|uid| ranges.iter().any(|range| range.contains(uid))).collect();
        self.ranges = ranges;
        Ok(())
    }
}

/// Nothing if there is no such file.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let of = fs::metadata(path).ok()?;
    Some((of.ino(), of.size(), of.mtime(), of.mtime_nsec()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_uid_of_a_range_is_subordinate_unless_it_is_a_users_and_changes_are_heard_of() {
        let dir = tempfile::tempdir().unwrap();
        let (subuid, passwd) = (dir.path().join("subuid"), dir.path().join("passwd"));
        let mut subordinates = Subordinates::of(&subuid, &passwd);
        assert!(!subordinates.have(100_000), "without the files");
        fs::write(&subuid, "alice:100000:65536\nroot:1000:1\nno line\n").unwrap();
        fs::write(&passwd, "bob:x:1000:1000::/home/bob:/bin/sh\n").unwrap();
        let found = [99_999, 100_000, 165_535, 165_536, 1000].map(|uid| subordinates.have(uid));
        assert_eq!(found, [false, true, true, false, false]);
        fs::write(&subuid, "").unwrap();
        assert!(!subordinates.have(100_000), "it was changed");
    }
}
