//! Anybody's packet rules, as far as a diagnosis can read them. Pure.

use ipnet::IpNet;
use std::{collections::BTreeMap, fmt, net::IpAddr};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// Frames on bridges.
    Bridge,
    /// Frames of single devices.
    Netdev,
}

impl Family {
    /// The family that nft calls `name`; `None` for ARP's, which no packet of a diagnosis meets.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ip, Self::Ip6, Self::Inet, Self::Bridge, Self::Netdev].into_iter().find(|f| f.as_str() == name)
    }

    /// nft's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

/// Where on its way a packet meets a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// As it comes in by a device.
    Ingress,
    /// Before its route is known.
    Prerouting,
    /// For this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// On its way out.
    Postrouting,
    /// As it leaves by a device.
    Egress,
}

impl Hook {
    /// The hook that nft calls `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        use Hook::{Egress, Forward, Ingress, Input, Output, Postrouting, Prerouting};
        [Ingress, Prerouting, Input, Forward, Output, Postrouting, Egress]
            .into_iter()
            .find(|hook| hook.as_str() == name)
    }

    /// nft's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }
}

/// All tables of a host.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    /// In the order of the listing.
    pub tables: Vec<Table>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Kept by the kernel's old iptables, not by nftables.
    pub legacy: bool,
    /// By name.
    pub chains: BTreeMap<String, Chain>,
    /// Named sets.
    pub sets: BTreeMap<String, Vec<Key>>,
    /// Named verdict maps.
    pub maps: BTreeMap<String, Vec<(Key, Verdict)>>,
}

/// One chain.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Where packets enter; `None`: only by a jump.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug)]
pub struct Base {
    /// Of type nat: sees the first packet of a flow only.
    pub nat: bool,
    /// Where packets meet it.
    pub hook: Hook,
    /// Lower comes first.
    pub priority: i32,
    /// Whether the policy is drop.
    pub drops: bool,
    /// The devices of an ingress or egress chain.
    pub devices: Vec<String>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// nft's number of it.
    pub handle: Option<u64>,
    /// In the words of nft or iptables.
    pub text: String,
    /// What bears on where a packet goes, in order.
    pub body: Vec<Statement>,
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The rule goes on only if this holds.
    When(Condition),
    /// What becomes of the packet.
    Then(Verdict),
    /// A verdict map; without a match the rule goes on.
    Choose(Vec<Field>, Arms),
}

/// What a verdict map holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arms {
    /// In the rule itself.
    Here(Vec<(Key, Verdict)>),
    /// In a map of that name.
    Named(String),
}

/// A test of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is looked at: several for a concatenation.
    pub fields: Vec<Field>,
    /// What it is compared with.
    pub test: Test,
}

/// What fields are compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// One of these.
    Among(Vec<Key>),
    /// None of these.
    NotAmong(Vec<Key>),
    /// In the set of that name.
    In(String),
    /// Not in the set of that name.
    NotIn(String),
    /// Something that a diagnosis does not read, in words.
    Unreadable(String),
}

/// One member of a set: a pattern for each field.
pub type Key = Vec<Pattern>;

/// What one field is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anything.
    Any,
    /// This word.
    Word(String),
    /// A word that begins so.
    Begins(String),
    /// Numbers from the first to the last.
    Numbers(u64, u64),
    /// An address in it.
    Net(IpNet),
    /// Addresses from the first to the last.
    Addresses(IpAddr, IpAddr),
    /// Yes or no.
    Flag(bool),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Through with this base chain.
    Accept,
    /// Gone, or refused with an answer.
    Drop,
    /// On in another chain, and back.
    Jump(String),
    /// On in another chain, and not back.
    Goto(String),
    /// Back to the caller, or the policy.
    Return,
    /// The next rule.
    Continue,
    /// Gets other addresses, and is through with this base chain.
    Translate,
    /// Cannot be told, such as a queue to a program.
    Unreadable,
}

/// What a rule can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Name of the device it came in by.
    Iif,
    /// Name of the device it leaves by.
    Oif,
    /// Name of the bridge it came in by, for a frame.
    BridgeIn,
    /// Name of the bridge it leaves by, for a frame.
    BridgeOut,
    /// Name of the bridge port it came in by, for a packet that iptables sees.
    PortIn,
    /// Name of the bridge port it leaves by, for a packet that iptables sees.
    PortOut,
    /// IPv4 or IPv6.
    Version,
    /// Ethertype.
    EtherType,
    /// MAC it is from.
    EtherSource,
    /// MAC it is for.
    EtherDestination,
    /// IPv4 address it is from.
    Source4,
    /// IPv4 address it is for.
    Destination4,
    /// IPv6 address it is from.
    Source6,
    /// IPv6 address it is for.
    Destination6,
    /// TCP, UDP, ...
    Protocol,
    /// The same, of IPv4's header.
    Protocol4,
    /// The same, of IPv6's header.
    Protocol6,
    /// Whether IPv6 has a certain extension header.
    Extension,
    /// Source port of any protocol.
    SourcePort,
    /// Destination port of any protocol.
    DestinationPort,
    /// Source port of TCP.
    TcpSource,
    /// Destination port of TCP.
    TcpDestination,
    /// Source port of UDP.
    UdpSource,
    /// Destination port of UDP.
    UdpDestination,
    /// Type of an ICMP message.
    IcmpType,
    /// Type of an ICMPv6 message.
    Icmp6Type,
    /// Connection tracking's state.
    State,
    /// Connection tracking's status.
    Status,
    /// Original or reply.
    Direction,
    /// Whether the destination is this host's, a broadcast address, ...
    DestinationType,
    /// As `DestinationType`.
    SourceType,
    /// Whether it goes from one port of a bridge to another.
    Bridged,
    /// Whether the way back leads to the device it came in by.
    ReversePath,
    /// Something that no packet of a diagnosis has, such as a field of ARP.
    Missing,
    /// Something that is not known of a packet.
    Other,
}

/// Where in the rules a packet ends, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Kept by the kernel's old iptables.
    pub legacy: bool,
    /// The chain that the rule is in.
    pub chain: String,
    /// The chain by which the packet came there.
    pub base: String,
    /// Of the base chain.
    pub hook: Hook,
    /// Of the base chain.
    pub priority: i32,
    /// nft's number of the rule; `None` for a policy, and for old iptables.
    pub handle: Option<u64>,
    /// The rule's words; `policy drop` or `policy accept` for a policy.
    pub text: String,
    /// Whether it is the policy of the chain.
    pub policy: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let legacy = if self.legacy { "legacy " } else { "" };
        write!(f, "{legacy}table {} {}, chain {}", self.family.as_str(), self.table, self.chain)?;
        match self.handle {
            Some(handle) => write!(f, ", rule {handle}: {}", self.text),
            None => write!(f, ", {}", self.text),
        }
    }
}

impl Ruleset {
    /// The same, without the tables of that name.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        Self { tables: self.tables.iter().filter(|table| table.name != name).cloned().collect() }
    }
}
