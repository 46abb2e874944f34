//! The reconciler on a kernel in memory and a real store: what it promises when steps fail or the process ends.

use super::*;
use crate::{
    kernel::{
        LinkKind,
        fake::{Effect, FakeKernel, Host},
    },
    model::{
        Address, Mode, NetworkSpec, Owner, PortSpec, Rate, Route,
        fixture::{link, name, network_spec as spec, port_spec},
    },
    plan::{BRIDGE_NF, FORWARD4, FORWARD6},
};
use shared::{
    access::{Caller, Quota, Rights},
    mac::Mac,
};
use std::{
    future::Future,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const EFFECTS: [Effect; 2] = [Effect::None, Effect::Done];

fn network(name_: &str, spec: NetworkSpec) -> NewNetwork {
    NewNetwork { name: name(name_), spec, labels: BTreeMap::new() }
}

fn rate(bits_per_second: u64) -> Rate {
    Rate { bits_per_second, burst_bytes: 20_000 }
}

fn owner(uid: u32) -> Owner {
    Owner { uid, tenant: Some(String::new()) }
}

/// A port; one of the name `web` is limited both ways.
fn port(network: &str, port: &str) -> NewPort {
    let limit = |bits| (port == "web").then(|| rate(bits));
    NewPort {
        network: name(network),
        name: name(port),
        spec: PortSpec { rate_in: limit(100_000_000), rate_out: limit(20_000_000), ..port_spec() },
        labels: BTreeMap::new(),
        owner: owner(1000),
        by_admin: false,
        quota: Quota::default(),
    }
}

fn key(network: &str, port: &str) -> PortKey {
    (name(network), name(port))
}

fn address(net: &str) -> Address {
    Address { net: net.parse().unwrap(), broadcast: None, no_prefix_route: false, valid_seconds: None }
}

fn route(to: &str, via: Option<&str>, metric: Option<u32>) -> Route {
    Route {
        destination: to.parse().unwrap(),
        gateway: via.map(|via| via.parse().unwrap()),
        source: None,
        metric,
        table: 254,
        protocol: 4,
        scope: 0,
        mtu: None,
        on_link: false,
    }
}

/// A host whose `eth1` is its way to the world, beside an `eth0` on the same LAN, with every sort of address.
fn host() -> FakeKernel {
    let kernel = FakeKernel::new();
    let mut actions = vec![
        Action::SetUp(link("eth0"), true),
        Action::AddAddress(link("eth0"), address("192.0.2.11/24")),
        Action::SetUp(link("eth1"), true),
    ];
    for net in ["192.0.2.10/24", "192.0.2.12/24", "2001:db8::10/64", "fe80::10/64"] {
        actions.push(Action::AddAddress(link("eth1"), address(net)));
    }
    // As NetworkManager does it: no route by the kernel, and one of its own in the kernel's name.
    for (net, subnet, metric) in
        [("198.51.100.10/24", "198.51.100.0/24", Some(100)), ("198.51.101.10/24", "198.51.101.0/24", None)]
    {
        let managed = Address { no_prefix_route: true, ..address(net) };
        actions.push(Action::AddAddress(link("eth1"), managed));
        let connected = Route { protocol: 2, scope: 253, ..route(subnet, None, metric) };
        actions.push(Action::AddRoute(link("eth1"), connected));
    }
    for route in [
        route("0.0.0.0/0", Some("192.0.2.1"), None),
        Route {
            source: Some("192.0.2.12".parse().unwrap()),
            ..route("203.0.113.0/24", Some("192.0.2.9"), None)
        },
        // Two routers of the same metric, as with router advertisements.
        Route { protocol: 9, ..route("::/0", Some("fe80::1"), Some(1024)) },
        Route { protocol: 9, ..route("::/0", Some("fe80::2"), Some(1024)) },
    ] {
        actions.push(Action::AddRoute(link("eth1"), route));
    }
    // Somebody else's, of the same destination and metric.
    actions.push(Action::AddRoute(link("eth0"), route("0.0.0.0/0", Some("192.0.2.1"), None)));
    kernel.prepare(&actions);
    kernel.meddle(|host| {
        host.add_link(&link("br-lan"), LinkKind::Bridge).up = true;
    });
    kernel
}

/// A network of every sort.
fn every_mode() -> Vec<NewNetwork> {
    let ipv6 = Some("fd00:1::1/64".parse().unwrap());
    vec![
        network("lab", spec(Mode::Isolated)),
        network("lan", spec(Mode::Nat)),
        network("lan6", NetworkSpec { ipv6, uplink: Some(link("eth1")), ..spec(Mode::Nat) }),
        network("wan", NetworkSpec { ipv6, ..spec(Mode::Routed) }),
        network("own", NetworkSpec { bridge: Some(link("br-lan")), ..spec(Mode::Bridged) }),
        network("nic", NetworkSpec { uplink: Some(link("eth1")), ..spec(Mode::Bridged) }),
    ]
}

/// The records as they are on disk.
type Disk = [Vec<(String, serde_json::Value)>; 3];

/// One netd process: its own runtime, so that dropping it ends every task as a kill does.
struct Process {
    runtime: Runtime,
    reconciler: Option<Reconciler<FakeKernel>>,
    kernel: FakeKernel,
}

impl Process {
    fn start(dir: &Path, kernel: &FakeKernel) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = reopen(dir);
        kernel.heal();
        let reconciler = runtime.block_on(Reconciler::load(kernel.clone(), store, Services::none())).unwrap();
        let process = Self { runtime, reconciler: Some(reconciler), kernel: kernel.clone() };
        process.run(process.netd().converge()).unwrap();
        process
    }

    fn netd(&self) -> &Reconciler<FakeKernel> {
        self.reconciler.as_ref().expect("only dropping takes it")
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn create(&self, new: &NewNetwork) -> Result<NetworkView, Fault> {
        self.run(self.netd().create_network(new.clone(), false))
    }

    fn create_port(&self, new: &NewPort) -> Result<PortView, Fault> {
        self.run(self.netd().create_port(new.clone()))
    }

    fn delete(&self, network: &str, force: bool) -> Result<(), Fault> {
        self.run(self.netd().delete_network(name(network), force))
    }

    fn delete_port(&self, network: &str, port: &str) -> Result<(), Fault> {
        self.run(self.netd().delete_port(key(network, port), None, (0, Quota::default())))
    }

    fn converge(&self) {
        self.run(self.netd().converge()).unwrap();
    }

    fn disk(&self) -> Disk {
        let store = &self.netd().0.store;
        [NETWORK, PORT, SYSCTL].map(|kind| self.run(store.load(kind)).unwrap().records)
    }

    /// Nothing is left to do, and every object says so.
    fn assert_converged(&self) {
        let observed = self.run(self.kernel.observe(&Scope::All)).unwrap();
        let records = self.netd().read();
        let desired = &records.desired;
        assert_eq!(desired.plan_sysctls(&observed), []);
        for network in desired.networks.values() {
            assert!(!network.deleting);
            assert_eq!(desired.plan_network(network, &observed).unwrap(), []);
            assert_eq!(records.states.get(&network.resource()), Some(&State::Ready));
        }
        for port in desired.ports.values() {
            assert!(!port.deleting);
            assert_eq!(desired.plan_port(port, &observed).unwrap(), []);
            assert_eq!(records.states.get(&port.resource()), Some(&State::Ready));
        }
        for forward in desired.forwards.values() {
            assert!(!forward.deleting);
            assert_eq!(records.states.get(&forward.resource()), Some(&State::Ready));
        }
        assert_eq!(desired.plan_tables(&observed, Some("rules 0")).unwrap(), []);
        assert_eq!(
            records.states.len(),
            desired.networks.len() + desired.ports.len() + desired.forwards.len(),
            "no state outlives its object"
        );
    }

    /// Does `work` until the step where the kernel hangs, or to its end if it does not.
    fn until_killed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.run(async {
            tokio::select! {
                result = work => Some(result),
                () = self.kernel.hung() => None,
            }
        })
    }
}

/// The thread of a store lets go of the lock a moment after its last handle is dropped.
fn reopen(dir: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Store::open(dir) {
            Ok(store) => return store,
            Err(fault) => assert!(fault.reason() == "STATE_LOCKED" && Instant::now() < deadline, "{fault}"),
        }
        std::thread::yield_now();
    }
}

/// What differs from one creation of a network to the next although it is the same: the MAC of a bridge of ours.
fn nameless(mut host: Host) -> Host {
    for link in host.links.values_mut().filter(|l| l.kind == LinkKind::Bridge && !l.alias.is_empty()) {
        link.mac = None;
    }
    if let Some(tables) = &mut host.tables {
        tables.elements.0.retain(|element| !matches!(element, crate::kernel::Element::BridgeMac(..)));
    }
    host
}

fn fixture() -> (TempDir, FakeKernel, Process) {
    let dir = tempfile::tempdir().unwrap();
    let kernel = host();
    let process = Process::start(dir.path(), &kernel);
    (dir, kernel, process)
}

mod broken;
mod events;
mod failing;
mod forwarding;
mod groups;
mod ordinary;
mod real;
mod restart;
mod updating;
