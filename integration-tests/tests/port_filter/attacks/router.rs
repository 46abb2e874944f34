//! Router advertisements, redirects, and other words of routers.

use super::{Attack, Group, ipv6::listener_queries};
use crate::scene::Scene;
use integration_tests::frames::{
    icmp6::{Icmp6, ROUTER_ADVERTISEMENT},
    ipv6::{ALL_NODES, DESTINATION, HOP_BY_HOP, Ipv6, NO_SEGMENTS, PADDING, ROUTER_ALERT, ROUTING},
    transport::ICMP6,
};
use std::net::Ipv6Addr;

pub fn attacks(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Router, what, own.ipv6(neighbour.mac, &packet));
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0);
    let advertisement = Icmp6::router_advertisement(own.mac, prefix);
    let advertise = |ends| Ipv6::icmp(ends, &advertisement);
    let all = advertise((own.link_local, ALL_NODES));
    // To a global address, since fragments to others never pass.
    let one = advertise((own.link_local, neighbour.ipv6));
    let hidden = one.clone().behind(DESTINATION, PADDING);
    let redirect = |source| {
        let better =
            Icmp6::redirect((own.mac, own.link_local), Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 1));
        Ipv6::icmp((source, neighbour.ipv6), &better)
    };
    let code = Icmp6 { code: 1, ..advertisement.clone() };
    let mut attacks = vec![
        sent("a router advertisement", all.clone()),
        sent("a router advertisement to one", advertise((own.link_local, neighbour.link_local))),
        sent("a router advertisement as the gateway", advertise((gateway.link_local, ALL_NODES)))
            .counted_as("ipv6"),
        sent("a router advertisement from a global address", advertise((own.ipv6, ALL_NODES))),
        sent("a router advertisement as nobody", advertise((Ipv6Addr::UNSPECIFIED, ALL_NODES)))
            .counted_as("ipv6"),
        sent("a router advertisement of an address of its own", {
            advertise((Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), ALL_NODES))
        }),
        sent("a router advertisement of hop limit 64", Ipv6 { hop_limit: 64, ..all.clone() }),
        sent("a router advertisement of code 1", Ipv6::icmp((own.link_local, ALL_NODES), &code)),
        sent("a router advertisement behind hop-by-hop options", all.clone().behind(HOP_BY_HOP, PADDING)),
        sent("a router advertisement behind a router alert", all.clone().behind(HOP_BY_HOP, ROUTER_ALERT)),
        sent("a router advertisement behind options", all.clone().behind(DESTINATION, PADDING)),
        sent("a router advertisement behind routing", all.clone().behind(ROUTING, NO_SEGMENTS)),
        sent("a router advertisement behind three headers", {
            all.clone().behind(DESTINATION, PADDING).behind(ROUTING, NO_SEGMENTS).behind(HOP_BY_HOP, PADDING)
        }),
        sent("a router advertisement in an atomic fragment", one.atomic_fragment()),
        sent("a router advertisement's first fragment", one.fragment(0, 16)),
        sent("a router advertisement's first fragment of 8 bytes", one.fragment(0, 8)),
        sent("a router advertisement behind options in a fragment", hidden.fragment(0, 24)),
        sent("a router advertisement in a fragment behind options", {
            one.fragment(0, 16).behind(DESTINATION, PADDING)
        }),
        sent("a router advertisement in a fragment to all", all.fragment(0, 16)).counted_as("ipv6"),
        sent("a router advertisement in an atomic fragment to all", all.atomic_fragment()).counted_as("ipv6"),
        sent("a router advertisement that comes later, to all", {
            all.clone().behind(DESTINATION, PADDING).fragment(8, 64)
        })
        .counted_as("ipv6"),
        // No type can be read.
        sent("a router advertisement whose type comes later", hidden.fragment(0, 8)).counted_as("nd"),
        // Nothing can be said of it, so it may be anything.
        sent("a later fragment with the type", hidden.fragment(8, 64)).counted_as("ipv6"),
        sent("a router advertisement of one byte", {
            let short = Ipv6::new((own.link_local, ALL_NODES), ICMP6, vec![ROUTER_ADVERTISEMENT]);
            Ipv6 { hop_limit: 255, ..short }
        }),
        sent("a redirect", redirect(own.link_local)),
        sent("a redirect as the gateway", redirect(gateway.link_local)).counted_as("ipv6"),
        sent("a redirect from a global address", redirect(own.ipv6)),
        sent("a redirect behind options", redirect(own.link_local).behind(DESTINATION, PADDING)),
        sent("a redirect in an atomic fragment", redirect(own.link_local).atomic_fragment()),
    ];
    attacks.extend(listener_queries(scene));
    attacks
}
