//! Where cgroup v2 is mounted, and which group is vmd's own.

use std::path::{Component, Path, PathBuf};

/// What this process sees of cgroup v2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The folder of the topmost group that is to be seen.
    pub mount: PathBuf,
    /// The folder of this process's own group; `None` if it is not to be seen.
    pub own: Option<PathBuf>,
}

impl Place {
    /// From `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)); `None` if it is not mounted.
    pub fn read(mountinfo: &str, cgroup: &str) -> Option<Self> {
        let own = cgroup.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new);
        let mounts: Vec<(PathBuf, PathBuf)> = mountinfo.lines().filter_map(mount).collect();
        // The later one hides the earlier.
        let seen = mounts.iter().rev().find_map(|(root, point)| {
            let inside = own?.strip_prefix(root).ok()?;
            let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
            plain.then(|| Self { mount: point.clone(), own: Some(joined(point, inside)) })
        });
        seen.or_else(|| mounts.last().map(|(_, point)| Self { mount: point.clone(), own: None }))
    }
}

/// Without the final slash that joining nothing leaves.
fn joined(point: &Path, inside: &Path) -> PathBuf {
    if inside.as_os_str().is_empty() { point.to_owned() } else { point.join(inside) }
}

/// Root and mount point, of a line that is a mount of cgroup2.
fn mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    Some((unescaped(fields.next()?), unescaped(fields.next()?)))
}

/// Blanks and the like are written as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut path = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(char::from(code));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                path.push('\\');
                rest = after;
            }
        }
    }
    path.push_str(rest);
    path.into()
}

#[cfg(test)]
mod test {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                          32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                          41 31 0:38 / /sys/fs/cgroup/the\\040tree rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    fn read(mountinfo: &str, cgroup: &str) -> Option<(String, Option<String>)> {
        let text = |path: PathBuf| path.display().to_string();
        Place::read(mountinfo, cgroup).map(|place| (text(place.mount), place.own.map(text)))
    }

    #[test]
    fn the_own_group_is_found_at_its_mount() {
        let at = |own: &str| Some(("/sys/fs/cgroup/the tree".to_owned(), Some(own.to_owned())));
        let both = "4:memory:/elsewhere\n0::/system.slice/vmd.service/vmd\n";
        assert_eq!(read(MOUNTS, both), at("/sys/fs/cgroup/the tree/system.slice/vmd.service/vmd"));
        assert_eq!(read(MOUNTS, "0::/\n"), at("/sys/fs/cgroup/the tree"));
        let part = "41 31 0:38 /machines /cg rw - cgroup2 cgroup2 rw\n";
        assert_eq!(read(part, "0::/machines/vmd\n"), Some(("/cg".into(), Some("/cg/vmd".into()))));
    }

    #[test]
    fn a_group_that_is_not_to_be_seen_is_not_made_up() {
        let part = "41 31 0:38 /machines /cg rw - cgroup2 cgroup2 rw\n";
        for own in ["0::/other\n", "0::/machinesx\n", "0::/../outside\n", "4:memory:/machines\n", ""] {
            assert_eq!(read(part, own), Some(("/cg".into(), None)), "{own}");
        }
        assert_eq!(read("41 31 0:38 / /cg rw - cgroup2 c rw\n", "0::/../x\n"), Some(("/cg".into(), None)));
        assert_eq!(read("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\nx\n", "0::/\n"), None);
    }
}
