//! Control groups (cgroup v2): one for each run of a machine, with limits, beneath the one that vmd was given.
//!
//! `place` finds vmd's own group, `limits` says what a machine may have, `leaf` is one machine's group. vmd needs no
//! privilege for it: whoever starts it gives it a group to divide, as systemd does with `Delegate=`.
//!
//! The kernel lets a group that divides its resources have no processes of its own, and lets none enter it. A vmd that
//! was started in the very group that it divides could not be started there again while machines run. So it divides
//! resources only where it was started beneath that group (`DelegateSubgroup=`), or was told to by `--cgroup`.

pub mod leaf;
pub mod limits;
mod place;

use super::{Finding, Layer};
use leaf::Leaf;
use place::Place;
use rustix::fs::Access;
use shared::name::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// The group of vmd's own process, beneath the one that it divides.
const OWN: &str = "vmd";
/// How the names of machines' groups begin; whose they are follows.
const MACHINE: &str = "vm-";
/// How the name of the probe's group begins; no machine has such a name.
const PROBE: &str = "probe-";
/// So much of the id of vmd's state is in names: two states share one group by mistake only.
const MARK: usize = 8;
/// Each layer with the controller that it needs.
const CONTROLLERS: [(Layer, &str); 3] =
    [(Layer::Memory, "memory"), (Layer::Cpu, "cpu"), (Layer::Processes, "pids")];

/// The group that vmd divides, if it has one.
#[derive(Debug, Default)]
pub struct Groups {
    folder: Option<PathBuf>,
    /// Tells groups of one state's machines from those of another's: both may have a machine of the same name.
    mark: String,
    findings: Vec<Finding>,
}

impl Groups {
    /// Finds the group that vmd may divide, or takes the one that was named, and has it divide its resources. The groups
    /// of its machines bear the mark of `instance`, the id of its state.
    #[must_use]
    pub fn open(named: Option<&Path>, instance: Uuid) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let place = Place::read(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"));
        let mark = instance.simple().to_string().chars().take(MARK).collect();
        Self { mark, ..Self::of(place.as_ref(), named, rustix::process::geteuid().is_root()) }
    }

    fn of(place: Option<&Place>, named: Option<&Path>, root: bool) -> Self {
        let Some(place) = place else {
            let why = "this host has no cgroup v2 mounted";
            let absent = |layer| Finding { absent: true, ..Finding::of(layer, Err(why.into())) };
            let layers = [Layer::ControlGroup].into_iter().chain(CONTROLLERS.map(|(layer, _)| layer));
            return Self { findings: layers.map(absent).collect(), ..Self::default() };
        };
        let chosen = choose(place, named, root);
        let mut findings =
            vec![Finding::of(Layer::ControlGroup, chosen.as_ref().map(|_| ()).map_err(Clone::clone))];
        let host = words(&place.mount.join("cgroup.controllers"));
        for (layer, controller) in CONTROLLERS {
            if !host.contains(controller) {
                let why =
                    format!("cgroup v2 of this host has no {controller} controller; nothing asks for it");
                findings.push(Finding { absent: true, ..Finding::of(layer, Err(why)) });
                continue;
            }
            let result = chosen.as_ref().map_err(|_| NEEDED.to_owned());
            findings.push(Finding::of(layer, result.and_then(|chosen| chosen.divide(controller))));
        }
        Self { folder: chosen.ok().map(|chosen| chosen.folder), findings, ..Self::default() }
    }

    /// What holds: the layers `ControlGroup`, `Memory`, `Cpu` and `Processes`.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// A machine's group, which need not be there; `None` where vmd has none to divide.
    #[must_use]
    pub fn leaf(&self, machine: &Name) -> Option<Leaf> {
        self.folder.as_ref().map(|folder| Leaf::at(folder.join(format!("{}{machine}", self.prefix()))))
    }

    /// A group for a process that only tries whether it can enter one.
    #[must_use]
    pub fn probe(&self) -> Option<Leaf> {
        self.folder.as_ref().map(|folder| Leaf::at(folder.join(format!("{PROBE}{}", self.mark))))
    }

    /// All groups of machines of this state, also of those that are not recorded any more, with their names.
    #[must_use]
    pub fn leaves(&self) -> BTreeMap<String, Leaf> {
        let prefix = self.prefix();
        let entries = self.folder.iter().flat_map(fs::read_dir).flatten().flatten();
        let own = entries.filter_map(|entry| {
            let machine = entry.file_name().to_str()?.strip_prefix(&prefix)?.to_owned();
            Some((machine, Leaf::at(entry.path())))
        });
        own.collect()
    }

    fn prefix(&self) -> String {
        format!("{MACHINE}{}-", self.mark)
    }
}

/// Why a layer does not hold that needs another.
pub(super) const NEEDED: &str = "it needs a control group";

/// A group that vmd may divide.
#[derive(Debug)]
struct Chosen {
    folder: PathBuf,
    /// vmd is in that group itself.
    inside: bool,
}

impl Chosen {
    /// Has the group give its children limits of this sort.
    fn divide(&self, controller: &str) -> Result<(), String> {
        let folder = self.folder.display();
        if !words(&self.folder.join("cgroup.controllers")).contains(controller) {
            return Err(format!("`{folder}` was given no {controller} controller"));
        }
        let control = self.folder.join("cgroup.subtree_control");
        if words(&control).contains(controller) {
            return Ok(());
        }
        if self.inside {
            return Err(format!(
                "vmd was started in `{folder}` itself: with limits for what is beneath it, it could not be started \
                 there again"
            ));
        }
        write(&control, &format!("+{controller}"))
            .map_err(|error| format!("cannot give limits to what is beneath `{folder}`: {error}"))
    }
}

fn choose(place: &Place, named: Option<&Path>, root: bool) -> Result<Chosen, String> {
    if let Some(named) = named {
        return take(place, named);
    }
    let own = place.own.as_deref().ok_or("vmd's own control group is not to be seen")?;
    let above = own.parent().filter(|above| own.ends_with(OWN) && is_delegated(above, root));
    if let Some(above) = above {
        return Ok(Chosen { folder: above.to_owned(), inside: false });
    }
    if is_delegated(own, root) {
        return Ok(Chosen { folder: own.to_owned(), inside: true });
    }
    Err(format!("vmd's control group, `{}`, is not vmd's to divide", own.display()))
}

/// The group that was named. vmd leaves it for one beneath it.
fn take(place: &Place, named: &Path) -> Result<Chosen, String> {
    let words = named.display();
    if !named.starts_with(&place.mount) {
        return Err(format!("`{words}` is not beneath `{}`, where cgroup v2 is", place.mount.display()));
    }
    if !is_writable(named) {
        return Err(format!("vmd cannot make groups in `{words}`: it is not there, or not its user's"));
    }
    let mut inside = place.own.as_deref() == Some(named);
    if inside {
        let own = named.join(OWN);
        let left = match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => write(&own.join(leaf::MEMBERS), &std::process::id().to_string()),
        };
        if let Err(error) = &left {
            tracing::warn!(group = %own.display(), %error, "vmd cannot move itself into a group of its own");
        }
        inside = left.is_err();
    }
    Ok(Chosen { folder: named.to_owned(), inside })
}

/// Whether whoever started vmd left it this group. Root may write to all of them, so that systemd's mark decides.
fn is_delegated(folder: &Path, root: bool) -> bool {
    is_writable(folder)
        && (!root || ["user.delegate", "trusted.delegate"].into_iter().any(|mark| marked(folder, mark)))
}

fn marked(folder: &Path, mark: &str) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(folder, mark, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
}

fn is_writable(folder: &Path) -> bool {
    let may = |path: &Path, what| rustix::fs::access(path, what).is_ok();
    may(folder, Access::WRITE_OK | Access::EXEC_OK) && may(&folder.join(leaf::MEMBERS), Access::WRITE_OK)
}

/// The words of a file; none of one that cannot be read.
fn words(path: &Path) -> BTreeSet<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Writes to a file of the kernel's, which is there or not.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod test;
