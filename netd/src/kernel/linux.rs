//! The real kernel, by rtnetlink, nft, /dev/net/tun and /proc/sys.

mod address;
mod netlink;
mod shaping;

use super::{
    Action, BridgeProfile, Kernel, Link, LinkKind, Listener, Observed, Scope, TapSpec, Traffic, conntrack,
    link::{self, RawLink},
    nft,
    route::{address_message, multipath_links, parse_address, parse_routes, route_message},
    ruleset, shape, socket, sysctl,
    tap::Tap,
};
use crate::{
    model::{IfName, LINK_GROUP, Protocol},
    plan,
};
use futures_util::TryStreamExt as _;
use netlink::Netlink;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        link::{BridgeStpState, LinkMessage},
        neighbour::{NeighbourFlags, NeighbourState},
    },
};
use shared::{
    fault::{Fault, Kind},
    steps,
};
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::Mutex;

/// errno values that mean "it is as it should be already".
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;
const ESRCH: i32 = 3;

/// The kernel of the network namespace that the process runs in.
#[derive(Clone, Debug)]
pub struct LinuxKernel {
    netlink: Netlink,
    /// A netlink socket carries one dump at a time: the kernel answers a second one with EBUSY.
    pub(super) dump: Arc<Mutex<()>>,
}

pub(super) fn refused(what: impl Into<String>, error: rtnetlink::Error) -> Fault {
    let fault = Fault::new(Kind::Internal, "NETLINK", what);
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            let io = message.to_io();
            let denied = io.kind() == io::ErrorKind::PermissionDenied;
            let fault = fault.cause(&io);
            if denied { fault.hint("netd needs CAP_NET_ADMIN") } else { fault }
        }
        other => fault.cause(&other),
    }
}

/// Passes over an error that means the change is not needed.
fn settled(result: Result<(), rtnetlink::Error>, means_done: &[i32]) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if means_done.contains(&-message.raw_code()) => Ok(()),
        other => other,
    }
}

impl LinuxKernel {
    /// Opens an rtnetlink socket and serves it on the present runtime.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the kernel gives none.
    pub fn new() -> Result<Self, Fault> {
        Ok(Self { netlink: Netlink::new()?, dump: Arc::default() })
    }

    pub(super) fn netlink(&self) -> Handle {
        self.netlink.handle()
    }

    pub(super) async fn link(&self, name: &IfName) -> Result<Option<LinkMessage>, Fault> {
        let found = self.netlink().link().get().match_name(name.to_string()).execute().try_next().await;
        match found {
            Ok(message) => Ok(message),
            Err(rtnetlink::Error::NetlinkError(m)) if m.raw_code() == -ENODEV => Ok(None),
            Err(error) => Err(refused(format!("cannot look at link `{name}`"), error)),
        }
    }

    pub(super) async fn index(&self, name: &IfName) -> Result<u32, Fault> {
        self.link(name).await?.map(|message| message.header.index).ok_or_else(|| {
            Fault::new(Kind::FailedPrecondition, "LINK_GONE", format!("link `{name}` is not there"))
        })
    }

    async fn all_links(&self) -> Result<BTreeMap<IfName, Link>, Fault> {
        let _dump = self.dump.lock().await;
        let failed = |e| refused("cannot list the links", e);
        let messages: Vec<_> = self.netlink().link().get().execute().try_collect().await.map_err(failed)?;
        let mut links = link::resolve(messages.iter().filter_map(link::parse).collect());
        shape::look_at_all(&self.netlink(), &mut links)
            .await
            .map_err(|e| refused("cannot list the qdiscs", e))?;
        let mut by_index: BTreeMap<u32, &mut Link> =
            links.values_mut().map(|link| (link.index, link)).collect();
        let mut addresses = self.netlink().address().get().execute();
        while let Some(message) =
            addresses.try_next().await.map_err(|e| refused("cannot list the addresses", e))?
        {
            if let Some((index, address)) = parse_address(&message)
                && let Some(link) = by_index.get_mut(&index)
            {
                link.addresses.push(address);
            }
        }
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for family in [v4, v6] {
            let mut routes = self.netlink().route().get(family).execute();
            while let Some(message) =
                routes.try_next().await.map_err(|e| refused("cannot list the routes", e))?
            {
                for index in multipath_links(&message) {
                    if let Some(link) = by_index.get_mut(&index) {
                        link.multipath = true;
                    }
                }
                for (index, route) in parse_routes(&message) {
                    if let Some(link) = by_index.get_mut(&index) {
                        link.routes.push(route);
                    }
                }
            }
        }
        Ok(links)
    }

    /// All links and host-wide sysctls.
    async fn host(&self) -> Result<Observed, Fault> {
        let links = self.all_links().await?;
        let keys =
            [plan::FORWARD4, plan::ACCEPT_REDIRECTS, plan::FORWARD6, plan::BRIDGE_NF].map(str::to_owned);
        let mut sysctls = BTreeMap::new();
        let nics = links
            .iter()
            .filter(|(_, link)| link.group != LINK_GROUP || link.kind == LinkKind::Bridge)
            .map(|(name, _)| plan::accept_ra(name));
        let bridges = links
            .iter()
            .filter(|(_, link)| link.group == LINK_GROUP && link.kind == LinkKind::Bridge)
            .flat_map(|(name, _)| BridgeProfile::watched(name));
        for key in keys.into_iter().chain(nics).chain(bridges) {
            if let Some(value) = sysctl::read(&key)? {
                sysctls.insert(key, value);
            }
        }
        Ok(Observed { links, sysctls, tables: None })
    }

    /// These links, with the names of their masters, and nothing that grows with the number of links.
    async fn some_links(&self, names: &[IfName]) -> Result<BTreeMap<IfName, Link>, Fault> {
        let mut raw: Vec<RawLink> = Vec::new();
        for name in names {
            raw.extend(self.link(name).await?.as_ref().and_then(link::parse));
        }
        Ok(link::resolve(raw))
    }

    async fn create_bridge(&self, name: &IfName, action: &Action) -> Result<(), Fault> {
        let Action::CreateBridge { mac, mtu, alias, profile, .. } = action else { return Ok(()) };
        let message = LinkBridge::new(name.as_str())
            .address(mac.bytes().to_vec())
            .link_group(LINK_GROUP)
            // The word of the link-layer standard: without STP a port forwards at once.
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .down()
            .build();
        self.make_link(name, alias, message)
            .await
            .map_err(|e| refused(format!("cannot create bridge `{name}`"), e))?;
        steps::point(|| format!("after the creation of bridge `{name}`"))?;
        set_profile(name, *profile)?;
        steps::point(|| format!("after the profile of `{name}`"))?;
        // Given at creation, the MTU would not stop a port from changing it, and the alias would be ignored.
        let index = self.index(name).await?;
        self.set_link(name, LinkUnspec::new_with_index(index).mtu(*mtu), "set the MTU of").await?;
        steps::point(|| format!("after the MTU of `{name}`"))?;
        self.set_link(name, LinkUnspec::new_with_index(index).alias(alias), "mark").await
    }

    /// Makes a link; one of that name that was made for the same object is made anew.
    async fn make_link(
        &self,
        name: &IfName,
        alias: &str,
        message: LinkMessage,
    ) -> Result<(), rtnetlink::Error> {
        let made = self.netlink().link().add(message.clone()).execute().await;
        let taken = matches!(&made, Err(rtnetlink::Error::NetlinkError(m)) if m.raw_code() == -EEXIST);
        if taken && self.clear_the_way(name, alias).await {
            return self.netlink().link().add(message).execute().await;
        }
        made
    }

    /// Removes a link that was made for the object of that alias. Whether there was one.
    async fn clear_the_way(&self, name: &IfName, alias: &str) -> bool {
        let found = self.link(name).await.ok().flatten().as_ref().and_then(link::parse);
        let ours = |raw: &RawLink| {
            raw.link.group == LINK_GROUP && (raw.link.alias.is_empty() || raw.link.alias == alias)
        };
        found.as_ref().is_some_and(ours) && self.delete_link(name).await.is_ok()
    }

    pub(super) async fn set_link(
        &self,
        name: &IfName,
        builder: LinkMessageBuilder<LinkUnspec>,
        what: &str,
    ) -> Result<(), Fault> {
        self.netlink()
            .link()
            .change(builder.build())
            .execute()
            .await
            .map_err(|e| refused(format!("cannot {what} `{name}`"), e))
    }

    /// Order matters: all that guards the port comes before the link goes up, and it becomes persistent last.
    async fn create_tap(&self, spec: &TapSpec) -> Result<(), Fault> {
        let name = &spec.name;
        let failed = |what: &str, error: &io::Error| {
            Fault::new(Kind::FailedPrecondition, "TAP", format!("cannot {what} tap `{name}`"))
                .cause(error)
                .hint("netd needs /dev/net/tun (modprobe tun) and CAP_NET_ADMIN")
        };
        let made = match Tap::create(name) {
            Err(e)
                if e.kind() == io::ErrorKind::ResourceBusy && self.clear_the_way(name, &spec.alias).await =>
            {
                Tap::create(name)
            }
            made => made,
        };
        let tap = made.map_err(|e| failed("create", &e))?;
        steps::point(|| format!("after the creation of tap `{name}`"))?;
        for key in
            [format!("net/ipv6/conf/{name}/disable_ipv6"), format!("net/ipv6/conf/{name}/addr_gen_mode")]
        {
            if sysctl::read(&key)?.is_some() {
                sysctl::write(&key, "1")?;
            }
        }
        tap.set_owner(spec.owner).map_err(|e| failed("give an owner to", &e))?;
        steps::point(|| format!("after the owner of `{name}`"))?;
        let index = self.index(name).await?;
        // A bridge that is not ours may take the lowest MAC of its ports for its own: ours must never be that one.
        let [_, rest @ ..] = spec.mac.bytes();
        let own_mac = [[0xfe].as_slice(), &rest].concat();
        let marked = LinkUnspec::new_with_index(index)
            .address(own_mac)
            .mtu(spec.mtu)
            .link_group(LINK_GROUP)
            .alias(&spec.alias);
        self.set_link(name, marked, "mark tap").await?;
        steps::point(|| format!("after the mark of `{name}`"))?;
        self.plug(spec).await?;
        steps::point(|| format!("after the plug of `{name}`"))?;
        if let Some(rate) = spec.rate {
            self.set_rate(name, rate).await?;
        }
        if let Some(ifb) = &spec.ifb {
            self.redirect(name, ifb).await?;
        }
        steps::point(|| format!("after the shape of `{name}`"))?;
        tap.persist().map_err(|e| failed("keep", &e))?;
        steps::point(|| format!("after the persistence of `{name}`"))?;
        self.set_link(name, LinkUnspec::new_with_index(index).up(), "bring up").await
    }

    /// Makes the tap a guarded port of its bridge.
    pub(super) async fn plug(&self, spec: &TapSpec) -> Result<(), Fault> {
        let (name, flags) = (&spec.name, spec.flags);
        let index = self.index(name).await?;
        let bridge = self.index(&spec.bridge).await?;
        self.set_link(name, LinkUnspec::new_with_index(index).controller(bridge), "plug").await?;
        steps::point(|| format!("after the master of `{name}`"))?;
        let port = LinkBridgePort::new(index)
            .learning(flags.learning)
            .flood(flags.flood)
            .guard(flags.bpdu_guard)
            .root_block(flags.root_block)
            .isolated(flags.isolated)
            .group_fwd_mask(flags.reserved_groups)
            .hairpin(flags.hairpin)
            .build();
        self.netlink()
            .link()
            .set_port(port)
            .execute()
            .await
            .map_err(|e| refused(format!("cannot guard port `{name}`"), e))?;
        steps::point(|| format!("after the flags of `{name}`"))?;
        let entry = self
            .netlink()
            .neighbours()
            .add_bridge(index, &spec.mac.bytes())
            .state(NeighbourState::Noarp)
            // Sticky: another port of the bridge that sends with this MAC does not take the entry with it.
            .flags(NeighbourFlags::Controller | NeighbourFlags::Sticky)
            .replace();
        entry.execute().await.map_err(|e| refused(format!("cannot fix MAC {} to port `{name}`", spec.mac), e))
    }

    pub(super) async fn delete_link(&self, name: &IfName) -> Result<(), Fault> {
        let Some(message) = self.link(name).await? else { return Ok(()) };
        let result = self.netlink().link().del(message.header.index).execute().await;
        settled(result, &[ENODEV]).map_err(|e| refused(format!("cannot delete link `{name}`"), e))
    }
}

fn set_profile(bridge: &IfName, profile: BridgeProfile) -> Result<(), Fault> {
    for (key, value) in profile.sysctls(bridge) {
        // A kernel without IPv6 has no such keys, and needs none.
        if sysctl::read(&key)?.is_some() {
            sysctl::write(&key, value)?;
        }
    }
    Ok(())
}

impl Kernel for LinuxKernel {
    #[tracing::instrument(level = "info", skip_all)]
    async fn observe(&self, scope: &Scope) -> Result<Observed, Fault> {
        self.netlink.whole(self.look(scope)).await
    }

    async fn nft_version(&self) -> Result<String, Fault> {
        nft::version().await
    }

    async fn listeners(&self, protocol: Protocol, port: u16) -> Result<Vec<Listener>, Fault> {
        socket::listeners(protocol, port).await
    }

    async fn traffic(&self) -> Result<Traffic, Fault> {
        nft::traffic().await
    }

    #[tracing::instrument(level = "info", skip_all, fields(action = ?action))]
    async fn apply(&self, action: &Action) -> Result<(), Fault> {
        steps::step(|| format!("{action:?}"), || self.netlink.whole(self.carry_out(action))).await
    }
}

impl LinuxKernel {
    async fn look(&self, scope: &Scope) -> Result<Observed, Fault> {
        match scope {
            Scope::Links(names) => {
                Ok(Observed { links: self.some_links(names).await?, ..Observed::default() })
            }
            Scope::Port(names) => {
                Ok(Observed { links: self.shaped_links(names).await?, ..Observed::default() })
            }
            Scope::All => {
                let (host, tables) = tokio::join!(self.host(), nft::read());
                Ok(Observed { tables: Some(tables?), ..host? })
            }
            Scope::Host => self.host().await,
        }
    }

    async fn carry_out(&self, action: &Action) -> Result<(), Fault> {
        match action {
            Action::CreateBridge { name, .. } => self.create_bridge(name, action).await,
            Action::SetProfile(name, profile) => set_profile(name, *profile),
            Action::CreateTap(spec) => self.create_tap(spec).await,
            Action::RepairTap(spec) => self.plug(spec).await,
            Action::CreateIfb { .. }
            | Action::SetRate(..)
            | Action::ClearRate(_)
            | Action::Redirect { .. }
            | Action::Unredirect(_) => self.shape(action).await,
            Action::CreateCell(spec) => self.create_cell(spec).await,
            Action::DeleteLink(name) => self.delete_link(name).await,
            Action::SetAlias(name, alias) => {
                let index = self.index(name).await?;
                self.set_link(name, LinkUnspec::new_with_index(index).alias(alias), "mark").await
            }
            Action::SetMtu(name, mtu) => {
                let index = self.index(name).await?;
                self.set_link(name, LinkUnspec::new_with_index(index).mtu(*mtu), "set the MTU of").await
            }
            Action::SetMac(name, mac) => {
                let index = self.index(name).await?;
                let builder = LinkUnspec::new_with_index(index).address(mac.bytes().to_vec());
                self.set_link(name, builder, "set the MAC of").await
            }
            Action::SetUp(name, up) => {
                let builder = LinkUnspec::new_with_index(self.index(name).await?);
                let (builder, what) =
                    if *up { (builder.up(), "bring up") } else { (builder.down(), "bring down") };
                self.set_link(name, builder, what).await
            }
            Action::SetMaster(name, master) => {
                let builder = LinkUnspec::new_with_index(self.index(name).await?);
                let builder = match master {
                    Some(master) => builder.controller(self.index(master).await?),
                    None => builder.nocontroller(),
                };
                self.set_link(name, builder, "plug or unplug").await
            }
            Action::AddAddress(name, address) => self.add_address(name, address).await,
            Action::DeleteAddress(name, address) => {
                let message = address_message(self.index(name).await?, address);
                settled(self.netlink().address().del(message).execute().await, &[EADDRNOTAVAIL])
                    .map_err(|e| refused(format!("cannot remove {} from `{name}`", address.net), e))
            }
            Action::CopyNeighbours { from, to } => self.copy_neighbours(from, to).await,
            Action::AddRoute(name, route) => {
                let message = route_message(self.index(name).await?, route);
                settled(self.append_route(message).await, &[EEXIST]).map_err(|e| {
                    refused(format!("cannot add the route to {} to `{name}`", route.destination), e)
                })
            }
            Action::DeleteRoute(name, route) => {
                let message = route_message(self.index(name).await?, route);
                settled(self.netlink().route().del(message).execute().await, &[ESRCH]).map_err(|e| {
                    refused(format!("cannot remove the route to {} from `{name}`", route.destination), e)
                })
            }
            Action::ReplaceTables { instance, elements } => nft::replace(instance, elements).await,
            Action::ChangeElements { remove, add } => nft::change(remove, add).await,
            Action::RemoveTables => nft::apply(ruleset::remove()).await,
            Action::EndFlows(gone) => conntrack::end_flows(gone).await,
            Action::SetSysctl { key, value } => sysctl::write(key, value),
        }
    }
}
