//! Elements of groups as members of sets, and back. Pure.

use super::{Field, Member, net4, net6};
use crate::{
    kernel::{Allow, Allowed, Element, Peer, Place, With},
    model::{Direction, IfName},
};
use ipnet::IpNet;
use std::{net::IpAddr, ops::RangeInclusive, str::FromStr};

/// What a set of allowed things is for.
type Sort = (Place, Direction, Reach, bool);

/// How the other end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// By IPv4 address.
    V4,
    /// By IPv6 address.
    V6,
    /// By its profile.
    Peer,
}

/// Sets of what profiles allow: in the bridge table and the inet table, in and out; the last is whether by port.
const ALLOWS: [(&str, Sort); 24] = [
    ("kv_in4", (Place::Bridge, Direction::In, Reach::V4, false)),
    ("kv_in6", (Place::Bridge, Direction::In, Reach::V6, false)),
    ("kv_in_peer", (Place::Bridge, Direction::In, Reach::Peer, false)),
    ("kv_in4_port", (Place::Bridge, Direction::In, Reach::V4, true)),
    ("kv_in6_port", (Place::Bridge, Direction::In, Reach::V6, true)),
    ("kv_in_peer_port", (Place::Bridge, Direction::In, Reach::Peer, true)),
    ("kv_out4", (Place::Bridge, Direction::Out, Reach::V4, false)),
    ("kv_out6", (Place::Bridge, Direction::Out, Reach::V6, false)),
    ("kv_out_peer", (Place::Bridge, Direction::Out, Reach::Peer, false)),
    ("kv_out4_port", (Place::Bridge, Direction::Out, Reach::V4, true)),
    ("kv_out6_port", (Place::Bridge, Direction::Out, Reach::V6, true)),
    ("kv_out_peer_port", (Place::Bridge, Direction::Out, Reach::Peer, true)),
    ("kv_via_in4", (Place::Host, Direction::In, Reach::V4, false)),
    ("kv_via_in6", (Place::Host, Direction::In, Reach::V6, false)),
    ("kv_via_in_peer", (Place::Host, Direction::In, Reach::Peer, false)),
    ("kv_via_in4_port", (Place::Host, Direction::In, Reach::V4, true)),
    ("kv_via_in6_port", (Place::Host, Direction::In, Reach::V6, true)),
    ("kv_via_in_peer_port", (Place::Host, Direction::In, Reach::Peer, true)),
    ("kv_via_out4", (Place::Host, Direction::Out, Reach::V4, false)),
    ("kv_via_out6", (Place::Host, Direction::Out, Reach::V6, false)),
    ("kv_via_out_peer", (Place::Host, Direction::Out, Reach::Peer, false)),
    ("kv_via_out4_port", (Place::Host, Direction::Out, Reach::V4, true)),
    ("kv_via_out6_port", (Place::Host, Direction::Out, Reach::V6, true)),
    ("kv_via_out_peer_port", (Place::Host, Direction::Out, Reach::Peer, true)),
];

/// Maps from profile and address to a pair of profiles; the last is whether over IPv4.
const PEERS: [(&str, (Place, Direction, bool)); 8] = [
    ("kv_in_peer4", (Place::Bridge, Direction::In, true)),
    ("kv_in_peer6", (Place::Bridge, Direction::In, false)),
    ("kv_out_peer4", (Place::Bridge, Direction::Out, true)),
    ("kv_out_peer6", (Place::Bridge, Direction::Out, false)),
    ("kv_via_in_peer4", (Place::Host, Direction::In, true)),
    ("kv_via_in_peer6", (Place::Host, Direction::In, false)),
    ("kv_via_out_peer4", (Place::Host, Direction::Out, true)),
    ("kv_via_out_peer6", (Place::Host, Direction::Out, false)),
];

/// Sets of the bridge table that have to do with groups.
pub(super) fn in_bridge(set: &str) -> bool {
    matches!(set, "kv_group_in" | "kv_group_out" | "kv_station" | "kv_profile")
        || ALLOWS.iter().any(|(name, (place, ..))| *name == set && *place == Place::Bridge)
        || PEERS.iter().any(|(name, (place, ..))| *name == set && *place == Place::Bridge)
}

/// A profile and a peer's, 0 for none, as nft prints a class id.
fn pair(text: &str) -> Option<(u16, u16)> {
    let (profile, peer) = text.split_once(':')?;
    let number = |text| u16::from_str_radix(text, 16).ok();
    Some((number(profile)?, number(peer)?))
}

fn profile(text: &str) -> Option<u16> {
    pair(text).filter(|(_, peer)| *peer == 0).map(|(profile, _)| profile)
}

/// The members of an element that has to do with groups; none of another.
pub(super) fn members(element: &Element) -> Vec<Member> {
    let name = |name: &IfName| Field::Name(name.clone());
    let word = |value: &IpAddr| Field::Word(value.to_string());
    let member = |set, fields| vec![Member { set, fields, value: Vec::new() }];
    match element {
        Element::GroupedTap(direction, tap) => {
            member(pick(*direction, "kv_group_in", "kv_group_out"), vec![name(tap)])
        }
        Element::StationTap(tap) => member("kv_station", vec![name(tap)]),
        Element::TapProfile(tap, profile) => {
            let value = vec![Field::Class(*profile, 0)];
            vec![Member { set: "kv_profile", fields: vec![name(tap)], value }]
        }
        Element::GroupedAddress(direction, bridge, address) => {
            let set = match address {
                IpAddr::V4(_) => pick(*direction, "kv_guest_in4", "kv_guest_out4"),
                IpAddr::V6(_) => pick(*direction, "kv_guest_in6", "kv_guest_out6"),
            };
            member(set, vec![name(bridge), word(address)])
        }
        Element::AddressProfile(bridge, address, profile) => {
            let set = if address.is_ipv4() { "kv_profile4" } else { "kv_profile6" };
            let value = vec![Field::Class(*profile, 0)];
            vec![Member { set, fields: vec![name(bridge), word(address)], value }]
        }
        Element::Peer(place, Peer { direction, profile, address, peer }) => {
            let wanted = (*place, *direction, address.is_ipv4());
            let found = PEERS.iter().find(|(_, sort)| *sort == wanted);
            let fields = vec![Field::Class(*profile, 0), word(address)];
            let value = vec![Field::Class(*profile, *peer)];
            found.map(|(set, _)| Member { set, fields, value }).into_iter().collect()
        }
        Element::Allow(place, allow) => {
            let (reach, other, class) = match allow.remote {
                With::Net(IpNet::V4(net)) => (Reach::V4, Some(Field::Net(net.into())), 0),
                With::Net(IpNet::V6(net)) => (Reach::V6, Some(Field::Net(net.into())), 0),
                With::Profile(peer) => (Reach::Peer, None, peer),
            };
            let (protocols, ports) = match allow.what {
                Allowed::Protocols { first, last } => (Field::Range(first.into(), last.into()), None),
                Allowed::Ports { protocol, first, last } => {
                    (Field::Range(protocol.into(), protocol.into()), Some(Field::Range(first, last)))
                }
            };
            let wanted = (*place, allow.direction, reach, ports.is_some());
            let found = ALLOWS.iter().find(|(_, sort)| *sort == wanted);
            let fields = [Field::Class(allow.profile, class), protocols]
                .into_iter()
                .chain(other)
                .chain(ports)
                .collect();
            found.map(|(set, _)| member(set, fields)).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn pick(direction: Direction, into: &'static str, out: &'static str) -> &'static str {
    match direction {
        Direction::In => into,
        Direction::Out => out,
    }
}

/// The element that a member read back stands for.
pub(super) fn element(set: &str, fields: &[String]) -> Option<Element> {
    let first = || fields.first()?.parse::<IfName>().ok();
    let address = || fields.get(1)?.parse::<IpAddr>().ok();
    let grouped = |direction| Some(Element::GroupedAddress(direction, first()?, address()?));
    match set {
        "kv_group_in" => Some(Element::GroupedTap(Direction::In, first()?)),
        "kv_group_out" => Some(Element::GroupedTap(Direction::Out, first()?)),
        "kv_station" => Some(Element::StationTap(first()?)),
        "kv_profile" => Some(Element::TapProfile(first()?, profile(fields.get(1)?)?)),
        "kv_guest_in4" | "kv_guest_in6" => grouped(Direction::In),
        "kv_guest_out4" | "kv_guest_out6" => grouped(Direction::Out),
        "kv_profile4" | "kv_profile6" => {
            Some(Element::AddressProfile(first()?, address()?, profile(fields.get(2)?)?))
        }
        _ => peer(set, fields).or_else(|| allow(set, fields)),
    }
}

fn peer(set: &str, fields: &[String]) -> Option<Element> {
    let (_, (place, direction, _)) = PEERS.iter().find(|(name, _)| *name == set)?;
    let own = profile(fields.first()?)?;
    let (profile, peer) = pair(fields.get(2)?)?;
    let address = fields.get(1)?.parse().ok()?;
    let peer = Peer { direction: *direction, profile, address, peer };
    (own == profile).then_some(Element::Peer(*place, peer))
}

fn allow(set: &str, fields: &[String]) -> Option<Element> {
    let (_, (place, direction, reach, ports)) = ALLOWS.iter().find(|(name, _)| *name == set)?;
    let (profile, peer) = pair(fields.first()?)?;
    let protocols = protocols(fields.get(1)?)?;
    let remote = match reach {
        Reach::V4 if peer == 0 => With::Net(net4(fields.get(2)?)?.into()),
        Reach::V6 if peer == 0 => With::Net(net6(fields.get(2)?)?.into()),
        Reach::Peer if peer != 0 => With::Profile(peer),
        _ => return None,
    };
    let what = if *ports {
        let ports = range::<u16>(fields.last()?)?;
        let (protocol, only) = (*protocols.start(), protocols.start() == protocols.end());
        only.then_some(Allowed::Ports { protocol, first: *ports.start(), last: *ports.end() })?
    } else {
        Allowed::Protocols { first: *protocols.start(), last: *protocols.end() }
    };
    Some(Element::Allow(*place, Allow { direction: *direction, profile, remote, what }))
}

/// nft writes a protocol by name if the host has one for it.
fn protocols(text: &str) -> Option<RangeInclusive<u8>> {
    let only = |number| Some(number..=number);
    match text {
        "icmp" => only(1),
        "tcp" => only(6),
        "udp" => only(17),
        "ipv6-icmp" | "icmpv6" => only(58),
        _ => range(text),
    }
}

/// A range, or one number, which a listing's reader has in hexadecimal.
fn range<T: FromStr + Copy + TryFrom<u64>>(text: &str) -> Option<RangeInclusive<T>> {
    if let Some((first, last)) = text.split_once('-') {
        return Some(first.parse().ok()?..=last.parse().ok()?);
    }
    let only = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?.try_into().ok()?,
        None => text.parse().ok()?,
    };
    Some(only..=only)
}
