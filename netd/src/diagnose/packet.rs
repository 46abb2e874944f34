//! A packet that is thought of, never sent: what is known of it. Pure.

use super::rules::{Field, Pattern};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

/// What a test says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// Nobody can tell from here.
    Unknown,
}

impl Truth {
    /// Of a plain answer.
    #[must_use]
    pub fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Unknown,
        }
    }

    /// One or both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        !(!self).and(!other)
    }
}

impl std::ops::Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
        }
    }
}

/// What a field of a packet holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A word, such as a device's name or a MAC.
    Word(String),
    /// Any of these words is true of it.
    Words(&'static [&'static str]),
    /// A number that has names.
    Named(&'static [&'static str], u64),
    /// A number.
    Number(u64),
    /// An address.
    Address(IpAddr),
    /// Yes or no.
    Flag(bool),
    /// The packet has no such field: a rule that looks at it does not match, whatever it compares with.
    Missing,
}

impl Fact {
    fn matches(&self, pattern: &Pattern) -> Truth {
        match (self, pattern) {
            (Self::Missing, _) => Truth::No,
            (_, Pattern::Any) => Truth::Yes,
            (Self::Word(word), Pattern::Word(wanted)) => Truth::of(word.eq_ignore_ascii_case(wanted)),
            (Self::Word(word), Pattern::Begins(start)) => Truth::of(word.starts_with(start)),
            (Self::Words(words), Pattern::Word(wanted)) => Truth::of(words.contains(&wanted.as_str())),
            (Self::Named(names, _), Pattern::Word(wanted)) => Truth::of(names.contains(&wanted.as_str())),
            (Self::Named(_, number) | Self::Number(number), Pattern::Numbers(first, last)) => {
                Truth::of((first..=last).contains(&number))
            }
            (Self::Address(address), Pattern::Net(net)) => Truth::of(net.contains(address)),
            (Self::Address(address), Pattern::Addresses(first, last)) => {
                Truth::of((first..=last).contains(&address))
            }
            (Self::Flag(flag), Pattern::Flag(wanted)) => Truth::of(flag == wanted),
            // Words that this reader does not know for a number, and the like.
            _ => Truth::Unknown,
        }
    }
}

/// The protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// An echo request of ICMP or ICMPv6, or the answer to one.
    Icmp,
}

impl Protocol {
    /// The word for people, and of nft for all but ICMPv6.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// A flow: who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends first.
    pub source: IpAddr,
    /// Who is sent to; of the same version.
    pub destination: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// The port that is sent to; `None` for ICMP, and where it is not known.
    pub port: Option<u16>,
}

/// The port that a client sends from: DHCP's own, else one of those that systems choose.
fn client(flow: &Flow) -> u16 {
    if flow.protocol == Protocol::Udp && flow.port == Some(67) { 68 } else { 50_000 }
}

/// What is known of a packet; a field that is not there is not known.
#[derive(Clone, Debug, Default)]
pub struct Packet(BTreeMap<Field, Fact>);

impl Packet {
    /// The first packet of a flow.
    #[must_use]
    pub fn first(flow: &Flow) -> Self {
        let mut packet = Self::ends(flow, flow.source, flow.destination);
        packet.set(Field::State, Fact::Words(&["new"]));
        packet.set(Field::Status, Fact::Words(&[]));
        packet.set(Field::Direction, Fact::Named(&["original"], 0));
        packet.ports(flow, flow.port, [Field::TcpDestination, Field::UdpDestination, Field::DestinationPort]);
        packet.ports(flow, Some(client(flow)), [Field::TcpSource, Field::UdpSource, Field::SourcePort]);
        packet.icmp(flow, [(&["echo-request"], 8), (&["echo-request"], 128)]);
        packet
    }

    /// An answer on a flow, as the host sees it: its addresses are those of the flow, changed over. `translated`:
    /// the flow left with another source.
    #[must_use]
    pub fn answer(flow: &Flow, translated: bool) -> Self {
        let mut packet = Self::ends(flow, flow.destination, flow.source);
        packet.set(Field::State, Fact::Words(&["established"]));
        let status: &[&str] = if translated {
            &["seen-reply", "confirmed", "snat", "snat-done", "dnat-done"]
        } else {
            &["seen-reply", "confirmed", "snat-done", "dnat-done"]
        };
        packet.set(Field::Status, Fact::Words(status));
        packet.set(Field::Direction, Fact::Named(&["reply"], 1));
        packet.ports(flow, flow.port, [Field::TcpSource, Field::UdpSource, Field::SourcePort]);
        let to = Some(client(flow));
        packet.ports(flow, to, [Field::TcpDestination, Field::UdpDestination, Field::DestinationPort]);
        packet.icmp(flow, [(&["echo-reply"], 0), (&["echo-reply"], 129)]);
        packet
    }

    /// Adds what is known.
    #[must_use]
    pub fn with(mut self, field: Field, fact: Fact) -> Self {
        self.set(field, fact);
        self
    }

    /// Adds the devices it comes in and leaves by, as IP rules see them.
    #[must_use]
    pub fn by(self, iif: &str, oif: Option<&str>) -> Self {
        let oif = oif.map_or(Fact::Missing, |oif| Fact::Word(oif.to_owned()));
        self.with(Field::Iif, Fact::Word(iif.to_owned())).with(Field::Oif, oif)
    }

    fn set(&mut self, field: Field, fact: Fact) {
        self.0.insert(field, fact);
    }

    fn ends(flow: &Flow, source: IpAddr, destination: IpAddr) -> Self {
        let mut packet = Self::default();
        packet.set(Field::Missing, Fact::Missing);
        packet.set(Field::Bridged, Fact::Flag(false));
        for (fields, address) in [
            ([Field::Source4, Field::Source6], source),
            ([Field::Destination4, Field::Destination6], destination),
        ] {
            let [here, absent] = if address.is_ipv4() { fields } else { [fields[1], fields[0]] };
            packet.set(here, Fact::Address(address));
            packet.set(absent, Fact::Missing);
        }
        let v4 = flow.destination.is_ipv4();
        let (version, ethertype) = match v4 {
            true => (Fact::Named(&["ipv4"], 2), Fact::Named(&["ip"], 0x0800)),
            false => (Fact::Named(&["ipv6"], 10), Fact::Named(&["ip6"], 0x86dd)),
        };
        packet.set(Field::Version, version);
        packet.set(Field::EtherType, ethertype);
        let protocol = match (flow.protocol, v4) {
            (Protocol::Tcp, _) => Fact::Named(&["tcp"], 6),
            (Protocol::Udp, _) => Fact::Named(&["udp"], 17),
            (Protocol::Icmp, true) => Fact::Named(&["icmp"], 1),
            (Protocol::Icmp, false) => Fact::Named(&["icmpv6", "ipv6-icmp"], 58),
        };
        let (here, absent) =
            if v4 { (Field::Protocol4, Field::Protocol6) } else { (Field::Protocol6, Field::Protocol4) };
        packet.set(here, protocol.clone());
        packet.set(absent, Fact::Missing);
        packet.set(Field::Protocol, protocol);
        packet.set(Field::Extension, Fact::Flag(false));
        let broadcast = destination == IpAddr::V4(Ipv4Addr::BROADCAST);
        if broadcast || destination.is_multicast() {
            let kind: &[&str] = if broadcast { &["broadcast"] } else { &["multicast"] };
            packet.set(Field::DestinationType, Fact::Words(kind));
        }
        // TCP's fields are not there in UDP, and so on.
        let (tcp, udp) = (flow.protocol == Protocol::Tcp, flow.protocol == Protocol::Udp);
        for (field, there) in [
            (Field::TcpSource, tcp),
            (Field::TcpDestination, tcp),
            (Field::UdpSource, udp),
            (Field::UdpDestination, udp),
            (Field::SourcePort, tcp || udp),
            (Field::DestinationPort, tcp || udp),
            (Field::IcmpType, flow.protocol == Protocol::Icmp && v4),
            (Field::Icmp6Type, flow.protocol == Protocol::Icmp && !v4),
        ] {
            if !there {
                packet.set(field, Fact::Missing);
            }
        }
        packet
    }

    fn ports(&mut self, flow: &Flow, port: Option<u16>, [tcp, udp, any]: [Field; 3]) {
        let Some(port) = port else { return };
        let own = match flow.protocol {
            Protocol::Tcp => tcp,
            Protocol::Udp => udp,
            Protocol::Icmp => return,
        };
        self.set(own, Fact::Number(port.into()));
        self.set(any, Fact::Number(port.into()));
    }

    fn icmp(&mut self, flow: &Flow, types: [(&'static [&'static str], u64); 2]) {
        if flow.protocol == Protocol::Icmp {
            let (field, (names, number)) = match flow.destination.is_ipv4() {
                true => (Field::IcmpType, types[0]),
                false => (Field::Icmp6Type, types[1]),
            };
            self.set(field, Fact::Named(names, number));
        }
    }

    /// Whether it is IPv4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.0.get(&Field::EtherType) == Some(&Fact::Named(&["ip"], 0x0800))
    }

    /// Takes away what is known of addresses.
    #[must_use]
    pub fn from_anywhere(mut self) -> Self {
        for field in [Field::Source4, Field::Destination4, Field::Source6, Field::Destination6] {
            if self.0.get(&field) != Some(&Fact::Missing) {
                self.0.remove(&field);
            }
        }
        self
    }

    /// Whether a flow is looked at first here: only then a chain of type nat sees it.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.0.get(&Field::State) == Some(&Fact::Words(&["new"]))
    }

    /// Whether these fields are there at all; `Unknown` where that is not known.
    #[must_use]
    pub fn has(&self, fields: &[Field]) -> Truth {
        fields.iter().fold(Truth::Yes, |all, field| {
            all.and(match self.0.get(field) {
                Some(Fact::Missing) => Truth::No,
                Some(_) => Truth::Yes,
                None => Truth::Unknown,
            })
        })
    }

    /// Whether these fields are as one member of a set.
    #[must_use]
    pub fn matches(&self, fields: &[Field], key: &[Pattern]) -> Truth {
        if fields.len() != key.len() {
            return Truth::Unknown;
        }
        fields.iter().zip(key).fold(Truth::Yes, |all, (field, pattern)| {
            all.and(self.0.get(field).map_or(Truth::Unknown, |fact| fact.matches(pattern)))
        })
    }
}
