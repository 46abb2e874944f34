//! The services over a real socket and a real store, with a netd that is only memory and no QEMU.

use clap::Parser as _;
use proto::vmd::v1::{
    AttachConsoleRequest, ConsoleOpen, CreateVmRequest, DeleteVmRequest, GetVmRequest, ListVmsRequest, Nic,
    PauseVmRequest, ReadConsoleLogRequest, StartVmRequest, StopVmRequest, Vm, VmSpec, VmState,
    WatchVmRequest, attach_console_request::Message, vm_service_client::VmServiceClient,
};
use shared::{
    access::Gate,
    audit::Audit,
    fault::{Fault, Kind},
    serve, socket,
    store::{Op, Store},
    time::Timestamp,
};
use std::{fs, os::unix::fs::PermissionsExt as _};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use vmd::{
    config::Config,
    model::{Accelerator, KIND_RUN, Run},
    ports::FakePorts,
    server,
    supervisor::Supervisor,
};

struct Daemon {
    dir: TempDir,
    netd: FakePorts,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Fault>>,
    client: VmServiceClient<Channel>,
}

impl Daemon {
    async fn start() -> Self {
        let netd = FakePorts::with_networks(["lan".parse().expect("name")]);
        Self::start_in(tempfile::tempdir().expect("folder"), netd).await
    }

    async fn start_in(dir: TempDir, netd: FakePorts) -> Self {
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        // All that vmd asks of it here is its version.
        fs::write(path("qemu"), "#!/bin/sh\necho no QEMU\n").expect("script");
        fs::set_permissions(path("qemu"), fs::Permissions::from_mode(0o755)).expect("mode");
        // Whoever runs the tests is the daemon's own user, and so an admin.
        fs::write(path("access.toml"), "").expect("access file");
        let config = Config::parse_from([
            "vmd",
            "--socket",
            &path("s"),
            "--state-dir",
            &path("state"),
            "--run-dir",
            &path("run"),
            "--qemu",
            &path("qemu"),
            "--access-file",
            &path("access.toml"),
        ]);
        let stop = CancellationToken::new();
        // The thread of an earlier store lets go of the lock a moment after it.
        let supervisor = loop {
            match Supervisor::open(&config, netd.clone(), stop.clone()).await {
                Ok(supervisor) => break supervisor,
                Err(fault) => assert_eq!(fault.reason(), "STATE_LOCKED", "{}", fault.chain()),
            }
            tokio::task::yield_now().await;
        };
        let bound = socket::Bound::bind(&config.socket, None).expect("socket");
        let methods = proto::METHODS.iter().map(|method| (method.path, method.role, method.audited));
        let gate =
            Gate::new(supervisor.access().clone(), Audit::open(&config.state_dir), methods).expect("gate");
        let routes = server::routes(supervisor, stop.clone());
        let end = stop.clone();
        let health = serve::Health::new([], || None);
        let api = serve::Api { routes, descriptors: proto::FILE_DESCRIPTOR_SET, health };
        let task = tokio::spawn(async move { serve::serve(bound, api, &gate, end).await });
        let channel = socket::channel(&format!("unix://{}", path("s"))).expect("address");
        Self { netd, stop, task, client: VmServiceClient::new(channel), dir }
    }

    async fn create(&mut self, name: &str, spec: VmSpec) -> Result<Vm, Fault> {
        let vm = Vm { name: format!("vms/{name}"), spec: Some(spec), ..Default::default() };
        match self.client.create_vm(CreateVmRequest { vm: Some(vm) }).await {
            Ok(vm) => Ok(vm.into_inner()),
            Err(status) => Err(status.into()),
        }
    }
}

fn spec(networks: &[&str]) -> VmSpec {
    let nic = |network: &&str| Nic { network: format!("networks/{network}"), ..Default::default() };
    VmSpec { memory_bytes: 64 << 20, nics: networks.iter().map(nic).collect(), ..Default::default() }
}

fn state(vm: &Vm) -> VmState {
    vm.status.as_ref().map_or(VmState::Unspecified, |status| status.state())
}

#[tokio::test]
async fn a_create_can_be_repeated_and_not_changed() {
    let mut vmd = Daemon::start().await;
    let first = vmd.create("web", spec(&["lan"])).await.expect("create");
    assert_eq!(state(&first), VmState::Stopped);
    let nic = &first.status.as_ref().expect("status").nics[0];
    assert_eq!(nic.port, "networks/lan/ports/web-0");
    assert!(nic.mac.starts_with("52:54:00:"));
    assert_eq!(vmd.create("web", spec(&["lan"])).await.expect("again"), first);
    let other = vmd.create("web", spec(&[])).await.expect_err("another spec");
    assert_eq!(other.kind(), Kind::AlreadyExists);
    assert!(vmd.netd.ports().is_empty(), "ports are made at the start");
}

#[tokio::test]
async fn what_netd_does_not_vouch_for_is_not_recorded() {
    let mut vmd = Daemon::start().await;
    let missing = vmd.create("web", spec(&["nowhere"])).await.expect_err("no network");
    assert_eq!((missing.kind(), missing.reason()), (Kind::FailedPrecondition, "NETWORK_NOT_FOUND"));
    vmd.netd.set_down(true);
    let down = vmd.create("web", spec(&["lan"])).await.expect_err("no netd");
    assert_eq!(down.kind(), Kind::Unavailable);
    assert!(!down.hints().is_empty());
    let got = vmd.client.get_vm(GetVmRequest { name: "vms/web".into() }).await.expect_err("not recorded");
    assert_eq!(got.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn lists_come_in_pages_and_outlive_vmd() {
    let mut vmd = Daemon::start().await;
    for name in ["c", "a", "b"] {
        vmd.create(name, spec(&[])).await.expect("create");
    }
    vmd.stop.cancel();
    vmd.task.await.expect("task").expect("end");
    let mut vmd = Daemon::start_in(vmd.dir, vmd.netd).await;
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListVmsRequest { page_size: 2, page_token };
        let page = vmd.client.list_vms(request).await.expect("list").into_inner();
        names.extend(page.vms.into_iter().map(|vm| vm.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["vms/a", "vms/b", "vms/c"]);
    let wrong = vmd.client.list_vms(ListVmsRequest { page_size: -1, ..Default::default() }).await;
    assert_eq!(wrong.expect_err("negative").code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_start_that_fails_is_shown_and_leaves_no_port() {
    let mut vmd = Daemon::start().await;
    vmd.create("web", spec(&["lan"])).await.expect("create");
    // The fake's tap is not there.
    let name = "vms/web".to_owned();
    let fault =
        Fault::from(vmd.client.start_vm(StartVmRequest { name: name.clone() }).await.expect_err("no tap"));
    assert!(fault.chain().contains("cannot open the tap"), "{}", fault.chain());
    let vm = vmd.client.get_vm(GetVmRequest { name: name.clone() }).await.expect("get").into_inner();
    assert_eq!(state(&vm), VmState::Failed);
    assert_eq!(vm.status.expect("status").error, fault.chain());
    assert!(vmd.netd.ports().is_empty());
    vmd.netd.set_down(true);
    let fault =
        Fault::from(vmd.client.start_vm(StartVmRequest { name: name.clone() }).await.expect_err("no netd"));
    assert_eq!(fault.kind(), Kind::Unavailable);
    vmd.client.delete_vm(DeleteVmRequest { name }).await.expect("delete without netd");
    assert!(!vmd.dir.path().join("state/vms/web").exists());
}

#[tokio::test]
async fn what_a_stopped_machine_cannot_do_is_refused_by_its_state() {
    let mut vmd = Daemon::start().await;
    vmd.create("web", spec(&[])).await.expect("create");
    let name = "vms/web".to_owned();
    let paused = vmd.client.pause_vm(PauseVmRequest { name: name.clone() }).await.expect_err("stopped");
    assert_eq!(paused.code(), tonic::Code::FailedPrecondition);
    assert!(paused.message().contains("STOPPED"), "{}", paused.message());
    let stop = StopVmRequest { name, force: true, timeout: None };
    assert_eq!(state(&vmd.client.stop_vm(stop).await.expect("stop").into_inner()), VmState::Stopped);
}

#[tokio::test]
async fn a_watch_ends_with_the_machine_or_with_vmd() {
    let mut vmd = Daemon::start().await;
    for name in ["goes", "stays"] {
        vmd.create(name, spec(&[])).await.expect("create");
    }
    let mut watch = async |name: &str| {
        let mut stream =
            vmd.client.watch_vm(WatchVmRequest { name: name.into() }).await.expect("watch").into_inner();
        assert!(stream.next().await.expect("first").is_ok());
        stream
    };
    let mut goes = watch("vms/goes").await;
    let mut stays = watch("vms/stays").await;
    vmd.client.delete_vm(DeleteVmRequest { name: "vms/goes".into() }).await.expect("delete");
    let end = goes.next().await.expect("end").expect_err("deleted");
    assert_eq!(end.code(), tonic::Code::NotFound);
    vmd.stop.cancel();
    let end = stays.next().await.expect("end").expect_err("vmd ends");
    assert_eq!(end.code(), tonic::Code::Unavailable);
    vmd.task.await.expect("task").expect("a clean end");
}

#[tokio::test]
async fn a_console_has_one_writer_and_any_number_of_viewers() {
    let mut vmd = Daemon::start().await;
    vmd.create("web", spec(&[])).await.expect("create");
    let open = |read_only| {
        let open = ConsoleOpen { name: "vms/web".into(), offset: Some(0), read_only };
        // The stream stays open, as a person's terminal does.
        tokio_stream::iter([AttachConsoleRequest { message: Some(Message::Open(open)) }])
            .chain(tokio_stream::pending())
    };
    let first = vmd.client.attach_console(open(false)).await.expect("writer");
    let second = vmd.client.attach_console(open(false)).await.expect_err("second writer");
    assert_eq!(second.code(), tonic::Code::FailedPrecondition);
    vmd.client.attach_console(open(true)).await.expect("viewer");
    let request = ReadConsoleLogRequest { name: "vms/web".into(), offset: 0, follow: false };
    let mut log = vmd.client.read_console_log(request).await.expect("log").into_inner();
    assert!(log.next().await.is_none());
    drop(first);
}

#[tokio::test]
async fn a_vmd_that_ends_does_not_say_that_its_machines_are_gone() {
    let mut vmd = Daemon::start().await;
    vmd.create("web", spec(&[])).await.expect("create");
    let mut logs = Vec::new();
    // Many, since it is a race.
    for _ in 0..32 {
        let request = ReadConsoleLogRequest { name: "vms/web".into(), offset: 0, follow: true };
        logs.push(vmd.client.read_console_log(request).await.expect("log").into_inner());
    }
    vmd.stop.cancel();
    for mut log in logs {
        let end = log.next().await.expect("end").expect_err("vmd ends");
        assert_eq!(end.code(), tonic::Code::Unavailable);
    }
}

#[tokio::test]
async fn a_run_that_ended_without_vmd_is_recorded_as_that() {
    let mut vmd = Daemon::start().await;
    for name in ["web", "db"] {
        vmd.create(name, spec(&[])).await.expect("create");
    }
    vmd.stop.cancel();
    vmd.task.await.expect("task").expect("end");
    let store = loop {
        match Store::open(&vmd.dir.path().join("state")) {
            Ok(store) => break store,
            Err(fault) => assert_eq!(fault.reason(), "STATE_LOCKED"),
        }
        tokio::task::yield_now().await;
    };
    // This very test, which is not what the record says: it must live on. Of the same boot with another start, or the
    // other way round.
    let own = vmd::qemu::process::identity(std::process::id()).expect("identity");
    let strangers = [
        (own.boot_id, 1, "QEMU ended while vmd was not running"),
        ("other".to_owned(), own.start_ticks, "the host was restarted"),
    ];
    let mut ops = Vec::new();
    for ((boot_id, start_ticks, _), name) in strangers.clone().into_iter().zip(["web", "db"]) {
        let run = Run {
            machine: None,
            containment: vec![],
            group: None,
            group_id: None,
            boot_id,
            pid: std::process::id(),
            start_ticks,
            uid: rustix::process::geteuid().as_raw(),
            qemu_binary: "/qemu".into(),
            qemu_version: "7".into(),
            nonce: uuid::Uuid::nil(),
            start_time: Timestamp::now(),
            accelerator: Accelerator::Tcg,
            cpu_model: "max".into(),
            interfaces: vec![],
            addresses: vec![],
            warnings: vec![],
            images: vec![],
            qemu_file: None,
            indices: vec![],
        };
        ops.push(Op::put(KIND_RUN, name, &run).expect("op"));
    }
    store.commit(ops).await.expect("commit");
    drop(store);
    let mut vmd = Daemon::start_in(vmd.dir, vmd.netd).await;
    for ((_, _, why), name) in strangers.into_iter().zip(["web", "db"]) {
        let stop = StopVmRequest { name: format!("vms/{name}"), force: true, timeout: None };
        let status = vmd.client.stop_vm(stop).await.expect("stop").into_inner().status.expect("status");
        assert_eq!(status.state(), VmState::Stopped);
        assert_eq!(status.exit_reason, format!("exit code unknown: {why}"));
        assert_eq!(status.pid, 0);
    }
}

#[tokio::test]
async fn a_driver_that_dies_is_replaced_and_its_ports_are_given_back() {
    let mut vmd = Daemon::start().await;
    vmd.create("web", spec(&["lan"])).await.expect("create");
    let start = || StartVmRequest { name: "vms/web".into() };
    vmd.netd.break_once();
    let broken = Fault::from(vmd.client.start_vm(start()).await.expect_err("its driver died"));
    assert_eq!((broken.kind(), broken.reason()), (Kind::Unavailable, "ENDING"));
    // The next one answers for itself: what is not QEMU does not start, and the machine is FAILED.
    let other = Fault::from(vmd.client.start_vm(start()).await.expect_err("no QEMU"));
    assert_ne!(other.reason(), "ENDING", "{}", other.chain());
    let got = vmd.client.get_vm(GetVmRequest { name: "vms/web".into() }).await.expect("get").into_inner();
    assert_eq!(state(&got), VmState::Failed);
    assert!(vmd.netd.ports().is_empty());
    vmd.client.delete_vm(DeleteVmRequest { name: "vms/web".into() }).await.expect("delete");
}
