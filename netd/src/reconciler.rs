//! The one writer: commits what was asked, and brings the kernel to it.
//!
//! ```text
//!   create: decide (alloc) -> commit -> apply plan -> read back -> READY     (or taken back whole)
//!   delete: commit "deleting" -> apply removal -> read back -> forget
//!   start, resync: observe all -> removals -> rules -> additions -> read back, object by object
//! ```
//!
//! Changes hold the writer lock from decision to read-back, so they happen one after the other; readers see the
//! records at once and never wait. A change runs in its own task: a client that goes away does not cut it short.

mod converge;
mod events;
mod flows;
mod forward;
mod group;
mod leases;
mod network;
mod port;
mod reservation;
#[cfg(test)]
mod test;
mod unreadable;

use crate::{
    kernel::{Action, Elements, Kernel, Observed, Scope, Traffic},
    model::{
        Forward, Group, IfName, Network, Port, PortKey, Reservation, SavedSysctl, State, forward_resource,
        reservation_id,
    },
    plan::Desired,
    services::{Services, Status},
};
use flows::{Ending, FLOWS};
use reservation::bound_to;
use serde::de::DeserializeOwned;
use shared::{
    events::{EventKind, News},
    fault::{Fault, Kind},
    look::Look,
    name::Name,
    steps,
    store::{Loaded, Op, Store},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};
use tokio::sync::{Mutex, MutexGuard};
use tracing::Instrument as _;

pub use forward::{ForwardView, NewForward};
pub use group::{GroupChange, GroupView, NewGroup};
pub use network::{NetworkChange, NewNetwork, ServicesChange};
pub(crate) use port::may_change;
pub use port::{NewPort, PortChange};
pub use unreadable::Sort;

/// How long a look at the host is good for others: readers make five a second at most.
const FRESH: Duration = Duration::from_millis(200);
const NETWORK: &str = "network";
const PORT: &str = "port";
const FORWARD: &str = "forward";
const GROUP: &str = "group";
const SYSCTL: &str = "sysctl";
const RESERVATION: &str = "reservation";

/// A handle on the reconciler; clones share it.
#[derive(Debug)]
pub struct Reconciler<K>(Arc<Inner<K>>);

impl<K> Clone for Reconciler<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<K> {
    kernel: K,
    store: Store,
    services: Services,
    /// Held for the whole of a change.
    writer: Mutex<Writer>,
    /// Written only by the holder of `writer`, never across an await.
    records: RwLock<Records>,
    /// What guests' frames have left behind.
    traffic: Look<Traffic>,
    /// Links and sysctls, and the version of nft.
    host: Look<(Observed, Result<String, Fault>)>,
}

/// What only the holder of the lock knows.
#[derive(Debug, Default)]
struct Writer {
    /// Digest of the static rules as this nft prints them; `None` before they were written.
    digest: Option<String>,
    nft: String,
    /// Counts the changes, so that a look without the lock knows whether one came between.
    changes: u64,
}

#[derive(Debug, Default)]
struct Records {
    desired: Desired,
    /// By resource name; an object without an entry is pending.
    states: BTreeMap<String, State>,
    warnings: Vec<String>,
    /// Why the kernel as a whole could not be read or brought to the records the last time.
    kernel: Option<String>,
    /// Flows that have to end.
    ending: Ending,
}

/// A network as clients see it.
#[derive(Clone, Debug)]
pub struct NetworkView {
    /// Its record.
    pub network: Network,
    /// What the kernel carries of it.
    pub state: State,
    /// Number of its ports.
    pub ports: usize,
    /// How its guests are served, where the network does that.
    pub service: Status,
}

/// A port as clients see it.
#[derive(Clone, Debug)]
pub struct PortView {
    /// Its record.
    pub port: Port,
    /// What the kernel carries of it.
    pub state: State,
    /// MTU of its network, bytes.
    pub mtu: u32,
}

impl<K: Kernel> Reconciler<K> {
    /// Reads the records. Nothing is changed before the first `converge`.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the store cannot be read.
    pub async fn load(kernel: K, store: Store, services: Services) -> Result<Self, Fault> {
        let networks = load(&store, NETWORK, |network: &Network| network.name.to_string()).await?;
        let ports = load(&store, PORT, Port::resource).await?;
        let forwards = load(&store, FORWARD, Forward::resource).await?;
        let groups = load(&store, GROUP, |group: &Group| group.name.to_string()).await?;
        let sysctls = store.load::<SavedSysctl>(SYSCTL).await?;
        let reservations = load(&store, RESERVATION, |of: &Reservation| reservation_id(&of.key())).await?;
        let flows = store.load::<Ending>(FLOWS).await?;
        store.expend(&[RESERVATION, FLOWS]);
        let desired = Desired {
            instance: store.instance().simple().to_string(),
            networks: networks.records.into_iter().map(|(_, n)| (n.name.clone(), n)).collect(),
            ports: ports.records.into_iter().map(|(_, p)| (p.key(), p)).collect(),
            forwards: forwards.records.into_iter().map(|(_, f)| (f.key(), f)).collect(),
            groups: groups.records.into_iter().map(|(_, g)| (g.name.clone(), g)).collect(),
            reservations: reservations.records.into_iter().map(|(_, r)| (r.key(), r)).collect(),
            saved: sysctls.records.into_iter().collect(),
            kept: Elements::default(),
            unreadable: store.has_broken(NETWORK),
        };
        let ending = Ending::all(flows.records.into_iter().map(|(_, ending)| ending));
        let records = Records { desired, ending, ..Records::default() };
        let records = RwLock::new(records);
        Ok(Self(Arc::new(Inner {
            kernel,
            store,
            services,
            writer: Mutex::default(),
            records,
            traffic: Look::new(FRESH),
            host: Look::new(FRESH),
        })))
    }

    /// Gives up the record of `KIND ID`, which cannot be read.
    ///
    /// # Errors
    /// As `Store::forget`.
    pub async fn forget_broken(&self, what: &str) -> Result<(), Fault> {
        self.0.store.forget(what).await
    }

    /// Runs a change to its end even if the caller goes away.
    async fn change<T, F>(&self, work: impl FnOnce(Self) -> F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        tokio::spawn(steps::change(work(self.clone())).in_current_span())
            .await
            .map_err(|error| Fault::internal("the change ended with a defect").cause(&error))?
    }

    fn read(&self) -> RwLockReadGuard<'_, Records> {
        // A panic while the lock is held leaves the maps whole: each change of them is one insert or remove.
        self.0.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Records> {
        self.0.records.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lock(&self) -> MutexGuard<'_, Writer> {
        let mut writer = self.0.writer.lock().await;
        writer.changes += 1;
        self.0.traffic.outdate();
        self.0.host.outdate();
        writer
    }

    /// The instance id that marks our objects.
    #[must_use]
    pub fn instance(&self) -> String {
        self.read().desired.instance.clone()
    }

    /// The kernel, to look at.
    pub(crate) fn kernel(&self) -> &K {
        &self.0.kernel
    }

    /// Everything recorded, and what the kernel carries of it, by resource.
    #[must_use]
    pub fn records(&self) -> (Desired, BTreeMap<String, State>) {
        let records = self.read();
        (records.desired.clone(), records.states.clone())
    }

    /// What an operator should know.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let (kernel, known) = {
            let records = self.read();
            (records.kernel.clone(), records.warnings.clone())
        };
        let services = self.0.services.warnings();
        self.0.store.warnings().into_iter().chain(kernel).chain(known).chain(services).collect()
    }

    /// Why changes cannot be made, if they cannot. It may wait for the file system.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let kernel = self.read().kernel.clone();
        kernel.or_else(|| self.0.store.degraded())
    }

    /// A look at the host's links and sysctls, for its status.
    ///
    /// # Errors
    /// INTERNAL if the kernel cannot be read.
    pub async fn observe(&self) -> Result<Observed, Fault> {
        self.0.kernel.observe(&Scope::Host).await
    }

    /// The host's links and sysctls, and the first line of `nft --version`, or why there is none, as they were a moment
    /// ago.
    ///
    /// # Errors
    /// INTERNAL if the kernel cannot be read.
    pub async fn host(&self) -> Result<Arc<(Observed, Result<String, Fault>)>, Fault> {
        let look = async { Ok((self.observe().await?, self.0.kernel.nft_version().await)) };
        self.0.host.share(look).await
    }

    /// Which of these taps a program has open.
    ///
    /// # Errors
    /// INTERNAL if the kernel cannot be read.
    pub async fn attached(&self, taps: &[IfName]) -> Result<BTreeSet<IfName>, Fault> {
        let observed = self.0.kernel.observe(&Scope::Links(taps.to_vec())).await?;
        Ok(observed.links.into_iter().filter(|(_, link)| link.carrier).map(|(name, _)| name).collect())
    }

    /// What guests' frames have left behind, as it was a moment ago. What it costs grows with the number of ports.
    ///
    /// # Errors
    /// INTERNAL if nft cannot be read.
    pub async fn traffic(&self) -> Result<Arc<Traffic>, Fault> {
        self.0.traffic.share(self.look_at_traffic()).await
    }

    async fn look_at_traffic(&self) -> Result<Traffic, Fault> {
        let mut traffic = self.0.kernel.traffic().await?;
        if !traffic.by_host.is_empty() {
            let records = self.read();
            for port in records.desired.ports.values() {
                let Some(network) = records.desired.networks.get(&port.network) else { continue };
                if let Some(by_host) = traffic.by_host.get(&(network.bridge.clone(), port.mac)) {
                    let drops = &mut traffic.taps.entry(port.tap.clone()).or_default().drops;
                    drops.extend(by_host.iter().map(|(reason, packets)| ((*reason).to_owned(), *packets)));
                }
            }
        }
        Ok(traffic)
    }

    /// Numbers of networks and ports.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let records = self.read();
        (records.desired.networks.len(), records.desired.ports.len())
    }

    fn set_state(&self, resource: String, state: State) {
        self.write().states.insert(resource, state);
    }

    /// Applies actions in order; the first failure ends it.
    async fn apply(&self, actions: &[Action], observed: &Observed) -> Result<(), Fault> {
        for action in actions {
            if let Action::SetSysctl { key, value } = action {
                self.remember_sysctl(key, value, observed).await?;
            }
            self.0.kernel.apply(action).await?;
        }
        Ok(())
    }

    /// Records the value that a sysctl had before the first change.
    async fn remember_sysctl(&self, key: &str, value: &str, observed: &Observed) -> Result<(), Fault> {
        // The record of what it was before may be there and not be readable.
        let known =
            self.read().desired.saved.contains_key(key) || self.0.store.check_broken(SYSCTL, key).is_err();
        let Some(before) = observed.sysctls.get(key).filter(|_| !known) else { return Ok(()) };
        let saved = SavedSysctl { before: before.clone(), ours: value.to_owned() };
        self.0.store.commit(vec![Op::put(SYSCTL, key, &saved)?]).await?;
        self.write().desired.saved.insert(key.to_owned(), saved);
        Ok(())
    }

    /// Forgets the former values of sysctls that no network needs any more.
    async fn forget_sysctls(&self, observed: &Observed) -> Result<(), Fault> {
        let unneeded: Vec<String> = {
            let records = self.read();
            let wanted = records.desired.wanted_sysctls(observed);
            records.desired.saved.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect()
        };
        if unneeded.is_empty() || self.read().desired.unreadable {
            return Ok(());
        }
        self.0.store.commit(unneeded.iter().map(|key| Op::delete(SYSCTL, key)).collect()).await?;
        let mut records = self.write();
        for key in &unneeded {
            records.desired.saved.remove(key);
        }
        Ok(())
    }

    async fn put_network(&self, network: &Network) -> Result<(), Fault> {
        let news = {
            let records = self.read();
            events::recorded(records.desired.networks.get(&network.name), network)
        };
        let op = Op::put(NETWORK, network.name.to_string(), network)?;
        let _told = self.0.store.commit_telling(vec![op], news).await?;
        self.write().desired.networks.insert(network.name.clone(), network.clone());
        Ok(())
    }

    /// Records a port, and with whose it was the forwards that have led to it so far.
    async fn put_port(&self, port: &Port) -> Result<(), Fault> {
        let (news, bound) = {
            let records = self.read();
            let before = records.desired.ports.get(&port.key());
            let bound = before.map(|before| bound_to(&records.desired, before)).unwrap_or_default();
            (events::recorded(before, port), bound)
        };
        let mut ops = vec![Op::put(PORT, port.resource(), port)?];
        for forward in &bound {
            ops.push(Op::put(FORWARD, forward.resource(), forward)?);
        }
        let _told = self.0.store.commit_telling(ops, news).await?;
        let mut records = self.write();
        records.desired.ports.insert(port.key(), port.clone());
        records.desired.forwards.extend(bound.into_iter().map(|forward| (forward.key(), forward)));
        Ok(())
    }

    /// Removes the records of objects that are gone from the kernel, and those of a network's forwards with it. The
    /// addresses of a port stay set aside as long as its network is there.
    async fn forget(&self, networks: &[Name], ports: &[PortKey]) -> Result<(), Fault> {
        let port_name = |key: &PortKey| crate::model::port_resource(&key.0, &key.1);
        let (kept, freed) = self.reservations_after(networks, ports);
        let forwards: Vec<_> = {
            let records = self.read();
            networks.iter().flat_map(|name| records.desired.forwards_of(name)).map(Forward::key).collect()
        };
        let mut ops: Vec<_> = networks
            .iter()
            .map(|name| Op::delete(NETWORK, name.to_string()))
            .chain(ports.iter().map(|key| Op::delete(PORT, port_name(key))))
            .chain(forwards.iter().map(|key| Op::delete(FORWARD, forward_resource(&key.0, &key.1))))
            .chain(freed.iter().map(|key| Op::delete(RESERVATION, reservation_id(key))))
            .collect();
        for reservation in &kept {
            ops.push(Op::put(RESERVATION, reservation_id(&reservation.key()), reservation)?);
        }
        if ops.is_empty() {
            return Ok(());
        }
        let forwards_gone = forwards.iter().map(|key| forward_resource(&key.0, &key.1));
        let gone = forwards_gone
            .chain(ports.iter().map(port_name))
            .chain(networks.iter().map(|name| format!("networks/{name}")));
        let news = gone.map(|resource| News::of(EventKind::Deleted, resource, "")).collect();
        let _told = self.0.store.commit_telling(ops, news).await?;
        let mut records = self.write();
        for name in networks {
            records.desired.networks.remove(name);
            records.states.remove(&format!("networks/{name}"));
        }
        for key in ports {
            records.desired.ports.remove(key);
            records.states.remove(&port_name(key));
        }
        for key in &forwards {
            records.desired.forwards.remove(key);
            records.states.remove(&forward_resource(&key.0, &key.1));
        }
        for key in &freed {
            records.desired.reservations.remove(key);
        }
        records.desired.reservations.extend(kept.into_iter().map(|r| (r.key(), r)));
        Ok(())
    }
}

/// Reads the records of a kind. One that is of another object than its id says is as one that cannot be read: else two
/// would be one, and the delete of one would leave the other's record.
async fn load<T: DeserializeOwned + Send + 'static>(
    store: &Store,
    kind: &'static str,
    id_of: impl Fn(&T) -> String,
) -> Result<Loaded<T>, Fault> {
    let loaded = store.load::<T>(kind).await?;
    let (records, others): (Vec<_>, Vec<_>) =
        loaded.records.into_iter().partition(|(id, record)| *id == id_of(record));
    for (id, record) in &others {
        store.reject(kind, id, &format!("it is the record of `{}`", id_of(record)));
    }
    Ok(Loaded { records, broken: loaded.broken })
}

/// Whether an object is still the one that the client has seen; `None`: whatever it is.
fn check_generation(what: &str, asked: Option<i64>, is: i64) -> Result<(), Fault> {
    if asked.is_none_or(|asked| asked == is) {
        return Ok(());
    }
    let message = format!("somebody else changed the {what}: its generation is {is}");
    Err(Fault::new(Kind::Aborted, "OTHER_GENERATION", message)
        .hint("look at it again, then repeat the change"))
}

/// The error of a create whose name is that of an object whose delete has just failed once more.
fn still_there(what: &str, fault: &Fault) -> Fault {
    Fault::new(Kind::Aborted, "DELETING", format!("{what} of that name is being deleted, which failed again"))
        .cause(fault)
        .hint("mend what is named as the reason, then try again; netd tries each 30 s, too")
}

/// The error of a plan that is not empty after it was carried out.
fn not_converged(resource: &str, first: &Action) -> Fault {
    Fault::new(
        Kind::Internal,
        "NOT_CONVERGED",
        format!("`{resource}` is not as recorded after the kernel was changed: {first:?} is still to do"),
    )
    .hint("another program may be changing the same objects")
}
