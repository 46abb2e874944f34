//! A QEMU that fails, dies, falls silent, lies or floods hurts its own machine only.

use integration_tests::{
    figures::{Figures, forget_peak},
    host::TestHost,
    rpc::Vmd,
    wait,
};
use std::{fs, time::Duration};

/// Manners that a monitor may have once the guest runs, and what the machine's status then has to say.
const MANNERS: [(&str, &str); 10] = [
    ("hang", "did not answer"),
    ("late", "did not answer"),
    ("wrong", "did not answer"),
    ("half", "did not answer"),
    ("close", "closed the connection"),
    ("garbage", "no JSON"),
    ("deep", "recursion limit"),
    ("line", "longer than 1 MiB"),
    ("flood", "more than anybody could read"),
    ("storm", "more than anybody could read"),
];

/// A host whose vmd starts a fake QEMU that behaves as told, with a network.
fn host(manner: &str) -> TestHost {
    let mut host = TestHost::new();
    host.fake_qemu(manner);
    host.add_vmd();
    host.ok("network create n --mode isolated");
    host
}

fn state(host: &TestHost, name: &str) -> String {
    host.ok_json(&format!("vm show {name}"))["status"]["state"].as_str().expect("state").to_owned()
}

/// The machine can be deleted, and nothing of it is left.
fn goes_without_a_trace(host: &TestHost, name: &str) {
    host.ok(&format!("vm delete {name}"));
    wait::until("its port to go", || {
        let ports = host.ok_json("port list");
        let left = ports.as_array()?.iter().any(|port| port["name"] == format!("{name}-0"));
        (!left).then_some(())
    });
    assert_eq!(host.processes_of(name), Vec::<u32>::new(), "a process is left");
}

#[test]
fn one_that_refuses_its_arguments_fails_the_start_with_its_own_words() {
    let host = host("refuse");
    host.ok("vm create bad --network n");
    let refused = host.kvmctl(&["vm", "start", "bad"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("caused by:"), "{}", refused.stderr);
    assert_eq!(state(&host, "bad"), "failed");
    goes_without_a_trace(&host, "bad");
}

#[test]
fn one_that_dies_leaves_a_failed_machine_with_the_signal() {
    let host = host("crash");
    host.ok("vm create bad --network n");
    // It dies once the guest runs: the start may have been answered before.
    host.kvmctl(&["vm", "start", "bad"]);
    wait::until("FAILED", || (state(&host, "bad") == "failed").then_some(()));
    let shown = host.ok("vm show bad");
    assert!(shown.contains("signal 11"), "{shown}");
    goes_without_a_trace(&host, "bad");
}

#[test]
fn one_that_lies_can_be_stopped() {
    let host = host("lie");
    host.ok("vm create bad --network n");
    host.kvmctl(&["vm", "start", "bad"]);
    host.ok("vm list");
    host.ok("vm stop bad --force");
    wait::until("rest", || matches!(state(&host, "bad").as_str(), "stopped" | "failed").then_some(()));
    goes_without_a_trace(&host, "bad");
}

/// All manners on one vmd: while one machine misbehaves, and while all do.
#[test]
fn a_monitor_that_misbehaves_is_named_costs_little_and_is_ended_by_force() {
    const MEMORY: u64 = 16 << 10;
    const CALLS: usize = 400;
    // Whatever else runs on this host makes a round slower, and never faster: what a bad monitor costs the others is
    // there in each of the rounds, so that the best one tells.
    const ROUNDS: usize = 8;
    let host = host("by-name");
    let mut vmd = Vmd::of(&host);
    host.ok("vm run ok --network n");
    for (manner, _) in MANNERS {
        host.ok(&format!("vm create {manner} --network n"));
    }
    host.ok("vm start hang");
    host.ok("vm stop hang --force");
    vmd.p99("ok", CALLS);
    let before = Figures::of(host.vmd_pid());
    forget_peak(host.vmd_pid());

    let cheap = |vmd: &mut Vmd, who: &[&str]| {
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            for name in who {
                host.ok(&format!("vm start {name}"));
            }
            let with = vmd.p99("ok", CALLS);
            for name in who {
                host.ok(&format!("vm stop {name} --force"));
            }
            let without = vmd.p99("ok", CALLS);
            seen.push((with, without));
            if with <= 2 * without {
                break;
            }
        }
        let (with, without) = seen[seen.len() - 1];
        println!("p99 of a status call beside `{}`: {with:?}, without: {without:?}", who.join(" "));
        assert!(with <= 2 * without, "{who:?} slows others down in each of {ROUNDS} rounds: {seen:?}");
    };
    for (manner, _) in MANNERS {
        cheap(&mut vmd, &[manner]);
    }

    for (manner, _) in MANNERS {
        host.ok(&format!("vm start {manner}"));
    }
    for (manner, why) in MANNERS {
        let status = wait::until(&format!("`{manner}` to be unresponsive"), || {
            let status = vmd.show(manner).expect("status").status.expect("status");
            status.unresponsive.then_some(status)
        });
        assert!(status.unresponsive_since.is_some(), "{status:?}");
        println!("{manner}: {}", status.unresponsive_reason);
        assert!(status.unresponsive_reason.contains(why), "{manner}: {}", status.unresponsive_reason);
        let row = host.ok("vm list");
        assert!(row.lines().any(|l| l.starts_with(manner) && l.contains("unresponsive")), "{row}");
    }
    // It stays so while nothing gets better: beyond the next probe and the next connection.
    let since = |vmd: &mut Vmd, name: &str| {
        vmd.show(name).expect("status").status.expect("status").unresponsive_since
    };
    let noticed: Vec<_> = MANNERS.iter().map(|(manner, _)| since(&mut vmd, manner)).collect();
    let connected = |name: &str| {
        host.logs().lines().filter(|line| line.contains("unresponsive") && line.contains(name)).count()
    };
    let with = vmd.p99("ok", CALLS);
    println!("p99 of a status call beside all {} of them: {with:?}", MANNERS.len());
    for (index, (manner, _)) in MANNERS.iter().enumerate() {
        assert_eq!(since(&mut vmd, manner), noticed[index], "{manner} flaps");
        assert!(connected(manner) >= 1, "{}", host.logs());
        host.ok(&format!("vm stop {manner} --force"));
        let status = vmd.show(manner).expect("status").status.expect("status");
        assert_eq!((status.pid, status.unresponsive), (0, false), "{manner}");
        goes_without_a_trace(&host, manner);
    }
    let after = Figures::of(host.vmd_pid());
    println!(
        "vmd's peak grew by {} KiB, its resident memory by {} KiB, descriptors {} to {}, threads {} to {}",
        after.peak.saturating_sub(before.resident),
        after.resident.saturating_sub(before.resident),
        before.descriptors,
        after.descriptors,
        before.threads,
        after.threads
    );
    assert!(after.peak.saturating_sub(before.resident) <= MEMORY, "vmd grew beyond 16 MiB");
    assert_eq!(state(&host, "ok"), "running");
}

/// One client holds a monitor; QEMU would not even accept another one.
#[test]
fn a_second_client_of_the_monitor_keeps_vmd_from_nothing() {
    let mut host = host("ok");
    host.ok("vm run web --network n");
    let pid = host.ok_json("vm show web")["status"]["pid"].clone();
    let folder = host.dir.path().join("vmd-run/vms/web");
    // While vmd is connected the rogue one waits; while vmd is away it has the first monitor.
    let _waiting = std::os::unix::net::UnixStream::connect(folder.join("qmp0")).expect("connect");
    host.ok("vm pause web");
    host.ok("vm resume web");
    host.kill_vmd();
    let _first = std::os::unix::net::UnixStream::connect(folder.join("qmp0")).expect("connect");
    host.start_vmd();
    wait::until("vmd to have the second monitor", || {
        let status = host.ok_json("vm show web")["status"].clone();
        (status["unresponsive"] == false && status["state"] == "running").then_some(())
    });
    assert_eq!(host.ok_json("vm show web")["status"]["pid"], pid);
    host.ok("vm pause web");
    host.ok("vm stop web --force");
}

/// The console's record is bounded on disk and in memory, and the one who writes it is not held up.
#[test]
fn a_console_of_a_gibibyte_costs_4_mib_of_disk_and_8_of_memory_and_never_stops_the_guest() {
    const MIB: u64 = 1024;
    let mut host = host("by-name");
    host.environment.push(("FAKE_QEMU_MIB".into(), MIB.to_string()));
    host.kill_vmd();
    host.start_vmd();
    host.ok("vm run ok");
    host.ok("vm create gush");
    let mut vmd = Vmd::of(&host);
    vmd.p99("ok", 100);
    let folder = host.dir.path().join("vmd-state/vms/gush");
    let used = || -> u64 {
        let files = fs::read_dir(&folder).expect("state of the machine").flatten();
        files.map(|entry| entry.metadata().map_or(0, |meta| meta.len())).sum()
    };
    let before = Figures::of(host.vmd_pid());
    forget_peak(host.vmd_pid());
    host.ok("vm start gush");
    // One that never reads what it asked for.
    let mut stuck = host
        .kvmctl_command(&["vm", "log", "gush", "--follow"])
        .stdout(std::process::Stdio::piped())
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("viewer");
    let mut most = 0;
    let last = wait::until_within("the end of the flood", Duration::from_secs(300), || {
        most = most.max(used());
        host.ok("vm log gush").lines().rev().find(|line| line.starts_with("GUSHED")).map(str::to_owned)
    });
    let after = Figures::of(host.vmd_pid());
    let grown = after.peak.saturating_sub(before.resident);
    println!("{last}; at most {} KiB of disk, vmd grew by {grown} KiB", most >> 10);
    assert!(last.contains(&format!("GUSHED {} bytes", MIB << 20)), "{last}");
    assert!(most <= 4 << 20, "{most} bytes of disk");
    assert!(grown <= 8 << 10, "vmd grew by {grown} KiB");
    let slowest: u64 = last.split(' ').rev().nth(1).and_then(|text| text.parse().ok()).expect("milliseconds");
    assert!(slowest < 10_000, "a write of the guest took {slowest} ms");
    // Late viewers see the end of it, without a gap.
    let log = host.ok("vm log gush");
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() > 10_000, "{} lines are kept", lines.len());
    assert!(lines[1..lines.len() - 1].iter().all(|line| line.trim_end() == "all work and no play"));
    let _ = stuck.kill();
    let _ = stuck.wait();
    host.ok("vm stop gush --force");
}
