//! A QEMU that fails, dies, falls silent, lies or floods hurts its own machine only.

use integration_tests::{
    host::{TestHost, program_path},
    wait,
};
use std::fs;

/// A host whose vmd starts a fake QEMU that behaves as told, with a network.
fn host(manner: &str) -> TestHost {
    let mut host = TestHost::new();
    let fake = host.path("fake-qemu");
    fs::copy(program_path("fake-qemu"), &fake).expect("copy");
    host.qemu = Some(fake);
    host.environment.push(("FAKE_QEMU".into(), manner.into()));
    host.add_vmd();
    host.ok("network create n --mode isolated");
    host.ok("vm create bad --network n");
    host
}

fn state(host: &TestHost) -> String {
    host.ok_json("vm show bad")["status"]["state"].as_str().expect("state").to_owned()
}

/// The machine can be deleted, and nothing of it is left.
fn goes_without_a_trace(host: &TestHost) {
    host.ok("vm delete bad");
    wait::until("its port to go", || (host.ok_json("port list") == serde_json::json!([])).then_some(()));
    host.ok("network delete n");
    for pid in host.netns.sh("ip netns pids $(ip netns identify)").lines() {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!command.contains("guest=bad"), "process {pid} is left: {command}");
    }
}

#[test]
fn one_that_refuses_its_arguments_fails_the_start_with_its_own_words() {
    let host = host("refuse");
    let refused = host.kvmctl(&["vm", "start", "bad"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("caused by:"), "{}", refused.stderr);
    assert_eq!(state(&host), "failed");
    goes_without_a_trace(&host);
}

#[test]
fn one_that_dies_leaves_a_failed_machine_with_the_signal() {
    let host = host("crash");
    // It dies once the guest runs: the start may have been answered before.
    host.kvmctl(&["vm", "start", "bad"]);
    wait::until("FAILED", || (state(&host) == "failed").then_some(()));
    let shown = host.ok("vm show bad");
    assert!(shown.contains("signal 11"), "{shown}");
    goes_without_a_trace(&host);
}

#[test]
fn one_that_falls_silent_is_named_and_can_be_stopped_by_force() {
    let host = host("hang");
    host.kvmctl(&["vm", "start", "bad"]);
    // Its monitor answers nothing any more: a command times out, and the machine says so.
    assert_ne!(host.kvmctl(&["vm", "pause", "bad"]).code, 0);
    let shown = host.ok_json("vm show bad");
    assert!(shown["status"]["unresponsive"] == true || state(&host) == "failed", "{shown}");
    host.ok("vm create other");
    host.ok("vm delete other");
    host.ok("vm stop bad --force");
    wait::until("rest", || matches!(state(&host).as_str(), "stopped" | "failed").then_some(()));
    goes_without_a_trace(&host);
}

#[test]
fn one_that_lies_or_floods_can_be_stopped_and_vmd_stays_small() {
    for manner in ["lie", "flood"] {
        let host = host(manner);
        host.kvmctl(&["vm", "start", "bad"]);
        host.ok("vm list");
        host.ok("vm stop bad --force");
        wait::until("rest", || matches!(state(&host).as_str(), "stopped" | "failed").then_some(()));
        let log: u64 = fs::read_dir(host.path("vmd-state/vms/bad"))
            .expect("state of the machine")
            .flatten()
            .map(|entry| entry.metadata().map_or(0, |meta| meta.len()))
            .sum();
        assert!(log <= 4 << 20, "{manner}: {log} bytes of logs");
        goes_without_a_trace(&host);
    }
}
