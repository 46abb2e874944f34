//! From what is recorded and what there is to what has to be done. Pure.
//!
//! Removals come before additions, packet rules before links that go up. A plan that is empty means: converged.

mod forward;
mod groups;
mod kept;
mod shape;
mod sysctls;
mod takeover;

pub use forward::InForce;
pub use groups::{check_allows, group_not_found};
pub use sysctls::{ACCEPT_REDIRECTS, BRIDGE_NF, FORWARD4, FORWARD6, accept_ra};

use crate::{
    alloc,
    kernel::{
        Action, BridgeProfile, Element, Elements, Link, LinkKind, Observed, PortFlags, RESERVED_GROUPS,
        TapSpec,
    },
    model::{
        Address, Forward, ForwardKey, Group, IfName, LINK_GROUP, Mode, Network, Port, PortKey, Reservation,
        ReservationKey, Route, SavedSysctl,
    },
};
use ipnet::IpNet;
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::Name,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Everything recorded.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Marks our objects.
    pub instance: String,
    /// Networks by name.
    pub networks: BTreeMap<Name, Network>,
    /// Ports by network and name.
    pub ports: BTreeMap<PortKey, Port>,
    /// Forwards by network and name.
    pub forwards: BTreeMap<ForwardKey, Forward>,
    /// Groups by name.
    pub groups: BTreeMap<Name, Group>,
    /// Addresses set aside for ports that are gone.
    pub reservations: BTreeMap<ReservationKey, Reservation>,
    /// Host-wide sysctls that were changed.
    pub saved: BTreeMap<String, SavedSysctl>,
    /// Members of the sets that belong to records which cannot be read.
    pub kept: Elements,
    /// Whether there is a network that cannot be read, and so may need what no other does.
    pub unreadable: bool,
}

impl Desired {
    fn alias(&self, resource: &str) -> String {
        alias(&self.instance, resource)
    }

    /// Whether a link is this instance's: our group, and no alias of another instance. The alias of one that was
    /// made a moment before a crash is still missing, and an administrator may have changed it.
    fn owns(&self, link: &Link) -> bool {
        let marked = link.alias.starts_with("kvmctl:");
        link.group == LINK_GROUP && (!marked || link.alias.starts_with(&format!("kvmctl:{}:", self.instance)))
    }

    /// The interface that a network's traffic may use: where another network has taken that NIC over, its bridge.
    #[must_use]
    pub fn uplink_in_force(&self, network: &Network) -> Option<IfName> {
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
            Mode::Isolated => {
                add(Element::IsolatedBridge(bridge.clone()));
                // Not from its services either.
                if let Some(cell) = &network.cell {
                    add(Element::IsolatedTap(cell.link.clone()));
                }
            }
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
                add(Element::BridgeMac(bridge.clone(), network.bridge_mac));
            }
        }
        elements
    }

    /// The addresses that a port's guest may use: what is recorded, and the one that it forms by itself besides another
    /// that was asked for. Every rule that knows a guest by address has to know all of them.
    pub(crate) fn usable(&self, port: &Port) -> BTreeSet<IpAddr> {
        let formed = self.networks.get(&port.network).and_then(|network| network.formed_by(port.mac));
        port.addresses().chain(formed.map(IpAddr::V6)).collect()
    }

    /// The members of the sets that a port brings. Addresses of a family are checked where the port has one: where
    /// the network has a subnet, or the client declared one.
    #[must_use]
    pub fn port_elements(&self, port: &Port) -> Elements {
        let network = self.networks.get(&port.network);
        let mut elements = BTreeSet::from([Element::Tap(port.tap.clone())]);
        if port.spec.filter {
            elements.extend([
                Element::FilteredTap(port.tap.clone()),
                Element::TapMac(port.tap.clone(), port.mac),
                // Its own link-local address, which only it may have in this form.
                Element::TapAddress6(port.tap.clone(), alloc::eui64(alloc::LINK_LOCAL, port.mac)),
            ]);
            elements.extend(self.usable(port).into_iter().map(|address| match address {
                IpAddr::V4(v4) => Element::TapAddress4(port.tap.clone(), port.mac, v4),
                IpAddr::V6(v6) => Element::TapAddress6(port.tap.clone(), v6),
            }));
            if !port.addresses().any(|address| address.is_ipv4()) {
                elements.insert(Element::AnyAddress4(port.tap.clone()));
            }
            if !port.addresses().any(|address| address.is_ipv6()) {
                elements.insert(Element::AnyAddress6(port.tap.clone()));
            }
        }
        if network.is_some_and(|n| n.spec.mode == Mode::Isolated) {
            elements.insert(Element::IsolatedTap(port.tap.clone()));
        }
        if let Some(network) = network.filter(|n| port.spec.isolated && n.spec.mode.has_gateway()) {
            elements.extend(self.usable(port).into_iter().map(|address| match address {
                IpAddr::V4(v4) => Element::Apart4(network.bridge.clone(), v4),
                IpAddr::V6(v6) => Element::Apart6(network.bridge.clone(), v6),
            }));
        }
        if self.reflects(port) {
            elements.insert(Element::ReflectedTap(port.tap.clone()));
        }
        elements.extend(self.group_elements(port, network));
        Elements(elements)
    }

    /// Also of what is being deleted: as long as there is a record there may be a link, and none may be up without
    /// its rules.
    fn explained(&self) -> Elements {
        let networks = self.networks.values().map(|n| self.network_elements(n));
        let ports = self.ports.values().map(|p| self.port_elements(p));
        let forwards = self.networks.keys().map(|name| self.forward_elements(name));
        let all = networks.chain(ports).chain(forwards).flat_map(|e| e.0);
        Elements(all.chain(self.allows()).collect())
    }

    /// What both tables need. `digest` is that of the static rules when netd last wrote them; `None` before.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if tables of our name belong to somebody else.
    pub fn plan_tables(&self, observed: &Observed, digest: Option<&str>) -> Result<Vec<Action>, Fault> {
        let Some(tables) = &observed.tables else { return Ok(Vec::new()) };
        let needed = !self.networks.is_empty() || !self.ports.is_empty() || !self.kept.0.is_empty();
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
        let half_made = found.is_some_and(|link| self.owns(link) && link.alias.is_empty() && !link.up);
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
                let profile = profile(network);
                let differs =
                    |(key, value): &(String, &str)| observed.sysctls.get(key).is_some_and(|now| now != value);
                let watched = BridgeProfile::watched(name);
                if profile.sysctls(name).iter().filter(|(key, _)| watched.contains(key)).any(differs) {
                    actions.push(Action::SetProfile(name.clone(), profile));
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
            takeover::take_over(network, observed, bridge, &mut actions)?;
        }
        self.plan_cell(network, observed, &mut actions);
        Ok(actions)
    }

    /// A cell's link comes with the process that lives there, and goes with it: here it is only kept as it was made.
    fn plan_cell(&self, network: &Network, observed: &Observed, actions: &mut Vec<Action>) {
        let Some((spec, _)) = cell(network, &self.instance) else { return };
        let Some(link) = observed.links.get(&spec.name).filter(|link| self.owns(link)) else { return };
        if link.alias != spec.alias {
            actions.push(Action::SetAlias(spec.name.clone(), spec.alias.clone()));
        }
        if link.mtu != spec.mtu {
            actions.push(Action::SetMtu(spec.name.clone(), spec.mtu));
        }
        if link.master.as_ref() != Some(&network.bridge) || link.port != Some(spec.flags) {
            actions.push(Action::RepairTap(spec.clone()));
        }
        if !link.up {
            actions.push(Action::SetUp(spec.name, true));
        }
    }

    fn plan_network_removal(&self, network: &Network, observed: &Observed) -> Vec<Action> {
        let mut actions = Vec::new();
        let bridge =
            observed.links.get(&network.bridge).filter(|link| network.owns_bridge() && self.owns(link));
        if network.takeover.is_some() {
            takeover::give_back(network, observed, bridge, &mut actions);
        }
        if let Some(cell) = &network.cell
            && observed.links.get(&cell.link).is_some_and(|link| self.owns(link))
        {
            actions.push(Action::DeleteLink(cell.link.clone()));
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
            let tap = ours.then(|| Action::DeleteLink(port.tap.clone()));
            return Ok(tap.into_iter().chain(self.lower_ifb(port, observed)).collect());
        }
        let network = self.networks.get(&port.network).ok_or_else(|| {
            Fault::new(Kind::NotFound, "NETWORK_NOT_FOUND", format!("there is no network `{}`", port.network))
        })?;
        let spec = self.tap(port, network);
        if found.is_some_and(|link| !self.owns(link)) {
            return Err(in_the_way(&port.resource(), &port.tap));
        }
        let mut actions = self.raise_ifb(port, observed)?;
        let whole = LinkKind::Tap { owner: Some(port.owner), persist: true };
        // A tap is made persistent last: one that is not was never finished.
        let Some(link) = found.filter(|link| link.kind == whole) else {
            actions.extend(found.map(|_| Action::DeleteLink(port.tap.clone())));
            actions.push(Action::CreateTap(spec));
            actions.extend(self.lower_ifb(port, observed));
            return Ok(actions);
        };
        if link.alias != spec.alias {
            actions.push(Action::SetAlias(port.tap.clone(), spec.alias.clone()));
        }
        if link.mtu != spec.mtu {
            actions.push(Action::SetMtu(port.tap.clone(), spec.mtu));
        }
        if link.master.as_ref() != Some(&network.bridge) || link.port != Some(spec.flags) {
            actions.push(Action::RepairTap(spec));
        }
        actions.extend(self.shape_tap(port, link, observed));
        actions.extend(self.lower_ifb(port, observed));
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
                learning: !port.spec.filter,
                flood: !port.spec.filter,
                bpdu_guard: port.spec.filter,
                root_block: port.spec.filter,
                isolated: port.spec.isolated,
                reserved_groups: RESERVED_GROUPS,
                hairpin: self.reflects(port),
            },
            rate: port.spec.rate_in,
            ifb: port.spec.rate_out.map(|_| port.ifb()),
        }
    }

    /// Marked links that no record explains.
    #[must_use]
    pub fn strays(&self, observed: &Observed) -> Vec<IfName> {
        let bridges = self.networks.values().map(|n| &n.bridge);
        let cells = self.networks.values().filter_map(|n| Some(&n.cell.as_ref()?.link));
        let taps = self.ports.values().map(|p| &p.tap);
        let ifbs: Vec<IfName> = self.ports.values().map(Port::ifb).collect();
        let known: BTreeSet<&IfName> = bridges.chain(cells).chain(taps).chain(&ifbs).collect();
        observed
            .links
            .iter()
            .filter(|(name, link)| link.group == LINK_GROUP && !known.contains(name))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

fn alias(instance: &str, resource: &str) -> String {
    format!("kvmctl:{instance}:{resource}")
}

/// The link of a network's cell on its bridge, and the MAC behind it; `None` if it has no cell.
#[must_use]
pub fn cell(network: &Network, instance: &str) -> Option<(TapSpec, Mac)> {
    let cell = network.cell.as_ref()?;
    let outer = TapSpec {
        name: cell.link.clone(),
        bridge: network.bridge.clone(),
        owner: 0,
        mtu: network.mtu,
        mac: cell.mac,
        alias: alias(instance, &network.resource()),
        flags: PortFlags {
            learning: false,
            flood: false,
            bpdu_guard: true,
            root_block: true,
            isolated: false,
            reserved_groups: RESERVED_GROUPS,
            hairpin: false,
        },
        rate: None,
        ifb: None,
    };
    Some((outer, cell.mac))
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
