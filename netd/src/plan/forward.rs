//! Where forwards lead, and what they need of the rules. Pure.

use super::Desired;
use crate::{
    kernel::{Element, Elements},
    model::{Forward, ForwardSpec, Forwarding, Network, Owner, Port, Reservation, Target},
};
use shared::name::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Where a forward leads now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce<'a> {
    /// The port.
    pub port: &'a Port,
    /// Its addresses of the families that the forward listens at; never empty.
    pub addresses: Vec<IpAddr>,
}

/// No name sorts before it.
fn least() -> Name {
    "0".parse().expect("a digit is a name")
}

/// The members of one network, at a cost that does not grow with those of others.
fn of_network<'a, T>(
    map: &'a BTreeMap<(Name, Name), T>,
    network: &'a Name,
) -> impl Iterator<Item = &'a T> + Clone {
    map.range((network.clone(), least())..)
        .take_while(move |((name, _), _)| name == network)
        .map(|(_, value)| value)
}

impl Desired {
    /// What is set aside on one network.
    pub fn reservations_of<'a>(&'a self, network: &'a Name) -> impl Iterator<Item = &'a Reservation> + Clone {
        let from = (network.clone(), least(), None);
        let here = self.reservations.range(from..).take_while(move |((name, ..), _)| name == network);
        here.map(|(_, reservation)| reservation)
    }

    /// Whose port a new forward is made for: the one that answers, else the last one that did.
    #[must_use]
    pub fn target_owner(&self, network: &Name, spec: &ForwardSpec) -> Option<Owner> {
        let present = self.ports_of(network).filter(|port| !port.deleting);
        if let Some(port) = answers(spec, present) {
            return Some(port.owner());
        }
        let gone = self.reservations_of(network).filter(|r| match &spec.target {
            Target::Name(target) => *target == r.name || Some(target) == r.hostname.as_ref(),
            Target::Address(target) => r.addresses().any(|address| address == *target),
        });
        gone.max_by_key(|r| r.order)?.owner.clone()
    }

    /// The ports of one network.
    pub fn ports_of<'a>(&'a self, network: &'a Name) -> impl Iterator<Item = &'a Port> + Clone {
        of_network(&self.ports, network)
    }

    /// The forwards of one network.
    pub fn forwards_of<'a>(&'a self, network: &'a Name) -> impl Iterator<Item = &'a Forward> + Clone {
        of_network(&self.forwards, network)
    }

    /// Where a forward leads, and why nowhere.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn in_force<'a>(&'a self, forward: &'a Forward) -> Result<InForce<'a>, String> {
        let network = self.networks.get(&forward.network).ok_or("its network has no record")?;
        leads_to(forward, network, self.ports_of(&forward.network))
    }

    /// The members of the sets that all forwards of a network bring.
    #[must_use]
    pub fn forward_elements(&self, network: &Name) -> Elements {
        let Some(network) = self.networks.get(network) else { return Elements::default() };
        let forwards = self.forwards_of(&network.name);
        Elements(forwards.flat_map(|f| elements(f, network, self.ports_of(&network.name))).collect())
    }

    /// The members that forwards bring which may lead to `ports`, states of one port, if that port is as `there` says.
    /// What it costs grows with the numbers of ports and forwards of the network, but in memory only.
    #[must_use]
    pub fn forwards_around(&self, ports: &[&Port], there: Option<&Port>) -> BTreeSet<Element> {
        let Some(port) = ports.first() else { return BTreeSet::new() };
        let Some(network) = self.networks.get(&port.network) else { return BTreeSet::new() };
        let others = || self.ports_of(&network.name).filter(|other| other.name != port.name).chain(there);
        self.forwards_of(&network.name)
            .filter(|forward| ports.iter().any(|port| forward.may_lead_to(port)))
            .flat_map(|forward| elements(forward, network, others()))
            .collect()
    }

    /// Whether a guest may reach itself by a forward, and so has to get frames of its own back. A nested bridge, which
    /// a guest without a filter may be, would take them for a loop.
    pub(super) fn reflects(&self, port: &Port) -> bool {
        let mut forwards = self.forwards_of(&port.network);
        port.spec.filter && forwards.any(|f| !f.deleting && f.may_lead_to(port))
    }

    /// Whether a target is known to the network: a port answers to it, or one did before.
    #[must_use]
    pub fn knows_target(&self, network: &Name, target: &Target) -> bool {
        let ports = self.ports_of(network);
        let ports = ports.map(|p| (&p.name, Some(p.hostname()), p.addresses().collect::<Vec<_>>()));
        let gone = self.reservations_of(network);
        let gone = gone.map(|r| (&r.name, r.hostname.as_ref(), r.addresses().collect()));
        ports.chain(gone).any(|(name, hostname, addresses)| match target {
            Target::Name(target) => target == name || Some(target) == hostname,
            Target::Address(target) => addresses.contains(target),
        })
    }
}

/// The one of `ports` that answers to a target, whoever's it is.
fn answers<'a>(spec: &ForwardSpec, mut ports: impl Iterator<Item = &'a Port> + Clone) -> Option<&'a Port> {
    match &spec.target {
        Target::Name(name) => {
            let by_hostname = ports.clone().find(|port| port.hostname() == name);
            by_hostname.or_else(|| ports.find(|port| port.name == *name))
        }
        Target::Address(_) => ports.find(|port| spec.may_lead_to(port)),
    }
}

/// The port that a forward leads to out of `ports`, with its addresses.
fn leads_to<'a>(
    forward: &Forward,
    network: &Network,
    ports: impl Iterator<Item = &'a Port> + Clone,
) -> Result<InForce<'a>, String> {
    let spec = &forward.spec;
    let port = answers(spec, ports.filter(|port| !port.deleting))
        .ok_or_else(|| format!("no port of network `{}` answers to `{}` now", network.name, spec.target))?;
    if let Some(of) = forward.of.as_ref().filter(|of| !of.is(&port.owner())) {
        return Err(format!(
            "`{}` answers to `{}` now and is of {}, but the forward was made for a port of {of}: delete it and make it \
             anew if it is to lead there",
            port.resource(),
            spec.target,
            port.owner(),
        ));
    }
    let own: Vec<IpAddr> = match &spec.target {
        Target::Address(address) => vec![*address],
        Target::Name(_) => port.ipv4.map(IpAddr::V4).into_iter().chain(port.ipv6.map(IpAddr::V6)).collect(),
    };
    let has_subnet = |address: &IpAddr| match address {
        IpAddr::V4(_) => network.ipv4.is_some(),
        IpAddr::V6(_) => network.ipv6.is_some(),
    };
    let addresses: Vec<_> =
        own.into_iter().filter(|address| spec.is_of_family(*address) && has_subnet(address)).collect();
    if addresses.is_empty() {
        return Err(format!("`{}` has no address of that family", port.resource()));
    }
    Ok(InForce { port, addresses })
}

fn elements<'a>(
    forward: &Forward,
    network: &Network,
    ports: impl Iterator<Item = &'a Port> + Clone,
) -> Vec<Element> {
    let spec = &forward.spec;
    let dead = forward.deleting || network.deleting || !network.spec.mode.has_gateway();
    let Some(target) = leads_to(forward, network, ports).ok().filter(|_| !dead) else { return Vec::new() };
    let (protocol, port, to_port) = (spec.protocol, spec.listen_port.get(), spec.to_port());
    let bridge = || network.bridge.clone();
    let both = target.addresses.into_iter().flat_map(|to| match to {
        IpAddr::V4(to) => {
            let listen = spec.listen_address.and_then(v4);
            let forwarding = Forwarding { protocol, listen, port, to, to_port };
            [Element::Forward4(forwarding), Element::Open4(bridge(), to, protocol, to_port)]
        }
        IpAddr::V6(to) => {
            let listen = spec.listen_address.and_then(v6);
            let forwarding = Forwarding { protocol, listen, port, to, to_port };
            [Element::Forward6(forwarding), Element::Open6(bridge(), to, protocol, to_port)]
        }
    });
    both.collect()
}

fn v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    if let IpAddr::V4(v4) = address { Some(v4) } else { None }
}

fn v6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    if let IpAddr::V6(v6) = address { Some(v6) } else { None }
}
