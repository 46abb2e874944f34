//! Reads `iptables-save` and `ip6tables-save`: what nft shows as `xt` only, and the kernel's old iptables. Pure.

use super::{
    nft,
    rules::{
        Base, Chain, Condition, Family, Field, Hook, Key, Pattern, Rule, Ruleset, Statement, Table, Test,
        Verdict,
    },
};
use std::collections::BTreeMap;

/// Tables by name, chains by name, with the rules in order.
type Save = BTreeMap<String, BTreeMap<String, Chain>>;

/// Puts the words of `iptables-save` (of nftables' tables) in the place of rules that nft cannot put in words.
/// A chain that was changed between the two listings keeps nft's.
pub fn fill(ruleset: &mut Ruleset, family: Family, text: &str) {
    let mut save = read(family, text);
    for table in ruleset.tables.iter_mut().filter(|table| table.family == family && !table.legacy) {
        let Some(chains) = save.get_mut(&table.name) else { continue };
        for (name, chain) in &mut table.chains {
            let Some(known) = chains.remove(name).filter(|k| k.rules.len() == chain.rules.len()) else {
                continue;
            };
            for (rule, known) in chain.rules.iter_mut().zip(known.rules) {
                let unread = |s: &Statement| {
                    matches!(
                        s,
                        Statement::When(Condition { test: Test::Unreadable(_), .. })
                            | Statement::Then(Verdict::Unreadable)
                    )
                };
                if rule.body.iter().any(unread) {
                    rule.body = known.body;
                }
                if rule.text.contains("xt match") || rule.text.contains("xt target") {
                    rule.text = known.text;
                }
            }
        }
    }
}

/// Adds the tables of the kernel's old iptables.
pub fn add_legacy(ruleset: &mut Ruleset, family: Family, text: &str) {
    for (name, chains) in read(family, text) {
        let empty = |chain: &Chain| chain.rules.is_empty() && !chain.base.as_ref().is_some_and(|b| b.drops);
        if chains.values().all(empty) {
            continue;
        }
        ruleset.tables.push(Table {
            family,
            name,
            legacy: true,
            chains,
            sets: BTreeMap::new(),
            maps: BTreeMap::new(),
        });
    }
}

fn read(family: Family, text: &str) -> Save {
    let mut save = Save::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.trim().clone_into(&mut table);
        } else if let Some(rest) = line.strip_prefix(':') {
            let mut parts = rest.split_whitespace();
            let (Some(name), Some(policy)) = (parts.next(), parts.next()) else { continue };
            let base = base(&table, name, policy == "DROP");
            let chain = Chain { base, rules: Vec::new() };
            save.entry(table.clone()).or_default().insert(name.to_owned(), chain);
        } else if line.starts_with("-A ") {
            let words = split(line);
            let Some(name) = words.get(1) else { continue };
            let rule = Rule { handle: None, text: line.to_owned(), body: body(family, &words[2..]) };
            save.entry(table.clone()).or_default().entry(name.clone()).or_default().rules.push(rule);
        }
    }
    save
}

/// Where a chain of iptables is hooked: NF_IP_PRI_* of the kernel (include/uapi/linux/netfilter_ipv4.h).
fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let priority = match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    };
    Some(Base { nat: table == "nat", hook, priority, drops, devices: Vec::new() })
}

/// Words of a line, quotes taken off.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            '\\' if quoted => word.extend(letters.next()),
            c if c.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Reads the options of one rule.
struct Reader<'a> {
    family: Family,
    words: std::slice::Iter<'a, String>,
    body: Vec<Statement>,
    protocol: Option<&'a str>,
}

fn body(family: Family, words: &[String]) -> Vec<Statement> {
    let mut reader = Reader { family, words: words.iter(), body: Vec::new(), protocol: None };
    let mut negated = false;
    while let Some(word) = reader.words.next() {
        match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-j" | "-g" => {
                let name = reader.argument();
                let verdict = match (word.as_str(), nft::target(name)) {
                    ("-g", _) => Some(Verdict::Goto(name.to_owned())),
                    // A name that is no target of iptables is a chain's.
                    (_, Some(Verdict::Unreadable)) if !is_target(name) => {
                        Some(Verdict::Jump(name.to_owned()))
                    }
                    (_, verdict) => verdict,
                };
                reader.body.extend(verdict.map(Statement::Then));
                // The rest is the target's own.
                return reader.body;
            }
            option => reader.option(option, negated),
        }
        negated = false;
    }
    reader.body
}

/// Targets that end a packet's way in a manner of their own.
fn is_target(name: &str) -> bool {
    matches!(name, "NFQUEUE" | "QUEUE" | "TPROXY" | "SYNPROXY" | "CLUSTERIP" | "TARPIT" | "MIRROR")
}

impl<'a> Reader<'a> {
    fn argument(&mut self) -> &'a str {
        self.words.next().map_or("", String::as_str)
    }

    fn when(&mut self, field: Field, negated: bool, keys: Vec<Key>) {
        let test = if negated { Test::NotAmong(keys) } else { Test::Among(keys) };
        self.body.push(Statement::When(Condition { fields: vec![field], test }));
    }

    fn unreadable(&mut self, words: &str) {
        let test = Test::Unreadable(words.to_owned());
        self.body.push(Statement::When(Condition { fields: Vec::new(), test }));
    }

    fn option(&mut self, option: &str, negated: bool) {
        let v4 = self.family == Family::Ip;
        match option {
            "-m" => {
                let name = self.argument();
                // The others' options say what they test; these test without one, or are not read.
                let read = [
                    "tcp",
                    "udp",
                    "icmp",
                    "icmp6",
                    "ipv6-icmp",
                    "conntrack",
                    "state",
                    "addrtype",
                    "comment",
                    "multiport",
                    "physdev",
                    "pkttype",
                ];
                if !read.contains(&name) {
                    self.unreadable(&format!("-m {name}"));
                }
            }
            "-i" | "-o" | "--physdev-in" | "--physdev-out" => {
                let field = match option {
                    "-i" => Field::Iif,
                    "-o" => Field::Oif,
                    "--physdev-in" => Field::PortIn,
                    _ => Field::PortOut,
                };
                let name = self.argument();
                let pattern = match name.strip_suffix('+') {
                    Some(start) => Pattern::Begins(start.to_owned()),
                    None => Pattern::Word(name.to_owned()),
                };
                self.when(field, negated, vec![vec![pattern]]);
            }
            "-s" | "-d" => {
                let field = match (option, v4) {
                    ("-s", true) => Field::Source4,
                    ("-s", false) => Field::Source6,
                    (_, true) => Field::Destination4,
                    (_, false) => Field::Destination6,
                };
                let text = self.argument();
                match text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into)) {
                    Ok(net) => self.when(field, negated, vec![vec![Pattern::Net(net)]]),
                    // A mask with holes.
                    Err(_) => self.unreadable(&format!("{option} {text}")),
                }
            }
            "-p" => {
                let name = self.argument();
                self.protocol = Some(name);
                let pattern = name.parse().map_or_else(|_| nft::word(name), |n| Pattern::Numbers(n, n));
                self.when(Field::Protocol, negated, vec![vec![pattern]]);
            }
            "--sport" | "--dport" | "--sports" | "--dports" | "--ports" => {
                let field = match (option.starts_with("--s"), self.protocol) {
                    _ if option == "--ports" => Field::Other,
                    (true, Some("tcp")) => Field::TcpSource,
                    (true, Some("udp")) => Field::UdpSource,
                    (false, Some("tcp")) => Field::TcpDestination,
                    (false, Some("udp")) => Field::UdpDestination,
                    // SCTP and the like.
                    _ => Field::Missing,
                };
                let text = self.argument();
                let ports: Option<Vec<Key>> =
                    text.split(',').map(|part| Some(vec![port_range(part)?])).collect();
                match ports {
                    Some(keys) => self.when(field, negated, keys),
                    None => self.unreadable(&format!("{option} {text}")),
                }
            }
            "--ctstate" | "--state" => {
                let text = self.argument();
                let states = text.split(',').map(str::to_ascii_lowercase);
                // SNAT and DNAT are states here, and a status with nft.
                let (status, states): (Vec<_>, Vec<_>) =
                    states.partition(|state| matches!(state.as_str(), "snat" | "dnat"));
                let keys = |words: Vec<String>| words.into_iter().map(|w| vec![Pattern::Word(w)]).collect();
                match (status.is_empty(), states.is_empty()) {
                    (true, _) => self.when(Field::State, negated, keys(states)),
                    (_, true) => self.when(Field::Status, negated, keys(status)),
                    _ => self.unreadable(&format!("{option} {text}")),
                }
            }
            "--dst-type" | "--src-type" => {
                let field = if option == "--dst-type" { Field::DestinationType } else { Field::SourceType };
                let kinds = self.argument().split(',').map(str::to_ascii_lowercase);
                let keys = kinds.map(|kind| vec![Pattern::Word(kind)]).collect();
                self.when(field, negated, keys);
            }
            "--icmp-type" | "--icmpv6-type" => {
                let field = if v4 { Field::IcmpType } else { Field::Icmp6Type };
                let text = self.argument();
                match text.split('/').next().unwrap_or_default().parse() {
                    Ok(number) => self.when(field, negated, vec![vec![Pattern::Numbers(number, number)]]),
                    Err(_) if text == "any" => self.when(field, negated, vec![vec![Pattern::Any]]),
                    Err(_) => self.when(field, negated, vec![vec![Pattern::Word(text.to_owned())]]),
                }
            }
            "--comment" => drop(self.argument()),
            "--physdev-is-bridged" => self.when(Field::Bridged, negated, vec![vec![Pattern::Flag(true)]]),
            other => {
                self.unreadable(other);
                // Its arguments, if it has any.
                while self.words.as_slice().first().is_some_and(|w| !w.starts_with('-') && w != "!") {
                    self.words.next();
                }
            }
        }
    }
}

/// `80`, or `1024:65535` with either end left out.
fn port_range(text: &str) -> Option<Pattern> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let end = |text: &str, open: u64| if text.is_empty() { Some(open) } else { text.parse().ok() };
    Some(Pattern::Numbers(end(first, 0)?, end(last, 65_535)?))
}
