//! Ports without a kernel, for tests: remembers what was asked, and fails when told to.

use super::{Port, PortRequest, Ports};
use crate::model::Addresses;
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Until there is room for one more change.
const MOMENT: Duration = Duration::from_millis(2);
const FOREIGN: &str = "foreign";

/// A netd that is only memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FakePorts(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    networks: BTreeSet<Name>,
    ports: BTreeMap<String, Made>,
    made: u32,
    looks: u32,
    down: bool,
    hanging: BTreeSet<String>,
    crowded: u32,
    fatal: bool,
}

#[derive(Debug)]
struct Made {
    uid: String,
    /// `None`: somebody else's.
    asked: Option<PortRequest>,
}

impl FakePorts {
    /// A netd with these networks.
    #[must_use]
    pub fn with_networks(networks: impl IntoIterator<Item = Name>) -> Self {
        let fake = Self::default();
        fake.inner().networks.extend(networks);
        fake
    }

    /// From now on every call fails as if netd were not there, or no longer does.
    pub fn set_down(&self, down: bool) {
        self.inner().down = down;
    }

    /// A delete of this port is never answered.
    pub fn hang(&self, resource: &str) {
        self.inner().hanging.insert(resource.to_owned());
    }

    /// So many deletes find that there are too many changes.
    pub fn crowd(&self, deletes: u32) {
        self.inner().crowded = deletes;
    }

    /// How many of them there still will be.
    #[must_use]
    pub fn crowded(&self) -> u32 {
        self.inner().crowded
    }

    /// The next create panics, as a defect would.
    pub fn break_once(&self) {
        self.inner().fatal = true;
    }

    /// Somebody else makes a port; its uid is `foreign`.
    pub fn take(&self, resource: &str) {
        self.inner().ports.insert(resource.to_owned(), Made { uid: FOREIGN.to_owned(), asked: None });
    }

    /// An operator changes a port: its filter is off.
    pub fn change(&self, resource: &str) {
        let mut inner = self.inner();
        if let Some(asked) = inner.ports.get_mut(resource).and_then(|made| made.asked.as_mut()) {
            asked.options.filter = false;
        }
    }

    /// Names of the ports there are.
    #[must_use]
    pub fn ports(&self) -> Vec<String> {
        self.inner().ports.keys().cloned().collect()
    }

    /// How often all were asked for.
    #[must_use]
    pub fn looks(&self) -> u32 {
        self.inner().looks
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<MutexGuard<'_, Inner>, Fault> {
        let inner = self.inner();
        if inner.down {
            return Err(Fault::new(Kind::Unavailable, "NETD_UNAVAILABLE", "netd cannot be reached")
                .hint("start netd"));
        }
        Ok(inner)
    }
}

impl Ports for FakePorts {
    async fn check_network(&self, network: &Name) -> Result<(), Fault> {
        if self.up()?.networks.contains(network) {
            return Ok(());
        }
        Err(Fault::new(Kind::NotFound, "NOT_FOUND", format!("there is no network `{network}`")))
    }

    async fn create(&self, port: &PortRequest) -> Result<Port, Fault> {
        let mut inner = self.up()?;
        if std::mem::take(&mut inner.fatal) {
            drop(inner);
            panic!("a port that breaks whoever asks for it");
        }
        if inner.ports.get(&port.resource).is_some_and(|made| made.asked.as_ref() != Some(port)) {
            return Err(Fault::new(Kind::AlreadyExists, "PORT_EXISTS", "there is one with another spec"));
        }
        inner.made += 1;
        let fresh = Made { uid: format!("uid-{}", inner.made), asked: Some(port.clone()) };
        let uid = inner.ports.entry(port.resource.clone()).or_insert(fresh).uid.clone();
        Ok(Port {
            interface: format!("fake{}", inner.made),
            uid,
            mtu: 1500,
            owner_uid: rustix::process::geteuid().as_raw(),
            addresses: Addresses { ipv4: port.options.ipv4, ipv6: port.options.ipv6 },
        })
    }

    async fn delete(&self, resource: &str, uid: Option<&str>) -> Result<(), Fault> {
        if self.inner().hanging.contains(resource) {
            std::future::pending::<()>().await;
        }
        let mut inner = self.up()?;
        if let Some(left) = inner.crowded.checked_sub(1) {
            inner.crowded = left;
            let fault = Fault::new(Kind::ResourceExhausted, "TOO_MANY_CHANGES", "too many changes");
            return Err(fault.retry_after(MOMENT));
        }
        if inner.ports.get(resource).is_some_and(|have| uid.is_none_or(|uid| uid == have.uid)) {
            inner.ports.remove(resource);
        }
        Ok(())
    }

    async fn own(&self) -> Result<Vec<String>, Fault> {
        let mut inner = self.up()?;
        inner.looks += 1;
        Ok(inner.ports.keys().cloned().collect())
    }
}
