//! Requests, from the bytes on the wire to the records and ports that they leave.

use super::*;
use crate::{
    config::Config,
    fuzz::{self, Outcome},
    ports::FakePorts,
};
use clap::Parser as _;
use prost::Message;
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::Code;

/// Most requests of one input: more would only be slower.
const MOST: usize = 5;

/// A vmd whose netd is memory and whose QEMU does nothing but tell its version.
struct Session {
    runtime: Runtime,
    server: Server<FakePorts>,
    ports: FakePorts,
    folder: TempDir,
}

impl Session {
    fn new() -> Self {
        let folder = fuzz::folder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let qemu = folder.path().join("qemu");
        fs::write(&qemu, "#!/bin/sh\necho QEMU emulator version 7.2.0\n").expect("a program");
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("a program");
        let option = |name: &str| folder.path().join(name).display().to_string();
        let (state, run, qemu) = (option("state"), option("run"), option("qemu"));
        let config = ["vmd", "--accel", "tcg", "--state-dir", &state, "--run-dir", &run, "--qemu", &qemu];
        let config = Config::parse_from(config);
        let ports = FakePorts::with_networks(["lan", "dmz"].map(|name| name.parse().expect("a name")));
        let stop = CancellationToken::new();
        let supervisor = runtime.block_on(Supervisor::open(&config, ports.clone(), stop.clone()));
        let server = Server { supervisor: supervisor.expect("a supervisor"), stop };
        Self { runtime, server, ports, folder }
    }

    /// Every machine's name and generation.
    fn machines(&self) -> BTreeMap<String, i64> {
        let (vms, _) = self.server.supervisor.list(None, usize::MAX);
        vms.iter().map(|vm| (vm.record.name.to_string(), vm.record.generation)).collect()
    }

    async fn call(&self, sort: u8, body: &[u8]) -> Result<(), Status> {
        fn read<M: Message + Default>(body: &[u8]) -> Result<Request<M>, Status> {
            M::decode(body).map(of_root).map_err(|_| Status::invalid_argument("no message"))
        }
        let server = &self.server;
        match sort % 9 {
            0 | 1 => server.create_vm(read(body)?).await.map(drop),
            2 => server.get_vm(read(body)?).await.map(drop),
            3 => server.list_vms(read(body)?).await.map(drop),
            4 => server.delete_vm(read(body)?).await.map(drop),
            5 => {
                let request: Request<StartVmRequest> = read(body)?;
                // Without a NIC nothing would be missing, and a process would really be started.
                let (_, handle) = server.handle(&request.get_ref().name)?;
                if handle.watch.borrow().record.spec.nics.is_empty() {
                    return Err(Status::failed_precondition("no NIC"));
                }
                server.start_vm(request).await.map(drop)
            }
            6 => server.stop_vm(read(body)?).await.map(drop),
            7 => server.reset_vm(read(body)?).await.map(drop),
            _ => server.pause_vm(read(body)?).await.map(drop),
        }
    }
}

/// A request that root sent.
fn of_root<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller::root());
    request
}

/// Whether a folder has anything in it.
fn is_bare(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

thread_local! {
    static SESSION: Session = Session::new();
}

/// A sequence of requests: a byte for the method, the length in two, the message. Machines are gone after it.
///
/// # Errors
/// Why the last was refused, if all were.
pub fn vmd_requests(data: &[u8]) -> Outcome {
    SESSION.with(|session| {
        let mut rest = data;
        let mut outcome = Err("no request".to_owned());
        let mut count = 0;
        while let [sort, low, high, more @ ..] = rest
            && count < MOST
        {
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
            let before = session.machines();
            match session.runtime.block_on(session.call(*sort, &more[..length])) {
                Ok(()) => outcome = Ok(()),
                Err(status) => {
                    assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{status:?}");
                    assert_eq!(session.machines(), before, "refused, and done: {status:?}");
                    if outcome.is_err() {
                        let told = status.message().split('`').step_by(2).collect::<String>();
                        outcome = Err(told.chars().take(60).collect());
                    }
                }
            }
            rest = &more[length..];
            count += 1;
        }
        for name in session.machines().into_keys() {
            let request = of_root(DeleteVmRequest { name: format!("vms/{name}") });
            session
                .runtime
                .block_on(session.server.delete_vm(request))
                .expect("every machine can be deleted");
        }
        assert!(session.machines().is_empty());
        for left in ["state/vms", "run/vms"] {
            let left = session.folder.path().join(left);
            assert!(is_bare(&left), "{} is not empty", left.display());
        }
        session.runtime.block_on(async {
            for _ in 0..10_000 {
                if session.ports.ports().is_empty() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            panic!("ports are left: {:?}", session.ports.ports());
        });
        outcome
    })
}

/// Writes the seeds that are messages: run it with `KVMCTL_WRITE_SEEDS=1` after the API has changed.
#[cfg(test)]
#[test]
fn the_seeds_are_of_this_api() {
    let nic = |network: &str| wire::Nic {
        network: format!("networks/{network}"),
        mac: "52:54:00:00:00:01".into(),
        model: wire::NicModel::E1000.into(),
        ipv4_address: "10.0.0.2".into(),
        ipv6_address: "fd00::2".into(),
        extra_addresses: vec!["10.0.0.9".into()],
        filter: wire::NicFilter::On.into(),
        isolated: true,
        rate_in: Some(wire::Rate { bits_per_second: 100_000_000, burst_bytes: 65_536 }),
        rate_out: None,
        groups: vec!["groups/web".into()],
    };
    let disk = |path: &str, format: &str| wire::Disk {
        path: path.into(),
        format: format.into(),
        bus: wire::DiskBus::Sata.into(),
        cache: wire::DiskCache::Writeback.into(),
        read_only: true,
        media: wire::DiskMedia::Cdrom.into(),
    };
    let vm = |name: &str, nics: Vec<wire::Nic>, disks| wire::Vm {
        name: format!("vms/{name}"),
        labels: [("role".to_owned(), "db".to_owned())].into(),
        spec: Some(wire::VmSpec {
            vcpus: 2,
            memory_bytes: 512 << 20,
            cpu_model: "max".into(),
            disks,
            kernel_boot: None,
            nics,
            vnc: Some(wire::Vnc { listen: wire::VncListen::Unix.into() }),
        }),
        ..Default::default()
    };
    let bare = wire::Nic { network: "networks/lan".into(), ..Default::default() };
    let create = |vm: wire::Vm| (0, CreateVmRequest { vm: Some(vm) }.encode_to_vec());
    let name = |name: &str| format!("vms/{name}");
    let delete = (4, DeleteVmRequest { name: name("web") }.encode_to_vec());
    let start = (5, StartVmRequest { name: name("web") }.encode_to_vec());
    let seconds = prost_types::Duration { seconds: 3, nanos: 0 };
    let stop = (6, StopVmRequest { name: name("web"), timeout: Some(seconds), force: true }.encode_to_vec());
    let list = (3, ListVmsRequest { page_size: 1, page_token: "web".into() }.encode_to_vec());
    let get = (2, GetVmRequest { name: name("web") }.encode_to_vec());
    let hosts = || vec![disk("/etc/hostname", "raw")];
    let sequences = [
        vec![create(vm("web", vec![], hosts())), get, list, delete.clone()],
        vec![create(vm("web", vec![nic("lan")], vec![])), start.clone(), stop.clone(), start, delete],
        vec![
            create(vm("web", vec![bare.clone()], vec![])),
            create(vm("db", vec![bare.clone(), bare], vec![])),
            stop,
        ],
    ];
    let write = std::env::var_os("KVMCTL_WRITE_SEEDS").is_some();
    let keep = |folder: &str, name: String, bytes: Vec<u8>| {
        let path = mutate::folder(folder).join(name);
        if write {
            fs::create_dir_all(mutate::folder(folder)).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{}: set KVMCTL_WRITE_SEEDS", path.display());
    };
    let framed = |(sort, body): &(u8, Vec<u8>)| {
        let length = u16::try_from(body.len()).unwrap().to_le_bytes();
        [&[*sort], &length[..], &body[..]].concat()
    };
    for (number, sequence) in sequences.iter().enumerate() {
        keep("vmd_requests", format!("sequence-{number}"), sequence.iter().flat_map(framed).collect());
    }
    let machine = vm("web", vec![nic("lan")], vec![disk("/srv/a.qcow2", "qcow2"), disk("/srv/b.iso", "raw")]);
    keep("specs", "machine".into(), framed(&(0, machine.encode_to_vec())));
    let booted = wire::VmSpec {
        kernel_boot: Some(wire::KernelBoot {
            kernel: "/boot/vmlinuz".into(),
            initrd: "/boot/initrd".into(),
            cmdline: "console=ttyS0".into(),
        }),
        ..vm("x", vec![], vec![]).spec.unwrap()
    };
    let booted = wire::Vm { spec: Some(booted), ..vm("db", vec![], vec![]) };
    keep("specs", "kernel".into(), framed(&(0, booted.encode_to_vec())));
}
