//! Decisions that are made once, at a create, and recorded: names, subnets, MACs, what a NIC takes along. Pure.

mod address;
mod forward;
mod mac;
mod service;

pub use address::{Addresses, Asker, LINK_LOCAL, addresses, addresses_of_all, check_names, eui64};
pub use forward::{check_forward, check_listen, forward_name, is_unfit};
pub use mac::{MacAsker, check_bridge, port_mac};
pub use service::cell;

use crate::{
    kernel::{Link, LinkKind, Observed},
    model::{IfName, Mode, Network, NetworkSpec, Takeover},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::Name,
};
use std::net::{IpAddr, Ipv4Addr};
use uuid::Uuid;

/// MTU of Ethernet without jumbo frames, bytes.
const ETHERNET_MTU: u32 = 1500;

/// Greatest MTU of a tap, bytes: the kernel's greatest packet with its Ethernet header.
pub const MOST_MTU: u32 = 65_535 - 14;

/// Least MTU of a link that carries IPv6, bytes.
const LEAST_MTU6: u32 = 1280;

/// Checks that the parts of a network's spec go together.
///
/// # Errors
/// INVALID_ARGUMENT with what does not.
pub fn check_spec(spec: &NetworkSpec) -> Result<(), Fault> {
    let mode = spec.mode;
    let refuse = |what: &str, hint: &str| {
        let message = format!("{mode} networks {what}");
        Err(Fault::new(Kind::InvalidArgument, "INVALID_SPEC", message).hint(hint))
    };
    if mode == Mode::Bridged {
        if spec.bridge.is_some() == spec.uplink.is_some() {
            return refuse(
                "need either a bridge or an uplink",
                "--bridge BR uses an existing bridge, --uplink NIC makes one for the NIC",
            );
        }
        if spec.ipv4.is_some() || spec.ipv6.is_some() {
            return refuse("have no subnet of their own", "guests take their addresses from the LAN");
        }
    } else if spec.bridge.is_some() {
        return refuse("make their own bridge", "--bridge is for --mode bridged");
    }
    if mode == Mode::Isolated && spec.uplink.is_some() {
        return refuse("have no way out", "--uplink is for nat, routed and bridged");
    }
    match spec.mtu {
        Some(mtu) if mtu < LEAST_MTU6 && spec.ipv6.is_some() => Err(Fault::new(
            Kind::InvalidArgument,
            "INVALID_MTU",
            format!("an MTU of {mtu} bytes carries no IPv6"),
        )
        .hint(format!("from {LEAST_MTU6} on (RFC 8200, section 5)"))),
        _ => service::check(spec),
    }
}

/// `PREFIX-NAME` where that fits and is free, else `PREFIX-NAM-xxxx` with digits of a hash.
fn interface_name(
    prefix: &str,
    name: &Name,
    identity: &str,
    taken: impl Fn(&IfName) -> bool,
) -> Result<IfName, Fault> {
    let plain = format!("{prefix}-{name}");
    let hashed = (0..64).map(|salt| {
        let hash =
            Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{identity}\n{salt}").as_bytes()).simple().to_string();
        let room = IfName::MAX_LEN - prefix.len() - 6;
        let short: String = name.as_str().chars().take(room).collect();
        format!("{prefix}-{}-{}", short.trim_end_matches('-'), &hash[..4])
    });
    std::iter::once(plain)
        .filter(|plain| plain.len() <= IfName::MAX_LEN)
        .chain(hashed)
        .filter_map(|candidate| candidate.parse().ok())
        .find(|candidate| !taken(candidate))
        .ok_or_else(|| {
            Fault::new(
                Kind::ResourceExhausted,
                "NO_INTERFACE_NAME",
                format!("no free interface name for `{name}`"),
            )
        })
}

/// Name of a network's bridge, free on the host.
///
/// # Errors
/// RESOURCE_EXHAUSTED if none of 65 candidates is free.
pub fn bridge_name(network: &Name, observed: &Observed) -> Result<IfName, Fault> {
    interface_name("kvb", network, network.as_str(), |name| observed.links.contains_key(name))
}

/// Name of a port's tap that no record has.
///
/// # Errors
/// RESOURCE_EXHAUSTED if none of 65 candidates is free.
pub fn tap_name(network: &Name, port: &Name, taken: impl Fn(&IfName) -> bool) -> Result<IfName, Fault> {
    interface_name("kvp", port, &format!("{network}/{port}"), taken)
}

/// The subnet of a nat or routed network: as asked, or the first free private /24 from 192.168.100.0 on.
///
/// # Errors
/// FAILED_PRECONDITION if the asked one overlaps; RESOURCE_EXHAUSTED if no range is free.
pub fn subnet4<'a>(
    asked: Option<Ipv4Net>,
    observed: &Observed,
    networks: impl Iterator<Item = &'a Network> + Clone,
) -> Result<Ipv4Net, Fault> {
    if let Some(net) = asked {
        return free(IpNet::V4(net), observed, networks).map(|()| net);
    }
    let by_192 = (100..=254).chain(1..100).map(|c| Ipv4Addr::new(192, 168, c, 1));
    let by_172 = (16..32).flat_map(|b| (0..=255).map(move |c| Ipv4Addr::new(172, b, c, 1)));
    let by_10 = (0..=255).flat_map(|b| (0..=255).map(move |c| Ipv4Addr::new(10, b, c, 1)));
    by_192
        .chain(by_172)
        .chain(by_10)
        .filter_map(|gateway| Ipv4Net::new(gateway, 24).ok())
        .find(|net| free(IpNet::V4(*net), observed, networks.clone()).is_ok())
        .ok_or_else(|| {
            Fault::new(Kind::ResourceExhausted, "NO_SUBNET", "no private IPv4 range is free")
                .hint("name one with --ipv4")
        })
}

/// Checks an IPv6 subnet.
///
/// # Errors
/// FAILED_PRECONDITION if it overlaps.
pub fn subnet6<'a>(
    asked: Option<Ipv6Net>,
    observed: &Observed,
    networks: impl Iterator<Item = &'a Network> + Clone,
) -> Result<Option<Ipv6Net>, Fault> {
    asked.map(|net| free(IpNet::V6(net), observed, networks).map(|()| net)).transpose()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn free<'a>(
    net: IpNet,
    observed: &Observed,
    mut networks: impl Iterator<Item = &'a Network>,
) -> Result<(), Fault> {
    let refuse = |with: IpNet, of: String| {
        Err(Fault::new(
            Kind::FailedPrecondition,
            "SUBNET_OVERLAPS",
            format!("{} overlaps {} of {of}", net.trunc(), with.trunc()),
        )
        .meta("subnet", with.trunc())
        .hint("choose another range, or leave --ipv4 out to get a free one"))
    };
    let held = networks.find_map(|network| {
        let nets = [network.ipv4.map(IpNet::V4), network.ipv6.map(IpNet::V6)];
        let hit = nets.into_iter().flatten().find(|other| overlap(&net, other))?;
        network.spec.mode.has_gateway().then(|| (hit, format!("network `{}`", network.name)))
    });
    if let Some((with, of)) = held {
        return refuse(with, of);
    }
    for (name, link) in &observed.links {
        let address = link.addresses.iter().map(|a| a.net).find(|other| overlap(&net, other));
        if let Some(with) = address {
            return refuse(with, format!("interface `{name}`"));
        }
        // The default route covers everything, and is meant to be overridden.
        let route =
            link.routes.iter().map(|r| r.destination).find(|d| d.prefix_len() > 0 && overlap(&net, d));
        if let Some(with) = route {
            return refuse(with, format!("a route by `{name}`"));
        }
    }
    Ok(())
}

/// What a network gets from the links it stands on.
#[derive(Debug, PartialEq, Eq)]
pub struct Footing {
    /// An existing bridge, or the name for a new one.
    pub bridge: IfName,
    /// MAC for a new bridge: the NIC's own, else one made from the network's identity.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// What moves from the NIC to the bridge.
    pub takeover: Option<Takeover>,
}

/// Checks the links that a network stands on, and notes what a NIC takes along.
///
/// # Errors
/// NOT_FOUND or FAILED_PRECONDITION with the name of the link and what is wrong with it.
pub fn footing(network: &Name, uid: Uuid, spec: &NetworkSpec, observed: &Observed) -> Result<Footing, Fault> {
    let find = |name: &IfName| {
        observed.links.get(name).ok_or_else(|| {
            Fault::new(Kind::NotFound, "NO_SUCH_LINK", format!("there is no interface `{name}` on this host"))
                .meta("link", name)
                .hint("`ip -br link` lists the interfaces of this host")
        })
    };
    let fresh_mac = || Mac::derived(&format!("networks/{network}/{uid}"), 0);
    if let Some(name) = &spec.bridge {
        let link = find(name)?;
        if link.kind != LinkKind::Bridge {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "NOT_A_BRIDGE",
                format!("`{name}` is not a bridge"),
            )
            .hint(format!("to put the NIC `{name}` on a new bridge, use --uplink {name}")));
        }
        refuse_ours(name, link)?;
        let mtu = mtu(spec.mtu, link.mtu, name)?;
        return Ok(Footing { bridge: name.clone(), mac: fresh_mac(), mtu, takeover: None });
    }
    let bridge = bridge_name(network, observed)?;
    let Some(uplink) = &spec.uplink else {
        let mtu = spec.mtu.unwrap_or(ETHERNET_MTU);
        return Ok(Footing { bridge, mac: fresh_mac(), mtu, takeover: None });
    };
    let link = find(uplink)?;
    if spec.mode.has_gateway() {
        refuse_ours(uplink, link)?;
        if link.kind == LinkKind::Loopback {
            return Err(unfit(uplink, "is the loopback device").hint("name the interface that leads outside"));
        }
        let mtu = spec.mtu.unwrap_or(link.mtu.min(MOST_MTU));
        return Ok(Footing { bridge, mac: fresh_mac(), mtu, takeover: None });
    }
    let takeover = take_over(uplink, link)?;
    let mac = link.mac.ok_or_else(|| unfit(uplink, "has no Ethernet address"))?;
    Ok(Footing { bridge, mac, mtu: mtu(spec.mtu, link.mtu, uplink)?, takeover: Some(takeover) })
}

/// The MTU of a network with another spec, and whether its uplink, if it has another one, can be used.
///
/// # Errors
/// NOT_FOUND or FAILED_PRECONDITION with the name of the link and what is wrong with it.
pub fn mtu_after(network: &Network, spec: &NetworkSpec, observed: &Observed) -> Result<u32, Fault> {
    if spec.mode.has_gateway() {
        return Ok(footing(&network.name, network.uid, spec, observed)?.mtu);
    }
    let carrier = spec.uplink.as_ref().or(spec.bridge.as_ref());
    match carrier.and_then(|name| Some((name, observed.links.get(name)?))) {
        Some((name, link)) => mtu(spec.mtu, link.mtu, name),
        None => Ok(spec.mtu.unwrap_or(ETHERNET_MTU)),
    }
}

fn refuse_ours(name: &IfName, link: &Link) -> Result<(), Fault> {
    if link.group == crate::model::LINK_GROUP {
        return Err(
            unfit(name, "belongs to another network of netd").hint("put the guest on that network instead")
        );
    }
    Ok(())
}

fn unfit(link: &IfName, why: &str) -> Fault {
    Fault::new(Kind::FailedPrecondition, "UNFIT_UPLINK", format!("`{link}` cannot be used: it {why}"))
        .meta("link", link)
}

fn mtu(asked: Option<u32>, most: u32, of: &IfName) -> Result<u32, Fault> {
    match asked {
        Some(mtu) if mtu > most => Err(Fault::new(
            Kind::FailedPrecondition,
            "MTU_TOO_LARGE",
            format!("an MTU of {mtu} does not fit through `{of}`, which has {most}"),
        )
        .hint(format!("raise the MTU of `{of}` first, or leave --mtu out"))),
        Some(mtu) => Ok(mtu),
        None => Ok(most.min(MOST_MTU)),
    }
}

fn take_over(uplink: &IfName, link: &Link) -> Result<Takeover, Fault> {
    let nat = "use --mode nat or routed instead";
    match &link.kind {
        LinkKind::Loopback => return Err(unfit(uplink, "is the loopback device").hint("name a NIC")),
        LinkKind::Wifi => {
            return Err(unfit(uplink, "is Wi-Fi, and an access point takes frames of one MAC only").hint(nat));
        }
        LinkKind::Bridge => {
            return Err(unfit(uplink, "is a bridge").hint(format!("use it with --bridge {uplink}")));
        }
        LinkKind::Tap { .. } => return Err(unfit(uplink, "is a tap").hint("name a NIC")),
        LinkKind::Ifb => return Err(unfit(uplink, "is an ifb").hint("name a NIC")),
        LinkKind::Nic => {}
    }
    refuse_ours(uplink, link)?;
    if let Some(master) = &link.master {
        return Err(unfit(uplink, &format!("is a port of `{master}`"))
            .meta("master", master)
            .hint(format!("use that bridge with --bridge {master}")));
    }
    if let Some(upper) = link.uppers.first() {
        return Err(unfit(uplink, &format!("carries `{upper}`, which would lose its traffic"))
            .hint(format!("remove `{upper}` first, or choose another NIC")));
    }
    if link.multipath {
        return Err(unfit(uplink, "is part of a route with several next hops, which cannot be moved whole")
            .hint("give the next hops different metrics, or choose another NIC"));
    }
    let mut routes = link.routes.clone();
    // A gateway is reached by a connected route, which has to be there first.
    routes.sort_by_key(|route| route.gateway.is_some());
    Ok(Takeover { addresses: link.addresses.clone(), routes, was_up: link.up })
}

/// What an operator should know about an address that something else looks after.
#[must_use]
pub fn takeover_warnings(network: &Network) -> Vec<String> {
    let (Some(takeover), Some(uplink)) = (&network.takeover, &network.spec.uplink) else { return Vec::new() };
    takeover
        .addresses
        .iter()
        .filter(|address| address.valid_seconds.is_some() && matches!(address.net.addr(), IpAddr::V4(_)))
        .map(|address| {
            format!(
                "{} came to `{uplink}` by DHCP: let the DHCP client run on `{}` instead, or the address ends with its lease",
                address.net, network.bridge
            )
        })
        .collect()
}

#[cfg(test)]
mod test;
