//! A network with a hostile guest on it, two neighbours, and a witness at every place that it must not reach.

use integration_tests::{
    frames::{
        BROADCAST, Mac,
        ethernet::{Ethernet, IPV4, IPV6},
        ipv4::Ipv4,
        ipv6::{Ipv6, eui64, group_mac, link_local},
        mac,
    },
    host::TestHost,
    wire::{Wire, same},
};
use serde_json::Value;
use std::{
    cell::Cell,
    net::{Ipv4Addr, Ipv6Addr},
};

/// The gateway's IPv4 address.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 1);
/// The gateway's IPv6 address.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x60, 0, 0, 0, 0, 0, 1);
/// The hostile guest's.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 11);
/// The neighbour's.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 12);

/// Who has which addresses.
#[derive(Clone, Copy)]
pub struct Station {
    pub mac: Mac,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    pub link_local: Ipv6Addr,
}

impl Station {
    fn new(mac: Mac, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        Self { mac, ipv4, ipv6, link_local: link_local(mac) }
    }

    /// MAC and IPv4 address, as ARP has them.
    pub fn arp(&self) -> (Mac, Ipv4Addr) {
        (self.mac, self.ipv4)
    }

    /// From this station, by its MAC, to a MAC.
    pub fn to(&self, destination: Mac) -> Ethernet {
        Ethernet { destination, source: self.mac }
    }

    /// A frame with an IPv4 packet of any claim, to a MAC.
    pub fn ipv4(&self, destination: Mac, packet: &Ipv4) -> Vec<u8> {
        self.to(destination).frame(IPV4, &packet.bytes())
    }

    /// A frame with an IPv6 packet of any claim, to the group's MAC or else to this one.
    pub fn ipv6(&self, destination: Mac, packet: &Ipv6) -> Vec<u8> {
        let group = packet.destination.is_multicast();
        let destination = if group { group_mac(packet.destination) } else { destination };
        self.to(destination).frame(IPV6, &packet.bytes())
    }
}

/// The places where frames come out.
pub const PLACES: [&str; 3] = ["the neighbour", "the third port", "the host"];

/// A network `n` with ports `a`, which is hostile, `b` and `c`.
pub struct Scene {
    pub host: TestHost,
    pub own: Station,
    pub neighbour: Station,
    pub gateway: Station,
    /// Port `a`.
    pub wire: Wire,
    /// Where its frames may come out, as in `PLACES`.
    pub ears: [Wire; 3],
    marker: Cell<u32>,
}

impl Scene {
    /// A nat network, whose ports `a` and `b` are made with these options.
    pub fn nat(options: &str) -> Self {
        let host = TestHost::new();
        host.ok(&format!("network create n --mode nat --ipv4 {GATEWAY}/24 --ipv6 {GATEWAY6}/64"));
        let options = [OWN, NEIGHBOUR].map(|address| format!("--ip {address} {options}"));
        let scene = Self::on(host, "kvb-n", options);
        for (name, station) in [("a", scene.own), ("b", scene.neighbour)] {
            let status = &scene.port(name)["status"];
            assert_eq!(status["ipv4_address"], station.ipv4.to_string());
            assert_eq!(status["ipv6_address"], station.ipv6.to_string());
        }
        scene
    }

    /// A network on a bridge of the host, which has the gateway's addresses. The ports declare addresses, or do not,
    /// and then use those of `nat`.
    pub fn bridged(declared: bool) -> Self {
        let host = TestHost::new();
        host.netns.sh(&format!(
            "ip link add br0 type bridge; ip link set br0 address 52:54:00:00:00:01 up
             ip address add {GATEWAY}/24 dev br0; ip address add {GATEWAY6}/64 dev br0 nodad"
        ));
        host.ok("network create n --mode bridged --bridge br0");
        let options = [(OWN, "52:54:00:00:00:0a"), (NEIGHBOUR, "52:54:00:00:00:0b")].map(|(ipv4, text)| {
            let ipv6 = eui64(GATEWAY6, mac(text));
            let addresses = if declared { format!("--ip {ipv4} --ip {ipv6}") } else { String::new() };
            format!("--mac {text} {addresses}")
        });
        Self::on(host, "br0", options)
    }

    fn on(host: TestHost, bridge: &str, [a, b]: [String; 2]) -> Self {
        let made = [("a", a), ("b", b), ("c", String::new())].map(|(name, options)| {
            let port = host.ok_json(&format!("port create n {name} {options}"));
            let text = |field: &str| port["status"][field].as_str().expect(field).to_owned();
            (text("interface"), mac(&text("mac")))
        });
        let station = |at: usize, ipv4| Station::new(made[at].1, ipv4, eui64(GATEWAY6, made[at].1));
        let link = host.netns.json(&format!("ip -j link show {bridge}"));
        let gateway = Station::new(mac(link[0]["address"].as_str().expect("MAC")), GATEWAY, GATEWAY6);
        let [wire, b, c] = made.each_ref().map(|(tap, _)| Wire::plug(&host.netns, tap));
        let ears = [b, c, Wire::tap_into(&host.netns, bridge)];
        let (own, neighbour) = (station(0, OWN), station(1, NEIGHBOUR));
        Self { host, own, neighbour, gateway, wire, ears, marker: Cell::new(0) }
    }

    /// What kvmctl shows of a port.
    pub fn port(&self, name: &str) -> Value {
        self.host.ok_json(&format!("port show n {name}"))
    }

    /// Port `c`.
    pub fn third(&self) -> Station {
        let status = &self.port("c")["status"];
        let text = |field: &str| status[field].as_str().expect(field);
        let address = |field| text(field).parse().expect("IPv4 address");
        Station::new(mac(text("mac")), address("ipv4_address"), eui64(GATEWAY6, mac(text("mac"))))
    }

    /// A frame that may pass and reaches every place; never the same twice.
    pub fn marker(&self) -> Vec<u8> {
        self.marker.set(self.marker.get() + 1);
        let data = format!("marker frame, number {}", self.marker.get());
        let everybody = Ipv4Addr::new(10, 60, 0, 255);
        self.own.ipv4(BROADCAST, &Ipv4::udp((self.own.ipv4, everybody), (9, 9), data.as_bytes()))
    }

    /// Sends frames and says what came out where, in the order of `PLACES`. A marker frame after them reaches every
    /// place, so that what is not there then is lost, not late. What the host says by itself does not count.
    pub fn send(&self, frames: &[&[u8]]) -> [Vec<Vec<u8>>; 3] {
        for frame in frames {
            self.wire.send(frame);
        }
        let marker = self.marker();
        self.wire.send(&marker);
        let heard = self.ears.each_ref().map(|ear| {
            let mut heard = ear.until(&marker);
            heard.retain(|frame| {
                let hosts_own = frame[6..12] == self.gateway.mac;
                !hosts_own || frames.iter().any(|sent| same(sent, frame))
            });
            heard
        });
        // Answers to what it sent.
        self.wire.drain();
        heard
    }

    /// Where something came out.
    pub fn places(heard: &[Vec<Vec<u8>>; 3]) -> Vec<&'static str> {
        PLACES.into_iter().zip(heard).filter(|(_, heard)| !heard.is_empty()).map(|(place, _)| place).collect()
    }
}
