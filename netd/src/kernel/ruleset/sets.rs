//! The sets, and what an element is in them. Pure.

mod groups;

use super::{
    super::{Element, Elements},
    TABLE,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftables::{
    expr::{Expression, NamedExpression, Prefix, Range},
    schema::{self, NfListObject},
    types::NfFamily,
};
use serde_json::Value;
use shared::mac::Mac;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::model::{Forwarding, IfName, Protocol};

/// Sets of the bridge table; all others are of the inet table.
const BRIDGE: [&str; 12] = [
    "kv_tap",
    "kv_filtered",
    "kv_isolated_tap",
    "kv_mac",
    "kv_lladdr",
    "kv_reflected",
    "kv_any4",
    "kv_ip4",
    "kv_arp",
    "kv_any6",
    "kv_ip6",
    "kv_target",
];

/// Sets that count what the filter dropped, and the reason that each stands for.
pub const DROPS: [(&str, &str); 10] = [
    ("kv_drop_mac", "mac"),
    ("kv_drop_ethertype", "ethertype"),
    ("kv_drop_arp", "arp"),
    ("kv_drop_ipv4", "ipv4"),
    ("kv_drop_ipv6", "ipv6"),
    ("kv_drop_nd", "nd"),
    ("kv_drop_router", "router"),
    ("kv_drop_dhcp", "dhcp"),
    ("kv_drop_group_in", "group-in"),
    ("kv_drop_group_out", "group-out"),
];
/// Sets of the inet table that have limits for guests: of flows begun, and of questions of DNS.
pub const HOST_LIMITS: [&str; 2] = ["kv_limit_flows", "kv_limit_dns"];
/// Sets of the inet table that count the packets beyond these, by bridge and MAC, and the reason that each stands for.
pub const HOST_DROPS: [(&str, &str); 2] = [("kv_drop_flows", "flows"), ("kv_drop_dns", "dns")];
/// Sets of addresses that ports were seen to use.
pub const SEEN: [&str; 2] = ["kv_seen4", "kv_seen6"];
/// Sets of UDP datagrams that may be answered.
pub const FLOWS: [&str; 2] = ["kv_flow4", "kv_flow6"];

/// Whether traffic fills the set, so that its members are no drift.
pub(super) fn filled_by_traffic(set: &str) -> bool {
    let sorts = ["kv_drop_", "kv_limit_"];
    SEEN.contains(&set) || FLOWS.contains(&set) || sorts.iter().any(|sort| set.starts_with(sort))
}

/// One field of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// An interface.
    Name(IfName),
    /// What nft writes as it is: an address.
    Word(String),
    /// A prefix.
    Net(IpNet),
    /// Raw bytes as a number.
    Bytes(u128),
    /// A port of TCP or UDP.
    Port(u16),
    /// Protocols or ports, from one to another. One alone is written as a range too: nft 1.0.6 cannot delete a member
    /// with a class id and no range at all.
    Range(u16, u16),
    /// Number of a port's groups and that of a peer's, or 0.
    Class(u16, u16),
}

impl Field {
    fn json(&self) -> Expression<'static> {
        match self {
            Self::Name(name) => Expression::String(name.to_string().into()),
            Self::Word(word) => Expression::String(word.clone().into()),
            Self::Net(net) => Expression::Named(NamedExpression::Prefix(Prefix {
                addr: Box::new(Expression::String(net.network().to_string().into())),
                len: net.prefix_len().into(),
            })),
            Self::Port(port) => Expression::Number((*port).into()),
            Self::Range(first, last) => {
                let [first, last] = [*first, *last].map(|number| Expression::Number(number.into()));
                Expression::Range(Box::new(Range { range: [first, last] }))
            }
            Self::Bytes(_) | Self::Class(..) => Expression::String(self.plain().into()),
        }
    }

    /// In nft's own language. An interface's name may be a word of that language, so it is quoted.
    fn text(&self) -> String {
        match self {
            Self::Name(name) => format!("\"{name}\""),
            Self::Port(port) => port.to_string(),
            other => other.plain(),
        }
    }

    /// As `plain` has it of a listing.
    fn plain(&self) -> String {
        match self {
            Self::Name(name) => name.to_string(),
            Self::Word(word) => word.clone(),
            Self::Net(net) => net.trunc().to_string(),
            Self::Bytes(number) => format!("{number:#x}"),
            Self::Port(port) => format!("{port:#x}"),
            Self::Range(first, last) => format!("{first}-{last}"),
            Self::Class(profile, peer) => format!("{profile:x}:{peer:x}"),
        }
    }
}

/// One member of one set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) set: &'static str,
    pub(super) fields: Vec<Field>,
    /// What a map has for it; empty in a set.
    pub(super) value: Vec<Field>,
}

impl Member {
    /// Its form in a listing, by which it is compared.
    pub(super) fn key(&self) -> (String, String) {
        let all = self.fields.iter().chain(&self.value);
        (self.set.to_owned(), all.map(Field::plain).collect::<Vec<_>>().join(" . "))
    }

    fn json(&self) -> Expression<'static> {
        match self.value.as_slice() {
            [] => json(&self.fields),
            value => Expression::List(vec![json(&self.fields), json(value)]),
        }
    }

    fn text(&self) -> String {
        match self.value.as_slice() {
            [] => text_of(&self.fields),
            value => format!("{} : {}", text_of(&self.fields), text_of(value)),
        }
    }
}

fn json(fields: &[Field]) -> Expression<'static> {
    match fields {
        [one] => one.json(),
        many => Expression::Named(NamedExpression::Concat(many.iter().map(Field::json).collect())),
    }
}

fn text_of(fields: &[Field]) -> String {
    fields.iter().map(Field::text).collect::<Vec<_>>().join(" . ")
}

/// The member of a map that a forward is.
fn forward<A: ToString>(one: &'static str, any: &'static str, forward: &Forwarding<A>) -> Member {
    let word = |value: &dyn ToString| Field::Word(value.to_string());
    let address = forward.listen.as_ref().map(|address| word(address));
    let protocol = std::iter::once(word(&forward.protocol));
    Member {
        set: if address.is_some() { one } else { any },
        fields: protocol.chain(address).chain([Field::Port(forward.port)]).collect(),
        value: vec![word(&forward.to), Field::Port(forward.to_port)],
    }
}

/// The members that an element stands for. The first one is what it is read back from; the others follow from it: a
/// bridge of ours is also in `kv_same`, an address also in the form of raw bytes.
pub(super) fn members(element: &Element) -> Vec<Member> {
    let name = |name: &IfName| Field::Name(name.clone());
    let word = |value: &dyn ToString| Field::Word(value.to_string());
    let member = |set, fields| Member { set, fields, value: Vec::new() };
    let bytes = |mac: &Mac| {
        let [a, b, c, d, e, f] = mac.bytes();
        Field::Bytes(u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into())
    };
    let same = |bridge| member("kv_same", vec![name(bridge), name(bridge)]);
    match element {
        Element::IsolatedBridge(bridge) => vec![member("kv_isolated", vec![name(bridge)]), same(bridge)],
        Element::GuestBridge(bridge) => vec![member("kv_guest", vec![name(bridge)]), same(bridge)],
        Element::NatBridge(bridge) => vec![member("kv_nat", vec![name(bridge)])],
        Element::RoutedBridge(bridge) => vec![member("kv_routed", vec![name(bridge)])],
        Element::AnyUplink(bridge) => vec![member("kv_any_uplink", vec![name(bridge)])],
        Element::Uplink(bridge, uplink) => vec![member("kv_uplink", vec![name(bridge), name(uplink)])],
        Element::Subnet4(bridge, net) => {
            vec![member("kv_subnet4", vec![name(bridge), Field::Net(IpNet::V4(*net))])]
        }
        Element::Subnet6(bridge, net) => {
            vec![member("kv_subnet6", vec![name(bridge), Field::Net(IpNet::V6(*net))])]
        }
        Element::BridgeMac(bridge, mac) => vec![member("kv_bridge_mac", vec![name(bridge), word(mac)])],
        Element::Gateway4(bridge, address) => {
            vec![member("kv_gateway4", vec![name(bridge), word(address)])]
        }
        Element::Gateway6(bridge, address) => {
            vec![member("kv_gateway6", vec![name(bridge), word(address)])]
        }
        Element::Apart4(bridge, address) => vec![member("kv_apart4", vec![name(bridge), word(address)])],
        Element::Apart6(bridge, address) => vec![member("kv_apart6", vec![name(bridge), word(address)])],
        Element::Tap(tap) => vec![member("kv_tap", vec![name(tap)])],
        Element::FilteredTap(tap) => vec![member("kv_filtered", vec![name(tap)])],
        Element::IsolatedTap(tap) => vec![member("kv_isolated_tap", vec![name(tap)])],
        Element::TapMac(tap, mac) => vec![
            member("kv_mac", vec![name(tap), word(mac)]),
            member("kv_lladdr", vec![name(tap), bytes(mac)]),
        ],
        Element::ReflectedTap(tap) => vec![member("kv_reflected", vec![name(tap), name(tap)])],
        Element::Forward4(to) => vec![forward("kv_forward4", "kv_any_forward4", to)],
        Element::Forward6(to) => vec![forward("kv_forward6", "kv_any_forward6", to)],
        Element::Open4(bridge, address, protocol, port) => {
            vec![member("kv_open4", vec![name(bridge), word(address), word(protocol), Field::Port(*port)])]
        }
        Element::Open6(bridge, address, protocol, port) => {
            vec![member("kv_open6", vec![name(bridge), word(address), word(protocol), Field::Port(*port)])]
        }
        Element::AnyAddress4(tap) => vec![member("kv_any4", vec![name(tap)])],
        Element::AnyAddress6(tap) => vec![member("kv_any6", vec![name(tap)])],
        Element::TapAddress4(tap, mac, address) => vec![
            member("kv_arp", vec![name(tap), word(mac), word(address)]),
            member("kv_ip4", vec![name(tap), word(address)]),
        ],
        Element::TapAddress6(tap, address) => vec![
            member("kv_ip6", vec![name(tap), word(address)]),
            member("kv_target", vec![name(tap), Field::Bytes(u128::from(*address))]),
        ],
        of_groups => groups::members(of_groups),
    }
}

/// A member of a listing in fields, those of a map's value last.
pub(super) fn fields(member: &Value) -> Vec<String> {
    if let Some(pair) = member.as_array() {
        return pair.iter().flat_map(fields).collect();
    }
    match member.pointer("/concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(plain).collect(),
        None => vec![plain(member)],
    }
}

/// nft writes a number of up to 63 bits as such and a longer one as text; neither has leading zeros.
fn plain(value: &Value) -> String {
    if let Some(number) = value.as_u64() {
        return format!("{number:#x}");
    }
    if let Some((address, length)) = prefix(value) {
        return format!("{address}/{length}");
    }
    if let Some([first, last]) = value.pointer("/range").and_then(Value::as_array).map(Vec::as_slice) {
        return format!("{first}-{last}");
    }
    match value.as_str() {
        Some(text) => match text.strip_prefix("0x") {
            Some(digits) => format!("0x{}", digits.trim_start_matches('0')),
            None => text.to_owned(),
        },
        None => value.to_string(),
    }
}

fn prefix(value: &Value) -> Option<(&str, u64)> {
    Some((value.pointer("/prefix/addr")?.as_str()?, value.pointer("/prefix/len")?.as_u64()?))
}

/// The element that a member read back stands for; `None` for members that follow from others, and for what is not
/// ours.
pub(super) fn element(set: &str, fields: &[String]) -> Option<Element> {
    fn at<T: FromStr>(fields: &[String], at: usize) -> Option<T> {
        fields.get(at)?.parse().ok()
    }
    if let Some(of_groups) = groups::element(set, fields) {
        return Some(of_groups);
    }
    match set {
        "kv_forward4" => return Some(Element::Forward4(forwarding(fields, true)?)),
        "kv_forward6" => return Some(Element::Forward6(forwarding(fields, true)?)),
        "kv_any_forward4" => return Some(Element::Forward4(forwarding(fields, false)?)),
        "kv_any_forward6" => return Some(Element::Forward6(forwarding(fields, false)?)),
        _ => {}
    }
    let first: IfName = at(fields, 0)?;
    Some(match set {
        "kv_reflected" if fields.get(1) == fields.first() => Element::ReflectedTap(first),
        "kv_open4" => Element::Open4(first, at(fields, 1)?, protocol(fields.get(2)?)?, port(fields.get(3)?)?),
        "kv_open6" => Element::Open6(first, at(fields, 1)?, protocol(fields.get(2)?)?, port(fields.get(3)?)?),
        "kv_isolated" => Element::IsolatedBridge(first),
        "kv_guest" => Element::GuestBridge(first),
        "kv_nat" => Element::NatBridge(first),
        "kv_routed" => Element::RoutedBridge(first),
        "kv_any_uplink" => Element::AnyUplink(first),
        "kv_uplink" => Element::Uplink(first, at(fields, 1)?),
        "kv_subnet4" => Element::Subnet4(first, net4(fields.get(1)?)?),
        "kv_subnet6" => Element::Subnet6(first, net6(fields.get(1)?)?),
        "kv_bridge_mac" => Element::BridgeMac(first, at(fields, 1)?),
        "kv_gateway4" => Element::Gateway4(first, at(fields, 1)?),
        "kv_gateway6" => Element::Gateway6(first, at(fields, 1)?),
        "kv_apart4" => Element::Apart4(first, at(fields, 1)?),
        "kv_apart6" => Element::Apart6(first, at(fields, 1)?),
        "kv_tap" => Element::Tap(first),
        "kv_filtered" => Element::FilteredTap(first),
        "kv_isolated_tap" => Element::IsolatedTap(first),
        "kv_mac" => Element::TapMac(first, at(fields, 1)?),
        "kv_any4" => Element::AnyAddress4(first),
        "kv_any6" => Element::AnyAddress6(first),
        "kv_arp" => Element::TapAddress4(first, at(fields, 1)?, at(fields, 2)?),
        "kv_ip6" => Element::TapAddress6(first, at(fields, 1)?),
        _ => return None,
    })
}

/// A member of the maps for one address, or for any.
fn forwarding<A: FromStr>(fields: &[String], one: bool) -> Option<Forwarding<A>> {
    let (listen, rest) = match fields.get(1..)? {
        [address, rest @ ..] if one => (Some(address.parse().ok()?), rest),
        rest => (None, rest),
    };
    let [at, to, to_port] = rest else { return None };
    Some(Forwarding {
        protocol: protocol(fields.first()?)?,
        listen,
        port: port(at)?,
        to: to.parse().ok()?,
        to_port: port(to_port)?,
    })
}

/// nft knows the name from /etc/protocols, and writes the number where that is missing.
fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" | "0x6" => Some(Protocol::Tcp),
        "udp" | "0x11" => Some(Protocol::Udp),
        _ => None,
    }
}

fn port(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// nft leaves a full prefix length out.
fn net4(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().or_else(|| Some(text.parse::<Ipv4Addr>().ok()?.into()))
}

fn net6(text: &str) -> Option<Ipv6Net> {
    text.parse().ok().or_else(|| Some(text.parse::<Ipv6Addr>().ok()?.into()))
}

fn by_set(elements: &Elements) -> BTreeMap<&'static str, Vec<Member>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for member in elements.0.iter().flat_map(members) {
        sets.entry(member.set).or_default().push(member);
    }
    sets
}

fn family(set: &str) -> NfFamily {
    if BRIDGE.contains(&set) || groups::in_bridge(set) || filled_by_traffic(set) {
        NfFamily::Bridge
    } else {
        NfFamily::INet
    }
}

/// Commands that add members, in nft's own language.
pub(super) fn text(elements: &Elements) -> String {
    by_set(elements).into_iter().fold(String::new(), |mut text, (set, members)| {
        let members: Vec<_> = members.iter().map(Member::text).collect();
        let family = super::word(family(set));
        text += &format!("add element {family} {TABLE} {set} {{ {} }}\n", members.join(", "));
        text
    })
}

/// The same as objects of a JSON transaction.
pub(super) fn objects(elements: &Elements) -> Vec<NfListObject<'static>> {
    by_set(elements)
        .into_iter()
        .map(|(set, members)| object(set, members.iter().map(Member::json).collect()))
        .collect()
}

/// What traffic has left behind of a tap that goes: its counters.
pub(super) fn counters(tap: &IfName) -> Vec<NfListObject<'static>> {
    let key = || vec![Expression::String(tap.to_string().into())];
    DROPS.iter().map(|(set, _)| object(set, key())).collect()
}

fn object(set: &'static str, members: Vec<Expression<'static>>) -> NfListObject<'static> {
    NfListObject::Element(schema::Element {
        family: family(set),
        table: TABLE.into(),
        name: set.into(),
        elem: members.into(),
    })
}
