//! IPv6 from addresses that are not the guest's, and DHCPv6 servers.

use super::{Attack, Group};
use crate::scene::Scene;
use integration_tests::frames::{
    ethernet::IPV6,
    icmp6::{ECHO, Icmp6, QUERY},
    ipv6::{
        ALL_NODES, ALL_ROUTERS, DESTINATION, DHCP_SERVERS, HOP_BY_HOP, Ipv6, NO_SEGMENTS, PADDING,
        ROUTER_ALERT, ROUTING,
    },
    transport::{UDP, echo},
};
use std::net::Ipv6Addr;

const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("address")
}

pub fn attacks(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let (me, them, host) = (own.ipv6, neighbour.ipv6, gateway.ipv6);
    let ping = Icmp6::new(ECHO, &[&echo(b"is anybody there")]);
    let packet = |what, packet: Ipv6| Attack::new(Group::Ipv6, what, own.ipv6(neighbour.mac, &packet));
    let from = |what, source| packet(what, Ipv6::icmp((source, them), &ping));
    let to_host = |what, packet: Ipv6| Attack::new(Group::Ipv6, what, own.ipv6(gateway.mac, &packet));
    let hello = |ends| Ipv6::udp(ends, (1000, 1000), &[0x61; 64]);
    let cut = |what, length: usize| {
        let bytes = Ipv6::icmp((host, them), &ping).bytes();
        Attack::new(Group::Ipv6, what, own.to(neighbour.mac).short(IPV6, &bytes[..length]))
    };
    let control = |what, kind: u8| {
        let message = Icmp6::new(kind, &[&[0; 24]]);
        let packet = Ipv6 { hop_limit: 255, ..Ipv6::icmp((own.link_local, ALL_NODES), &message) };
        Attack::new(Group::Ipv6, what, own.ipv6(neighbour.mac, &packet)).counted_as("nd")
    };
    vec![
        from("the gateway's address", host),
        from("the gateway's link-local address", gateway.link_local),
        from("the neighbour's own address", them),
        from("the neighbour's link-local address", neighbour.link_local),
        to_host("the neighbour's address, to the host", Ipv6::icmp((them, host), &ping)),
        to_host("the neighbour's address, TCP to the host", Ipv6::tcp_syn((them, host), (1000, 53))),
        to_host("the neighbour's link-local address, to the host", {
            Ipv6::icmp((neighbour.link_local, gateway.link_local), &ping)
        }),
        packet("the gateway's address, to all", Ipv6::icmp((host, ALL_NODES), &ping)),
        from("an address of nobody in the subnet", address("fd00:60::99")),
        from("the subnet's routers' address", address("fd00:60::")),
        from("an address of another subnet", address("2001:db8:99::1")),
        from("a link-local address of somebody's MAC", address("fe80::ff:fe00:99")),
        from("a link-local address of another link", address("fe80:0:0:1::1")),
        from("a site's address", address("fec0::1")),
        from("no address", NOBODY),
        from("loopback", Ipv6Addr::LOCALHOST),
        from("an IPv4 address", address("::ffff:10.60.0.12")),
        from("a compatible IPv4 address", address("::10.60.0.12")),
        from("a tunnelled IPv4 address", address("2002:0a3c:000c::1")),
        from("a group's address", ALL_NODES),
        packet("no address, UDP to all", hello((NOBODY, ALL_NODES))),
        packet("no address, TCP", Ipv6::tcp_syn((NOBODY, them), (1000, 1000))),
        packet("the gateway's address, in a fragment", hello((host, them)).fragment(0, 40)),
        packet("the gateway's address, in a later fragment", hello((host, them)).fragment(40, 72)),
        packet("the gateway's address, behind options", hello((host, them)).behind(DESTINATION, PADDING)),
        packet("the gateway's address, behind routing", hello((host, them)).behind(ROUTING, NO_SEGMENTS)),
        packet("the gateway's address, version 4", Ipv6 { version: 4, ..hello((host, them)) }),
        packet("the gateway's address, no length", Ipv6 { length: Some(0), ..hello((host, them)) }),
        // Fragments where nobody sends any (RFC 6980), and in which messages of neighbours can hide.
        packet("a first fragment to all", hello((me, ALL_NODES)).fragment(0, 40)),
        packet("a later fragment to all", hello((me, ALL_NODES)).fragment(40, 72)),
        packet("an atomic fragment to all", hello((me, ALL_NODES)).atomic_fragment()),
        packet("a fragment to all routers", hello((own.link_local, ALL_ROUTERS)).fragment(0, 40)),
        packet("a fragment to a link-local address", hello((me, neighbour.link_local)).fragment(0, 40)),
        packet("a later fragment to a link-local address", {
            hello((own.link_local, neighbour.link_local)).fragment(40, 72)
        }),
        packet("a fragment behind options, to all", {
            hello((me, ALL_NODES)).fragment(0, 40).behind(DESTINATION, PADDING)
        }),
        cut("a packet cut in its source", 20),
        cut("a packet cut before its source", 8),
        cut("a packet cut after its first byte", 1),
        // Messages of ICMPv6 that no guest needs.
        control("router renumbering", 138),
        control("a node's information", 139),
        control("inverse discovery", 141),
        control("inverse discovery's answer", 142),
        control("a home agent's discovery", 144),
        control("a mobile prefix", 146),
        control("a certification path", 148),
        control("a multicast router", 151),
        control("a low-power mesh", 155),
        control("an address registration", 157),
        control("an extended echo", 160),
        control("an experiment", 200),
        control("an unknown error", 100),
    ]
}

/// Replies of a DHCPv6 server.
pub fn dhcp_servers(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Dhcp, what, own.ipv6(neighbour.mac, &packet));
    // A reply that names the guest as name server.
    let data = [&[7, 0x6b, 0x76, 0x6d, 0, 23, 0, 16][..], &own.ipv6.octets(), &[0; 40]].concat();
    let reply = |ends| Ipv6::udp(ends, (547, 546), &data);
    let local = (own.link_local, neighbour.link_local);
    let global = (own.ipv6, neighbour.ipv6);
    let hidden = reply(global).behind(DESTINATION, PADDING);
    // The options fill the first fragment, and the port comes with a later one.
    let headless = hidden.fragment(0, 8);
    vec![
        sent("a DHCPv6 reply", reply(local)),
        sent("a DHCPv6 reply from a global address", reply(global)),
        sent("a DHCPv6 reply to all", reply((own.link_local, ALL_NODES))),
        sent("a DHCPv6 reply to another port", Ipv6::udp(local, (547, 1000), &data)),
        sent("a DHCPv6 reply as the gateway", reply((gateway.link_local, neighbour.link_local)))
            .counted_as("ipv6"),
        sent("a DHCPv6 reply as nobody", reply((NOBODY, ALL_NODES))).counted_as("ipv6"),
        sent("a DHCPv6 reply behind options", reply(local).behind(DESTINATION, PADDING)),
        sent("a DHCPv6 reply behind hop-by-hop options", reply(local).behind(HOP_BY_HOP, PADDING)),
        sent("a DHCPv6 reply behind routing", reply(local).behind(ROUTING, NO_SEGMENTS)),
        sent("a DHCPv6 reply behind options twice", {
            reply(local).behind(DESTINATION, PADDING).behind(DESTINATION, PADDING)
        }),
        sent("a DHCPv6 reply in an atomic fragment", reply(global).atomic_fragment()),
        sent("a DHCPv6 reply's first fragment", reply(global).fragment(0, 32)),
        sent("a DHCPv6 reply's first fragment of 8 bytes", reply(global).fragment(0, 8)),
        sent("a DHCPv6 reply behind options in a fragment", hidden.fragment(0, 32)),
        sent("a DHCPv6 reply in a packet without length", Ipv6 { length: Some(0), ..reply(local) }),
        sent("a DHCPv6 port and no more", Ipv6::new(local, UDP, vec![0x02, 0x23])),
        // No port can be read in these.
        sent("a DHCPv6 reply whose port comes later", headless).counted_as("ipv6"),
        sent("a DHCPv6 reply in a packet longer than it is", Ipv6 { length: Some(1400), ..reply(local) })
            .counted_as("ipv6"),
        // It may take the place of what a first fragment had there.
        sent("a later fragment with the port", hidden.fragment(8, hidden.payload.len())).counted_as("ipv6"),
    ]
}

/// What no client sends: a relay names the client itself, whose lease it so takes.
pub fn dhcp_relays(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Dhcp, what, own.ipv6(gateway.mac, &packet));
    let all = (own.link_local, DHCP_SERVERS);
    let one = (own.ipv6, gateway.ipv6);
    // Of one hop, from the neighbour; and the neighbour's MAC as option 79 (RFC 6939) has it.
    let forward = |kind| {
        let hop = [&[kind, 0][..], &[0; 16], &neighbour.link_local.octets()].concat();
        [&hop[..], &[0, 79, 0, 8, 0, 1], &neighbour.mac, &[0, 9, 0, 4, 1, 0x6b, 0x76, 0x6d]].concat()
    };
    let message = |ends, data: &[u8]| Ipv6::udp(ends, (546, 547), data);
    let relay = message(one, &forward(12));
    vec![
        sent("a relay's message to all servers", message(all, &forward(12))),
        sent("a relay's message to the host", relay.clone()),
        sent("a relay's message from another port", Ipv6::udp(one, (1000, 547), &forward(12))),
        sent("a relay's message behind options", relay.clone().behind(DESTINATION, PADDING)),
        sent("a relay's message in an atomic fragment", relay.atomic_fragment()),
        sent("a relay's message in fragments", relay.fragment(0, 32)),
        sent("a relay's message in fragments of 8 bytes", relay.fragment(0, 8)),
        sent("a relay's reply", message(one, &forward(13))),
        sent("a DHCPv6 request in fragments", message(one, &[3; 64]).fragment(0, 32)),
        sent("an advertisement to port 547", message(one, &[2, 1, 2, 3])),
        sent("a reconfiguration to port 547", message(one, &[10, 1, 2, 3])),
        sent("a lease query", message(one, &[14, 1, 2, 3])),
        sent("DHCPv4 in DHCPv6", message(one, &[20, 1, 2, 3])),
        sent("a datagram to port 547 without a message", message(one, &[])),
    ]
}

/// A question of a multicast router: it is for routers only, and a bridge changes its ways for its sender.
pub fn listener_queries(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Router, what, own.ipv6(neighbour.mac, &packet));
    let alert = |packet: Ipv6| packet.behind(HOP_BY_HOP, ROUTER_ALERT);
    let first = Icmp6::new(QUERY, &[&[0x27, 0x10, 0, 0], &[0; 16]]);
    let query = |message: &Icmp6| Ipv6 { hop_limit: 1, ..Ipv6::icmp((own.link_local, ALL_NODES), message) };
    vec![
        sent("a listener query without alert", query(&first)),
        sent("a listener query", alert(query(&first))),
        sent("a listener query of version 2", alert(query(&Icmp6::listener_query()))),
    ]
}
