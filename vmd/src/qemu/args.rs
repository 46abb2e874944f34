//! QEMU's command line. Pure.
//!
//! User text goes into JSON or stands as an argument of its own, never into a comma-separated option: there, a path
//! that ends in `,readonly=on` would set that option. The CPU model is the exception, and its characters are checked.

use crate::model::{
    Accelerator, Disk, DiskBus, DiskCache, DiskFormat, DiskMedia, KernelBoot, NicModel, Spec,
};
use serde_json::{Value, json};
use shared::{mac::Mac, name::Name};
use uuid::Uuid;

/// First device of the bus that root ports take; eight of them share one device.
const FIRST_ROOT_PORT: usize = 0x02;
/// Conventional NICs stand behind the root ports (at most 55, in seven devices).
const FIRST_PLAIN: usize = 0x0a;
const ADDRESS_VGA: &str = "0x1";
const ADDRESS_USB: &str = "0x1b";
/// Root ports without a device, for plugging in while the guest runs.
const SPARE_PORTS: usize = 4;
/// MTU that a guest assumes when it is told none.
const DEFAULT_MTU: u32 = 1500;
/// More than a spec has.
const MAX_DISKS: i32 = 1000;
/// Name of the VNC socket in the machine's run folder.
pub const VNC_SOCKET: &str = "vnc.sock";
/// Id of the serial port's chardev.
pub const SERIAL: &str = "serial0";

/// All that decides the command line.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The machine's name.
    pub name: &'a Name,
    /// The guest sees it as its system UUID.
    pub uuid: Uuid,
    /// What the client asked for.
    pub spec: &'a Spec,
    /// Decided for this host.
    pub accelerator: Accelerator,
    /// Decided by the client or the accelerator.
    pub cpu_model: &'a str,
    /// The descriptors QEMU inherits.
    pub wiring: Wiring,
}

/// The descriptors QEMU inherits, by their numbers in QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// Listening sockets of the two monitors.
    pub monitors: [i32; 2],
    /// Listening socket of the serial port.
    pub serial: i32,
    /// One for each disk of the spec.
    pub disks: Vec<DiskWire>,
    /// One for each NIC of the spec.
    pub nics: Vec<NicWire>,
}

/// An open disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskWire {
    /// Its access mode is the disk's.
    pub fd: i32,
    /// A block device, not a file.
    pub block_device: bool,
    /// The images behind it, in the order in which QEMU asks them.
    pub backing: Vec<BackingWire>,
}

/// An open image behind a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingWire {
    /// For reading.
    pub fd: i32,
    /// A block device, not a file.
    pub block_device: bool,
    /// Its own.
    pub format: DiskFormat,
}

/// An open tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicWire {
    /// The tap.
    pub fd: i32,
    /// The guest's address.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
}

/// The arguments after the program's name.
#[must_use]
pub fn argv(plan: &Plan<'_>) -> Vec<String> {
    let mut args = Args::default();
    args.machine(plan);
    args.wires(&plan.wiring);
    if let Some(boot) = &plan.spec.kernel_boot {
        args.kernel(boot);
    }
    // First, since devices name their bus.
    args.root_ports(slots(plan.spec) + SPARE_PORTS);
    let mut next_slot = 0;
    let mut slot = || {
        next_slot += 1;
        format!("rp{}", next_slot - 1)
    };
    if plan.spec.disks.iter().any(on_scsi) {
        args.device(json!({"driver": "virtio-scsi-pci", "id": "scsi0", "bus": slot(), "romfile": ""}));
    }
    let mut sata = 0;
    for (index, (disk, wire)) in plan.spec.disks.iter().zip(&plan.wiring.disks).enumerate() {
        let bus = match disk.bus {
            DiskBus::Sata => {
                sata += 1;
                format!("ide.{}", sata - 1)
            }
            _ if on_scsi(disk) => "scsi0.0".to_owned(),
            DiskBus::Virtio | DiskBus::Scsi => slot(),
        };
        args.disk(index, disk, wire, &bus);
    }
    for (index, (nic, wire)) in plan.spec.nics.iter().zip(&plan.wiring.nics).enumerate() {
        let (bus, address) = match nic.model {
            NicModel::Virtio => (slot(), None),
            NicModel::E1000 | NicModel::E1000e => ("pcie.0".to_owned(), Some(FIRST_PLAIN + index)),
        };
        args.nic(index, nic.model, wire, &Place { bus, address });
    }
    if plan.spec.vnc.is_some() {
        args.display();
    }
    args.0
}

/// Sets of disks are numbered from 1; those of images behind them by their descriptor, after all numbers of disks.
fn backing_set(image: BackingWire) -> i32 {
    MAX_DISKS + image.fd
}

fn file_node(name: &str, set: &str, block_device: bool, (read_only, cache): (bool, &Value)) -> Value {
    json!({
        "driver": if block_device { "host_device" } else { "file" },
        "node-name": name,
        "filename": set,
        "read-only": read_only,
        "auto-read-only": false,
        "cache": cache,
    })
}

/// `backing` is a node's name, or null, so that QEMU does not follow what the header names.
fn format_node(
    name: &str,
    file: &str,
    format: DiskFormat,
    (read_only, cache): (bool, &Value),
    backing: Value,
) -> Value {
    let mut node = json!({
        "driver": match format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        },
        "node-name": name,
        "file": file,
        "read-only": read_only,
        "auto-read-only": false,
        "cache": cache,
    });
    if format == DiskFormat::Qcow2 {
        node["backing"] = backing;
    }
    node
}

/// Whether the disk stands on the virtio-scsi bus; virtio-blk has no cdrom.
fn on_scsi(disk: &Disk) -> bool {
    match disk.bus {
        DiskBus::Scsi => true,
        DiskBus::Virtio => disk.media == DiskMedia::Cdrom,
        DiskBus::Sata => false,
    }
}

/// How many root ports the devices of the spec take.
fn slots(spec: &Spec) -> usize {
    let controller = usize::from(spec.disks.iter().any(on_scsi));
    let disks = spec.disks.iter().filter(|d| d.bus == DiskBus::Virtio && !on_scsi(d)).count();
    let nics = spec.nics.iter().filter(|nic| nic.model == NicModel::Virtio).count();
    controller + disks + nics
}

struct Place {
    bus: String,
    address: Option<usize>,
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, option: &str) {
        self.0.push(option.to_owned());
    }

    fn option(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.option(option, value.to_string());
    }

    fn device(&mut self, value: Value) {
        self.json("-device", &value);
    }

    fn machine(&mut self, plan: &Plan<'_>) {
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        // Names are DNS labels: no comma, no `=`.
        self.option("-name", format!("guest={}", plan.name));
        self.option("-uuid", plan.uuid.to_string());
        self.option("-msg", "timestamp=on");
        self.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        self.option("-machine", "q35");
        self.option(
            "-accel",
            match plan.accelerator {
                Accelerator::Kvm => "kvm",
                Accelerator::Tcg => "tcg,thread=multi",
            },
        );
        self.option("-cpu", plan.cpu_model);
        self.option("-smp", plan.spec.vcpus.to_string());
        self.option("-m", format!("{}M", plan.spec.memory_bytes >> 20));
        self.option("-display", "none");
        // Held until vmd listens to the serial port, so that not a byte of it is lost.
        self.flag("-S");
    }

    fn wires(&mut self, wiring: &Wiring) {
        for (index, fd) in wiring.monitors.iter().enumerate() {
            self.option("-chardev", format!("socket,id=qmp{index},fd={fd},server=on,wait=off"));
            self.option("-mon", format!("chardev=qmp{index},mode=control"));
        }
        self.option("-chardev", format!("socket,id={SERIAL},fd={},server=on,wait=off", wiring.serial));
        self.option("-serial", format!("chardev:{SERIAL}"));
        for (index, disk) in wiring.disks.iter().enumerate() {
            self.option("-add-fd", format!("fd={},set={}", disk.fd, index + 1));
            for backing in &disk.backing {
                self.option("-add-fd", format!("fd={},set={}", backing.fd, backing_set(*backing)));
            }
        }
    }

    fn kernel(&mut self, boot: &KernelBoot) {
        self.option("-kernel", &boot.kernel);
        if let Some(initrd) = &boot.initrd {
            self.option("-initrd", initrd);
        }
        self.option("-append", &boot.cmdline);
    }

    fn root_ports(&mut self, count: usize) {
        for index in 0..count {
            let mut port = json!({
                "driver": "pcie-root-port",
                "id": format!("rp{index}"),
                "bus": "pcie.0",
                "addr": format!("0x{:x}.0x{:x}", FIRST_ROOT_PORT + index / 8, index % 8),
                "chassis": index + 1,
            });
            if index % 8 == 0 {
                port["multifunction"] = json!(true);
            }
            self.device(port);
        }
    }

    /// The images behind a disk, the last one first. Returns the name of the one that is next to the disk.
    fn backing(&mut self, index: usize, cache: &Value, wire: &DiskWire) -> Value {
        let mut behind = Value::Null;
        for (depth, image) in wire.backing.iter().enumerate().rev() {
            let (file, name) = (format!("file{index}-{depth}"), format!("disk{index}-{depth}"));
            let set = format!("/dev/fdset/{}", backing_set(*image));
            self.json("-blockdev", &file_node(&file, &set, image.block_device, (true, cache)));
            self.json("-blockdev", &format_node(&name, &file, image.format, (true, cache), behind));
            behind = json!(name);
        }
        behind
    }

    fn disk(&mut self, index: usize, disk: &Disk, wire: &DiskWire, bus: &str) {
        let (direct, no_flush, write_cache) = match disk.cache {
            DiskCache::Writeback => (false, false, true),
            DiskCache::None => (true, false, true),
            DiskCache::Writethrough => (false, false, false),
            DiskCache::Unsafe => (false, true, true),
            DiskCache::Directsync => (true, false, false),
        };
        let cache = json!({"direct": direct, "no-flush": no_flush});
        let behind = self.backing(index, &cache, wire);
        let (file, name) = (format!("file{index}"), format!("disk{index}"));
        let set = format!("/dev/fdset/{}", index + 1);
        self.json("-blockdev", &file_node(&file, &set, wire.block_device, (disk.read_only, &cache)));
        self.json("-blockdev", &format_node(&name, &file, disk.format, (disk.read_only, &cache), behind));
        let cdrom = disk.media == DiskMedia::Cdrom;
        let driver = match (disk.bus, cdrom) {
            (DiskBus::Sata, false) => "ide-hd",
            (DiskBus::Sata, true) => "ide-cd",
            (_, true) => "scsi-cd",
            (DiskBus::Scsi, false) => "scsi-hd",
            (DiskBus::Virtio, false) => "virtio-blk-pci",
        };
        let mut device = json!({
            "driver": driver,
            "id": format!("dev-disk{index}"),
            "drive": format!("disk{index}"),
            "bus": bus,
            "bootindex": index + 1,
        });
        if !cdrom {
            device["write-cache"] = json!(if write_cache { "on" } else { "off" });
        }
        if driver == "virtio-blk-pci" {
            device["romfile"] = json!("");
        }
        if on_scsi(disk) {
            device["scsi-id"] = json!(index);
        }
        self.device(device);
    }

    fn nic(&mut self, index: usize, model: NicModel, wire: &NicWire, place: &Place) {
        self.json(
            "-netdev",
            &json!({
                "type": "tap",
                "id": netdev(index),
                // A string: it may also be the name of a descriptor given by `getfd`.
                "fd": wire.fd.to_string(),
                "vhost": false,
            }),
        );
        let mut device = json!({
            "driver": match model {
                NicModel::Virtio => "virtio-net-pci",
                NicModel::E1000 => "e1000",
                NicModel::E1000e => "e1000e",
            },
            "id": format!("dev-net{index}"),
            "netdev": netdev(index),
            "mac": wire.mac.to_string(),
            "bus": place.bus,
            "romfile": "",
        });
        if let Some(address) = place.address {
            device["addr"] = json!(format!("0x{address:x}"));
        }
        if model == NicModel::Virtio && wire.mtu != DEFAULT_MTU {
            device["host_mtu"] = json!(wire.mtu);
        }
        self.device(device);
    }

    fn display(&mut self) {
        // vmd gives it a socket to listen on, of either kind, once QEMU answers.
        self.option("-vnc", "none");
        self.device(json!({"driver": "VGA", "id": "vga0", "bus": "pcie.0", "addr": ADDRESS_VGA}));
        self.device(json!({"driver": "qemu-xhci", "id": "usb0", "bus": "pcie.0", "addr": ADDRESS_USB}));
        self.device(json!({"driver": "usb-tablet", "id": "tablet0", "bus": "usb0.0"}));
    }
}

/// QEMU's name for the host's side of a NIC.
#[must_use]
pub fn netdev(nic: usize) -> String {
    format!("net{nic}")
}

#[cfg(test)]
mod test;
