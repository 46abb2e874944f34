//! The sets, and what an element is in them. Pure.

use super::{
    super::{Element, Elements},
    TABLE,
    words::concat,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftables::{
    expr::{Expression, NamedExpression, Prefix},
    schema::{self, NfListObject, SetType},
    types::NfFamily,
};
use serde_json::Value;
use shared::mac::Mac;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

/// A set of ours: where it is and what it holds.
pub(super) struct SetSpec {
    pub(super) family: NfFamily,
    pub(super) name: &'static str,
    pub(super) key: &'static [SetType],
    pub(super) interval: bool,
}

use SetType::{EtherAddr, Ifname, Ipv4Addr as V4, Ipv6Addr as V6};

const fn set(family: NfFamily, name: &'static str, key: &'static [SetType]) -> SetSpec {
    SetSpec { family, name, key, interval: false }
}

pub(super) const SETS: [SetSpec; 14] = [
    set(NfFamily::Bridge, "kv_filtered", &[Ifname]),
    set(NfFamily::Bridge, "kv_mac", &[Ifname, EtherAddr]),
    set(NfFamily::Bridge, "kv_isolated_tap", &[Ifname]),
    set(NfFamily::INet, "kv_isolated", &[Ifname]),
    set(NfFamily::INet, "kv_guest", &[Ifname]),
    set(NfFamily::INet, "kv_nat", &[Ifname]),
    set(NfFamily::INet, "kv_routed", &[Ifname]),
    set(NfFamily::INet, "kv_any_uplink", &[Ifname]),
    set(NfFamily::INet, "kv_uplink", &[Ifname, Ifname]),
    set(NfFamily::INet, "kv_same", &[Ifname, Ifname]),
    SetSpec { family: NfFamily::INet, name: "kv_subnet4", key: &[Ifname, V4], interval: true },
    SetSpec { family: NfFamily::INet, name: "kv_subnet6", key: &[Ifname, V6], interval: true },
    set(NfFamily::INet, "kv_gateway4", &[Ifname, V4]),
    set(NfFamily::INet, "kv_gateway6", &[Ifname, V6]),
];

/// The sets and members that one element stands for. A bridge of ours is also in `kv_same`, since with bridge
/// netfilter on a frame between two of its ports passes the forward hook as a packet from the bridge to itself.
pub(super) fn members(element: &Element) -> Vec<(&'static str, Vec<Expression<'static>>)> {
    let text = |value: &dyn ToString| Expression::String(value.to_string().into());
    let prefix = |net: IpNet| {
        Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(text(&net.network())),
            len: net.prefix_len().into(),
        }))
    };
    let same = |bridge| ("kv_same", vec![text(bridge), text(bridge)]);
    match element {
        Element::IsolatedBridge(bridge) => vec![("kv_isolated", vec![text(bridge)]), same(bridge)],
        Element::GuestBridge(bridge) => vec![("kv_guest", vec![text(bridge)]), same(bridge)],
        Element::NatBridge(bridge) => vec![("kv_nat", vec![text(bridge)])],
        Element::RoutedBridge(bridge) => vec![("kv_routed", vec![text(bridge)])],
        Element::AnyUplink(bridge) => vec![("kv_any_uplink", vec![text(bridge)])],
        Element::Uplink(bridge, uplink) => vec![("kv_uplink", vec![text(bridge), text(uplink)])],
        Element::Subnet4(bridge, net) => vec![("kv_subnet4", vec![text(bridge), prefix(IpNet::V4(*net))])],
        Element::Subnet6(bridge, net) => vec![("kv_subnet6", vec![text(bridge), prefix(IpNet::V6(*net))])],
        Element::Gateway4(bridge, address) => vec![("kv_gateway4", vec![text(bridge), text(address)])],
        Element::Gateway6(bridge, address) => vec![("kv_gateway6", vec![text(bridge), text(address)])],
        Element::FilteredTap(tap) => vec![("kv_filtered", vec![text(tap)])],
        Element::TapMac(tap, mac) => vec![("kv_mac", vec![text(tap), text(mac)])],
        Element::IsolatedTap(tap) => vec![("kv_isolated_tap", vec![text(tap)])],
    }
}

/// The element that a member read back stands for; `None` for `kv_same`, which others imply, and for what is not
/// ours.
pub(super) fn element(set: &str, member: &Value) -> Option<Element> {
    let parts = match member.pointer("/concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().collect(),
        None => vec![member],
    };
    let name = |at: usize| parts.get(at)?.as_str()?.parse().ok();
    let first = name(0)?;
    Some(match set {
        "kv_isolated" => Element::IsolatedBridge(first),
        "kv_guest" => Element::GuestBridge(first),
        "kv_nat" => Element::NatBridge(first),
        "kv_routed" => Element::RoutedBridge(first),
        "kv_any_uplink" => Element::AnyUplink(first),
        "kv_uplink" => Element::Uplink(first, name(1)?),
        "kv_subnet4" => Element::Subnet4(
            first,
            net(parts.get(1)?).and_then(|n| Ipv4Net::new(n.0.parse().ok()?, n.1).ok())?,
        ),
        "kv_subnet6" => Element::Subnet6(
            first,
            net(parts.get(1)?).and_then(|n| Ipv6Net::new(n.0.parse().ok()?, n.1).ok())?,
        ),
        "kv_gateway4" => Element::Gateway4(first, parts.get(1)?.as_str()?.parse::<Ipv4Addr>().ok()?),
        "kv_gateway6" => Element::Gateway6(first, parts.get(1)?.as_str()?.parse::<Ipv6Addr>().ok()?),
        "kv_filtered" => Element::FilteredTap(first),
        "kv_mac" => Element::TapMac(first, parts.get(1)?.as_str()?.parse::<Mac>().ok()?),
        "kv_isolated_tap" => Element::IsolatedTap(first),
        _ => return None,
    })
}

fn net(value: &Value) -> Option<(&str, u8)> {
    let address = value.pointer("/prefix/addr")?.as_str()?;
    let length = value.pointer("/prefix/len")?.as_u64()?;
    Some((address, length.try_into().ok()?))
}

pub(super) fn by_set(elements: &Elements) -> BTreeMap<&'static str, Vec<Expression<'static>>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (set, mut key) in elements.0.iter().flat_map(members) {
        let member = if key.len() == 1 { key.remove(0) } else { concat(key) };
        sets.entry(set).or_default().push(member);
    }
    sets
}

pub(super) fn set_members(name: &'static str, members: Vec<Expression<'static>>) -> NfListObject<'static> {
    let family = SETS.iter().find(|spec| spec.name == name).map_or(NfFamily::INet, |spec| spec.family);
    NfListObject::Element(schema::Element {
        family,
        table: TABLE.into(),
        name: name.into(),
        elem: members.into(),
    })
}
