//! What netd thinks in: validated, and free of wire and kernel types.

#[cfg(test)]
pub(crate) mod fixture;
mod forward;
mod group;
mod owner;
mod port;
mod service;

pub use forward::{Forward, ForwardKey, ForwardSpec, Forwarding, Protocol, Target, forward_resource};
pub use group::{Allowance, Direction, Group, GroupSpec, IpProtocol, Remote, Rule};
pub use owner::{Owner, Reservation, ReservationKey, reservation_id};
pub use port::{Port, PortKey, PortSpec, Rate, port_resource};
pub use service::{Cell, Domain, Services, ServicesSpec, Upstreams};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::{Name, printable},
    time::Timestamp,
};
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};
use uuid::Uuid;

/// Group number of every link of ours (`IFLA_GROUP`); "kv" in ASCII. Kept when given at creation, unlike an alias.
pub const LINK_GROUP: u32 = 0x6b76;

/// Name of a network interface: 1 to 15 bytes, as `dev_valid_name` in the kernel's net/core/dev.c, and without
/// `%`, which the kernel expands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    /// Longest name in bytes: IFNAMSIZ less the ending zero.
    pub const MAX_LEN: usize = 15;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let bad = |b: u8| !b.is_ascii_graphic() || matches!(b, b'/' | b':' | b'%' | b'"' | b'*' | b'\\');
        if text.is_empty()
            || text.len() > Self::MAX_LEN
            || matches!(text, "." | "..")
            || text.bytes().any(bad)
        {
            return Err(Fault::new(
                Kind::InvalidArgument,
                "INVALID_INTERFACE",
                format!("`{}` is not the name of a network interface", printable(text)),
            )
            .hint("`ip -br link` lists the interfaces of this host"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for IfName {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What a network promises about packets; see ARCHITECTURE.md for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Guests reach each other and nothing else.
    Isolated,
    /// Guests reach the outside with the host's address.
    Nat,
    /// Guests reach the outside, and are reached, with their own address.
    Routed,
    /// Guests are on the LAN.
    Bridged,
}

impl Mode {
    /// Whether the host has an address on the network and forwards for it.
    #[must_use]
    pub fn has_gateway(self) -> bool {
        matches!(self, Self::Nat | Self::Routed)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Isolated => "isolated",
            Self::Nat => "nat",
            Self::Routed => "routed",
            Self::Bridged => "bridged",
        })
    }
}

/// What a client asked of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// See `Mode`.
    pub mode: Mode,
    /// Gateway address with prefix; on isolated networks the guests' subnet.
    pub ipv4: Option<Ipv4Net>,
    /// As `ipv4`.
    pub ipv6: Option<Ipv6Net>,
    /// Bridged: an existing bridge.
    pub bridge: Option<IfName>,
    /// Bridged: the NIC to take over. nat and routed: the only way out.
    pub uplink: Option<IfName>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// DHCP, DNS and router advertisements.
    #[serde(default)]
    pub services: ServicesSpec,
}

/// The present state of a NIC that is taken over, so that it can be put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// Addresses that move to the bridge.
    pub addresses: Vec<Address>,
    /// Routes that move to the bridge, connected ones first.
    pub routes: Vec<Route>,
    /// Whether the NIC was up.
    pub was_up: bool,
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Address and prefix length.
    pub net: IpNet,
    /// IPv4 broadcast address, if one was given.
    #[serde(default)]
    pub broadcast: Option<std::net::Ipv4Addr>,
    /// Whether the kernel was told to make no connected route for it.
    pub no_prefix_route: bool,
    /// Seconds it stays valid; `None` is for ever. Something else, such as a DHCP client, renews it.
    pub valid_seconds: Option<u32>,
}

/// A unicast route with one next hop. The link it leaves by is known from where the route is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Next hop; `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// Source address that the host prefers on it.
    pub source: Option<IpAddr>,
    /// RTA_PRIORITY.
    pub metric: Option<u32>,
    /// Table id; 254 is main.
    pub table: u32,
    /// rtnetlink(7) rtm_protocol.
    pub protocol: u8,
    /// rtnetlink(7) rtm_scope.
    pub scope: u8,
    /// Path MTU set on the route, bytes.
    pub mtu: Option<u32>,
    /// Whether the gateway counts as on the link.
    pub on_link: bool,
}

/// The record of a network: what was asked, and what was decided once and stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: Name,
    /// Tells it from an earlier network of the same name.
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
    pub spec: NetworkSpec,
    /// The bridge: ours, or the existing one of a bridged network.
    pub bridge: IfName,
    /// The bridge's own MAC, pinned; not used with an existing bridge.
    pub bridge_mac: Mac,
    /// In force.
    pub ipv4: Option<Ipv4Net>,
    /// In force.
    pub ipv6: Option<Ipv6Net>,
    /// Bytes, in force.
    pub mtu: u32,
    /// Set where a NIC is taken over.
    pub takeover: Option<Takeover>,
    /// Set where an isolated network has services.
    #[serde(default)]
    pub cell: Option<Cell>,
    /// A delete was recorded and is not finished.
    pub deleting: bool,
}

impl Network {
    /// Whether netd made the bridge and removes it again.
    #[must_use]
    pub fn owns_bridge(&self) -> bool {
        self.spec.bridge.is_none()
    }

    /// `networks/NAME`.
    #[must_use]
    pub fn resource(&self) -> String {
        format!("networks/{}", self.name)
    }
}

/// A host-wide sysctl that netd changed, so that it can be put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSysctl {
    /// Value before the first network that needed it.
    pub before: String,
    /// Value that netd wrote.
    pub ours: String,
}

/// Whether the kernel carries an object, as last read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet carried out.
    Pending,
    /// Read back and right.
    Ready,
    /// Could not be brought there; tried again.
    Degraded(String),
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn interface_names_are_the_kernels() {
        for good in ["eth0", "br-lan.10", "kvb-lan", "enp0s31f6np0abc"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "vnet%d", "a\n", "x\"y", "eth0:1", "0123456789abcdef"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }
}
