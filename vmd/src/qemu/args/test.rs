use super::*;
use crate::model::{Nic, VncListen};
use proptest::prelude::*;

fn disk(path: &str, bus: DiskBus, media: DiskMedia) -> Disk {
    Disk {
        path: path.into(),
        format: DiskFormat::Raw,
        bus,
        cache: DiskCache::Writeback,
        read_only: media == DiskMedia::Cdrom,
        media,
    }
}

fn nic(model: NicModel) -> Nic {
    Nic { network: "lan".parse().unwrap(), mac: None, model, port: Default::default() }
}

fn small() -> Spec {
    Spec {
        vcpus: 2,
        memory_bytes: 256 << 20,
        cpu_model: None,
        disks: vec![],
        kernel_boot: None,
        nics: vec![],
        vnc: None,
    }
}

fn wiring(spec: &Spec, mtu: u32) -> Wiring {
    let mut fds = 7..;
    let mut fd = || fds.next().unwrap();
    Wiring {
        monitors: [4, 5],
        serial: 6,
        disks: spec
            .disks
            .iter()
            .map(|_| DiskWire { fd: fd(), block_device: false, backing: vec![] })
            .collect(),
        nics: (0..spec.nics.len())
            .map(|i| NicWire { fd: fd(), mac: Mac::derived("test", u32::try_from(i).unwrap()), mtu })
            .collect(),
    }
}

fn render(spec: &Spec, accelerator: Accelerator, mtu: u32) -> Vec<String> {
    argv(&Plan {
        name: &"web".parse().unwrap(),
        uuid: Uuid::from_u128(1),
        spec,
        accelerator,
        cpu_model: spec.cpu_model.as_deref().unwrap_or("max"),
        wiring: wiring(spec, mtu),
    })
}

/// One option and its value a line.
fn golden(args: &[String]) -> String {
    let mut text = String::new();
    for arg in args {
        text.push(if arg.starts_with('-') && arg.len() > 1 { '\n' } else { ' ' });
        text.push_str(arg);
    }
    text.trim_start().to_owned()
}

#[test]
fn a_kernel_and_nothing_else() {
    let mut spec = small();
    spec.kernel_boot = Some(KernelBoot {
        kernel: "/boot/vmlinuz,readonly=on".into(),
        initrd: Some("/boot/initrd".into()),
        cmdline: "console=ttyS0 a,b=c".into(),
    });
    insta::assert_snapshot!(golden(&render(&spec, Accelerator::Tcg, 1500)));
}

#[test]
fn disks_of_all_kinds() {
    let mut spec = small();
    spec.disks = vec![
        disk("/a,readonly=on", DiskBus::Virtio, DiskMedia::Disk),
        disk("/b", DiskBus::Virtio, DiskMedia::Cdrom),
        disk("/c", DiskBus::Sata, DiskMedia::Disk),
        disk("/d", DiskBus::Sata, DiskMedia::Cdrom),
        Disk {
            format: DiskFormat::Qcow2,
            cache: DiskCache::None,
            ..disk("/e", DiskBus::Scsi, DiskMedia::Disk)
        },
        Disk { cache: DiskCache::Directsync, ..disk("/f", DiskBus::Virtio, DiskMedia::Disk) },
        Disk { cache: DiskCache::Unsafe, ..disk("/g", DiskBus::Virtio, DiskMedia::Disk) },
    ];
    insta::assert_snapshot!(golden(&render(&spec, Accelerator::Kvm, 1500)));
}

#[test]
fn nics_and_a_display() {
    let mut spec = small();
    spec.nics = vec![nic(NicModel::Virtio), nic(NicModel::E1000), nic(NicModel::E1000e)];
    spec.vnc = Some(VncListen::Tcp);
    insta::assert_snapshot!(golden(&render(&spec, Accelerator::Tcg, 9000)));
}

fn any_disk() -> impl Strategy<Value = Disk> {
    let bus = prop_oneof![Just(DiskBus::Virtio), Just(DiskBus::Scsi)];
    let media = prop_oneof![Just(DiskMedia::Disk), Just(DiskMedia::Cdrom)];
    ("/[^\0]{0,40}", bus, media).prop_map(|(path, bus, media)| disk(&path, bus, media))
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let model = prop_oneof![Just(NicModel::Virtio), Just(NicModel::E1000), Just(NicModel::E1000e)];
    let boot = proptest::option::of(("/[^\0]{0,40}", "[^\\p{Cc}]{0,60}"));
    (prop::collection::vec(any_disk(), 0..6), prop::collection::vec(model, 0..5), boot).prop_map(
        |(disks, nics, boot)| Spec {
            disks,
            nics: nics.into_iter().map(nic).collect(),
            kernel_boot: boot.map(|(kernel, cmdline)| KernelBoot { kernel, initrd: None, cmdline }),
            ..small()
        },
    )
}

/// The same spec with harmless text in place of the user's.
fn harmless(spec: &Spec) -> Spec {
    let mut plain = spec.clone();
    for disk in &mut plain.disks {
        disk.path = "/x".into();
    }
    if let Some(boot) = &mut plain.kernel_boot {
        boot.kernel = "/k".into();
        boot.cmdline = "c".into();
    }
    plain
}

proptest! {
    /// User text is either an argument of its own or nowhere: everything else is the same without it.
    #[test]
    fn user_text_stands_alone(spec in any_spec()) {
        let args = render(&spec, Accelerator::Tcg, 1500);
        let plain = render(&harmless(&spec), Accelerator::Tcg, 1500);
        prop_assert_eq!(args.len(), plain.len());
        for (index, (arg, same)) in args.iter().zip(&plain).enumerate() {
            let alone = index > 0 && ["-kernel", "-append"].contains(&plain[index - 1].as_str());
            prop_assert!(alone || arg == same, "{} differs from {}", arg, same);
        }
    }

    /// Each disk is two block nodes and a device, each NIC a netdev and a device; each virtio device has its port.
    #[test]
    fn every_device_costs_the_same_number_of_arguments(spec in any_spec()) {
        let args = render(&spec, Accelerator::Tcg, 1500);
        let count = |option: &str| args.iter().filter(|arg| *arg == option).count();
        let ports = args.iter().filter(|arg| arg.contains("\"pcie-root-port\"")).count();
        prop_assert_eq!(count("-blockdev"), 2 * spec.disks.len());
        prop_assert_eq!(count("-add-fd"), spec.disks.len());
        prop_assert_eq!(count("-netdev"), spec.nics.len());
        let controller = usize::from(spec.disks.iter().any(on_scsi));
        prop_assert_eq!(count("-device"), spec.disks.len() + spec.nics.len() + controller + ports);
        prop_assert_eq!(ports, slots(&spec) + SPARE_PORTS);
    }

    /// No two devices share a place on the bus.
    #[test]
    fn no_place_is_taken_twice(spec in any_spec()) {
        let args = render(&spec, Accelerator::Tcg, 1500);
        let mut seen = std::collections::BTreeSet::new();
        for device in args.iter().filter_map(|arg| serde_json::from_str::<Value>(arg).ok()) {
            let bus = device["bus"].as_str().unwrap_or_default().to_owned();
            let place = match (device["addr"].as_str(), device["scsi-id"].as_u64()) {
                (Some(address), _) => format!("{bus} {address}"),
                (None, Some(id)) => format!("{bus} {id}"),
                (None, None) => bus,
            };
            if device.get("driver").is_some() && device.get("bus").is_some() {
                prop_assert!(seen.insert(place.clone()), "{}", place);
            }
        }
    }
}
