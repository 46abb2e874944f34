//! netd dies and comes back, and its guests do not notice.

use integration_tests::{guest::Guest, host::TestHost, netns::Netns, wait};
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

/// A `ping` that runs until it is told to end.
struct Ping(Child);

impl Ping {
    fn start(netns: &Netns, to: &str) -> Self {
        let mut child = netns
            .command("ping")
            .args(["-n", "-i", "0.02", to])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ping");
        // Running, and answered, before anything happens.
        let stdout = child.stdout.as_mut().expect("stdout");
        let mut first = String::new();
        let mut lines = BufReader::with_capacity(1, stdout);
        while !first.contains("time=") {
            first.clear();
            assert!(lines.read_line(&mut first).expect("ping") > 0, "no answer from {to}");
        }
        Self(child)
    }

    /// Packets sent and answered.
    fn end(self) -> (u64, u64) {
        // `ip netns exec` has become ping itself.
        let interrupt = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(interrupt, rustix::process::Signal::INT).expect("kill");
        let output = self.0.wait_with_output().expect("ping");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let summary = text.lines().find(|line| line.contains("packets transmitted")).expect("summary");
        let numbers: Vec<u64> = summary.split(' ').filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[1])
    }
}

#[test]
fn guests_lose_no_ping_while_netd_is_killed_and_started_again() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    let (tap_a, mac_a) = host.port_with("n", "a", &["10.60.0.11", "fd00:60::11"]);
    let (tap_b, mac_b) = host.port_with("n", "b", &["10.60.0.12", "fd00:60::12"]);
    let a = Guest::plug(&host.netns, &tap_a, &mac_a);
    let b = Guest::plug(&host.netns, &tap_b, &mac_b);
    a.addresses(&["10.60.0.11/24", "fd00:60::11/64"]);
    b.addresses(&["10.60.0.12/24", "fd00:60::12/64"]);
    a.gateways(&["10.60.0.1", "fd00:60::1"]);
    // Which addresses were seen grows with what guests say.
    let ports = |host: &TestHost| {
        let mut ports = host.ok_json("port list");
        for port in ports.as_array_mut().expect("ports") {
            port["status"].as_object_mut().expect("status").remove("addresses");
        }
        ports
    };
    let records = ports(&host);
    let pings = ["10.60.0.12", "fd00:60::12", "10.60.0.1", "10.99.0.1", "2001:db8:99::1"]
        .map(|to| Ping::start(&a.netns, to));
    for _ in 0..5 {
        host.kill_netd();
        host.start_netd();
    }
    assert_eq!(records, ports(&host));
    for (ping, to) in
        pings.into_iter().zip(["neighbour", "neighbour, IPv6", "gateway", "outside", "outside, IPv6"])
    {
        let (sent, answered) = ping.end();
        assert!(sent > 5, "{to}: only {sent} sent");
        // The last one may be on its way when ping is told to end.
        assert!(sent - answered <= 1, "{to}: {answered} of {sent}");
    }
}

#[test]
fn a_second_netd_is_refused_and_the_first_goes_on() {
    let host = TestHost::new();
    let mut second = host.netns.command(&host.path("netd"));
    second
        .args(["--socket", &host.path("other.sock"), "--state-dir", &host.path("netd-state")])
        .args(["--run-dir", &host.path("netd-run")]);
    let output = integration_tests::netns::output(&mut second);
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("cannot lock") && words.contains("hint:"), "{words}");
    host.ok("network list");
}

#[test]
fn marks_without_records_are_left_alone_and_named() {
    let mut host = TestHost::new();
    host.ok("network create n --mode isolated");
    host.kill_netd();
    std::fs::remove_dir_all(host.path("netd-state")).expect("remove the state");
    host.start_netd();
    assert_eq!(host.ok_json("network list"), serde_json::json!([]));
    assert!(host.netns.succeeds("ip link show kvb-n"));
    assert!(host.netns.sh("nft list tables").contains("inet kvmctl"));
    // vmd is not there, and says so by the exit code; netd's part is shown all the same.
    let shown = host.kvmctl(&["host", "show"]);
    assert!(shown.stdout.contains("kvb-n"), "{}", shown.stdout);
}

#[test]
fn sigterm_ends_netd_quickly_and_leaves_networks_running() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat");
    let pid = rustix::process::Pid::from_raw(host.netd_pid().cast_signed()).expect("pid");
    // A client that connects and says nothing must not hold the end up.
    let _idle = std::os::unix::net::UnixStream::connect(host.path("netd.sock")).expect("connect");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
    wait::until("the socket to go", || {
        (!std::path::Path::new(&host.path("netd.sock")).exists()).then_some(())
    });
    host.kill_netd();
    assert!(host.netns.succeeds("ip link show kvb-n"));
    host.start_netd();
    assert_eq!(host.ok_json("network show n")["status"]["state"], "ready");
}
