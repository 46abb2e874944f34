//! Ports of the host that lead to a guest, by flows of TCP and UDP that are answered or not.

use integration_tests::{
    census::Census,
    frames::{
        BROADCAST, Mac,
        arp::Arp,
        ethernet::{ARP, Ethernet, IPV4},
        ipv4::Ipv4,
        mac,
    },
    guest::Guest,
    host::TestHost,
    netns::Netns,
    wait,
    wire::Wire,
};
use std::{
    io::Read as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long an answer is waited for that must not come; those that come take milliseconds.
const NO_ANSWER: Duration = Duration::from_millis(700);
/// How long one is waited for that has to come. The host asks for no IPv6 neighbour before the link-local address of its
/// bridge is checked, some two seconds after the first guest; what it should have passed on is sent again.
const ANSWER: Duration = Duration::from_secs(20);
/// Pause before a datagram is sent again.
const AGAIN: Duration = Duration::from_millis(200);
/// Each question is another one, so that a late answer is not taken for a new one's.
static QUESTION: AtomicU32 = AtomicU32::new(0);

/// Serves a port of a guest until the namespace goes: TCP and UDP, both families. The answer is who asked, and who
/// answers.
fn serve(guest: &Guest, name: &'static str, port: u16) {
    let (tcp, udp) = guest.netns.enter(|| {
        (TcpListener::bind(("::", port)).expect("listen"), UdpSocket::bind(("::", port)).expect("bind"))
    });
    let answer = move |from: SocketAddr, question: &str| {
        format!("{question} {} {name}", from.ip().to_canonical()).into_bytes()
    };
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(from) = stream.peer_addr() else { continue };
            // Answers line by line, until the client ends.
            thread::spawn(move || {
                let mut question = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut question) {
                    let text = String::from_utf8_lossy(&question[..length]).into_owned();
                    if stream.write_all(&answer(from, &text)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut question) {
            let text = String::from_utf8_lossy(&question[..length]).into_owned();
            let _ = udp.send_to(&answer(from, &text), from);
        }
    });
}

/// What an answer says, if it is one to `question`.
fn understood(answer: &[u8], question: &str) -> Option<String> {
    let text = String::from_utf8_lossy(answer).into_owned();
    Some(text.strip_prefix(question)?.trim_start().to_owned())
}

fn question() -> String {
    format!("q{}", QUESTION.fetch_add(1, Ordering::Relaxed))
}

/// Asks a place by a protocol, within a time.
type Ask = fn(&Netns, &str, Duration) -> Option<String>;

/// What a connection was answered.
fn tcp(from: &Netns, to: &str, limit: Duration) -> Option<String> {
    let to: SocketAddr = to.parse().expect("address");
    from.enter(|| TcpStream::connect_timeout(&to, limit)).ok().and_then(|mut stream| say(&mut stream, limit))
}

/// One more question on a connection.
fn say(stream: &mut TcpStream, limit: Duration) -> Option<String> {
    let question = question();
    stream.set_read_timeout(Some(limit)).expect("socket");
    stream.write_all(question.as_bytes()).ok()?;
    let mut answer = [0; 128];
    let length = stream.read(&mut answer).ok()?;
    understood(&answer[..length], &question)
}

fn udp_socket(from: &Netns, to: &SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.enter(|| UdpSocket::bind(any)).expect("bind");
    socket.set_read_timeout(Some(AGAIN)).expect("socket");
    socket
}

/// Asks by one socket again and again, as TCP does by itself.
fn udp_by(socket: &UdpSocket, to: &SocketAddr, limit: Duration) -> Option<String> {
    let mut answer = [0; 128];
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let question = question();
        socket.send_to(question.as_bytes(), to).ok()?;
        let answered = socket.recv_from(&mut answer).ok();
        if let Some(text) = answered.and_then(|(length, _)| understood(&answer[..length], &question)) {
            return Some(text);
        }
    }
    None
}

fn udp(from: &Netns, to: &str, limit: Duration) -> Option<String> {
    let to = to.parse().expect("address");
    udp_by(&udp_socket(from, &to), &to, limit)
}

/// Asks all at once, since each has to wait for an answer that must not come.
fn unanswered(ask: Ask, places: &[(&Netns, String)]) {
    thread::scope(|scope| {
        for (from, to) in places {
            scope.spawn(move || assert_eq!(ask(from, to, NO_ANSWER), None, "from {} to {to}", from.name()));
        }
    });
}

fn plug(host: &TestHost, network: &str, name: &str, addresses: &[&str], gateways: &[&str]) -> Guest {
    let (tap, mac) = host.port_with(network, name, addresses);
    let guest = Guest::plug(&host.netns, &tap, &mac);
    // Of two addresses a UDP server that listens at any answers from the one that the kernel likes better.
    guest.netns.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=0; ip address flush dev eth0 scope global");
    guest.addresses(addresses);
    guest.gateways(gateways);
    guest
}

/// Waits until the host answers at the gateways: an IPv6 address of a bridge is checked once there is a guest.
fn settle(guest: &Guest, gateways: &[&str]) {
    for gateway in gateways {
        let ping = format!("ping -n -c 1 -W 1 {gateway}");
        wait::until(&ping, || guest.netns.succeeds(&ping).then_some(()));
    }
}

/// A nat network with two guests of both families, `web` serving 80.
fn lan() -> (TestHost, Guest, Guest) {
    let host = TestHost::new();
    let (web, other) = lan_of(&host);
    (host, web, other)
}

fn lan_of(host: &TestHost) -> (Guest, Guest) {
    host.ok("network create lan --mode nat --ipv4 10.61.0.1/24 --ipv6 fd00:61::1/64");
    let gateways = ["10.61.0.1", "fd00:61::1"];
    let web = plug(host, "lan", "web", &["10.61.0.11/24", "fd00:61::11/64"], &gateways);
    let other = plug(host, "lan", "other", &["10.61.0.12/24", "fd00:61::12/64"], &gateways);
    serve(&web, "web", 80);
    settle(&other, &gateways);
    (web, other)
}

fn switch_bridge_netfilter(host: &TestHost, on: bool) {
    let on = u8::from(on);
    host.netns.sh(&format!(
        "sysctl -qw net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}"
    ));
}

#[test]
fn a_forward_serves_the_outside_the_host_and_its_own_network_and_nobody_else() {
    let host = TestHost::new();
    let before = Census::of(&host.netns);
    let (web, other) = lan_of(&host);
    host.ok("network create apart --mode nat --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64");
    host.ok("network create routed --mode routed --ipv4 10.63.0.1/24 --ipv6 2001:db8:63::1/64");
    host.ok("network create closed --mode isolated --ipv4 10.64.0.1/24 --ipv6 fd00:64::1/64");
    let strangers = [
        plug(&host, "apart", "x", &["10.62.0.11/24", "fd00:62::11/64"], &["10.62.0.1", "fd00:62::1"]),
        plug(
            &host,
            "routed",
            "y",
            &["10.63.0.11/24", "2001:db8:63::11/64"],
            &["10.63.0.1", "2001:db8:63::1"],
        ),
        plug(&host, "closed", "z", &["10.64.0.11/24", "fd00:64::11/64"], &["10.64.0.1", "fd00:64::1"]),
    ];
    settle(&strangers[0], &["10.62.0.1", "fd00:62::1"]);
    settle(&strangers[1], &["10.63.0.1", "2001:db8:63::1"]);
    // A hostile guest: it knows the host's MAC where there is no gateway to ask.
    let bridge =
        host.netns.json("ip -j link show kvb-closed")[0]["address"].as_str().expect("MAC").to_owned();
    for gateway in ["10.64.0.1", "fd00:64::1"] {
        strangers[2].netns.sh(&format!("ip neigh replace {gateway} lladdr {bridge} dev eth0 nud permanent"));
    }
    for protocol in ["tcp", "udp"] {
        host.ok(&format!("forward add lan --protocol {protocol} --listen 8080 --to web:80"));
    }
    host.lan.sh("ip route add 10.61.0.0/24 via 10.99.0.2; ip route add fd00:61::/64 via 2001:db8:99::2");

    let round = || {
        for (ask, protocol) in [(tcp as Ask, "TCP"), (udp, "UDP")] {
            for (uplink, lan, gateway, guest) in [
                ("10.99.0.2", "10.99.0.1", "10.61.0.1", "10.61.0.11"),
                ("2001:db8:99::2", "2001:db8:99::1", "fd00:61::1", "fd00:61::11"),
            ] {
                let of = |address: &str, port: u16| {
                    SocketAddr::new(address.parse::<IpAddr>().expect("address"), port).to_string()
                };
                let to = of(uplink, 8080);
                let seen = |from: &str| Some(format!("{from} web"));
                assert_eq!(ask(&host.lan, &to, ANSWER), seen(lan), "{protocol} from outside to {to}");
                assert_eq!(ask(&host.netns, &to, ANSWER), seen(uplink), "{protocol} from the host to {to}");
                assert_eq!(
                    ask(&other.netns, &to, ANSWER),
                    seen(gateway),
                    "{protocol} from its network to {to}"
                );
                assert_eq!(ask(&web.netns, &to, ANSWER), seen(gateway), "{protocol} from itself to {to}");
                let own = of(gateway, 8080);
                assert_eq!(
                    ask(&other.netns, &own, ANSWER),
                    seen(gateway),
                    "{protocol} by the gateway's address"
                );
                // No more than that: not past the forward, not other ports, not for others.
                let mut closed = vec![(&host.lan, of(guest, 80)), (&host.lan, of(uplink, 80))];
                for stranger in &strangers {
                    closed.extend([&to, &own, &of(guest, 80)].map(|at| (&stranger.netns, at.clone())));
                }
                closed.push((&host.netns, of(if uplink.contains(':') { "::1" } else { "127.0.0.1" }, 8080)));
                unanswered(ask, &closed);
            }
        }
    };
    if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        for on in [true, false] {
            switch_bridge_netfilter(&host, on);
            round();
        }
    } else {
        println!("SKIPPED: this kernel has no br_netfilter; forwards ran without it only");
        round();
    }
    let localnet =
        host.netns.sh("sysctl -n net.ipv4.conf.all.route_localnet net.ipv4.conf.kvb-lan.route_localnet");
    assert_eq!(localnet.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);

    drop((strangers, web, other));
    host.ok("forward delete lan tcp-8080");
    for network in ["lan", "apart", "routed", "closed"] {
        host.ok(&format!("network delete {network} --force"));
    }
    assert_eq!(host.ok("forward list -o name"), "");
    before.assert_same(&Census::of(&host.netns));
}

#[test]
fn a_guest_that_is_forwarded_to_gets_its_own_frames_back_only_if_they_are_for_it() {
    let host = TestHost::new();
    host.ok("network create lan --mode nat --ipv4 10.61.0.1/24 --ipv6 fd00:61::1/64");
    host.ok("port create lan web --mac 52:54:00:00:00:0a --ip 10.61.0.11");
    let tap = host.ok_json("port show lan web")["status"]["interface"].as_str().expect("tap").to_owned();
    host.ok("forward add lan --protocol tcp --listen 8080 --to web:80");
    let port = host.netns.json(&format!("ip -j -d link show {tap}"));
    assert_eq!(port[0]["linkinfo"]["info_slave_data"]["hairpin"], true, "{port}");
    let wire = Wire::plug(&host.netns, &tap);
    let (own, address) = (mac("52:54:00:00:00:0a"), Ipv4Addr::new(10, 61, 0, 11));
    let to = |destination: Mac, port| {
        let datagram = Ipv4::udp((address, address), (port, port), b"x");
        Ethernet { destination, source: own }.frame(IPV4, &datagram.bytes())
    };
    let marker = to(own, 9);
    let question = Arp::request((own, address), Ipv4Addr::new(10, 61, 0, 99));
    for (what, frame) in [
        ("a question", Ethernet { destination: BROADCAST, source: own }.frame(ARP, &question.bytes())),
        ("a broadcast", to(BROADCAST, 10)),
        ("a word to all of IPv6", to([0x33, 0x33, 0, 0, 0, 1], 11)),
        ("a word to all of IPv4", to([0x01, 0, 0x5e, 0, 0, 1], 12)),
        ("one to a neighbour that nobody knows", to(mac("52:54:00:00:00:77"), 13)),
    ] {
        assert!(!wire.arrives(&frame, &marker, &wire), "the guest hears {what} of its own");
    }
    host.ok("forward delete lan tcp-8080");
    let port = host.netns.json(&format!("ip -j -d link show {tap}"));
    assert_eq!(port[0]["linkinfo"]["info_slave_data"]["hairpin"], false, "{port}");
}

#[test]
fn a_routed_network_has_forwards_too_and_one_address_is_one_only() {
    let host = TestHost::new();
    host.netns.sh("ip address add 10.99.0.3/24 dev up0");
    host.ok("network create dmz --mode routed --ipv4 10.63.0.1/24 --ipv6 2001:db8:63::1/64");
    let web =
        plug(&host, "dmz", "web", &["10.63.0.11/24", "2001:db8:63::11/64"], &["10.63.0.1", "2001:db8:63::1"]);
    serve(&web, "web", 80);
    settle(&web, &["10.63.0.1", "2001:db8:63::1"]);
    let own = host.netns.enter(|| TcpListener::bind("10.99.0.3:8080")).expect("listen");
    host.ok("forward add dmz --protocol tcp --listen 10.99.0.2:8080 --to 10.63.0.11:80 --name four");
    host.ok("forward add dmz --protocol tcp --listen [2001:db8:99::2]:8080 --to web:80");
    assert_eq!(tcp(&host.lan, "10.99.0.2:8080", ANSWER).as_deref(), Some("10.99.0.1 web"));
    assert_eq!(tcp(&host.lan, "[2001:db8:99::2]:8080", ANSWER).as_deref(), Some("2001:db8:99::1 web"));
    assert_eq!(tcp(&host.netns, "10.63.0.1:8080", NO_ANSWER), None, "the gateway's address is another one");
    // The host's own program at the other address goes on.
    let accepted = thread::spawn(move || own.accept().map(|(_, from)| from.ip()));
    host.lan
        .enter(|| TcpStream::connect_timeout(&"10.99.0.3:8080".parse().expect("address"), ANSWER))
        .expect("own");
    assert_eq!(accepted.join().expect("thread").expect("accept").to_string(), "10.99.0.1");
    let names = host.ok("forward list dmz -o name");
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["four", "tcp-8080-2001-db8-99--2"]);
    let shown = host.ok_json("forward show dmz four");
    assert_eq!(shown["status"]["target_addresses"][0], "10.63.0.11");
    assert_eq!(
        (&shown["status"]["state"], &shown["status"]["target_port_name"]),
        (&"ready".into(), &"web".into())
    );
}

#[test]
fn a_forward_follows_its_guest_and_outlives_netd() {
    let (mut host, web, other) = lan();
    drop(web);
    host.ok("port delete lan web");
    host.ok("forward add lan --protocol tcp --listen 8080 --to web:80");
    host.ok("forward add lan --protocol udp --listen 8080 --to web:80");
    let state = |host: &TestHost| host.ok_json("forward show lan udp-8080")["status"]["state"].clone();
    assert_eq!(state(&host), "pending");
    assert!(host.ok("forward show lan udp-8080").contains("no port of network `lan` answers to `web` now"));
    // A client that goes on asking from one port, before there is a guest and while it moves.
    let to: SocketAddr = "10.99.0.2:8080".parse().expect("address");
    let client = udp_socket(&host.lan, &to);
    assert_eq!(udp_by(&client, &to, NO_ANSWER), None);
    assert_eq!(tcp(&host.lan, "10.99.0.2:8080", NO_ANSWER), None);
    for (address, name) in [("10.61.0.21", "first"), ("10.61.0.22", "second")] {
        let guest = plug(&host, "lan", "web", &[&format!("{address}/24")], &["10.61.0.1"]);
        serve(&guest, name, 80);
        assert_eq!(state(&host), "ready");
        let seen = Some(format!("10.99.0.1 {name}"));
        assert_eq!(udp_by(&client, &to, ANSWER), seen, "the client's own flow");
        assert_eq!(tcp(&host.lan, "10.99.0.2:8080", ANSWER), seen);
        assert_eq!(
            tcp(&other.netns, "10.99.0.2:8080", ANSWER).as_deref(),
            Some(&*format!("10.61.0.1 {name}"))
        );
        host.kill_netd();
        assert_eq!(tcp(&host.lan, "10.99.0.2:8080", ANSWER), seen, "while netd is away");
        host.start_netd();
        assert_eq!(state(&host), "ready");
        assert_eq!(
            (tcp(&host.lan, "10.99.0.2:8080", ANSWER), udp_by(&client, &to, ANSWER)),
            (seen.clone(), seen)
        );
        drop(guest);
        host.ok("port delete lan web");
        assert_eq!(state(&host), "pending");
    }
}

#[test]
fn a_forward_that_is_deleted_ends_its_connections_and_no_others() {
    let (host, web, _other) = lan();
    serve(&web, "second", 81);
    host.ok("forward add lan --protocol tcp --listen 8080 --to web:80");
    host.ok("forward add lan --protocol udp --listen 8080 --to web:80");
    host.ok("forward add lan --protocol tcp --listen 8081 --to web:81");
    // A connection of the host's own to the outside, from the very port.
    let outside = host.lan.enter(|| TcpListener::bind("10.99.0.1:9000")).expect("listen");
    let connect = |from: &Netns, to: &str| {
        let to = to.parse().expect("address");
        from.enter(|| TcpStream::connect_timeout(&to, ANSWER)).expect("connect")
    };
    let mut own = connect(&host.netns, "10.99.0.1:9000");
    let (mut far, _) = outside.accept().expect("accept");
    let (mut first, mut second) =
        (connect(&host.lan, "10.99.0.2:8080"), connect(&host.lan, "10.99.0.2:8081"));
    let to: SocketAddr = "10.99.0.2:8080".parse().expect("address");
    let client = udp_socket(&host.lan, &to);
    assert!(say(&mut first, ANSWER).is_some() && say(&mut second, ANSWER).is_some());
    assert!(udp_by(&client, &to, ANSWER).is_some());
    host.ok("forward delete lan tcp-8080");
    host.ok("forward delete lan udp-8080");
    assert_eq!((say(&mut first, NO_ANSWER), udp_by(&client, &to, NO_ANSWER)), (None, None));
    assert_eq!(tcp(&host.lan, "10.99.0.2:8080", NO_ANSWER), None);
    assert_eq!(udp(&host.lan, "10.99.0.2:8080", NO_ANSWER), None);
    assert_eq!(say(&mut second, ANSWER).as_deref(), Some("10.99.0.1 second"));
    own.write_all(b"x").expect("write");
    let mut byte = [0];
    far.read_exact(&mut byte).expect("the host's own connection goes on");
}

#[test]
fn damage_to_a_forward_is_repaired() {
    let (host, web, _other) = lan();
    host.netns.sh(
        "nft add table ip theirs; nft 'add chain ip theirs their_dst { type nat hook prerouting priority -110; }'
         nft add rule ip theirs their_dst tcp dport 9999 dnat to 10.61.0.12:99",
    );
    host.ok("forward add lan --protocol tcp --listen 8080 --to web:80");
    host.ok("forward add lan --protocol tcp --listen 10.99.0.2:8082 --to web:80");
    let theirs = host.netns.sh("nft list table ip theirs");
    let tap = host.ok_json("port show lan web")["status"]["interface"].as_str().expect("tap").to_owned();
    for damage in [
        "nft delete element inet kvmctl kv_any_forward4 { tcp . 8080 }".to_owned(),
        "nft flush map inet kvmctl kv_forward4".to_owned(),
        "nft flush set inet kvmctl kv_open4".to_owned(),
        "nft delete element inet kvmctl kv_any_forward4 { tcp . 8080 }
         nft add element inet kvmctl kv_any_forward4 { tcp . 8080 : 10.61.0.12 . 80 }"
            .to_owned(),
        "nft add element inet kvmctl kv_any_forward4 { tcp . 22 : 10.61.0.11 . 22 }".to_owned(),
        "nft flush chain inet kvmctl kv_translate".to_owned(),
        "nft flush chain inet kvmctl kv_hairpin".to_owned(),
        "nft delete table inet kvmctl".to_owned(),
        format!("bridge link set dev {tap} hairpin off"),
        format!("nft flush set bridge kvmctl kv_reflected; ip link delete {tap}"),
    ] {
        let picture = || {
            let flags = host.netns.json(&format!("ip -j -d link show {tap} 2>/dev/null || true"));
            let listed = ["kv_any_forward4", "kv_forward4"]
                .map(|map| host.netns.sh(&format!("nft list map inet kvmctl {map} 2>/dev/null || true")));
            let rules = ["kv_translate", "kv_hairpin"].map(|chain| {
                host.netns.sh(&format!("nft list chain inet kvmctl {chain} 2>/dev/null || true"))
            });
            let open = host.netns.sh("nft list set inet kvmctl kv_open4 2>/dev/null || true");
            let back = host.netns.sh("nft list set bridge kvmctl kv_reflected 2>/dev/null || true");
            let hairpin = flags[0]["linkinfo"]["info_slave_data"]["hairpin"].clone();
            format!("{hairpin} {listed:?} {rules:?} {open} {back}")
        };
        let whole = picture();
        host.netns.sh(&damage);
        wait::until(&format!("repair of `{damage}`\n{}", host.logs()), || (picture() == whole).then_some(()));
    }
    // The guest's tap is another one now: its flows are seen by the rules again.
    drop(web);
    let (tap, mac) = {
        let port = host.ok_json("port show lan web");
        let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
        (field("interface"), field("mac"))
    };
    let web = Guest::plug(&host.netns, &tap, &mac);
    web.addresses(&["10.61.0.11/24"]);
    web.gateways(&["10.61.0.1"]);
    serve(&web, "web", 80);
    for to in ["10.99.0.2:8080", "10.99.0.2:8082"] {
        assert_eq!(tcp(&host.lan, to, ANSWER).as_deref(), Some("10.99.0.1 web"), "{to}");
    }
    assert_eq!(tcp(&web.netns, "10.99.0.2:8080", ANSWER).as_deref(), Some("10.61.0.1 web"));
    assert_eq!(theirs, host.netns.sh("nft list table ip theirs"));
}

#[test]
fn forwards_that_cannot_be_are_refused_by_name_and_leave_nothing() {
    let host = TestHost::new();
    // Without IPv6, which would settle some time later and change the census.
    host.ok("network create lan --mode nat --ipv4 10.61.0.1/24");
    host.port_with("lan", "web", &["10.61.0.11"]);
    host.port_with("lan", "other", &["10.61.0.12"]);
    host.ok("network create closed --mode isolated");
    host.netns.sh("ip link add br-old type bridge");
    host.ok("network create office --mode bridged --bridge br-old");
    host.ok("forward add lan --protocol tcp --listen 8080 --to web:80");
    host.ok("forward add lan --protocol tcp --listen 10.99.0.2:8081 --to web:80");
    let sockets = host.netns.enter(|| {
        (
            TcpListener::bind("0.0.0.0:2222").expect("listen"),
            TcpListener::bind("127.0.0.1:3333").expect("listen"),
            UdpSocket::bind("10.99.0.2:4444").expect("bind"),
        )
    });
    let process = format!("(process {})", std::process::id());
    let before = Census::of(&host.netns);
    let forwards = host.ok("forward list -o json");
    let tcp = |network: &'static str, listen: &'static str, to: &'static str| {
        ["forward", "add", network, "--protocol", "tcp", "--listen", listen, "--to", to]
    };
    let cases: Vec<([&str; 9], i32, &str)> = vec![
        (tcp("lan", "0", "web"), 2, "no port 0"),
        (tcp("lan", "70000", "web"), 2, "no port 70000"),
        (tcp("lan", "9000", "web:70000"), 2, "no port 70000"),
        (tcp("lan", "9000", "web:0"), 2, "no port 0"),
        (tcp("lan", "10.99.0.77:9000", "web"), 1, "10.99.0.77 is no address of this host"),
        (tcp("lan", "127.0.0.1:9000", "web"), 1, "never leave the host"),
        (tcp("lan", "127.9.9.9:9000", "web"), 1, "never leave the host"),
        (tcp("lan", "[::1]:9000", "web"), 1, "never leave the host"),
        (tcp("lan", "[fe80::1]:9000", "web"), 1, "link-local"),
        (tcp("lan", "0.0.0.0:9000", "web"), 1, "leave it out"),
        (tcp("lan", "10.99.0.2:9000", "fd00:61::11"), 1, "different families"),
        (tcp("lan", "[2001:db8:99::2]:9000", "10.61.0.11"), 1, "different families"),
        (tcp("lan", "[2001:db8:99::2]:9000", "web"), 1, "have no address of the family"),
        (tcp("lan", "9000", "fd00:61::11"), 1, "cannot be a guest's address"),
        (tcp("lan", "9000", "10.99.0.1"), 1, "cannot be a guest's address"),
        (tcp("lan", "9000", "10.61.0.1"), 1, "cannot be a guest's address"),
        (tcp("lan", "9000", "nosuch"), 1, "answers to `nosuch`"),
        (tcp("lan", "9000", "10.61.0.99"), 1, "answers to `10.61.0.99`"),
        (tcp("nosuch", "9000", "web"), 1, "there is no network `nosuch`"),
        (tcp("closed", "9000", "web"), 1, "is isolated"),
        (tcp("office", "9000", "web"), 1, "is bridged"),
        (tcp("lan", "8080", "other"), 1, "another spec"),
        (tcp("lan", "10.99.0.2:8080", "web"), 1, "`networks/lan/forwards/tcp-8080`"),
        (
            tcp("lan", "8081", "web"),
            1,
            "`networks/lan/forwards/tcp-8081-10-99-0-2`, which listens at 10.99.0.2",
        ),
        (tcp("lan", "53", "web"), 1, "DNS"),
        (tcp("lan", "10.61.0.1:53", "web"), 1, "DNS"),
        (tcp("lan", "2222", "web"), 1, &process),
        (tcp("lan", "10.99.0.2:2222", "web"), 1, "which listens at any address"),
    ];
    for (arguments, code, words) in &cases {
        let outcome = host.kvmctl(arguments);
        let said = &outcome.stderr;
        assert_eq!(outcome.code, *code, "kvmctl {arguments:?}: {said}");
        assert!(said.contains(words), "kvmctl {arguments:?} does not say `{words}`: {said}");
        assert!(said.contains("hint:") && outcome.stdout.is_empty(), "kvmctl {arguments:?}: {said}");
    }
    let udp = host.kvmctl(&["forward", "add", "lan", "--protocol", "udp", "--listen", "4444", "--to", "web"]);
    assert!(udp.code == 1 && udp.stderr.contains("which listens at 10.99.0.2"), "{}", udp.stderr);
    assert_eq!(forwards, host.ok("forward list -o json"));
    before.assert_same(&Census::of(&host.netns));
    // What is no obstacle: loopback's own, and the other protocol.
    host.ok("forward add lan --protocol tcp --listen 3333 --to web:80");
    host.ok("forward add lan --protocol udp --listen 2222 --to web:80");
    drop(sockets);
    let used = host.kvmctl(&["network", "delete", "lan"]);
    assert!(used.code == 1 && used.stderr.contains("4 forward(s): `tcp-3333`"), "{}", used.stderr);
    host.ok("network delete lan --force");
    assert_eq!(host.ok("forward list -o name"), "");
}

#[test]
fn a_machine_is_known_by_vmd_before_its_first_start_and_by_its_name() {
    let host = TestHost::with_vmd();
    host.ok("network create lan --mode nat");
    host.ok("network create other --mode nat");
    let (kernel, initrd) = (host.path("vmlinuz"), host.path("initrd.img"));
    host.ok(&format!("vm create web --memory 128M --kernel {kernel} --initrd {initrd} --network lan"));
    let add = |network: &str, to: &str| {
        host.kvmctl(&["forward", "add", network, "--protocol", "tcp", "--listen", "8080", "--to", to])
    };
    for (network, to) in [("lan", "nosuch"), ("other", "web")] {
        let refused = add(network, to);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(&format!("nor is there a machine `{to}`")), "{}", refused.stderr);
    }
    assert_eq!(host.ok("forward list -o name"), "");
    let added = add("lan", "web");
    assert!(added.code == 0 && added.stdout.contains("pending"), "{}{}", added.stdout, added.stderr);
    let status = || host.ok_json("forward show lan tcp-8080")["status"].clone();
    host.ok("vm start web");
    assert_eq!((&status()["state"], &status()["target_port_name"]), (&"ready".into(), &"web-0".into()));
    host.ok("vm stop web --force");
    assert_eq!(status()["state"], "pending");
}
