//! Packets that should pass, and every rule of somebody else's that would end them. Pure.

use super::{
    Finding, Severity,
    eval::{self, Judgement},
    facts::{End, Facts, OUTSIDE4, OUTSIDE6, Station, flow, guest_addresses, is_link_local},
    packet::{Fact, Flow, Packet, Protocol},
    program::{self, Hits},
    rules::{Field, Place, Ruleset},
};
use crate::{
    kernel::{self, RouteQuery},
    model::{IfName, Mode, Network},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

/// What is tried: outward the usual, inward and between guests a port that nobody opens or closes for its own sake.
const OUTWARD: [(Protocol, Option<u16>); 3] =
    [(Protocol::Tcp, Some(443)), (Protocol::Udp, Some(443)), (Protocol::Icmp, None)];
const ANYWHERE: [(Protocol, Option<u16>); 3] =
    [(Protocol::Tcp, Some(33_333)), (Protocol::Udp, Some(33_333)), (Protocol::Icmp, None)];
/// What a gateway answers.
const SERVICES: [(Protocol, Option<u16>); 3] =
    [(Protocol::Udp, Some(53)), (Protocol::Tcp, Some(53)), (Protocol::Icmp, None)];
/// DHCP, which a guest asks before it has an address.
const DHCP: (Protocol, Option<u16>) = (Protocol::Udp, Some(67));

/// Which traffic a probe stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Traffic {
    Between,
    Outward,
    Answers,
    Inward,
    Services,
}

/// What one rule is in the way of.
#[derive(Default)]
struct Obstacle {
    /// Whether at least one packet surely ends there.
    certain: bool,
    /// Whether one of those is of traffic that the network is there for.
    grave: bool,
    hits: Hits,
    /// By network: traffic, protocols and IP versions.
    traffic: BTreeMap<String, BTreeMap<Traffic, BTreeSet<String>>>,
    /// Why it is not certain.
    because: Option<Place>,
}

/// All that stands in the way of the networks' packets, one finding for each rule or policy.
#[must_use]
pub fn obstacles(facts: &Facts) -> Vec<Finding> {
    let Some(ruleset) = &facts.ruleset else { return Vec::new() };
    // Ours are as they must be, or the network is degraded.
    let ruleset = &ruleset.without(kernel::TABLE);
    let mut probes = Probes { facts, ruleset, obstacles: BTreeMap::new() };
    for network in facts.desired.networks.values().filter(|network| !network.deleting) {
        for v4 in [true, false] {
            probes.network(network, v4);
        }
    }
    probes.obstacles.into_iter().map(|(place, obstacle)| finding(ruleset, place, &obstacle)).collect()
}

/// What the kernel has to be asked before: how guests' packets would leave, and whether what comes back by there would
/// be taken. The second query needs the answer to the first, so this is called until it has no more.
#[must_use]
pub fn queries(facts: &Facts) -> Vec<RouteQuery> {
    let mut queries = Vec::new();
    for network in facts.desired.networks.values().filter(|n| n.spec.mode.has_gateway() && !n.deleting) {
        for v4 in [true, false] {
            let Some(out) = outward(facts, network, v4) else { continue };
            let back = uplink(facts, network, v4).map(|iif| inward(&out, iif));
            queries.extend(back);
            queries.push(out);
        }
    }
    queries.retain(|query| facts.route(query).is_none());
    queries
}

/// From a guest of the network to the outside; `None` if it has no addresses of that version.
#[must_use]
pub fn outward(facts: &Facts, network: &Network, v4: bool) -> Option<RouteQuery> {
    let configured = if v4 { network.ipv4.is_some() } else { network.ipv6.is_some() };
    let [guest, _] = guest_addresses(network, &facts.observed, v4).filter(|_| configured)?;
    let to = if v4 { OUTSIDE4 } else { OUTSIDE6 };
    Some(RouteQuery { to, from: Some(guest), iif: Some(network.bridge.clone()) })
}

/// The way back of `outward`, in by `iif`.
#[must_use]
pub fn inward(out: &RouteQuery, iif: IfName) -> RouteQuery {
    RouteQuery { to: out.from.unwrap_or(out.to), from: Some(out.to), iif: Some(iif) }
}

/// The interface that a network's packets leave by: as asked, else as the kernel routes.
#[must_use]
pub fn uplink(facts: &Facts, network: &Network, v4: bool) -> Option<IfName> {
    facts
        .desired
        .uplink_in_force(network)
        .filter(|name| facts.observed.links.contains_key(name))
        .or_else(|| facts.way_out(&outward(facts, network, v4)?))
}

struct Probes<'a> {
    facts: &'a Facts,
    ruleset: &'a Ruleset,
    obstacles: BTreeMap<Place, Obstacle>,
}

impl Probes<'_> {
    fn network(&mut self, network: &Network, v4: bool) {
        let end = End { bridge: &network.bridge, tap: None, mac: None };
        let ends = guest_addresses(network, &self.facts.observed, v4);
        self.between(network, end, ends, v4);
        let Some([guest, _]) = ends.filter(|_| outward(self.facts, network, v4).is_some()) else { return };
        if !network.spec.mode.has_gateway() {
            return;
        }
        self.services(network, end, guest);
        let Some(uplink) = uplink(self.facts, network, v4) else { return };
        let outside = if v4 { OUTSIDE4 } else { OUTSIDE6 };
        let nat = network.spec.mode == Mode::Nat;
        for kind in OUTWARD {
            let flow = flow([guest, outside], kind);
            let packet = routed(Packet::first(&flow), true);
            let mut stations = Facts::from_guest(&packet, end);
            stations.extend(Facts::through(&packet, end.bridge, &uplink));
            self.run(network, (Traffic::Outward, &uplink), &flow, stations);
            let packet = routed(Packet::answer(&flow, nat), self.comes_back(network, v4, &uplink));
            self.inward(network, (Traffic::Answers, &uplink), (&flow, &packet), end);
        }
        if network.spec.mode == Mode::Routed {
            for kind in ANYWHERE {
                let flow = flow([outside, guest], kind);
                let packet = routed(Packet::first(&flow), self.comes_back(network, v4, &uplink));
                self.inward(network, (Traffic::Inward, &uplink), (&flow, &packet), end);
            }
        }
    }

    /// Whether the way to the outside leads by the uplink, as a rule about reverse paths sees it.
    fn comes_back(&self, network: &Network, v4: bool, uplink: &IfName) -> bool {
        let out = outward(self.facts, network, v4);
        out.and_then(|out| self.facts.way_out(&out)).as_ref() == Some(uplink)
    }

    fn inward(
        &mut self,
        network: &Network,
        what: (Traffic, &IfName),
        (flow, packet): (&Flow, &Packet),
        end: End<'_>,
    ) {
        let mut stations = Facts::from_uplink(packet, what.1);
        stations.extend(Facts::through(packet, what.1, end.bridge));
        stations.extend(Facts::to_guest(packet, end));
        self.run(network, what, flow, stations);
    }

    fn between(&mut self, network: &Network, end: End<'_>, ends: Option<[IpAddr; 2]>, v4: bool) {
        // Stand-ins, of which rules must not read the addresses.
        let unknown = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)].map(IpAddr::V4);
        for kind in ANYWHERE {
            let flow = flow(ends.unwrap_or(unknown), kind);
            for mut packet in [Packet::first(&flow), Packet::answer(&flow, false)] {
                if ends.is_none() {
                    packet = packet.from_anywhere();
                }
                // A rule about reverse paths looks for a route to the guest by its bridge.
                let route = match network.spec.mode {
                    Mode::Isolated => Some(false),
                    Mode::Nat | Mode::Routed => Some(network.ipv6.is_some() || v4),
                    Mode::Bridged => ends.filter(|ends| !is_link_local(ends[0])).map(|_| true),
                };
                if let Some(route) = route {
                    packet = packet.with(Field::ReversePath, Fact::Flag(route));
                }
                let stations = self.facts.between_ports(&packet, end, None);
                self.run(network, (Traffic::Between, end.bridge), &flow, stations);
            }
        }
    }

    fn services(&mut self, network: &Network, end: End<'_>, guest: IpAddr) {
        let gateway = match guest {
            IpAddr::V4(_) => network.ipv4.map(|net| IpAddr::V4(net.addr())),
            IpAddr::V6(_) => network.ipv6.map(|net| IpAddr::V6(net.addr())),
        };
        let Some(gateway) = gateway else { return };
        let mut flows: Vec<Flow> = SERVICES.into_iter().map(|kind| flow([guest, gateway], kind)).collect();
        if guest.is_ipv4() {
            let anybody = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST].map(IpAddr::V4);
            flows.push(flow(anybody, DHCP));
        }
        for flow in flows {
            let mut packet = Packet::first(&flow).with(Field::ReversePath, Fact::Flag(true));
            if flow.destination == gateway {
                packet = packet.with(Field::DestinationType, Fact::Words(&["local"]));
            }
            let what = (Traffic::Services, end.bridge);
            self.run(network, what, &flow, Facts::to_host(&packet, end));
            if flow.destination == gateway {
                self.run(network, what, &flow, Facts::from_host(&Packet::answer(&flow, false), end));
            }
        }
    }

    /// Walks the stations and notes each rule of somebody else's that ends the packet, or may.
    fn run(
        &mut self,
        network: &Network,
        (traffic, uplink): (Traffic, &IfName),
        flow: &Flow,
        stations: Vec<Station<'_>>,
    ) {
        for station in stations {
            for met in eval::hook(self.ruleset, station.layer, station.hook, &station.packet) {
                let (place, certain, because) = match met.judgement {
                    Judgement::Pass { .. } => continue,
                    Judgement::Drop { by } => (by, true, None),
                    Judgement::Unsure { drop: Some(drop), because } => (drop, false, Some(because)),
                    Judgement::Unsure { drop: None, .. } => continue,
                };
                self.note(network, (traffic, uplink), flow, (place, certain, because));
            }
        }
    }

    fn note(
        &mut self,
        network: &Network,
        (traffic, uplink): (Traffic, &IfName),
        flow: &Flow,
        (place, certain, because): (Place, bool, Option<Place>),
    ) {
        let obstacle = self.obstacles.entry(place).or_default();
        obstacle.certain |= certain;
        let v6_in_vain = !flow.destination.is_ipv4() && network.ipv6.is_none();
        let spare = match traffic {
            // A guest that was configured by hand needs none of them.
            Traffic::Services => true,
            // Guests have link-local addresses there that nobody gave them.
            Traffic::Between => v6_in_vain && network.spec.mode != Mode::Bridged,
            _ => false,
        };
        obstacle.grave |= certain && !spare;
        obstacle.because = obstacle.because.take().or(because);
        let version = if flow.destination.is_ipv4() { "IPv4" } else { "IPv6" };
        let kind = match (flow.protocol, flow.port) {
            (Protocol::Udp, Some(67)) => "DHCP".to_owned(),
            (_, Some(53)) => "DNS".to_owned(),
            (protocol, _) => format!("{} over {version}", protocol.as_str().to_uppercase()),
        };
        let of_network = obstacle.traffic.entry(network.name.to_string()).or_default();
        of_network.entry(traffic).or_default().insert(kind);
        let hit = obstacle.hits.entry(network.bridge.clone()).or_default();
        match traffic {
            Traffic::Between => {
                hit.same = true;
                hit.own_netfilter |= self.facts.own_netfilter.contains_key(&network.bridge);
            }
            Traffic::Outward => hit.out = true,
            Traffic::Answers => hit.inward = true,
            Traffic::Inward => {
                hit.inward = true;
                hit.opened = true;
            }
            Traffic::Services => {
                hit.services.insert((flow.protocol, flow.port));
            }
        }
        if !matches!(traffic, Traffic::Between | Traffic::Services) {
            hit.uplinks.insert(uplink.clone());
        }
    }
}

/// A packet that is forwarded.
fn routed(packet: Packet, comes_back: bool) -> Packet {
    packet
        .with(Field::DestinationType, Fact::Words(&["unicast"]))
        .with(Field::ReversePath, Fact::Flag(comes_back))
}

/// `IPv4` where no protocol of it is spared, else one by one.
fn in_short(kinds: &BTreeSet<String>) -> String {
    let mut rest = kinds.clone();
    let mut words = Vec::new();
    for version in ["IPv4", "IPv6"] {
        let all = ["TCP", "UDP", "ICMP"].map(|protocol| format!("{protocol} over {version}"));
        if all.iter().all(|kind| rest.contains(kind)) {
            rest.retain(|kind| !all.contains(kind));
            words.push(version.to_owned());
        }
    }
    words.extend(rest);
    words.join(", ")
}

fn finding(ruleset: &Ruleset, place: Place, obstacle: &Obstacle) -> Finding {
    let mut words = Vec::new();
    for (network, traffic) in &obstacle.traffic {
        for (traffic, kinds) in traffic {
            let kinds = in_short(kinds);
            words.push(match traffic {
                Traffic::Between => format!("{kinds} between guests of `{network}`"),
                Traffic::Outward => format!("{kinds} from guests of `{network}` to the outside"),
                Traffic::Answers => format!("answers ({kinds}) from the outside to guests of `{network}`"),
                Traffic::Inward => format!("{kinds} from the outside to guests of `{network}`"),
                Traffic::Services => format!("{kinds} from guests of `{network}` to their gateway"),
            });
        }
    }
    let drops = if obstacle.certain { "drops" } else { "may drop" };
    let mut what = format!("a rule of another program {drops} {}", words.join("; "));
    if let Some(because) = obstacle.because.as_ref().filter(|_| !obstacle.certain) {
        what.push_str(&format!(" (nobody can tell from here whether a rule matches: {because})"));
    }
    Finding {
        severity: if obstacle.grave { Severity::Error } else { Severity::Warning },
        reason: if obstacle.certain { "RULE_DROPS" } else { "RULE_MAY_DROP" },
        what,
        location: place.to_string(),
        program: Some(program::of(ruleset, &place)),
        fix: program::fix(ruleset, &place, &obstacle.hits),
        networks: obstacle.traffic.keys().cloned().collect(),
        place: Some(place),
    }
}
