//! What comes goes: after many life cycles the daemons hold as much as after a few.

use integration_tests::{figures::Figures, host::TestHost, soak, wait};

/// KiB.
const GROWTH: u64 = 2 << 10;
/// The memory that a daemon holds between two requests is the least that is seen in so many cycles: a look at everything
/// takes some for a moment. Pages of its program, which come and go as the host has room, are not held.
const SEEN: usize = 5;

fn cycle(host: &TestHost) {
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("vm run web --network n");
    host.ok("vm stop web --force");
    host.ok("vm delete web");
    host.ok("network delete n");
}

fn taps(host: &TestHost) -> usize {
    let links = host.netns.json("ip -j link");
    links
        .as_array()
        .expect("links")
        .iter()
        .filter(|link| link["ifname"].as_str().is_some_and(|name| name.starts_with("kv")))
        .count()
}

/// Whether both daemons have forgotten their first events.
fn events_turn_over(host: &TestHost) -> bool {
    let events = host.ok_json("events");
    let events = events.as_array().expect("events");
    ["netd", "vmd"].iter().all(|daemon| {
        let first = events.iter().find(|event| event["daemon"] == *daemon);
        first.is_some_and(|event| event["revision"].as_i64() > Some(1))
    })
}

#[test]
fn life_cycles_leave_no_descriptor_thread_tap_or_memory() {
    let (warm_up, cycles) = if soak() { (50, 500) } else { (20, 30) };
    let mut host = TestHost::new();
    host.fake_qemu("ok");
    host.add_vmd();
    let daemons = [("netd", host.netd_pid()), ("vmd", host.vmd_pid())];
    let lives = |many: usize| {
        let mut least = [u64::MAX; 2];
        for number in 0..many {
            cycle(&host);
            if number + SEEN >= many {
                for (least, (_, pid)) in least.iter_mut().zip(daemons) {
                    *least = Figures::of(pid).anonymous.min(*least);
                }
            }
        }
        least
    };
    let mut memory = lives(warm_up);
    // The last events are kept in memory: the soak begins to count when both daemons have as many as they keep.
    while soak() && !events_turn_over(&host) {
        memory = lives(warm_up);
        println!("warming up: {memory:?} KiB");
    }
    let before = daemons.map(|(_, pid)| Figures::of(pid));
    let links = taps(&host);
    let memory = memory.into_iter().zip(lives(cycles));
    assert_eq!(taps(&host), links, "links are left");
    for (((name, pid), before), (held, holds)) in daemons.into_iter().zip(before).zip(memory) {
        // Threads that have nothing to do end after ten seconds.
        let after = wait::until(&format!("{name} to hold no more than before: {before:?}"), || {
            let now = Figures::of(pid);
            (now.descriptors <= before.descriptors && now.threads <= before.threads).then_some(now)
        });
        let grown = holds.saturating_sub(held);
        println!(
            "{name} after {cycles} life cycles: descriptors {} to {}, threads {} to {}, memory {held} to {holds} KiB (+{grown}), resident {} to {}",
            before.descriptors,
            after.descriptors,
            before.threads,
            after.threads,
            before.resident,
            after.resident
        );
        assert!(grown <= GROWTH, "{name} grew by {grown} KiB");
    }
    assert_eq!(host.qemus(), [], "machines are left");
}
