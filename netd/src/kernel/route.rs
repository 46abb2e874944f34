//! Addresses and routes as rtnetlink tells of them, in our own words, and back.

use crate::model::{Address, Route};
use ipnet::IpNet;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
            RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
        },
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ND_INFINITY_LIFE_TIME: valid for ever.
const FOR_EVER: u32 = u32::MAX;

/// Link number and address; `None` for kinds that no network of ours has.
pub fn parse_address(message: &AddressMessage) -> Option<(u32, Address)> {
    let mut address = None;
    let mut local = None;
    let mut flags = AddressFlags::empty();
    let mut valid_seconds = None;
    let mut broadcast = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::CacheInfo(info) if info.ifa_valid != FOR_EVER => {
                valid_seconds = Some(info.ifa_valid)
            }
            _ => {}
        }
    }
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let no_prefix_route = flags.contains(AddressFlags::Noprefixroute);
    Some((message.header.index, Address { net, broadcast, no_prefix_route, valid_seconds }))
}

/// The message that adds `address` to a link.
pub fn address_message(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = address.net.addr();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = address.net.prefix_len();
    message.header.index = index;
    message.header.scope = match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    if let Some(broadcast) = address.broadcast {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    // Duplicate detection would keep the address unusable for a second, and without a carrier for ever.
    let mut flags = if ip.is_ipv6() { AddressFlags::Nodad } else { AddressFlags::empty() };
    if address.no_prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    if let Some(seconds) = address.valid_seconds {
        let mut info = CacheInfo::default();
        info.ifa_valid = seconds;
        info.ifa_preferred = seconds;
        message.attributes.push(AddressAttribute::CacheInfo(info));
    }
    message
}

/// Link numbers and routes: none for what the kernel makes by itself on each link, nor for local, multicast and
/// blackhole routes. An IPv6 route of several next hops is several routes that the kernel shows as one; an IPv4 one
/// is one, and not ours to take apart (see `multipath_links`).
pub fn parse_routes(message: &RouteMessage) -> Vec<(u32, Route)> {
    let Some((link, route)) = parse_route(message) else { return Vec::new() };
    if let Some(link) = link {
        return vec![(link, route)];
    }
    let hops = hops(message).filter(|_| route.destination.addr().is_ipv6());
    hops.map(|hop| {
        let gateway = hop
            .attributes
            .iter()
            .find_map(|a| if let RouteAttribute::Gateway(via) = a { ip(via) } else { None });
        let on_link = hop.flags.contains(RouteNextHopFlags::Onlink);
        (hop.interface_index, Route { gateway, on_link, ..route.clone() })
    })
    .collect()
}

fn hops(message: &RouteMessage) -> impl Iterator<Item = &RouteNextHop> {
    let several = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    several.flatten()
}

/// A route and its one link, if it has one.
fn parse_route(message: &RouteMessage) -> Option<(Option<u32>, Route)> {
    let v4 = message.header.address_family == AddressFamily::Inet;
    if message.header.kind != RouteType::Unicast || message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let mut destination = any;
    let mut link = None;
    let mut route = Route {
        destination: IpNet::new(any, 0).ok()?,
        gateway: None,
        source: None,
        metric: None,
        table: message.header.table.into(),
        protocol: message.header.protocol.into(),
        scope: message.header.scope.into(),
        mtu: None,
        on_link: message.header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip(to)?,
            RouteAttribute::Gateway(via) => route.gateway = Some(ip(via)?),
            RouteAttribute::PrefSource(from) => route.source = Some(ip(from)?),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics
                    .iter()
                    .find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    let kernels_own = match destination {
        IpAddr::V6(to) => to.is_unicast_link_local() || to.is_multicast(),
        IpAddr::V4(_) => false,
    };
    const RT_TABLE_LOCAL: u32 = 255;
    (!kernels_own && route.table != RT_TABLE_LOCAL).then_some((link, route))
}

/// Numbers of the links that an IPv4 route with several next hops leaves by.
pub fn multipath_links(message: &RouteMessage) -> Vec<u32> {
    let hops = hops(message).filter(|_| message.header.address_family == AddressFamily::Inet);
    hops.map(|hop| hop.interface_index).collect()
}

/// Whether this is the route that makes packets to `address` the host's own, by a link.
pub fn is_local_route(message: &RouteMessage, index: u32, address: IpAddr) -> bool {
    message.header.kind == RouteType::Local
        && message.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(oif) if *oif == index))
        && message
            .attributes
            .iter()
            .any(|a| matches!(a, RouteAttribute::Destination(to) if ip(to) == Some(address)))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The message that adds or removes `route` on a link.
pub fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .table_id(route.table)
        .protocol(RouteProtocol::from(route.protocol))
        .scope(RouteScope::from(route.scope))
        .kind(RouteType::Unicast);
    if let Some(metric) = route.metric {
        builder = builder.priority(metric);
    }
    if route.on_link {
        builder = builder.onlink();
    }
    let mut message = builder.build();
    let header: &mut RouteHeader = &mut message.header;
    header.address_family =
        if route.destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    header.destination_prefix_length = route.destination.prefix_len();
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}
