//! Networks come and go whole, and nothing of anybody else's does.

use integration_tests::{census::Census, host::TestHost};

/// A masquerade rule as an administrator, or another program, has it.
const FOREIGN: &str =
    "nft add table ip nat; nft 'add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }'
    nft add rule ip nat POSTROUTING ip saddr 172.31.0.0/16 masquerade";

#[test]
fn all_modes_come_and_go_and_leave_the_host_as_it_was() {
    let host = TestHost::new();
    host.netns.sh(FOREIGN);
    host.netns.sh("ip link add br-old type bridge; ip link add old type veth peer name old-peer
                   ip link set old master br-old up; ip link set old-peer up; ip link set br-old up");
    host.netns.sh("ip link add spare type veth peer name spare-peer; ip link set spare up; ip link set spare-peer up
                   ip address add 10.77.0.2/24 dev spare; ip route add 10.78.0.0/16 via 10.77.0.1 metric 50
                   ip address add 2001:db8:77::2/64 dev spare nodad; ip -6 route add 2001:db8:78::/64 via 2001:db8:77::1");
    let before = Census::of(&host.netns);

    host.ok("network create one --mode isolated");
    host.ok("network create two --mode nat");
    host.ok("network create three --mode routed --ipv4 10.50.0.1/24 --ipv6 2001:db8:50::1/64");
    host.ok("network create four --mode bridged --bridge br-old");
    host.ok("network create five --mode bridged --uplink spare");
    for network in ["one", "two", "three", "four", "five"] {
        let (tap, mac) = host.port(network, "p");
        let links = host.netns.json(&format!("ip -j -d link show {tap}"));
        assert_eq!(links[0]["linkinfo"]["info_kind"], "tun");
        let fdb = host.netns.sh(&format!("bridge fdb show dev {tap}"));
        let entry = fdb.lines().find(|line| line.starts_with(&mac)).unwrap_or_default();
        assert!(["sticky", "master", "static"].iter().all(|word| entry.contains(word)), "{fdb}");
    }
    let rules = host.netns.sh("nft list ruleset");
    assert!(rules.contains("table inet kvmctl") && rules.contains("table bridge kvmctl"));
    assert_eq!(host.netns.sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");

    for network in ["one", "two", "three", "four", "five"] {
        host.ok(&format!("network delete {network} --force"));
    }
    let after = Census::of(&host.netns);
    before.assert_same(&after);
    assert!(host.netns.sh("nft list ruleset").contains("ip saddr 172.31.0.0/16 masquerade"));
}

#[test]
fn an_administrators_hardening_is_put_back_with_forwarding() {
    let host = TestHost::new();
    host.netns.sh("sysctl -qw net.ipv4.conf.all.accept_redirects=0");
    let before = Census::of(&host.netns);
    host.ok("network create n --mode nat --ipv6 fd00:60::1/64");
    host.ok("network delete n");
    before.assert_same(&Census::of(&host.netns));
}

#[test]
fn forwarding_that_was_on_stays_on() {
    let host = TestHost::new();
    host.netns.sh("sysctl -qw net.ipv4.ip_forward=1");
    host.ok("network create n --mode nat");
    host.ok("network delete n");
    assert_eq!(host.netns.sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
}

#[test]
fn the_same_create_twice_is_one_network_and_another_spec_is_refused() {
    let host = TestHost::new();
    let first = host.ok_json("network create n --mode nat --ipv4 10.60.0.1/24");
    let second = host.ok_json("network create n --mode nat --ipv4 10.60.0.1/24");
    assert_eq!(first["uid"], second["uid"]);
    let refused = host.kvmctl(&["network", "create", "n", "--mode", "routed", "--ipv4", "10.60.0.1/24"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("hint:"), "{}", refused.stderr);
}

#[test]
fn a_restarted_netd_repairs_what_was_broken_meanwhile() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (tap, _) = host.port("n", "p");
    let before = Census::of(&host.netns);
    host.kill_netd();
    host.netns.sh("nft flush ruleset; ip link delete kvb-n");
    host.netns.sh(&format!("ip link delete {tap}"));
    host.start_netd();
    let now = Census::of(&host.netns);
    assert_eq!(host.netns.json("ip -j address show kvb-n")[0]["addr_info"][0]["local"], "10.60.0.1");
    assert_eq!(host.netns.json(&format!("ip -j link show {tap}"))[0]["master"], "kvb-n");
    // The rules are back word for word.
    let rules = |census: &Census| format!("{census:?}").split("\"rules\"").nth(1).map(str::to_owned);
    assert_eq!(rules(&before), rules(&now));
}
