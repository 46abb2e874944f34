//! From what is recorded and what there is to what has to be done. Pure.
//!
//! Removals come before additions, packet rules before links that go up. A plan that is empty means: converged.

use crate::{
    kernel::{Action, BridgeProfile, Element, Elements, Link, LinkKind, Observed, PortFlags, TapSpec},
    model::{Address, IfName, LINK_GROUP, Mode, Network, Port, PortKey, Route, SavedSysctl},
};
use ipnet::IpNet;
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::collections::{BTreeMap, BTreeSet};

/// net.ipv4.ip_forward.
pub const FORWARD4: &str = "net/ipv4/ip_forward";
/// net.ipv6.conf.all.forwarding.
pub const FORWARD6: &str = "net/ipv6/conf/all/forwarding";
/// Whether frames between two ports of a bridge pass the host's IP rules (br_netfilter).
pub const BRIDGE_NF: &str = "net/bridge/bridge-nf-call-iptables";
/// Route protocol of router advertisements (RTPROT_RA).
const RTPROT_RA: u8 = 9;

/// Everything recorded.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Marks our objects.
    pub instance: String,
    /// Networks by name.
    pub networks: BTreeMap<Name, Network>,
    /// Ports by network and name.
    pub ports: BTreeMap<PortKey, Port>,
    /// Host-wide sysctls that were changed.
    pub saved: BTreeMap<String, SavedSysctl>,
}

/// Key of a link's accept_ra.
#[must_use]
pub fn accept_ra(link: &IfName) -> String {
    format!("net/ipv6/conf/{link}/accept_ra")
}

impl Desired {
    fn alias(&self, resource: &str) -> String {
        format!("kvmctl:{}:{resource}", self.instance)
    }

    /// Whether a link carries this instance's mark. One made a moment before a crash has the group and no alias.
    fn owns(&self, link: &Link) -> bool {
        link.group == LINK_GROUP
            && (link.alias.is_empty() || link.alias.starts_with(&format!("kvmctl:{}:", self.instance)))
    }

    /// The interface that a network's traffic may use: where another network has taken that NIC over, its bridge.
    fn uplink_in_force(&self, network: &Network) -> Option<IfName> {
        let uplink = network.spec.uplink.as_ref()?;
        let taken_by = self.networks.values().find(|other| {
            other.takeover.is_some() && !other.deleting && other.spec.uplink.as_ref() == Some(uplink)
        });
        Some(taken_by.map_or_else(|| uplink.clone(), |other| other.bridge.clone()))
    }

    /// The members of the sets that a network brings, without its ports'.
    #[must_use]
    pub fn network_elements(&self, network: &Network) -> Elements {
        let bridge = &network.bridge;
        let mut elements = Elements::default();
        let mut add = |element| {
            elements.0.insert(element);
        };
        match network.spec.mode {
            Mode::Bridged => {}
            Mode::Isolated => add(Element::IsolatedBridge(bridge.clone())),
            Mode::Nat | Mode::Routed => {
                add(Element::GuestBridge(bridge.clone()));
                add(if network.spec.mode == Mode::Nat {
                    Element::NatBridge(bridge.clone())
                } else {
                    Element::RoutedBridge(bridge.clone())
                });
                add(match self.uplink_in_force(network) {
                    Some(uplink) => Element::Uplink(bridge.clone(), uplink),
                    None => Element::AnyUplink(bridge.clone()),
                });
                if let Some(net) = network.ipv4 {
                    add(Element::Subnet4(bridge.clone(), net.trunc()));
                    add(Element::Gateway4(bridge.clone(), net.addr()));
                }
                if let Some(net) = network.ipv6 {
                    add(Element::Subnet6(bridge.clone(), net.trunc()));
                    add(Element::Gateway6(bridge.clone(), net.addr()));
                }
            }
        }
        elements
    }

    /// The members of the sets that a port brings.
    #[must_use]
    pub fn port_elements(&self, port: &Port) -> Elements {
        let mut elements = Elements::default();
        if port.filter {
            elements.0.insert(Element::FilteredTap(port.tap.clone()));
            elements.0.insert(Element::TapMac(port.tap.clone(), port.mac));
        }
        if self.networks.get(&port.network).is_some_and(|n| n.spec.mode == Mode::Isolated) {
            elements.0.insert(Element::IsolatedTap(port.tap.clone()));
        }
        elements
    }

    /// Also of what is being deleted: as long as there is a record there may be a link, and none may be up without
    /// its rules.
    fn all_elements(&self) -> Elements {
        let networks = self.networks.values().map(|n| self.network_elements(n));
        let ports = self.ports.values().map(|p| self.port_elements(p));
        Elements(networks.chain(ports).flat_map(|e| e.0).collect())
    }

    /// What both tables need. `digest` is that of the static rules when netd last wrote them; `None` before.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if tables of our name belong to somebody else.
    pub fn plan_tables(&self, observed: &Observed, digest: Option<&str>) -> Result<Vec<Action>, Fault> {
        let Some(tables) = &observed.tables else { return Ok(Vec::new()) };
        let needed = !self.networks.is_empty() || !self.ports.is_empty();
        if tables.foreign || tables.instance.as_ref().is_some_and(|i| *i != self.instance) {
            if !needed {
                return Ok(Vec::new());
            }
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "FOREIGN_TABLE",
                "nft tables named `kvmctl` exist that this netd did not make",
            )
            .hint("start netd with the --state-dir that made them, or remove them with `nft delete table bridge kvmctl` and `nft delete table inet kvmctl`"));
        }
        if !needed {
            return Ok(if tables.instance.is_some() { vec![Action::RemoveTables] } else { Vec::new() });
        }
        let wanted = self.all_elements();
        if digest.is_none() || tables.digest.as_deref() != digest {
            return Ok(vec![Action::ReplaceTables { instance: self.instance.clone(), elements: wanted }]);
        }
        let remove = Elements(tables.elements.0.difference(&wanted.0).cloned().collect());
        let add = Elements(wanted.0.difference(&tables.elements.0).cloned().collect());
        Ok(if remove.0.is_empty() && add.0.is_empty() {
            Vec::new()
        } else {
            vec![Action::ChangeElements { remove, add }]
        })
    }

    /// Host-wide sysctls that the networks need, by key.
    #[must_use]
    pub fn wanted_sysctls(&self, observed: &Observed) -> BTreeMap<String, &'static str> {
        let gateways = || self.networks.values().filter(|n| n.spec.mode.has_gateway() && !n.deleting);
        let mut wanted = BTreeMap::new();
        if gateways().any(|n| n.ipv4.is_some()) {
            wanted.insert(FORWARD4.to_owned(), "1");
        }
        if gateways().any(|n| n.ipv6.is_some()) {
            wanted.insert(FORWARD6.to_owned(), "1");
            // A forwarding host ignores router advertisements unless told otherwise: keep an uplink that lives on them.
            for (name, link) in &observed.links {
                let key = accept_ra(name);
                let listens = observed.sysctls.get(&key).is_some_and(|v| v == "1")
                    && link.routes.iter().any(|r| r.protocol == RTPROT_RA);
                // Once it was told, it stays so: a router that is away for a while is to be heard again.
                if !self.owns(link) && (listens || self.saved.contains_key(&key)) {
                    wanted.insert(key, "2");
                }
            }
        }
        wanted
    }

    /// Forwarding while a network needs it, and back to what it was afterwards, unless somebody else has changed
    /// it since.
    #[must_use]
    pub fn plan_sysctls(&self, observed: &Observed) -> Vec<Action> {
        let wanted = self.wanted_sysctls(observed);
        let is_now = |key: &String, value: &str| observed.sysctls.get(key).is_some_and(|now| now == value);
        let back = self
            .saved
            .iter()
            .filter(|(key, saved)| !wanted.contains_key(*key) && is_now(key, &saved.ours))
            .filter(|(_, saved)| saved.before != saved.ours)
            .map(|(key, saved)| Action::SetSysctl { key: key.clone(), value: saved.before.clone() });
        // An uplink has to keep its router before forwarding makes it deaf.
        let (forwarding, uplinks): (Vec<_>, Vec<_>) = wanted
            .iter()
            .filter(|(key, value)| observed.sysctls.contains_key(*key) && !is_now(key, value))
            .map(|(key, value)| Action::SetSysctl { key: key.clone(), value: (*value).to_owned() })
            .partition(|action| matches!(action, Action::SetSysctl { key, .. } if key == FORWARD4 || key == FORWARD6));
        back.chain(uplinks).chain(forwarding).collect()
    }

    /// What a network's links need.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if a link of somebody else is in the way or an uplink is gone.
    pub fn plan_network(&self, network: &Network, observed: &Observed) -> Result<Vec<Action>, Fault> {
        if network.deleting {
            return Ok(self.plan_network_removal(network, observed));
        }
        let name = &network.bridge;
        let found = observed.links.get(name);
        if !network.owns_bridge() {
            return match found {
                Some(link) if link.kind == LinkKind::Bridge => Ok(Vec::new()),
                _ => Err(gone(network, name, "bridge")),
            };
        }
        let mut actions = Vec::new();
        let alias = self.alias(&network.resource());
        let half_made = found.is_some_and(|link| self.owns(link) && link.alias.is_empty());
        match found {
            Some(link) if !self.owns(link) || link.kind != LinkKind::Bridge => {
                return Err(in_the_way(&network.resource(), name));
            }
            Some(link) if !half_made => {
                if link.alias != alias {
                    actions.push(Action::SetAlias(name.clone(), alias));
                }
                if link.mac != Some(network.bridge_mac) {
                    actions.push(Action::SetMac(name.clone(), network.bridge_mac));
                }
                if link.mtu != network.mtu {
                    actions.push(Action::SetMtu(name.clone(), network.mtu));
                }
            }
            _ => {
                if half_made {
                    actions.push(Action::DeleteLink(name.clone()));
                }
                actions.push(Action::CreateBridge {
                    name: name.clone(),
                    mac: network.bridge_mac,
                    mtu: network.mtu,
                    alias,
                    profile: profile(network),
                });
            }
        }
        let bridge = found.filter(|_| !half_made);
        for address in gateway_addresses(network) {
            if !has_address(bridge, &address) {
                actions.push(Action::AddAddress(name.clone(), address));
            }
        }
        if !bridge.is_some_and(|link| link.up) {
            actions.push(Action::SetUp(name.clone(), true));
        }
        if network.takeover.is_some() {
            takeover(network, observed, bridge, &mut actions)?;
        }
        Ok(actions)
    }

    fn plan_network_removal(&self, network: &Network, observed: &Observed) -> Vec<Action> {
        let mut actions = Vec::new();
        let bridge =
            observed.links.get(&network.bridge).filter(|link| network.owns_bridge() && self.owns(link));
        if network.takeover.is_some() {
            give_back(network, observed, bridge, &mut actions);
        }
        if bridge.is_some() {
            actions.push(Action::DeleteLink(network.bridge.clone()));
        }
        actions
    }

    /// What a port's link needs. Its members of the sets are part of `plan_tables`, or of `port_elements` where
    /// the tables were not looked at.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if a link of somebody else is in the way; NOT_FOUND if the network has no record.
    pub fn plan_port(&self, port: &Port, observed: &Observed) -> Result<Vec<Action>, Fault> {
        let found = observed.links.get(&port.tap);
        if port.deleting {
            let ours = found.is_some_and(|link| self.owns(link));
            return Ok(if ours { vec![Action::DeleteLink(port.tap.clone())] } else { Vec::new() });
        }
        let network = self.networks.get(&port.network).ok_or_else(|| {
            Fault::new(Kind::NotFound, "NETWORK_NOT_FOUND", format!("there is no network `{}`", port.network))
        })?;
        let spec = self.tap(port, network);
        let Some(link) = found else { return Ok(vec![Action::CreateTap(spec)]) };
        if !self.owns(link) {
            return Err(in_the_way(&port.resource(), &port.tap));
        }
        let whole = LinkKind::Tap { owner: Some(port.owner), persist: true };
        if link.kind != whole || link.alias != spec.alias {
            return Ok(vec![Action::DeleteLink(port.tap.clone()), Action::CreateTap(spec)]);
        }
        let mut actions = Vec::new();
        if link.mtu != spec.mtu {
            actions.push(Action::SetMtu(port.tap.clone(), spec.mtu));
        }
        if link.master.as_ref() != Some(&network.bridge) || link.port != Some(spec.flags) {
            actions.push(Action::RepairTap(spec));
        }
        if !link.up {
            actions.push(Action::SetUp(port.tap.clone(), true));
        }
        Ok(actions)
    }

    fn tap(&self, port: &Port, network: &Network) -> TapSpec {
        TapSpec {
            name: port.tap.clone(),
            bridge: network.bridge.clone(),
            owner: port.owner,
            mtu: network.mtu,
            mac: port.mac,
            alias: self.alias(&port.resource()),
            // Without a filter the guest may be a bridge itself: its addresses have to be learnt.
            flags: PortFlags {
                learning: !port.filter,
                flood: !port.filter,
                bpdu_guard: port.filter,
                root_block: port.filter,
            },
        }
    }

    /// Marked links that no record explains.
    #[must_use]
    pub fn strays(&self, observed: &Observed) -> Vec<IfName> {
        let bridges = self.networks.values().map(|n| &n.bridge);
        let known: BTreeSet<&IfName> = bridges.chain(self.ports.values().map(|p| &p.tap)).collect();
        observed
            .links
            .iter()
            .filter(|(name, link)| link.group == LINK_GROUP && !known.contains(name))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

fn profile(network: &Network) -> BridgeProfile {
    match network.spec.mode {
        Mode::Isolated => BridgeProfile::Silent,
        Mode::Nat | Mode::Routed => BridgeProfile::Gateway { ipv6: network.ipv6.is_some() },
        Mode::Bridged => BridgeProfile::Uplink,
    }
}

fn gateway_addresses(network: &Network) -> Vec<Address> {
    let nets = [network.ipv4.map(IpNet::V4), network.ipv6.map(IpNet::V6)];
    nets.into_iter()
        .flatten()
        .filter(|_| network.spec.mode.has_gateway())
        .map(|net| Address { net, broadcast: None, no_prefix_route: false, valid_seconds: None })
        .collect()
}

fn has_address(link: Option<&Link>, address: &Address) -> bool {
    link.is_some_and(|link| link.addresses.iter().any(|a| a.net == address.net))
}

fn has_route(link: Option<&Link>, route: &Route) -> bool {
    link.is_some_and(|link| link.routes.iter().any(|r| same_route(r, route)))
}

/// Whether two routes lead the same way; the kernel may add attributes of its own.
fn same_route(a: &Route, b: &Route) -> bool {
    a.destination == b.destination && a.gateway == b.gateway && a.table == b.table && a.metric == b.metric
}

/// Moves a NIC's addresses and routes to the bridge: addresses and the running bridge first, then the NIC, then
/// the routes, and the NIC's own routes and addresses last, so that at no moment a packet finds no way.
fn takeover(
    network: &Network,
    observed: &Observed,
    bridge: Option<&Link>,
    actions: &mut Vec<Action>,
) -> Result<(), Fault> {
    let (Some(state), Some(uplink)) = (&network.takeover, &network.spec.uplink) else { return Ok(()) };
    let nic = observed.links.get(uplink).ok_or_else(|| gone(network, uplink, "uplink"))?;
    let name = &network.bridge;
    for address in &state.addresses {
        if !has_address(bridge, address) {
            let moved = Address { no_prefix_route: !is_link_local(&address.net), ..address.clone() };
            actions.push(Action::AddAddress(name.clone(), moved));
        }
    }
    match &nic.master {
        Some(master) if master == name => {}
        Some(other) => {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "UPLINK_IN_USE",
                format!("`{uplink}` is a port of `{other}`"),
            )
            .hint(format!("take it out with `ip link set {uplink} nomaster`")));
        }
        None => {
            actions.push(Action::SetMaster(uplink.clone(), Some(name.clone())));
            actions.push(Action::CopyNeighbours { from: uplink.clone(), to: name.clone() });
        }
    }
    if !nic.up {
        actions.push(Action::SetUp(uplink.clone(), true));
    }
    for route in state.routes.iter().filter(|route| !has_route(bridge, route)) {
        actions.push(Action::AddRoute(name.clone(), route.clone()));
    }
    for route in state.routes.iter().rev().filter(|route| has_route(Some(nic), route)) {
        actions.push(Action::DeleteRoute(uplink.clone(), route.clone()));
    }
    for address in &state.addresses {
        if has_address(Some(nic), address) {
            actions.push(Action::DeleteAddress(uplink.clone(), address.clone()));
        }
    }
    Ok(())
}

/// The mirror of `takeover`.
fn give_back(network: &Network, observed: &Observed, bridge: Option<&Link>, actions: &mut Vec<Action>) {
    let (Some(state), Some(uplink)) = (&network.takeover, &network.spec.uplink) else { return };
    // A NIC that was pulled out has nothing to get back.
    let Some(nic) = observed.links.get(uplink) else { return };
    if !nic.up && state.was_up {
        actions.push(Action::SetUp(uplink.clone(), true));
    }
    if nic.master.as_ref() == Some(&network.bridge) {
        // While the NIC is a port, answers to its own questions arrive at the bridge.
        actions.push(Action::CopyNeighbours { from: network.bridge.clone(), to: uplink.clone() });
    }
    let missing: Vec<_> = state.addresses.iter().filter(|a| !has_address(Some(nic), a)).collect();
    for address in &missing {
        actions.push(Action::AddAddress(uplink.clone(), (*address).clone()));
    }
    for route in state.routes.iter().filter(|route| !has_route(Some(nic), route)) {
        if !missing.iter().any(|address| comes_with(route, address)) {
            actions.push(Action::AddRoute(uplink.clone(), route.clone()));
        }
    }
    // Before the NIC leaves the bridge: a bridge without it leads nowhere.
    for route in state.routes.iter().rev().filter(|route| has_route(bridge, route)) {
        actions.push(Action::DeleteRoute(network.bridge.clone(), route.clone()));
    }
    if nic.master.as_ref() == Some(&network.bridge) {
        actions.push(Action::SetMaster(uplink.clone(), None));
    }
    if nic.up && !state.was_up {
        actions.push(Action::SetUp(uplink.clone(), false));
    }
}

/// Whether the kernel makes this route by itself when it is given the address.
fn comes_with(route: &Route, address: &Address) -> bool {
    const RTPROT_KERNEL: u8 = 2;
    let metric = if address.net.addr().is_ipv6() { Some(256) } else { None };
    !address.no_prefix_route
        && route.protocol == RTPROT_KERNEL
        && route.gateway.is_none()
        && route.destination == address.net.trunc()
        && route.metric == metric
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn gone(network: &Network, link: &IfName, what: &str) -> Fault {
    Fault::new(
        Kind::FailedPrecondition,
        "LINK_GONE",
        format!("the {what} `{link}` of network `{}` is not there", network.name),
    )
    .hint(format!("bring `{link}` back, or delete the network with --force"))
}

fn in_the_way(resource: &str, link: &IfName) -> Fault {
    Fault::new(
        Kind::FailedPrecondition,
        "FOREIGN_LINK",
        format!("`{link}`, needed for `{resource}`, belongs to somebody else"),
    )
    .meta("link", link)
    .hint(format!("remove or rename it (`ip link show {link}`), then try again"))
}

#[cfg(test)]
mod test;
