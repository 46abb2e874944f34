//! One client of both daemons, which notes what it is answered.

use integration_tests::{history::History, host::TestHost, objects::Operation, random::Random, raw::Daemon};
use proto::{
    netd::v1::{
        CreateNetworkRequest, CreatePortRequest, DeleteNetworkRequest, DeletePortRequest, GetNetworkRequest,
        GetPortRequest, ListNetworksRequest, ListPortsRequest, Network, NetworkMode, NetworkSpec, Port,
        PortSpec, UpdateNetworkRequest, UpdatePortRequest, network_service_client::NetworkServiceClient,
        port_service_client::PortServiceClient,
    },
    vmd::v1::{
        CreateVmRequest, DeleteVmRequest, GetVmRequest, ListVmsRequest, Nic, StartVmRequest, StopVmRequest,
        Vm, VmSpec, VmState, vm_service_client::VmServiceClient,
    },
};
use std::collections::HashMap;
use tokio::runtime::Runtime;
use tonic::{Code, Response, Status, transport::Channel};

/// The label that updates change.
const LABEL: &str = "storm";

/// A sort of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Network,
    Port,
    Machine,
}

/// An object's sort and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub Kind, pub &'static str);

impl Key {
    fn resource(self) -> String {
        match self.0 {
            Kind::Network => format!("networks/{}", self.1),
            Kind::Port => format!("networks/base/ports/{}", self.1),
            Kind::Machine => format!("vms/{}", self.1),
        }
    }
}

/// A connection to each daemon.
pub struct Client {
    runtime: Runtime,
    networks: NetworkServiceClient<Channel>,
    ports: PortServiceClient<Channel>,
    machines: VmServiceClient<Channel>,
}

fn labels(label: &str) -> HashMap<String, String> {
    let filled = (!label.is_empty()).then(|| (LABEL.to_owned(), label.to_owned()));
    filled.into_iter().collect()
}

/// Networks of different specs differ in their MTU, ports and machines in their MACs and vCPUs.
fn network(key: Key, spec: u64, label: &str) -> Network {
    let mtu = 1400 + u32::try_from(spec).expect("a small number");
    Network {
        name: key.resource(),
        labels: labels(label),
        spec: Some(NetworkSpec { mode: NetworkMode::Isolated.into(), mtu, ..Default::default() }),
        ..Default::default()
    }
}

fn port(key: Key, spec: u64, label: &str) -> Port {
    let last = key.1.bytes().last().unwrap_or_default();
    let mac = format!("52:54:00:77:{last:02x}:{spec:02x}");
    let spec = PortSpec { mac, ..Default::default() };
    Port { name: key.resource(), labels: labels(label), spec: Some(spec), ..Default::default() }
}

fn machine(key: Key, spec: u64) -> Vm {
    let vcpus = 1 + u32::try_from(spec).expect("a small number");
    let nics = vec![Nic { network: "networks/base".into(), ..Default::default() }];
    let spec = VmSpec { vcpus, memory_bytes: 64 << 20, nics, ..Default::default() };
    Vm { name: key.resource(), spec: Some(spec), ..Default::default() }
}

fn seen(uid: String, spec: u64, labels: &HashMap<String, String>, runs: Option<bool>) -> Operation {
    Operation::Seen { uid, spec, label: labels.get(LABEL).cloned().unwrap_or_default(), runs }
}

fn seen_network(network: Network) -> Operation {
    let mtu = network.spec.unwrap_or_default().mtu;
    seen(network.uid, u64::from(mtu - 1400), &network.labels, Some(false))
}

fn seen_port(port: Port) -> Operation {
    let mac = port.spec.unwrap_or_default().mac;
    let spec = mac.rsplit(':').next().and_then(|last| u64::from_str_radix(last, 16).ok());
    seen(port.uid, spec.unwrap_or_else(|| panic!("port with MAC {mac:?}")), &port.labels, Some(false))
}

fn seen_machine(vm: Vm) -> Operation {
    let runs = match vm.status.as_ref().map(|status| status.state()) {
        Some(VmState::Running) => Some(true),
        Some(VmState::Stopped) => Some(false),
        _ => None,
    };
    let vcpus = vm.spec.unwrap_or_default().vcpus;
    seen(vm.uid, u64::from(vcpus - 1), &vm.labels, runs)
}

impl Client {
    /// Connects at the first call.
    pub fn of(host: &TestHost) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (netd, vmd) = {
            let _inside = runtime.enter();
            (Daemon::Netd.channel(host), Daemon::Vmd.channel(host))
        };
        Self {
            networks: NetworkServiceClient::new(netd.clone()),
            ports: PortServiceClient::new(netd),
            machines: VmServiceClient::new(vmd),
            runtime,
        }
    }

    /// Connects now.
    pub fn connect(&mut self) {
        let Self { runtime, networks, machines, .. } = self;
        runtime.block_on(async {
            networks.list_networks(ListNetworksRequest::default()).await.expect("netd");
            machines.list_vms(ListVmsRequest::default()).await.expect("vmd");
        });
    }

    /// Creates; the uid.
    pub fn create(&mut self, key: Key, spec: u64) -> Result<String, Status> {
        self.create_at_once(key, vec![spec]).remove(0)
    }

    /// One create for each spec, all at once.
    pub fn create_at_once(&mut self, key: Key, specs: Vec<u64>) -> Vec<Result<String, Status>> {
        let Self { runtime, networks, ports, machines } = self;
        runtime.block_on(async {
            let tasks: Vec<_> = specs
                .into_iter()
                .map(|spec| {
                    let (mut networks, mut ports, mut machines) =
                        (networks.clone(), ports.clone(), machines.clone());
                    tokio::spawn(async move {
                        match key.0 {
                            Kind::Network => {
                                let network = Some(network(key, spec, ""));
                                let request = CreateNetworkRequest { network, validate_only: false };
                                networks.create_network(request).await.map(|r| r.into_inner().uid)
                            }
                            Kind::Port => {
                                let request = CreatePortRequest { port: Some(port(key, spec, "")) };
                                ports.create_port(request).await.map(|r| r.into_inner().uid)
                            }
                            Kind::Machine => {
                                let request = CreateVmRequest { vm: Some(machine(key, spec)) };
                                machines.create_vm(request).await.map(|r| r.into_inner().uid)
                            }
                        }
                    })
                })
                .collect();
            let mut answers = Vec::new();
            for task in tasks {
                answers.push(task.await.expect("call"));
            }
            answers
        })
    }

    fn get(&mut self, key: Key) -> Result<Operation, Status> {
        let Self { runtime, networks, ports, machines } = self;
        let name = key.resource();
        runtime.block_on(async {
            Ok(match key.0 {
                Kind::Network => {
                    seen_network(networks.get_network(GetNetworkRequest { name }).await?.into_inner())
                }
                Kind::Port => seen_port(ports.get_port(GetPortRequest { name }).await?.into_inner()),
                Kind::Machine => seen_machine(machines.get_vm(GetVmRequest { name }).await?.into_inner()),
            })
        })
    }

    /// Sets the label; machines have no updates.
    fn label(&mut self, key: Key, label: &str) -> Result<Operation, Status> {
        let Self { runtime, networks, ports, .. } = self;
        let update_mask = Some(prost_types::FieldMask { paths: vec!["labels".into()] });
        runtime.block_on(async {
            match key.0 {
                Kind::Network => {
                    let network =
                        Network { name: key.resource(), labels: labels(label), ..Default::default() };
                    let request =
                        UpdateNetworkRequest { network: Some(network), update_mask, expected_generation: 0 };
                    networks.update_network(request).await.map(drop)?;
                }
                Kind::Port => {
                    let port = Port { name: key.resource(), labels: labels(label), ..Default::default() };
                    let request = UpdatePortRequest { port: Some(port), update_mask, expected_generation: 0 };
                    ports.update_port(request).await.map(drop)?;
                }
                Kind::Machine => unreachable!("machines have no updates"),
            }
            Ok(Operation::Labelled(label.to_owned()))
        })
    }

    /// Starts or stops a machine.
    fn run(&mut self, key: Key, start: bool) -> Result<Operation, Status> {
        let Self { runtime, machines, .. } = self;
        let name = key.resource();
        runtime.block_on(async {
            if start {
                machines.start_vm(StartVmRequest { name }).await?;
                return Ok(Operation::Started);
            }
            machines.stop_vm(StopVmRequest { name, timeout: None, force: true }).await?;
            Ok(Operation::Stopped)
        })
    }

    /// Deletes.
    pub fn delete(&mut self, key: Key) -> Result<(), Status> {
        let Self { runtime, networks, ports, machines } = self;
        let name = key.resource();
        runtime.block_on(async {
            match key.0 {
                Kind::Network => networks
                    .delete_network(DeleteNetworkRequest { name, force: false })
                    .await
                    .map(Response::into_inner)
                    .map(drop),
                Kind::Port => {
                    let request = DeletePortRequest { name, uid: String::new() };
                    ports.delete_port(request).await.map(drop)
                }
                Kind::Machine => machines.delete_vm(DeleteVmRequest { name }).await.map(drop),
            }
        })
    }

    /// Deletes what may be there, and may run.
    pub fn remove(&mut self, key: Key) {
        let there = |result: Result<(), Status>| match result {
            Ok(()) => {}
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{key:?}: {status:?}"),
        };
        if key.0 == Kind::Machine {
            there(self.run(key, false).map(drop));
        }
        there(self.delete(key));
    }

    /// Everything of one sort, as its list has it.
    fn list(&mut self, kind: Kind) -> Result<HashMap<String, Operation>, Status> {
        let Self { runtime, networks, ports, machines } = self;
        runtime.block_on(async {
            Ok(match kind {
                Kind::Network => {
                    let list = networks.list_networks(ListNetworksRequest::default()).await?.into_inner();
                    let storm = list.networks.into_iter().filter(|network| network.name != "networks/base");
                    storm.map(|network| (network.name.clone(), seen_network(network))).collect()
                }
                Kind::Port => {
                    let request = ListPortsRequest { parent: "networks/base".into(), ..Default::default() };
                    let list = ports.list_ports(request).await?.into_inner();
                    // Those of machines have other names.
                    let storm = list.ports.into_iter().filter(|port| port.name.contains("/ports/p"));
                    storm.map(|port| (port.name.clone(), seen_port(port))).collect()
                }
                Kind::Machine => {
                    let list = machines.list_vms(ListVmsRequest::default()).await?.into_inner();
                    list.vms.into_iter().map(|vm| (vm.name.clone(), seen_machine(vm))).collect()
                }
            })
        })
    }

    /// One call by chance, noted.
    pub fn act(&mut self, history: &History<Key, Operation>, keys: &[Key], random: &mut Random) {
        let key = *random.of(keys);
        let begin = history.begin();
        let spec = random.next() % 2;
        let asked;
        let answer = match (key.0, random.below(10)) {
            (kind, 0) => {
                let list = self.list(kind);
                let mut list = list.unwrap_or_else(|status| panic!("list of {kind:?}: {status:?}"));
                for key in keys.iter().filter(|key| key.0 == kind) {
                    let operation = list.remove(&key.resource()).unwrap_or(Operation::Missing);
                    history.note(*key, begin, operation);
                }
                assert!(list.is_empty(), "nobody made {list:?}");
                return;
            }
            (_, 1 | 2) => {
                asked = "get";
                self.get(key)
            }
            (_, 3 | 4) => {
                asked = "create";
                match self.create(key, spec) {
                    Err(status) if status.code() == Code::AlreadyExists => Ok(Operation::Exists(spec)),
                    answer => answer.map(|uid| Operation::Created(spec, uid)),
                }
            }
            (_, 5 | 6) => {
                asked = "delete";
                self.delete(key).map(|()| Operation::Deleted)
            }
            (Kind::Machine, choice) => {
                asked = if choice < 9 { "start" } else { "stop" };
                self.run(key, choice < 9)
            }
            (_, _) => {
                asked = "update";
                let label = format!("{}", random.below(3));
                self.label(key, &label)
            }
        };
        let operation = answer.unwrap_or_else(|status| match status.code() {
            Code::NotFound => Operation::Missing,
            Code::Aborted => Operation::Busy,
            Code::FailedPrecondition if key.0 == Kind::Machine => Operation::Running,
            _ => panic!("{asked} of {key:?}: {status:?}"),
        });
        history.note(key, begin, operation);
    }
}
