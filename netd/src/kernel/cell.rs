//! A cell: a network namespace in which the services of an isolated network live, and the veth that leads there.

use super::{CellSpec, LinuxKernel, linux::refused, route::address_message, sysctl};
use crate::model::{Address, LINK_GROUP};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use shared::{
    fault::{Fault, Kind},
    steps,
};
use std::io;

/// The link that leads out.
pub const LINK: &str = "eth0";

impl LinuxKernel {
    /// The inner end is born in its namespace: it is never a link of this one. The order is that of a tap.
    pub(super) async fn create_cell(&self, spec: &CellSpec) -> Result<(), Fault> {
        let name = &spec.outer.name;
        if let Some(link) = self.link(name).await? {
            let ours = link.attributes.iter().any(|a| matches!(a, LinkAttribute::Group(LINK_GROUP)));
            if !ours {
                let message =
                    format!("`{name}`, needed for `{}`, belongs to somebody else", spec.outer.alias);
                return Err(Fault::new(Kind::FailedPrecondition, "FOREIGN_LINK", message)
                    .hint(format!("remove or rename it (`ip link show {name}`)")));
            }
            self.delete_link(name).await?;
        }
        let mut message =
            LinkVeth::new(name.as_str(), LINK).link_group(LINK_GROUP).mtu(spec.outer.mtu).build();
        let peer = peer(&mut message).ok_or_else(|| Fault::internal("a veth without a peer"))?;
        peer.attributes.extend([
            LinkAttribute::NetNsPid(spec.pid),
            LinkAttribute::Address(spec.inner_mac.bytes().to_vec()),
            LinkAttribute::Mtu(spec.outer.mtu),
        ]);
        let made = self.netlink().link().add(message).execute().await;
        made.map_err(|e| refused(format!("cannot create link `{name}`"), e))?;
        steps::point(|| format!("after the creation of cell `{name}`"))?;
        for key in ["disable_ipv6", "addr_gen_mode"].map(|key| format!("net/ipv6/conf/{name}/{key}")) {
            if sysctl::read(&key)?.is_some() {
                sysctl::write(&key, "1")?;
            }
        }
        let index = self.index(name).await?;
        let alias = LinkUnspec::new_with_index(index).alias(&spec.outer.alias);
        self.set_link(name, alias, "mark").await?;
        steps::point(|| format!("after the mark of `{name}`"))?;
        self.plug(&spec.outer).await?;
        self.set_link(name, LinkUnspec::new_with_index(index).up(), "bring up").await
    }
}

/// The message about a veth's other end.
fn peer(message: &mut LinkMessage) -> Option<&mut LinkMessage> {
    let infos = message.attributes.iter_mut().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter_mut().find_map(|info| match info {
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))) => Some(peer),
        _ => None,
    })
}

/// Gives the namespace of this process its addresses and brings its links up. For a process of one thread.
///
/// # Errors
/// What the kernel refused.
pub fn furnish(addresses: &[IpNet]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Not every kernel starts a namespace with the defaults: a host that forwards would make it forward.
    for (key, value) in [
        ("net/ipv4/ip_forward".to_owned(), "0"),
        ("net/ipv6/conf/all/forwarding".to_owned(), "0"),
        (format!("net/ipv4/conf/{LINK}/accept_redirects"), "0"),
        (format!("net/ipv6/conf/{LINK}/accept_ra"), "0"),
        (format!("net/ipv6/conf/{LINK}/accept_redirects"), "0"),
        // Nobody else has the MAC that the link-local address is made of.
        (format!("net/ipv6/conf/{LINK}/accept_dad"), "0"),
    ] {
        let read = sysctl::read(&key).map_err(|fault| io::Error::other(fault.chain()))?;
        if read.is_some_and(|now| now != value) {
            sysctl::write(&key, value).map_err(|fault| io::Error::other(fault.chain()))?;
        }
    }
    runtime.block_on(links(addresses)).map_err(|error| io::Error::other(format!("in the namespace: {error}")))
}

async fn links(addresses: &[IpNet]) -> Result<(), rtnetlink::Error> {
    let (connection, netlink, _) =
        rtnetlink::new_connection().map_err(|_| rtnetlink::Error::RequestFailed)?;
    let connection = tokio::spawn(connection);
    for name in ["lo", LINK] {
        let link = netlink.link().get().match_name(name.to_owned()).execute().try_next().await?;
        let index = link.ok_or(rtnetlink::Error::RequestFailed)?.header.index;
        if name == LINK {
            for net in addresses {
                let address =
                    Address { net: *net, broadcast: None, no_prefix_route: false, valid_seconds: None };
                let mut request = netlink.address().add(index, net.addr(), net.prefix_len());
                *request.message_mut() = address_message(index, &address);
                request.execute().await?;
            }
        }
        netlink.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    }
    connection.abort();
    Ok(())
}
