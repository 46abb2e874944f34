//! Other MACs, and other protocols than ARP, IPv4 and IPv6.

use super::{Attack, Group};
use crate::scene::Scene;
use integration_tests::frames::{
    BROADCAST, Mac,
    arp::Arp,
    ethernet::{ARP, Ethernet, IPV4, IPV6, SERVICE_VLAN, VLAN},
    icmp6::Icmp6,
    ipv4::Ipv4,
    ipv6::{ALL_NODES, Ipv6},
};

/// The guest's own packets with somebody else's MAC.
pub fn macs(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let echo = Ipv4::echo((own.ipv4, neighbour.ipv4)).bytes();
    let echo_gateway = Ipv4::echo((own.ipv4, gateway.ipv4)).bytes();
    let request = Arp::request(own.arp(), gateway.ipv4).bytes();
    let echo6 = Ipv6::udp((own.ipv6, neighbour.ipv6), (1000, 1000), b"hello").bytes();
    let from = |source: Mac| Ethernet { destination: neighbour.mac, source };
    let to_host = |source: Mac| Ethernet { destination: gateway.mac, source };
    let to_all = |source: Mac| Ethernet { destination: BROADCAST, source };
    let mut nearly = own.mac;
    nearly[5] ^= 1;
    let group = [own.mac[0] | 1, own.mac[1], own.mac[2], own.mac[3], own.mac[4], own.mac[5]];
    let mac = |what, frame| Attack::new(Group::Mac, what, frame);
    vec![
        mac("IPv4 with the neighbour's MAC, to the host", to_host(neighbour.mac).frame(IPV4, &echo_gateway)),
        mac("IPv4 with the neighbour's MAC, to all", to_all(neighbour.mac).frame(IPV4, &echo)),
        mac("IPv4 with the gateway's MAC", from(gateway.mac).frame(IPV4, &echo)),
        mac("IPv4 with a MAC of nobody", from([2, 0, 0, 0, 0, 0x99]).frame(IPV4, &echo)),
        mac("IPv4 with a MAC that differs in one bit", from(nearly).frame(IPV4, &echo)),
        mac("ARP with the gateway's MAC", to_all(gateway.mac).frame(ARP, &request)),
        mac("ARP with the neighbour's MAC", to_all(neighbour.mac).frame(ARP, &request)),
        mac("IPv6 with a MAC of nobody", from([2, 0, 0, 0, 0, 0x99]).frame(IPV6, &echo6)),
        mac("a tag and the neighbour's MAC", to_all(neighbour.mac).tagged(&[(VLAN, 5)], IPV4, &echo)),
        mac("a BPDU with a MAC of nobody", bpdu([2, 0, 0, 0, 0, 0x99])),
        mac("a zero MAC", from([0; 6]).frame(IPV4, &echo)).ended_by_the_bridge(),
        mac("everybody's MAC", from(BROADCAST).frame(IPV4, &echo)).ended_by_the_bridge(),
        mac("its own MAC as a group", from(group).frame(IPV4, &echo)).ended_by_the_bridge(),
    ]
}

fn bpdu(source: Mac) -> Vec<u8> {
    let destination = [0x01, 0x80, 0xc2, 0, 0, 0];
    // A configuration BPDU of a bridge that wants to be the root.
    let configuration = [&[0; 4][..], &[0], &[0, 0], &source, &[0; 4], &[0, 0], &source, &[0x80, 1], &[0; 8]];
    Ethernet { destination, source }.llc([0x42, 0x42], 3, &configuration.concat())
}

/// Packets inside something that a receiver may look through.
pub fn encapsulations(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let echo = Ipv4::echo((own.ipv4, neighbour.ipv4)).bytes();
    let stolen = Arp::announcement((own.mac, gateway.ipv4)).bytes();
    let router =
        Ipv6::icmp((own.link_local, ALL_NODES), &Icmp6::router_advertisement(own.mac, own.ipv6)).bytes();
    let (to, all) = (own.to(neighbour.mac), own.to(BROADCAST));
    let host = own.to(gateway.mac);
    let hidden = |what, frame| Attack::new(Group::Encapsulation, what, frame);
    let ether_in = |ethertype| {
        let inner = all.frame(ARP, &stolen);
        to.frame(ethertype, &inner)
    };
    vec![
        hidden("a tag", to.tagged(&[(VLAN, 5)], IPV4, &echo)),
        hidden("a tag, to the host", host.tagged(&[(VLAN, 5)], IPV4, &echo)),
        hidden("a priority tag of VLAN 0", to.tagged(&[(VLAN, 0xe000)], IPV4, &echo)),
        hidden("a priority tag and ARP for the gateway's address", all.tagged(&[(VLAN, 0)], ARP, &stolen)),
        hidden("a priority tag and a router advertisement", all.tagged(&[(VLAN, 0)], IPV6, &router)),
        hidden("a provider's tag", to.tagged(&[(SERVICE_VLAN, 5)], IPV4, &echo)),
        hidden("a provider's tag of VLAN 0", to.tagged(&[(SERVICE_VLAN, 0)], IPV4, &echo)),
        hidden("a provider's and a customer's tag", to.tagged(&[(SERVICE_VLAN, 5), (VLAN, 6)], IPV4, &echo)),
        hidden("two customer's tags", to.tagged(&[(VLAN, 5), (VLAN, 6)], IPV4, &echo)),
        hidden("two priority tags", all.tagged(&[(VLAN, 0), (VLAN, 0)], ARP, &stolen)),
        hidden("an old provider's tag, 0x9100", to.tagged(&[(0x9100, 5)], IPV4, &echo)),
        hidden("an old provider's tag, 0x9200", to.tagged(&[(0x9200, 5)], IPV4, &echo)),
        hidden("a tag and SNAP", {
            let snap = all.snap([0; 3], ARP, &stolen);
            let tag = [0x81, 0x00, 0x00, 0x00];
            [&snap[..12], &tag, &snap[12..]].concat()
        }),
        hidden("SNAP and IPv4", to.snap([0; 3], IPV4, &echo)),
        hidden("SNAP and ARP", all.snap([0; 3], ARP, &stolen)),
        hidden("SNAP and IPv6", all.snap([0; 3], IPV6, &router)),
        hidden("SNAP of the bridge tunnel (RFC 1042)", all.snap([0, 0, 0xf8], IPV6, &router)),
        hidden("SNAP and a tag", all.snap([0; 3], VLAN, &[&[0, 0, 0x08, 0x06], &stolen[..]].concat())),
        hidden("LLC and IPv4", to.llc([6, 6], 3, &echo)),
        hidden("LLC and ARP", all.llc([0x98, 0x98], 3, &stolen)),
        hidden("MPLS", to.frame(0x8847, &[&[0, 0, 0x11, 0x40], &echo[..]].concat())),
        hidden("multicast MPLS", all.frame(0x8848, &[&[0, 0, 0x11, 0x40], &echo[..]].concat())),
        hidden("a PPPoE session", to.frame(0x8864, &[&[0x11, 0, 0, 1, 0, 68, 0, 0x21], &echo[..]].concat())),
        hidden("PPPoE discovery", all.frame(0x8863, &[0x11, 0x09, 0, 0, 0, 4, 1, 1, 0, 0])),
        hidden("transparent Ethernet bridging", ether_in(0x6558)),
        hidden("a provider backbone bridge", ether_in(0x88e7)),
        hidden("TRILL", ether_in(0x22f3)),
        hidden("NSH", ether_in(0x894f)),
        hidden("MACsec", to.frame(0x88e5, &[&[0; 6], &echo[..]].concat())),
        hidden("HSR", ether_in(0x892f)),
        hidden("B.A.T.M.A.N.", ether_in(0x4305)),
    ]
}

/// Protocols that a guest has no business with.
pub fn others(scene: &Scene) -> Vec<Attack> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let (to, all) = (own.to(neighbour.mac), own.to(BROADCAST));
    let group = |last| own.to([0x01, 0x80, 0xc2, 0, 0, last]);
    let other = |what, frame| Attack::new(Group::Other, what, frame);
    let echo = Ipv4::echo((own.ipv4, neighbour.ipv4)).bytes();
    let stolen = Arp::announcement((own.mac, gateway.ipv4)).bytes();
    let spoofed = Ipv4::echo((neighbour.ipv4, gateway.ipv4)).bytes();
    vec![
        other("a BPDU", bpdu(own.mac)),
        other(
            "a BPDU of one VLAN",
            own.to([1, 0, 0x0c, 0xcc, 0xcc, 0xcd]).snap([0, 0, 0x0c], 0x010b, &[0; 35]),
        ),
        other("CDP", own.to([1, 0, 0x0c, 0xcc, 0xcc, 0xcc]).snap([0, 0, 0x0c], 0x2000, &[2, 180, 0, 0])),
        other("LLDP to everybody", all.frame(0x88cc, &[2, 7, 4])),
        other("link aggregation", all.frame(0x8809, &[1, 1])),
        other("port authentication", to.frame(0x888e, &[2, 1, 0, 0])),
        other("RARP", all.frame(0x8035, &Arp { operation: 3, ..Arp::reply(own.arp(), own.arp()) }.bytes())),
        other("a loopback test", to.frame(0x9000, &[0, 0])),
        other("connectivity fault management", all.frame(0x8902, &[0x80, 1])),
        other("wake on LAN", all.frame(0x0842, &[&[0xff; 6][..], &neighbour.mac].concat())),
        other("ATA over Ethernet", all.frame(0x88a2, &[0x10, 0])),
        other("FCoE", to.frame(0x8906, &[0; 40])),
        other("FCoE initialisation", all.frame(0x8914, &[0x10, 0])),
        other("RDMA", to.frame(0x8915, &[0; 40])),
        other("precise time", all.frame(0x88f7, &[0, 2])),
        other("PROFINET", all.frame(0x8892, &[0xfe, 0xfe])),
        other("EtherCAT", all.frame(0x88a4, &[0x10, 0x10])),
        other("a pause to everybody", all.frame(0x8808, &[0, 1, 0xff, 0xff])),
        other("a ring's protection", all.frame(0x88e1, &[0; 4])),
        other("TIPC", all.frame(0x88ca, &[0x5a, 0, 0, 24])),
        other("DECnet", all.frame(0x6003, &[0; 24])),
        other("AppleTalk's ARP", all.frame(0x80f3, &[0, 1, 0x80, 0x9b])),
        other("IPX without LLC", all.llc([0xff, 0xff], 0, &[30, 0, 0])),
        other("NetBIOS", all.llc([0xf0, 0xf0], 3, &[0x2c, 0])),
        other("IS-IS", all.llc([0xfe, 0xfe], 3, &[0x83, 27])),
        other("a local experiment", to.frame(0x88b5, &echo)),
        other("ethertype 0", to.frame(0, &echo)),
        other("ethertype 0xffff", to.frame(0xffff, &echo)),
        other("a length that is none", to.frame(0x05dd, &echo)),
        other("IPv4's ethertype with its bytes swapped", to.frame(0x0008, &echo)),
        other("IPv4's neighbour, 0x0801", to.frame(0x0801, &echo)),
        other("nothing behind an unknown ethertype", to.short(0x88b6, &[])),
        other("nothing behind ARP", all.short(ARP, &[])).counted_as("arp"),
        other("nothing behind IPv4", to.short(IPV4, &[])).counted_as("ipv4"),
        other("nothing behind IPv6", to.short(IPV6, &[])).counted_as("ipv6"),
        // Groups that are for the next bridge only.
        other("LLDP", group(14).frame(0x88cc, &[2, 7, 4])),
        other("port authentication to the next bridge", group(3).frame(0x888e, &[1, 1, 0, 0])),
        other("link aggregation to the next bridge", group(2).frame(0x8809, &[1, 1])),
        other("a pause", group(1).frame(0x8808, &[0, 1, 0xff, 0xff])).ended_by_the_bridge(),
        other("the gateway's address to the next bridge", group(14).frame(ARP, &stolen))
            .counted_as("arp")
            .of_an_address(),
        other("the neighbour's packet to the next bridge", group(3).frame(IPV4, &spoofed))
            .counted_as("ipv4")
            .of_an_address(),
    ]
}
