//! What a diagnosis knows of the host, and the stations that a packet passes on it. Pure.

use super::{
    eval::Layer,
    packet::{Fact, Flow, Packet},
    rules::{Field, Hook, Ruleset},
};
use crate::{
    kernel::{Observed, RouteAnswer, RouteQuery},
    model::{IfName, Mode, Network, Port, State},
    plan::Desired,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Stands for the outside. Nothing is ever sent there: the kernel is asked for the route, and rules are read for it.
pub const OUTSIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));
/// As `OUTSIDE4`.
pub const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111));

/// Everything that was looked at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The records.
    pub desired: Desired,
    /// What the kernel carries of them, by resource.
    pub states: BTreeMap<String, State>,
    /// What netd warns of anyhow.
    pub warnings: Vec<String>,
    /// Links, and sysctls by key.
    pub observed: Observed,
    /// All rules; `None` where nft could not be run.
    pub ruleset: Option<Ruleset>,
    /// Bridges whose own switch of bridge netfilter is on, for IPv4 and IPv6.
    pub own_netfilter: BTreeMap<IfName, [bool; 2]>,
    /// What the kernel said of routes.
    pub routes: BTreeMap<RouteQuery, RouteAnswer>,
    /// Programs that are not there.
    pub missing: Vec<&'static str>,
    /// Addresses that guests were seen to use, by tap.
    pub seen: BTreeMap<IfName, BTreeSet<IpAddr>>,
}

/// A place where a packet meets rules.
#[derive(Clone, Debug)]
pub struct Station<'a> {
    /// Whose rules.
    pub layer: Layer<'a>,
    /// At which hook.
    pub hook: Hook,
    /// The packet as it is there.
    pub packet: Packet,
}

/// A guest's own end of a path.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The bridge it is on.
    pub bridge: &'a IfName,
    /// Its tap; `None` where any is meant.
    pub tap: Option<&'a IfName>,
    /// Its MAC; `None` where any is meant.
    pub mac: Option<shared::mac::Mac>,
}

impl Facts {
    /// Whether a sysctl is on; false if the kernel has none of that name.
    #[must_use]
    pub fn on(&self, key: &str) -> bool {
        self.observed.sysctls.get(key).is_some_and(|value| value == "1")
    }

    /// Whether frames between two ports of a bridge pass the host's IP rules.
    #[must_use]
    pub fn bridge_netfilter(&self, bridge: &IfName, v4: bool) -> bool {
        let key = if v4 { "iptables" } else { "ip6tables" };
        self.on(&format!("net/bridge/bridge-nf-call-{key}"))
            || self.own_netfilter.get(bridge).is_some_and(|own| own[usize::from(!v4)])
    }

    /// Whether a port is known to have an address: recorded, or seen.
    #[must_use]
    pub fn has(&self, port: &Port, address: IpAddr) -> bool {
        port.addresses().any(|known| known == address)
            || self.seen.get(&port.tap).is_some_and(|seen| seen.contains(&address))
    }

    /// A port's address of one IP version, and how it is known.
    #[must_use]
    pub fn address(&self, port: &Port, v4: bool) -> Option<(IpAddr, &'static str)> {
        let recorded = if v4 { port.ipv4.map(IpAddr::V4) } else { port.ipv6.map(IpAddr::V6) };
        let usable = |address: &&IpAddr| address.is_ipv4() == v4 && !is_link_local(**address);
        let seen = || self.seen.get(&port.tap)?.iter().find(usable).copied();
        recorded.map(|address| (address, "recorded")).or_else(|| Some((seen()?, "seen")))
    }

    /// The kernel's answer to a query that was made; no route where it was not.
    #[must_use]
    pub fn route(&self, query: &RouteQuery) -> Option<&RouteAnswer> {
        self.routes.get(query)
    }

    /// The interface by which a network's guests reach an address, as the kernel routes.
    #[must_use]
    pub fn way_out(&self, query: &RouteQuery) -> Option<IfName> {
        match self.route(query)? {
            RouteAnswer::Unicast { oif, .. } => Some(oif.clone()),
            _ => None,
        }
    }

    /// Frames from one port of a bridge to another: from `end`, to the port `to`, if one is meant.
    #[must_use]
    pub fn between_ports<'a>(
        &self,
        packet: &Packet,
        end: End<'a>,
        to: Option<&'a IfName>,
    ) -> Vec<Station<'a>> {
        let v4 = packet.is_v4();
        let frame = frame(packet, end).with(Field::Bridged, Fact::Flag(true));
        let out = |frame: Packet| match to {
            Some(to) => frame.with(Field::Oif, Fact::Word(to.to_string())),
            None => frame,
        };
        let bridge = end.bridge.as_str();
        let inside = |oif| out_port(packet.clone().by(bridge, oif), end, to);
        let netfilter = self.bridge_netfilter(end.bridge, v4);
        let ip = |hook, packet| netfilter.then_some(Station { layer: Layer::Ip { v4 }, hook, packet });
        let on_bridge = |hook, packet| Some(Station { layer: Layer::Bridge, hook, packet });
        let device = |device: Option<&'a IfName>, hook| {
            device.map(|device| Station {
                layer: Layer::Device(device.as_str()),
                hook,
                packet: packet.clone(),
            })
        };
        [
            device(end.tap, Hook::Ingress),
            on_bridge(Hook::Prerouting, frame.clone()),
            ip(Hook::Prerouting, inside(None)),
            on_bridge(Hook::Forward, out(frame.clone())),
            ip(Hook::Forward, inside(Some(bridge))),
            on_bridge(Hook::Postrouting, out(frame)),
            ip(Hook::Postrouting, inside(Some(bridge))),
            device(to, Hook::Egress),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// From a guest to where it is routed, before and after that. The packet is the guest's.
    #[must_use]
    pub fn from_guest<'a>(packet: &Packet, end: End<'a>) -> Vec<Station<'a>> {
        let frame = frame(packet, end);
        let v4 = packet.is_v4();
        let mut stations = Vec::new();
        if let Some(tap) = end.tap {
            let packet = packet.clone();
            stations.push(Station { layer: Layer::Device(tap.as_str()), hook: Hook::Ingress, packet });
        }
        stations.push(Station { layer: Layer::Bridge, hook: Hook::Prerouting, packet: frame.clone() });
        stations.push(Station { layer: Layer::Bridge, hook: Hook::Input, packet: frame });
        let packet = packet.clone().by(end.bridge.as_str(), None);
        stations.push(Station { layer: Layer::Ip { v4 }, hook: Hook::Prerouting, packet });
        stations
    }

    /// From a guest to this host itself.
    #[must_use]
    pub fn to_host<'a>(packet: &Packet, end: End<'a>) -> Vec<Station<'a>> {
        let mut stations = Self::from_guest(packet, end);
        let packet = packet.clone().by(end.bridge.as_str(), None);
        stations.push(Station { layer: Layer::Ip { v4: packet.is_v4() }, hook: Hook::Input, packet });
        stations
    }

    /// From this host itself to a guest.
    #[must_use]
    pub fn from_host<'a>(packet: &Packet, end: End<'a>) -> Vec<Station<'a>> {
        let own = packet
            .clone()
            .with(Field::Iif, Fact::Missing)
            .with(Field::Oif, Fact::Word(end.bridge.to_string()));
        let layer = Layer::Ip { v4: packet.is_v4() };
        let mut stations: Vec<_> = [Hook::Output, Hook::Postrouting]
            .map(|hook| Station { layer, hook, packet: own.clone() })
            .into_iter()
            .collect();
        stations.extend(Self::to_guest(packet, end));
        stations
    }

    /// Through this host, by two devices.
    #[must_use]
    pub fn through<'a>(packet: &Packet, iif: &IfName, oif: &'a IfName) -> Vec<Station<'a>> {
        let layer = Layer::Ip { v4: packet.is_v4() };
        let packet = packet.clone().by(iif.as_str(), Some(oif.as_str()));
        let mut stations: Vec<_> = [Hook::Forward, Hook::Postrouting]
            .map(|hook| Station { layer, hook, packet: packet.clone() })
            .into_iter()
            .collect();
        stations.push(Station { layer: Layer::Device(oif.as_str()), hook: Hook::Egress, packet });
        stations
    }

    /// In by a device that is no bridge of guests.
    #[must_use]
    pub fn from_uplink<'a>(packet: &Packet, uplink: &'a IfName) -> Vec<Station<'a>> {
        let packet = packet.clone().by(uplink.as_str(), None);
        let ip = Layer::Ip { v4: packet.is_v4() };
        [(Layer::Device(uplink.as_str()), Hook::Ingress), (ip, Hook::Prerouting)]
            .map(|(layer, hook)| Station { layer, hook, packet: packet.clone() })
            .into_iter()
            .collect()
    }

    /// Out of a bridge to a guest.
    #[must_use]
    pub fn to_guest<'a>(packet: &Packet, end: End<'a>) -> Vec<Station<'a>> {
        let frame = packet.clone().with(Field::BridgeOut, Fact::Word(end.bridge.to_string()));
        let frame = match end.tap {
            Some(tap) => frame.with(Field::Oif, Fact::Word(tap.to_string())),
            None => frame,
        };
        let frame = frame.with(Field::Iif, Fact::Missing);
        let mut stations: Vec<_> = [Hook::Output, Hook::Postrouting]
            .map(|hook| Station { layer: Layer::Bridge, hook, packet: frame.clone() })
            .into_iter()
            .collect();
        if let Some(tap) = end.tap {
            let packet = packet.clone();
            stations.push(Station { layer: Layer::Device(tap.as_str()), hook: Hook::Egress, packet });
        }
        stations
    }
}

/// The packet as a frame that comes in by a port of a bridge.
fn frame(packet: &Packet, end: End<'_>) -> Packet {
    let mut frame = packet.clone().with(Field::BridgeIn, Fact::Word(end.bridge.to_string()));
    if let Some(tap) = end.tap {
        frame = frame.with(Field::Iif, Fact::Word(tap.to_string()));
    }
    if let Some(mac) = end.mac {
        frame = frame.with(Field::EtherSource, Fact::Word(mac.to_string()));
    }
    frame
}

/// What IP rules see of the ports of a bridged packet.
fn out_port(packet: Packet, end: End<'_>, to: Option<&IfName>) -> Packet {
    let mut packet = packet.with(Field::Bridged, Fact::Flag(true));
    if let Some(tap) = end.tap {
        packet = packet.with(Field::PortIn, Fact::Word(tap.to_string()));
    }
    if let Some(to) = to {
        packet = packet.with(Field::PortOut, Fact::Word(to.to_string()));
    }
    packet
}

/// An address that a guest of the network may have, of each version: the second is a neighbour's. Where the network
/// has no subnet, one of the bridge's own; IPv6 link-local ones are always there. `None`: nobody can say.
#[must_use]
pub fn guest_addresses(network: &Network, observed: &Observed, v4: bool) -> Option<[IpAddr; 2]> {
    let own: Option<ipnet::IpNet> = match v4 {
        true => network.ipv4.map(Into::into),
        false => network.ipv6.map(Into::into),
    };
    let of_bridge = || {
        let link = observed.links.get(&network.bridge).filter(|_| network.spec.mode == Mode::Bridged)?;
        let usable = |net: &&ipnet::IpNet| net.addr().is_ipv4() == v4 && !is_link_local(net.addr());
        link.addresses.iter().map(|address| &address.net).find(usable).copied()
    };
    match own.or_else(of_bridge) {
        Some(net) => neighbours(net),
        None if !v4 => {
            let local = |n| IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, n));
            Some([local(1), local(2)])
        }
        None => None,
    }
}

/// Whether an address is good on one link only.
#[must_use]
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Two host addresses of a subnet that are not the one given with it.
fn neighbours(net: ipnet::IpNet) -> Option<[IpAddr; 2]> {
    let mut free = net.hosts().filter(|address| ![net.addr(), net.network()].contains(address));
    let first = free.next()?;
    Some([first, free.next().unwrap_or(first)])
}

/// The flow that a probe stands for.
#[must_use]
pub fn flow(ends: [IpAddr; 2], (protocol, port): (super::packet::Protocol, Option<u16>)) -> Flow {
    Flow { source: ends[0], destination: ends[1], protocol, port }
}
