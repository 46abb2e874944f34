//! What an ordinary guest writes.

use crate::scene::{Scene, Station};
use integration_tests::frames::{
    BROADCAST, Mac,
    arp::Arp,
    ethernet::ARP,
    icmp6::{ECHO, ECHO_REPLY, Icmp6, LinkOption, Neighbour, OVERRIDE, REPORT, SOLICITED, UNREACHABLE},
    ipv4::Ipv4,
    ipv6::{
        ALL_NODES, ALL_ROUTERS, DESTINATION, DHCP_SERVERS, HOP_BY_HOP, Ipv6, MLD2_ROUTERS, PADDING,
        ROUTER_ALERT, solicited_node,
    },
    transport::{ICMP, echo, icmp},
};
use std::net::{Ipv4Addr, Ipv6Addr};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const NOBODY6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// As `PLACES` counts them.
const NEIGHBOUR: &[usize] = &[0];
const HOST: &[usize] = &[2];
const ALL: &[usize] = &[0, 1, 2];

/// Frames that belong together, and where they have to come out.
pub struct Traffic {
    pub what: &'static str,
    pub frames: Vec<Vec<u8>>,
    pub places: &'static [usize],
}

pub fn all(scene: &Scene) -> Vec<Traffic> {
    [arp(scene), ipv4(scene), ipv6(scene), neighbours(scene), groups(scene)].into_iter().flatten().collect()
}

fn one(what: &'static str, places: &'static [usize], frame: Vec<u8>) -> Traffic {
    Traffic { what, frames: vec![frame], places }
}

fn arp(scene: &Scene) -> Vec<Traffic> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let frame = |destination: Mac, arp: Arp| own.to(destination).frame(ARP, &arp.bytes());
    vec![
        one("a request", ALL, frame(BROADCAST, Arp::request(own.arp(), gateway.ipv4))),
        one("a request to one", HOST, frame(gateway.mac, Arp::request(own.arp(), gateway.ipv4))),
        one("a request for an address elsewhere", ALL, {
            frame(BROADCAST, Arp::request(own.arp(), Ipv4Addr::new(10, 60, 0, 200)))
        }),
        one("a reply", NEIGHBOUR, frame(neighbour.mac, Arp::reply(own.arp(), neighbour.arp()))),
        one("a reply to the host", HOST, frame(gateway.mac, Arp::reply(own.arp(), gateway.arp()))),
        one("a probe", ALL, frame(BROADCAST, Arp::probe(own.mac, own.ipv4))),
        one("an announcement", ALL, frame(BROADCAST, Arp::announcement(own.arp()))),
        one(
            "an announcement as a reply",
            ALL,
            frame(BROADCAST, Arp::reply(own.arp(), (BROADCAST, own.ipv4))),
        ),
    ]
}

fn ipv4(scene: &Scene) -> Vec<Traffic> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let pair = (own.ipv4, neighbour.ipv4);
    let to = |what, packet: Ipv4| one(what, NEIGHBOUR, own.ipv4(neighbour.mac, &packet));
    let host = |what, packet: Ipv4| one(what, HOST, own.ipv4(gateway.mac, &packet));
    let all = |what, packet: Ipv4| one(what, ALL, own.ipv4(BROADCAST, &packet));
    let data = [0x61; 40];
    let dhcp = [&[1, 1, 6, 0, 0x6b, 0x76, 0x6d, 0x63][..], &[0; 20], &own.mac, &[1; 210]].concat();
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let large = Ipv4::udp(pair, (1000, 2000), &[0x61; 136]);
    vec![
        to("UDP", Ipv4::udp(pair, (1000, 2000), &data)),
        to("UDP of port 68", Ipv4::udp(pair, (68, 2000), &data)),
        to("a DHCP request to a neighbour", Ipv4::udp(pair, (68, 67), &dhcp)),
        host("a DHCP request behind options", {
            Ipv4 { options: vec![1; 8], ..Ipv4::udp((own.ipv4, gateway.ipv4), (68, 67), &dhcp) }
        }),
        to("UDP with options", Ipv4 { options: vec![1, 1, 1, 0], ..Ipv4::udp(pair, (1000, 2000), &data) }),
        to("the start of a connection", Ipv4::tcp_syn(pair, (1000, 22))),
        to("TCP of port 67", Ipv4::tcp_syn(pair, (67, 22))),
        to("an echo request", Ipv4::echo(pair)),
        to("an echo reply", Ipv4::new(pair, ICMP, icmp(0, 0, &echo(b"is anybody there who answers")))),
        to("a tunnel", Ipv4::new(pair, 4, Ipv4::echo((gateway.ipv4, neighbour.ipv4)).bytes())),
        to("a tunnel of GRE", Ipv4::new(pair, 47, [&[0, 0, 8, 0], &Ipv4::echo(pair).bytes()[..]].concat())),
        host("UDP to the gateway", Ipv4::udp((own.ipv4, gateway.ipv4), (1000, 53), &data)),
        host("UDP to a place outside", Ipv4::udp((own.ipv4, Ipv4Addr::new(10, 99, 0, 1)), (1000, 53), &data)),
        all("UDP to everybody", Ipv4::udp((own.ipv4, Ipv4Addr::BROADCAST), (1000, 2000), &data)),
        one("UDP to a group", ALL, {
            own.ipv4([1, 0, 0x5e, 0, 0, 251], &Ipv4::udp((own.ipv4, group), (5353, 5353), &data))
        }),
        all("a DHCP discover", Ipv4::udp((NOBODY, Ipv4Addr::BROADCAST), (68, 67), &dhcp)),
        host("a DHCP request in a lease", Ipv4::udp((own.ipv4, gateway.ipv4), (68, 67), &dhcp)),
        Traffic {
            what: "fragments",
            frames: large.fragments(72).iter().map(|part| own.ipv4(neighbour.mac, part)).collect(),
            places: NEIGHBOUR,
        },
    ]
}

fn ipv6(scene: &Scene) -> Vec<Traffic> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let pair = (own.ipv6, neighbour.ipv6);
    let local = (own.link_local, neighbour.link_local);
    let chosen = chosen();
    let to = |what, packet: Ipv6| one(what, NEIGHBOUR, own.ipv6(neighbour.mac, &packet));
    let host = |what, packet: Ipv6| one(what, HOST, own.ipv6(gateway.mac, &packet));
    let all = |what, packet: Ipv6| one(what, ALL, own.ipv6(neighbour.mac, &packet));
    let ping = Icmp6::new(ECHO, &[&echo(b"is anybody there")]);
    let pong = Icmp6::new(ECHO_REPLY, &[&echo(b"is anybody there")]);
    let unreachable = Icmp6::new(UNREACHABLE, &[&[0; 4], &Ipv6::udp(pair, (9, 9), b"x").bytes()]);
    let large = Ipv6::udp(pair, (1000, 2000), &[0x61; 120]);
    let parts = [large.fragment(0, 64), large.fragment(64, 128)];
    vec![
        to("UDP", Ipv6::udp(pair, (1000, 2000), b"hello")),
        to("UDP from link-local", Ipv6::udp(local, (1000, 2000), b"hello")),
        to("UDP from an address of its own choice", Ipv6::udp((chosen, local.1), (1000, 2000), b"hello")),
        to("a DHCPv6 request to port 547 of a neighbour", Ipv6::udp(pair, (546, 547), &[3, 1, 2, 3])),
        to("a DHCPv6 renewal behind options", {
            Ipv6::udp(pair, (546, 547), &[5, 1, 2, 3]).behind(DESTINATION, PADDING)
        }),
        to("the start of a connection", Ipv6::tcp_syn(pair, (1000, 22))),
        to("TCP of port 547", Ipv6::tcp_syn(pair, (547, 22))),
        to("an echo request", Ipv6::icmp(pair, &ping)),
        to("an echo request from link-local", Ipv6::icmp(local, &ping)),
        to("an echo reply", Ipv6::icmp(pair, &pong)),
        to("an error", Ipv6::icmp(pair, &unreachable)),
        to("a tunnel", Ipv6::new(pair, 41, Ipv6::icmp((gateway.ipv6, pair.1), &ping).bytes())),
        host("an echo request to the gateway", Ipv6::icmp((own.ipv6, gateway.ipv6), &ping)),
        host("UDP to a place outside", {
            let outside = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 1);
            Ipv6::udp((own.ipv6, outside), (1000, 53), b"hello")
        }),
        all("an echo request to all", Ipv6::icmp((own.link_local, ALL_NODES), &ping)),
        all(
            "a DHCPv6 solicit",
            Ipv6::udp((own.link_local, DHCP_SERVERS), (546, 547), &[1, 0x6b, 0x76, 0x6d]),
        ),
        Traffic {
            what: "fragments",
            frames: parts.iter().map(|part| own.ipv6(neighbour.mac, part)).collect(),
            places: NEIGHBOUR,
        },
    ]
}

/// A link-local address that is not made of a MAC, as RFC 7217 has it.
fn chosen() -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1234, 0x5678, 0x9abc, 0xdef0)
}

fn neighbours(scene: &Scene) -> Vec<Traffic> {
    let Scene { own, neighbour, gateway, .. } = scene;
    let to = |what, packet: Ipv6| one(what, NEIGHBOUR, own.ipv6(neighbour.mac, &packet));
    let all = |what, packet: Ipv6| one(what, ALL, own.ipv6(neighbour.mac, &packet));
    let source = LinkOption::Source(own.mac);
    let target = LinkOption::Target(own.mac);
    let nonce = LinkOption::Nonce([1, 2, 3, 4, 5, 6]);
    let ask = |source, of: Station, options: &[LinkOption]| {
        Ipv6::icmp((source, solicited_node(of.ipv6)), &Neighbour::Solicitation(of.ipv6).message(options))
    };
    let detect = |address, options: &[LinkOption]| {
        Ipv6::icmp((NOBODY6, solicited_node(address)), &Neighbour::Solicitation(address).message(options))
    };
    let have = |ends, flags, address, options: &[LinkOption]| {
        Ipv6::icmp(ends, &Neighbour::Advertisement(flags, address).message(options))
    };
    let routers = |source, options: &[LinkOption]| {
        Ipv6::icmp((source, ALL_ROUTERS), &Icmp6::router_solicitation(options))
    };
    let answer = SOLICITED | OVERRIDE;
    let alive = Neighbour::Solicitation(neighbour.ipv6).message(&[]);
    vec![
        all("detection of its address", detect(own.ipv6, &[])),
        all("detection of its address, with a nonce", detect(own.ipv6, &[nonce])),
        all("detection of its link-local address", detect(own.link_local, &[nonce])),
        all("detection of an address of its own choice", detect(chosen(), &[])),
        all("a question", ask(own.ipv6, *neighbour, &[source])),
        all("a question for the gateway", ask(own.ipv6, *gateway, &[source])),
        all("a question from link-local", ask(own.link_local, *neighbour, &[source])),
        all("a question from an address of its own choice", ask(chosen(), *neighbour, &[source])),
        to("whether one is still there", Ipv6::icmp((own.ipv6, neighbour.ipv6), &alive)),
        to("an answer", have((own.ipv6, neighbour.ipv6), answer, own.ipv6, &[target])),
        to("an answer without option", have((own.ipv6, neighbour.ipv6), SOLICITED, own.ipv6, &[])),
        to("an answer for link-local", {
            have((own.link_local, neighbour.link_local), answer, own.link_local, &[target])
        }),
        to("an answer for an address of its own choice", {
            have((chosen(), neighbour.link_local), answer, chosen(), &[target])
        }),
        all("an announcement", have((own.ipv6, ALL_NODES), OVERRIDE, own.ipv6, &[target])),
        all("whether there are routers", routers(own.link_local, &[source])),
        all("whether there are routers, without option", routers(own.link_local, &[])),
        all("whether there are routers, from nobody", routers(NOBODY6, &[])),
    ]
}

fn groups(scene: &Scene) -> Vec<Traffic> {
    let Scene { own, neighbour, .. } = scene;
    let all = |what, packet: Ipv6| one(what, ALL, own.ipv6(neighbour.mac, &packet));
    let message = Icmp6::listener_report(&[solicited_node(own.ipv6)]);
    let report = |source, to, message: &Icmp6| {
        Ipv6 { hop_limit: 1, ..Ipv6::icmp((source, to), message) }.behind(HOP_BY_HOP, ROUTER_ALERT)
    };
    let group = solicited_node(own.ipv6);
    let first = Icmp6::new(REPORT, &[&[0; 4], &group.octets()]);
    vec![
        all("a listener report from nobody", report(NOBODY6, MLD2_ROUTERS, &message)),
        all("a listener report", report(own.link_local, MLD2_ROUTERS, &message)),
        all("a listener report of version 1", report(own.link_local, group, &first)),
    ]
}
