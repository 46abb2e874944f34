//! What other programs, or the administrator, do to what netd has made, row by row of FAULTS.md: it is put back, or it is
//! told, and nobody's traffic suffers for longer than that takes.

use integration_tests::{census::Census, guest::Guest, host::TestHost, host::workspace, netns::Netns, wait};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Far below the 30 s of the resync; what a run took is printed.
const SOON: Duration = Duration::from_secs(15);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The findings of `kvmctl doctor` for one reason.
fn findings(host: &TestHost, reason: &str) -> Vec<Value> {
    let outcome = host.kvmctl(&["doctor", "-o", "json"]);
    let found: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", outcome.stdout, outcome.stderr));
    let all = found.as_array().expect("findings").iter();
    all.filter(|finding| finding["reason"] == reason).cloned().collect()
}

/// Row 31.
#[test]
fn a_bridge_that_is_deleted_under_three_guests_is_back_with_its_mac() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let guests: Vec<_> = (11..14)
        .map(|number| {
            let address = format!("10.60.0.{number}");
            let (tap, mac) = host.port_with("n", &format!("p{number}"), &[&address]);
            let guest = Guest::plug(&host.netns, &tap, &mac);
            guest.addresses(&[&format!("{address}/24")]);
            guest.gateways(&["10.60.0.1"]);
            (guest, tap)
        })
        .collect();
    let bridge = || host.netns.json("ip -j link show kvb-n 2>/dev/null || true")[0].clone();
    let before = bridge();
    for (guest, _) in &guests {
        assert!(guest.netns.succeeds("ping -n -c 1 -W 5 10.60.0.1"));
    }
    host.netns.sh("ip link delete kvb-n");
    let begin = Instant::now();
    wait::until("all guests to reach the gateway", || {
        let reach = |guest: &Guest| guest.netns.succeeds("ping -n -c 1 -W 1 10.60.0.1");
        guests.iter().all(|(guest, _)| reach(guest)).then_some(())
    });
    let took = begin.elapsed();
    println!("three guests reach their gateway again {took:?} after the bridge was deleted");
    assert!(took < SOON, "{took:?}");
    let after = bridge();
    assert_ne!(before["ifindex"], after["ifindex"], "it was deleted");
    assert_eq!(before["address"], after["address"], "guests know the gateway by its MAC");
    for (_, tap) in &guests {
        assert_eq!(host.netns.json(&format!("ip -j link show {tap}"))[0]["master"], "kvb-n");
    }
}

/// Row 32: what is down, or has another MTU or master, is put back (`drift.rs`). What is out of reach is made anew, and
/// what is left elsewhere is not touched.
#[test]
fn links_that_are_renamed_or_in_another_namespace_are_made_anew() {
    let host = TestHost::new();
    let elsewhere = Netns::new("elsewhere");
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (tap, _) = host.port("n", "p");
    let (other, _) = host.port("n", "q");
    let index = |name: &str| {
        host.netns.json(&format!("ip -j link show {name} 2>/dev/null || true"))[0]["ifindex"].as_u64()
    };
    let ready = |name: &str, before: Option<u64>| {
        wait::until(&format!("another `{name}`\n{}", host.logs()), || {
            let now = index(name);
            let up = host.netns.succeeds(&format!("ip link show {name} | grep -q 'UP.*LOWER_UP\\|,UP'"));
            (now.is_some() && now != before && up).then_some(())
        });
    };
    let before = index(&tap);
    host.netns.sh(&format!("ip link set {tap} netns {}", elsewhere.name()));
    ready(&tap, before);
    assert!(elsewhere.succeeds(&format!("ip link show {tap}")), "what is elsewhere is nobody's to delete");
    let before = index(&other);
    host.netns.sh(&format!("ip link set {other} down; ip link set {other} name away0"));
    ready(&other, before);
    wait::until("the renamed tap to be named", || {
        // No vmd is there, which is an error of its own.
        host.kvmctl(&["host", "show", "-o", "json"]).stdout.contains("`away0`").then_some(())
    });
    assert_eq!(host.ok_json("port show n q")["status"]["state"], "ready");
    let before = index("kvb-n");
    host.netns.sh("ip link set kvb-n down; ip link set kvb-n name away1");
    ready("kvb-n", before);
    wait::until("the ports to be on it", || {
        let master = |name: &str| host.netns.json(&format!("ip -j link show {name}"))[0]["master"] == "kvb-n";
        (master(&tap) && master(&other)).then_some(())
    });
}

/// Row 33.
#[test]
fn an_interface_of_somebody_else_on_our_bridge_is_told_and_stays() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("port create n p");
    assert_eq!(findings(&host, "FOREIGN_PORT"), Vec::<Value>::new());
    host.netns.sh("ip link add theirs type veth peer name theirs1; ip link set theirs master kvb-n; ip link set theirs up");
    let found = findings(&host, "FOREIGN_PORT");
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert!(finding.to_string().contains("`theirs`"), "{finding}");
    // Another change wakes netd up: it looks at everything, and lets it be.
    host.ok("port create n q");
    host.netns.sh("ip link set kvb-n mtu 1400");
    wait::until("the repair", || (host.netns.json("ip -j link show kvb-n")[0]["mtu"] == 1500).then_some(()));
    assert_eq!(host.netns.json("ip -j link show theirs")[0]["master"], "kvb-n");
    assert_eq!(host.ok_json("network show n")["status"]["state"], "ready");
}

/// Row 35; that a create is refused is in `bad_input.rs`.
#[test]
fn a_subnet_that_somebody_else_uses_later_is_told() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    assert_eq!(findings(&host, "SUBNET_OVERLAPS"), Vec::<Value>::new());
    host.netns.sh("ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip link set vpn1 up
         ip address add 10.60.0.77/25 dev vpn0");
    let found = findings(&host, "SUBNET_OVERLAPS");
    assert!(found.iter().any(|f| f.to_string().contains("10.60.0.77/25")), "{found:?}");
    host.netns.sh("ip address delete 10.60.0.77/25 dev vpn0; ip route add fd00:60::/80 dev vpn0");
    let found = findings(&host, "SUBNET_OVERLAPS");
    assert!(found.iter().any(|f| f.to_string().contains("fd00:60::/80")), "{found:?}");
    host.netns.sh("ip route delete fd00:60::/80 dev vpn0; ip route add 10.0.0.0/8 dev vpn0");
    assert_eq!(findings(&host, "SUBNET_OVERLAPS"), Vec::<Value>::new(), "a wider one takes nothing away");
    assert_eq!(host.ok_json("network show n")["status"]["state"], "ready");
}

/// Row 36: keys of our bridges are put back, host-wide ones are too while a network needs them, and the doctor says so
/// meanwhile. A key that no network needs is nobody's business.
#[test]
fn sysctls_that_somebody_flips_are_put_back_or_told() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create lab --mode isolated");
    let read = |key: &str| host.netns.sh(&format!("cat /proc/sys/{key}")).trim().to_owned();
    let write = |key: &str, value: &str| host.netns.sh(&format!("echo {value} > /proc/sys/{key}"));
    for (key, ours, theirs) in [
        ("net/ipv4/ip_forward", "1", "0"),
        ("net/ipv4/conf/kvb-n/arp_ignore", "1", "0"),
        ("net/ipv6/conf/kvb-lab/disable_ipv6", "1", "0"),
    ] {
        assert_eq!(read(key), ours, "{key}");
        write(key, theirs);
        if key == "net/ipv4/ip_forward" {
            assert_eq!(findings(&host, "FORWARDING_OFF").len(), 1);
        }
        // No notification tells of a sysctl. Any other change makes netd look at everything.
        host.netns.sh("ip link set kvb-n mtu 1400");
        let begin = Instant::now();
        wait::until(&format!("{key} to be put back\n{}", host.logs()), || (read(key) == ours).then_some(()));
        println!("{key} is {ours} again after {:?}", begin.elapsed());
    }
    // Bridge netfilter is everybody's: netd's rules hold with it on and off (packet_matrix.rs).
    if host.netns.succeeds("test -e /proc/sys/net/bridge/bridge-nf-call-iptables") {
        let key = "net/bridge/bridge-nf-call-iptables";
        let flipped = if read(key) == "1" { "0" } else { "1" };
        write(key, flipped);
        host.netns.sh("ip link set kvb-n mtu 1400");
        wait::until("the repair", || {
            (host.netns.json("ip -j link show kvb-n")[0]["mtu"] == 1500).then_some(())
        });
        assert_eq!(read(key), flipped, "it is not netd's");
    }
}

/// Row 39: no such daemon runs here, so it is the documented snippets that are checked: they name what netd makes.
#[test]
fn the_snippets_for_network_managers_match_what_netd_makes() {
    let readme = std::fs::read_to_string(workspace().join("README.md")).expect("README.md");
    let after = |mark: &str| readme.split_once(mark).unwrap_or_else(|| panic!("no `{mark}`")).1;
    let block = |text: &str| text.split("```").nth(1).unwrap_or_default().to_owned();
    let manager = block(after("90-kvmctl.conf"));
    let networkd = block(after("05-kvmctl.network"));
    assert!(manager.contains("[keyfile]"), "{manager}");
    let pattern = |block: &str, key: &str| -> Vec<String> {
        let line =
            block.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
        line.split([';', ' ']).map(|word| word.trim_start_matches("interface-name:").to_owned()).collect()
    };
    let patterns = [pattern(&manager, "unmanaged-devices="), pattern(&networkd, "Name=")];
    assert!(networkd.contains("[Match]") && networkd.contains("[Link]\nUnmanaged=yes"), "{networkd}");
    let host = TestHost::new();
    let before = host.netns.json("ip -j link show");
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create lab --mode isolated --ipv4 10.61.0.1/24 --dhcp on");
    host.ok("port create n p --rate-out 100M");
    let names = |links: &Value| -> Vec<String> {
        links.as_array().expect("links").iter().map(|link| text(&link["ifname"])).collect()
    };
    let old = names(&before);
    let made: Vec<_> =
        names(&host.netns.json("ip -j link show")).into_iter().filter(|name| !old.contains(name)).collect();
    assert!(made.len() >= 5, "{made:?}");
    for name in &made {
        for patterns in &patterns {
            let fits = |pattern: &String| {
                pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
            };
            assert!(patterns.iter().any(fits), "{name} is in none of {patterns:?}");
        }
    }
    for name in old {
        assert!(
            !patterns.iter().flatten().any(|pattern| name.starts_with(pattern.trim_end_matches('*'))),
            "{name}"
        );
    }
}

/// A host that was hit by all of it is bare once its networks are gone.
#[test]
fn after_other_hands_nothing_of_netd_stays() {
    let host = TestHost::new();
    let bare = Census::of(&host.netns);
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (tap, _) = host.port("n", "p");
    let (other, _) = host.port("n", "q");
    host.netns.sh(&format!(
        "nft flush ruleset; ip link delete {tap}; ip link delete kvb-n; ip link set {other} down"
    ));
    host.ok("network delete n --force");
    wait::until("a bare host", || {
        let links = host.netns.json("ip -j link show").to_string();
        (!links.contains("kvb-n") && !links.contains("kvp-")).then_some(())
    });
    bare.assert_same(&Census::of(&host.netns));
}
