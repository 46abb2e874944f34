//! What keeps a QEMU in that a guest has taken over: a user of its own, a root folder with nothing in it but what
//! QEMU reads, no network, no capability, fewer system calls.
//!
//! vmd needs no privilege for it. `programs` tells what QEMU reads; `host` asks a probe which layers this host allows,
//! and hands out user ids (`ids`); `kvm` says what that device costs; `child` carries it out, in the process that then
//! becomes QEMU: `user`, `root`, `capabilities`, `reach` (Landlock), `syscalls`, `limits`. A layer that the probe saw and
//! the child cannot have is an error: the machine does not start with less than its status says. `groups` puts each
//! machine into a control group.

mod capabilities;
pub mod child;
pub mod groups;
pub mod host;
pub mod ids;
mod kvm;
pub mod limits;
pub mod programs;
mod reach;
mod root;
mod syscalls;
mod user;

use ids::Ids;
use limits::Limits;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, os::fd::RawFd, path::PathBuf};

/// A layer of containment. Each holds by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// A user namespace, in which QEMU has no privilege. Without it there is no own user, network and root folder.
    UserNamespace,
    /// A user and group id of the host that no other process has.
    OwnUser,
    /// A network namespace without anything in it.
    Network,
    /// A root folder with nothing but what QEMU reads, read-only.
    Files,
    /// No capability, and none to be had by executing a program.
    Capabilities,
    /// Landlock: only QEMU's own files, no TCP, no signals and abstract sockets of others.
    Landlock,
    /// seccomp: no tap can be changed, no socket made, no process or namespace, beside QEMU's own filter.
    SystemCalls,
    /// Descriptors, processes, locked memory, sizes of files, no core dump.
    Limits,
    /// A control group of its own, with which all that is in it ends.
    ControlGroup,
    /// A limit of memory, by the control group.
    Memory,
    /// A limit and a share of processors, by the control group.
    Cpu,
    /// A limit of processes and threads, by the control group.
    Processes,
}

impl Layer {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::UserNamespace,
        Self::OwnUser,
        Self::Network,
        Self::Files,
        Self::Capabilities,
        Self::Landlock,
        Self::SystemCalls,
        Self::Limits,
        Self::ControlGroup,
        Self::Memory,
        Self::Cpu,
        Self::Processes,
    ];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UserNamespace => "user namespace",
            Self::OwnUser => "own user",
            Self::Network => "empty network",
            Self::Files => "own root folder",
            Self::Capabilities => "no capabilities",
            Self::Landlock => "landlock",
            Self::SystemCalls => "system calls",
            Self::Limits => "limits",
            Self::ControlGroup => "control group",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Processes => "processes",
        }
    }

    /// What to do where it does not hold.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::UserNamespace | Self::Network | Self::Files => {
                "let vmd's user make user namespaces: sysctl user.max_user_namespaces, \
                 kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a container, \
                 its seccomp profile has to allow them"
            }
            Self::OwnUser => {
                "install uidmap (newuidmap) and give vmd's user ids in /etc/subuid and /etc/subgid, such as \
                 `usermod --add-subuids 2000000-2065535 --add-subgids 2000000-2065535 USER`; vmd's unit must not set \
                 NoNewPrivileges"
            }
            Self::Capabilities => "run vmd as an ordinary user",
            Self::Landlock => {
                "boot a kernel of 5.13 or later with `landlock` among the `lsm=` of its command line"
            }
            Self::SystemCalls => "run a kernel with CONFIG_SECCOMP_FILTER",
            Self::Limits => "raise the hard limits of vmd's unit",
            Self::ControlGroup => {
                "let vmd have a control group of its own: `Delegate=` in its unit; without systemd, make one that \
                 belongs to vmd's user, start vmd in a group beneath it, and name it with --cgroup"
            }
            Self::Memory | Self::Cpu | Self::Processes => {
                "`Delegate=cpu memory pids` and `DelegateSubgroup=vmd` in vmd's unit, which systemd 254 and later \
                 know; before that vmd.before-254.conf; elsewhere start vmd in the group `vmd` of one that has \
                 these controllers"
            }
        }
    }
}

/// Whether a layer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub layer: Layer,
    /// It does.
    pub holds: bool,
    /// Why it does not; or what is to be known of one that does, mostly nothing.
    #[serde(default)]
    pub reason: String,
    /// The host has nothing of the kind, so that nobody can ask for it.
    #[serde(default)]
    pub absent: bool,
}

impl Finding {
    fn of(layer: Layer, result: Result<(), String>) -> Self {
        Self { layer, holds: result.is_ok(), reason: result.err().unwrap_or_default(), absent: false }
    }
}

/// What the child is to do. It reads this from its command line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spec {
    /// Which layers are to hold.
    pub layers: BTreeSet<Layer>,
    /// The ids of the layer `OwnUser`.
    pub ids: Option<Ids>,
    /// Folder of the control group of the layer `ControlGroup`.
    pub group: Option<PathBuf>,
    /// Keeps vmd's supplementary groups, since a device that QEMU opens belongs to one of them.
    pub keep_groups: bool,
    /// Files and folders of the host that QEMU reads.
    pub read: Vec<PathBuf>,
    /// Devices of the host that QEMU reads and writes.
    pub devices: Vec<PathBuf>,
    /// Where QEMU's libraries are, if they are not where its linker looks without a list.
    pub libraries: Vec<PathBuf>,
    /// Files that are open, and that QEMU opens by name.
    pub files: Vec<HandedFile>,
    /// Limits of resources.
    pub limits: Limits,
}

/// A file that vmd opened and QEMU will open by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandedFile {
    /// Descriptor in the child.
    pub fd: RawFd,
    /// Path on the host.
    pub path: PathBuf,
    /// Path in the root folder.
    pub inside: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Everybody may read it.
    pub public: bool,
}

/// Of the machine's root folder.
pub const KERNEL: &str = "/kernel";
/// As `KERNEL`.
pub const INITRD: &str = "/initrd";

/// Devices that any QEMU may open.
pub const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];
