//! What a network does for its guests: DHCP, DNS, router advertisements.

use super::{IfName, Mode, Network};
use serde::{Deserialize, Serialize};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::{Name, printable},
};
use std::{fmt, net::IpAddr, str::FromStr};

/// How long an address is given for, seconds, where nobody asked.
const LEASE_SECONDS: u32 = 3600;

/// A DNS domain in lower case: labels (see `Name`) joined by dots, the last one not a number.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// Longest domain in bytes: with a host name in front of it the whole has at most 253.
    pub const MAX_LEN: usize = 253 - 1 - Name::MAX_LEN;

    /// The domain of a network that none was asked for.
    #[must_use]
    pub fn of_network(network: &Name) -> Self {
        Self(format!("{network}.internal"))
    }
}

impl FromStr for Domain {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = |why: String| {
            let message = format!("`{}` is not a domain for guests: {why}", printable(text));
            Err(Fault::new(Kind::InvalidArgument, "INVALID_DOMAIN", message)
                .hint("write labels of a-z, 0-9 and - with dots between them, such as lan.example.com"))
        };
        if text.len() > Self::MAX_LEN {
            return wrong(format!("it has {} bytes, and {} is the most", text.len(), Self::MAX_LEN));
        }
        if let Some(bad) = text.split('.').find(|label| label.parse::<Name>().is_err()) {
            return wrong(format!("`{}` is no label", printable(bad)));
        }
        // It would be taken for an address.
        if text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return wrong("its last label is a number".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Domain {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What a client asked of a network's services; unset fields take their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesSpec {
    /// `None`: on for nat and routed, off for isolated.
    pub dhcp: Option<bool>,
    /// `None`: `NETWORK.internal`.
    pub domain: Option<Domain>,
    /// Empty: those of the host.
    pub upstreams: Vec<IpAddr>,
    /// `None`: an hour.
    pub lease_seconds: Option<u32>,
}

/// Whom to ask for names that are not the network's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// Nobody.
    None,
    /// Those that the host asks.
    Host,
    /// These.
    These(Vec<IpAddr>),
}

/// Services in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services {
    /// What guests' names end in.
    pub domain: Domain,
    /// Whom to ask for other names.
    pub upstreams: Upstreams,
    /// How long an address is given for.
    pub lease_seconds: u32,
}

/// Where the services of an isolated network live: in a network namespace of their own, so that the way to them is no
/// way to the host. A veth leads there from the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The end of the veth that is a port of the bridge.
    pub link: IfName,
    /// MAC of the other end.
    pub mac: Mac,
}

impl ServicesSpec {
    /// Whether a network of this mode that asked for these has any.
    #[must_use]
    pub fn wanted(&self, mode: Mode) -> bool {
        self.dhcp.unwrap_or(mode.has_gateway())
    }
}

impl Network {
    /// The services in force; `None` if it has none.
    #[must_use]
    pub fn services(&self) -> Option<Services> {
        let asked = &self.spec.services;
        asked.wanted(self.spec.mode).then(|| Services {
            domain: asked.domain.clone().unwrap_or_else(|| Domain::of_network(&self.name)),
            upstreams: match asked.upstreams.as_slice() {
                _ if self.spec.mode == Mode::Isolated => Upstreams::None,
                [] => Upstreams::Host,
                these => Upstreams::These(these.to_vec()),
            },
            lease_seconds: asked.lease_seconds.unwrap_or(LEASE_SECONDS),
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn domains_are_labels_and_leave_room_for_a_host_name() {
        let most = format!("{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(61));
        for good in ["lan", "lan.internal", "x-1.example.com", "1.a", &most] {
            assert!(good.parse::<Domain>().is_ok(), "{good}");
        }
        let long = format!("{most}c");
        for bad in
            ["", ".", "a.", ".a", "a..b", "A.b", "a_b", "a.b\n", "a,b", "a/b", "a b", "10.0.0.1", &long]
        {
            let fault = bad.parse::<Domain>().unwrap_err();
            assert_eq!(fault.reason(), "INVALID_DOMAIN", "{bad:?}");
        }
    }
}
