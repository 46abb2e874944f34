//! Which program most likely made a rule, and what to paste so that it lets guests' packets pass. Pure.

use super::{
    packet::Protocol,
    rules::{Family, Hook, Place, Ruleset, Table},
};
use crate::{kernel, model::IfName};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Who most likely made a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// netd itself.
    Kvmctl,
    /// Docker's engine.
    Docker,
    /// firewalld.
    Firewalld,
    /// Ubuntu's ufw.
    Ufw,
    /// libvirt's networks.
    Libvirt,
    /// Podman's netavark, or the CNI plugins.
    Podman,
    /// Kubernetes.
    Kubernetes,
    /// fail2ban.
    Fail2ban,
    /// Somebody by iptables.
    Iptables,
    /// Somebody by nft, such as `/etc/nftables.conf`.
    Nftables,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvmctl => "kvmctl",
            Self::Docker => "Docker",
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Libvirt => "libvirt",
            Self::Podman => "Podman",
            Self::Kubernetes => "Kubernetes",
            Self::Fail2ban => "fail2ban",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// Beginnings of names of chains.
const CHAINS: [(&str, Program); 9] = [
    ("DOCKER", Program::Docker),
    ("ufw", Program::Ufw),
    ("LIBVIRT_", Program::Libvirt),
    ("NETAVARK", Program::Podman),
    ("CNI-", Program::Podman),
    ("KUBE-", Program::Kubernetes),
    ("cali-", Program::Kubernetes),
    ("f2b-", Program::Fail2ban),
    // firewalld that drives iptables.
    ("FWD_", Program::Firewalld),
];

/// Names of tables.
const TABLES: [(&str, Program); 7] = [
    (kernel::TABLE, Program::Kvmctl),
    (kernel::TRACE_TABLE, Program::Kvmctl),
    ("firewalld", Program::Firewalld),
    ("docker-bridges", Program::Docker),
    ("libvirt_network", Program::Libvirt),
    ("netavark", Program::Podman),
    ("kube-proxy", Program::Kubernetes),
];

/// Who most likely made the rule: by the names of its table and chain, else, for a chain that everybody uses, by the
/// other chains that hang on it.
#[must_use]
pub fn of(ruleset: &Ruleset, place: &Place) -> Program {
    if let Some((_, program)) = TABLES.iter().find(|(name, _)| *name == place.table) {
        return *program;
    }
    if let Some(program) = by_chain(&place.chain) {
        return program;
    }
    let table = find(ruleset, place);
    let shared = matches!(place.family, Family::Ip | Family::Ip6)
        && place.base.bytes().all(|letter| letter.is_ascii_uppercase());
    if !shared {
        return Program::Nftables;
    }
    // A policy of drop is Docker's or ufw's way; the others add rules.
    let chains: BTreeSet<Program> =
        table.into_iter().flat_map(|table| table.chains.keys()).filter_map(|c| by_chain(c)).collect();
    let usual = [Program::Ufw, Program::Docker, Program::Firewalld];
    let of_policy = usual.into_iter().find(|program| place.policy && chains.contains(program));
    of_policy.unwrap_or(Program::Iptables)
}

fn by_chain(chain: &str) -> Option<Program> {
    CHAINS.iter().find(|(start, _)| chain.starts_with(start)).map(|(_, program)| *program)
}

fn find<'a>(ruleset: &'a Ruleset, place: &Place) -> Option<&'a Table> {
    ruleset.tables.iter().find(|table| {
        table.family == place.family && table.name == place.table && table.legacy == place.legacy
    })
}

/// Which packets of a bridge an obstacle hits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Between two ports of the bridge, through bridge netfilter or on the bridge itself.
    pub same: bool,
    /// Whether the bridge has bridge netfilter on by itself.
    pub own_netfilter: bool,
    /// From its guests to elsewhere.
    pub out: bool,
    /// From elsewhere to its guests, answers or not.
    pub inward: bool,
    /// New flows from elsewhere to its guests.
    pub opened: bool,
    /// Services of the host: protocol and port.
    pub services: BTreeSet<(Protocol, Option<u16>)>,
    /// Interfaces that the guests' packets leave or come in by.
    pub uplinks: BTreeSet<IfName>,
}

/// What an obstacle hits, by bridge.
pub type Hits = BTreeMap<IfName, Hit>;

/// Lines for a root shell that let the packets pass, narrow as that program allows; empty if there are none.
#[must_use]
pub fn fix(ruleset: &Ruleset, place: &Place, hits: &Hits) -> String {
    let program = of(ruleset, place);
    // Frames between two ports of a bridge are no business of IP rules, but these programs need them there.
    let needed = is_used_by(ruleset, Program::Docker) || is_used_by(ruleset, Program::Kubernetes);
    let mut lines = Vec::new();
    for (bridge, hit) in hits {
        let between_ports = hit.same && !hit.out && !hit.inward && hit.services.is_empty();
        lines.extend(match program {
            Program::Kvmctl => Vec::new(),
            _ if between_ports && is_ip(place) && !needed => netfilter_off(place.family, bridge, hit),
            Program::Firewalld if is_ip(place) && !between_ports => firewalld(bridge, hit),
            Program::Ufw => ufw(bridge, hit),
            _ => matches_of(place, bridge, hit).iter().map(|m| accept(ruleset, place, m)).collect(),
        });
    }
    if lines.iter().any(|line| line.contains("--policy=")) {
        lines.push("firewall-cmd --reload".to_owned());
    }
    let mut seen = BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines.join("\n")
}

fn is_used_by(ruleset: &Ruleset, program: Program) -> bool {
    let mut chains = ruleset.tables.iter().flat_map(|table| table.chains.keys());
    chains.any(|chain| by_chain(chain) == Some(program))
}

fn is_ip(place: &Place) -> bool {
    matches!(place.family, Family::Ip | Family::Ip6 | Family::Inet)
}

fn netfilter_off(family: Family, bridge: &IfName, hit: &Hit) -> Vec<String> {
    let keys: &[&str] = match family {
        Family::Ip => &["iptables"],
        Family::Ip6 => &["ip6tables"],
        _ => &["iptables", "ip6tables"],
    };
    if hit.own_netfilter {
        let switches = keys.iter().map(|key| format!("nf_call_{key} 0")).collect::<Vec<_>>().join(" ");
        return vec![format!("ip link set dev {bridge} type bridge {switches}")];
    }
    keys.iter().map(|key| format!("sysctl -w net.bridge.bridge-nf-call-{key}=0")).collect()
}

/// A zone that lets everything pass. netd's own rules still keep guests from the host.
fn firewalld(bridge: &IfName, hit: &Hit) -> Vec<String> {
    if !hit.opened {
        return vec![
            format!("firewall-cmd --permanent --zone=trusted --change-interface={bridge}"),
            format!("firewall-cmd --zone=trusted --change-interface={bridge}"),
        ];
    }
    // Zones alone let nothing new in from another zone. A zone of its own, so that the policy opens nothing else.
    let zone = "firewall-cmd --permanent --zone=kvmctl-routed";
    let policy = "firewall-cmd --permanent --policy=to-kvmctl-routed";
    vec![
        "firewall-cmd --permanent --new-zone=kvmctl-routed".to_owned(),
        format!("{zone} --set-target=ACCEPT"),
        format!("{zone} --change-interface={bridge}"),
        "firewall-cmd --permanent --new-policy=to-kvmctl-routed".to_owned(),
        format!("{policy} --add-ingress-zone=ANY"),
        format!("{policy} --add-egress-zone=kvmctl-routed"),
        format!("{policy} --set-target=ACCEPT"),
    ]
}

fn ufw(bridge: &IfName, hit: &Hit) -> Vec<String> {
    let mut lines = Vec::new();
    if hit.out || hit.same {
        lines.push(format!("ufw route allow in on {bridge}"));
    }
    if hit.inward || hit.same {
        lines.push(format!("ufw route allow out on {bridge}"));
    }
    for (protocol, port) in &hit.services {
        if let Some(port) = port {
            lines.push(format!("ufw allow in on {bridge} to any port {port} proto {}", protocol.as_str()));
        }
    }
    lines
}

/// What an accepting rule matches.
#[derive(Default)]
struct Match<'a> {
    iif: Option<&'a str>,
    oif: Option<&'a str>,
    service: Option<(Protocol, Option<u16>)>,
}

fn matches_of<'a>(place: &Place, bridge: &'a IfName, hit: &'a Hit) -> Vec<Match<'a>> {
    let (iif, oif) = (Some(bridge.as_str()), Some(bridge.as_str()));
    let only = |iif, oif| Match { iif, oif, service: None };
    if place.family == Family::Bridge {
        // Here an interface is a port; ours are told by their names.
        let ports = Some("kvp-*");
        return vec![only(ports, None), only(None, ports)];
    }
    match place.hook {
        Hook::Forward => {
            let mut matches = Vec::new();
            // Either of the others matches these, too.
            if hit.same && !hit.out && !hit.inward {
                matches.push(only(iif, oif));
            }
            if hit.out {
                matches.push(only(iif, None));
            }
            if hit.inward {
                matches.push(only(None, oif));
            }
            matches
        }
        Hook::Input => hit.services.iter().map(|s| Match { iif, oif: None, service: Some(*s) }).collect(),
        Hook::Output | Hook::Postrouting | Hook::Egress => vec![only(None, oif)],
        Hook::Prerouting | Hook::Ingress => {
            let uplinks = hit.uplinks.iter().filter(|_| hit.inward).map(|up| only(Some(up.as_str()), None));
            uplinks
                .chain((hit.out || hit.same || !hit.services.is_empty()).then(|| only(iif, None)))
                .collect()
        }
    }
}

/// One line that puts an accepting rule in front of all others.
fn accept(ruleset: &Ruleset, place: &Place, m: &Match<'_>) -> String {
    let shared = is_shared(place);
    let mut words = Vec::new();
    if shared {
        let program = match (place.family, place.legacy) {
            (Family::Ip, false) => "iptables",
            (Family::Ip, true) => "iptables-legacy",
            (_, false) => "ip6tables",
            (_, true) => "ip6tables-legacy",
        };
        let table = find(ruleset, place);
        // Docker keeps the rules in this chain, and puts the jump to it in front.
        let users = table.is_some_and(|t| t.chains.contains_key("DOCKER-USER")) && place.base == "FORWARD";
        words.push(program.to_owned());
        if place.table != "filter" {
            words.extend(["-t".to_owned(), place.table.clone()]);
        }
        words.extend(["-I".to_owned(), if users { "DOCKER-USER".to_owned() } else { place.base.clone() }]);
        words.extend(m.iif.map(|iif| format!("-i {iif}")));
        words.extend(m.oif.map(|oif| format!("-o {oif}")));
        if let Some((protocol, port)) = m.service {
            let icmp = if place.family == Family::Ip { "icmp" } else { "ipv6-icmp" };
            let name = if protocol == Protocol::Icmp { icmp } else { protocol.as_str() };
            words.push(format!("-p {name}"));
            words.extend(port.map(|port| format!("--dport {port}")));
        }
        words.push("-j ACCEPT".to_owned());
    } else {
        words.push(format!("nft insert rule {} {} {}", place.family.as_str(), place.table, place.base));
        words.extend(m.iif.map(|iif| format!("iifname {iif}")));
        words.extend(m.oif.map(|oif| format!("oifname {oif}")));
        match m.service {
            Some((Protocol::Icmp, _)) => words.push("meta l4proto '{ icmp, icmpv6 }'".to_owned()),
            Some((protocol, Some(port))) => words.push(format!("{} dport {port}", protocol.as_str())),
            Some((protocol, None)) => words.push(format!("meta l4proto {}", protocol.as_str())),
            None => {}
        }
        words.push("accept".to_owned());
    }
    words.join(" ")
}

/// Whether the chain is one that iptables speaks to.
fn is_shared(place: &Place) -> bool {
    matches!(place.family, Family::Ip | Family::Ip6)
        && matches!(place.base.as_str(), "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING")
        && matches!(place.table.as_str(), "filter" | "mangle" | "raw" | "security" | "nat")
}
