//! Reads `nft -j list ruleset`, with the words of `nft -a list ruleset`. Pure.
//!
//! What is not understood becomes something that cannot be told, never a match or a miss.

use super::rules::{
    Arms, Base, Condition, Family, Field, Hook, Key, Pattern, Rule, Ruleset, Statement, Table, Test, Verdict,
};
use crate::kernel::HOST_LIMITS;
use ipnet::IpNet;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// Words of rules by table family, table, chain and handle.
type Words<'a> = HashMap<(String, u64), &'a str>;

/// Reads both listings of one host.
#[must_use]
pub fn ruleset(json: &Value, text: &str) -> Ruleset {
    let words = words(text);
    let mut ruleset = Ruleset::default();
    for object in json.pointer("/nftables").and_then(Value::as_array).into_iter().flatten() {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        let Some(family) = Family::named(field("family")) else { continue };
        let name = field(if kind == "table" { "name" } else { "table" });
        let table = match ruleset.tables.iter_mut().position(|t| t.family == family && t.name == name) {
            Some(at) => &mut ruleset.tables[at],
            None => {
                ruleset.tables.push(Table {
                    family,
                    name: name.to_owned(),
                    legacy: false,
                    chains: BTreeMap::new(),
                    sets: BTreeMap::new(),
                    maps: BTreeMap::new(),
                });
                let last = ruleset.tables.len() - 1;
                &mut ruleset.tables[last]
            }
        };
        match kind.as_str() {
            "chain" => {
                table.chains.entry(field("name").to_owned()).or_default().base = base(body);
            }
            "rule" => {
                let handle = body.get("handle").and_then(Value::as_u64);
                let place = format!("{} {name} {}", family.as_str(), field("chain"));
                let known = handle.and_then(|handle| words.get(&(place, handle)));
                let parts = body.get("expr").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let text = known.map_or_else(|| said(parts), |text| (*text).to_owned());
                let rule = Rule { handle, text, body: parts.iter().filter_map(statement).collect() };
                table.chains.entry(field("chain").to_owned()).or_default().rules.push(rule);
            }
            "set" => {
                table.sets.insert(field("name").to_owned(), keys(body.get("elem").unwrap_or(&Value::Null)));
            }
            "map" => {
                table.maps.insert(field("name").to_owned(), arms(body.get("elem").unwrap_or(&Value::Null)));
            }
            _ => {}
        }
    }
    ruleset
}

/// A rule of which the other listing, a moment later, had no words any more.
fn said(parts: &[Value]) -> String {
    let words: Vec<_> = parts.iter().map(ToString::to_string).collect();
    words.join(" ")
}

fn words(text: &str) -> Words<'_> {
    let mut words = HashMap::new();
    let (mut table, mut chain) = ("", "");
    for line in text.lines() {
        let Some((before, handle)) = line.trim().rsplit_once(" # handle ") else { continue };
        let before = before.trim();
        if let Some(rest) = before.strip_prefix("table ") {
            table = rest.trim_end_matches('{').trim();
        } else if let Some(rest) = before.strip_prefix("chain ").filter(|_| before.ends_with('{')) {
            chain = rest.trim_end_matches('{').trim();
        } else if let Ok(handle) = handle.trim().parse() {
            words.insert((format!("{table} {chain}"), handle), before);
        }
    }
    words
}

fn base(body: &Value) -> Option<Base> {
    let word = |name: &str| body.get(name).and_then(Value::as_str);
    let devices = match body.get("dev") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Some(Base {
        nat: word("type") == Some("nat"),
        hook: Hook::named(word("hook")?)?,
        priority: body.get("prio").and_then(Value::as_i64).and_then(|p| p.try_into().ok())?,
        drops: word("policy") == Some("drop"),
        devices,
    })
}

fn statement(part: &Value) -> Option<Statement> {
    let (kind, body) = part.as_object()?.iter().next()?;
    let cannot = || {
        let condition = Condition { fields: Vec::new(), test: Test::Unreadable(format!("{kind} {body}")) };
        Some(Statement::When(condition))
    };
    if let Some(verdict) = verdict(kind, body) {
        return Some(Statement::Then(verdict));
    }
    match kind.as_str() {
        "match" => Some(Statement::When(condition(body))),
        "vmap" => {
            let map = match body.get("data") {
                Some(Value::String(name)) => Arms::Named(name.trim_start_matches('@').to_owned()),
                data => Arms::Here(arms(data.and_then(|d| d.get("set")).unwrap_or(&Value::Null))),
            };
            match fields(body.get("key")?) {
                Some(fields) => Some(Statement::Choose(fields, map)),
                None => cannot(),
            }
        }
        "xt" => match (body["type"].as_str(), body["name"].as_str().unwrap_or_default()) {
            (Some("target"), name) => target(name).map(Statement::Then),
            (Some("watcher"), _) => None,
            _ => cannot(),
        },
        // Ours, of what a guest may: what it has had is not known, and nearly never that much.
        "set" if HOST_LIMITS.iter().any(|set| body["set"] == format!("@{set}")) => None,
        // A member with a limit or quota of its own is a test.
        "set" | "map" if body.get("stmt").is_some_and(tests) => cannot(),
        // Nothing of this decides where the packet goes.
        "counter" | "log" | "notrack" | "mangle" | "ct helper" | "ct timeout" | "ct expectation" | "set"
        | "map" | "flow" | "dup" | "secmark" | "synproxy" | "comment" => None,
        _ => cannot(),
    }
}

/// Whether statements of a set's member may end the rule.
fn tests(statements: &Value) -> bool {
    let mut all = statements.as_array().into_iter().flatten().filter_map(Value::as_object);
    all.any(|statement| statement.keys().any(|kind| kind != "counter"))
}

/// What a target of iptables does that nft knows by its name only.
#[must_use]
pub fn target(name: &str) -> Option<Verdict> {
    Some(match name {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "MASQUERADE" | "SNAT" | "DNAT" | "REDIRECT" | "NETMAP" => Verdict::Translate,
        "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "TCPMSS" | "TOS" | "DSCP" | "ECN" | "TTL" | "HL"
        | "CHECKSUM" | "CT" | "NOTRACK" | "SET" | "TRACE" | "CLASSIFY" | "SECMARK" | "CONNSECMARK"
        | "AUDIT" | "TEE" | "RATEEST" | "IDLETIMER" | "TCPOPTSTRIP" | "HMARK" => return None,
        _ => Verdict::Unreadable,
    })
}

fn verdict(kind: &str, body: &Value) -> Option<Verdict> {
    let target = || body.get("target").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        "masquerade" | "snat" | "dnat" | "redirect" => Verdict::Translate,
        "queue" | "fwd" | "tproxy" => Verdict::Unreadable,
        _ => return None,
    })
}

fn condition(body: &Value) -> Condition {
    let cannot =
        || Condition { fields: Vec::new(), test: Test::Unreadable(format!("match {}", body["left"])) };
    let Some(fields) = fields(&body["left"]) else { return cannot() };
    let right = &body["right"];
    let wanted = match body["op"].as_str() {
        Some("==" | "in") => true,
        Some("!=") => false,
        Some(order @ ("<" | ">" | "<=" | ">=")) => {
            return match right.as_u64().and_then(|number| numbers(order, number)) {
                Some(range) => Condition { fields, test: Test::Among(vec![vec![range]]) },
                None => cannot(),
            };
        }
        _ => return cannot(),
    };
    let test = match (right.as_str().and_then(|name| name.strip_prefix('@')), wanted) {
        (Some(set), true) => Test::In(set.to_owned()),
        (Some(set), false) => Test::NotIn(set.to_owned()),
        (None, true) => Test::Among(keys(right)),
        (None, false) => Test::NotAmong(keys(right)),
    };
    Condition { fields, test }
}

fn numbers(order: &str, number: u64) -> Option<Pattern> {
    let (first, last) = match order {
        "<" => (0, number.checked_sub(1)?),
        "<=" => (0, number),
        ">" => (number.checked_add(1)?, u64::MAX),
        _ => (number, u64::MAX),
    };
    Some(Pattern::Numbers(first, last))
}

/// What an expression looks at; `None` if a diagnosis cannot say.
fn fields(expression: &Value) -> Option<Vec<Field>> {
    let (kind, body) = expression.as_object()?.iter().next()?;
    let word = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    Some(vec![match kind.as_str() {
        "concat" => {
            let parts: Option<Vec<_>> = body.as_array()?.iter().map(fields).collect();
            return parts.map(|parts| parts.concat());
        }
        "meta" => match word("key") {
            "iifname" | "iif" => Field::Iif,
            "oifname" | "oif" => Field::Oif,
            "ibrname" => Field::BridgeIn,
            "obrname" => Field::BridgeOut,
            "nfproto" => Field::Version,
            "l4proto" => Field::Protocol,
            "protocol" => Field::EtherType,
            _ => Field::Other,
        },
        "payload" => payload(word("protocol"), word("field")),
        "exthdr" if body.get("field").is_none() => Field::Extension,
        "exthdr" => Field::Missing,
        "ct" if body.get("dir").is_none() => match word("key") {
            "state" => Field::State,
            "status" => Field::Status,
            "direction" => Field::Direction,
            _ => Field::Other,
        },
        "fib" => {
            let flags: Vec<&str> = match &body["flags"] {
                Value::String(one) => vec![one],
                flags => flags.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
            };
            match (word("result"), flags.as_slice()) {
                ("type", ["daddr"]) => Field::DestinationType,
                ("type", ["saddr"]) => Field::SourceType,
                ("oif", flags) if flags.contains(&"saddr") && flags.contains(&"iif") => Field::ReversePath,
                _ => Field::Other,
            }
        }
        "ct" | "rt" | "socket" | "osf" | "ipsec" | "numgen" | "jhash" | "symhash" => Field::Other,
        _ => return None,
    }])
}

fn payload(protocol: &str, field: &str) -> Field {
    match (protocol, field) {
        ("ip", "saddr") => Field::Source4,
        ("ip", "daddr") => Field::Destination4,
        ("ip6", "saddr") => Field::Source6,
        ("ip6", "daddr") => Field::Destination6,
        ("ip", "protocol") => Field::Protocol4,
        ("ip6", "nexthdr") => Field::Protocol6,
        ("th", "sport") => Field::SourcePort,
        ("th", "dport") => Field::DestinationPort,
        ("tcp", "sport") => Field::TcpSource,
        ("tcp", "dport") => Field::TcpDestination,
        ("udp", "sport") => Field::UdpSource,
        ("udp", "dport") => Field::UdpDestination,
        ("icmp", "type") => Field::IcmpType,
        ("icmpv6", "type") => Field::Icmp6Type,
        ("ether", "saddr") => Field::EtherSource,
        ("ether", "daddr") => Field::EtherDestination,
        ("ether", "type") => Field::EtherType,
        ("arp" | "vlan" | "sctp" | "dccp" | "udplite" | "esp" | "ah" | "comp" | "igmp", _) => Field::Missing,
        _ => Field::Other,
    }
}

/// The members of a set, or one value as a set of one.
fn keys(value: &Value) -> Vec<Key> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().flat_map(keys).collect(),
        Value::Object(map) if map.contains_key("set") => keys(&map["set"]),
        Value::Object(map) if map.contains_key("elem") => keys(&map["elem"]["val"]),
        Value::Object(map) if map.contains_key("concat") => {
            let parts = map["concat"].as_array().into_iter().flatten();
            vec![parts.map(|part| pattern(part).unwrap_or(UNREADABLE)).collect()]
        }
        one => vec![vec![pattern(one).unwrap_or(UNREADABLE)]],
    }
}

/// Compares with no fact: whether it matches cannot be told.
const UNREADABLE: Pattern = Pattern::Word(String::new());

fn arms(value: &Value) -> Vec<(Key, Verdict)> {
    let pairs = value.as_array().into_iter().flatten().filter_map(Value::as_array);
    let arms = pairs.filter_map(|pair| {
        let [key, to] = pair.as_slice() else { return None };
        let (kind, body) = to.as_object()?.iter().next()?;
        let verdict = verdict(kind, body).unwrap_or(Verdict::Unreadable);
        Some(keys(key).into_iter().map(move |key| (key, verdict.clone())))
    });
    arms.flatten().collect()
}

fn pattern(value: &Value) -> Option<Pattern> {
    match value {
        Value::Bool(flag) => Some(Pattern::Flag(*flag)),
        Value::Number(number) => number.as_u64().map(|n| Pattern::Numbers(n, n)),
        Value::String(text) => Some(word(text)),
        Value::Object(map) => {
            if let Some(prefix) = map.get("prefix") {
                let address: IpAddr = prefix["addr"].as_str()?.parse().ok()?;
                let length = prefix["len"].as_u64()?.try_into().ok()?;
                return IpNet::new(address, length).ok().map(Pattern::Net);
            }
            let [first, last] = map.get("range")?.as_array()?.as_slice() else { return None };
            match (first.as_u64(), last.as_u64()) {
                (Some(first), Some(last)) => Some(Pattern::Numbers(first, last)),
                _ => Some(Pattern::Addresses(first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?)),
            }
        }
        _ => None,
    }
}

/// A word of nft or iptables: an address, a beginning with a star, or itself.
#[must_use]
pub fn word(text: &str) -> Pattern {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Pattern::Net(address.into());
    }
    match text.strip_suffix('*') {
        Some("") => Pattern::Any,
        Some(start) => Pattern::Begins(start.to_owned()),
        None => Pattern::Word(text.to_owned()),
    }
}
