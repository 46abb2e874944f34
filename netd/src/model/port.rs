//! Ports.

use super::{IfName, Owner};
use serde::{Deserialize, Serialize};
use shared::{mac::Mac, name::Name, time::Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use uuid::Uuid;

/// Network and port name.
pub type PortKey = (Name, Name);

/// A limit of bandwidth in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second, with Ethernet headers.
    pub bits_per_second: u64,
    /// Bytes that may pass at once.
    pub burst_bytes: u32,
}

/// What a client asked of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// `None`: made from the names.
    #[serde(rename = "asked_mac")]
    pub mac: Option<Mac>,
    /// Whether the guest's frames are checked.
    pub filter: bool,
    /// `None`: chosen where the network has a subnet.
    #[serde(default, rename = "asked_ipv4")]
    pub ipv4: Option<Ipv4Addr>,
    /// As `ipv4`.
    #[serde(default, rename = "asked_ipv6")]
    pub ipv6: Option<Ipv6Addr>,
    /// More addresses that the guest may use.
    #[serde(default)]
    pub extra: BTreeSet<IpAddr>,
    /// `None`: the port's name.
    #[serde(default, rename = "asked_hostname")]
    pub hostname: Option<Name>,
    /// Kept apart from other isolated ports of the network.
    #[serde(default)]
    pub isolated: bool,
    /// Toward the guest.
    #[serde(default)]
    pub rate_in: Option<Rate>,
    /// From the guest.
    #[serde(default)]
    pub rate_out: Option<Rate>,
    /// The groups it is in.
    #[serde(default)]
    pub groups: BTreeSet<Name>,
}

/// The record of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The network it is on.
    pub network: Name,
    /// Its name there.
    pub name: Name,
    /// Tells it from an earlier port of the same name.
    pub uid: Uuid,
    /// Counts changes of the spec.
    pub generation: i64,
    /// When it was recorded.
    pub created: Timestamp,
    /// When the record last changed.
    pub updated: Timestamp,
    /// The client's own.
    pub labels: BTreeMap<String, String>,
    /// What was asked.
    #[serde(flatten)]
    pub spec: PortSpec,
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's address; `None` where the network has no such subnet and none was asked for.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// As `ipv4`.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// The tap.
    pub tap: IfName,
    /// The uid that may open it.
    pub owner: u32,
    /// As in `Owner`.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Number of the very set of groups it is in, from 1; `None` if in none.
    #[serde(default)]
    pub profile: Option<u16>,
    /// A delete was recorded and is not finished.
    pub deleting: bool,
}

impl Port {
    /// Its key in maps.
    #[must_use]
    pub fn key(&self) -> PortKey {
        (self.network.clone(), self.name.clone())
    }

    /// `networks/NETWORK/ports/NAME`.
    #[must_use]
    pub fn resource(&self) -> String {
        port_resource(&self.network, &self.name)
    }

    /// The ifb that what the guest sends is led through where that is limited: named as the tap, with another prefix.
    ///
    /// # Panics
    /// Never: a name is ASCII and has at most 15 bytes, and so has this one.
    #[must_use]
    pub fn ifb(&self) -> IfName {
        // A damaged record may have any interface's name.
        let rest = self.tap.as_str().get(3..).unwrap_or_default();
        format!("kvi{rest}").parse().expect("as long as the tap's name")
    }

    /// The guest's name in DNS and DHCP.
    #[must_use]
    pub fn hostname(&self) -> &Name {
        self.spec.hostname.as_ref().unwrap_or(&self.name)
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { uid: self.owner, tenant: self.tenant.clone() }
    }

    /// All addresses that are recorded for it.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6));
        own.chain(self.spec.extra.iter().copied())
    }
}

/// `networks/NETWORK/ports/NAME`.
#[must_use]
pub fn port_resource(network: &Name, port: &Name) -> String {
    format!("networks/{network}/ports/{port}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_ifb_is_named_as_its_tap_whatever_that_is_called() {
        let now = Timestamp::now();
        let mut port: Port = serde_json::from_value(serde_json::json!({
            "network": "lan", "name": "web", "uid": Uuid::nil(), "generation": 1, "created": now, "updated": now,
            "labels": {}, "asked_mac": null, "filter": true, "mac": "52:54:00:00:00:01", "tap": "kvp-lan-web",
            "owner": 0, "deleting": false,
        }))
        .unwrap();
        for (tap, ifb) in [("kvp-lan-web", "kvi-lan-web"), ("lo", "kvi"), ("a", "kvi"), ("eth0", "kvi0")] {
            port.tap = tap.parse().unwrap();
            assert_eq!(port.ifb().as_str(), ifb);
        }
    }
}
