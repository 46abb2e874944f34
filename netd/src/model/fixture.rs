//! Records that tests begin with: as plain as they can be, and as the reconciler would have made them.

use super::{IfName, Mode, Network, NetworkSpec, Port, PortSpec, ServicesSpec};
use shared::{mac::Mac, name::Name, time::Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn link(text: &str) -> IfName {
    text.parse().unwrap()
}

/// A network's spec that leaves everything to netd.
pub(crate) fn network_spec(mode: Mode) -> NetworkSpec {
    NetworkSpec {
        mode,
        ipv4: None,
        ipv6: None,
        bridge: None,
        uplink: None,
        mtu: None,
        services: ServicesSpec::default(),
    }
}

/// A network without subnets, on a bridge of its own.
pub(crate) fn network(text: &str, mode: Mode) -> Network {
    let now = Timestamp::now();
    Network {
        name: name(text),
        uid: Uuid::nil(),
        generation: 1,
        created: now,
        updated: now,
        labels: BTreeMap::new(),
        spec: network_spec(mode),
        bridge: link(&format!("kvb-{text}")),
        bridge_mac: Mac::derived(text, 0),
        ipv4: None,
        ipv6: None,
        mtu: 1500,
        takeover: None,
        cell: None,
        deleting: false,
    }
}

/// A port's spec that asks for nothing: filtered, in no group.
pub(crate) fn port_spec() -> PortSpec {
    PortSpec {
        mac: None,
        filter: true,
        ipv4: None,
        ipv6: None,
        extra: BTreeSet::new(),
        hostname: None,
        isolated: false,
        rate_in: None,
        rate_out: None,
        groups: BTreeSet::new(),
    }
}

/// A port of user 1000, without addresses.
pub(crate) fn port(network: &str, text: &str) -> Port {
    let now = Timestamp::now();
    Port {
        network: name(network),
        name: name(text),
        uid: Uuid::nil(),
        generation: 1,
        created: now,
        updated: now,
        labels: BTreeMap::new(),
        spec: port_spec(),
        mac: Mac::derived(&format!("{network}/{text}"), 0),
        ipv4: None,
        ipv6: None,
        tap: link(&format!("kvp-{network}-{text}")),
        owner: 1000,
        tenant: Some(String::new()),
        profile: None,
        deleting: false,
    }
}
