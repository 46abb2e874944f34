//! Groups: what guests get and send is what a rule allows, between guests of a bridge and through the host.

use integration_tests::{
    flows::{Connection, Datagrams, Echo, Flow},
    guest::Guest,
    host::TestHost,
    netns::Netns,
    wait,
};
use std::{
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

const PORTS: [u16; 8] = [22, 53, 80, 4999, 5000, 5005, 5010, 5011];

/// A guest on a port, with the addresses that netd gave to it.
struct Host {
    guest: Guest,
    tap: String,
    addresses: [IpAddr; 2],
}

impl Host {
    fn netns(&self) -> &Netns {
        &self.guest.netns
    }
}

/// Creates a port with these options and plugs a guest in.
fn plug(host: &TestHost, network: &str, name: &str, options: &str) -> Host {
    let port = host.ok_json(&format!("port create {network} {name} {options}"));
    let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
    let tap = field("interface");
    let guest = Guest::plug(&host.netns, &tap, &field("mac"));
    let addresses = [field("ipv4_address"), field("ipv6_address")];
    guest.addresses(&[&format!("{}/24", addresses[0]), &format!("{}/64", addresses[1])]);
    if let Some([v4, v6]) = gateways(host, network) {
        guest.gateways(&[&v4, &v6]);
    }
    Host { guest, tap, addresses: addresses.map(|text| text.parse().expect("address")) }
}

fn gateways(host: &TestHost, network: &str) -> Option<[String; 2]> {
    let network = host.ok_json(&format!("network show {network}"));
    let address = |field: &str| Some(network["status"][field].as_str()?.split('/').next()?.to_owned());
    let gateway = network["spec"]["mode"] == "nat" || network["spec"]["mode"] == "routed";
    gateway.then(|| Some([address("ipv4_cidr")?, address("ipv6_cidr")?])).flatten()
}

/// A host with a routed network that its LAN knows.
fn routed() -> TestHost {
    let host = TestHost::new();
    host.ok("network create dmz --mode routed --ipv4 10.63.0.1/24 --ipv6 2001:db8:63::1/64");
    host.lan.sh("ip route add 10.63.0.0/24 via 10.99.0.2; ip route add 2001:db8:63::/64 via 2001:db8:99::2");
    host
}

/// Whether flows work over IPv4 and over IPv6 as they should. What is not to work is tried first, so that a path which is
/// no path at all shows as soon as something is to work.
#[track_caller]
fn expect(who: &str, from: &Netns, to: &[IpAddr; 2], wanted: &[(Flow, [bool; 2])]) {
    let tries = |works: bool| {
        wanted.iter().flat_map(move |(flow, by_family)| {
            let addresses = to.iter().zip(by_family).filter(move |(_, wanted)| **wanted == works);
            addresses.map(move |(address, _)| (*flow, *address))
        })
    };
    // Each waits for an answer that does not come: all at once.
    let wrong: Vec<String> = thread::scope(|scope| {
        let begun: Vec<_> = tries(false)
            .map(|(flow, to)| {
                scope.spawn(move || flow.works(from, to).then(|| format!("{flow:?} from {who} to {to}")))
            })
            .collect();
        begun.into_iter().filter_map(|attempt| attempt.join().expect("an attempt")).collect()
    });
    assert!(wrong.is_empty(), "these work: {wrong:?}");
    for (flow, to) in tries(true) {
        wait::until(&format!("{flow:?} from {who} to {to}"), || flow.works(from, to).then_some(()));
    }
}

/// Runs `test` with bridge netfilter on and off, where the kernel has it.
fn with_and_without_bridge_netfilter(host: &TestHost, test: impl Fn()) {
    if !Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        println!("SKIPPED: this kernel has no br_netfilter; the test ran without it only");
        return test();
    }
    for on in ["1", "0"] {
        host.netns.sh(&format!(
            "sysctl -qw net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}"
        ));
        test();
    }
}

/// Takes every rule of a group away.
fn clear(host: &TestHost, group: &str) {
    while host.ok_json(&format!("group show {group}"))["spec"]["rules"][0].is_object() {
        host.ok(&format!("group rule delete {group} 1"));
    }
}

/// The LAN host's addresses.
const LAN: [&str; 2] = ["10.99.0.1", "2001:db8:99::1"];
const NO: [bool; 2] = [false, false];
const YES: [bool; 2] = [true, true];
const ONLY_V4: [bool; 2] = [true, false];
const ONLY_V6: [bool; 2] = [false, true];

#[test]
fn a_guest_gets_what_a_rule_allows_from_guests_the_lan_and_the_host() {
    let host = routed();
    host.ok("group create web");
    let a = plug(&host, "dmz", "a", "");
    let b = plug(&host, "dmz", "b", "--group web");
    let _servers = [a.netns(), b.netns(), &host.lan].map(|netns| Echo::serve(netns, &PORTS));
    with_and_without_bridge_netfilter(&host, || {
        let others = [("a", a.netns()), ("the LAN", &host.lan), ("the host", &host.netns)];
        for (who, from) in others {
            expect(who, from, &b.addresses, &[(Flow::Tcp(22), NO), (Flow::Udp(53), NO), (Flow::Ping, NO)]);
        }
        // What it begins itself is answered.
        expect(
            "b",
            b.netns(),
            &a.addresses,
            &[(Flow::Tcp(22), YES), (Flow::Udp(53), YES), (Flow::Ping, YES)],
        );
        for flow in [Flow::Tcp(22), Flow::Udp(53), Flow::Ping] {
            for lan in LAN {
                assert!(flow.works(b.netns(), lan.parse().expect("address")), "{flow:?} to {lan}");
            }
        }
        // Rules have an effect at once, each for its protocol, ports and remote only.
        host.ok("group rule add web --direction in --protocol tcp --port 22 --remote 10.63.0.0/24");
        host.ok("group rule add web --direction in --protocol tcp --port 22 --remote 2001:db8:99::/64");
        host.ok("group rule add web --direction in --protocol udp --port 5000-5010");
        let ports = [
            (Flow::Udp(4999), NO),
            (Flow::Udp(5000), YES),
            (Flow::Udp(5010), YES),
            (Flow::Udp(5011), NO),
            (Flow::Tcp(5000), NO),
            (Flow::Tcp(80), NO),
            (Flow::Ping, NO),
        ];
        for ((who, from), ssh) in others.into_iter().zip([ONLY_V4, ONLY_V6, ONLY_V4]) {
            expect(who, from, &b.addresses, &[&ports[..], &[(Flow::Tcp(22), ssh)]].concat());
        }
        host.ok("group rule add web --direction in --protocol icmp");
        host.ok("group rule delete web 3");
        for (who, from) in others {
            expect(who, from, &b.addresses, &[(Flow::Udp(5000), NO), (Flow::Ping, YES)]);
        }
        clear(&host, "web");
    });
    let drops = host.ok_json("port show dmz b")["status"]["drops"]["group-in"].as_u64();
    assert!(drops > Some(0), "{drops:?}");
    // Another group allows everything: the union counts. Out of all groups nothing is denied.
    host.ok("group create all");
    host.ok("group rule add all --direction in --protocol any");
    host.ok("port update dmz b --group web --group all");
    expect("a", a.netns(), &b.addresses, &[(Flow::Tcp(80), YES), (Flow::Udp(53), YES), (Flow::Ping, YES)]);
    host.ok("port update dmz b --group web");
    expect("a", a.netns(), &b.addresses, &[(Flow::Tcp(80), NO)]);
    host.ok("port update dmz b --no-group");
    expect("the LAN", &host.lan, &b.addresses, &[(Flow::Tcp(80), YES)]);
}

#[test]
fn a_guest_sends_what_a_rule_allows_and_answers_to_what_it_may_get() {
    let host = routed();
    host.ok("group create quiet --default-in allow --default-out deny");
    let a = plug(&host, "dmz", "a", "--group quiet");
    let b = plug(&host, "dmz", "b", "");
    let _servers = [a.netns(), b.netns(), &host.lan].map(|netns| Echo::serve(netns, &PORTS));
    let lan = LAN.map(|text| text.parse().expect("address"));
    with_and_without_bridge_netfilter(&host, || {
        let flows = |works| [(Flow::Tcp(80), works), (Flow::Udp(53), works), (Flow::Ping, works)];
        expect("a", a.netns(), &b.addresses, &flows(NO));
        expect("a", a.netns(), &lan, &flows(NO));
        for (who, from) in [("b", b.netns()), ("the LAN", &host.lan), ("the host", &host.netns)] {
            expect(who, from, &a.addresses, &flows(YES));
        }
        // The gateway's own services are not a matter of groups.
        for gateway in ["10.63.0.1", "2001:db8:63::1"] {
            assert!(Flow::Ping.works(a.netns(), gateway.parse().expect("address")), "{gateway}");
        }
        host.ok(&format!(
            "group rule add quiet --direction out --protocol tcp --port 80 --remote {}",
            b.addresses[0]
        ));
        host.ok("group rule add quiet --direction out --protocol udp --remote 2001:db8:99::/64");
        expect(
            "a",
            a.netns(),
            &b.addresses,
            &[(Flow::Tcp(80), ONLY_V4), (Flow::Tcp(22), NO), (Flow::Udp(53), NO)],
        );
        expect("a", a.netns(), &lan, &[(Flow::Tcp(80), NO), (Flow::Udp(53), ONLY_V6), (Flow::Ping, NO)]);
        clear(&host, "quiet");
    });
    let drops = host.ok_json("port show dmz a")["status"]["drops"]["group-out"].as_u64();
    assert!(drops > Some(0), "{drops:?}");
}

#[test]
fn a_remote_group_is_its_members_of_the_moment() {
    let host = TestHost::new();
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64");
    host.ok("group create web");
    host.ok("group create db");
    host.ok("group rule add db --direction in --protocol tcp --port 5000-5010 --remote-group web");
    let a = plug(&host, "lab", "a", "");
    let c = plug(&host, "lab", "c", "--group web");
    let b = plug(&host, "lab", "b", "--group db");
    let _servers = [a.netns(), b.netns(), c.netns()].map(|netns| Echo::serve(netns, &PORTS));
    let may = |works| [(Flow::Tcp(5005), works), (Flow::Tcp(22), NO), (Flow::Udp(5005), NO)];
    let a_may = |works| expect("a", a.netns(), &b.addresses, &may(works));
    let c_may = |works| expect("c", c.netns(), &b.addresses, &may(works));
    with_and_without_bridge_netfilter(&host, || {
        a_may(NO);
        c_may(YES);
        host.ok("port update lab a --group web");
        a_may(YES);
        host.ok("port update lab c --group db");
        c_may(NO);
        host.ok("port update lab a --no-group");
        a_may(NO);
        host.ok("port update lab c --group web");
    });
    // A member of the same address on another network is not meant.
    host.ok("network create lab2 --mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64");
    host.ok(&format!("port create lab2 a --group web --ip {} --ip {}", a.addresses[0], a.addresses[1]));
    a_may(NO);
    // The address of a member that is gone is nobody's.
    let second = plug(&host, "lab", "d", "--group web");
    expect("d", second.netns(), &b.addresses, &may(YES));
    let [v4, v6] = second.addresses;
    drop(second);
    host.ok("port delete lab d");
    host.ok(&format!("port create lab e --ip {v4} --ip {v6}"));
    let e = host.ok_json("port show lab e");
    let field = |name: &str| e["status"][name].as_str().expect(name).to_owned();
    let guest = Guest::plug(&host.netns, &field("interface"), &field("mac"));
    guest.addresses(&[&format!("{v4}/24"), &format!("{v6}/64")]);
    expect("e", &guest.netns, &b.addresses, &may(NO));
}

#[test]
fn the_services_of_an_isolated_network_are_no_matter_of_groups() {
    let host = TestHost::new();
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64 --dhcp on");
    host.ok("group create shut --default-in deny --default-out deny");
    let [a, b] = ["a", "b"].map(|name| plug(&host, "lab", name, "--group shut"));
    let _server = Echo::serve(b.netns(), &PORTS);
    for gateway in ["10.62.0.1", "fd00:62::1"] {
        let to = (gateway.parse::<IpAddr>().expect("address"), 53).into();
        wait::until("the name server", || Connection::open(a.netns(), to).map(drop));
    }
    expect("a", a.netns(), &b.addresses, &[(Flow::Tcp(53), NO), (Flow::Udp(53), NO), (Flow::Ping, NO)]);
}

#[test]
fn flows_go_on_while_netd_is_gone_and_where_the_host_tells_them_apart_without_their_rule() {
    let mut host = routed();
    host.ok("group create web");
    host.ok("group rule add web --direction in --protocol tcp --port 22");
    let a = plug(&host, "dmz", "a", "");
    let b = plug(&host, "dmz", "b", "--group web");
    let _server = Echo::serve(b.netns(), &PORTS);
    let open =
        |from: &Netns, to: IpAddr| wait::until("a connection", || Connection::open(from, (to, 22).into()));
    let mut running: Vec<_> =
        [a.netns(), &host.lan].into_iter().flat_map(|from| b.addresses.map(|to| open(from, to))).collect();
    let mut all_answer = |when: &str| {
        for (at, connection) in running.iter_mut().enumerate() {
            assert!(connection.answers(), "connection {at} {when}");
        }
    };
    all_answer("at first");
    // A question over UDP, whose answer comes when the rules have been written anew.
    let questions = [false, true].map(|v6| {
        let port = 1053 + u16::from(v6);
        let resolver = Datagrams::bind(a.netns(), v6, port);
        let asking = Datagrams::bind(b.netns(), v6, 0);
        asking.send((a.addresses[usize::from(v6)], port).into(), b"question");
        assert!(resolver.receives(b"question"));
        (resolver, asking, b.addresses[usize::from(v6)])
    });
    host.kill_netd();
    expect("a", a.netns(), &b.addresses, &[(Flow::Tcp(80), NO), (Flow::Tcp(22), YES)]);
    all_answer("without netd");
    host.start_netd();
    all_answer("with a new netd, which wrote the rules anew");
    for (resolver, asking, b) in &questions {
        resolver.send((*b, asking.port() ^ 1).into(), b"an answer to nothing");
        resolver.send((*b, asking.port()).into(), b"answer");
        assert!(asking.receives(b"answer"), "{b}");
    }
    host.ok("group rule delete web 1");
    for (who, from) in [("a", a.netns()), ("the LAN", &host.lan)] {
        expect(who, from, &b.addresses, &[(Flow::Tcp(22), NO)]);
    }
    all_answer("without the rule");
    // The record is as it was: the port is still in its group.
    assert_eq!(host.ok_json("port show dmz b")["spec"]["groups"][0], "web");
    host.ok("port update dmz b --no-group");
    expect("the LAN", &host.lan, &b.addresses, &[(Flow::Tcp(80), YES)]);
}

#[test]
fn no_frame_poses_as_an_answer_or_goes_round_by_the_gateway() {
    let host = routed();
    host.ok("group create web");
    host.ok("group create mute --default-in allow --default-out deny");
    let a = plug(&host, "dmz", "a", "");
    let b = plug(&host, "dmz", "b", "--group web");
    let _servers = [a.netns(), b.netns()].map(|netns| Echo::serve(netns, &PORTS));
    with_and_without_bridge_netfilter(&host, || {
        for v6 in [false, true] {
            let [from_a, to_b] = [&a, &b].map(|host| host.addresses[usize::from(v6)]);
            // b may send whatever it likes, so its answers come; but none that it has not asked for.
            let mut asked = Datagrams::bind(b.netns(), v6, 0);
            let mut never = Datagrams::bind(b.netns(), v6, 0);
            wait::until("an answer", || asked.answered((from_a, 53).into(), b"question").then_some(()));
            let dns = Datagrams::bind(a.netns(), v6, 1053);
            dns.send((to_b, asked.port()).into(), b"from another port");
            dns.send((to_b, never.port()).into(), b"never asked");
            assert!(asked.answered((from_a, 53).into(), b"again"));
            assert!(!asked.receives(b"from another port"));
            assert!(!never.receives(b"never asked"));
            // A datagram of several fragments has its answer too.
            let long = vec![b'x'; 4000];
            assert!(asked.answered((from_a, 53).into(), &long), "fragments of an answer are lost");
            assert!(never.answered((from_a, 53).into(), b"now"), "the path is there");
        }
        // By the gateway's MAC, the host would forward to the very bridge it came from.
        let [v4, v6] = b.addresses;
        a.netns()
            .sh(&format!("ip route add {v4}/32 via 10.63.0.1; ip -6 route add {v6}/128 via 2001:db8:63::1"));
        expect(
            "a by the gateway",
            a.netns(),
            &b.addresses,
            &[(Flow::Tcp(80), NO), (Flow::Udp(53), NO), (Flow::Ping, NO)],
        );
        host.ok("group rule add web --direction in --protocol any");
        expect("a by the gateway", a.netns(), &b.addresses, &[(Flow::Tcp(80), YES), (Flow::Udp(53), YES)]);
        host.ok("port update dmz a --group mute");
        expect("a by the gateway", a.netns(), &b.addresses, &[(Flow::Tcp(80), NO), (Flow::Udp(53), NO)]);
        host.ok("port update dmz a --no-group");
        clear(&host, "web");
        a.netns().sh(&format!("ip route del {v4}/32; ip -6 route del {v6}/128"));
    });
}

#[test]
fn on_a_bridged_network_the_host_is_a_station_as_any_other() {
    let host = TestHost::new();
    host.ok("network create lan --mode bridged --uplink up0");
    host.ok("group create web");
    host.ok("group rule add web --direction in --protocol tcp --port 22 --remote 10.99.0.0/24");
    // No address is recorded: the tap alone says whose the rules are.
    let (tap, mac) = {
        let port = host.ok_json("port create lan b --group web");
        let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
        (field("interface"), field("mac"))
    };
    let guest = Guest::plug(&host.netns, &tap, &mac);
    guest.addresses(&["10.99.0.11/24", "2001:db8:99::11/64"]);
    let addresses = ["10.99.0.11", "2001:db8:99::11"].map(|text| text.parse().expect("address"));
    let lan = LAN.map(|text| text.parse().expect("address"));
    let _servers = [&guest.netns, &host.lan, &host.netns].map(|netns| Echo::serve(netns, &PORTS));
    with_and_without_bridge_netfilter(&host, || {
        for (who, from) in [("the LAN", &host.lan), ("the host", &host.netns)] {
            let wanted =
                [(Flow::Tcp(22), ONLY_V4), (Flow::Tcp(80), NO), (Flow::Udp(53), NO), (Flow::Ping, NO)];
            expect(who, from, &addresses, &wanted);
        }
        let all = |works| [(Flow::Tcp(80), works), (Flow::Udp(53), works), (Flow::Ping, works)];
        let the_host = ["10.99.0.2", "2001:db8:99::2"].map(|text| text.parse().expect("address"));
        expect("b", &guest.netns, &lan, &all(YES));
        expect("b", &guest.netns, &the_host, &all(YES));
        host.ok("group create mute --default-out deny");
        host.ok("port update lan b --group web --group mute");
        expect("b", &guest.netns, &lan, &all(NO));
        expect("b", &guest.netns, &the_host, &all(NO));
        expect("the host", &host.netns, &addresses, &[(Flow::Tcp(22), ONLY_V4)]);
        host.ok("port update lan b --group web");
        host.ok("group delete mute");
    });
}

/// A number that a new table has not got from an old one.
fn handle(host: &TestHost) -> Option<u64> {
    let tables = host.netns.json("nft -j list tables");
    let table = tables["nftables"].as_array()?.iter().map(|object| &object["table"]);
    table.filter(|t| t["family"] == "bridge" && t["name"] == "kvmctl").find_map(|t| t["handle"].as_u64())
}

#[test]
fn while_the_rules_are_replaced_nothing_passes_that_no_rule_allows() {
    const DATAGRAMS: usize = 50_000;
    const REPLACEMENTS: usize = 5;
    let host = routed();
    // With it, the inet table would judge the same once more.
    host.netns.sh("f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 0 > $f");
    host.ok("group create web");
    // The protocol and the other end are allowed, the port is not.
    host.ok("group rule add web --direction in --protocol udp --port 5000 --remote 10.63.0.0/24");
    host.ok("group rule add web --direction in --protocol udp --port 5000 --remote-group web");
    let [a, b] = ["a", "b"].map(|name| plug(&host, "dmz", name, "--group web"));
    let (allowed, denied) =
        (Datagrams::bind(b.netns(), false, 5000), Datagrams::bind(b.netns(), false, 5001));
    let sender = Datagrams::bind(a.netns(), false, 0);
    let to = |port| (b.addresses[0], port).into();
    let (done, replaced) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut sent = 0;
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let before = handle(&host);
                host.netns.sh("nft add chain bridge kvmctl theirs");
                wait::until("other tables", || handle(&host).filter(|now| Some(*now) != before));
                replaced.fetch_add(1, Ordering::Relaxed);
            }
        });
        while !replacing.is_finished()
            && (sent < DATAGRAMS || replaced.load(Ordering::Relaxed) < REPLACEMENTS)
        {
            sender.send(to(5001), b"denied");
            sent += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    wait::until("what is allowed", || {
        sender.send(to(5000), b"allowed");
        allowed.receives(b"allowed").then_some(())
    });
    assert!(!denied.receives(b"denied"), "of {sent} datagrams some got through");
    println!("0 of {sent} datagrams through, the rules replaced {} times", replaced.into_inner());
}

/// All members of our sets and maps, without what traffic has left, as nft tells them.
fn members(host: &TestHost) -> Vec<String> {
    let mut found = Vec::new();
    for family in ["bridge", "inet"] {
        let listing = host.netns.json(&format!("nft -j list table {family} kvmctl"));
        for object in listing["nftables"].as_array().expect("objects") {
            let set = if object["map"].is_object() { &object["map"] } else { &object["set"] };
            let name = set["name"].as_str().unwrap_or_default();
            if !["kv_flow", "kv_drop_", "kv_limit_", "kv_seen"].iter().any(|sort| name.starts_with(sort)) {
                let members = set["elem"].as_array().into_iter().flatten();
                found.extend(members.map(|member| format!("{family} {name} {member}")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn damage_to_what_groups_have_in_the_kernel_is_repaired_and_nothing_stays_of_them() {
    let mut host = routed();
    host.ok("port create dmz other");
    let bare = members(&host);
    host.ok("group create web --default-out deny");
    host.ok("group rule add web --direction in --protocol tcp --port 22-80 --remote 10.0.0.0/8");
    host.ok("group rule add web --direction in --protocol any --remote-group web");
    host.ok("group rule add web --direction out --protocol icmp");
    assert_eq!(members(&host), bare, "a group that no port is in");
    let b = plug(&host, "dmz", "b", "--group web");
    let a = plug(&host, "dmz", "a", "--group web");
    let whole = members(&host);
    let address = b.addresses[0];
    let number = host.netns.sh(&format!(
        "nft list map bridge kvmctl kv_profile | grep -o '\"{}\" : [0-9a-f:]*' | cut -d' ' -f3",
        b.tap
    ));
    let number = number.trim();
    for damage in [
        "nft flush set bridge kvmctl kv_group_in".to_owned(),
        format!("nft delete element bridge kvmctl kv_group_out {{ {} }}", b.tap),
        "nft flush map bridge kvmctl kv_profile".to_owned(),
        "nft flush set bridge kvmctl kv_in4_port".to_owned(),
        "nft flush set bridge kvmctl kv_out6".to_owned(),
        format!("nft add element bridge kvmctl kv_in4_port {{ {number} . tcp . 0.0.0.0/0 . 100-200 }}"),
        format!("nft add element bridge kvmctl kv_in4 {{ {number} . 1-5 . 192.0.2.0/24 }}"),
        format!("nft delete element inet kvmctl kv_guest_in4 {{ kvb-dmz . {address} }}"),
        "nft flush map inet kvmctl kv_profile6".to_owned(),
        "nft flush set inet kvmctl kv_via_in4_port".to_owned(),
        "nft flush map bridge kvmctl kv_in_peer4".to_owned(),
        "nft flush set bridge kvmctl kv_in_peer_port".to_owned(),
        "nft flush map inet kvmctl kv_via_in_peer6".to_owned(),
        format!(
            "nft add element bridge kvmctl kv_in_peer4 {{ {number} . 192.0.2.9 : {} }}",
            number.replace(":0", ":1")
        ),
        format!("nft add element bridge kvmctl kv_in_peer {{ {} . 132 }}", number.replace(":0", ":9")),
        format!("nft add element inet kvmctl kv_via_in6 {{ {number} . ipv6-icmp . 2001:db8:1::/48 }}"),
        "nft flush chain bridge kvmctl kv_in_judge".to_owned(),
        "nft flush chain inet kvmctl kv_via_in_judge".to_owned(),
        "nft flush ruleset".to_owned(),
    ] {
        host.netns.sh(&damage);
        wait::until(&format!("repair of `{damage}`"), || {
            let listed = host.netns.succeeds("nft list table bridge kvmctl && nft list table inet kvmctl");
            (listed && members(&host) == whole).then_some(())
        });
    }
    host.kill_netd();
    host.netns.sh("nft delete table bridge kvmctl; nft flush set inet kvmctl kv_guest_in4");
    host.start_netd();
    assert_eq!(members(&host), whole);
    // In a changed group, and back; a rule more and less.
    host.ok("group create open --default-in allow");
    host.ok("port update dmz b --group open --group web");
    host.ok("group rule add open --direction out --protocol udp --port 53");
    assert_ne!(members(&host), whole);
    host.ok("group rule delete open 1");
    host.ok("port update dmz b --group web");
    assert_eq!(members(&host), whole);
    drop((a, b));
    host.ok("port delete dmz b");
    host.ok("port delete dmz a");
    assert_eq!(members(&host), bare);
    host.ok("group delete web");
    host.ok("group delete open");
    assert_eq!(host.ok("group list -o name").trim(), "");
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let host = TestHost::new();
    host.ok("network create lan --mode nat");
    host.ok("group create web");
    host.ok("group create db");
    host.ok("group rule add db --direction in --protocol tcp --port 5432 --remote-group web");
    host.ok("group rule add db --direction in --protocol tcp --port 22");
    host.ok("port create lan a --group db");
    // The very same again is no error.
    host.ok("group create web");
    host.ok("port create lan a --group db");
    let before = (host.ok("group list -o json"), host.ok("port list -o json"), members(&host));
    let add: &[&str] = &["group", "rule", "add", "web", "--direction", "in", "--protocol"];
    let rule = |rest: &'static [&'static str]| [add, rest].concat();
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["group", "delete", "db"], 1, "`a` of network `lan`"),
        (vec!["group", "delete", "web"], 1, "group `db`"),
        (vec!["group", "delete", "nobody"], 1, "no group `nobody`"),
        (vec!["group", "show", "nobody"], 1, "no group `nobody`"),
        (vec!["group", "create", "web", "--default-in", "allow"], 1, "another spec"),
        (vec!["group", "create", "../web"], 2, "not a valid name"),
        (vec!["port", "create", "lan", "b", "--group", "nobody"], 1, "no group `nobody`"),
        (vec!["port", "create", "lan", "b", "--group", "web", "--filter", "off"], 1, "without the filter"),
        (vec!["port", "update", "lan", "a", "--group", "web", "--group", "nobody"], 1, "no group `nobody`"),
        (vec!["port", "update", "lan", "a", "--filter", "off"], 1, "without the filter"),
        (vec!["port", "update", "lan", "a", "--group", "web", "--no-group"], 2, "cannot be used with"),
        (rule(&["tcp", "--port", "0"]), 2, "1 to 65535"),
        (rule(&["tcp", "--port", "70000"]), 2, "1 to 65535"),
        (rule(&["tcp", "--port", "23-22"]), 2, "22-23"),
        (rule(&["tcp", "--port", "22-"]), 2, "1 to 65535"),
        (rule(&["icmp", "--port", "8"]), 1, "only TCP and UDP have ports"),
        (rule(&["any", "--port", "8"]), 1, "only TCP and UDP have ports"),
        (rule(&["sctp"]), 2, "tcp, udp, icmp, any"),
        (rule(&["tcp", "--remote", "10.0.0.1/8"]), 1, "10.0.0.0/8"),
        (rule(&["tcp", "--remote", "10.0.0.0/8\n, 0.0.0.0/0"]), 1, "not an address prefix"),
        (rule(&["tcp", "--remote", "10.0.0.0/8", "--remote-group", "db"]), 2, "cannot be used with"),
        (rule(&["tcp", "--remote-group", "nobody"]), 1, "no group `nobody`"),
        (
            vec!["group", "rule", "add", "nobody", "--direction", "in", "--protocol", "tcp"],
            1,
            "no group `nobody`",
        ),
        (vec!["group", "rule", "delete", "web", "1"], 1, "no rule `1`"),
        (vec!["group", "rule", "delete", "db", "r-00000000"], 1, "no rule `r-00000000`"),
        (
            vec!["group", "rule", "add", "db", "--direction", "in", "--protocol", "tcp", "--port", "22"],
            1,
            "the very same as rule 2",
        ),
    ];
    for (arguments, code, words) in &cases {
        let outcome = host.kvmctl(arguments);
        let said = &outcome.stderr;
        assert_eq!(outcome.code, *code, "kvmctl {arguments:?}: {said}");
        assert!(said.contains(words), "kvmctl {arguments:?} does not say `{words}`: {said}");
    }
    let nine: Vec<String> = (0..9).map(|n| format!("--group=g{n}")).collect();
    let nine: Vec<&str> =
        ["port", "create", "lan", "b"].into_iter().chain(nine.iter().map(String::as_str)).collect();
    assert!(host.kvmctl(&nine).stderr.contains("8 is the most"));
    assert_eq!(before, (host.ok("group list -o json"), host.ok("port list -o json"), members(&host)));
    // By id, as `show` has it.
    let id = host.ok_json("group show db")["spec"]["rules"][0]["id"].as_str().expect("id").to_owned();
    host.ok(&format!("group rule delete db {id}"));
    host.ok("group delete web");
}

/// The address that a guest forms of a prefix of 64 bits and its MAC.
fn formed(prefix: &str, mac: &str) -> IpAddr {
    let [a, b, c, d, e, f] = integration_tests::frames::mac(mac);
    let low = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let high: std::net::Ipv6Addr = prefix.parse().expect("a prefix");
    IpAddr::V6((u128::from(high) | u128::from(low)).into())
}

#[test]
fn the_address_that_a_guest_forms_by_itself_is_judged_as_its_own() {
    let host = routed();
    host.ok("group create web");
    let b = plug(&host, "dmz", "b", "--ip 2001:db8:63::10 --group web");
    let mac = host.ok_json("port show dmz b")["status"]["mac"].as_str().expect("MAC").to_owned();
    let other = formed("2001:db8:63::", &mac);
    b.guest.netns.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=0");
    b.guest.netns.sh(&format!("ip address replace {other}/64 dev eth0 nodad"));
    let _server = Echo::serve(b.netns(), &PORTS);
    let both = [b.addresses[0], other];
    for (who, from) in [("the LAN", &host.lan), ("the host", &host.netns)] {
        expect(who, from, &both, &[(Flow::Tcp(80), NO), (Flow::Ping, NO)]);
    }
    host.ok("group rule add web --direction in --protocol tcp --port 80");
    for (who, from) in [("the LAN", &host.lan), ("the host", &host.netns)] {
        expect(who, from, &both, &[(Flow::Tcp(80), YES), (Flow::Ping, NO)]);
    }
}

#[test]
fn a_forward_does_not_lead_around_a_group() {
    let host = routed();
    host.ok("group create web");
    let b = plug(&host, "dmz", "b", "--group web");
    let _server = Echo::serve(b.netns(), &PORTS);
    host.ok("forward add dmz --protocol tcp --listen 8080 --to b:80");
    let uplink = ["10.99.0.2", "2001:db8:99::2"].map(|text| text.parse().expect("address"));
    let all = |wanted| {
        for (who, from) in [("the host", &host.netns), ("the LAN", &host.lan)] {
            expect(who, from, &uplink, &[(Flow::Tcp(8080), wanted)]);
        }
    };
    with_and_without_bridge_netfilter(&host, || {
        all(NO);
        host.ok("group rule add web --direction in --protocol tcp --port 80");
        all(YES);
        clear(&host, "web");
    });
}

#[test]
fn only_the_gateways_dhcp_server_is_heard_without_a_rule() {
    let host = routed();
    host.ok("group create web");
    let b = plug(&host, "dmz", "b", "--group web");
    let client = Datagrams::bind(b.netns(), false, 68);
    let stranger = Datagrams::bind(&host.lan, false, 67);
    let to = (b.addresses[0], 68).into();
    stranger.send(to, b"an offer");
    assert!(!client.receives(b"an offer"));
    host.ok("group rule add web --direction in --protocol udp --port 68");
    wait::until("the offer", || {
        stranger.send(to, b"an offer");
        client.receives(b"an offer").then_some(())
    });
}
