//! Guests that configure nothing: addresses, names and routes come to them by DHCP, DNS and router advertisements.

use integration_tests::{
    client::{dig, resolver},
    guest::Guest,
    host::{Outcome, TestHost, VMD_UID},
    wait,
};
use std::time::Instant;

/// A guest on a port of its own, not yet configured.
fn guest(host: &TestHost, network: &str, name: &str) -> (Guest, serde_json::Value) {
    let port = host.ok_json(&format!("port create {network} {name}"));
    (plug(host, &port), port["status"].clone())
}

fn plug(host: &TestHost, port: &serde_json::Value) -> Guest {
    let status = &port["status"];
    Guest::plug(&host.netns, status["interface"].as_str().expect("tap"), status["mac"].as_str().expect("MAC"))
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("text")
}

fn refused(host: &TestHost, arguments: &str) -> Outcome {
    let outcome = host.kvmctl(&arguments.split_whitespace().collect::<Vec<_>>());
    assert_eq!(outcome.code, 1, "{arguments}: {}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stderr.contains("hint:"), "{arguments}: {}", outcome.stderr);
    outcome
}

#[test]
fn a_guest_gets_addresses_names_and_routes_on_a_nat_network() {
    let host = TestHost::new();
    let _resolver = resolver(&host.lan);
    let begin = Instant::now();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64 --mtu 1400 --dns 10.99.0.1 --lease-time 10m");
    println!("network create with DHCP and DNS: {:?}", begin.elapsed());
    assert_eq!(dig(&host.netns, "10.60.0.1", "outside.test"), ["203.0.113.9"], "it answers when created");
    let (a, port_a) = guest(&host, "n", "web-0");
    let (b, port_b) = guest(&host, "n", "db");
    let asked = Instant::now();
    let told = a.dhcp4(&[]).expect("a lease");
    println!("first DHCP exchange: {:?}; since network create: {:?}", asked.elapsed(), begin.elapsed());
    for (key, value) in [
        ("ip", text(&port_a["ipv4_address"])),
        ("mask", "24"),
        ("router", "10.60.0.1"),
        ("dns", "10.60.0.1"),
        ("domain", "n.internal"),
        ("search", "n.internal"),
        ("mtu", "1400"),
        ("hostname", "web-0"),
        ("lease", "600"),
        ("serverid", "10.60.0.1"),
    ] {
        assert_eq!(told[key], value, "{key}: {told:?}");
    }

    // IPv6 by router advertisements alone, and the same by DHCPv6.
    let (v6_a, v6_b) = (text(&port_a["ipv6_address"]), text(&port_b["ipv6_address"]));
    a.has_address(v6_a);
    b.has_address(v6_b);
    assert_eq!(b.netns.sh("cat /sys/class/net/eth0/mtu /proc/sys/net/ipv6/conf/eth0/mtu"), "1500\n1400\n");
    b.dhcp4(&[]).expect("a lease");
    let route = a.netns.sh("ip -6 route show default");
    assert!(route.contains("via fe80:") && route.contains("proto ra"), "{route}");
    let told = a.dhcp6();
    assert_eq!((told["ip"].as_str(), told["dns"].as_str()), (v6_a, "fd00:60::1"));
    assert_eq!(told["search"].trim_end_matches('.'), "n.internal");

    // Names of guests, in full and bare, both ways, by both families of the server; and of the outside.
    let v4_b = text(&port_b["ipv4_address"]);
    for server in ["10.60.0.1", "fd00:60::1"] {
        assert_eq!(a.dig(server, "db.n.internal"), [v4_b]);
        assert_eq!(a.dig(server, "db"), [v4_b]);
        assert_eq!(a.dig(server, "db AAAA"), [v6_b]);
        assert_eq!(a.dig(server, "+tcp db.n.internal AAAA"), [v6_b]);
        assert_eq!(a.dig(server, &format!("-x {v4_b}")), ["db.n.internal."]);
        assert_eq!(a.dig(server, &format!("-x {v6_b}")), ["db.n.internal."]);
        assert_eq!(a.dig(server, "outside.test"), ["203.0.113.9"]);
        assert_eq!(a.dig(server, "outside.test AAAA"), ["2001:db8:9::9"]);
        assert_eq!(a.dig(server, "nobody.n.internal"), Vec::<String>::new());
    }
    for address in [v4_b, v6_b, "10.60.0.1", "fd00:60::1", "10.99.0.1", "2001:db8:99::1"] {
        wait::until(&format!("an answer from {address}"), || {
            a.netns.succeeds(&format!("ping -n -c 1 -W 1 {address}")).then_some(())
        });
    }

    let shown = host.ok_json("network show n");
    let service = &shown["status"]["service"];
    assert_eq!((text(&service["state"]), text(&service["domain"])), ("running", "n.internal"));
    assert_eq!(host.servers("n"), [u32::try_from(service["pid"].as_u64().expect("pid")).expect("pid")]);
    let leases = host.ok_json("network leases n");
    let lease = |address: &str| {
        leases.as_array().expect("leases").iter().find(|lease| lease["address"] == address).cloned()
    };
    for address in [text(&port_a["ipv4_address"]), v6_a] {
        let lease = lease(address).unwrap_or_else(|| panic!("no lease of {address}: {leases}"));
        assert_eq!((text(&lease["port"]), text(&lease["hostname"])), ("web-0", "web-0"));
        assert_eq!(lease["mac"], port_a["mac"]);
        assert!(text(&lease["expire_time"]).starts_with("20"));
    }
    let evidence = host.ok_json("port show n web-0")["status"]["addresses"].clone();
    let of = |address: &str| {
        let found = evidence.as_array().expect("addresses").iter().find(|a| a["address"] == address);
        found.expect("address")["evidence"].to_string()
    };
    assert_eq!(of(text(&port_a["ipv4_address"])), r#"["static","dhcp","observed"]"#);
    assert!(of(v6_a).contains("dhcp"), "{evidence}");
}

#[test]
fn prefixes_of_other_lengths_and_addresses_that_were_asked_for() {
    let host = TestHost::new();
    let pings = |guest: &Guest, from: &str, to: &str| {
        wait::until(&format!("an answer from {to} to {from}"), || {
            guest.netns.succeeds(&format!("ping -n -c 1 -W 1 -I {from} {to}")).then_some(())
        });
    };
    // Too long for an address made of a MAC: DHCPv6 alone.
    host.ok("network create long --mode routed --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/80");
    let (ada, port) = guest(&host, "long", "ada");
    let own = text(&port["ipv6_address"]);
    assert_eq!(ada.dhcp6()["ip"], own);
    wait::until("a route", || ada.netns.sh("ip -6 route show default").contains("proto ra").then_some(()));
    let shown = ada.netns.sh("ip -6 address show dev eth0 scope global");
    assert_eq!(shown.matches("inet6").count(), 1, "{shown}");
    pings(&ada, own, "fd00:60::1");
    host.lan.sh("ip route add fd00:60::/80 via 2001:db8:99::2");
    pings(&ada, own, "2001:db8:99::1");

    // A shorter one: the /64 of the gateway.
    host.ok("network create short --mode routed --ipv4 10.61.0.1/24 --ipv6 fd00:61:0:7::1/48");
    let (bob, port) = guest(&host, "short", "bob");
    let own = text(&port["ipv6_address"]);
    assert!(own.starts_with("fd00:61:0:7:"), "{own}");
    bob.has_address(own);
    assert_eq!(bob.dhcp6()["ip"], own);

    // Asked for: by DHCP that one; the guest forms another of its MAC, and may use both.
    let fixed = host.ok_json("port create short eve --ip 10.61.0.77 --ip fd00:61:0:7::77");
    let eve = plug(&host, &fixed);
    assert_eq!(eve.dhcp4(&[]).expect("a lease")["ip"], "10.61.0.77");
    assert_eq!(eve.dhcp6()["ip"], "fd00:61:0:7::77");
    assert_eq!(bob.dig("fd00:61:0:7::1", "eve AAAA"), ["fd00:61:0:7::77"]);
    let formed = wait::until("an address made of the MAC", || {
        let shown = eve.netns.json("ip -j -6 address show dev eth0 scope global -tentative");
        let all = shown[0]["addr_info"].as_array()?.clone();
        all.iter().filter_map(|a| a["local"].as_str()).find(|a| *a != "fd00:61:0:7::77").map(str::to_owned)
    });
    for from in ["fd00:61:0:7::77", &formed] {
        pings(&eve, from, "fd00:61:0:7::1");
        pings(&eve, from, own);
    }
}

#[test]
fn an_unknown_mac_gets_no_address_and_a_port_that_goes_takes_its_names_along() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    let (watcher, _) = guest(&host, "n", "watcher");
    watcher.dhcp4(&[]).expect("a lease");
    let stranger = host.ok_json("port create n router --filter off");
    let stranger = Guest::plug(&host.netns, text(&stranger["status"]["interface"]), "52:54:00:77:77:77");
    assert_eq!(stranger.dhcp4(&[]), None);

    // A port that held no lease, and one that did.
    host.ok("port create n quiet");
    let (a, port) = guest(&host, "n", "web-0");
    let address = text(&port["ipv4_address"]).to_owned();
    a.dhcp4(&[]).expect("a lease");
    let _ = a.dhcp6();
    wait::until("the names", || (watcher.dig("10.60.0.1", "web-0") == [address.as_str()]).then_some(()));
    let server = host.servers("n");
    drop(a);
    for name in ["quiet", "web-0"] {
        host.ok(&format!("port delete n {name}"));
        wait::until(&format!("the name of {name} to go"), || {
            let answers = |question: &str| watcher.dig("10.60.0.1", question);
            (answers(name).is_empty() && answers("watcher").len() == 1).then_some(())
        });
    }
    wait::until("the leases to go", || {
        (host.ok_json("network leases n").as_array().expect("leases").len() == 1).then_some(())
    });
    assert_eq!(host.servers("n"), server, "the same process serves the others all the time");
    assert_eq!(watcher.dig("10.60.0.1", &format!("-x {address}")), Vec::<String>::new());
    let files = integration_tests::census::left_in(&host, "netd-run/n/hosts");
    assert_eq!(files.len(), 2, "{files:?}");

    // The same port again: the same address, for a client with another DUID too.
    let (a, again) = guest(&host, "n", "web-0");
    assert_eq!(a.dhcp4(&[]).expect("a lease")["ip"], address);
    assert_eq!(a.dhcp6()["ip"], text(&again["ipv6_address"]));
}

#[test]
fn what_a_client_calls_itself_changes_nothing() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (a, port_a) = guest(&host, "n", "ada");
    let (b, port_b) = guest(&host, "n", "bob");
    let (v4_a, v4_b) = (text(&port_a["ipv4_address"]), text(&port_b["ipv4_address"]));
    a.dhcp4(&[]).expect("a lease");
    // Another guest's name; control characters, a line end and what looks like a lease; as long as one option can be.
    let lease_like = "bob\n1795627469 52:54:00:00:00:01 10.60.0.66 evil *\x1b[31m";
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    let fqdn = format!("0x51:000000{}", hex("ada.n.internal"));
    for option in [
        "hostname:ada".to_owned(),
        "hostname:evil".to_owned(),
        format!("0x0c:{}", hex(lease_like)),
        format!("0x0c:{}", hex(&"x".repeat(255))),
        format!("0x3d:{}", hex(lease_like)),
        fqdn,
    ] {
        let told = b.dhcp4(&["-x", &option]).unwrap_or_else(|| panic!("no lease with {option}"));
        assert_eq!((told["ip"].as_str(), told["hostname"].as_str()), (v4_b, "bob"), "{option}");
    }
    let far = long_host_name(&b, text(&port_b["mac"]));
    assert!(far.windows(4).any(|bytes| bytes == v4_b.parse::<std::net::Ipv4Addr>().expect("IPv4").octets()));
    assert_eq!(a.dig("10.60.0.1", "ada"), [v4_a]);
    assert_eq!(a.dig("10.60.0.1", "bob.n.internal"), [v4_b]);
    assert_eq!(a.dig("10.60.0.1", &format!("-x {v4_b}")), ["bob.n.internal."]);
    for nobody in ["evil", "evil.n.internal", &format!("{}.n.internal", "x".repeat(63))] {
        assert_eq!(a.dig("10.60.0.1", nobody), Vec::<String>::new(), "{nobody}");
    }
    let shown = host.ok("network leases n");
    assert!(!shown.contains("evil") && !shown.contains('\x1b') && shown.contains(v4_b), "{shown}");
    assert_eq!(host.ok_json("network leases n").as_array().expect("leases").len(), 2);
    // Names that mean something in the server's own configuration.
    for name in ["ignore", "infinite", "1h", "42"] {
        let (odd, port) = guest(&host, "n", name);
        let told = odd.dhcp4(&[]).unwrap_or_else(|| panic!("no lease for {name}"));
        assert_eq!((told["ip"].as_str(), told["hostname"].as_str()), (text(&port["ipv4_address"]), name));
        assert_eq!(a.dig("10.60.0.1", &format!("{name}.n.internal")), [text(&port["ipv4_address"])]);
    }
}

/// Discovers with a host name of 300 bytes in two options (RFC 3396); the server's offer.
fn long_host_name(guest: &Guest, mac: &str) -> Vec<u8> {
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("MAC")).collect();
    let mut message = vec![1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x80, 0];
    message.resize(28, 0);
    message.extend(&mac);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 12, 255]);
    message.extend([b'y'; 255]);
    message.extend([12, 45]);
    message.extend([b'y'; 45]);
    message.push(255);
    guest.netns.sh("ip route replace 255.255.255.255/32 dev eth0");
    let socket = guest.netns.enter(|| std::net::UdpSocket::bind("0.0.0.0:68").expect("bind"));
    socket.set_broadcast(true).expect("broadcast");
    socket.set_nonblocking(true).expect("socket");
    wait::until("an offer", || {
        socket.send_to(&message, "255.255.255.255:67").expect("send");
        std::thread::park_timeout(std::time::Duration::from_millis(100));
        let mut offer = vec![0; 1500];
        let length = socket.recv(&mut offer).ok()?;
        offer.truncate(length);
        Some(offer)
    })
}

#[test]
fn a_server_that_dies_stops_or_loses_its_leases_is_replaced() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64 --dhcp on");
    for network in ["n", "lab"] {
        let (a, port) = guest(&host, network, "ada");
        let own = text(&port["ipv4_address"]);
        let server = if network == "n" { "10.60.0.1" } else { "10.62.0.1" };
        a.dhcp4(&[]).expect("a lease");
        for damage in [
            "kill -KILL PID",
            "kill -STOP PID",
            "kill -TERM PID",
            "rm LEASES",
            "truncate -s 0 LEASES; kill -KILL PID",
        ] {
            let before = host.servers(network);
            let [pid] = before.as_slice() else { panic!("{before:?}") };
            let leases = host.path(&format!("netd-run/{network}/leases"));
            let begin = Instant::now();
            host.netns.sh(&damage.replace("PID", &pid.to_string()).replace("LEASES", &leases));
            wait::until(&format!("another server after {damage}"), || {
                let now = host.servers(network);
                (now.len() == 1 && now != before && a.dig(server, "ada") == [own]).then_some(())
            });
            println!("{network}: answers again {:?} after `{damage}`", begin.elapsed());
            assert_eq!(a.dhcp4(&[]).expect("a lease")["ip"], own, "{damage}");
        }
        assert_eq!(host.ok_json(&format!("network show {network}"))["status"]["state"], "ready");
    }
}

/// A stand-in for dnsmasq that says when it began, and why it does not like it here.
fn grumbler(host: &TestHost) -> String {
    let program = host.path("grumbler");
    let script = "#!/bin/sh\ndate +%s%N >&2\necho 'grumbler: no \x1b[31mmood today' >&2\nexit 3\n";
    std::fs::write(&program, script).expect("program");
    host.netns.sh(&format!("chmod 755 {program}"));
    program
}

#[test]
fn a_server_that_refuses_is_quoted_and_leaves_nothing() {
    let mut host = TestHost::bare();
    host.netd_arguments = vec!["--dnsmasq".into(), grumbler(&host)];
    host.start_netd();
    let outcome = refused(&host, "network create n --mode nat");
    assert!(outcome.stderr.contains("mood today") && !outcome.stderr.contains('\x1b'), "{}", outcome.stderr);
    assert_eq!(host.ok_json("network list"), serde_json::json!([]));
    assert_eq!(integration_tests::census::left_in(&host, "netd-run"), Vec::<String>::new());
    assert!(!host.netns.succeeds("ip link show kvb-n"));
}

#[test]
fn a_server_that_keeps_dying_is_started_at_growing_intervals() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.kill_netd();
    host.netns.sh(&format!("kill -KILL {}", host.servers("n")[0]));
    host.netd_arguments = vec!["--dnsmasq".into(), grumbler(&host)];
    host.start_netd();
    let mut starts: Vec<u64> = Vec::new();
    wait::until("four starts", || {
        // Each start has a log of its own. One that is missed makes a gap longer.
        let log = std::fs::read_to_string(host.path("netd-run/n/dnsmasq.log")).unwrap_or_default();
        let began = log.split_once('\n').and_then(|(first, _)| first.parse().ok());
        starts.extend(began.filter(|time| !starts.contains(time)));
        (starts.len() >= 4).then_some(())
    });
    let gaps: Vec<_> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    // At least what the pauses are; more on a busy machine.
    assert!(gaps[0] >= 500 && gaps[1] >= 1_000 && gaps[2] >= 2_000, "{gaps:?} ms");
    // While it is being started it has no error.
    wait::until("its last words", || {
        let error = host.ok_json("network show n")["status"]["error"].to_string();
        error.contains("mood today").then_some(())
    });
}

#[test]
fn without_the_program_a_network_is_made_only_without_dhcp() {
    let mut host = TestHost::bare();
    host.netd_arguments = vec!["--dnsmasq".into(), "no-such-program".into()];
    host.start_netd();
    for mode in ["nat", "routed --ipv4 10.60.0.1/24", "isolated --ipv4 10.60.0.1/24 --dhcp on"] {
        let outcome = refused(&host, &format!("network create n --mode {mode}"));
        assert!(outcome.stderr.contains("--dhcp off") && outcome.stderr.contains("dnsmasq-base"));
        assert_eq!(host.ok_json("network list"), serde_json::json!([]));
    }
    let made = host.ok_json("network create n --mode nat --dhcp off");
    assert_eq!(made["status"]["service"], serde_json::Value::Null);
    refused(&host, "network leases n");
}

#[test]
fn a_network_whose_server_cannot_run_is_degraded_until_it_can() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.kill_netd();
    for pid in host.servers("n") {
        host.netns.sh(&format!("kill -KILL {pid}"));
    }
    let everywhere =
        host.netns.enter(|| wait::until("port 53", || std::net::UdpSocket::bind("0.0.0.0:53").ok()));
    host.start_netd();
    let shown = host.ok_json("network show n");
    let status = &shown["status"];
    assert_eq!((text(&status["state"]), text(&status["service"]["state"])), ("degraded", "failed"));
    assert!(text(&status["error"]).contains("Address already in use"), "{status}");
    drop(everywhere);
    wait::until("the network to be ready", || {
        (host.ok_json("network show n")["status"]["state"] == "ready").then_some(())
    });
    assert_eq!(host.servers("n").len(), 1);
}

#[test]
fn netd_is_killed_and_its_servers_go_on_and_are_taken_over() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24 --dhcp on");
    let (a, port_a) = guest(&host, "n", "ada");
    let (b, port_b) = guest(&host, "lab", "bob");
    a.dhcp4(&[]).expect("a lease");
    b.dhcp4(&[]).expect("a lease");
    let leases = host.ok("network leases n");
    let before = [host.servers("n"), host.servers("lab")];
    for _ in 0..3 {
        host.kill_netd();
        // Without netd guests are served all the same.
        assert_eq!(b.dhcp4(&[]).expect("a lease")["ip"], text(&port_b["ipv4_address"]));
        assert_eq!(a.dig("10.60.0.1", "ada"), [text(&port_a["ipv4_address"])]);
        host.start_netd();
    }
    assert_eq!([host.servers("n"), host.servers("lab")], before);
    assert_eq!(host.ok("network leases n"), leases);
    // It is looked after as before.
    host.netns.sh(&format!("kill -KILL {}", before[0][0]));
    wait::until("another server", || {
        let now = host.servers("n");
        let ready = host.ok_json("network show n")["status"]["state"] == "ready";
        (ready && now.len() == 1 && now != before[0]).then_some(())
    });
    // Killed with its server stopped, which no signal but one ends.
    host.kill_netd();
    let stopped = host.servers("n");
    host.netns.sh(&format!("kill -STOP {}", stopped[0]));
    host.start_netd();
    wait::until("another server", || {
        (host.servers("n").len() == 1 && host.servers("n") != stopped).then_some(())
    });
    assert_eq!(a.dhcp4(&[]).expect("a lease")["ip"], text(&port_a["ipv4_address"]));
    for network in ["n", "lab"] {
        host.ok(&format!("network delete {network} --force"));
        assert_eq!(host.servers(network), Vec::<u32>::new());
    }
    assert_eq!(integration_tests::census::left_in(&host, "netd-run"), Vec::<String>::new());
    assert!(!host.netns.succeeds("ip link show kvs-lab"));
}

#[test]
fn a_server_of_before_there_was_confinement_is_replaced_by_one_that_is_confined() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24 --dhcp on");
    let guests = ["n", "lab"].map(|network| (network, guest(&host, network, "ada")));
    for (_, (guest, _)) in &guests {
        guest.dhcp4(&[]).expect("a lease");
    }
    let before = guests
        .each_ref()
        .map(|(network, _)| (host.servers(network), host.ok(&format!("network leases {network}"))));
    host.kill_netd();
    for (network, _) in &guests {
        // As an earlier version wrote it.
        let path = host.path(&format!("netd-run/{network}/process"));
        let text = std::fs::read_to_string(&path).expect("record");
        let mut record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(record.as_object_mut().expect("record").remove("confined").is_some(), "{text}");
        std::fs::write(&path, record.to_string()).expect("record");
    }
    host.start_netd();
    for ((network, (guest, port)), (servers, leases)) in guests.iter().zip(before) {
        let now = wait::until("another server", || {
            let now = host.servers(network);
            let ready = host.ok_json(&format!("network show {network}"))["status"]["state"] == "ready";
            (ready && now.len() == 1 && now != servers).then_some(now)
        });
        let status = std::fs::read_to_string(format!("/proc/{}/status", now[0])).expect("status");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert_eq!(host.ok(&format!("network leases {network}")), leases, "they are kept");
        assert_eq!(guest.dhcp4(&[]).expect("a lease")["ip"], port["ipv4_address"]);
    }
}

#[test]
fn a_server_whose_log_is_full_goes_on() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (a, port) = guest(&host, "n", "ada");
    let before = host.servers("n");
    let log = host.path("netd-run/n/dnsmasq.log");
    // Nobody cuts it off.
    host.kill_netd();
    host.netns.sh(&format!("truncate -s 16M {log} && kill -HUP {}", before[0]));
    assert_eq!(a.dhcp4(&[]).expect("a lease")["ip"], port["ipv4_address"]);
    host.netns.sh(&format!("kill -HUP {}", before[0]));
    assert_eq!(a.dig("10.60.0.1", "ada"), [text(&port["ipv4_address"])]);
    assert_eq!(std::fs::metadata(&log).expect("log").len(), 16 << 20, "it is at its limit");
    assert_eq!(host.servers("n"), before);
    host.start_netd();
    assert_eq!(host.servers("n"), before, "it is taken over");
}

#[test]
fn with_every_packet_rule_gone_a_server_answers_its_own_guests_only() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    host.ok("network create m --mode routed --ipv4 10.61.0.1/24 --ipv6 fd00:61::1/64");
    let (ada, port) = guest(&host, "n", "ada");
    let (eve, stranger) = guest(&host, "m", "eve");
    for (guest, port) in [(&ada, &port), (&eve, &stranger)] {
        guest.dhcp4(&[]).expect("a lease");
        guest.has_address(text(&port["ipv6_address"]));
    }
    host.lan.sh("ip route add 10.60.0.0/24 via 10.99.0.2; ip route add fd00:60::/64 via 2001:db8:99::2");
    host.kill_netd();
    host.netns.sh("nft flush ruleset");
    let own = text(&port["ipv4_address"]);
    for server in ["10.60.0.1", "fd00:60::1"] {
        for transport in ["+notcp", "+tcp"] {
            let question = format!("{transport} ada.n.internal");
            assert_eq!(ada.dig(server, &question), [own], "its own guest, {server} {transport}");
            // The host's own questions come by its loopback.
            assert_eq!(dig(&host.netns, server, &question), [own], "the host, {server} {transport}");
            assert_eq!(
                eve.dig(server, &question),
                Vec::<String>::new(),
                "another network, {server} {transport}"
            );
            assert_eq!(
                dig(&host.lan, server, &question),
                Vec::<String>::new(),
                "the LAN, {server} {transport}"
            );
        }
    }
    // That they were not answered is not for want of a way.
    assert!(
        eve.netns.succeeds("ping -n -c 2 -W 1 10.60.0.1")
            && host.lan.succeeds("ping -n -c 2 -W 1 fd00:60::1")
    );
}

#[test]
fn a_netd_that_is_not_root_serves_too_and_says_what_it_lacks() {
    let mut host = TestHost::bare();
    host.start_netd_by(&["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]);
    let outcome = refused(&host, "network create n --mode nat");
    assert!(outcome.stderr.contains("CAP_NET_RAW"), "{}", outcome.stderr);
    drop(host);

    let mut host = TestHost::bare();
    std::os::unix::fs::chown(host.dir.path(), Some(VMD_UID), Some(VMD_UID)).expect("chown");
    // Where udev runs, the node is 0666.
    let script = format!(
        "mknod {tun} c 10 200; chmod 666 {tun}; mount --bind {tun} /dev/net/tun
         exec setpriv --reuid {VMD_UID} --regid {VMD_UID} --clear-groups --inh-caps=$0 --ambient-caps=$0 \"$@\"",
        tun = host.path("tun")
    );
    host.start_netd_by(&["sh", "-euc", &script, "+net_admin,+net_raw,+net_bind_service"]);
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64 --dhcp on");
    for (network, server) in [("n", "10.60.0.1"), ("lab", "10.62.0.1")] {
        let (ada, port) = guest(&host, network, "ada");
        let own = text(&port["ipv4_address"]);
        assert_eq!(ada.dhcp4(&[]).expect("a lease")["ip"], own);
        assert_eq!(ada.dig(server, "ada"), [own]);
        let pid = host.servers(network)[0];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        assert!(status.contains(&format!("Uid:\t{VMD_UID}\t{VMD_UID}")), "{status}");
        host.ok(&format!("network delete {network} --force"));
        assert_eq!(host.servers(network), Vec::<u32>::new());
    }
}

#[test]
fn settings_change_under_a_running_guest() {
    let host = TestHost::new();
    let _resolver = resolver(&host.lan);
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create lab --mode isolated --ipv4 10.62.0.1/24");
    let (ada, port) = guest(&host, "n", "ada");
    let own = text(&port["ipv4_address"]);
    assert_eq!(ada.dhcp4(&[]).expect("a lease")["domain"], "n.internal");
    host.ok("network update n --domain corp.example --lease-time 2m --dns 10.99.0.1 --mtu 1400");
    let told = ada.dhcp4(&[]).expect("a lease");
    for (key, value) in [("ip", own), ("domain", "corp.example"), ("lease", "120"), ("mtu", "1400")] {
        assert_eq!(told[key], value, "{key}");
    }
    assert_eq!(ada.dig("10.60.0.1", "ada.corp.example"), [own]);
    assert_eq!(ada.dig("10.60.0.1", "outside.test"), ["203.0.113.9"]);
    host.ok("network update n --ipv6 fd00:60::1/64");
    let v6 = host.ok_json("port show n ada")["status"]["ipv6_address"].clone();
    ada.has_address(text(&v6));
    assert_eq!(ada.dig("fd00:60::1", "ada AAAA"), [text(&v6)]);

    // A change that cannot be leaves all as it was.
    let before = host.servers("n");
    for change in ["--domain A", "--dhcp off", "--lease-time 1s", "--dns ff02::1"] {
        // With a domain of its own the network cannot do without DHCP.
        refused(&host, &format!("network update n {change}"));
    }
    refused(&host, "network update lab --dns 10.99.0.1");
    assert_eq!(host.servers("n"), before);

    // The host name is another one at once, although the guest has a lease.
    host.ok("port update n ada --hostname lovelace");
    wait::until("the new name", || (ada.dig("10.60.0.1", "lovelace.corp.example") == [own]).then_some(()));

    let (bob, port) = guest(&host, "lab", "bob");
    for _ in 0..2 {
        assert_eq!(bob.dhcp4(&[]), None);
        host.ok("network update lab --dhcp on");
        assert_eq!(bob.dhcp4(&[]).expect("a lease")["ip"], text(&port["ipv4_address"]));
        host.ok("network update lab --dhcp off");
        assert_eq!(host.servers("lab"), Vec::<u32>::new());
        assert!(!host.netns.succeeds("ip link show kvs-lab"));
    }
}

#[test]
fn services_that_cannot_be_are_refused_and_leave_nothing() {
    let host = TestHost::new();
    let long = "a.".repeat(120) + "b";
    for arguments in [
        "--mode nat --domain A",
        "--mode nat --domain a,b",
        "--mode nat --domain 10.0.0.1",
        &format!("--mode nat --domain {long}"),
        "--mode nat --dhcp off --domain lan.example",
        "--mode nat --dhcp off --lease-time 1h",
        "--mode nat --lease-time 1s",
        "--mode nat --lease-time 1ms",
        "--mode nat --dns 0.0.0.0",
        "--mode nat --dns fe80::1",
        "--mode isolated --dhcp on",
        "--mode isolated --ipv4 10.60.0.1/24 --domain lan.example",
        "--mode isolated --ipv4 10.60.0.1/24 --dhcp on --dns 10.99.0.1",
        "--mode bridged --uplink up0 --dhcp on",
        "--mode bridged --uplink up0 --domain lan.example",
    ] {
        refused(&host, &format!("network create n {arguments}"));
    }
    let newline = host.kvmctl(&["network", "create", "n", "--mode", "nat", "--domain", "a\nuser=root"]);
    assert_eq!(newline.code, 1, "{}", newline.stderr);
    assert_eq!(host.ok_json("network list"), serde_json::json!([]));
    assert_eq!(integration_tests::census::left_in(&host, "netd-run"), Vec::<String>::new());
}

/// A dnsmasq that hangs at its start while there is a file.
const HANGS: &str = "#!/bin/sh
if [ -e DIR/hang ]; then
    echo \"hanging $$\" >&2
    exec /bin/sleep 1000
fi
exec /usr/sbin/dnsmasq \"$@\"
";

/// A host whose dnsmasq hangs at its start while there is a file `hang`.
fn hanging_host() -> TestHost {
    use std::{fs, os::unix::fs::PermissionsExt as _};
    let mut host = TestHost::bare();
    let program = host.path("hanging-dnsmasq");
    fs::write(&program, HANGS.replace("DIR", &host.dir.path().display().to_string())).expect("script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    host.netd_arguments = vec!["--dnsmasq".to_owned(), program];
    host.start_netd();
    host
}

/// The process that hangs now, if any.
fn hanging(host: &TestHost) -> Option<String> {
    let log = std::fs::read_to_string(host.path("netd-run/n/dnsmasq.log")).ok()?;
    let pid = log.lines().find_map(|line| line.strip_prefix("hanging "))?;
    std::path::PathBuf::from(format!("/proc/{pid}/stat")).exists().then(|| pid.to_owned())
}

#[test]
fn ports_come_and_go_while_their_server_hangs_at_its_start() {
    let host = hanging_host();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (old, _) = guest(&host, "n", "old");
    assert_eq!(old.dhcp4(&[]).expect("a lease")["ip"], "10.60.0.2");
    std::fs::write(host.path("hang"), "").expect("file");
    host.netns.sh(&format!("kill -KILL {}", host.servers("n")[0]));
    let mut made = 0;
    wait::until("ports to be made and deleted while a start hangs", || {
        let before = hanging(&host)?;
        made += 1;
        host.ok(&format!("port create n p{made} --ip 10.60.0.1{made:02}"));
        if made == 1 {
            host.ok("port delete n old");
            host.ok("port create n new --ip 10.60.0.2 --mac 52:54:00:00:00:99");
        }
        (hanging(&host) == Some(before)).then_some(())
    });
    std::fs::remove_file(host.path("hang")).expect("file");
    let port = host.ok_json(&format!("port show n p{made}"));
    let own = plug(&host, &port);
    // The address of one that had a lease, for another MAC.
    let heir = plug(&host, &host.ok_json("port show n new"));
    for (guest, port) in [(&own, &port), (&heir, &host.ok_json("port show n new"))] {
        let told = wait::until("a lease", || guest.dhcp4(&[]));
        assert_eq!(told["ip"], text(&port["status"]["ipv4_address"]));
    }
    assert_eq!(old.dhcp4(&[]), None);
}

#[test]
fn a_network_is_deleted_while_its_server_hangs_at_its_start() {
    let host = hanging_host();
    host.ok("network create n --mode nat");
    std::fs::write(host.path("hang"), "").expect("file");
    host.netns.sh(&format!("kill -KILL {}", host.servers("n")[0]));
    wait::until("a start that hangs", || hanging(&host));
    host.ok("network delete n");
    assert_eq!(hanging(&host), None);
    assert!(!host.logs().contains("does not come up"), "nobody waited for the start to fail");
    std::fs::remove_file(host.path("hang")).expect("file");
    host.ok("network create n --mode nat");
}

#[test]
fn leases_of_many_ports_that_are_gone_are_given_back_to_a_server_that_goes_on() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    let (kept, _) = guest(&host, "n", "kept");
    kept.dhcp4(&[]).expect("a lease");
    // As if ports with leases had gone, and netd had died before it told the server.
    let file = host.path("netd-run/n/leases");
    let now = std::fs::read_to_string(&file).expect("leases");
    let (v4, duid) = now.split_at(now.find("duid").expect("a DUID"));
    let until = v4.split(' ').next().expect("a time");
    let more: String = (10..160)
        .map(|n| format!("{until} 52:54:00:00:01:{n:02x} 10.60.0.{n} * 01:52:54:00:00:01:{n:02x}\n"))
        .collect();
    let six: String = (10..60)
        .map(|n| format!("{until} {}{n} fd00:60::{n} * 00:04:00:{n}\n", if n % 5 == 0 { "T" } else { "" }))
        .collect();
    std::fs::write(&file, format!("{v4}{more}{duid}{six}")).expect("leases");
    let before = host.servers("n");
    host.netns.sh(&format!("kill -KILL {}", before[0]));
    let leases = |host: &TestHost| host.ok_json("network leases n").as_array().expect("leases").len();
    let server = wait::until("another server", || {
        // Looked at first: ready may be what the former one was.
        let now = host.servers("n");
        let ready = host.ok_json("network show n")["status"]["state"] == "ready";
        (ready && now.len() == 1 && now != before).then_some(now)
    });
    assert_eq!(leases(&host), 201, "it has read them all");
    host.kill_netd();
    let begin = Instant::now();
    host.start_netd();
    let mut seen = usize::MAX;
    wait::until("all but one to be given back", || {
        // The server empties its file before it writes it anew: twice the same is what is in it.
        let before = std::mem::replace(&mut seen, leases(&host));
        (before == 1 && seen == 1).then_some(())
    });
    println!("200 leases given back: {:?} since the start of netd", begin.elapsed());
    assert_eq!(host.servers("n"), server, "the same process");
    assert!(kept.dhcp4(&[]).is_some());
}

#[test]
fn a_server_that_hangs_at_its_start_holds_up_no_change() {
    let host = hanging_host();
    host.ok("network create n --mode nat");
    host.ok("network create other --mode isolated");
    std::fs::write(host.path("hang"), "").expect("file");
    let server = host.servers("n")[0];
    host.netns.sh(&format!("kill -KILL {server}"));
    let mut changes = 0;
    wait::until("a change to be made while a start hangs", || {
        let before = hanging(&host)?;
        // Somebody changes something of another network, so that all is converged.
        host.netns.sh("ip link set kvb-other down");
        wait::until("the repair", || {
            host.netns.succeeds("ip link show kvb-other up | grep -q .").then_some(())
        });
        changes += 1;
        host.ok(&format!("group create g{changes}"));
        (hanging(&host) == Some(before)).then_some(())
    });
    std::fs::remove_file(host.path("hang")).expect("file");
    wait::until("dnsmasq to serve again", || {
        (host.ok_json("network show n")["status"]["state"] == "ready").then_some(())
    });
}
