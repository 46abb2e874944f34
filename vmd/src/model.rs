//! Machines as vmd thinks of them: checked, with defaults filled in. These types are also what the store holds.

use crate::jail::groups::leaf::Leaf;
use serde::{Deserialize, Serialize};
use shared::{mac::Mac, name::Name, time::Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};
use uuid::Uuid;

/// Store kind of `Record`; the id is the machine's name.
pub const KIND_VM: &str = "vm";
/// Store kind of `Run`; the id is the machine's name.
pub const KIND_RUN: &str = "run";
/// Store kind of `LastExit`; the id is the machine's name.
pub const KIND_EXIT: &str = "exit";

/// What was asked for, and what was decided once and for all when it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The machine's name.
    pub name: Name,
    /// The guest sees it as its system UUID.
    pub uid: Uuid,
    /// Counts the changes of the spec, from 1.
    pub generation: i64,
    /// When it was recorded.
    pub create_time: Timestamp,
    /// When the record last changed.
    pub update_time: Timestamp,
    /// The client's own notes.
    pub labels: BTreeMap<String, String>,
    /// What the client asked for.
    pub spec: Spec,
    /// The address of each NIC, in the order of the spec.
    pub macs: Vec<Mac>,
    /// Who created it. Records of a vmd that asked nobody are root's.
    #[serde(default)]
    pub owner: u32,
    /// Whether its owner was an operator then: its disks and kernels have to be where those of operators are.
    #[serde(default)]
    pub confined: bool,
}

impl Record {
    /// Its resource name.
    #[must_use]
    pub fn resource(&self) -> String {
        format!("vms/{}", self.name)
    }
}

/// What a client asks of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// 1 to 255.
    pub vcpus: u32,
    /// A multiple of 1 MiB, not zero.
    pub memory_bytes: u64,
    /// `None`: what suits the accelerator.
    pub cpu_model: Option<String>,
    /// In the order the guest sees them.
    pub disks: Vec<Disk>,
    /// `None`: firmware boots the first disk.
    pub kernel_boot: Option<KernelBoot>,
    /// In the order the guest sees them.
    pub nics: Vec<Nic>,
    /// `None`: no display.
    pub vnc: Option<VncListen>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Absolute path of a file or block device.
    pub path: String,
    /// Never guessed.
    pub format: DiskFormat,
    /// How it is attached.
    pub bus: DiskBus,
    /// QEMU's cache mode.
    pub cache: DiskCache,
    /// True for a cdrom.
    pub read_only: bool,
    /// What the guest takes it for.
    pub media: DiskMedia,
}

/// Format of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The guest's bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    /// virtio-blk; for a cdrom, virtio-scsi.
    Virtio,
    /// The AHCI controller of the q35 machine.
    Sata,
    /// virtio-scsi.
    Scsi,
}

/// QEMU's cache modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskCache {
    /// Host page cache, flushes obeyed.
    Writeback,
    /// O_DIRECT, flushes obeyed.
    None,
    /// Host page cache, each write flushed.
    Writethrough,
    /// Host page cache, flushes ignored.
    Unsafe,
    /// O_DIRECT, each write flushed.
    Directsync,
}

impl DiskCache {
    /// Whether the host page cache is passed by.
    #[must_use]
    pub fn direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }
}

/// What the guest takes a disk for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskMedia {
    /// A hard disk.
    Disk,
    /// A CD-ROM.
    Cdrom,
}

/// A kernel started by QEMU itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelBoot {
    /// Absolute path.
    pub kernel: String,
    /// Absolute path.
    pub initrd: Option<String>,
    /// At most 2047 bytes.
    pub cmdline: String,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// A network of netd.
    pub network: Name,
    /// `None`: derived from the names of machine and NIC.
    pub mac: Option<Mac>,
    /// What the guest sees.
    pub model: NicModel,
    /// What it asks of netd.
    #[serde(flatten)]
    pub port: PortOptions,
}

/// What a NIC asks of netd besides its MAC; netd decides whether it can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortOptions {
    /// `None`: netd chooses.
    pub ipv4: Option<Ipv4Addr>,
    /// As `ipv4`.
    pub ipv6: Option<Ipv6Addr>,
    /// More addresses that the guest may use.
    pub extra: BTreeSet<IpAddr>,
    /// Whether the guest's frames are checked.
    pub filter: bool,
    /// Kept apart from other isolated NICs of the network.
    pub isolated: bool,
    /// Toward the guest.
    pub rate_in: Option<Rate>,
    /// From the guest.
    pub rate_out: Option<Rate>,
    /// Groups of netd.
    pub groups: BTreeSet<Name>,
}

impl Default for PortOptions {
    fn default() -> Self {
        Self {
            ipv4: None,
            ipv6: None,
            extra: BTreeSet::new(),
            filter: true,
            isolated: false,
            rate_in: None,
            rate_out: None,
            groups: BTreeSet::new(),
        }
    }
}

/// A limit of bandwidth in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second, with Ethernet headers.
    pub bits_per_second: u64,
    /// Bytes that may pass at once; 0: netd's choice.
    pub burst_bytes: u32,
}

/// The addresses that netd recorded for a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// `None`: netd knows none.
    pub ipv4: Option<Ipv4Addr>,
    /// As `ipv4`.
    pub ipv6: Option<Ipv6Addr>,
}

/// What the guest sees of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net.
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
}

/// Where a VNC server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VncListen {
    /// A socket in the machine's run folder.
    Unix,
    /// 127.0.0.1, the first free port from 5900.
    Tcp,
}

/// How virtual CPUs are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The kernel's.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// A QEMU process, recorded before it is let go. A process that does not agree with its record is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// `/proc/sys/kernel/random/boot_id` when it was started.
    pub boot_id: String,
    /// `Record::uid` of its machine; `None` if an earlier vmd recorded the run.
    #[serde(default)]
    pub machine: Option<Uuid>,
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to the start of the process.
    pub start_ticks: u64,
    /// The user it runs as.
    pub uid: u32,
    /// The binary it was started from.
    pub qemu_binary: String,
    /// First line of `--version`.
    pub qemu_version: String,
    /// Made anew for each run.
    pub nonce: Uuid,
    /// When it was started.
    pub start_time: Timestamp,
    /// In use.
    pub accelerator: Accelerator,
    /// In use.
    pub cpu_model: String,
    /// The tap of each NIC, in the order of the spec.
    pub interfaces: Vec<String>,
    /// The kernel's number of each of them, as QEMU got it: another tap of the same name has another one. Empty if an
    /// earlier vmd recorded the run.
    #[serde(default)]
    pub indices: Vec<Option<u32>>,
    /// The addresses of each NIC, in the order of the spec; empty if an earlier vmd recorded the run.
    #[serde(default)]
    pub addresses: Vec<Addresses>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Which layers keep QEMU in; empty if a vmd started it that had none.
    #[serde(default)]
    pub containment: Vec<crate::jail::Finding>,
    /// Folder of its control group; `None` if it has none.
    #[serde(default)]
    pub group: Option<PathBuf>,
    /// The kernel's number of that group; `None` if it has none, or if an earlier vmd recorded the run.
    #[serde(default)]
    pub group_id: Option<u64>,
    /// The image of each disk; empty if an earlier vmd recorded the run.
    #[serde(default)]
    pub images: Vec<Image>,
    /// The file that `qemu_binary` was; `None` if an earlier vmd recorded the run.
    #[serde(default)]
    pub qemu_file: Option<FileId>,
}

impl Run {
    /// Its control group.
    #[must_use]
    pub fn leaf(&self) -> Option<Leaf> {
        self.group.clone().map(Leaf::at)
    }

    /// Its control group once it is over, if what is in there is surely its own: by records out of a backup, a later run
    /// may have a group of the same name.
    #[must_use]
    pub fn left(&self) -> Option<Leaf> {
        self.leaf().filter(|leaf| self.group_id.is_some() && leaf.id() == self.group_id)
    }
}

/// A disk's image, however its path changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of a file, `st_dev`; of a block device, the highest number.
    pub device: u64,
    /// Of a file, `st_ino`; of a block device, its own number.
    pub inode: u64,
    /// The machine may write to it.
    pub writable: bool,
}

/// What tells a file from the one that replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Of the last change of its content, seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Bytes.
    pub size: u64,
}

/// How the last run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Why, in words.
    pub reason: String,
    /// The error of a failed machine; empty if it did not fail.
    pub error: String,
}

/// A QEMU that does not answer on its monitor, or not as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// When that was noticed.
    pub since: Timestamp,
    /// What was noticed, in words.
    pub why: String,
}

/// What vmd made of a machine: observed, never stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Grows with each change, over restarts of vmd too.
    pub revision: i64,
    /// Where it is in its life.
    pub state: crate::machine::State,
    /// How the last run ended; empty while it runs.
    pub exit: LastExit,
    /// The QEMU process, if there is one.
    pub run: Option<Run>,
    /// Where VNC is served; empty if it is not.
    pub vnc_address: String,
    /// QEMU does not answer; `None`: it does, or there is none.
    pub silence: Option<Silence>,
    /// An earlier vmd started it.
    pub adopted: bool,
    /// What an operator should know, beyond the warnings of the run.
    pub warnings: Vec<String>,
}

impl Status {
    /// Of a machine that does not run.
    #[must_use]
    pub fn at_rest(exit: LastExit) -> Self {
        use crate::machine::State;
        Self {
            revision: 0,
            state: if exit.error.is_empty() { State::Stopped } else { State::Failed },
            exit,
            run: None,
            vnc_address: String::new(),
            silence: None,
            adopted: false,
            warnings: Vec::new(),
        }
    }
}

/// A machine as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// What was asked for.
    pub record: Record,
    /// What became of it.
    pub status: Status,
}

/// A spec for tests: the least that a machine has.
#[cfg(test)]
pub(crate) fn test_spec() -> Spec {
    Spec {
        vcpus: 1,
        memory_bytes: 1 << 20,
        cpu_model: None,
        disks: vec![],
        kernel_boot: None,
        nics: vec![],
        vnc: None,
    }
}

/// A record for tests: root's machine `web`.
#[cfg(test)]
pub(crate) fn test_record(spec: Spec) -> Record {
    let now = Timestamp { seconds: 0, nanos: 0 };
    Record {
        name: "web".parse().unwrap(),
        uid: Uuid::nil(),
        generation: 1,
        create_time: now,
        update_time: now,
        labels: Default::default(),
        spec,
        macs: vec![],
        owner: 0,
        confined: false,
    }
}

/// A run for tests.
#[cfg(test)]
pub(crate) fn test_run() -> Run {
    Run {
        boot_id: "boot".into(),
        machine: None,
        pid: 7,
        start_ticks: 100,
        uid: 5,
        qemu_binary: "/q".into(),
        qemu_version: "v".into(),
        nonce: Uuid::nil(),
        start_time: Timestamp { seconds: 0, nanos: 0 },
        accelerator: Accelerator::Tcg,
        cpu_model: "max".into(),
        interfaces: vec![],
        indices: vec![],
        addresses: vec![],
        warnings: vec![],
        containment: vec![],
        group: None,
        group_id: None,
        images: vec![],
        qemu_file: None,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn records_of_an_earlier_vmd_are_read() {
        let nic: Nic = from_value(json!({"network": "lan", "mac": null, "model": "virtio"})).unwrap();
        assert_eq!(nic.port, PortOptions::default());
        assert!(nic.port.filter);
        let run = json!({
            "boot_id": "boot", "pid": 7, "start_ticks": 100, "uid": 0, "qemu_binary": "/q", "qemu_version": "v",
            "nonce": Uuid::nil(), "start_time": Timestamp { seconds: 0, nanos: 0 }, "accelerator": "tcg",
            "cpu_model": "max", "interfaces": ["tap0"], "warnings": [],
        });
        let run = from_value::<Run>(run).unwrap();
        assert_eq!((run.addresses, run.containment, run.indices), (vec![], vec![], vec![]));
    }

    #[test]
    fn what_a_nic_asks_for_is_read_as_it_was_written() {
        let nic = Nic {
            network: "lan".parse().unwrap(),
            mac: None,
            model: NicModel::E1000,
            port: PortOptions {
                ipv4: Some([10, 0, 0, 2].into()),
                ipv6: Some("fd00::2".parse().unwrap()),
                extra: ["10.0.0.3".parse().unwrap()].into(),
                filter: false,
                isolated: true,
                rate_in: Some(Rate { bits_per_second: 1 << 40, burst_bytes: 0 }),
                rate_out: None,
                groups: ["web".parse().unwrap()].into(),
            },
        };
        assert_eq!(from_value::<Nic>(to_value(&nic).unwrap()).unwrap(), nic);
    }
}
