//! The packet rules: two tables whose chains and rules never change, and sets that hold everything else. Pure.
//!
//! `bridge kvmctl` checks what a guest puts on the wire, `inet kvmctl` what passes or reaches the host. Each rule
//! accepts what matches and each chain ends in a drop, so that a field that is missing is never let through.

mod sets;
mod words;

use super::Elements;
use nftables::{
    batch::Batch,
    expr::{Expression, MetaKey, NamedExpression, Range},
    schema::{Chain, NfListObject, Rule, Set, SetFlag, SetTypeValue, Table},
    stmt::{NAT, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use serde_json::Value;
use sets::{SETS, by_set, element, members, set_members};
use std::collections::{BTreeSet, HashSet};
use words::*;

/// Name of both tables.
pub const TABLE: &str = "kvmctl";
/// An empty chain whose name carries the instance: nft 1.0.6 has no table comments in JSON.
const MARK: &str = "kv_mark_";
/// Both families that have a table.
pub const FAMILIES: [NfFamily; 2] = [NfFamily::Bridge, NfFamily::INet];

/// Before every other hook, and before bridge netfilter hands frames to IP rules.
const BRIDGE_PRIORITY: i32 = -300;
/// `filter` and `srcnat` of the inet family.
const FILTER_PRIORITY: i32 = 0;
const SRCNAT_PRIORITY: i32 = 100;

/// One table as `nft -j list table` prints it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Everything static, in a form that is equal exactly when the rules are.
    pub rules: String,
    /// Instance of the mark chain.
    pub instance: Option<String>,
    /// Members of our sets. A member that is not ours or does not parse is in `rules`, so that it shows.
    pub elements: Elements,
}

/// Reads a listing.
#[must_use]
pub fn read(listing: &Value) -> Listing {
    let mut read = Listing::default();
    let mut same = BTreeSet::new();
    let mut rules = Vec::new();
    for object in listing.pointer("/nftables").and_then(Value::as_array).into_iter().flatten() {
        if object.get("metainfo").is_some() {
            continue;
        }
        let mut object = object.clone();
        if let Some(name) = object.pointer("/chain/name").and_then(Value::as_str)
            && let Some(instance) = name.strip_prefix(MARK)
        {
            read.instance = Some(instance.to_owned());
        }
        if let Some(set) = object.get_mut("set").and_then(Value::as_object_mut) {
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for member in set.remove("elem").as_ref().and_then(Value::as_array).into_iter().flatten() {
                match element(&name, member) {
                    Some(element) => drop(read.elements.0.insert(element)),
                    None => drop(same.insert(member.to_string())),
                }
            }
        }
        forget_changing(&mut object);
        rules.push(object.to_string());
    }
    let implied: BTreeSet<String> = read
        .elements
        .0
        .iter()
        .flat_map(members)
        .filter(|(set, _)| *set == "kv_same")
        .filter_map(|(_, key)| serde_json::to_value(NamedExpression::Concat(key)).ok())
        .map(|member| member.to_string())
        .collect();
    rules.extend(same.difference(&implied).cloned());
    rules.extend(implied.difference(&same).map(|member| format!("missing {member}")));
    read.rules = rules.join("\n");
    read
}

/// Removes what differs from one listing to the next though the rules are the same.
fn forget_changing(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            if let Some(counter) = map.get_mut("counter").and_then(Value::as_object_mut) {
                counter.remove("packets");
                counter.remove("bytes");
            }
            map.values_mut().for_each(forget_changing);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_changing),
        _ => {}
    }
}

/// One transaction that leaves both tables as they must be, whatever they were.
#[must_use]
pub fn replace(instance: &str, elements: &Elements) -> Batch<'static> {
    let mut batch = Batch::new();
    for family in FAMILIES {
        // `delete` alone fails where there is no table; nft 1.0.6 has no `destroy`.
        batch.add(table(family));
        batch.delete(table(family));
        batch.add(table(family));
        batch.add(chain(family, format!("{MARK}{instance}")));
    }
    for spec in &SETS {
        batch.add(NfListObject::Set(Box::new(Set {
            family: spec.family,
            table: TABLE.into(),
            name: spec.name.into(),
            set_type: match spec.key {
                [one] => SetTypeValue::Single(*one),
                many => SetTypeValue::Concatenated(many.into()),
            },
            flags: spec.interval.then(|| HashSet::from([SetFlag::Interval])),
            ..Set::default()
        })));
    }
    bridge_rules(&mut batch);
    inet_rules(&mut batch);
    add_elements(&mut batch, elements);
    batch
}

/// One transaction that removes and adds members.
#[must_use]
pub fn change(remove: &Elements, add: &Elements) -> Batch<'static> {
    let mut batch = Batch::new();
    // Deleting a missing member fails the transaction: add it first.
    add_elements(&mut batch, remove);
    for (name, members) in by_set(remove) {
        batch.delete(set_members(name, members));
    }
    add_elements(&mut batch, add);
    batch
}

/// One transaction that removes both tables.
#[must_use]
pub fn remove() -> Batch<'static> {
    let mut batch = Batch::new();
    for family in FAMILIES {
        batch.add(table(family));
        batch.delete(table(family));
    }
    batch
}

fn add_elements(batch: &mut Batch<'static>, elements: &Elements) {
    for (name, members) in by_set(elements) {
        batch.add(set_members(name, members));
    }
}

/// What a guest puts on the wire.
fn bridge_rules(batch: &mut Batch<'static>) {
    let family = NfFamily::Bridge;
    let frame = |chain, expr| rule(family, chain, expr);
    batch.add(base(family, "kv_prerouting", NfChainType::Filter, NfHook::Prerouting, BRIDGE_PRIORITY));
    batch.add(base(family, "kv_input", NfChainType::Filter, NfHook::Input, BRIDGE_PRIORITY));
    batch.add(chain(family, "kv_frame"));
    // iifname @kv_filtered jump kv_frame
    batch.add(frame("kv_prerouting", vec![within(iif(), "kv_filtered"), jump("kv_frame")]));
    // iifname . ether saddr @kv_mac ether type { arp, ip, ip6 } accept
    let own_mac = within(concat(vec![iif(), field("ether", "saddr")]), "kv_mac");
    let types = one_of(field("ether", "type"), ["arp", "ip", "ip6"].map(word));
    batch.add(frame("kv_frame", vec![own_mac, types, accept()]));
    batch.add(frame("kv_frame", vec![counter(), discard()]));
    // iifname @kv_isolated_tap drop: no frame of an isolated guest, ARP included, ever reaches the host.
    batch.add(frame("kv_input", vec![within(iif(), "kv_isolated_tap"), counter(), discard()]));
}

/// What passes the host, or reaches it.
fn inet_rules(batch: &mut Batch<'static>) {
    let family = NfFamily::INet;
    for (name, hook) in
        [("kv_forward", NfHook::Forward), ("kv_input", NfHook::Input), ("kv_output", NfHook::Output)]
    {
        batch.add(base(family, name, NfChainType::Filter, hook, FILTER_PRIORITY));
    }
    batch.add(base(family, "kv_postrouting", NfChainType::NAT, NfHook::Postrouting, SRCNAT_PRIORITY));
    for name in
        ["kv_service", "kv_out", "kv_in", "kv_from_guest", "kv_to_guest", "kv_to_host", "kv_masquerade"]
    {
        batch.add(chain(family, name));
    }
    for (chain, expr) in forward_rules().into_iter().chain(host_rules()).chain(nat_rules()) {
        batch.add(rule(family, chain, expr));
    }
}

type Rules = Vec<(&'static str, Vec<Statement<'static>>)>;

/// From a bridge and a source address, to an address on a bridge, out of a bridge by another link.
fn pair(first: Expression<'static>, second: Expression<'static>) -> Expression<'static> {
    concat(vec![first, second])
}

fn forward_rules() -> Rules {
    vec![
        ("kv_forward", vec![within(pair(iif(), oif()), "kv_same"), accept()]),
        ("kv_forward", vec![within(iif(), "kv_isolated"), counter(), discard()]),
        ("kv_forward", vec![within(oif(), "kv_isolated"), counter(), discard()]),
        ("kv_forward", vec![within(iif(), "kv_guest"), jump("kv_from_guest")]),
        ("kv_forward", vec![within(oif(), "kv_guest"), jump("kv_to_guest")]),
        // From a guest: answers, and by the uplink with an address of its own network.
        ("kv_from_guest", vec![answers(), accept()]),
        ("kv_from_guest", vec![within(oif(), "kv_guest"), counter(), discard()]),
        ("kv_from_guest", vec![within(pair(iif(), field("ip", "saddr")), "kv_subnet4"), jump("kv_out")]),
        ("kv_from_guest", vec![within(pair(iif(), field("ip6", "saddr")), "kv_subnet6"), jump("kv_out")]),
        ("kv_from_guest", vec![counter(), discard()]),
        ("kv_out", vec![within(iif(), "kv_any_uplink"), accept()]),
        ("kv_out", vec![within(pair(iif(), oif()), "kv_uplink"), accept()]),
        // To a guest: answers, and on routed networks new flows by the uplink.
        ("kv_to_guest", vec![answers(), accept()]),
        (
            "kv_to_guest",
            vec![
                within(oif(), "kv_routed"),
                within(pair(oif(), field("ip", "daddr")), "kv_subnet4"),
                jump("kv_in"),
            ],
        ),
        (
            "kv_to_guest",
            vec![
                within(oif(), "kv_routed"),
                within(pair(oif(), field("ip6", "daddr")), "kv_subnet6"),
                jump("kv_in"),
            ],
        ),
        ("kv_to_guest", vec![counter(), discard()]),
        ("kv_in", vec![within(oif(), "kv_any_uplink"), accept()]),
        ("kv_in", vec![within(pair(oif(), iif()), "kv_uplink"), accept()]),
    ]
}

fn host_rules() -> Rules {
    let neighbour_discovery = [
        "nd-neighbor-solicit",
        "nd-neighbor-advert",
        "nd-router-solicit",
        "mld-listener-report",
        "mld2-listener-report",
    ];
    vec![
        ("kv_input", vec![within(iif(), "kv_isolated"), counter(), discard()]),
        ("kv_input", vec![within(iif(), "kv_guest"), jump("kv_to_host")]),
        ("kv_output", vec![within(oif(), "kv_isolated"), counter(), discard()]),
        ("kv_to_host", vec![answers(), accept()]),
        ("kv_to_host", vec![one_of(field("icmpv6", "type"), neighbour_discovery.map(word)), accept()]),
        // DHCP before the guest has an address.
        (
            "kv_to_host",
            vec![
                is(field("ip", "daddr"), word("255.255.255.255")),
                is(field("udp", "dport"), port(67)),
                accept(),
            ],
        ),
        (
            "kv_to_host",
            vec![
                is(field("ip6", "daddr"), word("ff02::1:2")),
                is(field("udp", "dport"), port(547)),
                accept(),
            ],
        ),
        (
            "kv_to_host",
            vec![
                within(pair(iif(), field("ip", "saddr")), "kv_subnet4"),
                within(pair(iif(), field("ip", "daddr")), "kv_gateway4"),
                jump("kv_service"),
            ],
        ),
        (
            "kv_to_host",
            vec![
                within(pair(iif(), field("ip6", "saddr")), "kv_subnet6"),
                within(pair(iif(), field("ip6", "daddr")), "kv_gateway6"),
                jump("kv_service"),
            ],
        ),
        ("kv_to_host", vec![counter(), discard()]),
        // Echo, DNS and DHCP at the network's own gateway address.
        ("kv_service", vec![is(field("icmp", "type"), word("echo-request")), accept()]),
        ("kv_service", vec![is(field("icmpv6", "type"), word("echo-request")), accept()]),
        ("kv_service", vec![one_of(field("udp", "dport"), [53, 67, 547].map(port)), accept()]),
        ("kv_service", vec![is(field("tcp", "dport"), port(53)), accept()]),
    ]
}

fn nat_rules() -> Rules {
    let nothing = || NAT { addr: None, family: None, port: None, flags: None };
    let high = || {
        Expression::Range(Box::new(Range { range: [Expression::Number(1024), Expression::Number(65535)] }))
    };
    vec![
        ("kv_postrouting", vec![within(oif(), "kv_guest"), Statement::Return(None)]),
        ("kv_postrouting", vec![is(field("ip", "daddr"), prefix("224.0.0.0", 24)), Statement::Return(None)]),
        ("kv_postrouting", vec![is(field("ip", "daddr"), word("255.255.255.255")), Statement::Return(None)]),
        ("kv_postrouting", vec![is(field("ip6", "daddr"), prefix("ff02::", 16)), Statement::Return(None)]),
        (
            "kv_postrouting",
            vec![
                within(iif(), "kv_nat"),
                within(pair(iif(), field("ip", "saddr")), "kv_subnet4"),
                jump("kv_masquerade"),
            ],
        ),
        (
            "kv_postrouting",
            vec![
                within(iif(), "kv_nat"),
                within(pair(iif(), field("ip6", "saddr")), "kv_subnet6"),
                jump("kv_masquerade"),
            ],
        ),
        // Low source ports must not leak: some servers trust them.
        (
            "kv_masquerade",
            vec![
                one_of(meta(MetaKey::L4proto), ["tcp", "udp"].map(word)),
                Statement::Masquerade(Some(NAT { port: Some(high()), ..nothing() })),
            ],
        ),
        ("kv_masquerade", vec![Statement::Masquerade(None)]),
    ]
}

fn table(family: NfFamily) -> NfListObject<'static> {
    NfListObject::Table(Table { family, name: TABLE.into(), handle: None })
}

fn chain(family: NfFamily, name: impl Into<String>) -> NfListObject<'static> {
    NfListObject::Chain(Chain { family, table: TABLE.into(), name: name.into().into(), ..Chain::default() })
}

fn base(
    family: NfFamily,
    name: &'static str,
    kind: NfChainType,
    hook: NfHook,
    priority: i32,
) -> NfListObject<'static> {
    NfListObject::Chain(Chain {
        family,
        table: TABLE.into(),
        name: name.into(),
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    })
}

fn rule(family: NfFamily, chain: &'static str, expr: Vec<Statement<'static>>) -> NfListObject<'static> {
    NfListObject::Rule(Rule {
        family,
        table: TABLE.into(),
        chain: chain.into(),
        expr: expr.into(),
        ..Rule::default()
    })
}

#[cfg(test)]
mod test;
