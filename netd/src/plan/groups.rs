//! What groups come to: members of the sets. Pure.
//!
//! A port's network and groups are one number, its profile, so that a port costs a few members of the sets and not one
//! for each rule. The rules are there once for each profile. Where a rule names a group, the addresses of that group's
//! ports lead to the pair of both profiles, and what the rule allows is there once for each pair: sets of intervals are
//! slow to change when they are large, and so hold rules and no addresses of ports. Members of such a set must not
//! overlap, so what the rules allow is made disjoint first.

use super::Desired;
use crate::{
    kernel::{Allow, Allowed, Element, Peer, Place, With},
    model::{Allowance, Direction, IpProtocol, Mode, Network, Port, PortKey, PortSpec, Remote},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Most members of the sets that the rules of all profiles come to: with more, packets and changes would be slow.
const MOST: usize = 65_536;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// First and last of protocols or ports.
type Range = (u16, u16);

/// Every address.
const EVERYBODY: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];
const EVERY_PORT: Range = (0, u16::MAX);
/// Without 0, which is the hop-by-hop header of IPv6 and no protocol.
const EVERY_PROTOCOL: Range = (1, 255);

impl Desired {
    /// Whether a port needs a rule in a direction. A group whose record cannot be read denies.
    fn denies(&self, groups: &BTreeSet<Name>, direction: Direction) -> bool {
        groups.iter().any(|name| self.groups.get(name).is_none_or(|group| group.denies(direction)))
    }

    /// The members of the sets that a port's groups bring to it, without the rules.
    pub(super) fn group_elements(&self, port: &Port, network: Option<&Network>) -> BTreeSet<Element> {
        let Some(profile) = port.profile else { return BTreeSet::new() };
        let mut elements = BTreeSet::from([Element::TapProfile(port.tap.clone(), profile)]);
        let denied: Vec<_> = [Direction::In, Direction::Out]
            .into_iter()
            .filter(|direction| self.denies(&port.spec.groups, *direction))
            .collect();
        elements.extend(denied.iter().map(|direction| Element::GroupedTap(*direction, port.tap.clone())));
        if network.is_some_and(|n| n.spec.mode == Mode::Bridged) {
            elements.insert(Element::StationTap(port.tap.clone()));
        }
        if let Some(network) = network.filter(|n| n.spec.mode.has_gateway()) {
            for address in self.usable(port) {
                elements.insert(Element::AddressProfile(network.bridge.clone(), address, profile));
                elements.extend(
                    denied.iter().map(|d| Element::GroupedAddress(*d, network.bridge.clone(), address)),
                );
            }
        }
        elements
    }

    /// The members of the sets that the rules of all groups come to that a port is in.
    #[must_use]
    pub fn allows(&self) -> BTreeSet<Element> {
        self.allows_of(self.ports.values())
    }

    /// As `allows`, with another one of a port, or none of it.
    #[must_use]
    pub fn allows_with(&self, key: &PortKey, port: Option<&Port>) -> BTreeSet<Element> {
        self.allows_of(self.others(key).chain(port))
    }

    fn others(&self, key: &PortKey) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(move |(other, _)| *other != key).map(|(_, port)| port)
    }

    fn allows_of<'a>(&'a self, ports: impl Iterator<Item = &'a Port>) -> BTreeSet<Element> {
        let grouped: Vec<_> = ports.filter(|port| port.profile.is_some()).collect();
        let profiles: BTreeMap<_, _> = grouped.iter().map(|port| (port.profile, *port)).collect();
        let mut elements = BTreeSet::new();
        for (profile, port) in profiles {
            let (Some(profile), Some(network)) = (profile, self.networks.get(&port.network)) else {
                continue;
            };
            let places: &[Place] = match network.spec.mode.has_gateway() {
                true => &[Place::Bridge, Place::Host],
                false => &[Place::Bridge],
            };
            for direction in [Direction::In, Direction::Out] {
                if !self.denies(&port.spec.groups, direction) {
                    continue;
                }
                let groups = port.spec.groups.iter().filter_map(|name| self.groups.get(name));
                let rules = groups.flat_map(|group| &group.rules).map(|rule| &rule.allows);
                let rules: Vec<_> = rules.filter(|allows| allows.direction == direction).collect();
                let one = |remote, what| Allow { direction, profile, remote, what };
                let nets = expand(&rules, |remote| match remote {
                    Remote::Any => EVERYBODY.to_vec(),
                    Remote::Net(net) => vec![*net],
                    Remote::Group(_) => Vec::new(),
                });
                let mut allows: BTreeSet<_> =
                    nets.into_iter().map(|(net, what)| one(With::Net(net), what)).collect();
                let peers = self.peers(&rules, network, &grouped);
                let known: BTreeMap<_, _> = peers.values().map(|peer| (peer.profile, *peer)).collect();
                for (number, peer) in &known {
                    let Some(number) = number else { continue };
                    let pairs = expand(&rules, |remote| match remote {
                        Remote::Group(name) if peer.spec.groups.contains(name) => EVERYBODY.to_vec(),
                        _ => Vec::new(),
                    });
                    allows.extend(pairs.into_iter().map(|(_, what)| one(With::Profile(*number), what)));
                }
                for place in places {
                    elements.extend(allows.iter().map(|allow| Element::Allow(*place, *allow)));
                    elements.extend(peers.iter().filter_map(|(address, port)| {
                        let peer = Peer { direction, profile, address: *address, peer: port.profile? };
                        Some(Element::Peer(*place, peer))
                    }));
                }
            }
        }
        elements
    }

    /// The ports that are in a group which a rule names, by their addresses. One of the own network comes before
    /// others of the same address.
    fn peers<'a>(
        &self,
        rules: &[&Allowance],
        network: &Network,
        ports: &[&'a Port],
    ) -> BTreeMap<IpAddr, &'a Port> {
        let named: BTreeSet<&Name> = rules
            .iter()
            .filter_map(|rule| match &rule.remote {
                Remote::Group(name) => Some(name),
                Remote::Any | Remote::Net(_) => None,
            })
            .collect();
        let meant = |port: &&&Port| {
            port.spec.groups.iter().any(|name| named.contains(name)) && self.meet(network, &port.network)
        };
        let (own, others): (Vec<&&Port>, Vec<&&Port>) =
            ports.iter().filter(meant).partition(|port| port.network == network.name);
        let mut peers = BTreeMap::new();
        for port in own.into_iter().chain(others) {
            for address in self.usable(port) {
                peers.entry(address).or_insert(*port);
            }
        }
        peers
    }

    /// Whether the guests of two networks may ever meet. Those of an isolated one meet nobody else, and may have
    /// anybody's addresses.
    fn meet(&self, network: &Network, other: &Name) -> bool {
        let isolated = |network: &Network| network.spec.mode == Mode::Isolated;
        network.name == *other
            || !isolated(network) && self.networks.get(other).is_some_and(|other| !isolated(other))
    }

    /// Number of a port's network and set of groups: that of another port like it, or the least that is free.
    ///
    /// # Errors
    /// NOT_FOUND if there is no group of a name; INVALID_ARGUMENT if the port's addresses are not checked;
    /// RESOURCE_EXHAUSTED without a free number.
    pub fn profile(&self, key: &PortKey, spec: &PortSpec) -> Result<Option<u16>, Fault> {
        if let Some(name) = spec.groups.iter().find(|name| !self.groups.contains_key(*name)) {
            return Err(group_not_found(name));
        }
        if spec.groups.is_empty() {
            return Ok(None);
        }
        if !spec.filter {
            return Err(Fault::new(
                Kind::InvalidArgument,
                "GROUP_WITHOUT_FILTER",
                "a port without the filter cannot be in a group: its guest might use anybody's address",
            )
            .hint("leave the filter on, or give no group"));
        }
        let same = self.others(key).find(|port| port.network == key.0 && port.spec.groups == spec.groups);
        if let Some(number) = same.and_then(|port| port.profile) {
            return Ok(Some(number));
        }
        let taken: BTreeSet<u16> =
            self.others(key).filter_map(|port| port.profile).chain(self.kept_profiles()).collect();
        (1..u16::MAX).find(|number| !taken.contains(number)).map(Some).ok_or_else(|| {
            Fault::new(
                Kind::ResourceExhausted,
                "TOO_MANY_PROFILES",
                "the ports of this host are in too many different sets of groups",
            )
        })
    }
}

/// Whether the sets can hold what the rules come to.
///
/// # Errors
/// RESOURCE_EXHAUSTED if not.
pub fn check_allows(allows: &BTreeSet<Element>) -> Result<(), Fault> {
    if allows.len() <= MOST {
        return Ok(());
    }
    Err(Fault::new(
        Kind::ResourceExhausted,
        "GROUPS_TOO_LARGE",
        format!("the rules of groups would come to {} set members, and {MOST} is the most", allows.len()),
    )
    .hint("a rule with a remote group counts once for each address in that group, for each set of groups that has the rule: use a CIDR, or fewer different sets of groups"))
}

/// The fault of a name that no group has.
#[must_use]
pub fn group_not_found(name: &Name) -> Fault {
    Fault::new(Kind::NotFound, "GROUP_NOT_FOUND", format!("there is no group `{name}`"))
        .meta("group", name)
        .hint("`kvmctl group list` shows the groups")
}

/// What rules allow, in pieces of which no two overlap.
fn expand(rules: &[&Allowance], reaches: impl Fn(&Remote) -> Vec<IpNet>) -> Vec<(IpNet, Allowed)> {
    let mut ports: BTreeMap<u8, Vec<(IpNet, Range)>> = BTreeMap::new();
    let mut protocols = Vec::new();
    for rule in rules {
        for remote in reaches(&rule.remote) {
            let icmp = if matches!(remote, IpNet::V4(_)) { ICMP } else { ICMPV6 };
            let (with_ports, range): (&[u8], Range) = match rule.protocol {
                IpProtocol::Tcp => (&[TCP], (TCP.into(), TCP.into())),
                IpProtocol::Udp => (&[UDP], (UDP.into(), UDP.into())),
                IpProtocol::Icmp => (&[], (icmp.into(), icmp.into())),
                IpProtocol::Any => (&[TCP, UDP], EVERY_PROTOCOL),
            };
            protocols.push((remote, range));
            for protocol in with_ports {
                ports.entry(*protocol).or_default().push((remote, rule.ports.unwrap_or(EVERY_PORT)));
            }
        }
    }
    let byte = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
    let protocols = disjoint(protocols)
        .into_iter()
        .map(|(remote, (first, last))| (remote, Allowed::Protocols { first: byte(first), last: byte(last) }));
    let ports = ports.into_iter().flat_map(|(protocol, allowed)| {
        let pieces = disjoint(allowed).into_iter();
        pieces.map(move |(remote, (first, last))| (remote, Allowed::Ports { protocol, first, last }))
    });
    protocols.chain(ports).collect()
}

/// The same pairs of address and number, in pieces of which no two overlap: what a wider prefix has is taken out of the
/// narrower ones, and ranges that touch are one.
fn disjoint(pieces: Vec<(IpNet, Range)>) -> Vec<(IpNet, Range)> {
    let mut by_net: BTreeMap<IpNet, Vec<Range>> = BTreeMap::new();
    for (net, range) in pieces {
        by_net.entry(net.trunc()).or_default().push(range);
    }
    // In this order a prefix comes after all that it is part of.
    let mut around: Vec<(IpNet, Vec<Range>)> = Vec::new();
    let mut result = Vec::new();
    for (net, ranges) in by_net {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            around.pop();
        }
        let outer = around.last().map_or(&[][..], |(_, had)| had);
        let own = merged(ranges);
        result.extend(without(&own, outer).into_iter().map(|range| (net, range)));
        let had = merged([&own, outer].concat());
        around.push((net, had));
    }
    result
}

/// Ranges in order, of which no two overlap or touch.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut result: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match result.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => result.push((first, last)),
        }
    }
    result
}

/// What of `ranges` is not in `taken`; both as `merged` has them.
fn without(ranges: &[Range], taken: &[Range]) -> Vec<Range> {
    let mut result = Vec::new();
    for (first, last) in ranges {
        // One more than the largest number has to fit.
        let (mut next, last) = (u32::from(*first), u32::from(*last));
        for (from, to) in taken.iter().map(|(from, to)| (u32::from(*from), u32::from(*to))) {
            if next < from.min(last + 1) {
                result.push((next, last.min(from - 1)));
            }
            next = next.max(to + 1);
        }
        if next <= last {
            result.push((next, last));
        }
    }
    let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    result.into_iter().map(|(first, last)| (short(first), short(last))).collect()
}

#[cfg(test)]
mod test;
