//! Neighbour discovery that claims what is not the guest's.

use super::{Attack, Group};
use crate::scene::Scene;
use integration_tests::frames::{
    icmp6::{Icmp6, LinkOption, Neighbour, OVERRIDE, SOLICITED},
    ipv6::{
        ALL_NODES, ALL_ROUTERS, DESTINATION, HOP_BY_HOP, Ipv6, NO_SEGMENTS, PADDING, ROUTING, solicited_node,
    },
};
use std::net::Ipv6Addr;

const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

pub fn attacks(scene: &Scene) -> Vec<Attack> {
    [advertisements(scene), solicitations(scene), detections(scene), router_solicitations(scene)]
        .into_iter()
        .flatten()
        .collect()
}

/// "I have it."
fn advertisements(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Neighbour, what, own.ipv6(neighbour.mac, &packet));
    let mine = LinkOption::Target(own.mac);
    let theirs = LinkOption::Target(neighbour.mac);
    let all = (own.ipv6, ALL_NODES);
    let one = (own.ipv6, neighbour.ipv6);
    let claim = |ends, flags, target, options: &[LinkOption]| {
        Ipv6::icmp(ends, &Neighbour::Advertisement(flags, target).message(options))
    };
    let plain = claim(one, SOLICITED | OVERRIDE, own.ipv6, &[mine]);
    let coded = Icmp6 { code: 1, ..Neighbour::Advertisement(OVERRIDE, own.ipv6).message(&[mine]) };
    let steal = claim(one, SOLICITED | OVERRIDE, gateway.ipv6, &[mine]);
    let cut = |packet: Ipv6, length: usize| Ipv6 { payload: packet.payload[..length].to_vec(), ..packet };
    let addresses = [
        sent("the gateway's address, to all", claim(all, OVERRIDE, gateway.ipv6, &[mine])),
        sent("the gateway's address, as an answer", steal.clone()),
        sent("the gateway's address, without override", claim(all, 0, gateway.ipv6, &[mine])),
        sent("the gateway's address, as a router", claim(all, 0xe0, gateway.ipv6, &[mine])),
        sent("the gateway's address, without option", claim(one, OVERRIDE, gateway.ipv6, &[])),
        sent("the gateway's link-local address", claim(all, OVERRIDE, gateway.link_local, &[mine])),
        sent("the neighbour's address, to the host", {
            claim((own.ipv6, gateway.ipv6), SOLICITED | OVERRIDE, neighbour.ipv6, &[mine])
        }),
        sent("the neighbour's address, to all", claim(all, OVERRIDE, neighbour.ipv6, &[mine])),
        sent("the neighbour's link-local address", claim(all, OVERRIDE, neighbour.link_local, &[mine])),
        sent("the neighbour's address, from link-local", {
            claim((own.link_local, ALL_NODES), OVERRIDE, neighbour.ipv6, &[mine])
        }),
        sent(
            "the gateway's address as the gateway",
            claim((gateway.ipv6, ALL_NODES), OVERRIDE, gateway.ipv6, &[mine]),
        )
        .counted_as("ipv6"),
        sent("its own address as nobody", claim((NOBODY, ALL_NODES), OVERRIDE, own.ipv6, &[mine]))
            .counted_as("ipv6"),
        sent(
            "an address of nobody",
            claim(all, OVERRIDE, Ipv6Addr::new(0xfd00, 0x60, 0, 0, 0, 0, 0, 0x99), &[mine]),
        ),
        sent("no address", claim(all, OVERRIDE, NOBODY, &[mine])),
        sent("a group's address", claim(all, OVERRIDE, ALL_NODES, &[mine])),
    ];
    let others = [
        sent("its own address at the neighbour's MAC", claim(all, OVERRIDE, own.ipv6, &[theirs])),
        sent("its own address at the gateway's MAC", {
            claim(all, OVERRIDE, own.ipv6, &[LinkOption::Target(gateway.mac)])
        }),
        sent("its own address at two MACs", claim(all, OVERRIDE, own.ipv6, &[mine, theirs])),
        sent("its own address at its MAC twice", claim(all, OVERRIDE, own.ipv6, &[mine, mine])),
        sent(
            "its own address with a source's option",
            claim(all, OVERRIDE, own.ipv6, &[LinkOption::Source(own.mac)]),
        ),
        sent("its own address with an unknown option first", {
            claim(all, OVERRIDE, own.ipv6, &[LinkOption::Raw([253, 1, 0, 0, 0, 0, 0, 0]), theirs])
        }),
        sent("its own address with an option of no length", {
            claim(all, OVERRIDE, own.ipv6, &[LinkOption::Raw([2, 0, 0, 0, 0, 0, 0, 0])])
        }),
        sent("its own address with an option of double length", {
            let [a, b, c, d, e, f] = own.mac;
            let long = LinkOption::Raw([2, 2, a, b, c, d, e, f]);
            claim(all, OVERRIDE, own.ipv6, &[long, LinkOption::Raw([0; 8])])
        }),
        sent("an advertisement of hop limit 254", Ipv6 { hop_limit: 254, ..plain.clone() }),
        sent("an advertisement of code 1", Ipv6::icmp(one, &coded)),
        sent("an advertisement cut in its target", cut(plain.clone(), 16)),
        sent("an advertisement cut in its option", cut(plain.clone(), 28)),
        sent("an advertisement of four bytes", cut(plain.clone(), 4)),
        sent("the gateway's address, and its option behind the packet's end", {
            Ipv6 { length: Some(24), ..steal.clone() }
        })
        .of_an_address(),
        sent("an advertisement in a packet without length", Ipv6 { length: Some(0), ..plain.clone() }),
        sent("an advertisement behind options", plain.clone().behind(DESTINATION, PADDING)),
        sent("an advertisement behind hop-by-hop options", plain.clone().behind(HOP_BY_HOP, PADDING)),
        sent("the gateway's address behind options", steal.clone().behind(DESTINATION, PADDING)),
        sent("the gateway's address behind routing", steal.clone().behind(ROUTING, NO_SEGMENTS)),
        sent("the gateway's address in an atomic fragment", steal.atomic_fragment()),
        sent("the gateway's address in a fragment", steal.fragment(0, 24)),
        sent("its own address in an atomic fragment", plain.atomic_fragment()),
    ];
    addresses.map(Attack::of_an_address).into_iter().chain(others).collect()
}

/// "Who has it? By the way, this is my MAC."
fn solicitations(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Neighbour, what, own.ipv6(neighbour.mac, &packet));
    let mine = LinkOption::Source(own.mac);
    let ask = |source, options: &[LinkOption]| {
        let ends = (source, solicited_node(neighbour.ipv6));
        Ipv6::icmp(ends, &Neighbour::Solicitation(neighbour.ipv6).message(options))
    };
    let plain = ask(own.ipv6, &[mine]);
    let bare = ask(own.ipv6, &[]);
    let lie = ask(own.ipv6, &[LinkOption::Source(gateway.mac)]);
    let coded = Icmp6 { code: 1, ..Neighbour::Solicitation(neighbour.ipv6).message(&[mine]) };
    vec![
        sent("a question with the gateway's MAC", lie.clone()),
        sent("a question with the neighbour's MAC", ask(own.ipv6, &[LinkOption::Source(neighbour.mac)])),
        sent("a question with everybody's MAC", ask(own.ipv6, &[LinkOption::Source([0xff; 6])])),
        sent("a question with two MACs", ask(own.ipv6, &[mine, LinkOption::Source(gateway.mac)])),
        sent("a question with its MAC twice", ask(own.ipv6, &[mine, mine])),
        sent("a question with a target's option", ask(own.ipv6, &[LinkOption::Target(own.mac)])),
        sent("a question with a nonce and another's MAC", {
            ask(own.ipv6, &[LinkOption::Nonce([1; 6]), LinkOption::Source(gateway.mac)])
        }),
        sent("a question with an option of no length", {
            ask(own.ipv6, &[LinkOption::Raw([1, 0, 0, 0, 0, 0, 0, 0])])
        }),
        sent("a question as the gateway", ask(gateway.ipv6, &[mine])).counted_as("ipv6").of_an_address(),
        sent("a question as the gateway's link-local", ask(gateway.link_local, &[mine])).counted_as("ipv6"),
        sent("a question as the neighbour", ask(neighbour.ipv6, &[mine])).counted_as("ipv6").of_an_address(),
        sent("a question of hop limit 64", Ipv6 { hop_limit: 64, ..plain.clone() }),
        sent("a question of code 1", Ipv6::icmp((own.ipv6, neighbour.ipv6), &coded)),
        sent("a question cut in its target", Ipv6 { payload: bare.payload[..12].to_vec(), ..bare.clone() }),
        sent("a question cut in its option", Ipv6 { payload: plain.payload[..30].to_vec(), ..plain.clone() }),
        // To one: a bridge itself drops it on the way to a group.
        sent(
            "a question in a packet longer than it is",
            Ipv6 { length: Some(40), destination: neighbour.ipv6, ..plain.clone() },
        )
        .counted_as("ipv6"),
        sent("a question behind options", plain.clone().behind(DESTINATION, PADDING)),
        sent("a question behind hop-by-hop options", lie.clone().behind(HOP_BY_HOP, PADDING)),
        sent("a question in an atomic fragment", {
            Ipv6 { destination: neighbour.ipv6, ..lie }.atomic_fragment()
        }),
        sent("a question in an atomic fragment to a group", plain.atomic_fragment()).counted_as("ipv6"),
    ]
}

/// "Has anybody this? I would like to take it": who answers or asks too keeps another from an address.
fn detections(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Neighbour, what, own.ipv6(neighbour.mac, &packet));
    let detect = |target, options: &[LinkOption]| {
        Ipv6::icmp((NOBODY, solicited_node(target)), &Neighbour::Solicitation(target).message(options))
    };
    let nonce = LinkOption::Nonce([1; 6]);
    let addresses = [
        sent("detection of the gateway's address", detect(gateway.ipv6, &[])),
        sent("detection of the gateway's address, with a nonce", detect(gateway.ipv6, &[nonce])),
        sent("detection of the gateway's link-local address", detect(gateway.link_local, &[])),
        sent("detection of the neighbour's address", detect(neighbour.ipv6, &[])),
        sent("detection of the neighbour's link-local address", detect(neighbour.link_local, &[nonce])),
    ];
    let others = [
        sent("detection with a MAC", detect(own.ipv6, &[LinkOption::Source(own.mac)])),
        sent("detection with two nonces", detect(own.ipv6, &[nonce, nonce])),
        sent("detection with a nonce and a MAC", detect(own.ipv6, &[nonce, LinkOption::Source(own.mac)])),
        sent("detection of hop limit 64", Ipv6 { hop_limit: 64, ..detect(own.ipv6, &[]) }).counted_as("ipv6"),
        sent("detection behind options", detect(gateway.ipv6, &[]).behind(DESTINATION, PADDING))
            .counted_as("ipv6"),
        sent("detection in a fragment", detect(gateway.ipv6, &[]).atomic_fragment()).counted_as("ipv6"),
    ];
    addresses.map(Attack::of_an_address).into_iter().chain(others).collect()
}

/// "Are there routers? By the way, this is my MAC."
fn router_solicitations(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let sent = |what, packet: Ipv6| Attack::new(Group::Neighbour, what, own.ipv6(neighbour.mac, &packet));
    let ask = |source, options: &[LinkOption]| {
        Ipv6::icmp((source, ALL_ROUTERS), &Icmp6::router_solicitation(options))
    };
    let mine = LinkOption::Source(own.mac);
    vec![
        sent("a router's question with the gateway's MAC", {
            ask(own.link_local, &[LinkOption::Source(gateway.mac)])
        }),
        sent("a router's question with the neighbour's MAC", {
            ask(own.link_local, &[LinkOption::Source(neighbour.mac)])
        }),
        sent(
            "a router's question with two MACs",
            ask(own.link_local, &[mine, LinkOption::Source(gateway.mac)]),
        ),
        sent(
            "a router's question with a target's option",
            ask(own.link_local, &[LinkOption::Target(own.mac)]),
        ),
        sent("a router's question as the neighbour", ask(neighbour.link_local, &[mine])).counted_as("ipv6"),
        sent("a router's question as nobody with a MAC", ask(NOBODY, &[LinkOption::Source(gateway.mac)]))
            .counted_as("ipv6"),
        sent("a router's question of hop limit 64", Ipv6 { hop_limit: 64, ..ask(own.link_local, &[mine]) }),
        sent("a router's question behind options", ask(own.link_local, &[mine]).behind(DESTINATION, PADDING)),
    ]
}
