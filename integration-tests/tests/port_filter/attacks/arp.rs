//! ARP that claims what is not the guest's.

use super::{Attack, Group};
use crate::scene::Scene;
use integration_tests::frames::{BROADCAST, arp::Arp, ethernet::ARP};
use std::net::Ipv4Addr;

pub fn attacks(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let (mine, host) = (own.arp(), gateway.arp());
    let arp = |what, destination, arp: Arp| {
        Attack::new(Group::Arp, what, own.to(destination).frame(ARP, &arp.bytes()))
    };
    let all = |what, message| arp(what, BROADCAST, message);
    let to = |what, message| arp(what, neighbour.mac, message);
    let claim = |address| (own.mac, address);
    let cut = |what, length: usize| {
        let message = Arp::announcement(claim(gateway.ipv4)).bytes();
        Attack::new(Group::Arp, what, own.to(BROADCAST).short(ARP, &message[..length]))
    };
    let plain = Arp::request(mine, neighbour.ipv4);
    let stolen = Arp::announcement(claim(gateway.ipv4));
    let addresses = [
        // The gateway's or the neighbour's address.
        to("a reply for the gateway", Arp::reply(claim(gateway.ipv4), neighbour.arp())),
        arp("a reply for the neighbour, to the host", gateway.mac, Arp::reply(claim(neighbour.ipv4), host)),
        all("a reply for the gateway, to all", Arp::reply(claim(gateway.ipv4), claim(gateway.ipv4))),
        all("an announcement of the gateway's address", stolen),
        all("an announcement of the neighbour's address", Arp::announcement(claim(neighbour.ipv4))),
        to("a request as the gateway, to one", Arp::request(claim(gateway.ipv4), neighbour.ipv4)),
        arp("a request as the neighbour", gateway.mac, Arp::request(claim(neighbour.ipv4), gateway.ipv4)),
        all("an address of nobody", Arp::announcement(claim(Ipv4Addr::new(10, 60, 0, 99)))),
        all("an address of another subnet", Arp::announcement(claim(Ipv4Addr::new(10, 99, 0, 1)))),
        all("an address of the link", Arp::announcement(claim(Ipv4Addr::new(169, 254, 1, 1)))),
        all("everybody's address", Arp::announcement(claim(Ipv4Addr::BROADCAST))),
        // Probes defend an address before anybody has it, and so keep others from taking it.
        all("a probe for the gateway's address", Arp::probe(own.mac, gateway.ipv4)),
        all("a probe for the neighbour's address", Arp::probe(own.mac, neighbour.ipv4)),
        // Nor is there a message without any.
        to("a reply of nobody", Arp { operation: 2, ..Arp::probe(own.mac, own.ipv4) }),
        cut("an announcement cut in its sender's address", 16),
        cut("an announcement cut before its target", 18),
        Attack::new(
            Group::Arp,
            "a probe cut before its target",
            own.to(BROADCAST).short(ARP, &Arp::probe(own.mac, own.ipv4).bytes()[..24]),
        ),
    ];
    let others = [
        // Its own address, at another MAC.
        all("a probe for its own address with another MAC", Arp::probe(neighbour.mac, own.ipv4)),
        to("its own address at the gateway's MAC", Arp::reply((gateway.mac, own.ipv4), neighbour.arp())),
        all("its own address at the neighbour's MAC", Arp::announcement((neighbour.mac, own.ipv4))),
        all("its own address at everybody's MAC", Arp::announcement((BROADCAST, own.ipv4))),
        all("its own address at no MAC", Arp::announcement(([0; 6], own.ipv4))),
        to("the neighbour's MAC and address", Arp::request(neighbour.arp(), gateway.ipv4)),
        // Other operations and forms, which lenient receivers take for the usual one.
        all("RARP's request", Arp { operation: 3, ..plain }),
        all("RARP's reply", Arp { operation: 4, ..plain }),
        all("inverse ARP", Arp { operation: 8, ..plain }),
        all("operation 0", Arp { operation: 0, ..plain }),
        all("operation 0x0101", Arp { operation: 0x0101, ..plain }),
        all("hardware of IEEE 802", Arp { hardware: 6, ..plain }),
        all("hardware of IEEE 802 and the gateway's address", Arp { hardware: 6, ..stolen }),
        all("hardware 0", Arp { hardware: 0, ..plain }),
        all("protocol IPv6", Arp { protocol: 0x86dd, ..plain }),
        all("protocol of a trailer", Arp { protocol: 0x1001, ..plain }),
        all("hardware addresses of 8 bytes", Arp { hardware_length: 8, ..plain }),
        all("hardware addresses of no bytes", Arp { hardware_length: 0, ..plain }),
        all("protocol addresses of 16 bytes", Arp { protocol_length: 16, ..plain }),
        all("protocol addresses of no bytes", Arp { protocol_length: 0, ..stolen }),
        cut("an announcement cut before its sender", 8),
    ];
    addresses.map(Attack::of_an_address).into_iter().chain(others).collect()
}
