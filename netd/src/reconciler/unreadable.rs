//! Objects whose records cannot be read.

use super::{FORWARD, GROUP, NETWORK, PORT, Reconciler, Records, network::network_not_found};
use crate::kernel::Kernel;
use shared::{fault::Fault, name::Name, store::Broken};
use std::collections::BTreeSet;

/// The sorts of objects that clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Networks.
    Network,
    /// Ports.
    Port,
    /// Forwards.
    Forward,
    /// Groups.
    Group,
}

impl<K: Kernel> Reconciler<K> {
    /// Refuses a list of a network's objects if there is no such network. One whose record cannot be read is there.
    pub(super) fn must_have(&self, records: &Records, network: &Name) -> Result<(), Fault> {
        let known = records.desired.networks.contains_key(network)
            || self.0.store.check_broken(NETWORK, network.as_str()).is_err();
        if known { Ok(()) } else { Err(network_not_found(network)) }
    }

    /// The ports of a network whose records cannot be read.
    pub(super) fn broken_ports(&self, network: &Name) -> BTreeSet<Name> {
        let before = format!("networks/{network}/ports/");
        let broken = self.0.store.broken(PORT);
        broken.iter().filter_map(|broken| broken.id.strip_prefix(&before)?.parse().ok()).collect()
    }

    /// Why an object is not among the records: its own cannot be read, or there is none.
    pub(super) fn missing(&self, kind: &str, id: &str, not_found: Fault) -> Fault {
        self.0.store.check_broken(kind, id).err().unwrap_or(not_found)
    }

    /// The resource names of objects whose records cannot be read, and why, in the order of the records' ids.
    #[must_use]
    pub fn broken(&self, sort: Sort) -> Vec<Broken> {
        let (kind, before) = match sort {
            Sort::Network => (NETWORK, "networks/"),
            Sort::Port => (PORT, ""),
            Sort::Forward => (FORWARD, ""),
            Sort::Group => (GROUP, "groups/"),
        };
        let broken = self.0.store.broken(kind).into_iter();
        broken.map(|Broken { id, why }| Broken { id: format!("{before}{id}"), why }).collect()
    }
}
