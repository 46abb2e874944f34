//! A control group (cgroup v2) for a host's vmd, made as systemd makes one for a unit with `Delegate=`.

use crate::{host::VMD_UID, wait};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a daemon's own mount namespace has cgroup v2.
pub const SEEN_AT: &str = "/sys/fs/cgroup";
const MEMBERS: &str = "cgroup.procs";
/// What a user has to be given to divide a group (cgroups(7)).
const DELEGATED: [&str; 4] = ["", MEMBERS, "cgroup.subtree_control", "cgroup.threads"];
/// From SIGKILL to the end of the last process.
const DEATH: Duration = Duration::from_secs(10);

/// A group and all beneath it, which end with this.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// A group of vmd's user with `vmd` beneath it; `None` on a machine without cgroup v2 that root may write to.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let group = Self(mount()?.join(name));
        fs::create_dir(&group.0).ok()?;
        fs::create_dir(group.0.join("vmd")).ok()?;
        for folder in [group.0.clone(), group.0.join("vmd")] {
            for file in DELEGATED {
                chown(folder.join(file), Some(VMD_UID), Some(VMD_UID)).ok()?;
            }
        }
        Some(group)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Its folder in a daemon's own mount namespace.
    #[must_use]
    pub fn seen(&self) -> String {
        Path::new(SEEN_AT).join(self.0.file_name().unwrap_or_default()).display().to_string()
    }

    /// Machines that have a group.
    #[must_use]
    pub fn machines(&self) -> BTreeSet<String> {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let machine = |name: &str| Some(name.strip_prefix("vm-")?.split_once('-')?.1.to_owned());
        names.filter_map(|entry| machine(entry.file_name().to_str()?)).collect()
    }

    /// Processes in a group beneath; `None` if there is none.
    #[must_use]
    pub fn members(&self, name: &str) -> Option<Vec<u32>> {
        let members = fs::read_to_string(self.0.join(name).join(MEMBERS)).ok()?;
        Some(members.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Moves a process into a group beneath, which is made if it is not there.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn put(&self, name: &str, pid: u32) {
        let folder = self.0.join(name);
        let _ = fs::create_dir(&folder);
        chown(&folder, Some(VMD_UID), Some(VMD_UID)).expect("chown");
        for file in DELEGATED.iter().chain(&["cgroup.kill"]) {
            chown(folder.join(file), Some(VMD_UID), Some(VMD_UID)).expect("chown");
        }
        fs::write(folder.join(MEMBERS), pid.to_string()).expect("move a process");
    }

    /// Whether what is beneath it can have limits of a sort, such as `memory`.
    #[must_use]
    pub fn controls(&self, controller: &str) -> bool {
        let controllers = fs::read_to_string(self.0.join("cgroup.controllers")).unwrap_or_default();
        controllers.split_whitespace().any(|word| word == controller)
    }

    /// All groups beneath, with the number of their processes.
    #[must_use]
    pub fn tree(&self) -> BTreeMap<String, usize> {
        let beneath = folders(&self.0).into_iter().map(|folder| {
            let name = folder.strip_prefix(&self.0).unwrap_or(&folder).display().to_string();
            let members = fs::read_to_string(folder.join(MEMBERS)).unwrap_or_default();
            (name, members.lines().count())
        });
        beneath.collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let removed = wait::try_until(DEATH, || {
            for folder in folders(&self.0).iter().rev() {
                let _ = fs::remove_dir(folder);
            }
            let _ = fs::remove_dir(&self.0);
            (!self.0.exists()).then_some(())
        });
        if removed.is_none() {
            eprintln!("{} stays: {:?}", self.0.display(), self.tree());
        }
    }
}

/// Where cgroup v2 is.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut found = fields.filter(|fields| fields.get(2) == Some(&"cgroup2"));
    found.next_back().and_then(|fields| Some(PathBuf::from(fields.get(1)?)))
}

/// All folders beneath, each before those in it.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
            found.extend(folders(&entry.path()));
        }
    }
    found
}
