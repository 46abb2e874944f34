//! What somebody else breaks is repaired at once, and nothing of theirs is touched.

use integration_tests::{guest::Guest, host::TestHost, wait};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

/// What a run took is printed, and is under a second where nothing else runs. The bound here is far below the 30 s of
/// the resync, so that it is the notification that is tested.
const SOON: Duration = Duration::from_secs(15);

/// One table in a form that is equal exactly when its rules and members are; empty if there is none.
fn rules(host: &TestHost, family: &str) -> String {
    fn tidy(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove("handle");
                map.remove("packets");
                map.remove("bytes");
                if let Some(members) = map.get_mut("elem").and_then(Value::as_array_mut) {
                    members.sort_by_key(ToString::to_string);
                }
                map.values_mut().for_each(tidy);
            }
            Value::Array(items) => items.iter_mut().for_each(tidy),
            _ => {}
        }
    }
    let mut table = host.netns.json(&format!("nft -j list table {family} kvmctl 2>/dev/null || true"));
    tidy(&mut table);
    table.to_string()
}

#[test]
fn damage_to_links_and_rules_is_repaired_and_foreign_objects_stay() {
    let host = TestHost::new();
    host.ok("network create nat --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    host.ok("network create in --mode isolated");
    let (tap, _) = host.port("nat", "p");
    let (hidden, _) = host.port("in", "p");
    host.netns.sh(
        "nft add table ip theirs; nft 'add chain ip theirs post { type nat hook postrouting priority 100; }'
         nft add rule ip theirs post ip saddr 172.31.0.0/16 masquerade
         ip link add theirs type bridge; ip link set theirs up; ip address add 10.88.0.1/24 dev theirs",
    );
    // All that a repair has to bring back, as tools that are not ours see it.
    let picture = || {
        let link = |name: &str| {
            let json = host.netns.json(&format!("ip -j -d address show {name} 2>/dev/null || true"));
            let link = &json[0];
            let port = &link["linkinfo"]["info_slave_data"];
            let addresses: Vec<_> = link["addr_info"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|a| a["scope"] == "global")
                .map(|a| a["local"].to_string())
                .collect();
            let flags = link["flags"].to_string().contains("\"UP\"");
            format!(
                "{name} {} {} {} {} {flags} {addresses:?} {} {} {}",
                link["mtu"],
                link["address"],
                link["ifalias"],
                link["master"],
                port["learning"],
                port["flood"],
                port["guard"]
            )
        };
        let rules = ["bridge", "inet"].map(|family| rules(&host, family)).join("\n");
        // A new tap has its own MAC again, made from the guest's.
        [link("kvb-nat"), link("kvb-in"), link(&tap), link(&hidden), rules].join("\n")
    };
    let whole = picture();
    let mut slowest = Duration::ZERO;
    let damage = [
        "nft flush ruleset; nft add table ip theirs; nft 'add chain ip theirs post { type nat hook postrouting priority 100; }'
         nft add rule ip theirs post ip saddr 172.31.0.0/16 masquerade".to_owned(),
        "nft delete table inet kvmctl".to_owned(),
        "nft delete table bridge kvmctl".to_owned(),
        "nft flush chain inet kvmctl kv_forward".to_owned(),
        "nft flush chain bridge kvmctl kv_prerouting".to_owned(),
        "nft flush chain inet kvmctl kv_masquerade".to_owned(),
        "nft insert rule inet kvmctl kv_input accept".to_owned(),
        "nft add element inet kvmctl kv_any_uplink { kvb-in }".to_owned(),
        "nft delete element inet kvmctl kv_isolated { kvb-in }".to_owned(),
        "nft delete element inet kvmctl kv_same { kvb-nat . kvb-nat }".to_owned(),
        format!("nft delete element bridge kvmctl kv_filtered {{ {tap} }}"),
        "nft flush set bridge kvmctl kv_mac".to_owned(),
        format!("nft delete element bridge kvmctl kv_isolated_tap {{ {hidden} }}"),
        "nft flush set bridge kvmctl kv_arp".to_owned(),
        "nft flush set bridge kvmctl kv_target".to_owned(),
        format!("nft add element bridge kvmctl kv_ip4 {{ {tap} . 10.60.0.99 }}"),
        "nft flush chain bridge kvmctl kv_icmpv6".to_owned(),
        "ip link set kvb-nat down".to_owned(),
        "ip link set kvb-nat mtu 1400".to_owned(),
        "ip link set kvb-nat address 02:00:00:00:00:01".to_owned(),
        "ip link set kvb-nat alias hello".to_owned(),
        "ip address delete 10.60.0.1/24 dev kvb-nat".to_owned(),
        "ip address flush dev kvb-nat scope global".to_owned(),
        "ip link delete kvb-nat".to_owned(),
        format!("ip link set {tap} down"),
        format!("ip link set {tap} alias ''"),
        format!("ip link set {tap} nomaster"),
        format!("ip link set {tap} master theirs"),
        format!("ip link set {tap} mtu 1300"),
        format!("bridge link set dev {tap} learning on flood on"),
        format!("ip link delete {tap}"),
    ];
    for damage in &damage {
        host.netns.sh(damage);
        let begin = Instant::now();
        wait::until(
            &format!("repair of `{damage}`, which is not\n{}\nbut\n{whole}\n{}", picture(), host.logs()),
            || (picture() == whole).then_some(()),
        );
        slowest = slowest.max(begin.elapsed());
    }
    println!("{} kinds of damage repaired, the slowest in {slowest:?}", damage.len());
    assert!(slowest < SOON, "repaired by the resync only: {slowest:?}");
    assert!(host.netns.succeeds("ip address show theirs | grep -q 10.88.0.1/24"));
}

#[test]
fn a_guest_is_filtered_and_translated_again_after_a_flush() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (tap, mac) = host.port_with("n", "p", &["10.60.0.11"]);
    let guest = Guest::plug(&host.netns, &tap, &mac);
    guest.addresses(&["10.60.0.11/24"]);
    guest.gateways(&["10.60.0.1"]);
    assert!(guest.netns.succeeds("ping -n -c 1 -W 5 10.99.0.1"));
    host.netns.sh("nft flush ruleset");
    wait::until("translation", || guest.netns.succeeds("ping -n -c 1 -W 1 10.99.0.1").then_some(()));
    // A spoofed MAC is dropped again.
    guest.netns.sh("ip link set eth0 address 02:00:00:00:00:99");
    assert!(!guest.netns.succeeds("ping -n -c 2 -i 0.2 -W 1 10.60.0.1"));
}

#[test]
fn one_objects_trouble_is_not_anothers() {
    let host = TestHost::new();
    host.netns.sh("ip link add br-old type bridge; ip link set br-old up");
    host.ok("network create old --mode bridged --bridge br-old");
    host.ok("network create fine --mode nat");
    host.netns.sh("ip link delete br-old");
    wait::until("the trouble to show", || {
        (host.ok_json("network show old")["status"]["state"] == "degraded").then_some(())
    });
    assert!(host.ok_json("network show old")["status"]["error"].to_string().contains("br-old"));
    assert_eq!(host.ok_json("network show fine")["status"]["state"], "ready");
    host.ok("port create fine p");
    host.ok("network delete old");
}

#[test]
fn what_was_changed_is_told_and_kept_over_a_restart() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let (tap, mac) = host.port("n", "p");
    let mut follow = host.kvmctl_command(&["events", "--follow", "--from", "netd", "-o", "json"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kvmctl");
    let mut told = BufReader::new(follow.stdout.take().expect("stdout"));
    for (damage, resource, words) in [
        ("ip link set kvb-n down".to_owned(), Some("networks/n"), "`kvb-n` is down".to_owned()),
        (
            format!("ip link set {tap} mtu 1300"),
            Some("networks/n/ports/p"),
            format!("`{tap}` has another MTU"),
        ),
        (
            format!("nft delete element bridge kvmctl kv_mac {{ {tap} . {mac} }}"),
            None,
            // The member in the form of raw bytes is now one too many.
            "the rules are missing or were changed".to_owned(),
        ),
        (
            "nft add element inet kvmctl kv_routed { kvb-n }".to_owned(),
            None,
            "has `kvb-n` in kv_routed".to_owned(),
        ),
        ("nft flush ruleset".to_owned(), None, "the rules are missing or were changed".to_owned()),
    ] {
        host.netns.sh(&damage);
        let event = loop {
            let mut line = String::new();
            assert!(told.read_line(&mut line).expect("an event") > 0, "the watch ended");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if event["message"].as_str().is_some_and(|message| message.contains(&words)) {
                break event;
            }
        };
        assert_eq!(event["kind"], "repaired", "{damage}: {event}");
        assert_eq!(event["resource"].as_str(), resource, "{damage}: {event}");
    }
    let _ = follow.kill();
    let _ = follow.wait();
    let before = host.ok_json("events --from netd");
    assert!(before.as_array().is_some_and(|events| events.len() >= 5), "{before}");
    host.kill_netd();
    host.start_netd();
    let after = host.ok_json("events --from netd");
    let kept = after.as_array().expect("events").len() >= before.as_array().expect("events").len();
    assert!(kept && after[0] == before[0], "{before}\n{after}");
}
