//! Twenty machines, both daemons killed, and nobody notices.

use integration_tests::{frames::mac, host::TestHost, soak, wait, wire::Wire};
use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const MACHINES: usize = 20;
/// The promise.
const ADOPTION: Duration = Duration::from_secs(3);
/// Of IEEE, for experiments.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const PACE: Duration = Duration::from_millis(1);

/// Process id and start time of each machine's QEMU, by the kernel.
fn processes(host: &TestHost) -> BTreeMap<String, (u32, String)> {
    host.qemus()
        .into_iter()
        .map(|(pid, name)| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("process");
            let start = stat.rsplit_once(')').expect("stat").1.split_whitespace().nth(19).expect("start");
            (name, (pid, start.to_owned()))
        })
        .collect()
}

/// Counted frames from one port to the other, until told to end.
struct Stream {
    sent: AtomicU64,
    end: AtomicBool,
}

impl Stream {
    /// Sends; the last frame has the number that `sent` has then.
    fn send(&self, from: &Wire, header: &[u8]) {
        while !self.end.load(Ordering::Relaxed) {
            let number = self.sent.load(Ordering::Relaxed) + 1;
            let mut frame = header.to_vec();
            frame.extend(number.to_be_bytes());
            frame.resize(60, 0);
            from.send(&frame);
            self.sent.store(number, Ordering::Relaxed);
            thread::park_timeout(PACE);
        }
    }

    /// Receives until all are there, or the last one is.
    fn receive(&self, to: &Wire, header: &[u8]) -> Vec<u64> {
        let mut seen = Vec::new();
        wait::until_within("the last frame", Duration::from_secs(240), || {
            while let Some(frame) = to.receive() {
                if frame.starts_with(header) {
                    seen.push(u64::from_be_bytes(frame[14..22].try_into().expect("number")));
                }
            }
            let over = self.end.load(Ordering::Acquire);
            (over && seen.last() == Some(&self.sent.load(Ordering::Relaxed))).then_some(())
        });
        seen
    }
}

#[test]
fn twenty_machines_are_adopted_within_3_s_and_no_frame_is_lost_while_both_daemons_are_killed() {
    let mut host = TestHost::new();
    host.fake_qemu("ok");
    host.add_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    for number in 1..=MACHINES {
        host.ok(&format!("vm run ok-{number} --network n"));
    }
    let port = |name: &str| {
        let port = host.ok_json(&format!("port create n {name} --filter off"));
        let field = |key: &str| port["status"][key].as_str().expect("field").to_owned();
        (field("interface"), mac(&field("mac")))
    };
    let (a, b) = (port("a"), port("b"));
    let (from, to) = (Wire::plug(&host.netns, &a.0), Wire::plug(&host.netns, &b.0));
    let header = [&b.1[..], &a.1[..], &ETHERTYPE[..]].concat();
    let before = processes(&host);
    assert_eq!(before.len(), MACHINES);
    for (pid, _) in before.values() {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score");
        assert_eq!(score.trim(), "300", "machines go first when memory runs out");
    }
    let score = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score");
        text.trim().to_owned()
    };
    println!("oom_score_adj: machines 300, netd {}, vmd {}", score(host.netd_pid()), score(host.vmd_pid()));
    let allowed = std::process::Command::new("sh")
        .args(["-c", "echo -500 > /proc/self/oom_score_adj"])
        .stderr(std::process::Stdio::null())
        .status();
    if allowed.expect("sh").success() {
        assert_eq!(score(host.netd_pid()), "-500", "root's daemon is spared");
    } else {
        println!(
            "SKIPPED: root has no CAP_SYS_RESOURCE here, so that netd cannot be spared when memory runs out"
        );
    }

    let stream = Stream { sent: AtomicU64::new(0), end: AtomicBool::new(false) };
    let seen = thread::scope(|scope| {
        let (stream, header) = (&stream, &header);
        scope.spawn(move || stream.send(&from, header));
        let receiver = scope.spawn(move || stream.receive(&to, header));
        // Whatever goes wrong here must not leave the others waiting.
        let restarts = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..if soak() { 10 } else { 2 } {
                let killed = stream.sent.load(Ordering::Relaxed);
                let in_order = round % 2 == 0;
                if in_order {
                    host.kill_netd();
                    host.kill_vmd();
                } else {
                    host.kill_vmd();
                    host.kill_netd();
                }
                if in_order {
                    host.start_netd();
                }
                let begin = Instant::now();
                host.start_vmd();
                let vms = host.ok_json("vm list");
                let taken = begin.elapsed();
                let adopted = vms.as_array().expect("machines").iter().filter(|vm| {
                    let status = &vm["status"];
                    status["state"] == "running"
                        && status["adopted"] == true
                        && status["unresponsive"] == false
                });
                assert_eq!(adopted.count(), MACHINES, "{vms}");
                assert!(taken <= ADOPTION, "adopted after {taken:?}");
                if !in_order {
                    host.start_netd();
                }
                let meanwhile = stream.sent.load(Ordering::Relaxed) - killed;
                println!(
                    "{MACHINES} machines adopted after {taken:?}, netd {}; {meanwhile} frames from the kill on",
                    if in_order { "first" } else { "last" }
                );
                assert_eq!(processes(&host), before, "a machine was started anew, or ended");
            }
        }));
        stream.end.store(true, Ordering::Release);
        let seen = receiver.join().expect("receiver");
        restarts.expect("restarts");
        seen
    });
    let sent = stream.sent.load(Ordering::Relaxed);
    println!("{sent} frames were sent and {} arrived", seen.len());
    assert!(seen.iter().copied().eq(1..=sent), "frames were lost, or came out of order");
    // Each of them obeys.
    for number in 1..=MACHINES {
        host.ok(&format!("vm stop ok-{number} --force"));
    }
    assert_eq!(host.qemus(), []);
}
