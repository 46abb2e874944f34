//! IPv4 from addresses that are not the guest's, and DHCP servers.

use super::{Attack, Group};
use crate::scene::{Scene, Station};
use integration_tests::frames::{
    BROADCAST,
    ethernet::IPV4,
    ipv4::{Ipv4, MORE},
    transport::{ICMP, UDP, icmp},
};
use std::net::Ipv4Addr;

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

pub fn attacks(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let (me, them, host) = (own.ipv4, neighbour.ipv4, gateway.ipv4);
    let packet =
        |what, destination, packet: Ipv4| Attack::new(Group::Ipv4, what, own.ipv4(destination, &packet));
    let to = |what, content| packet(what, neighbour.mac, content);
    let echo = |what, source: [u8; 4]| to(what, Ipv4::echo((source.into(), them)));
    let to_host = |what, content| packet(what, gateway.mac, content);
    let spoofed = Ipv4::udp((host, them), (53, 1000), &[0x61; 64]);
    let [first, later] = spoofed.fragments(32);
    let cut = |what, length: usize| {
        let bytes = Ipv4::echo((host, them)).bytes();
        Attack::new(Group::Ipv4, what, own.to(neighbour.mac).short(IPV4, &bytes[..length]))
    };
    vec![
        to("the gateway's address", Ipv4::udp((host, them), (53, 1000), b"an answer of DNS that is none")),
        to("the neighbour's own address", Ipv4::echo((them, them))),
        to_host("the neighbour's address, to the host", Ipv4::echo((them, host))),
        to_host("the neighbour's address, TCP to the host", Ipv4::tcp_syn((them, host), (1000, 53))),
        packet("the gateway's address, to all", BROADCAST, Ipv4::echo((host, Ipv4Addr::BROADCAST))),
        to_host("the host's own address, to the host", Ipv4::echo((host, host))),
        to("a redirect of the gateway", {
            let old = Ipv4::echo((them, Ipv4Addr::new(10, 99, 0, 1))).bytes();
            Ipv4::new((host, them), ICMP, icmp(5, 1, &[&me.octets()[..], &old[..28]].concat()))
        }),
        echo("an address of nobody in the subnet", [10, 60, 0, 99]),
        echo("the subnet's own address", [10, 60, 0, 0]),
        echo("the subnet's broadcast address", [10, 60, 0, 255]),
        echo("an address of another subnet", [10, 99, 0, 1]),
        echo("an address of the link", [169, 254, 1, 1]),
        echo("a loopback address", [127, 0, 0, 1]),
        to_host("a loopback address, to the host", Ipv4::udp((Ipv4Addr::LOCALHOST, host), (53, 53), b"?")),
        echo("a group's address", [224, 0, 0, 1]),
        echo("everybody's address", [255, 255, 255, 255]),
        echo("a reserved address", [240, 0, 0, 1]),
        echo("its own address with its bytes swapped", [11, 0, 60, 10]),
        // Nobody, who may ask for a DHCP server and do nothing else.
        to("no address, echo", Ipv4::echo((NOBODY, them))),
        packet("no address, echo to all", BROADCAST, Ipv4::echo((NOBODY, Ipv4Addr::BROADCAST))),
        to("no address, DHCP's ports to one", Ipv4::udp((NOBODY, them), (68, 67), &[1; 240])),
        packet(
            "no address, another port to all",
            BROADCAST,
            Ipv4::udp((NOBODY, Ipv4Addr::BROADCAST), (68, 69), &[1; 240]),
        ),
        packet(
            "no address, from another port to all",
            BROADCAST,
            Ipv4::udp((NOBODY, Ipv4Addr::BROADCAST), (1068, 67), &[1; 240]),
        ),
        packet("no address, TCP", BROADCAST, Ipv4::tcp_syn((NOBODY, Ipv4Addr::BROADCAST), (68, 67))),
        packet(
            "no address, a later fragment to all",
            BROADCAST,
            Ipv4::udp((NOBODY, Ipv4Addr::BROADCAST), (68, 67), &[1; 240]).fragments(64)[1].clone(),
        ),
        packet("no address, a group's report", [1, 0, 0x5e, 0, 0, 0x16], {
            let report = [0x22, 0, 0xf9, 2, 0, 0, 0, 1, 4, 0, 0, 0, 0xe0, 0, 0, 0xfb];
            Ipv4::new((NOBODY, Ipv4Addr::new(224, 0, 0, 22)), 2, report.to_vec())
        }),
        // A header that a filter may miss.
        to("the gateway's address, first fragment", first),
        to("the gateway's address, later fragment", later),
        to("the gateway's address, behind options", Ipv4 { options: vec![1; 8], ..spoofed.clone() }),
        to("the gateway's address, all options", Ipv4 { options: vec![1; 40], ..spoofed.clone() }),
        to("the gateway's address, a total length of 0", Ipv4 { total: Some(0), ..spoofed.clone() }),
        to("the gateway's address, version 6", Ipv4 { version: 6, ..spoofed.clone() }),
        to("the gateway's address, a header of 16 bytes", Ipv4 { words: Some(4), ..spoofed }),
        cut("a packet cut in its source", 14),
        cut("a packet cut before its source", 12),
        cut("a packet cut after its first byte", 1),
    ]
}

/// Offers of a DHCP server. Clients read them from raw sockets, before the kernel has checked anything.
pub fn dhcp_servers(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let everybody = Ipv4Addr::BROADCAST;
    let data = offer(own.ipv4, neighbour.ipv4, neighbour.mac);
    let sent = |what, packet: Ipv4| Attack::new(Group::Dhcp, what, own.ipv4(BROADCAST, &packet));
    let plain = Ipv4::udp((own.ipv4, everybody), (67, 68), &data);
    let [first, _] = plain.fragments(64);
    let [tiny, _] = plain.fragments(8);
    let unicast = Ipv4::udp((own.ipv4, neighbour.ipv4), (67, 68), &data);
    let relay = Ipv4::udp((own.ipv4, gateway.ipv4), (67, 67), &data);
    vec![
        sent("an offer to all", plain.clone()),
        Attack::new(Group::Dhcp, "an offer to one", own.ipv4(neighbour.mac, &unicast)),
        Attack::new(Group::Dhcp, "a relay's request to the host", own.ipv4(gateway.mac, &relay)),
        sent("an offer as the gateway", Ipv4::udp((gateway.ipv4, everybody), (67, 68), &data))
            .counted_as("ipv4"),
        sent("an offer as nobody", Ipv4::udp((NOBODY, everybody), (67, 68), &data)).counted_as("ipv4"),
        sent("an offer to another port", Ipv4::udp((own.ipv4, everybody), (67, 1068), &data)),
        sent("an offer behind options", Ipv4 { options: vec![1; 12], ..plain.clone() }),
        sent("an offer's first fragment", first),
        sent("an offer's first fragment of 8 bytes", tiny),
        sent("an offer that may follow", Ipv4 { fragment: MORE, ..plain.clone() }),
        sent("an offer with a reserved flag", Ipv4 { fragment: 0x8000, ..plain.clone() }),
        sent("an offer behind the end of its packet", Ipv4 { total: Some(20), ..plain.clone() }),
        sent("a port and no more", Ipv4::new((own.ipv4, everybody), UDP, vec![0, 67])),
        // No port can be read in these, but by whoever believes what they say of themselves.
        sent("an offer in a packet without length", Ipv4 { total: Some(0), ..plain.clone() })
            .counted_as("ipv4"),
        sent("an offer in a packet longer than it is", Ipv4 { total: Some(1400), ..plain.clone() })
            .counted_as("ipv4"),
        sent("an offer in a packet of version 5", Ipv4 { version: 5, ..plain.clone() }).counted_as("ipv4"),
        // The ports are in the receiver's address.
        sent(
            "an offer in a header of 16 bytes",
            Ipv4 { words: Some(4), destination: Ipv4Addr::new(0, 67, 0, 68), ..plain.clone() },
        )
        .counted_as("ipv4"),
        sent("an offer in a header of no bytes", Ipv4 { words: Some(0), ..plain.clone() }).counted_as("ipv4"),
        sent(
            "an offer in a header longer than its packet",
            Ipv4 { words: Some(15), total: Some(40), ..plain },
        )
        .counted_as("ipv4"),
    ]
}

/// Use me as router and name server, for a day.
fn offer(server: Ipv4Addr, client: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0, 0x6b, 0x76, 0x6d, 0x63];
    message.resize(16, 0);
    message.extend(client.octets());
    message.extend(server.octets());
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 2, 51, 4, 0, 1, 0x51, 0x80, 1, 4, 255, 255, 255, 0]);
    for option in [54, 3, 6] {
        message.extend([option, 4]);
        message.extend(server.octets());
    }
    message.push(255);
    message
}

/// What a client says, in the neighbour's name: the server goes by the MAC in the message.
pub fn dhcp_clients(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let everybody = (NOBODY, Ipv4Addr::BROADCAST);
    let server = (own.ipv4, gateway.ipv4);
    let sent = |what, packet: Ipv4| Attack::new(Group::Dhcp, what, own.ipv4(BROADCAST, &packet));
    let to_host = |what, packet: Ipv4| Attack::new(Group::Dhcp, what, own.ipv4(gateway.mac, &packet));
    let theirs = |kind| client(kind, neighbour, gateway.ipv4);
    let mine = client(REQUEST, own, gateway.ipv4);
    let changed = |at: usize, value: u8| {
        let mut message = mine.clone();
        message[at] = value;
        message
    };
    let unicast = Ipv4::udp(server, (68, 67), &theirs(RELEASE));
    vec![
        sent("a neighbour's DHCPDECLINE as nobody", Ipv4::udp(everybody, (68, 67), &theirs(DECLINE))),
        sent("a neighbour's DHCPDECLINE to all", {
            Ipv4::udp((own.ipv4, Ipv4Addr::BROADCAST), (68, 67), &theirs(DECLINE))
        }),
        sent("a neighbour's DHCPREQUEST as nobody", Ipv4::udp(everybody, (68, 67), &theirs(REQUEST))),
        to_host("a neighbour's DHCPRELEASE to the host", unicast.clone()),
        to_host("a neighbour's DHCPDECLINE to the host", Ipv4::udp(server, (68, 67), &theirs(DECLINE))),
        to_host("a neighbour's DHCPRELEASE from another port", {
            Ipv4::udp(server, (1068, 67), &theirs(RELEASE))
        }),
        to_host("a neighbour's DHCPRELEASE behind options", Ipv4 { options: vec![1; 8], ..unicast.clone() }),
        to_host("a neighbour's DHCPRELEASE in fragments", unicast.fragments(64)[0].clone()),
        to_host("its own DHCPREQUEST in fragments", {
            Ipv4::udp(server, (68, 67), &mine).fragments(64)[0].clone()
        }),
        to_host("a DHCPREQUEST's first 8 bytes", Ipv4::udp(server, (68, 67), &mine).fragments(8)[0].clone()),
        to_host("a relayed DHCPREQUEST", Ipv4::udp(server, (68, 67), &changed(27, 9))),
        to_host("a DHCPREQUEST of other hardware", Ipv4::udp(server, (68, 67), &changed(1, 6))),
        to_host("a DHCPREQUEST of a MAC of no bytes", Ipv4::udp(server, (68, 67), &changed(2, 0))),
        to_host("a DHCPREQUEST of a longer MAC", Ipv4::udp(server, (68, 67), &changed(2, 7))),
        to_host("a server's message to port 67", Ipv4::udp(server, (68, 67), &changed(0, 2))),
        to_host("a datagram to port 67 without a message", Ipv4::udp(server, (68, 67), &[])),
        to_host("a DHCPREQUEST cut in its MAC", Ipv4::udp(server, (68, 67), &mine[..32])),
    ]
}

/// Sorts of messages (RFC 2132, 9.6).
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const RELEASE: u8 = 7;

/// A message of a client with this MAC and address to a server.
fn client(kind: u8, of: &Station, server: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0x6b, 0x76, 0x6d, 0x63];
    message.resize(12, 0);
    // A release is of the address here, a decline of the one in an option.
    message.extend(of.ipv4.octets());
    message.resize(28, 0);
    message.extend(of.mac);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    for (option, address) in [(50, of.ipv4), (54, server)] {
        message.extend([option, 4]);
        message.extend(address.octets());
    }
    message.push(255);
    message
}
