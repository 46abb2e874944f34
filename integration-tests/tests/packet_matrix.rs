//! Who reaches whom, by datagrams that are sent and seen, never by reading rules.
//!
//! Every node sends to every address of every other; the guests are hostile: they have routes and neighbour
//! entries for what they must not reach. Only delivery counts, so a leak in one direction shows too.

use integration_tests::{guest::Guest, host::TestHost, netns::Netns, wait};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

const PORT: u16 = 7777;
/// A refused connection or a lost one shows long before that.
const CONNECT: Duration = Duration::from_millis(700);

/// What arrived: message, and the address it came from.
type Seen = Arc<Mutex<BTreeSet<(String, IpAddr)>>>;

/// A place that sends and receives.
struct Node {
    name: &'static str,
    netns: Netns,
    /// Addresses by the name that the expectations use.
    targets: Vec<(&'static str, [&'static str; 2])>,
    seen: Seen,
    sockets: [UdpSocket; 2],
}

impl Node {
    fn new(name: &'static str, netns: &Netns, targets: &[(&'static str, [&'static str; 2])]) -> Self {
        let seen = Seen::default();
        // Sent from other ports than received on: else a flow one way would look like the answer to one the other
        // way. [::] takes IPv4 too, so each family has its port.
        let bind = |v4: u16, v6: u16| {
            let bind = |to: &str, port| UdpSocket::bind((to, port)).expect("bind");
            netns.enter(|| [bind("0.0.0.0", v4), bind("::", v6)])
        };
        let sockets = bind(0, 0);
        for socket in bind(PORT, PORT + 1) {
            let seen = Arc::clone(&seen);
            thread::spawn(move || {
                let mut message = [0; 200];
                while let Ok((length, from)) = socket.recv_from(&mut message) {
                    let text = String::from_utf8_lossy(&message[..length]).into_owned();
                    if text == "stop" {
                        return;
                    }
                    seen.lock().expect("seen").insert((text, from.ip().to_canonical()));
                }
            });
        }
        Self { name, netns: netns.clone(), targets: targets.to_vec(), seen, sockets }
    }

    fn send(&self, message: &str, to: &str) {
        let address: IpAddr = to.parse().expect("address");
        let v6 = address.is_ipv6();
        // A refusal to send is a way of not arriving.
        let _ = self.sockets[usize::from(v6)].send_to(message.as_bytes(), (address, PORT + u16::from(v6)));
    }

    fn received(&self, message: &str) -> Option<IpAddr> {
        self.seen.lock().expect("seen").iter().find(|(text, _)| text == message).map(|(_, from)| *from)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ends the receiving threads.
        self.netns.enter(|| {
            for (v6, to) in [(0, "127.0.0.1"), (1, "::1")] {
                let _ = UdpSocket::bind((to, 0)).and_then(|s| s.send_to(b"stop", (to, PORT + v6)));
            }
        });
    }
}

/// The matrix: may a new flow go from `from` to the address called `to`?
fn allowed(from: &str, to: &str) -> bool {
    let network = |node: &str| node.split('-').next().unwrap_or_default().to_owned();
    let (a, b) = (network(from), network(to));
    let to_host = matches!(to, "H.up" | "H.gw-nat" | "H.gw-routed");
    match (a.as_str(), b.as_str()) {
        // Between guests of one network always; ports of the host only for services, tested on their own.
        (a, b) if a == b => true,
        ("nat" | "routed" | "isolated", _) if to_host => false,
        ("nat" | "routed", "L") => true,
        // A bridged guest is on the LAN: to L and to the nat guest's host as any LAN host.
        ("nat" | "routed", "lan") => true,
        ("lan" | "L", _) if to_host => true,
        ("lan", "L") | ("L", "lan") => true,
        ("lan" | "L" | "H", "routed") => true,
        ("H", "nat" | "lan" | "L") => true,
        _ => false,
    }
}

struct World {
    host: TestHost,
    nodes: Vec<Node>,
    guests: BTreeMap<&'static str, Guest>,
}

fn world() -> World {
    let host = TestHost::new();
    host.ok("network create nat --mode nat --ipv4 10.61.0.1/24 --ipv6 fd00:61::1/64");
    host.ok("network create isolated --mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64");
    host.ok("network create routed --mode routed --ipv4 10.63.0.1/24 --ipv6 2001:db8:63::1/64");
    host.ok("network create lan --mode bridged --uplink up0");
    let mut guests = BTreeMap::new();
    for (name, network, addresses, gateways) in [
        ("nat-a", "nat", ["10.61.0.11/24", "fd00:61::11/64"], ["10.61.0.1", "fd00:61::1"]),
        ("nat-b", "nat", ["10.61.0.12/24", "fd00:61::12/64"], ["10.61.0.1", "fd00:61::1"]),
        ("isolated-a", "isolated", ["10.62.0.11/24", "fd00:62::11/64"], ["10.62.0.1", "fd00:62::1"]),
        ("isolated-b", "isolated", ["10.62.0.12/24", "fd00:62::12/64"], ["10.62.0.1", "fd00:62::1"]),
        ("routed-a", "routed", ["10.63.0.11/24", "2001:db8:63::11/64"], ["10.63.0.1", "2001:db8:63::1"]),
        ("routed-b", "routed", ["10.63.0.12/24", "2001:db8:63::12/64"], ["10.63.0.1", "2001:db8:63::1"]),
        // Everything that is not on the LAN: by this host, whether or not it wants to forward it.
        ("lan-a", "lan", ["10.99.0.11/24", "2001:db8:99::11/64"], ["10.99.0.2", "2001:db8:99::2"]),
        ("lan-b", "lan", ["10.99.0.12/24", "2001:db8:99::12/64"], ["10.99.0.2", "2001:db8:99::2"]),
    ] {
        let (tap, mac) = host.port_with(network, name, &addresses);
        let guest = Guest::plug(&host.netns, &tap, &mac);
        guest.addresses(&addresses);
        guest.gateways(&gateways);
        if network == "isolated" {
            // There is no gateway to resolve: a hostile guest sends to the bridge's own MAC.
            let bridge = host.netns.json("ip -j link show kvb-isolated")[0]["address"]
                .as_str()
                .expect("MAC")
                .to_owned();
            for gateway in gateways {
                guest.netns.sh(&format!("ip neigh replace {gateway} lladdr {bridge} dev eth0 nud permanent"));
            }
        }
        guests.insert(name, guest);
    }
    for (subnet, gateway) in [
        ("10.61.0.0/24", "10.99.0.2"),
        ("10.62.0.0/24", "10.99.0.2"),
        ("10.63.0.0/24", "10.99.0.2"),
        ("fd00:61::/64", "2001:db8:99::2"),
        ("fd00:62::/64", "2001:db8:99::2"),
        ("2001:db8:63::/64", "2001:db8:99::2"),
    ] {
        host.lan.sh(&format!("ip route add {subnet} via {gateway}"));
    }
    let mut nodes = vec![
        Node::new("L", &host.lan, &[("L", ["10.99.0.1", "2001:db8:99::1"])]),
        Node::new(
            "H",
            &host.netns,
            &[
                ("H.up", ["10.99.0.2", "2001:db8:99::2"]),
                ("H.gw-nat", ["10.61.0.1", "fd00:61::1"]),
                ("H.gw-routed", ["10.63.0.1", "2001:db8:63::1"]),
            ],
        ),
    ];
    for (name, addresses) in [
        ("nat-a", ["10.61.0.11", "fd00:61::11"]),
        ("nat-b", ["10.61.0.12", "fd00:61::12"]),
        ("isolated-a", ["10.62.0.11", "fd00:62::11"]),
        ("isolated-b", ["10.62.0.12", "fd00:62::12"]),
        ("routed-a", ["10.63.0.11", "2001:db8:63::11"]),
        ("routed-b", ["10.63.0.12", "2001:db8:63::12"]),
        ("lan-a", ["10.99.0.11", "2001:db8:99::11"]),
        ("lan-b", ["10.99.0.12", "2001:db8:99::12"]),
    ] {
        nodes.push(Node::new(name, &guests[name].netns, &[(name, addresses)]));
    }
    World { host, nodes, guests }
}

impl World {
    /// Sends from everybody to everybody, and waits until all that may arrive has.
    fn round(&self, round: &str) {
        let mut wanted = Vec::new();
        for from in &self.nodes {
            for to in self.nodes.iter().filter(|to| to.name != from.name) {
                for (target, addresses) in &to.targets {
                    for address in addresses {
                        let message = format!("{round}: {} to {target} ({address})", from.name);
                        from.send(&message, address);
                        if allowed(from.name, target) {
                            wanted.push((from, to, message, *address));
                        }
                    }
                }
            }
        }
        for (from, to, message, address) in wanted {
            wait::until(&message, || {
                let seen = to.received(&message);
                if seen.is_none() {
                    // The first datagrams of a flow may be lost while neighbours are found.
                    from.send(&message, address);
                }
                seen
            });
        }
    }

    /// Everything that arrived and should not have.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for node in &self.nodes {
            for (message, from) in node.seen.lock().expect("seen").iter() {
                let (sender, rest) =
                    message.split_once(": ").expect("round").1.split_once(" to ").expect("sender");
                let target = rest.split_once(' ').expect("target").0;
                if !allowed(sender, target) {
                    leaks.push(format!("{} got `{message}` from {from}", node.name));
                }
            }
        }
        leaks
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).expect("node")
    }

    /// The address that L saw a message of the first round come from.
    fn seen_by_lan(&self, from: &str, address: &str) -> IpAddr {
        let message = format!("bridge netfilter false, first: {from} to L ({address})");
        self.node("L").received(&message).expect("message")
    }
}

#[test]
fn the_packet_matrix_holds_for_ipv4_and_ipv6_with_bridge_netfilter_on_and_off() {
    let world = world();
    for on in world.host.bridge_netfilter_settings() {
        world.host.set_bridge_netfilter(on);
        // What leaked in the first round has arrived when the second one is through.
        world.round(&format!("bridge netfilter {on}, first"));
        world.round(&format!("bridge netfilter {on}, second"));
    }
    assert_eq!(world.leaks(), Vec::<String>::new());

    for (guest, v4, v6) in [
        ("nat-a", "10.99.0.2", "2001:db8:99::2"),
        ("routed-a", "10.63.0.11", "2001:db8:63::11"),
        ("lan-a", "10.99.0.11", "2001:db8:99::11"),
    ] {
        assert_eq!(world.seen_by_lan(guest, "10.99.0.1").to_string(), v4, "{guest}");
        assert_eq!(world.seen_by_lan(guest, "2001:db8:99::1").to_string(), v6, "{guest}");
    }
    services(&world);
}

/// At its own gateway's address a guest finds echo, DNS and DHCP, and nothing else; elsewhere on the host nothing.
fn services(world: &World) {
    // At the gateways' addresses netd's own server listens on port 53.
    let listeners: Vec<_> = world.host.netns.enter(|| {
        [("::", 8080), ("10.99.0.2", 53), ("2001:db8:99::2", 53)]
            .into_iter()
            .map(|at| TcpListener::bind(at).expect("listen"))
            .collect()
    });
    for (guest, own, others) in [
        (
            "nat-a",
            ["10.61.0.1", "fd00:61::1"],
            ["10.63.0.1", "10.99.0.2", "2001:db8:63::1", "2001:db8:99::2"],
        ),
        (
            "routed-a",
            ["10.63.0.1", "2001:db8:63::1"],
            ["10.61.0.1", "10.99.0.2", "fd00:61::1", "2001:db8:99::2"],
        ),
        (
            "isolated-a",
            ["10.62.0.1", "fd00:62::1"],
            ["10.61.0.1", "10.99.0.2", "fd00:61::1", "2001:db8:99::2"],
        ),
    ] {
        let netns = &world.guests[guest].netns;
        let isolated = guest == "isolated-a";
        for gateway in own {
            assert_eq!(pings(netns, gateway), !isolated, "{guest} pings {gateway}");
            assert_eq!(connects(netns, gateway, 53), !isolated, "{guest} to {gateway} port 53");
            assert!(!connects(netns, gateway, 8080), "{guest} to {gateway} port 8080");
        }
        for other in others {
            assert!(!pings(netns, other), "{guest} pings {other}");
            assert!(!connects(netns, other, 53), "{guest} to {other} port 53");
        }
        if isolated {
            assert!(!answers_arp(netns, "10.99.0.2"), "the host answers ARP on an isolated network");
        }
    }
    drop(listeners);
    low_source_ports_do_not_leak(world);
}

fn pings(netns: &Netns, address: &str) -> bool {
    netns.succeeds(&format!("ping -n -c 2 -i 0.2 -W 1 {address}"))
}

fn answers_arp(netns: &Netns, address: &str) -> bool {
    netns.succeeds(&format!("busybox arping -c 2 -w 2 -I eth0 {address}"))
}

fn connects(netns: &Netns, address: &str, port: u16) -> bool {
    let address: IpAddr = address.parse().expect("address");
    netns.enter(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT).is_ok())
}

/// Some servers trust a low source port: it must not be a guest's.
fn low_source_ports_do_not_leak(world: &World) {
    let receiver = world.host.lan.enter(|| UdpSocket::bind("10.99.0.1:9999").expect("bind"));
    receiver.set_nonblocking(true).expect("socket");
    let sender = world.guests["nat-a"].netns.enter(|| UdpSocket::bind("10.61.0.11:600").expect("bind"));
    let from = wait::until("a datagram from a low port", || {
        sender.send_to(b"low", "10.99.0.1:9999").expect("send");
        receiver.recv_from(&mut [0; 8]).ok().map(|(_, from)| from)
    });
    assert!(from.port() >= 1024, "{from}");
}
