//! A whole netd on a kernel in memory, that is used for many inputs.

use super::Outcome;
use crate::{
    kernel::{
        Action, Element, Kernel as _, LinkKind, Scope,
        fake::{FakeKernel, Host},
    },
    model::State,
    reconciler::{GroupChange, Reconciler},
    services::Services,
};
use serde_json::{Map, Value};
use shared::{
    fault::{Fault, Kind},
    store::{Op, Store},
};
use std::future::Future;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Kinds of records, as in the reconciler.
const KINDS: [&str; 6] = ["network", "port", "forward", "group", "sysctl", "reservation"];
/// Links that were there before netd.
const FOREIGN: [&str; 4] = ["lo", "eth0", "eth1", "br-lan"];

/// One netd, its host and its disk.
pub struct Netd {
    runtime: Runtime,
    reconciler: Reconciler<FakeKernel>,
    kernel: FakeKernel,
    store: Store,
    _folder: TempDir,
}

thread_local! {
    static NETD: Netd = Netd::new();
}

/// A host with a NIC that has an address, and a bridge of somebody else.
fn host() -> FakeKernel {
    let kernel = FakeKernel::new();
    let eth1 = || "eth1".parse().expect("a name");
    let net = "192.0.2.10/24".parse().expect("a net");
    let address = crate::model::Address { net, broadcast: None, no_prefix_route: false, valid_seconds: None };
    kernel.prepare(&[Action::SetUp(eth1(), true), Action::AddAddress(eth1(), address)]);
    kernel.meddle(|host| host.add_link(&"br-lan".parse().expect("a name"), LinkKind::Bridge).up = true);
    kernel
}

impl Netd {
    fn new() -> Self {
        // In memory where that can be: what is durable is not the question here.
        let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = Store::open(&folder.path().join("state")).expect("a store");
        let kernel = host();
        let reconciler = runtime.block_on(Self::start(&kernel, &store)).expect("a reconciler");
        Self { runtime, reconciler, kernel, store, _folder: folder }
    }

    async fn start(kernel: &FakeKernel, store: &Store) -> Result<Reconciler<FakeKernel>, Fault> {
        let reconciler = Reconciler::load(kernel.clone(), store.clone(), Services::none()).await?;
        reconciler.converge().await?;
        Ok(reconciler)
    }

    /// The one of this thread.
    pub fn with<T>(work: impl FnOnce(&Self) -> T) -> T {
        NETD.with(work)
    }

    /// Its reconciler.
    pub fn reconciler(&self) -> &Reconciler<FakeKernel> {
        &self.reconciler
    }

    /// Runs to the end.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The host, without what differs from one network to the next of the same name.
    pub fn picture(&self) -> Host {
        let mut host = self.kernel.picture();
        for link in host.links.values_mut().filter(|l| l.kind == LinkKind::Bridge && !l.alias.is_empty()) {
            link.mac = None;
        }
        if let Some(tables) = &mut host.tables {
            tables.elements.0.retain(|element| !matches!(element, Element::BridgeMac(..)));
        }
        host
    }

    /// Everything recorded, in a form that compares.
    pub fn records(&self) -> [usize; 5] {
        let (desired, states) = self.reconciler.records();
        let generations = desired.networks.values().map(|network| network.generation);
        let generations = generations.chain(desired.ports.values().map(|port| port.generation));
        let generations = generations.chain(desired.groups.values().map(|group| group.generation));
        let generations = usize::try_from(generations.sum::<i64>()).expect("they count from 1");
        [
            desired.networks.len() + desired.ports.len() + desired.forwards.len() + desired.groups.len(),
            desired.reservations.len(),
            desired.saved.len(),
            states.len(),
            generations,
        ]
    }

    /// Nothing is left to do, and every object says so.
    ///
    /// # Panics
    /// If not.
    pub fn assert_converged(&self) {
        let observed = self.run(self.kernel.observe(&Scope::All)).expect("the fake can be read");
        let (desired, states) = self.reconciler.records();
        assert_eq!(desired.plan_sysctls(&observed), []);
        for network in desired.networks.values() {
            assert_eq!(desired.plan_network(network, &observed).ok(), Some(vec![]));
            assert_eq!(states.get(&network.resource()), Some(&State::Ready));
        }
        for port in desired.ports.values() {
            assert_eq!(desired.plan_port(port, &observed).ok(), Some(vec![]));
            assert_eq!(states.get(&port.resource()), Some(&State::Ready));
        }
        let digest = observed.tables.as_ref().and_then(|tables| tables.digest.as_deref());
        assert_eq!(desired.plan_tables(&observed, digest.or(Some("rules 0"))).ok(), Some(vec![]));
    }

    /// Deletes everything.
    ///
    /// # Panics
    /// If something cannot be deleted.
    pub fn clear(&self) {
        // It remembers each action since then.
        self.kernel.heal();
        let (desired, _) = self.reconciler.records();
        self.run(async {
            for network in desired.networks.into_keys() {
                self.reconciler.delete_network(network, true).await.expect("a network can be deleted");
            }
            for group in desired.groups.keys() {
                let _ = self.reconciler.delete_group(group.clone()).await;
            }
        });
        // One that another's rule names goes after that one; two may name each other.
        let (desired, _) = self.reconciler.records();
        for group in desired.groups.into_keys() {
            let rules = GroupChange { rules: Some(Vec::new()), ..GroupChange::default() };
            self.run(self.reconciler.update_group(group, rules)).expect("a group's rules can be taken away");
        }
        let (desired, _) = self.reconciler.records();
        for group in desired.groups.into_keys() {
            self.run(self.reconciler.delete_group(group)).expect("a group can be deleted");
        }
    }

    /// The records as they are on disk: by kind, then by id.
    pub fn documents(&self) -> Value {
        let mut kinds = Map::new();
        for kind in KINDS {
            let loaded = self.run(self.store.load::<Value>(kind)).expect("records");
            kinds.insert(kind.to_owned(), Value::Object(loaded.records.into_iter().collect()));
        }
        Value::Object(kinds)
    }
}

/// Records by kind and id, as a damaged disk or another version may give them back: netd starts with
/// them, and looks again.
///
/// # Errors
/// If none can be read.
pub fn netd_records(data: &[u8]) -> Outcome {
    let document: Value = serde_json::from_slice(data).map_err(|_| "no JSON")?;
    let of = |kind: &str| document.get(kind).and_then(Value::as_object).into_iter().flatten();
    Netd::with(|netd| {
        let mut ops = Vec::new();
        for kind in KINDS {
            for (id, record) in of(kind) {
                ops.push(Op::put(kind, id, record).map_err(|fault| fault.chain())?);
            }
        }
        netd.run(async {
            netd.store.commit(ops).await.map_err(|fault| fault.chain())?;
            let kernel = host();
            let outcome = async {
                let refused = |fault: Fault| {
                    assert_ne!(fault.kind(), Kind::Internal, "{}", fault.chain());
                    fault.reason().to_owned()
                };
                let first = Netd::start(&kernel, &netd.store).await.map_err(refused)?;
                first.converge().await.map_err(refused)?;
                let (desired, _) = first.records();
                kernel.meddle(|host| {
                    for name in FOREIGN {
                        assert!(host.links.contains_key(&name.parse().expect("a name")), "`{name}` is gone");
                    }
                });
                // Only what says that it was being deleted may go.
                let mut deleting = 0;
                let mut all = 0;
                for kind in ["network", "port", "forward", "group"] {
                    for (_, record) in of(kind) {
                        all += 1;
                        deleting += usize::from(record.get("deleting") == Some(&Value::Bool(true)));
                    }
                }
                let kept = desired.networks.len()
                    + desired.ports.len()
                    + desired.forwards.len()
                    + desired.groups.len();
                let lost = first.warnings().len() + kept;
                if deleting == 0 {
                    assert!(lost >= all, "{all} records, {kept} kept: {:?}", first.warnings());
                }
                if kept == 0 { Err("nothing can be read".to_owned()) } else { Ok(()) }
            };
            let outcome = outcome.await;
            let mut ops = Vec::new();
            for kind in KINDS {
                let loaded = netd.store.load::<Value>(kind).await.map_err(|fault| fault.chain())?;
                for (id, _) in loaded.records {
                    // One that could not be read is deleted in no other way.
                    if netd.store.forget(&format!("{kind} {id}")).await.is_err() {
                        ops.push(Op::delete(kind, id));
                    }
                }
            }
            netd.store.commit(ops).await.map_err(|fault| fault.chain())?;
            outcome
        })
    })
}
