//! Frames to 01:80:c2:00:00:0X are for the next bridge. A bridge that is not told otherwise hands them to the host's IP
//! as come by the tap itself: past the port filter, and past every rule that knows the bridge by its name.

use integration_tests::{
    frames::{
        BROADCAST, Mac,
        arp::Arp,
        ethernet::{ARP, Ethernet, IPV4},
        ipv4::Ipv4,
        mac,
    },
    host::TestHost,
    wire::Wire,
};
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
};

/// An address of the host that no guest may reach.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 11);
const OWN_MAC: &str = "52:54:00:00:00:0a";

#[test]
fn the_host_listens_to_no_frame_for_the_next_bridge() {
    for mode in ["nat", "isolated"] {
        for filter in ["on", "off"] {
            sends_to_the_next_bridge(mode, filter);
        }
    }
}

fn sends_to_the_next_bridge(mode: &str, filter: &str) {
    let host = TestHost::new();
    host.ok(&format!("network create n --mode {mode} --ipv4 10.60.0.1/24"));
    host.ok(&format!("port create n a --ip {OWN} --mac {OWN_MAC} --filter {filter}"));
    host.ok("port create n b");
    let [wire, ear] = ["kvp-a", "kvp-b"].map(|tap| Wire::plug(&host.netns, tap));
    let socket = host.netns.enter(|| UdpSocket::bind((HOST, 7777)).expect("bind"));
    let mut data = [0; 100];
    socket.send_to(b"it works", (HOST, 7777)).expect("send");
    assert_eq!(socket.recv(&mut data).expect("datagram"), 8);
    socket.set_nonblocking(true).expect("socket");

    let own = mac(OWN_MAC);
    let to = |destination: Mac| Ethernet { destination, source: own };
    let request = Arp::request((own, OWN), HOST).bytes();
    let datagram = Ipv4::udp((OWN, HOST), (7777, 7777), b"a hole in the host").bytes();
    for last in 0..16 {
        let group = to([0x01, 0x80, 0xc2, 0, 0, last]);
        wire.send(&group.frame(ARP, &request));
        wire.send(&group.frame(IPV4, &datagram));
    }
    let marker = Ipv4::udp((OWN, Ipv4Addr::BROADCAST), (9, 9), b"marker").bytes();
    let marker = to(BROADCAST).frame(IPV4, &marker);
    wire.send(&marker);
    ear.until(&marker);

    let heard = socket.recv(&mut data).map_err(|error| error.kind());
    assert_eq!(heard, Err(ErrorKind::WouldBlock), "the host's IP listens, {mode}, filter {filter}");
    // A nat network's host answers ARP for each of its addresses, as any host does.
    while let Some(frame) = (mode == "isolated").then(|| wire.receive()).flatten() {
        let answer = frame[12..14] == ARP.to_be_bytes() && frame[20..22] == [0, 2];
        assert!(!answer, "the host answers ARP, {mode}, filter {filter}");
    }
}
