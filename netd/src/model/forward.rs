//! Forwards: ports of the host that lead to a guest.

use super::{Owner, Port};
use serde::{Deserialize, Serialize};
use shared::{name::Name, time::Timestamp};
use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16};
use uuid::Uuid;

/// Network and forward name.
pub type ForwardKey = (Name, Name);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Where a forward leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// A guest's address.
    Address(IpAddr),
    /// A port by its host name, else by its own name.
    Name(Name),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What a client asked of a forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardSpec {
    /// See `Protocol`.
    pub protocol: Protocol,
    /// `None`: every address of the host that is not loopback or link-local.
    pub listen_address: Option<IpAddr>,
    /// The port there.
    pub listen_port: NonZeroU16,
    /// See `Target`.
    pub target: Target,
    /// `None`: as `listen_port`.
    pub target_port: Option<NonZeroU16>,
}

impl ForwardSpec {
    /// The guest's port.
    #[must_use]
    pub fn to_port(&self) -> u16 {
        self.target_port.unwrap_or(self.listen_port).get()
    }

    /// Whether it listens at addresses of that one's family.
    #[must_use]
    pub fn is_of_family(&self, address: IpAddr) -> bool {
        self.listen_address.is_none_or(|listen| listen.is_ipv4() == address.is_ipv4())
    }

    /// Whether a port answers to the target, whoever's it is.
    #[must_use]
    pub fn may_lead_to(&self, port: &Port) -> bool {
        match &self.target {
            Target::Name(name) => *name == port.name || name == port.hostname(),
            Target::Address(address) => port.addresses().any(|own| own == *address),
        }
    }
}

/// A port of the host, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Forwarding<A> {
    /// Of both ports.
    pub protocol: Protocol,
    /// `None`: every address of the host.
    pub listen: Option<A>,
    /// The host's port.
    pub port: u16,
    /// The guest's address.
    pub to: A,
    /// The guest's port.
    pub to_port: u16,
}

/// The record of a forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The network that its target is on.
    pub network: Name,
    /// Its name there.
    pub name: Name,
    /// Tells it from an earlier forward of the same name.
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
    pub spec: ForwardSpec,
    /// Whose port it leads to: it leads to nobody else's. `None`: as long as nobody's port of that name was there and
    /// is gone, whoever's is the first.
    #[serde(default)]
    pub of: Option<Owner>,
    /// A delete was recorded and is not finished.
    pub deleting: bool,
}

impl Forward {
    /// Its key in maps.
    #[must_use]
    pub fn key(&self) -> ForwardKey {
        (self.network.clone(), self.name.clone())
    }

    /// Whether a port of the network may be what it leads to; another one of that host name comes first.
    #[must_use]
    pub fn may_lead_to(&self, port: &Port) -> bool {
        self.serves(&port.owner()) && self.spec.may_lead_to(port)
    }

    /// Whether it leads to ports of that owner.
    #[must_use]
    pub fn serves(&self, owner: &Owner) -> bool {
        self.of.as_ref().is_none_or(|of| of.is(owner))
    }

    /// Who is to be recorded in `of` when a port that it leads to changes or goes; `None`: it is known already.
    #[must_use]
    pub fn learns_of(&self, port: &Port) -> Option<Owner> {
        let vague = self.of.as_ref().is_none_or(|of| of.tenant.is_none() && port.tenant.is_some());
        (vague && !self.deleting && self.may_lead_to(port)).then(|| port.owner())
    }

    /// `networks/NETWORK/forwards/NAME`.
    #[must_use]
    pub fn resource(&self) -> String {
        forward_resource(&self.network, &self.name)
    }
}

/// `networks/NETWORK/forwards/NAME`.
#[must_use]
pub fn forward_resource(network: &Name, forward: &Name) -> String {
    format!("networks/{network}/forwards/{forward}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_target_reads_back_as_what_it_was() {
        for text in ["web", "10.0.0.2", "fd00::2", "80", "fe80"] {
            let target =
                text.parse().map(Target::Address).or_else(|_| text.parse().map(Target::Name)).unwrap();
            let json = serde_json::to_string(&target).unwrap();
            assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target, "{json}");
        }
    }
}
