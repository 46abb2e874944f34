//! The steps as they are told, one behind the other. Pure.

use super::{Question, RouteAnswer, RouteQuery, Step, StepVerdict, nic_of, plan};
use crate::{
    diagnose::{
        eval::{self, Judgement, Layer},
        facts::{Facts, Station},
        program::{self, Hit, Hits, Program},
        rules::{Hook, Place, Ruleset},
    },
    model::{IfName, Mode, State},
};

/// Steps so far; nothing is added behind one that ends the packet.
pub struct Story<'a> {
    pub facts: &'a Facts,
    pub question: &'a Question,
    pub steps: Vec<Step>,
    empty: Ruleset,
}

impl<'a> Story<'a> {
    pub fn new(facts: &'a Facts, question: &'a Question) -> Self {
        let mut story = Self { facts, question, steps: Vec::new(), empty: Ruleset::default() };
        if facts.ruleset.is_none() {
            story.says(
                "rules",
                StepVerdict::Unknown,
                "the host's rules cannot be read: is nft installed?".to_owned(),
            );
        }
        story
    }

    fn is_over(&self) -> bool {
        self.steps.iter().any(|step| step.verdict == StepVerdict::Drop)
    }

    pub fn says(&mut self, stage: &'static str, verdict: StepVerdict, detail: String) {
        self.tells(Step { stage, verdict, detail, place: None, program: None, fix: String::new() });
    }

    fn tells(&mut self, step: Step) {
        if !self.is_over() {
            self.steps.push(step);
        }
    }

    fn ends(&mut self, stage: &'static str, detail: String, fix: String) {
        let verdict = StepVerdict::Drop;
        self.tells(Step { stage, verdict, detail, place: None, program: None, fix });
    }

    /// The guest's own end of the wire.
    pub fn port(&mut self) {
        let port = &self.question.port;
        let tap = &port.tap;
        if let Some(State::Degraded(error)) = self.facts.states.get(&port.resource()) {
            return self.ends("port", format!("port `{}` is degraded: {error}", port.name), String::new());
        }
        match self.facts.observed.links.get(tap) {
            None => self.ends("port", format!("its tap `{tap}` does not exist"), String::new()),
            Some(link) if !link.up => {
                self.ends("port", format!("its tap `{tap}` is down"), format!("ip link set dev {tap} up"));
            }
            Some(link) if !link.carrier => {
                let detail = format!("no program has its tap `{tap}` open: is the machine running?");
                self.ends("port", detail, String::new());
            }
            Some(_) => {
                let detail = format!("port `{}`, tap `{tap}`, is up and open", port.name);
                self.says("port", StepVerdict::Pass, detail);
            }
        }
    }

    /// Which address the guest is taken to have.
    pub fn address(&mut self) {
        let (address, evidence) = self.question.guest;
        let outside = self.question.subnet().filter(|net| !net.contains(&address));
        let detail = match outside {
            Some(net) => {
                format!("from {address} ({evidence}), which is not in the network's {}", net.trunc())
            }
            None => format!("from {address} ({evidence})"),
        };
        self.says("address", StepVerdict::Pass, detail);
    }

    /// The bridge itself.
    pub fn bridge(&mut self) {
        let network = &self.question.network;
        let name = &network.bridge;
        if let Some(State::Degraded(error)) = self.facts.states.get(&network.resource()) {
            return self.ends(
                "bridge",
                format!("network `{}` is degraded: {error}", network.name),
                String::new(),
            );
        }
        match self.facts.observed.links.get(name) {
            None => self.ends("bridge", format!("the bridge `{name}` does not exist"), String::new()),
            Some(link) if !link.up => {
                self.ends(
                    "bridge",
                    format!("the bridge `{name}` is down"),
                    format!("ip link set dev {name} up"),
                );
            }
            Some(_) => {
                let lan = nic_of(self.facts, network).filter(|_| network.spec.mode == Mode::Bridged);
                match lan.and_then(|nic| Some((nic, self.facts.observed.links.get(nic)?))) {
                    Some((nic, link)) if !link.up || !link.carrier => {
                        let detail = format!("the NIC `{nic}` of bridge `{name}` is down or has no carrier");
                        self.ends("bridge", detail, String::new());
                    }
                    _ => self.says("bridge", StepVerdict::Pass, format!("`{name}` is up")),
                }
            }
        }
    }

    /// Whether frames on this bridge meet IP rules.
    pub fn netfilter(&mut self) {
        if !self.facts.bridge_netfilter(&self.question.network.bridge, self.question.v4()) {
            let detail = "is off: frames on this bridge do not meet IP rules".to_owned();
            self.says("bridge netfilter", StepVerdict::Pass, detail);
        }
    }

    /// Whether the host forwards at all.
    pub fn forwarding(&mut self) {
        let key = if self.question.v4() { plan::FORWARD4 } else { plan::FORWARD6 };
        let name = key.replace('/', ".");
        match self.facts.on(key) {
            true => self.says("forwarding", StepVerdict::Pass, format!("{name} is on")),
            false => self.ends("forwarding", format!("{name} is off"), format!("sysctl -w {name}=1")),
        }
    }

    /// The kernel's own answer, which includes reverse path filtering of where the packet came in.
    pub fn route(&mut self, query: &RouteQuery) {
        self.routed("route", query);
    }

    /// The same for an answer.
    pub fn way_back(&mut self, query: &RouteQuery) {
        self.routed("answer: route", query);
    }

    fn routed(&mut self, stage: &'static str, query: &RouteQuery) {
        match self.facts.route(query) {
            Some(RouteAnswer::Unicast { oif, gateway }) => {
                let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
                let from = query.iif.as_ref().map(|iif| format!(", reverse path to `{iif}` is fine"));
                let detail = format!("by `{oif}`{via}{}", from.unwrap_or_default());
                self.says(stage, StepVerdict::Pass, detail);
            }
            Some(RouteAnswer::Local) => {
                self.says(stage, StepVerdict::Pass, format!("{} is for this host", query.to));
            }
            Some(RouteAnswer::Refused(why)) => {
                let strict = *why == crate::kernel::Refusal::ReversePath;
                let iif = query.iif.as_ref().filter(|_| strict);
                let fix = iif.map(|iif| {
                    let key = format!("net/ipv4/conf/{iif}/rp_filter");
                    crate::diagnose::health::sysctl(&key, "2")
                });
                let to = query.to;
                self.ends(
                    stage,
                    format!("the kernel drops what is for {to}: {why}"),
                    fix.unwrap_or_default(),
                );
            }
            None => self.says(stage, StepVerdict::Unknown, "the kernel was not asked".to_owned()),
        }
    }

    /// The device that leads to the other end.
    pub fn uplink(&mut self, name: &IfName) {
        match self.facts.observed.links.get(name) {
            Some(link) if link.up && link.carrier => {
                self.says("uplink", StepVerdict::Pass, format!("`{name}` is up, MTU {}", link.mtu));
            }
            Some(link) if link.up => self.ends("uplink", format!("`{name}` has no carrier"), String::new()),
            _ => self.ends("uplink", format!("`{name}` is down"), format!("ip link set dev {name} up")),
        }
    }

    /// With which address it leaves.
    pub fn translation(&mut self, translated: bool) {
        let source = self.question.guest.0;
        let detail = match translated {
            true => "it leaves with the host's address".to_owned(),
            false => format!("it leaves as it is, from {source}"),
        };
        self.says("nat", StepVerdict::Pass, detail);
        if !translated && self.question.network.spec.mode == Mode::Nat {
            let detail = format!("nothing translates {source}, and the outside has no route to it");
            self.ends("nat", detail, String::new());
        }
    }

    /// Walks the rules of all stations; whether one of them translated the packet.
    pub fn walk(&mut self, first: bool, stations: Vec<Station<'_>>, hit: &Hit) -> bool {
        let ruleset = self.facts.ruleset.as_ref();
        let mut translated = false;
        for station in stations {
            if self.is_over() {
                break;
            }
            let stage = stage(first, &station, hit);
            let rules = ruleset.unwrap_or(&self.empty);
            for met in eval::hook(rules, station.layer, station.hook, &station.packet) {
                let step = self.met(stage, &met, hit);
                translated |= matches!(met.judgement, Judgement::Pass { translated: true, .. });
                self.tells(step);
            }
        }
        translated
    }

    fn met(&self, stage: &'static str, met: &eval::Met, hit: &Hit) -> Step {
        let chain = &met.chain;
        let legacy = if chain.legacy { "legacy " } else { "" };
        let name = format!(
            "{legacy}table {} {}, chain {} (priority {})",
            chain.family.as_str(),
            chain.table,
            chain.chain,
            chain.priority
        );
        let says = |place: &Place| match (place.policy, place.handle) {
            (true, _) => place.text.clone(),
            (false, Some(handle)) => format!("chain {}, rule {handle}: {}", place.chain, place.text),
            (false, None) => format!("chain {}: {}", place.chain, place.text),
        };
        let (verdict, place, detail) = match &met.judgement {
            Judgement::Pass { by, translated } => {
                let how = if *translated { "translates" } else { "passes" };
                (StepVerdict::Pass, by, format!("{name} {how}: {}", says(by)))
            }
            Judgement::Drop { by } => (StepVerdict::Drop, by, format!("{name} drops: {}", says(by))),
            Judgement::Unsure { drop: Some(drop), because } => {
                let because = says(because);
                let detail = format!(
                    "{name} may drop: {}; nobody can tell whether this matches: {because}",
                    says(drop)
                );
                (StepVerdict::Unknown, drop, detail)
            }
            Judgement::Unsure { drop: None, because } => {
                let detail = format!("{name} hands it elsewhere, or nobody can tell: {}", says(because));
                (StepVerdict::Unknown, because, detail)
            }
        };
        let ruleset = self.facts.ruleset.as_ref().unwrap_or(&self.empty);
        let program = program::of(ruleset, place);
        let promised = program == Program::Kvmctl && verdict == StepVerdict::Drop;
        let detail = if promised { format!("{detail} ({})", self.promise()) } else { detail };
        let hits = Hits::from([(self.question.network.bridge.clone(), hit.clone())]);
        let fix = match verdict {
            StepVerdict::Pass => String::new(),
            _ => program::fix(ruleset, place, &hits),
        };
        Step { stage, verdict, detail, place: Some(place.clone()), program: Some(program), fix }
    }

    /// What netd's own rules are for.
    fn promise(&self) -> &'static str {
        match self.question.network.spec.mode {
            Mode::Isolated => "an isolated network's guests reach each other and nothing else",
            Mode::Nat => {
                "a nat network's guests reach the outside and services of their own gateway, and nothing new comes in"
            }
            Mode::Routed => {
                "a routed network's guests reach the outside by its uplink, and services of their own gateway"
            }
            Mode::Bridged => "a port sends with its own addresses",
        }
    }
}

fn stage(first: bool, station: &Station<'_>, hit: &Hit) -> &'static str {
    let (first_word, answer) = match (station.layer, station.hook) {
        (Layer::Device(_), Hook::Egress) => ("device", "answer: device"),
        (Layer::Device(_), _) => ("device", "answer: device"),
        (Layer::Bridge, Hook::Prerouting) => ("port filter", "answer: port filter"),
        (Layer::Bridge, _) => ("bridge", "answer: bridge"),
        (Layer::Ip { .. }, _) if hit.same => ("bridge netfilter", "answer: bridge netfilter"),
        (Layer::Ip { .. }, Hook::Prerouting) => ("prerouting", "answer: prerouting"),
        (Layer::Ip { .. }, Hook::Input) => ("input", "answer: input"),
        (Layer::Ip { .. }, Hook::Output) => ("output", "answer: output"),
        (Layer::Ip { .. }, Hook::Forward) => ("forward", "answer: forward"),
        (Layer::Ip { .. }, _) => ("postrouting", "answer: postrouting"),
    };
    if first { first_word } else { answer }
}
