//! The wall clock jumps, and nothing but displayed times knows.

use integration_tests::{host::TestHost, wait};
use std::fs;

/// Debian's libfaketime, which lies about the wall clock and leaves the monotonic one alone.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[test]
fn a_clock_that_jumps_disturbs_neither_changes_nor_repairs_nor_the_order_of_events() {
    if !std::path::Path::new(LIBRARY).exists() {
        println!("SKIPPED: libfaketime is not installed, or not where Debian has it on x86-64");
        return;
    }
    let mut host = TestHost::bare();
    let clock = host.path("clock");
    fs::write(&clock, "+0").expect("clock");
    host.environment.extend(
        [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &clock),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_NO_CACHE", "1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    host.start_netd();
    let year = |host: &TestHost, name: &str| {
        let network = host.ok_json(&format!("network show {name}"));
        let text = network.to_string();
        let at = text.find("createTime\":\"").or_else(|| text.find("create_time\":\"")).expect("a time") + 13;
        text[at..].trim_start_matches('"')[..4].parse::<i32>().expect("a year")
    };
    host.ok("network create now --mode nat --ipv4 10.60.0.1/24");
    let now = year(&host, "now");
    let mut seen = Vec::new();
    for (index, offset) in ["+1d", "-1d", "+10y", "-10y", "+0"].into_iter().enumerate() {
        fs::write(&clock, offset).expect("clock");
        let name = format!("n{index}");
        host.ok(&format!("network create {name} --mode nat --ipv4 10.7{index}.0.1/24"));
        seen.push(year(&host, &name) - now);
        host.port(&name, "a");
        host.netns.sh(&format!("ip link delete kvp-a-{name} 2>/dev/null || ip link delete $(ip -o link show master kvb-{name} | sed 's/^[0-9]*: //;s/:.*//' | head -1)"));
        wait::until("the repair", || {
            let ports = host.ok_json(&format!("port list {name}"));
            let tap = ports[0]["status"]["interface"].as_str()?.to_owned();
            host.netns.succeeds(&format!("ip link show {tap}")).then_some(())
        });
        wait::until("the name server", || (host.servers(&name).len() == 1).then_some(()));
        if index == 2 {
            host.kill_netd();
            host.start_netd();
        }
    }
    assert!(seen[2] >= 9 && seen[3] <= -9, "the clock did not jump: {seen:?}");
    // vmd is not there, and says so by the exit code; netd's part is shown all the same.
    let shown = host.kvmctl(&["events", "-o", "json"]).stdout;
    let events: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let revisions: Vec<i64> = events
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|event| event["revision"].as_i64().or_else(|| event["revision"].as_str()?.parse().ok()))
        .collect();
    assert!(revisions.len() >= 5 && revisions.windows(2).all(|pair| pair[0] < pair[1]), "{revisions:?}");
    println!(
        "5 jumps of up to 10 years both ways: years off by {seen:?}, {} events in order",
        revisions.len()
    );
}
