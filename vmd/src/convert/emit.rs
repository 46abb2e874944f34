//! From the model to the wire.

use super::nic;
use crate::{
    jail::{Finding, Layer},
    machine::State,
    model::{
        Accelerator, Disk, DiskBus, DiskCache, DiskFormat, DiskMedia, Record, Spec, Status, Vm, VncListen,
    },
    ports,
};
use proto::vmd::v1 as wire;
use shared::{access::redact, name::Name, wire::timestamp};

/// A machine.
#[must_use]
pub fn vm(vm: &Vm) -> wire::Vm {
    let record = &vm.record;
    wire::Vm {
        name: format!("{}/{}", super::VMS, record.name),
        uid: record.uid.to_string(),
        generation: record.generation,
        create_time: Some(timestamp(record.create_time)),
        update_time: Some(timestamp(record.update_time)),
        labels: record.labels.clone().into_iter().collect(),
        spec: Some(spec(&record.spec)),
        status: Some(status(record, &vm.status)),
    }
}

/// A machine of which nothing but the name is known, and why.
#[must_use]
pub fn broken_vm(name: &Name, error: String) -> wire::Vm {
    let status = wire::VmStatus { state: wire::VmState::Broken.into(), error, ..Default::default() };
    wire::Vm { name: format!("{}/{name}", super::VMS), status: Some(status), ..Default::default() }
}

/// A machine as it is shown to whom it does not belong: without host paths, kernel command line and VNC address.
#[must_use]
pub fn vm_of_another(vm: &Vm) -> wire::Vm {
    let mut wire = self::vm(vm);
    if let Some(spec) = &mut wire.spec {
        spec.disks.iter_mut().for_each(|disk| disk.path.clear());
        if let Some(boot) = &mut spec.kernel_boot {
            *boot = wire::KernelBoot::default();
        }
    }
    if let Some(status) = &mut wire.status {
        status.exit_reason = redact(&status.exit_reason);
        status.error = redact(&status.error);
        status.warnings.iter_mut().for_each(|warning| *warning = redact(warning));
        status.containment.iter_mut().for_each(|layer| layer.reason = redact(&layer.reason));
        status.unresponsive_reason = redact(&status.unresponsive_reason);
        status.vnc_address.clear();
    }
    wire
}

pub(super) fn spec(spec: &Spec) -> wire::VmSpec {
    wire::VmSpec {
        vcpus: spec.vcpus,
        memory_bytes: spec.memory_bytes,
        cpu_model: spec.cpu_model.clone().unwrap_or_default(),
        disks: spec.disks.iter().map(disk).collect(),
        kernel_boot: spec.kernel_boot.as_ref().map(|boot| wire::KernelBoot {
            kernel: boot.kernel.clone(),
            initrd: boot.initrd.clone().unwrap_or_default(),
            cmdline: boot.cmdline.clone(),
        }),
        nics: spec.nics.iter().map(nic::emit).collect(),
        vnc: spec.vnc.map(|listen| wire::Vnc {
            listen: match listen {
                VncListen::Unix => wire::VncListen::Unix,
                VncListen::Tcp => wire::VncListen::Tcp,
            }
            .into(),
        }),
    }
}

fn disk(disk: &Disk) -> wire::Disk {
    wire::Disk {
        path: disk.path.clone(),
        format: match disk.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
        .into(),
        bus: match disk.bus {
            DiskBus::Virtio => wire::DiskBus::Virtio,
            DiskBus::Sata => wire::DiskBus::Sata,
            DiskBus::Scsi => wire::DiskBus::Scsi,
        }
        .into(),
        cache: match disk.cache {
            DiskCache::Writeback => wire::DiskCache::Writeback,
            DiskCache::None => wire::DiskCache::None,
            DiskCache::Writethrough => wire::DiskCache::Writethrough,
            DiskCache::Unsafe => wire::DiskCache::Unsafe,
            DiskCache::Directsync => wire::DiskCache::Directsync,
        }
        .into(),
        read_only: disk.read_only,
        media: match disk.media {
            DiskMedia::Disk => wire::DiskMedia::Disk,
            DiskMedia::Cdrom => wire::DiskMedia::Cdrom,
        }
        .into(),
    }
}

/// An accelerator.
#[must_use]
pub fn accelerator(accelerator: Accelerator) -> wire::Accelerator {
    match accelerator {
        Accelerator::Kvm => wire::Accelerator::Kvm,
        Accelerator::Tcg => wire::Accelerator::Tcg,
    }
}

fn status(record: &Record, status: &Status) -> wire::VmStatus {
    let run = status.run.as_ref();
    let nics = record.spec.nics.iter().zip(&record.macs).enumerate().map(|(index, (nic, mac))| {
        let addresses = run.and_then(|run| run.addresses.get(index)).copied().unwrap_or_default();
        wire::NicStatus {
            port: ports::resource(&nic.network, &ports::port_name(&record.name, index)),
            mac: mac.to_string(),
            interface: run.and_then(|run| run.interfaces.get(index)).cloned().unwrap_or_default(),
            ipv4_address: nic::text(addresses.ipv4),
            ipv6_address: nic::text(addresses.ipv6),
        }
    });
    let warnings = run.iter().flat_map(|run| &run.warnings).chain(&status.warnings).cloned();
    wire::VmStatus {
        revision: status.revision,
        state: state(status.state).into(),
        exit_reason: status.exit.reason.clone(),
        error: status.exit.error.clone(),
        pid: run.map_or(0, |run| run.pid),
        start_time: run.map(|run| timestamp(run.start_time)),
        accelerator: run.map_or(wire::Accelerator::Unspecified, |run| accelerator(run.accelerator)).into(),
        cpu_model: run.map(|run| run.cpu_model.clone()).unwrap_or_default(),
        nics: nics.collect(),
        vnc_address: status.vnc_address.clone(),
        unresponsive: status.silence.is_some(),
        unresponsive_since: status.silence.as_ref().map(|silence| timestamp(silence.since)),
        unresponsive_reason: status.silence.as_ref().map(|silence| silence.why.clone()).unwrap_or_default(),
        adopted: status.adopted,
        warnings: warnings.collect(),
        owner_uid: record.owner,
        qemu_version: run.map(|run| run.qemu_version.clone()).unwrap_or_default(),
        containment: run.map(|run| containment(&run.containment)).unwrap_or_default(),
        uid: run.map_or(0, |run| run.uid),
    }
}

/// What is known about containment.
#[must_use]
pub fn containment(findings: &[Finding]) -> Vec<wire::ContainmentLayer> {
    let layer = |finding: &Finding| wire::ContainmentLayer {
        layer: match finding.layer {
            Layer::UserNamespace => wire::Containment::UserNamespace,
            Layer::OwnUser => wire::Containment::OwnUser,
            Layer::Network => wire::Containment::Network,
            Layer::Files => wire::Containment::Files,
            Layer::Capabilities => wire::Containment::Capabilities,
            Layer::Landlock => wire::Containment::Landlock,
            Layer::SystemCalls => wire::Containment::SystemCalls,
            Layer::Limits => wire::Containment::Limits,
            Layer::ControlGroup => wire::Containment::ControlGroup,
            Layer::Memory => wire::Containment::Memory,
            Layer::Cpu => wire::Containment::Cpu,
            Layer::Processes => wire::Containment::Processes,
        }
        .into(),
        holds: finding.holds,
        reason: finding.reason.clone(),
        hint: if finding.holds { String::new() } else { finding.layer.hint().into() },
    };
    findings.iter().map(layer).collect()
}

fn state(state: State) -> wire::VmState {
    match state {
        State::Stopped | State::Deleted => wire::VmState::Stopped,
        State::Starting => wire::VmState::Starting,
        State::Running => wire::VmState::Running,
        State::Paused => wire::VmState::Paused,
        State::Stopping(_) => wire::VmState::Stopping,
        State::Failed => wire::VmState::Failed,
    }
}
