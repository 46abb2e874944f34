//! What comes goes: after many life cycles the daemons hold as much as after a few.

use integration_tests::{figures::Figures, host::TestHost, soak, wait};

const WARM_UP: usize = 10;
/// KiB.
const GROWTH: u64 = 2 << 10;

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

#[test]
fn life_cycles_leave_no_descriptor_thread_tap_or_memory() {
    let cycles = if soak() { 500 } else { 30 };
    let mut host = TestHost::new();
    host.fake_qemu("ok");
    host.add_vmd();
    for _ in 0..WARM_UP {
        cycle(&host);
    }
    let daemons = [("netd", host.netd_pid()), ("vmd", host.vmd_pid())];
    let before = daemons.map(|(_, pid)| Figures::of(pid));
    let links = taps(&host);
    for _ in 0..cycles {
        cycle(&host);
    }
    assert_eq!(taps(&host), links, "links are left");
    for ((name, pid), before) in daemons.into_iter().zip(before) {
        // Threads that have nothing to do end after ten seconds.
        let after = wait::until(&format!("{name} to hold no more than before: {before:?}"), || {
            let now = Figures::of(pid);
            (now.descriptors <= before.descriptors && now.threads <= before.threads).then_some(now)
        });
        let grown = after.resident.saturating_sub(before.resident);
        println!(
            "{name} after {cycles} life cycles: descriptors {} to {}, threads {} to {}, memory {} to {} KiB (+{grown})",
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
