//! Links as rtnetlink tells of them, in our own words.

use super::{Link, LinkKind, PortFlags};
use crate::model::IfName;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoTun, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use shared::mac::Mac;
use std::{collections::BTreeMap, path::Path};

/// Attributes of `IFLA_INFO_DATA` of a tun device (include/uapi/linux/if_link.h).
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_PERSIST: u16 = 6;

/// A link whose relations are still index numbers.
pub struct RawLink {
    pub name: IfName,
    pub link: Link,
    pub master: Option<u32>,
    pub lower: Option<u32>,
}

/// Reads one message; `None` if it names no link that we can speak of.
pub fn parse(message: &LinkMessage) -> Option<RawLink> {
    let mut name = None;
    let mut master = None;
    let mut lower = None;
    let mut info: &[LinkInfo] = &[];
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { up, ..Link::new(message.header.index, LinkKind::Nic) };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse::<IfName>().ok(),
            LinkAttribute::IfAlias(text) => link.alias.clone_from(text),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = *carrier == 1,
            LinkAttribute::Address(bytes) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().and_then(|b| Mac::from_bytes(b).ok());
            }
            LinkAttribute::LinkInfo(infos) => info = infos,
            _ => {}
        }
    }
    let name = name?;
    // A veth's peer is told as its lower link, and neither stands on the other.
    if info.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Veth))) {
        lower = None;
    }
    link.kind = kind(message.header.link_layer_type, info, &name);
    link.port = info.iter().find_map(|i| match i {
        LinkInfo::PortData(InfoPortData::BridgePort(flags)) => Some(port_flags(flags)),
        _ => None,
    });
    Some(RawLink { name, link, master, lower })
}

/// The kind of qdisc for what a link sends; empty if none is told.
pub fn qdisc(message: &LinkMessage) -> &str {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Qdisc(kind) => Some(kind.as_str()),
        _ => None,
    });
    kind.unwrap_or_default()
}

fn kind(layer: LinkLayerType, info: &[LinkInfo], name: &IfName) -> LinkKind {
    if layer == LinkLayerType::Loopback {
        return LinkKind::Loopback;
    }
    let kind = info.iter().find_map(|i| if let LinkInfo::Kind(kind) = i { Some(kind) } else { None });
    match kind {
        Some(InfoKind::Bridge) => LinkKind::Bridge,
        Some(InfoKind::Tun) => tap(info),
        Some(InfoKind::Ifb) => LinkKind::Ifb,
        // The kernel tells of wireless only in sysfs.
        None if Path::new("/sys/class/net").join(name.as_str()).join("phy80211").exists() => LinkKind::Wifi,
        _ => LinkKind::Nic,
    }
}

fn tap(info: &[LinkInfo]) -> LinkKind {
    let mut owner = None;
    let mut persist = false;
    let data =
        info.iter().find_map(|i| if let LinkInfo::Data(InfoData::Tun(data)) = i { Some(data) } else { None });
    for attribute in data.into_iter().flatten() {
        let InfoTun::Other(nla) = attribute else { continue };
        let mut value = vec![0; nla.value_len()];
        nla.emit_value(&mut value);
        match (nla.kind(), value.as_slice()) {
            (IFLA_TUN_OWNER, &[a, b, c, d]) => owner = Some(u32::from_ne_bytes([a, b, c, d])),
            (IFLA_TUN_PERSIST, &[flag]) => persist = flag == 1,
            _ => {}
        }
    }
    LinkKind::Tap { owner, persist }
}

fn port_flags(flags: &[InfoBridgePort]) -> PortFlags {
    let mut port = PortFlags {
        learning: true,
        flood: true,
        bpdu_guard: false,
        root_block: false,
        isolated: false,
        reserved_groups: 0,
        hairpin: false,
    };
    for flag in flags {
        match flag {
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::UnicastFlood(on) => port.flood = *on,
            InfoBridgePort::Guard(on) => port.bpdu_guard = *on,
            InfoBridgePort::Protect(on) => port.root_block = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::GroupFwdMask(mask) => port.reserved_groups = *mask,
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            _ => {}
        }
    }
    port
}

/// Turns index numbers into names.
pub fn resolve(raw: Vec<RawLink>) -> BTreeMap<IfName, Link> {
    let names: BTreeMap<u32, IfName> = raw.iter().map(|r| (r.link.index, r.name.clone())).collect();
    let mut links = BTreeMap::new();
    let mut stacked = Vec::new();
    for RawLink { name, mut link, master, lower } in raw {
        link.master = master.and_then(|index| names.get(&index).cloned());
        if let Some(lower) = lower.and_then(|index| names.get(&index)).filter(|lower| **lower != name) {
            stacked.push((lower.clone(), name.clone()));
        }
        links.insert(name, link);
    }
    for (lower, upper) in stacked {
        if let Some(link) = links.get_mut(&lower) {
            link.uppers.push(upper);
        }
    }
    links
}
