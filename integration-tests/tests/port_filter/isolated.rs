//! Ports that are kept apart: by the bridge, and by the gateway too.

use crate::scene::{PLACES, Scene, Station};
use integration_tests::{
    frames::{
        BROADCAST, Mac,
        arp::Arp,
        ethernet::ARP,
        ipv4::Ipv4,
        ipv6::{ALL_NODES, Ipv6},
        mac_text,
    },
    wait,
    wire::Wire,
};
use std::net::Ipv4Addr;

/// A mark that survives routing, and tells one attempt from the next.
fn mark(what: &str) -> Vec<u8> {
    format!("from an isolated port: {what}").into_bytes()
}

/// A way to send something with a mark in it.
struct Attempt {
    what: &'static str,
    frame: Vec<u8>,
    mark: Vec<u8>,
}

/// Everything that one port may try to tell another.
fn attempts(from: &Station, to: &Station, gateway: Mac) -> Vec<Attempt> {
    let v4 = |what, destination: Mac| {
        let packet = Ipv4::udp((from.ipv4, to.ipv4), (1000, 2000), &mark(what));
        Attempt { what, frame: from.ipv4(destination, &packet), mark: mark(what) }
    };
    let v6 = |what, destination: Mac| {
        let packet = Ipv6::udp((from.ipv6, to.ipv6), (1000, 2000), &mark(what));
        Attempt { what, frame: from.ipv6(destination, &packet), mark: mark(what) }
    };
    let request = Arp::request(from.arp(), to.ipv4).bytes();
    let all_nodes = Ipv6::udp((from.link_local, ALL_NODES), (1000, 2000), &mark("IPv6 to all"));
    vec![
        v4("IPv4", to.mac),
        v6("IPv6", to.mac),
        v4("IPv4 to everybody's MAC", BROADCAST),
        Attempt { what: "IPv6 to all", frame: from.ipv6(to.mac, &all_nodes), mark: mark("IPv6 to all") },
        Attempt { what: "an ARP request", frame: from.to(BROADCAST).frame(ARP, &request), mark: request },
        v4("IPv4 by the gateway", gateway),
        v6("IPv6 by the gateway", gateway),
    ]
}

/// Ways round by the gateway that no port may take, isolated or not: from addresses that are in no network.
fn detours(from: &Station, to: &Station, gateway: Mac) -> Vec<Attempt> {
    let chosen = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1234, 0x5678, 0x9abc, 0xdef0);
    [
        ("a link-local source by the gateway", from.link_local),
        ("a chosen link-local source by the gateway", chosen),
    ]
    .into_iter()
    .map(|(what, source)| {
        let packet = Ipv6::udp((source, to.ipv6), (1000, 2000), &mark(what));
        Attempt { what, frame: from.ipv6(gateway, &packet), mark: mark(what) }
    })
    .collect()
}

/// What of `attempts`, written into `wire`, comes out at `ear` before the marker does at `other`.
fn arriving(attempts: &[Attempt], wire: &Wire, [ear, other]: [&Wire; 2], marker: &[u8]) -> Vec<&'static str> {
    ear.drain();
    for attempt in attempts {
        wire.send(&attempt.frame);
    }
    wire.send(marker);
    other.until(marker);
    let mut heard = Vec::new();
    while let Some(frame) = ear.receive() {
        heard.push(frame);
    }
    let contains = |frame: &Vec<u8>, mark: &[u8]| frame.windows(mark.len()).any(|window| window == mark);
    let came = |attempt: &&Attempt| heard.iter().any(|frame| contains(frame, &attempt.mark));
    attempts.iter().filter(came).map(|attempt| attempt.what).collect()
}

#[test]
fn isolated_ports_reach_the_gateway_and_others_but_not_each_other() {
    let scene = Scene::nat("--isolated");
    let Scene { host, own, neighbour, gateway, wire, ears: [b, c, at_host], .. } = &scene;
    // So that what the gateway forwards goes out at once.
    for station in [own, neighbour] {
        let lladdr = mac_text(station.mac);
        for address in [station.ipv4.to_string(), station.ipv6.to_string()] {
            host.netns.sh(&format!("ip neigh replace {address} lladdr {lladdr} dev kvb-n nud permanent"));
        }
    }
    let there = attempts(own, neighbour, gateway.mac);
    let back = attempts(neighbour, own, gateway.mac);
    let everything: Vec<_> = there.iter().map(|attempt| attempt.what).collect();
    let markers = || {
        let from_b = Ipv4::udp((neighbour.ipv4, Ipv4Addr::BROADCAST), (9, 9), b"marker");
        (scene.marker(), neighbour.ipv4(BROADCAST, &from_b))
    };
    let both_ways = || {
        let (from_a, from_b) = markers();
        [arriving(&there, wire, [b, c], &from_a), arriving(&back, b, [wire, c], &from_b)]
    };
    for on in host.bridge_netfilter_settings() {
        host.set_bridge_netfilter(on);
        let nothing: [Vec<&str>; 2] = Default::default();
        assert_eq!(both_ways(), nothing, "bridge netfilter {on}");
        let round = arriving(&detours(own, neighbour, gateway.mac), wire, [b, c], &scene.marker());
        assert!(round.is_empty(), "bridge netfilter {on}: {round:?}");

        // The third port and the host are reached, and answer.
        let hello = Ipv4::echo((own.ipv4, gateway.ipv4));
        for (place, ear, destination) in [(PLACES[1], c, BROADCAST), (PLACES[2], at_host, gateway.mac)] {
            let frame = own.ipv4(destination, &hello);
            assert!(wire.arrives(&frame, &scene.marker(), ear), "{place}, bridge netfilter {on}");
        }
        let third = scene.third();
        let frame = third.ipv4(own.mac, &Ipv4::echo((third.ipv4, own.ipv4)));
        let marker =
            third.ipv4(own.mac, &Ipv4::udp((third.ipv4, own.ipv4), (9, 9), b"marker of the third port"));
        assert!(c.arrives(&frame, &marker, wire), "from the third port, bridge netfilter {on}");
        wire.drain();
        wire.send(&own.ipv4(gateway.mac, &hello));
        wait::until("the gateway's echo", || {
            wire.receive().filter(|frame| frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0)
        });
    }
    // Not kept apart, they hear all of it: so it was not for another reason that they did not.
    host.ok("port update n b --isolated off");
    assert_eq!(both_ways(), [everything.clone(), everything]);
}
