//! What changes under running guests, and what is refused.

use integration_tests::{census::Census, guest::Guest, host::TestHost, wait};

#[test]
fn a_network_gets_ipv6_and_another_mtu_while_guests_talk() {
    let host = TestHost::new();
    let before = Census::of(&host.netns);
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let plug = |name: &str| {
        let (tap, mac) = host.port("n", name);
        (Guest::plug(&host.netns, &tap, &mac), tap)
    };
    let ((a, tap), (b, _)) = (plug("a"), plug("b"));
    a.addresses(&["10.60.0.2/24"]);
    b.addresses(&["10.60.0.3/24"]);
    let ping = a.netns.spawn("ping", &["-n", "-i", "0.05", "-c", "60", "10.60.0.3"]);
    host.ok("network update n --ipv6 fd00:60::1/64 --mtu 1400");
    let ping_output = ping.wait_with_output().expect("ping");
    let said = String::from_utf8_lossy(&ping_output.stdout);
    assert!(said.contains(" 0% packet loss"), "{said}");

    let address = |name: &str| {
        host.ok_json(&format!("port show n {name}"))["status"]["ipv6_address"]
            .as_str()
            .expect("IPv6")
            .to_owned()
    };
    for (guest, name) in [(&a, "a"), (&b, "b")] {
        guest.addresses(&[&format!("{}/64", address(name))]);
        guest.gateways(&["fd00:60::1"]);
    }
    for to in [address("b").as_str(), "fd00:60::1", "2001:db8:99::1"] {
        wait::until(&format!("an answer of {to}"), || {
            a.netns.succeeds(&format!("ping -n -c 1 -W 1 {to}")).then_some(())
        });
    }
    for link in ["kvb-n", &tap] {
        assert_eq!(host.netns.json(&format!("ip -j link show {link}"))[0]["mtu"], 1400, "{link}");
    }
    // By another way out, which there is not: nothing leaves any more; and back.
    host.netns.sh("ip link add other type veth peer name other-peer; ip link set other up");
    host.ok("network update n --uplink other");
    assert!(!a.netns.succeeds("ping -n -c 2 -i 0.2 -W 1 2001:db8:99::1"));
    host.ok("network update n --any-uplink");
    assert!(a.netns.succeeds("ping -n -c 3 -i 0.2 -W 2 2001:db8:99::1"));

    host.netns.sh("ip link delete other");
    drop((a, b));
    host.ok("network delete n --force");
    before.assert_same(&Census::of(&host.netns));
}

#[test]
fn a_port_is_isolated_and_unfiltered_while_it_is_open() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let plug = |name: &str| {
        let (tap, mac) = host.port("n", name);
        (Guest::plug(&host.netns, &tap, &mac), tap)
    };
    let ((a, tap), (b, _)) = (plug("a"), plug("b"));
    a.addresses(&["10.60.0.2/24", "10.60.0.77/24"]);
    b.addresses(&["10.60.0.3/24"]);
    let reaches =
        |from: &str, to: &str| a.netns.succeeds(&format!("ping -n -c 2 -i 0.2 -W 1 -I {from} {to}"));
    assert!(reaches("10.60.0.2", "10.60.0.3"));
    assert!(!reaches("10.60.0.77", "10.60.0.3"), "an address that is not the guest's");
    host.ok("port update n a --extra-ip 10.60.0.77");
    assert!(reaches("10.60.0.77", "10.60.0.3"), "an address that was added");
    host.ok("port update n a --no-extra-ip");
    assert!(!reaches("10.60.0.77", "10.60.0.3"), "an address that was taken away");
    // Readers share a look at the counters, which may be a moment old.
    wait::until("the drops to be counted", || {
        let drops = &host.ok_json("port show n a")["status"]["drops"];
        (drops["arp"].as_u64() > Some(0) || drops["ipv4"].as_u64() > Some(0)).then_some(())
    });

    for port in ["a", "b"] {
        host.ok(&format!("port update n {port} --isolated on"));
    }
    assert!(!reaches("10.60.0.2", "10.60.0.3"), "isolated from each other");
    assert!(reaches("10.60.0.2", "10.60.0.1"), "not from the gateway");
    let shown = host.netns.json(&format!("bridge -j -d link show dev {tap}"));
    assert_eq!(shown[0]["isolated"], true);
    host.ok("port update n a --isolated off --filter off");
    assert!(reaches("10.60.0.77", "10.60.0.3"), "nothing is checked");
    assert_eq!(host.ok_json("port show n a")["generation"], 5);
}

#[test]
fn addresses_in_use_are_seen_on_every_sort_of_network() {
    let host = TestHost::new();
    host.netns.sh("ip link add br-old type bridge; ip link set br-old up");
    host.ok("network create one --mode isolated");
    host.ok("network create two --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    host.ok("network create three --mode routed --ipv4 10.61.0.1/24");
    host.ok("network create four --mode bridged --bridge br-old");
    for (network, ipv4, ipv6) in [
        ("one", "10.7.0.9", "fd00:7::9"),
        ("two", "10.60.0.9", "fd00:60::9"),
        ("three", "10.61.0.9", "fd00:7::9"),
        ("four", "192.0.2.9", "2001:db8:7::9"),
    ] {
        let declared: &[&str] = match network {
            "two" => &[ipv4, ipv6],
            "three" => &[ipv4],
            _ => &[],
        };
        let (tap, mac) = host.port_with(network, "p", declared);
        let guest = Guest::plug(&host.netns, &tap, &mac);
        guest.addresses(&[&format!("{ipv4}/24"), &format!("{ipv6}/64")]);
        let seen = |address: &str| {
            let port = host.ok_json(&format!("port show {network} p"));
            let all = port["status"]["addresses"].as_array().cloned().unwrap_or_default();
            let entry = all.into_iter().find(|entry| entry["address"] == address)?;
            entry["evidence"].as_array()?.iter().any(|evidence| evidence == "observed").then_some(())
        };
        assert_eq!(seen(ipv4), None, "before the guest has said anything");
        for (address, neighbour) in [(ipv4, ipv4.replace(".9", ".200")), (ipv6, ipv6.replace("::9", "::200"))]
        {
            wait::until(&format!("{address} to be seen on {network}"), || {
                // Asks for a neighbour that is not there.
                let _ = guest.netns.succeeds(&format!("ping -n -c 1 -W 0.2 {neighbour}"));
                seen(address)
            });
        }
    }
}
