//! A kernel in memory, for tests: as much of Linux as the plans rely on, and failures on demand.
//!
//! Every call of the trait is a step, `observe` as well as `apply`. A script says at which step what goes wrong.

use super::{
    Action, BridgeProfile, Bucket, CellSpec, Element, Elements, Kernel, Link, LinkKind, Listener, Observed,
    PortFlags, Scope, Tables, TapSpec, Traffic,
};
use crate::{
    model::{Address, IfName, LINK_GROUP, Protocol, Route},
    plan,
};
use ipnet::IpNet;
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::Notify;

/// RTPROT_KERNEL.
const KERNEL: u8 = 2;
/// RT_TABLE_MAIN.
const MAIN: u32 = 254;
/// RT_SCOPE_LINK.
const LINK_SCOPE: u8 = 253;

/// Whether the change that a step asks for is made before it fails or hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was changed.
    None,
    /// It was changed all the same.
    Done,
}

/// What a script does at its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Fails,
    /// Never returns: the process was killed there.
    Hangs,
}

type Predicate = Box<dyn Fn(&Action) -> bool + Send>;

#[derive(Default)]
struct State {
    host: Host,
    applied: Vec<Action>,
    steps: usize,
    script: Option<(usize, Effect, Ending)>,
    refuses: Option<Predicate>,
    meddles: usize,
    listeners: Vec<(Protocol, u16, Listener)>,
}

/// All that there is on the host, in a form that compares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Links without their routes.
    pub links: BTreeMap<IfName, Link>,
    /// In the kernel's order: of two to the same place the first one counts.
    pub routes: Vec<(IfName, Route)>,
    /// Values by key.
    pub sysctls: BTreeMap<String, String>,
    /// The tables named as ours.
    pub tables: Option<FakeTables>,
    /// Flows under way, by the member of a set that they began by.
    pub flows: BTreeSet<Element>,
    next_index: u32,
}

/// Both tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeTables {
    /// Instance of the mark; `None`: not made by netd.
    pub instance: Option<String>,
    /// Stands for the rules; another number is another digest.
    pub rules: u32,
    /// Members of the sets.
    pub elements: Elements,
}

/// A handle on the kernel in memory; clones share it.
#[derive(Clone)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
    hung: Arc<Notify>,
}

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeKernel").finish_non_exhaustive()
    }
}

fn refused(errno: &str, action: &Action) -> Fault {
    Fault::new(Kind::Internal, "FAKE", format!("{errno}: {action:?}"))
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeKernel {
    /// A host with a loopback device, two NICs and forwarding off. `eth0` is down and bare.
    #[must_use]
    pub fn new() -> Self {
        let mut host = Host::default();
        for (key, value) in [(plan::FORWARD4, "0"), (plan::FORWARD6, "0"), (plan::BRIDGE_NF, "1")] {
            host.sysctls.insert(key.to_owned(), value.to_owned());
        }
        for (name, kind) in [("lo", LinkKind::Loopback), ("eth0", LinkKind::Nic), ("eth1", LinkKind::Nic)] {
            host.add_link(&name.parse().expect("a link's name"), kind);
        }
        Self {
            state: Arc::new(Mutex::new(State { host, ..State::default() })),
            hung: Arc::new(Notify::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the host")
    }

    /// Changes the host as another program would.
    pub fn meddle(&self, change: impl FnOnce(&mut Host)) {
        change(&mut self.lock().host);
    }

    /// A program of the host takes a port.
    pub fn listen(&self, protocol: Protocol, port: u16, address: IpAddr) {
        let listener = Listener { address, program: Some("`sshd` (process 7)".to_owned()) };
        self.lock().listeners.push((protocol, port, listener));
    }

    /// Carries out actions of another program: no step, no script, no record.
    pub fn prepare(&self, actions: &[Action]) {
        let mut state = self.lock();
        for action in actions {
            state.host.apply(action).expect("a test prepares what is possible");
        }
    }

    /// The host in a canonical form: without link numbers, in an order that does not depend on history.
    #[must_use]
    pub fn picture(&self) -> Host {
        let mut host = self.lock().host.clone();
        host.next_index = 0;
        for link in host.links.values_mut() {
            link.index = 0;
            // Whether it leads somewhere is what compares.
            link.redirect = link.redirect.map(|target| target.min(1));
            link.addresses.sort_by_key(|address| address.net);
        }
        host.routes.sort_by_key(|route| format!("{route:?}"));
        host
    }

    /// Steps since the last script.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.lock().steps
    }

    /// Actions carried out since the last script.
    #[must_use]
    pub fn applied(&self) -> Vec<Action> {
        self.lock().applied.clone()
    }

    fn script(&self, script: Option<(usize, Effect, Ending)>) {
        let mut state = self.lock();
        state.applied.clear();
        state.steps = 0;
        state.script = script;
        state.refuses = None;
    }

    /// From here on all goes well; steps count from 0 again.
    pub fn heal(&self) {
        self.script(None);
    }

    /// Step `step`, counted from here on, fails once.
    pub fn fail_at(&self, step: usize, effect: Effect) {
        self.script(Some((step, effect, Ending::Fails)));
    }

    /// Step `step`, counted from here on, never returns, nor does any later one; see `hung`.
    pub fn hang_at(&self, step: usize, effect: Effect) {
        self.script(Some((step, effect, Ending::Hangs)));
    }

    /// Every action that matches fails without effect, until `heal`.
    pub fn refuse(&self, matches: impl Fn(&Action) -> bool + Send + 'static) {
        self.script(None);
        self.lock().refuses = Some(Box::new(matches));
    }

    /// Somebody else changes the rules right after each of the next `times` transactions.
    pub fn meddle_with_rules(&self, times: usize) {
        self.lock().meddles = times;
    }

    /// Waits for the step that `hang_at` named.
    pub async fn hung(&self) {
        self.hung.notified().await;
    }

    /// Takes a step and makes the change, unless the script says otherwise.
    async fn step<T>(&self, work: impl FnOnce(&mut State) -> Result<T, Fault>) -> Result<T, Fault> {
        let (result, hangs) = {
            let mut state = self.lock();
            let now = state.steps;
            state.steps += 1;
            match state.script {
                Some((at, effect, Ending::Fails)) if now == at => {
                    if effect == Effect::Done {
                        work(&mut state)?;
                    }
                    (Err(Fault::new(Kind::Internal, "SCRIPTED", format!("step {now} fails"))), false)
                }
                Some((at, effect, Ending::Hangs)) if now >= at => {
                    if now == at && effect == Effect::Done {
                        work(&mut state)?;
                    }
                    (Err(Fault::internal("hangs")), true)
                }
                _ => (work(&mut state), false),
            }
        };
        if hangs {
            self.hung.notify_one();
            return std::future::pending().await;
        }
        result
    }
}

impl Kernel for FakeKernel {
    async fn observe(&self, scope: &Scope) -> Result<Observed, Fault> {
        self.step(|state| Ok(state.host.observe(scope))).await
    }

    async fn nft_version(&self) -> Result<String, Fault> {
        Ok("nftables v0 (fake)".to_owned())
    }

    async fn traffic(&self) -> Result<Traffic, Fault> {
        Ok(Traffic::default())
    }

    async fn listeners(&self, protocol: Protocol, port: u16) -> Result<Vec<Listener>, Fault> {
        self.step(|state| {
            let found = state.listeners.iter().filter(|(p, at, _)| (*p, *at) == (protocol, port));
            Ok(found.map(|(_, _, listener)| listener.clone()).collect())
        })
        .await
    }

    async fn apply(&self, action: &Action) -> Result<(), Fault> {
        self.step(|state| {
            if state.refuses.as_ref().is_some_and(|refuses| refuses(action)) {
                return Err(refused("refused by the test", action));
            }
            state.host.apply(action)?;
            state.applied.push(action.clone());
            let rules = matches!(action, Action::ReplaceTables { .. } | Action::ChangeElements { .. });
            if let Some(tables) = state.host.tables.as_mut().filter(|_| rules && state.meddles > 0) {
                tables.rules = 9;
                state.meddles -= 1;
            }
            Ok(())
        })
        .await
    }
}

impl Host {
    /// Adds a link, down, with a MAC made from its name.
    pub fn add_link(&mut self, name: &IfName, kind: LinkKind) -> &mut Link {
        self.next_index += 1;
        self.sysctls.insert(plan::accept_ra(name), "1".to_owned());
        let mac = (kind != LinkKind::Loopback).then(|| Mac::derived(name.as_str(), 0));
        let link = Link { mac, mtu: 1500, ..Link::new(self.next_index, kind) };
        self.links.entry(name.clone()).or_insert(link)
    }

    /// The link of that name, which the test knows to exist.
    pub fn link(&mut self, name: &str) -> &mut Link {
        self.links.get_mut(&name.parse().expect("a link's name")).expect("the test made that link")
    }

    fn observe(&self, scope: &Scope) -> Observed {
        match scope {
            Scope::Links(names) | Scope::Port(names) => {
                let links = names.iter().filter_map(|name| {
                    let mut link = self.links.get(name)?.clone();
                    link.addresses.clear();
                    if matches!(scope, Scope::Links(_)) {
                        (link.bucket, link.redirect) = (None, None);
                    }
                    link.master = link.master.filter(|master| names.contains(master));
                    Some((name.clone(), link))
                });
                Observed { links: links.collect(), ..Observed::default() }
            }
            Scope::All | Scope::Host => {
                let mut links = self.links.clone();
                for (name, route) in &self.routes {
                    if let Some(link) = links.get_mut(name) {
                        link.routes.push(route.clone());
                    }
                }
                let tables = self.tables.as_ref().map_or_else(Tables::default, |tables| Tables {
                    digest: Some(format!("rules {}", tables.rules)),
                    instance: tables.instance.clone(),
                    elements: tables.elements.clone(),
                    foreign: tables.instance.is_none(),
                });
                Observed {
                    links,
                    sysctls: self.observed_sysctls(),
                    tables: (*scope == Scope::All).then_some(tables),
                }
            }
        }
    }

    /// Those that the real one reads: host-wide ones, and `accept_ra` where the link's group is not ours.
    fn observed_sysctls(&self) -> BTreeMap<String, String> {
        let ours: BTreeSet<String> = self
            .links
            .iter()
            .filter(|(_, link)| link.group == LINK_GROUP)
            .map(|(name, _)| plan::accept_ra(name))
            .collect();
        self.sysctls
            .iter()
            .filter(|(key, _)| !ours.contains(*key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    fn get(&mut self, name: &IfName, action: &Action) -> Result<&mut Link, Fault> {
        self.links.get_mut(name).ok_or_else(|| refused("ENODEV", action))
    }

    fn apply(&mut self, action: &Action) -> Result<(), Fault> {
        match action {
            Action::SetProfile(name, profile) => {
                self.get(name, action)?;
                self.set_profile(name, *profile);
            }
            Action::CreateBridge { name, mac, mtu, alias, profile } => {
                self.absent(name, action)?;
                let link = self.add_link(name, LinkKind::Bridge);
                link.group = LINK_GROUP;
                link.mac = Some(*mac);
                link.mtu = *mtu;
                link.alias.clone_from(alias);
                self.set_profile(name, *profile);
            }
            Action::CreateTap(spec) => {
                self.absent(&spec.name, action)?;
                self.get(&spec.bridge, action)?;
                let kind = LinkKind::Tap { owner: Some(spec.owner), persist: true };
                let link = self.add_link(&spec.name, kind);
                link.group = LINK_GROUP;
                link.alias.clone_from(&spec.alias);
                link.mtu = spec.mtu;
                link.bucket = spec.rate.map(Bucket::of);
                self.plug(spec, action)?;
                if let Some(ifb) = &spec.ifb {
                    self.redirect(&spec.name, ifb, action)?;
                }
                self.set_up(&spec.name, true, action)?;
            }
            Action::CreateIfb { name, alias, rate } => {
                self.absent(name, action)?;
                let link = self.add_link(name, LinkKind::Ifb);
                link.group = LINK_GROUP;
                link.alias.clone_from(alias);
                link.bucket = Some(Bucket::of(*rate));
                self.set_up(name, true, action)?;
            }
            Action::SetRate(name, rate) => self.get(name, action)?.bucket = Some(Bucket::of(*rate)),
            Action::ClearRate(name) => self.get(name, action)?.bucket = None,
            Action::Redirect { tap, ifb } => self.redirect(tap, ifb, action)?,
            Action::Unredirect(tap) => self.get(tap, action)?.redirect = None,
            Action::RepairTap(spec) => self.plug(spec, action)?,
            Action::CreateCell(CellSpec { outer, .. }) => {
                self.delete_link(&outer.name);
                let link = self.add_link(&outer.name, LinkKind::Nic);
                link.group = LINK_GROUP;
                link.alias.clone_from(&outer.alias);
                link.mtu = outer.mtu;
                self.plug(outer, action)?;
                self.set_up(&outer.name, true, action)?;
            }
            Action::DeleteLink(name) => self.delete_link(name),
            Action::SetAlias(name, alias) => self.get(name, action)?.alias.clone_from(alias),
            Action::SetMtu(name, mtu) => self.get(name, action)?.mtu = *mtu,
            Action::SetMac(name, mac) => self.get(name, action)?.mac = Some(*mac),
            Action::SetUp(name, up) => self.set_up(name, *up, action)?,
            Action::SetMaster(name, master) => {
                if let Some(master) = master
                    && self.get(master, action)?.kind != LinkKind::Bridge
                {
                    return Err(refused("EOPNOTSUPP", action));
                }
                let link = self.get(name, action)?;
                link.master.clone_from(master);
                link.port = master.is_some().then_some(PortFlags {
                    learning: true,
                    flood: true,
                    bpdu_guard: false,
                    root_block: false,
                    isolated: false,
                    reserved_groups: 0,
                    hairpin: false,
                });
            }
            Action::AddAddress(name, address) => self.add_address(name, address, action)?,
            Action::DeleteAddress(name, address) => self.delete_address(name, address, action)?,
            Action::CopyNeighbours { from, to } => {
                self.get(from, action)?;
                self.get(to, action)?;
            }
            Action::AddRoute(name, route) => self.add_route(name, route, action)?,
            Action::DeleteRoute(name, route) => {
                self.get(name, action)?;
                self.routes.retain(|(on, r)| on != name || !same(r, route) || r.gateway != route.gateway);
            }
            Action::ReplaceTables { instance, elements } => {
                self.tables = Some(FakeTables {
                    instance: Some(instance.clone()),
                    rules: 0,
                    elements: elements.clone(),
                });
            }
            Action::ChangeElements { remove, add } => {
                let tables = self.tables.as_mut().filter(|t| t.instance.is_some());
                let elements = &mut tables.ok_or_else(|| refused("ENOENT", action))?.elements.0;
                elements.retain(|element| !remove.0.contains(element));
                elements.extend(add.0.iter().cloned());
            }
            Action::RemoveTables => self.tables = None,
            Action::EndFlows(gone) => self.flows.retain(|flow| !gone.0.contains(flow)),
            Action::SetSysctl { key, value } => {
                *self.sysctls.get_mut(key).ok_or_else(|| refused("ENOENT", action))? = value.clone();
            }
        }
        Ok(())
    }

    fn redirect(&mut self, tap: &IfName, ifb: &IfName, action: &Action) -> Result<(), Fault> {
        let target = self.get(ifb, action)?.index;
        self.get(tap, action)?.redirect = Some(target);
        Ok(())
    }

    fn absent(&self, name: &IfName, action: &Action) -> Result<(), Fault> {
        if self.links.contains_key(name) { Err(refused("EEXIST", action)) } else { Ok(()) }
    }

    fn plug(&mut self, spec: &TapSpec, action: &Action) -> Result<(), Fault> {
        self.get(&spec.bridge, action)?;
        let link = self.get(&spec.name, action)?;
        link.master = Some(spec.bridge.clone());
        link.port = Some(spec.flags);
        Ok(())
    }

    /// Addresses and routes go with the link, and its ports are free again.
    pub fn delete_link(&mut self, name: &IfName) {
        let gone = self.links.remove(name).map(|link| link.index);
        // A redirect stays, and leads nowhere.
        for link in self.links.values_mut().filter(|link| link.redirect.is_some() && link.redirect == gone) {
            link.redirect = Some(0);
        }
        self.routes.retain(|(on, _)| on != name);
        self.sysctls.remove(&plan::accept_ra(name));
        for key in BridgeProfile::watched(name) {
            self.sysctls.remove(&key);
        }
        for link in self.links.values_mut().filter(|link| link.master.as_ref() == Some(name)) {
            link.master = None;
            link.port = None;
        }
    }

    fn set_profile(&mut self, bridge: &IfName, profile: BridgeProfile) {
        let watched = BridgeProfile::watched(bridge);
        for (key, value) in profile.sysctls(bridge).into_iter().filter(|(key, _)| watched.contains(key)) {
            self.sysctls.insert(key, value.to_owned());
        }
    }

    /// A link that goes down loses its routes and its IPv6 addresses; one that comes up gets connected routes.
    fn set_up(&mut self, name: &IfName, up: bool, action: &Action) -> Result<(), Fault> {
        let link = self.get(name, action)?;
        if link.up == up {
            return Ok(());
        }
        link.up = up;
        link.carrier = up && link.kind == LinkKind::Nic;
        if up {
            let primary = |at: usize| !has_subnet(&link.addresses[..at], link.addresses[at].net);
            let primaries = (0..link.addresses.len()).filter(|at| primary(*at));
            let connected: Vec<_> = primaries.filter_map(|at| connected(&link.addresses[at])).collect();
            self.routes.extend(connected.into_iter().map(|route| (name.clone(), route)));
        } else {
            link.addresses.retain(|address| address.net.addr().is_ipv4());
            self.routes.retain(|(on, _)| on != name);
        }
        Ok(())
    }

    fn add_address(&mut self, name: &IfName, address: &Address, action: &Action) -> Result<(), Fault> {
        let link = self.get(name, action)?;
        let up = link.up;
        match link.addresses.iter_mut().find(|a| a.net == address.net) {
            Some(there) => *there = address.clone(),
            None => {
                let primary = !has_subnet(&link.addresses, address.net);
                link.addresses.push(address.clone());
                self.routes
                    .extend(connected(address).filter(|_| up && primary).map(|route| (name.clone(), route)));
            }
        }
        Ok(())
    }

    fn delete_address(&mut self, name: &IfName, address: &Address, action: &Action) -> Result<(), Fault> {
        let link = self.get(name, action)?;
        let Some(at) = link.addresses.iter().position(|a| a.net == address.net) else { return Ok(()) };
        let gone = link.addresses.remove(at);
        let v4 = gone.net.addr().is_ipv4();
        // Without promote_secondaries the secondary addresses of a subnet go with the primary one.
        let primary = v4 && !has_subnet(&link.addresses[..at], gone.net);
        link.addresses.retain(|a| !primary || a.net.trunc() != gone.net.trunc());
        let last_of_subnet = !has_subnet(&link.addresses, gone.net);
        let last_of_family = !link.addresses.iter().any(|a| a.net.addr().is_ipv4() == v4);
        if let Some(route) = connected(&gone).filter(|_| last_of_subnet) {
            self.routes.retain(|(on, r)| on != name || !same(r, &route) || r.protocol != KERNEL);
        }
        // fib_disable_ip: a link without IPv4 addresses has no IPv4 routes.
        if v4 && last_of_family {
            self.routes.retain(|(on, r)| on != name || !r.destination.addr().is_ipv4());
        }
        // fib_sync_down_addr: nobody can prefer an address that the host has no more.
        let host = self.clone();
        self.routes.retain(|(_, r)| r.source.is_none_or(|source| host.is_local(source)));
        Ok(())
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.links.values().any(|link| link.addresses.iter().any(|a| a.net.addr() == address))
    }

    fn add_route(&mut self, name: &IfName, route: &Route, action: &Action) -> Result<(), Fault> {
        if !self.get(name, action)?.up {
            return Err(refused("ENETDOWN", action));
        }
        if route.source.is_some_and(|source| !self.is_local(source)) {
            return Err(refused("EINVAL", action));
        }
        if let Some(gateway) = route.gateway {
            let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let reached = |(on, r): &(IfName, Route)| {
                on == name && r.gateway.is_none() && r.destination.contains(&gateway)
            };
            if !route.on_link && !link_local && !self.routes.iter().any(reached) {
                return Err(refused("ENETUNREACH", action));
            }
        }
        let there = |(on, r): &(IfName, Route)| on == name && same(r, route) && r.gateway == route.gateway;
        if !self.routes.iter().any(there) {
            self.routes.push((name.clone(), route.clone()));
        }
        Ok(())
    }
}

/// The route that the kernel makes with an address; link-local ones are never told of.
fn connected(address: &Address) -> Option<Route> {
    let ip = address.net.addr();
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!address.no_prefix_route && !link_local).then(|| Route {
        destination: address.net.trunc(),
        gateway: None,
        source: ip.is_ipv4().then_some(ip),
        metric: matches!(address.net, IpNet::V6(_)).then_some(256),
        table: MAIN,
        protocol: KERNEL,
        scope: if ip.is_ipv4() { LINK_SCOPE } else { 0 },
        mtu: None,
        on_link: false,
    })
}

/// Whether one of the addresses is in the subnet of `net`, so that its connected route is there.
fn has_subnet(addresses: &[Address], net: IpNet) -> bool {
    addresses.iter().any(|a| a.net.trunc() == net.trunc())
}

/// Whether two routes have the same key.
fn same(a: &Route, b: &Route) -> bool {
    a.destination == b.destination && a.table == b.table && a.metric == b.metric
}
