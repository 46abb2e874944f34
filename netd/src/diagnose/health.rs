//! What is wrong with the host besides rules: forwarding, routes, interfaces, objects that are degraded. Pure.

use super::{Finding, Severity, facts::Facts, probe};
use crate::{
    kernel::{Refusal, RouteAnswer, RouteQuery},
    model::{IfName, Mode, Network, State},
    plan,
};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// Most ports that are named one by one.
const MOST_PORTS: usize = 20;

/// Everything that is wrong besides rules.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(programs(facts));
    found.extend(degraded(facts));
    found.extend(facts.warnings.iter().map(|warning| {
        plain(Severity::Warning, "HOST_WARNING", warning.clone(), "netd".to_owned(), String::new())
    }));
    for network in facts.desired.networks.values().filter(|network| !network.deleting) {
        found.extend(mtu(facts, network));
        found.extend(uplink_state(facts, network));
        found.extend(foreign_ports(facts, network));
        found.extend(overlaps(facts, network));
        if network.spec.mode.has_gateway() {
            for v4 in [true, false] {
                found.extend(routing(facts, network, v4));
            }
        }
    }
    merged(found)
}

fn plain(severity: Severity, reason: &'static str, what: String, location: String, fix: String) -> Finding {
    Finding { severity, reason, what, location, program: None, fix, networks: Vec::new(), place: None }
}

fn of(network: &Network, finding: Finding) -> Finding {
    Finding { networks: vec![network.name.to_string()], ..finding }
}

/// The same thing that hits several networks is one finding.
fn merged(findings: Vec<Finding>) -> Vec<Finding> {
    let mut by_what: BTreeMap<(String, String), Finding> = BTreeMap::new();
    for finding in findings {
        let key = (finding.what.clone(), finding.location.clone());
        match by_what.get_mut(&key) {
            Some(known) => {
                let more = finding.networks.into_iter().filter(|name| !known.networks.contains(name));
                let more: Vec<_> = more.collect();
                known.networks.extend(more);
            }
            None => drop(by_what.insert(key, finding)),
        }
    }
    by_what.into_values().collect()
}

fn programs(facts: &Facts) -> Vec<Finding> {
    let gateways = facts.desired.networks.values().any(|n| n.spec.mode.has_gateway());
    let about = |program: &&'static str| {
        let (severity, what, package) = match *program {
            "nft" => (Severity::Error, "no rule can be written or read", "nftables"),
            "dnsmasq" if gateways => {
                (Severity::Warning, "guests get no addresses and names from this host", "dnsmasq-base")
            }
            _ => return None,
        };
        let what = format!("the program {program} is missing: {what}");
        let fix = format!("apt-get install -y --no-install-recommends {package}");
        Some(plain(severity, "PROGRAM_MISSING", what, (*program).to_owned(), fix))
    };
    facts.missing.iter().filter_map(about).collect()
}

fn degraded(facts: &Facts) -> Vec<Finding> {
    let error = |resource: &String| match facts.states.get(resource) {
        Some(State::Degraded(error)) => Some(error.clone()),
        _ => None,
    };
    let networks = facts.desired.networks.values().filter_map(|network| {
        let what = format!("network `{}` is degraded: {}", network.name, error(&network.resource())?);
        let finding = plain(Severity::Error, "NETWORK_DEGRADED", what, network.resource(), String::new());
        Some(of(network, finding))
    });
    let mut ports = facts.desired.ports.values().filter_map(|port| {
        let what = format!("port `{}` is degraded: {}", port.name, error(&port.resource())?);
        let mut finding = plain(Severity::Error, "PORT_DEGRADED", what, port.resource(), String::new());
        finding.networks.push(port.network.to_string());
        Some(finding)
    });
    let named: Vec<_> = ports.by_ref().take(MOST_PORTS).collect();
    let more = ports.count();
    let rest = (more > 0).then(|| {
        let what = format!("{more} more ports are degraded: see `kvmctl port list`");
        plain(Severity::Error, "PORT_DEGRADED", what, "ports".to_owned(), String::new())
    });
    networks.chain(named).chain(rest).collect()
}

fn mtu(facts: &Facts, network: &Network) -> Option<Finding> {
    let links = &facts.observed.links;
    if network.spec.mode == Mode::Bridged {
        // A frame that is too large for another port of the bridge is dropped without a word.
        let ours = |name: &IfName| facts.desired.ports.values().any(|port| port.tap == *name);
        let (name, link) = links.iter().find(|(name, link)| {
            link.master.as_ref() == Some(&network.bridge) && link.mtu < network.mtu && !ours(name)
        })?;
        let what = format!(
            "guests of `{}` send frames of up to {} bytes, and `{name}` on their bridge carries {}: larger ones are lost",
            network.name, network.mtu, link.mtu
        );
        let fix = format!("ip link set dev {name} mtu {}", network.mtu);
        return Some(of(
            network,
            plain(Severity::Error, "MTU_MISMATCH", what, format!("interface {name}"), fix),
        ));
    }
    let uplink = probe::uplink(facts, network, true).or_else(|| probe::uplink(facts, network, false))?;
    let carries = links.get(&uplink)?.mtu;
    if !network.spec.mode.has_gateway() || carries >= network.mtu {
        return None;
    }
    let what = format!(
        "guests of `{}` send packets of up to {} bytes, and `{uplink}` carries {carries}: each flow has to learn that by ICMP first",
        network.name, network.mtu
    );
    let fix = format!("ip link set dev {uplink} mtu {}", network.mtu);
    Some(of(network, plain(Severity::Warning, "MTU_MISMATCH", what, format!("interface {uplink}"), fix)))
}

/// A named uplink that carries nothing.
fn uplink_state(facts: &Facts, network: &Network) -> Option<Finding> {
    let uplink = network.spec.uplink.as_ref()?;
    let finding = |what: String, fix: String| {
        let what = format!("the uplink `{uplink}` of network `{}` {what}", network.name);
        Some(of(network, plain(Severity::Error, "UPLINK_DOWN", what, format!("interface {uplink}"), fix)))
    };
    match facts.observed.links.get(uplink) {
        None => finding("does not exist".to_owned(), String::new()),
        Some(link) if !link.up => finding("is down".to_owned(), format!("ip link set dev {uplink} up")),
        Some(link) if !link.carrier => finding("has no carrier: is the cable in?".to_owned(), String::new()),
        Some(_) => None,
    }
}

/// Interfaces on a bridge of ours that netd did not put there: no rule is made for what they send.
fn foreign_ports(facts: &Facts, network: &Network) -> Vec<Finding> {
    if !network.owns_bridge() {
        return Vec::new();
    }
    let ours = |name: &IfName| {
        facts.desired.ports.values().any(|port| port.tap == *name)
            || network.cell.as_ref().is_some_and(|cell| cell.link == *name)
            || network.spec.uplink.as_ref() == Some(name)
    };
    let on_it = facts.observed.links.iter().filter(|(_, link)| link.master.as_ref() == Some(&network.bridge));
    let foreign = on_it.filter(|(name, _)| !ours(name)).map(|(name, _)| {
        let what = format!(
            "`{name}` is on the bridge of network `{}`, and netd did not put it there: what it sends is not checked",
            network.name
        );
        let fix = format!("ip link set dev {name} nomaster");
        of(network, plain(Severity::Warning, "FOREIGN_PORT", what, format!("interface {name}"), fix))
    });
    foreign.collect()
}

/// Addresses and routes that came after the network, and take addresses of its subnets away. A route to a wider
/// prefix takes none: the bridge's own is chosen.
fn overlaps(facts: &Facts, network: &Network) -> Vec<Finding> {
    if !network.spec.mode.has_gateway() {
        return Vec::new();
    }
    let subnets = network.ipv4.map(IpNet::from).into_iter().chain(network.ipv6.map(IpNet::from));
    let subnets: Vec<_> = subnets.map(|net| net.trunc()).collect();
    let meet = |net: &IpNet| subnets.iter().any(|own| own.contains(&net.trunc()) || net.contains(own));
    let takes = |net: &IpNet| subnets.iter().any(|own| own.contains(net));
    let others = facts.observed.links.iter().filter(|(name, _)| **name != network.bridge);
    let found = others.flat_map(|(name, link)| {
        let addresses = link.addresses.iter().map(|address| address.net).filter(meet);
        let addresses: Vec<_> = addresses.map(|net| format!("the address {net} of `{name}`")).collect();
        let routes = link.routes.iter().map(|route| route.destination).filter(takes);
        let routes = routes.map(|net| format!("a route to {net} by `{name}`"));
        // An address of that subnet has its route by itself.
        let all = if addresses.is_empty() { routes.collect() } else { addresses };
        all.into_iter().map(move |what| (name, what))
    });
    let finding = |(name, other): (&IfName, String)| {
        let what = format!(
            "{other} is in the subnet of network `{}`: some of its guests cannot be reached, or the others there",
            network.name
        );
        of(
            network,
            plain(Severity::Warning, "SUBNET_OVERLAPS", what, format!("interface {name}"), String::new()),
        )
    };
    found.map(finding).collect()
}

/// A line that writes a sysctl; interfaces may have dots in their names, and slashes separate then.
pub(super) fn sysctl(key: &str, value: &str) -> String {
    let key = if key.contains('.') { key.to_owned() } else { key.replace('/', ".") };
    format!("sysctl -w {key}={value}")
}

/// Forwarding, the way out and the way back of one network.
fn routing(facts: &Facts, network: &Network, v4: bool) -> Vec<Finding> {
    let Some(out) = probe::outward(facts, network, v4) else { return Vec::new() };
    let version = if v4 { "IPv4" } else { "IPv6" };
    let forward = if v4 { plan::FORWARD4 } else { plan::FORWARD6 };
    if !facts.on(forward) {
        let what = format!("this host does not forward {version}, which its networks need");
        let finding =
            plain(Severity::Error, "FORWARDING_OFF", what, forward.replace('/', "."), sysctl(forward, "1"));
        return vec![of(network, finding)];
    }
    let uplink = probe::uplink(facts, network, v4);
    let mut found = Vec::new();
    for name in [Some(&network.bridge), uplink.as_ref()].into_iter().flatten().filter(|_| v4) {
        let key = format!("net/ipv4/conf/{name}/forwarding");
        if facts.observed.sysctls.get(&key).is_some_and(|value| value == "0") {
            let what = format!("this host does not forward IPv4 packets that come in by `{name}`");
            let finding =
                plain(Severity::Error, "FORWARDING_OFF", what, key.replace('/', "."), sysctl(&key, "1"));
            found.push(of(network, finding));
        }
    }
    if found.is_empty() {
        found.extend(way_out(facts, network, &out, uplink.as_ref()).map(|finding| of(network, finding)));
        if let Some(uplink) = uplink {
            found.extend(way_back(facts, network, &out, uplink).map(|finding| of(network, finding)));
        }
    }
    found
}

fn way_out(facts: &Facts, network: &Network, out: &RouteQuery, uplink: Option<&IfName>) -> Option<Finding> {
    let version = if out.to.is_ipv4() { "IPv4" } else { "IPv6" };
    let name = &network.name;
    match facts.route(out)? {
        RouteAnswer::Unicast { oif, .. } => {
            let asked = facts.desired.uplink_in_force(network)?;
            if *oif == asked || Some(oif) == uplink {
                return None;
            }
            let what = format!(
                "{version} packets of network `{name}` to the outside are routed to `{oif}`, and only `{asked}` is allowed as its uplink: they are dropped"
            );
            Some(plain(Severity::Error, "ROUTE_NOT_BY_UPLINK", what, "routes".to_owned(), String::new()))
        }
        RouteAnswer::Refused(Refusal::NoRoute | Refusal::Unreachable) => {
            // A routed network may be there for the LAN alone, and a host may have no IPv6 at all.
            let needed = network.spec.mode == Mode::Nat && out.to.is_ipv4();
            let severity = if needed { Severity::Error } else { Severity::Warning };
            let what = format!(
                "this host has no {version} default route: guests reach nothing beyond it; add one with `ip route add default via GATEWAY`"
            );
            Some(plain(severity, "NO_DEFAULT_ROUTE", what, "routes".to_owned(), String::new()))
        }
        RouteAnswer::Refused(Refusal::ReversePath) => {
            Some(reverse_path(facts, &network.bridge, format!("packets of guests of `{name}`")))
        }
        RouteAnswer::Refused(other) => {
            let what =
                format!("the kernel refuses {version} packets of network `{name}` to the outside: {other}");
            Some(plain(Severity::Error, "NO_ROUTE", what, "routes".to_owned(), String::new()))
        }
        RouteAnswer::Local => None,
    }
}

fn way_back(facts: &Facts, network: &Network, out: &RouteQuery, uplink: IfName) -> Option<Finding> {
    match facts.route(&probe::inward(out, uplink.clone()))? {
        RouteAnswer::Refused(Refusal::ReversePath) => {
            let what = format!("packets from the outside to guests of `{}`", network.name);
            Some(reverse_path(facts, &uplink, what))
        }
        _ => None,
    }
}

fn reverse_path(facts: &Facts, name: &IfName, whose: String) -> Finding {
    let value = |key: &str| facts.observed.sysctls.get(key).cloned().unwrap_or_else(|| "0".to_owned());
    let own = format!("net/ipv4/conf/{name}/rp_filter");
    let what = format!(
        "strict reverse path filtering drops {whose} that come in by `{name}`: the way back leads elsewhere (rp_filter of `{name}` is {}, of all {})",
        value(&own),
        value("net/ipv4/conf/all/rp_filter")
    );
    // The larger of both counts, and 2, loose, is the largest.
    plain(Severity::Error, "REVERSE_PATH", what, own.replace('/', "."), sysctl(&own, "2"))
}
