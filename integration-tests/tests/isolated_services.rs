//! An isolated network with DHCP and DNS: guests are served, and the way to the server is no way to the host.

use integration_tests::{
    client::{dig, resolver},
    guest::Guest,
    host::TestHost,
    netns::Netns,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};
use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

/// A port of the host that something listens on, on all of its addresses.
const LISTENS: u16 = 443;

/// Connections tried at once.
const BUNCH: usize = 4096;

/// Ports of an address that accept a connection from a namespace.
fn open_ports(netns: &Netns, address: &str, ports: std::ops::RangeInclusive<u16>) -> Vec<u16> {
    let address: IpAddr = address.parse().expect("address");
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let ports: Vec<u16> = ports.collect();
    shared::limits::raise_descriptors();
    netns.enter(|| {
        let mut open = Vec::new();
        for bunch in ports.chunks(BUNCH) {
            let sockets: Vec<(u16, OwnedFd)> = bunch
                .iter()
                .filter_map(|port| {
                    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                    let socket = socket_with(family, SocketType::STREAM, flags, None).expect("socket");
                    match connect(&socket, &SocketAddr::new(address, *port)) {
                        Ok(()) | Err(Errno::INPROGRESS) => Some((*port, socket)),
                        Err(_) => None,
                    }
                })
                .collect();
            // An answer on one wire takes microseconds; what has not come after the pause does not come.
            let mut waiting: Vec<_> = sockets.iter().collect();
            while !waiting.is_empty() {
                let mut polled: Vec<_> =
                    waiting.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::OUT)).collect();
                let pause = Timespec::try_from(Duration::from_millis(300)).expect("time");
                if poll(&mut polled, Some(&pause)).expect("poll") == 0 {
                    break;
                }
                let done: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
                let mut done = done.iter();
                waiting.retain(|(port, socket)| {
                    let answered = *done.next().expect("as many");
                    if answered && sockopt::socket_error(socket).expect("socket").is_ok() {
                        open.push(*port);
                    }
                    !answered
                });
                // Answers come in bunches.
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
        open
    })
}

#[test]
fn guests_are_served_and_the_host_stays_out_of_reach() {
    let host = TestHost::new();
    host.ok("network create other --mode nat --ipv4 10.61.0.1/24 --ipv6 fd00:61::1/64");
    let subnets = "--ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64";
    host.ok(&format!("network create lab --mode isolated {subnets} --dhcp on"));
    let guests: Vec<_> = ["ada", "bob"]
        .map(|name| {
            let port = host.ok_json(&format!("port create lab {name}"))["status"].clone();
            let text = |key: &str| port[key].as_str().expect(key).to_owned();
            let guest = Guest::plug(&host.netns, &text("interface"), &text("mac"));
            (guest, text("ipv4_address"), text("ipv6_address"))
        })
        .into();
    let (ada, v4, v6) = &guests[0];
    let (bob, bob_v4, bob_v6) = &guests[1];
    let told = ada.dhcp4(&[]).expect("a lease");
    assert_eq!(
        (told["ip"].as_str(), told["router"].as_str(), told["dns"].as_str()),
        (&**v4, "", "10.62.0.1")
    );
    bob.dhcp4(&[]).expect("a lease");
    ada.has_address(v6);
    bob.has_address(bob_v6);
    assert_eq!(ada.dhcp6()["ip"], *v6);
    assert_eq!(ada.netns.sh("ip route show default; ip -6 route show default"), "", "there is no way out");
    for server in ["10.62.0.1", "fd00:62::1"] {
        assert_eq!(ada.dig(server, "bob.lab.internal"), [bob_v4.as_str()]);
        assert_eq!(ada.dig(server, "bob AAAA"), [bob_v6.as_str()]);
        assert_eq!(ada.dig(server, &format!("-x {bob_v6}")), ["bob.lab.internal."]);
    }
    // No question leaves: the LAN's resolver would know this.
    let _resolver = resolver(&host.lan);
    assert_eq!(dig(&host.netns, "10.99.0.1", "outside.test"), ["203.0.113.9"]);
    assert_eq!(ada.dig("10.62.0.1", "outside.test"), Vec::<String>::new());

    // A hostile guest: it has routes and neighbours for all of the host, by the bridge's MAC and by the server's.
    let _listeners: Vec<_> = host.netns.enter(|| {
        [LISTENS, 53].into_iter().filter_map(|port| TcpListener::bind(("::", port)).ok()).collect()
    });
    let heard = host.netns.enter(|| UdpSocket::bind(("::", LISTENS)).expect("bind"));
    heard.set_nonblocking(true).expect("socket");
    let mac =
        |script: &str, netns: &Netns| netns.json(script)[0]["address"].as_str().expect("MAC").to_owned();
    let bridge = mac("ip -j link show kvb-lab", &host.netns);
    let outer = mac("ip -j link show kvs-lab", &host.netns);
    let server = ada.netns.json("ip -j neigh show 10.62.0.1")[0]["lladdr"].as_str().expect("MAC").to_owned();
    assert_eq!(
        open_ports(&ada.netns, "10.62.0.1", 1..=u16::MAX),
        [53],
        "at the gateway's address there is DNS and nothing else"
    );
    assert_eq!(open_ports(&ada.netns, "fd00:62::1", 1..=u16::MAX), [53]);
    let addresses = [
        "10.99.0.2",
        "10.61.0.1",
        "127.0.0.1",
        "2001:db8:99::2",
        "fd00:61::1",
        // Its own gateway's, but by the bridge's MAC, and hosts beyond.
        "10.62.0.1",
        "fd00:62::1",
        "10.99.0.1",
        "2001:db8:99::1",
    ];
    ada.netns.sh("ip route replace default dev eth0; ip -6 route replace default dev eth0
                  ip link set lo down; sysctl -qw net.ipv4.conf.all.route_localnet=1");
    for by in [&bridge, &outer, &server] {
        for address in addresses {
            ada.netns.sh(&format!("ip neigh replace {address} lladdr {by} dev eth0 nud permanent"));
            let own = address.contains("62:") || address.starts_with("10.62.");
            let expected: &[u16] = if own && *by == server { &[53] } else { &[] };
            assert_eq!(open_ports(&ada.netns, address, 1..=1024), expected, "{address} by {by}");
            let sender = ada.netns.enter(|| {
                UdpSocket::bind((if address.contains(':') { "::" } else { "0.0.0.0" }, 0)).expect("bind")
            });
            for _ in 0..3 {
                // A refusal to send is a way of not arriving.
                let _ = sender.send_to(address.as_bytes(), (address, LISTENS));
            }
        }
    }
    for address in addresses {
        ada.netns.sh(&format!("ip neigh flush to {address} nud permanent"));
    }
    // Answered by nobody: not ARP, not neighbour discovery, and what the host heard is nothing.
    for address in ["10.99.0.2", "10.61.0.1", "127.0.0.1"] {
        assert!(!ada.netns.succeeds(&format!("busybox arping -c 2 -w 2 -I eth0 {address}")), "{address}");
    }
    assert!(ada.netns.succeeds("busybox arping -c 2 -w 2 -I eth0 10.62.0.1"), "the server itself answers");
    let mut message = [0; 64];
    assert_eq!(heard.recv_from(&mut message).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // Nor the other way: the host has no part in the network.
    assert_eq!(host.netns.sh("ip -4 address show kvb-lab; ip address show kvs-lab | grep inet || true"), "");
    assert_eq!(dig(&host.netns, "10.62.0.1", "ada"), Vec::<String>::new());
}
