//! Each step of each operation goes wrong in each way.

use integration_tests::{
    guest::Guest,
    soak,
    steps::{self, Bench, Model},
    wait,
};
use serde_json::Value;
use std::{fs, os::unix::process::ExitStatusExt as _};

/// In `make test` once, in `make soak` three times.
fn rounds() -> usize {
    if soak() { 3 } else { 1 }
}

#[test]
fn every_step_of_every_operation_may_be_the_last_may_fail_and_may_happen_twice() {
    let mut operations = steps::all();
    // For whoever looks into one of them.
    let only = std::env::var("KVMCTL_ONLY").unwrap_or_default();
    operations.retain(|operation| operation.name.contains(&only));
    let tally = steps::take_apart(operations, rounds());
    for failure in &tally.failures {
        println!("{failure}");
    }
    println!("{}", tally.words());
    assert!(tally.failures.is_empty(), "{} failed", tally.failures.len());
}

/// As after a reboot: nothing of netd's is there but its records.
fn reboot(bench: &mut Bench) {
    bench.host.kill_netd();
    bench.no_plan();
    for network in ["n", "c"] {
        for pid in bench.host.servers(network) {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        wait::until("dnsmasq to end", || bench.host.servers(network).is_empty().then_some(()));
    }
    fs::remove_dir_all(bench.host.path("netd-run")).expect("remove the run folder");
    bench.host.netns.sh("
        for link in $(ip -br link | sed -n 's/^\\(kv[a-z]-[^ @]*\\).*/\\1/p'); do
            ip link delete $link 2>/dev/null || :
        done
        nft flush ruleset
        sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
    ");
}

#[test]
fn a_start_may_end_at_each_step_twice_in_a_row() {
    let mut bench = Bench::new();
    for command in [
        "network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64",
        "network create c --mode isolated --ipv4 10.62.0.1/24 --dhcp on",
        "group create g",
        "port create n web --ip 10.60.0.11 --hostname web --rate-in 10M --rate-out 20M --group g",
        "forward add n --name f --protocol udp --listen 8080 --to web:80",
    ] {
        bench.host.ok(command);
    }
    let model = Model::of(&bench.host);
    reboot(&mut bench);
    let token = bench.plan("start", "count", 0);
    bench.host.start_netd();
    model.await_same(&bench.host);
    let names = bench.steps(&token);
    let steps = names.len();
    assert!(steps > 20, "{steps} steps");
    let modes: &[&str] = if soak() { &["kill-before", "kill-after"] } else { &["kill-before"] };
    let mut runs = 0;
    for mode in modes {
        for step in (1..=steps).step_by(if soak() { 1 } else { 2 }) {
            reboot(&mut bench);
            bench.plan("start", mode, step);
            let first = bench.host.try_start_netd().expect("the first start has that step");
            assert_eq!(first.signal(), Some(9), "step {step}: {first}");
            // It finds some of its work done, so that the step of that number may be another, or none.
            bench.plan("start", mode, step.div_ceil(2));
            if let Some(second) = bench.host.try_start_netd() {
                assert_eq!(second.signal(), Some(9), "step {step}: {second}");
                bench.no_plan();
                bench.host.start_netd();
            }
            println!("{mode} {}", names[step - 1]);
            model.await_same(&bench.host);
            runs += 1;
        }
    }
    println!("start: {steps} steps, {runs} runs of two deaths each, all converged");
}

/// What the DHCP server of network `n` has given out.
fn leases(bench: &Bench) -> Value {
    bench.host.ok_json("network leases n")
}

#[test]
fn what_dnsmasq_was_not_told_before_netd_died_it_hears_from_the_next() {
    let mut bench = Bench::new();
    bench.host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    // One that has a lease, and one that has never asked.
    for asks in [true, false] {
        let (tap, mac) = bench.host.port_with("n", "web", &["10.60.0.11"]);
        if asks {
            let guest = Guest::plug(&bench.host.netns, &tap, &mac);
            guest.dhcp4(&[]).expect("a lease");
            assert_eq!(leases(&bench)[0]["address"], "10.60.0.11");
        }
        let token = bench.plan("background", "kill-before", 1);
        // Its answer may come before the end.
        let _ = bench.host.kvmctl(&["port", "delete", "n", "web"]);
        assert_eq!(bench.host.await_netds_end().signal(), Some(9));
        assert_eq!(bench.steps(&token).len(), 1);
        bench.no_plan();
        bench.host.start_netd();
        wait::until("the lease to go", || (leases(&bench) == serde_json::json!([])).then_some(()));
        // The address is free for somebody else, with another MAC.
        let port = bench.host.ok_json("port create n other --ip 10.60.0.11 --mac 52:54:00:00:00:99");
        let tap = port["status"]["interface"].as_str().expect("tap");
        let other = Guest::plug(&bench.host.netns, tap, "52:54:00:00:00:99");
        wait::until("the other guest to get the address", || {
            other.dhcp4(&[]).filter(|told| told["ip"] == "10.60.0.11")
        });
        bench.host.ok("port delete n other");
    }
}
