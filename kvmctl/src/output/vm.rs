//! Machines as they are printed.

use super::{
    Object,
    broken::{self, Broken},
    containment::{Layer, contained, layers, uncontained},
    last_part,
    nic::{Nic, NicStatus},
    set,
    text::{Sheet, count, or_dash},
    time::rfc3339,
    word,
};
use crate::parse::size_text;
use proto::vmd::v1::{self as wire, Accelerator, DiskBus, DiskCache, DiskMedia, VmState, VncListen};
use serde::Serialize;
use std::collections::BTreeMap;

/// A machine.
#[derive(Clone, Debug, Serialize)]
pub struct Vm {
    /// Its bare name.
    pub name: String,
    /// UUID, the guest's system UUID.
    pub uid: String,
    /// Counts changes of the spec.
    pub generation: i64,
    /// When it was recorded.
    pub create_time: Option<String>,
    /// When its record last changed.
    pub update_time: Option<String>,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// What was asked for.
    pub spec: VmSpec,
    /// What came of it.
    pub status: VmStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct VmSpec {
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// Null: vmd's choice.
    pub cpu_model: Option<String>,
    /// As the guest sees them.
    pub disks: Vec<Disk>,
    /// Null: firmware boots the first disk.
    pub kernel_boot: Option<KernelBoot>,
    /// As the guest sees them.
    pub nics: Vec<Nic>,
    /// Null: no display.
    pub vnc: Option<Vnc>,
}

/// A disk.
#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    /// Absolute.
    pub path: String,
    /// raw or qcow2.
    pub format: String,
    /// virtio, sata or scsi.
    pub bus: String,
    /// writeback, none, writethrough, unsafe or directsync.
    pub cache: String,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// disk or cdrom.
    pub media: String,
}

/// A kernel started by QEMU itself.
#[derive(Clone, Debug, Serialize)]
pub struct KernelBoot {
    /// Absolute.
    pub kernel: String,
    /// Absolute.
    pub initrd: Option<String>,
    /// Its command line.
    pub cmdline: Option<String>,
}

/// A display.
#[derive(Clone, Debug, Serialize)]
pub struct Vnc {
    /// unix or tcp.
    pub listen: String,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct VmStatus {
    /// Grows with each change.
    pub revision: i64,
    /// stopped, starting, running, paused, stopping or failed.
    pub state: String,
    /// Why the last run ended.
    pub exit_reason: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// QEMU's process.
    pub pid: Option<u32>,
    /// When QEMU was started.
    pub start_time: Option<String>,
    /// kvm or tcg; null when not running.
    pub accelerator: Option<String>,
    /// In use; null when not running.
    pub cpu_model: Option<String>,
    /// One for each of the spec.
    pub nics: Vec<NicStatus>,
    /// `unix:/path` or `127.0.0.1:59xx`.
    pub vnc_address: Option<String>,
    /// QEMU does not answer.
    pub unresponsive: bool,
    /// When that was noticed; null while it does.
    pub unresponsive_since: Option<String>,
    /// What was noticed.
    pub unresponsive_reason: Option<String>,
    /// Taken over from an earlier vmd.
    pub adopted: bool,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Null when not running.
    pub qemu_version: Option<String>,
    /// What keeps QEMU in.
    pub containment: Vec<Layer>,
    /// The host's user that QEMU runs as; null for root.
    pub uid: Option<u32>,
    /// Who created it.
    pub owner_uid: u32,
}

/// An accelerator as a word; `None` where there is none.
pub(super) fn accelerator(value: i32) -> Option<String> {
    let name = Accelerator::try_from(value).ok().map(|a| a.as_str_name());
    set(word(name, "ACCELERATOR_", ""))
}

impl From<wire::Disk> for Disk {
    fn from(disk: wire::Disk) -> Self {
        let bus = DiskBus::try_from(disk.bus).ok().map(|b| b.as_str_name());
        let cache = DiskCache::try_from(disk.cache).ok().map(|c| c.as_str_name());
        let media = DiskMedia::try_from(disk.media).ok().map(|m| m.as_str_name());
        Self {
            path: disk.path,
            format: disk.format,
            bus: word(bus, "DISK_BUS_", "virtio"),
            cache: word(cache, "DISK_CACHE_", "writeback"),
            read_only: disk.read_only || disk.media == i32::from(DiskMedia::Cdrom),
            media: word(media, "DISK_MEDIA_", "disk"),
        }
    }
}

impl From<wire::VmSpec> for VmSpec {
    fn from(spec: wire::VmSpec) -> Self {
        let listen = |vnc: wire::Vnc| VncListen::try_from(vnc.listen).ok().map(|l| l.as_str_name());
        Self {
            vcpus: spec.vcpus.max(1),
            memory_bytes: spec.memory_bytes,
            cpu_model: set(spec.cpu_model),
            disks: spec.disks.into_iter().map(Into::into).collect(),
            kernel_boot: spec.kernel_boot.map(|boot| KernelBoot {
                kernel: boot.kernel,
                initrd: set(boot.initrd),
                cmdline: set(boot.cmdline),
            }),
            nics: spec.nics.into_iter().map(Into::into).collect(),
            vnc: spec.vnc.map(|vnc| Vnc { listen: word(listen(vnc), "VNC_LISTEN_", "unix") }),
        }
    }
}

impl From<wire::VmStatus> for VmStatus {
    fn from(status: wire::VmStatus) -> Self {
        let state = VmState::try_from(status.state).ok().map(|s| s.as_str_name());
        Self {
            revision: status.revision,
            state: word(state, "VM_STATE_", "unknown"),
            exit_reason: set(status.exit_reason),
            error: set(status.error),
            pid: (status.pid != 0).then_some(status.pid),
            start_time: rfc3339(status.start_time.as_ref()),
            accelerator: accelerator(status.accelerator),
            cpu_model: set(status.cpu_model),
            nics: status.nics.into_iter().map(Into::into).collect(),
            vnc_address: set(status.vnc_address),
            unresponsive: status.unresponsive,
            unresponsive_since: rfc3339(status.unresponsive_since.as_ref()),
            unresponsive_reason: set(status.unresponsive_reason),
            adopted: status.adopted,
            warnings: status.warnings,
            qemu_version: set(status.qemu_version),
            owner_uid: status.owner_uid,
            containment: layers(status.containment),
            uid: (status.uid != 0).then_some(status.uid),
        }
    }
}

impl From<wire::Vm> for Vm {
    fn from(vm: wire::Vm) -> Self {
        Self {
            name: last_part(&vm.name),
            uid: vm.uid,
            generation: vm.generation,
            create_time: rfc3339(vm.create_time.as_ref()),
            update_time: rfc3339(vm.update_time.as_ref()),
            labels: vm.labels.into_iter().collect(),
            spec: vm.spec.unwrap_or_default().into(),
            status: vm.status.unwrap_or_default().into(),
        }
    }
}

impl Disk {
    fn line(&self) -> String {
        let Self { path, format, bus, cache, .. } = self;
        let media = if self.media == "disk" { "" } else { ", cdrom" };
        let access = if self.read_only { ", read-only" } else { "" };
        format!("{path} ({format}, {bus}, {cache}{media}{access})")
    }
}

impl Vm {
    /// Each network card, and what came of it once the machine was started.
    fn nics(&self) -> impl Iterator<Item = (&Nic, Option<&NicStatus>)> {
        self.spec.nics.iter().enumerate().map(|(index, nic)| (nic, self.status.nics.get(index)))
    }

    /// The addresses that are recorded for the machine, else those it asks for.
    fn addresses(&self) -> Vec<&str> {
        self.nics().flat_map(|(nic, status)| nic.known(status)).collect()
    }

    fn state_line(&self) -> String {
        let status = &self.status;
        match (status.unresponsive, &status.unresponsive_since) {
            (true, Some(since)) => format!("{} (unresponsive since {since})", status.state),
            (true, None) => format!("{} (unresponsive)", status.state),
            (false, _) => status.state.clone(),
        }
    }
}

impl Object for Vm {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "STATE", "VCPUS", "MEMORY", "ACCEL", "PID", "NETWORKS", "ADDRESSES"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        let networks: Vec<_> = self.spec.nics.iter().map(Nic::cell).collect();
        vec![
            self.name.clone(),
            if self.status.unresponsive { "unresponsive".into() } else { self.status.state.clone() },
            self.spec.vcpus.to_string(),
            size_text(self.spec.memory_bytes),
            or_dash(self.status.accelerator.as_deref()),
            or_dash(self.status.pid.map(|pid| pid.to_string()).as_deref()),
            or_dash(set(networks.join(",")).as_deref()),
            or_dash(set(self.addresses().join(",")).as_deref()),
        ]
    }

    fn sheet(&self) -> String {
        let (spec, status) = (&self.spec, &self.status);
        let boot = spec.kernel_boot.as_ref();
        let cpu = status.cpu_model.as_ref().or(spec.cpu_model.as_ref());
        let vnc = spec.vnc.as_ref().map(|vnc| status.vnc_address.as_ref().unwrap_or(&vnc.listen));
        Sheet::default()
            .line("Name", &self.name)
            .line("State", self.state_line())
            .maybe("Unresponsive", status.unresponsive_reason.as_deref())
            .maybe("Error", status.error.as_deref())
            .maybe("Last exit", status.exit_reason.as_deref())
            .line("vCPUs", spec.vcpus.to_string())
            .line("Memory", size_text(spec.memory_bytes))
            .maybe("CPU model", cpu.cloned())
            .maybe("Accelerator", status.accelerator.as_deref())
            .line("Owner", format!("uid {}", status.owner_uid))
            .maybe("QEMU", status.qemu_version.as_deref())
            .maybe("PID", status.pid.map(|pid| pid.to_string()))
            .maybe("Started", status.start_time.as_deref())
            .maybe("Kernel", boot.map(|boot| boot.kernel.as_str()))
            .maybe("Initrd", boot.and_then(|boot| boot.initrd.as_deref()))
            .maybe("Command line", boot.and_then(|boot| boot.cmdline.as_deref()))
            .maybe("VNC", vnc.cloned())
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
            .items("Disks", spec.disks.iter().map(Disk::line))
            .items("NICs", self.nics().map(|(nic, status)| nic.line(status)))
            .items("Addresses", self.nics().flat_map(|(nic, status)| nic.address_lines(status)))
            .items("Labels", self.labels.iter().map(|(key, value)| format!("{key}={value}")))
            .maybe("User id", status.uid.map(|uid| uid.to_string()))
            .maybe("QEMU is contained by", contained(&status.containment))
            .items("QEMU is not contained by", uncontained(&status.containment))
            .items("Warnings", status.warnings.clone())
            .render()
    }

    fn summary(&self) -> String {
        let (spec, status) = (&self.spec, &self.status);
        [
            Some(count(spec.vcpus, "vCPU")),
            Some(size_text(spec.memory_bytes)),
            status.accelerator.clone(),
            status.pid.map(|pid| format!("pid {pid}")),
            set(self.addresses().join(", ")),
            set(self.spec.nics.iter().filter_map(Nic::open).collect::<Vec<_>>().join(", ")),
            (status.state == "stopped").then(|| status.exit_reason.clone()).flatten(),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
    }

    fn warnings(&self) -> &[String] {
        &self.status.warnings
    }

    fn broken(&self) -> Option<Broken<'_>> {
        broken::of((&self.name, None), &self.status.state, self.status.error.as_deref())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn web() -> Vm {
        wire::Vm {
            name: "vms/web".into(),
            uid: "8f6c".into(),
            create_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            labels: [("tier".into(), "front".into())].into(),
            spec: Some(wire::VmSpec {
                vcpus: 2,
                memory_bytes: 1536 << 20,
                disks: vec![
                    wire::Disk { path: "/d/web.qcow2".into(), format: "qcow2".into(), ..Default::default() },
                    wire::Disk {
                        path: "/d/seed.iso".into(),
                        format: "raw".into(),
                        media: DiskMedia::Cdrom.into(),
                        ..Default::default()
                    },
                ],
                nics: vec![
                    wire::Nic { network: "networks/lan".into(), ..Default::default() },
                    wire::Nic {
                        network: "networks/wan".into(),
                        ipv4_address: "10.1.0.2".into(),
                        filter: wire::NicFilter::Off.into(),
                        ..Default::default()
                    },
                ],
                vnc: Some(wire::Vnc::default()),
                ..Default::default()
            }),
            status: Some(wire::VmStatus {
                state: VmState::Running.into(),
                pid: 4711,
                accelerator: Accelerator::Tcg.into(),
                cpu_model: "max".into(),
                nics: vec![wire::NicStatus {
                    port: "networks/lan/ports/web-0".into(),
                    mac: "52:54:00:00:00:01".into(),
                    interface: "kvt-web-0".into(),
                    ipv4_address: "10.0.0.2".into(),
                    ipv6_address: "fd00::2".into(),
                }],
                vnc_address: "unix:/run/v.sock".into(),
                unresponsive: true,
                unresponsive_since: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
                unresponsive_reason: "QEMU did not answer `query-status` within 5 s".into(),
                warnings: vec!["TCG is slow".into()],
                ..Default::default()
            }),
            ..Default::default()
        }
        .into()
    }

    #[test]
    fn a_sheet_shows_disks_nics_and_warnings() {
        insta::assert_snapshot!(web().sheet(), @r"
        Name:          web
        State:         running (unresponsive since 1970-01-01T00:01:00.000Z)
        Unresponsive:  QEMU did not answer `query-status` within 5 s
        vCPUs:         2
        Memory:        1536M
        CPU model:     max
        Accelerator:   tcg
        Owner:         uid 0
        PID:           4711
        VNC:           unix:/run/v.sock
        UID:           8f6c
        Created:       1970-01-01T00:00:00.000Z
        Disks:
          - /d/web.qcow2 (qcow2, virtio, writeback)
          - /d/seed.iso (raw, virtio, writeback, cdrom, read-only)
        NICs:
          - lan (virtio, 52:54:00:00:00:01, interface kvt-web-0, port web-0)
          - wan (virtio, filter off)
        Addresses:
          - 10.0.0.2 on lan (static)
          - fd00::2 on lan (static)
          - 10.1.0.2 on wan (static)
        Labels:
          - tier=front
        Warnings:
          - TCG is slow
        ");
    }

    #[test]
    fn a_row_and_a_summary_are_short() {
        assert_eq!(
            web().row(),
            [
                "web",
                "unresponsive",
                "2",
                "1536M",
                "tcg",
                "4711",
                "lan,wan[filter=off]",
                "10.0.0.2,fd00::2,10.1.0.2"
            ]
        );
        assert_eq!(
            web().summary(),
            "2 vCPUs, 1536M, tcg, pid 4711, 10.0.0.2, fd00::2, 10.1.0.2, no filter on wan"
        );
    }

    #[test]
    fn what_is_not_set_is_null_and_defaults_are_spelled_out() {
        let vm = serde_json::to_value(Vm::from(wire::Vm {
            name: "vms/new".into(),
            spec: Some(wire::VmSpec { disks: vec![wire::Disk::default()], ..Default::default() }),
            ..Default::default()
        }))
        .unwrap();
        for pointer in
            ["/create_time", "/spec/kernel_boot", "/spec/vnc", "/status/pid", "/status/accelerator"]
        {
            assert!(vm.pointer(pointer).unwrap().is_null(), "{pointer}");
        }
        assert_eq!(vm["spec"]["disks"][0]["bus"], "virtio");
        assert_eq!(vm["spec"]["disks"][0]["cache"], "writeback");
        assert_eq!(vm["status"]["state"], "unknown");
    }
}
