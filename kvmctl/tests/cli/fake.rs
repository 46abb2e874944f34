//! Both daemons' services with scripted answers, on a Unix socket in a folder that goes with the test, and kvmctl
//! run against them.

use proto::{netd::v1 as netd, vmd::v1 as vmd};
use shared::fault::{Fault, Kind};
use std::{
    pin::Pin,
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{net::UnixListener, runtime::Runtime, sync::mpsc};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Reply<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the guest said before anybody attached.
pub const RECORD: &str = "[    0.000000] Linux\nlogin: ";

pub struct Fake {
    dir: tempfile::TempDir,
    _runtime: Runtime,
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _context = runtime.enter();
            UnixListener::bind(dir.path().join("sock")).unwrap()
        };
        let server = Server::builder()
            .add_service(netd::network_service_server::NetworkServiceServer::new(Networks::default()))
            .add_service(netd::port_service_server::PortServiceServer::new(Ports::default()))
            .add_service(netd::host_service_server::HostServiceServer::new(NetdHost))
            .add_service(netd::diagnose_service_server::DiagnoseServiceServer::new(Diagnosis::default()))
            .add_service(vmd::vm_service_server::VmServiceServer::new(Vms::default()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(server);
        Self { dir, _runtime: runtime }
    }

    /// `kvmctl` with these arguments, not started yet.
    pub fn command(&self, arguments: &str) -> Command {
        let address = format!("unix://{}/sock", self.dir.path().display());
        let mut command = kvmctl(arguments);
        command.env("KVMCTL_NETD", &address).env("KVMCTL_VMD", &address);
        command
    }

    pub fn run(&self, arguments: &str) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }
}

/// `kvmctl` in an environment that does not depend on the caller's.
pub fn kvmctl(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvmctl"));
    command.args(arguments.split_whitespace()).env_clear().env("COLUMNS", "80").stdin(Stdio::null());
    command
}

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Networks that can be created and listed, a page holding two.
#[derive(Default)]
struct Networks(Mutex<Vec<netd::Network>>);

#[tonic::async_trait]
impl netd::network_service_server::NetworkService for Networks {
    type WatchNetworksStream = Items<netd::WatchNetworksResponse>;

    async fn watch_networks(
        &self,
        _: Request<netd::WatchNetworksRequest>,
    ) -> Reply<Self::WatchNetworksStream> {
        unused()
    }

    async fn get_network(&self, request: Request<netd::GetNetworkRequest>) -> Reply<netd::Network> {
        let name = request.into_inner().name;
        let found = self.0.lock().unwrap().iter().find(|network| network.name == name).cloned();
        found.map(Response::new).ok_or_else(|| Fault::new(Kind::NotFound, "", "no such network").into())
    }

    async fn list_networks(
        &self,
        request: Request<netd::ListNetworksRequest>,
    ) -> Reply<netd::ListNetworksResponse> {
        const PAGE: usize = 2;
        let start: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let all = self.0.lock().unwrap();
        let networks: Vec<_> = all.iter().skip(start).take(PAGE).cloned().collect();
        let more = start + PAGE < all.len();
        let next_page_token = if more { (start + PAGE).to_string() } else { String::new() };
        Ok(Response::new(netd::ListNetworksResponse { networks, next_page_token }))
    }

    async fn create_network(&self, request: Request<netd::CreateNetworkRequest>) -> Reply<netd::Network> {
        assert!(request.metadata().contains_key("grpc-timeout"), "every call has a deadline");
        let mut network = request.into_inner().network.unwrap();
        network.uid = "4f0c".into();
        network.generation = 1;
        network.create_time = Some(prost_types::Timestamp { seconds: 1_795_556_690, nanos: 5_000_000 });
        network.status = Some(netd::NetworkStatus {
            observed_generation: 1,
            state: netd::ObjectState::Ready.into(),
            bridge: "kvb-lan".into(),
            ipv4_cidr: "192.168.100.1/24".into(),
            mtu: 1500,
            warnings: vec!["eth0 is managed by DHCP".into()],
            ..Default::default()
        });
        self.0.lock().unwrap().push(network.clone());
        Ok(Response::new(network))
    }

    async fn update_network(&self, _: Request<netd::UpdateNetworkRequest>) -> Reply<netd::Network> {
        unused()
    }

    async fn list_leases(
        &self,
        request: Request<netd::ListLeasesRequest>,
    ) -> Reply<netd::ListLeasesResponse> {
        let port = format!("{}/ports/web-0", request.into_inner().parent);
        let lease = netd::Lease {
            address: "192.168.100.2".into(),
            mac: "52:54:00:00:00:01".into(),
            hostname: "www".into(),
            expire_time: Some(prost_types::Timestamp { seconds: 1_795_556_690, nanos: 0 }),
            port,
        };
        let of_nobody = netd::Lease { address: "fd00:1::2".into(), ..Default::default() };
        Ok(Response::new(netd::ListLeasesResponse { leases: vec![lease, of_nobody] }))
    }

    async fn delete_network(
        &self,
        request: Request<netd::DeleteNetworkRequest>,
    ) -> Reply<netd::DeleteNetworkResponse> {
        if request.get_ref().force {
            return Ok(Response::new(netd::DeleteNetworkResponse {}));
        }
        let traceparent = request.metadata().get("traceparent").unwrap().to_str().unwrap().to_owned();
        Err(Fault::new(Kind::FailedPrecondition, "IN_USE", "cannot delete network `lan`")
            .cause(&std::io::Error::other("it has 2 ports"))
            .cause(&std::io::Error::other(traceparent))
            .hint("delete them first, or use --force")
            .into())
    }
}

/// Ports of machines, whose guests take their time.
#[derive(Default)]
struct Ports {
    looks: AtomicUsize,
}

#[tonic::async_trait]
impl netd::port_service_server::PortService for Ports {
    type WatchPortsStream = Items<netd::WatchPortsResponse>;

    async fn watch_ports(&self, _: Request<netd::WatchPortsRequest>) -> Reply<Self::WatchPortsStream> {
        unused()
    }

    async fn get_port(&self, request: Request<netd::GetPortRequest>) -> Reply<netd::Port> {
        use netd::AddressEvidence::{Observed, Static};
        let name = request.into_inner().name;
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        if name.ends_with("/absent-0") {
            return Err(Fault::new(Kind::NotFound, "PORT_NOT_FOUND", "there is no such port").into());
        }
        let mut own = vec![Static.into()];
        if name.ends_with("/late-0") && looks >= 2 {
            own.push(Observed.into());
        }
        let address = |address: &str, evidence| netd::PortAddress { address: address.into(), evidence };
        let addresses = vec![address("10.0.0.2", own), address("fe80::1", vec![Observed.into()])];
        let status = netd::PortStatus { addresses, ..Default::default() };
        Ok(Response::new(netd::Port { name, status: Some(status), ..Default::default() }))
    }
    async fn list_ports(&self, _: Request<netd::ListPortsRequest>) -> Reply<netd::ListPortsResponse> {
        unused()
    }
    async fn create_port(&self, _: Request<netd::CreatePortRequest>) -> Reply<netd::Port> {
        unused()
    }
    async fn update_port(&self, _: Request<netd::UpdatePortRequest>) -> Reply<netd::Port> {
        unused()
    }
    async fn delete_port(&self, _: Request<netd::DeletePortRequest>) -> Reply<netd::DeletePortResponse> {
        unused()
    }
}

/// Docker is in the way, until somebody has asked why.
#[derive(Default)]
struct Diagnosis(AtomicUsize);

#[tonic::async_trait]
impl netd::diagnose_service_server::DiagnoseService for Diagnosis {
    async fn diagnose(&self, _: Request<netd::DiagnoseRequest>) -> Reply<netd::DiagnoseResponse> {
        if self.0.load(Ordering::Relaxed) > 0 {
            return Ok(Response::new(netd::DiagnoseResponse::default()));
        }
        let docker = netd::Finding {
            severity: netd::Severity::Error.into(),
            reason: "RULE_DROPS".into(),
            message: "a rule of another program drops TCP over IPv4 from guests of `lan` to the outside"
                .into(),
            location: "table ip filter, chain FORWARD, policy drop".into(),
            program: "Docker".into(),
            fix: "iptables -I DOCKER-USER -i kvb-lan -j ACCEPT\niptables -I DOCKER-USER -o kvb-lan -j ACCEPT"
                .into(),
            networks: vec!["networks/lan".into()],
            ..Default::default()
        };
        let warning = netd::Finding {
            severity: netd::Severity::Warning.into(),
            reason: "HOST_WARNING".into(),
            message: "a record cannot be read\u{7}".into(),
            ..Default::default()
        };
        Ok(Response::new(netd::DiagnoseResponse { findings: vec![docker, warning] }))
    }

    async fn explain(&self, request: Request<netd::ExplainRequest>) -> Reply<netd::ExplainResponse> {
        let asked = request.into_inner();
        self.0.fetch_add(1, Ordering::Relaxed);
        let verdict = if asked.from_peer { netd::PacketVerdict::Drop } else { netd::PacketVerdict::Pass };
        let step = |stage: &str, verdict: netd::PacketVerdict, fix: &str| netd::Step {
            stage: stage.into(),
            verdict: verdict.into(),
            detail: format!("{}, {:?}", asked.peer, asked.protocol()),
            program: if fix.is_empty() { String::new() } else { "Docker".into() },
            fix: fix.into(),
            ..Default::default()
        };
        let fix = if asked.from_peer { "iptables -I DOCKER-USER -o kvb-lan -j ACCEPT" } else { "" };
        Ok(Response::new(netd::ExplainResponse {
            steps: vec![step("port", netd::PacketVerdict::Pass, ""), step("forward", verdict, fix)],
            verdict: verdict.into(),
            port: "networks/lan/ports/web-0".into(),
            source: "10.61.0.2".into(),
            destination: asked.peer.clone(),
            trace: (asked.trace_seconds > 0).then(|| netd::Trace {
                packet_count: 2,
                drop_count: 1,
                lines: vec!["ip filter FORWARD policy drop".into()],
            }),
        }))
    }
}

struct NetdHost;

#[tonic::async_trait]
impl netd::host_service_server::HostService for NetdHost {
    async fn get_host(&self, _: Request<netd::GetHostRequest>) -> Reply<netd::Host> {
        Ok(Response::new(netd::Host { version: "1.2.3".into(), ..Default::default() }))
    }
}

/// Machines whose name says how they behave.
#[derive(Default)]
struct Vms {
    watches: AtomicUsize,
}

fn vm(name: &str, state: vmd::VmState) -> vmd::Vm {
    let error = if state == vmd::VmState::Failed { "cannot open disk `/a.img`" } else { "" };
    let plugged = ["vms/late", "vms/silent", "vms/absent", "vms/dies"].contains(&name);
    let short = name.trim_start_matches("vms/");
    let nic = vmd::NicStatus {
        port: format!("networks/lan/ports/{short}-0"),
        interface: "kvp0".into(),
        ipv4_address: "10.0.0.2".into(),
        ..Default::default()
    };
    let wanted = vmd::Nic { network: "networks/lan".into(), ..Default::default() };
    vmd::Vm {
        name: name.into(),
        spec: Some(vmd::VmSpec {
            vcpus: 1,
            memory_bytes: 512 << 20,
            nics: if plugged { vec![wanted] } else { vec![] },
            ..Default::default()
        }),
        status: Some(vmd::VmStatus {
            state: state.into(),
            error: error.into(),
            nics: if plugged { vec![nic] } else { vec![] },
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn unused<T>() -> Reply<T> {
    Err(Status::unimplemented("no test uses it"))
}

#[tonic::async_trait]
impl vmd::vm_service_server::VmService for Vms {
    type WatchVmsStream = Items<vmd::WatchVmsResponse>;

    async fn watch_vms(&self, _: Request<vmd::WatchVmsRequest>) -> Reply<Self::WatchVmsStream> {
        unused()
    }

    type WatchVmStream = Items<vmd::Vm>;
    type ReadConsoleLogStream = Items<vmd::ConsoleChunk>;
    type AttachConsoleStream = Items<vmd::ConsoleChunk>;

    async fn watch_vm(&self, request: Request<vmd::WatchVmRequest>) -> Reply<Self::WatchVmStream> {
        use vmd::VmState::{Failed, Running, Starting, Stopped};
        let name = request.into_inner().name;
        let first = self.watches.fetch_add(1, Ordering::Relaxed) == 0;
        let (states, goes_on) = match name.as_str() {
            "vms/up" | "vms/late" | "vms/silent" | "vms/absent" => (vec![Running], true),
            "vms/dies" if first => (vec![Starting, Running], true),
            "vms/dies" => (vec![Running, Failed], true),
            "vms/down" => (vec![Stopped], true),
            "vms/slow" => (vec![Starting], true),
            "vms/broken" => (vec![Starting, Failed], true),
            // vmd ends in the middle of the first watch.
            "vms/restart" if first => (vec![Starting], false),
            "vms/restart" => (vec![Starting, Running], true),
            _ => return Err(Fault::new(Kind::NotFound, "NOT_FOUND", "there is no vm of that name").into()),
        };
        let sent = tokio_stream::iter(states.into_iter().map(move |state| Ok(vm(&name, state))));
        Ok(Response::new(match goes_on {
            true => Box::pin(sent.chain(tokio_stream::pending())),
            false => Box::pin(sent),
        }))
    }

    async fn read_console_log(
        &self,
        request: Request<vmd::ReadConsoleLogRequest>,
    ) -> Reply<Self::ReadConsoleLogStream> {
        // In two pieces, the first cut inside of a line.
        let chunks = [(100, &RECORD[..9]), (109, &RECORD[9..])]
            .map(|(offset, text)| Ok(vmd::ConsoleChunk { offset, data: text.into() }));
        let sent = tokio_stream::iter(chunks);
        Ok(Response::new(match request.into_inner().follow {
            true => Box::pin(sent.chain(tokio_stream::pending())),
            false => Box::pin(sent),
        }))
    }

    /// Answers in capitals; ends at `!`.
    async fn attach_console(
        &self,
        request: Request<Streaming<vmd::AttachConsoleRequest>>,
    ) -> Reply<Self::AttachConsoleStream> {
        use vmd::attach_console_request::Message;
        let mut input = request.into_inner();
        let Some(Message::Open(open)) = input.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message is not open"));
        };
        if open.name == "vms/busy" {
            return Err(Fault::new(Kind::FailedPrecondition, "BUSY", "somebody else writes").into());
        }
        if open.offset != Some(100 + RECORD.len() as u64) {
            return Err(Status::invalid_argument(format!("wrong offset {:?}", open.offset)));
        }
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok(Some(message)) = input.message().await {
                let Some(Message::Input(data)) = message.message else { return };
                let ended = data.contains(&b'!');
                let chunk = vmd::ConsoleChunk { offset: 0, data: data.to_ascii_uppercase() };
                if sender.send(Ok(chunk)).await.is_err() || ended {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn start_vm(&self, _: Request<vmd::StartVmRequest>) -> Reply<vmd::Vm> {
        Err(Fault::new(Kind::NotFound, "NO_DISK", "cannot open disk `/a.img`").into())
    }
    async fn create_vm(&self, request: Request<vmd::CreateVmRequest>) -> Reply<vmd::Vm> {
        let mut vm = request.into_inner().vm.unwrap();
        vm.status = Some(vmd::VmStatus { state: vmd::VmState::Stopped.into(), ..Default::default() });
        Ok(Response::new(vm))
    }
    async fn get_vm(&self, request: Request<vmd::GetVmRequest>) -> Reply<vmd::Vm> {
        Ok(Response::new(vm(&request.into_inner().name, vmd::VmState::Running)))
    }
    async fn list_vms(&self, _: Request<vmd::ListVmsRequest>) -> Reply<vmd::ListVmsResponse> {
        unused()
    }
    async fn delete_vm(&self, _: Request<vmd::DeleteVmRequest>) -> Reply<vmd::DeleteVmResponse> {
        unused()
    }
    async fn stop_vm(&self, _: Request<vmd::StopVmRequest>) -> Reply<vmd::Vm> {
        unused()
    }
    async fn reset_vm(&self, _: Request<vmd::ResetVmRequest>) -> Reply<vmd::Vm> {
        unused()
    }
    async fn pause_vm(&self, _: Request<vmd::PauseVmRequest>) -> Reply<vmd::Vm> {
        unused()
    }
    async fn resume_vm(&self, _: Request<vmd::ResumeVmRequest>) -> Reply<vmd::Vm> {
        unused()
    }
}
