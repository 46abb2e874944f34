//! One packet's way from or to a guest's port, step by step, to where it would die. Pure.

mod resolve;
mod story;

pub use resolve::{Asked, resolve};

use super::{
    facts::{End, Facts, Station},
    packet::{Fact, Flow, Packet, Protocol},
    program::{Hit, Program},
    rules::{Field, Place},
};
use crate::{
    kernel::{RouteAnswer, RouteQuery, TraceFlow},
    model::{IfName, Mode, Network, Port},
    plan,
};
use shared::fault::{Fault, Kind};
use std::net::IpAddr;
use story::Story;

/// What a step says of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepVerdict {
    /// It goes on.
    Pass,
    /// It ends here.
    Drop,
    /// Nobody can tell from here.
    Unknown,
}

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it is: `port filter`, `forward`, ...
    pub stage: &'static str,
    /// What becomes of it there.
    pub verdict: StepVerdict,
    /// Why.
    pub detail: String,
    /// The rule or policy, if it is one.
    pub place: Option<Place>,
    /// Who most likely made it.
    pub program: Option<Program>,
    /// Lines to paste into a root shell; empty if there are none, or none are needed.
    pub fix: String,
}

/// One question, with its names resolved.
#[derive(Clone, Debug)]
pub struct Question {
    /// The guest's port.
    pub port: Port,
    /// Its network.
    pub network: Network,
    /// The guest's address, and how it is known.
    pub guest: (IpAddr, &'static str),
    /// The other end.
    pub other: IpAddr,
    /// Whether the guest sends first, not the other end.
    pub outward: bool,
    /// How.
    pub protocol: Protocol,
    /// The port that is sent to.
    pub to_port: Option<u16>,
}

impl Question {
    /// The flow that is asked about.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let (source, destination) =
            if self.outward { (self.guest.0, self.other) } else { (self.other, self.guest.0) };
        Flow { source, destination, protocol: self.protocol, port: self.to_port }
    }

    /// The packets to watch.
    #[must_use]
    pub fn trace_flow(&self) -> TraceFlow {
        let Flow { source, destination, protocol, port } = self.flow();
        let protocol = match (protocol, self.v4()) {
            (Protocol::Icmp, false) => "icmpv6",
            (protocol, _) => protocol.as_str(),
        };
        let tap = self.outward.then(|| self.port.tap.clone());
        TraceFlow { tap, source, destination, protocol, port }
    }

    /// Checks that a user may watch these packets: root may, and the port's owner those of the port's own addresses.
    /// A trace tells IP packets of one guest from those of another by nothing else.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub fn may_watch(&self, facts: &Facts, uid: u32) -> Result<(), Fault> {
        let owner = self.port.owner;
        let denied = |reason: &str, message: String| Fault::new(Kind::PermissionDenied, reason, message);
        if uid == 0 {
            return Ok(());
        }
        if uid != owner {
            let message = format!("the port belongs to uid {owner}, and the caller is uid {uid}");
            return Err(denied("NOT_OWNER", message)
                .hint("only its owner and root may watch its packets: leave --trace out"));
        }
        let recorded = self.port.addresses().any(|known| known == self.guest.0);
        // Without a filter a guest is seen with whatever address it likes.
        let others = || facts.desired.ports.values().any(|p| p.owner != owner && facts.has(p, self.guest.0));
        if !recorded && (!facts.has(&self.port, self.guest.0) || others()) {
            let message =
                format!("{} is not known to be an address of port `{}` alone", self.guest.0, self.port.name);
            return Err(denied("NOT_ITS_ADDRESS", message)
                .hint("only root may watch packets of other addresses: leave --source or --trace out"));
        }
        Ok(())
    }

    fn end(&self) -> End<'_> {
        End { bridge: &self.network.bridge, tap: Some(&self.port.tap), mac: Some(self.port.mac) }
    }

    fn v4(&self) -> bool {
        self.guest.0.is_ipv4()
    }

    fn subnet(&self) -> Option<ipnet::IpNet> {
        if self.v4() { self.network.ipv4.map(Into::into) } else { self.network.ipv6.map(Into::into) }
    }

    /// From the guest to the other end, as the host routes.
    fn out(&self) -> RouteQuery {
        let iif = Some(self.network.bridge.clone());
        RouteQuery { to: self.other, from: Some(self.guest.0), iif }
    }

    /// The interface that the other end is behind: the uplink that was asked for, else as the kernel routes.
    fn far(&self, facts: &Facts) -> Option<IfName> {
        let asked = facts.desired.uplink_in_force(&self.network).filter(|_| !self.outward);
        asked.filter(|name| facts.observed.links.contains_key(name)).or_else(|| facts.way_out(&self.out()))
    }

    fn back(&self, iif: IfName) -> RouteQuery {
        RouteQuery { to: self.guest.0, from: Some(self.other), iif: Some(iif) }
    }

    /// What the kernel has to be asked, called until there is no more.
    #[must_use]
    pub fn queries(&self, facts: &Facts) -> Vec<RouteQuery> {
        let mut queries = vec![self.out()];
        queries.extend(self.far(facts).map(|iif| self.back(iif)));
        queries.retain(|query| facts.route(query).is_none());
        queries
    }

    /// How the other end and the guest's network lie to each other.
    fn relation(&self, facts: &Facts) -> Relation {
        let mut links = facts.observed.links.iter();
        let holder = links.find(|(_, l)| l.addresses.iter().any(|a| a.net.addr() == self.other));
        let on_link = self.subnet().is_none_or(|net| net.contains(&self.other)) || is_to_many(self.other);
        match self.network.spec.mode {
            // The host is one more host of that LAN.
            Mode::Bridged if holder.is_some_and(|(name, _)| *name == self.network.bridge) => Relation::Host,
            Mode::Bridged => Relation::Bridge,
            _ if holder.is_some() => Relation::Host,
            Mode::Isolated if on_link => Relation::Bridge,
            Mode::Isolated => Relation::Nowhere,
            Mode::Nat | Mode::Routed if self.subnet().is_some() && on_link => Relation::Bridge,
            Mode::Nat | Mode::Routed => Relation::Routed,
        }
    }
}

fn is_to_many(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

/// How the other end and the guest's network lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// On the same bridge.
    Bridge,
    /// It is this host.
    Host,
    /// Behind this host.
    Routed,
    /// There is no way.
    Nowhere,
}

/// The steps, to the first that ends the packet.
#[must_use]
pub fn explain(facts: &Facts, question: &Question) -> Vec<Step> {
    let mut story = Story::new(facts, question);
    if question.outward {
        story.port();
        story.address();
    }
    match (question.relation(facts), question.outward) {
        (Relation::Bridge, _) => between_ports(&mut story),
        (Relation::Host, true) => to_host(&mut story),
        (Relation::Host, false) => from_host(&mut story),
        (Relation::Routed, true) => outward(&mut story),
        (Relation::Routed, false) => inward(&mut story),
        (Relation::Nowhere, _) => story.says(
            "route",
            StepVerdict::Drop,
            "an isolated network has no gateway: its guests reach each other and nothing else".to_owned(),
        ),
    }
    if !question.outward {
        story.port();
    }
    story.steps
}

/// The verdict over all steps.
#[must_use]
pub fn verdict(steps: &[Step]) -> StepVerdict {
    let any = |verdict| steps.iter().any(|step| step.verdict == verdict);
    match (any(StepVerdict::Drop), any(StepVerdict::Unknown)) {
        (true, _) => StepVerdict::Drop,
        (false, true) => StepVerdict::Unknown,
        (false, false) => StepVerdict::Pass,
    }
}

/// The port of the bridge that leads to the LAN, if there is one.
fn nic_of<'a>(facts: &'a Facts, network: &'a Network) -> Option<&'a IfName> {
    let tap = |name: &IfName| facts.desired.ports.values().any(|port| port.tap == *name);
    let mut members =
        facts.observed.links.iter().filter(|(_, link)| link.master.as_ref() == Some(&network.bridge));
    members.find(|(name, _)| !tap(name)).map(|(name, _)| name)
}

fn between_ports(story: &mut Story<'_>) {
    let (facts, question) = (story.facts, story.question);
    let (own, bridge) = (question.end(), &question.network.bridge);
    let to_many = is_to_many(question.other);
    // Another guest whose address is known, else the way to the LAN.
    let guest = facts.desired.ports.values().find(|port| {
        port.network == question.network.name
            && port.tap != question.port.tap
            && facts.has(port, question.other)
    });
    let lan =
        nic_of(facts, &question.network).filter(|_| question.network.spec.mode == Mode::Bridged && !to_many);
    let tap = guest.map(|port| &port.tap).or(lan);
    let other = End { bridge, tap, mac: guest.map(|port| port.mac) };
    let (from, to) = if question.outward { (own, other) } else { (other, own) };
    story.bridge();
    let flow = question.flow();
    let own_netfilter = facts.own_netfilter.contains_key(bridge);
    let hit = Hit { same: true, own_netfilter, ..Hit::default() };
    story.netfilter();
    // A rule about reverse paths looks for a route to the sender by its bridge.
    let reverse_path = match question.network.spec.mode {
        Mode::Bridged => None,
        Mode::Isolated => Some(false),
        _ => Some(question.subnet().is_some()),
    };
    let known = |packet: Packet| {
        let packet = match reverse_path {
            Some(exists) => packet.with(Field::ReversePath, Fact::Flag(exists)),
            None => packet,
        };
        if to_many { packet } else { packet.with(Field::DestinationType, Fact::Words(&["unicast"])) }
    };
    story.walk(true, facts.between_ports(&known(Packet::first(&flow)), from, to.tap), &hit);
    let (verdict, detail) = match to.tap {
        Some(port) => (StepVerdict::Pass, format!("the bridge `{bridge}` delivers it by port `{port}`")),
        None if to_many => (StepVerdict::Pass, format!("the bridge `{bridge}` delivers it to all ports")),
        None => (
            StepVerdict::Unknown,
            format!("no port of bridge `{bridge}` is known to have {}", flow.destination),
        ),
    };
    story.says("delivery", verdict, detail);
    // The answer of somebody unknown is taken to be in order.
    if to.tap.is_some() && !to_many {
        story.walk(false, facts.between_ports(&known(Packet::answer(&flow, false)), to, from.tap), &hit);
    }
}

fn to_host(story: &mut Story<'_>) {
    let question = story.question;
    let flow = question.flow();
    let packet = Packet::first(&flow)
        .with(Field::DestinationType, Fact::Words(&["local"]))
        .with(Field::ReversePath, Fact::Flag(question.subnet().is_some()));
    let hit = Hit { services: [(flow.protocol, flow.port)].into(), ..Hit::default() };
    story.bridge();
    let stations = Facts::to_host(&packet, question.end());
    let (before, input): (Vec<_>, Vec<_>) = stations
        .into_iter()
        .partition(|station| station.hook != super::rules::Hook::Input || on_bridge(station));
    story.walk(true, before, &hit);
    story.route(&question.out());
    story.walk(true, input, &hit);
    story.says("delivery", StepVerdict::Pass, format!("{} is this host's own", question.other));
    story.walk(false, Facts::from_host(&Packet::answer(&flow, false), question.end()), &hit);
}

fn on_bridge(station: &Station<'_>) -> bool {
    station.layer == super::eval::Layer::Bridge
}

fn from_host(story: &mut Story<'_>) {
    let question = story.question;
    let flow = question.flow();
    let hit = Hit { inward: true, ..Hit::default() };
    let packet = Packet::first(&flow).with(Field::SourceType, Fact::Words(&["local"]));
    story.walk(true, Facts::from_host(&packet, question.end()), &hit);
    story.bridge();
    let answer = Packet::answer(&flow, false)
        .with(Field::DestinationType, Fact::Words(&["local"]))
        .with(Field::ReversePath, Fact::Flag(question.subnet().is_some()));
    story.walk(false, Facts::to_host(&answer, question.end()), &hit);
}

fn routed(packet: Packet, reverse_path: bool) -> Packet {
    packet
        .with(Field::DestinationType, Fact::Words(&["unicast"]))
        .with(Field::ReversePath, Fact::Flag(reverse_path))
}

fn outward(story: &mut Story<'_>) {
    let (facts, question) = (story.facts, story.question);
    let (flow, end) = (question.flow(), question.end());
    let first =
        routed(Packet::first(&flow), question.subnet().is_some_and(|net| net.contains(&question.guest.0)));
    let out = Hit { out: true, ..Hit::default() };
    story.bridge();
    story.walk(true, Facts::from_guest(&first, end), &out);
    story.forwarding();
    story.route(&question.out());
    let Some(uplink) = facts.way_out(&question.out()) else { return };
    story.uplink(&uplink);
    let translated = story.walk(true, Facts::through(&first, end.bridge, &uplink), &out);
    story.translation(translated);
    let hit = Hit { inward: true, uplinks: [uplink.clone()].into(), ..Hit::default() };
    let answer = routed(Packet::answer(&flow, translated), true);
    story.walk(false, Facts::from_uplink(&answer, &uplink), &hit);
    story.way_back(&question.back(uplink.clone()));
    let mut stations = Facts::through(&answer, &uplink, end.bridge);
    stations.extend(Facts::to_guest(&answer, end));
    story.walk(false, stations, &hit);
}

fn inward(story: &mut Story<'_>) {
    let (facts, question) = (story.facts, story.question);
    let (flow, end) = (question.flow(), question.end());
    let Some(uplink) = question.far(facts) else {
        story.says(
            "route",
            StepVerdict::Drop,
            format!("this host has no route to {}: no answer would find its way back", question.other),
        );
        return;
    };
    story.uplink(&uplink);
    let reverse_path = facts.way_out(&question.out()).as_ref() == Some(&uplink);
    let first = routed(Packet::first(&flow), reverse_path);
    let hit = Hit { inward: true, opened: true, uplinks: [uplink.clone()].into(), ..Hit::default() };
    story.walk(true, Facts::from_uplink(&first, &uplink), &hit);
    story.forwarding();
    story.route(&question.back(uplink.clone()));
    let mut stations = Facts::through(&first, &uplink, end.bridge);
    stations.extend(Facts::to_guest(&first, end));
    story.walk(true, stations, &hit);
    story.bridge();
    let answer = routed(Packet::answer(&flow, false), true);
    let out = Hit { out: true, ..Hit::default() };
    story.walk(false, Facts::from_guest(&answer, end), &out);
    story.way_back(&question.out());
    story.walk(false, Facts::through(&answer, end.bridge, &uplink), &out);
}
