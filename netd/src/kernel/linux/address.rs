//! Addresses, neighbours and routes.

use super::{EEXIST, LinuxKernel, refused, settled};
use crate::{
    kernel::route::{address_message, is_local_route},
    model::{Address, IfName},
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::RouteMessage,
    },
};
use shared::fault::{Fault, Kind};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long the kernel may take to put an IPv6 address into use, and how often to look.
const ADDRESS_LIMIT: Duration = Duration::from_secs(5);
const ADDRESS_PAUSE: Duration = Duration::from_millis(1);

impl LinuxKernel {
    /// As `ip route append`, which rtnetlink's own request cannot say: after those of the same destination and metric.
    pub(super) async fn append_route(&self, message: RouteMessage) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        let mut answers = self.netlink().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }

    pub(super) async fn add_address(&self, name: &IfName, address: &Address) -> Result<(), Fault> {
        let index = self.index(name).await?;
        let failed = |e| refused(format!("cannot add {} to `{name}`", address.net), e);
        let mut request = self.netlink().address().add(index, IpAddr::from([0, 0, 0, 0]), 0).replace();
        *request.message_mut() = address_message(index, address);
        settled(request.execute().await, &[EEXIST]).map_err(failed)?;
        if address.net.addr().is_ipv4() {
            return Ok(());
        }
        // The kernel takes an IPv6 address into use from a work queue (addrconf_dad_work), even without duplicate
        // detection. Until then packets to it are not for this host.
        let deadline = Instant::now() + ADDRESS_LIMIT;
        while !self.is_local(index, address.net.addr()).await.map_err(failed)? {
            if Instant::now() > deadline {
                return Err(Fault::new(
                    Kind::Internal,
                    "ADDRESS_UNUSED",
                    format!("the kernel does not take {} into use on `{name}`", address.net),
                ));
            }
            tokio::time::sleep(ADDRESS_PAUSE).await;
        }
        Ok(())
    }

    /// Whether packets to an IPv6 address of a link are for this host.
    async fn is_local(&self, index: u32, address: IpAddr) -> Result<bool, rtnetlink::Error> {
        let _dump = self.dump.lock().await;
        let all = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        let mut routes = self.netlink().route().get(all).execute();
        let mut found = false;
        while let Some(message) = routes.try_next().await? {
            found |= is_local_route(&message, index, address);
        }
        Ok(found)
    }

    pub(super) async fn copy_neighbours(&self, from: &IfName, to: &IfName) -> Result<(), Fault> {
        let (source, target) = (self.index(from).await?, self.index(to).await?);
        let known: Vec<_> = {
            let _dump = self.dump.lock().await;
            let dump = self.netlink().neighbours().get().execute();
            dump.try_collect().await.map_err(|e| refused("cannot list the neighbours", e))?
        };
        for message in known {
            let Some((address, mac)) = neighbour(&message).filter(|_| message.header.ifindex == source)
            else {
                continue;
            };
            let request = self.netlink().neighbours().add(target, address).link_layer_address(&mac);
            request
                .state(NeighbourState::Stale)
                .replace()
                .execute()
                .await
                .map_err(|e| refused(format!("cannot make {address} known on `{to}`"), e))?;
        }
        Ok(())
    }
}

/// Address and MAC of a neighbour that has answered once.
fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Vec<u8>)> {
    use NeighbourState::{Delay, Probe, Reachable, Stale};
    if !matches!(message.header.state, Delay | Probe | Reachable | Stale) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes.clone()),
            _ => {}
        }
    }
    Some((address?, mac?))
}
