//! Groups: rules about what the guests of ports may send and receive.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shared::{name::Name, time::Timestamp};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Which way a flow goes, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp,
    /// Every protocol.
    Any,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remote {
    /// Anybody.
    Any,
    /// Whoever has an address in a prefix, which has no host bits.
    Net(IpNet),
    /// Whoever has a recorded address of a port that is in a group.
    Group(Name),
}

/// What a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    /// Which way new flows go.
    pub direction: Direction,
    /// Of which protocol.
    pub protocol: IpProtocol,
    /// First and last port at the receiver, for TCP and UDP; `None` is all.
    pub ports: Option<(u16, u16)>,
    /// Who is at the other end.
    pub remote: Remote,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `r-` and eight hexadecimal digits, unique in its group.
    pub id: String,
    /// What it allows.
    #[serde(flatten)]
    pub allows: Allowance,
}

/// What a client asks of a group; the rules are those of the record without their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Whether what no rule speaks of is kept from the guest.
    pub deny_in: bool,
    /// Whether the guest may not send what no rule speaks of.
    pub deny_out: bool,
    /// Rules with the id that the client gave, empty if none.
    pub rules: Vec<Rule>,
}

/// The record of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: Name,
    /// Tells it from an earlier group of the same name.
    pub uid: Uuid,
    /// Counts changes of the spec.
    pub generation: i64,
    /// When it was recorded.
    pub created: Timestamp,
    /// When the record last changed.
    pub updated: Timestamp,
    /// The client's own.
    pub labels: BTreeMap<String, String>,
    /// Whether what no rule speaks of is kept from the guest.
    pub deny_in: bool,
    /// Whether the guest may not send what no rule speaks of.
    pub deny_out: bool,
    /// In the client's order.
    pub rules: Vec<Rule>,
}

impl Group {
    /// `groups/NAME`.
    #[must_use]
    pub fn resource(&self) -> String {
        format!("groups/{}", self.name)
    }

    /// Whether what no rule speaks of is dropped in a direction.
    #[must_use]
    pub fn denies(&self, direction: Direction) -> bool {
        match direction {
            Direction::In => self.deny_in,
            Direction::Out => self.deny_out,
        }
    }

    /// The groups that its rules name, itself perhaps among them.
    pub fn remotes(&self) -> impl Iterator<Item = &Name> {
        self.rules.iter().filter_map(|rule| match &rule.allows.remote {
            Remote::Group(name) => Some(name),
            Remote::Any | Remote::Net(_) => None,
        })
    }
}
