//! Limits of bandwidth: what really passes, live changes, and repairs.

use integration_tests::{
    census::Census,
    frames::{
        Mac,
        ethernet::{Ethernet, IPV4},
        ipv4::Ipv4,
        mac,
    },
    host::TestHost,
    tap::open_tap,
    wait,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read, write},
};
use serde_json::Value;
use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

const MACS: [&str; 2] = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"];
/// Bytes of a frame, headers included.
const FRAME: usize = 1_514;
/// 8 Mbit/s in bytes a second, and the burst: small against what passes without a limit.
const RATE: f64 = 1_000_000.0;
const BURST: f64 = 20_000.0;
const LIMIT: &str = "8M,burst=20000";

/// Two ports of a network, whose taps the test holds.
struct Pair {
    host: TestHost,
    taps: [OwnedFd; 2],
    links: [String; 2],
}

/// What came out of a port.
#[derive(Debug)]
struct Passed {
    bytes: f64,
    seconds: f64,
}

/// A frame to a MAC, from one.
fn datagram([destination, source]: [Mac; 2], port: u16, data: &[u8]) -> Vec<u8> {
    let packet = Ipv4::udp(([10, 0, 0, 1].into(), [10, 0, 0, 2].into()), (port, port), data);
    Ethernet { destination, source }.frame(IPV4, &packet.bytes())
}

impl Pair {
    fn new() -> Self {
        let host = TestHost::new();
        host.ok("network create lan --mode isolated");
        for (name, mac) in ["a", "b"].into_iter().zip(MACS) {
            host.ok(&format!("port create lan {name} --mac {mac}"));
        }
        let links = ["a", "b"].map(|name| {
            let port = host.ok_json(&format!("port show lan {name}"));
            port["status"]["interface"].as_str().expect("tap").to_owned()
        });
        let taps = links.clone().map(|link| host.netns.enter(|| open_tap(&link)).expect("open"));
        wait::until("carriers", || {
            let up = |link: &String| host.netns.succeeds(&format!("ip link show {link} | grep -q LOWER_UP"));
            links.iter().all(up).then_some(())
        });
        Self { host, taps, links }
    }

    /// Sends from one port to the other for half a second as fast as it goes, and counts until all is quiet.
    fn passed(&self, from: usize) -> Passed {
        let to = 1 - from;
        let frame = datagram([MACS[to], MACS[from]].map(mac), 9, &vec![0x2a; FRAME - 42]);
        assert_eq!(frame.len(), FRAME);
        let mut buffer = vec![0; 2_000];
        let mut bytes = 0;
        let start = Instant::now();
        let mut last = start;
        loop {
            let sending = start.elapsed() < Duration::from_millis(500);
            if sending {
                write(&self.taps[from], &frame).expect("write");
            } else {
                let quiet = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
                let mut ready = [PollFd::new(&self.taps[to], PollFlags::IN)];
                if poll(&mut ready, Some(&quiet)).expect("poll") == 0 {
                    return Passed { bytes: f64::from(bytes), seconds: (last - start).as_secs_f64() };
                }
            }
            loop {
                match read(&self.taps[to], &mut buffer) {
                    Ok(length) if buffer[..length].starts_with(&frame[..12]) => {
                        bytes += u32::try_from(length).expect("a frame");
                        last = Instant::now();
                    }
                    Ok(_) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => panic!("read: {error}"),
                }
            }
        }
    }

    /// What tc says; nothing of a link that is not there.
    fn tc(&self, what: &str) -> Value {
        self.host.netns.json(&format!("tc -s -j {what} || true"))
    }

    /// The ifb of a port.
    fn ifb(&self, port: usize) -> String {
        self.links[port].replacen("kvp", "kvi", 1)
    }

    fn is_limited(&self, link: &str) -> bool {
        let qdiscs = self.tc(&format!("qdisc show dev {link}"));
        qdiscs.as_array().is_some_and(|all| all.iter().any(|q| q["kind"] == "tbf" && q["handle"] == "6b76:"))
    }
}

/// An upper bound, which a slow machine does not break: it only makes the time longer.
fn held(what: &str, passed: &Passed) {
    println!("{what}: {passed:?}");
    let most = RATE * passed.seconds * 1.25 + BURST;
    assert!(passed.bytes <= most, "{what}: {passed:?}, and {most} is the most");
    assert!(passed.bytes >= BURST, "{what}: {passed:?}: not even the burst came through");
}

#[test]
fn a_rate_holds_in_its_direction_only_and_changes_under_the_guest() {
    let pair = Pair::new();
    let free = pair.passed(0);
    println!("free: {free:?}");
    let most = RATE * free.seconds * 1.25 + BURST;
    assert!(free.bytes > 2.0 * most, "{free:?}: this machine is too slow for the test to mean anything");

    // Toward b, as it is made.
    pair.host.ok(&format!("port update lan b --rate-in {LIMIT}"));
    held("toward b", &pair.passed(0));
    let back = pair.passed(1);
    assert!(back.bytes > 2.0 * most, "from b: {back:?}");
    let witness = &pair.tc(&format!("qdisc show dev {}", pair.links[1]))[0];
    assert_eq!((&witness["kind"], &witness["options"]["rate"]), (&"tbf".into(), &1_000_000.into()));
    assert!(witness["drops"].as_u64() > Some(0), "{witness}");

    // From a, which holds for whoever it sends to; b is free again.
    pair.host.ok("port update lan b --rate-in none");
    pair.host.ok(&format!("port update lan a --rate-out {LIMIT}"));
    held("from a", &pair.passed(0));
    let toward = pair.passed(1);
    assert!(toward.bytes > 2.0 * most, "toward a: {toward:?}");
    assert!(!pair.is_limited(&pair.links[1]) && pair.is_limited(&pair.ifb(0)));
    let sheet = pair.host.ok("port show lan a");
    assert!(sheet.contains("8Mbit/s, burst 20000 bytes"), "{sheet}");

    // Changed in place: the counters of the qdisc go on.
    let sent = |pair: &Pair| pair.tc(&format!("qdisc show dev {}", pair.ifb(0)))[0]["packets"].as_u64();
    let before = sent(&pair);
    assert!(before > Some(0));
    pair.host.ok("port update lan a --rate-out 100G");
    assert!(sent(&pair) >= before);
    let fast = pair.passed(0);
    assert!(fast.bytes > 2.0 * most, "at 100G: {fast:?}");
    assert_eq!(pair.tc(&format!("qdisc show dev {}", pair.ifb(0)))[0]["options"]["rate"], 12_500_000_000_u64);

    pair.host.ok("port update lan a --rate-out none");
    assert!(!pair.host.netns.succeeds(&format!("ip link show {}", pair.ifb(0))));
    let left = pair.tc(&format!("qdisc show dev {}", pair.links[0])).to_string();
    assert!(!left.contains("ingress"), "{left}");
    let free = pair.passed(0);
    assert!(free.bytes > 2.0 * most, "free again: {free:?}");
}

#[test]
fn what_a_limited_guest_sends_is_filtered_all_the_same() {
    let pair = Pair::new();
    pair.host.ok(&format!("port update lan a --rate-out {LIMIT}"));
    let send = |source: &str, port: u16| {
        write(&pair.taps[0], &datagram([MACS[1], source].map(mac), port, b"x")).expect("write");
    };
    send("52:54:00:00:00:77", 7);
    send(MACS[0], 8);
    let mut buffer = vec![0; 2_000];
    wait::until("the frame with the guest's own MAC", || match read(&pair.taps[1], &mut buffer) {
        Ok(length) => {
            assert!(
                !buffer[..length].windows(2).any(|w| w == 7_u16.to_be_bytes()),
                "a foreign MAC got through"
            );
            buffer[..length].starts_with(&[mac(MACS[1]), mac(MACS[0])].concat()).then_some(())
        }
        Err(Errno::AGAIN) => None,
        Err(error) => panic!("read: {error}"),
    });
    // Readers share a look at the counters, which may be a moment old.
    wait::until("the dropped frame to be counted", || {
        (pair.host.ok_json("port show lan a")["status"]["drops"]["mac"] == 1).then_some(())
    });
}

#[test]
fn limits_that_somebody_removes_come_back() {
    let pair = Pair::new();
    pair.host.ok(&format!("port update lan a --rate-in {LIMIT} --rate-out {LIMIT}"));
    let (tap, ifb) = (pair.links[0].clone(), pair.ifb(0));
    let redirected = || {
        let filters = pair.tc(&format!("filter show dev {tap} ingress")).to_string();
        filters.contains(&format!("\"to_dev\":\"{ifb}\""))
    };
    let whole = || pair.is_limited(&tap) && pair.is_limited(&ifb) && redirected();
    assert!(whole());
    for (number, damage) in [
        format!("tc qdisc del dev {tap} root"),
        format!("tc qdisc replace dev {tap} root pfifo"),
        format!("tc qdisc change dev {tap} root handle 6b76: tbf rate 1gbit burst 100k limit 1m"),
        format!("tc qdisc del dev {tap} ingress"),
        format!("tc filter del dev {tap} ingress"),
        format!("tc qdisc del dev {ifb} root"),
        format!("ip link set {ifb} down"),
        format!("ip link delete {ifb}"),
    ]
    .iter()
    .enumerate()
    {
        pair.host.netns.sh(damage);
        wait::until(&format!("the repair of `{damage}`"), || {
            let up = pair.host.netns.succeeds(&format!("ip link show {ifb} up | grep -q {ifb}"));
            let rate = pair.tc(&format!("qdisc show dev {tap}"))[0]["options"]["rate"] == 1_000_000;
            (whole() && up && rate).then_some(())
        });
        println!("{number}: repaired `{damage}`");
    }
    held("from a, after all that", &pair.passed(0));
    assert_eq!(pair.host.ok_json("port show lan a")["status"]["state"], "ready");
}

#[test]
fn limited_ports_come_and_go_and_leave_nothing() {
    let host = TestHost::new();
    let before = Census::of(&host.netns);
    host.ok("network create lan --mode nat --ipv4 10.60.0.1/24");
    let create = format!("port create lan a --rate-in {LIMIT} --rate-out 20M");
    host.ok(&create);
    host.ok(&create);
    let port = host.ok_json("port show lan a");
    assert_eq!(port["spec"]["rate_out"]["bits_per_second"], 20_000_000);
    assert_eq!(port["spec"]["rate_out"]["burst_bytes"], 25_000);
    let ifb = port["status"]["interface"].as_str().expect("tap").replacen("kvp", "kvi", 1);
    let link = &host.netns.json(&format!("ip -j -d link show {ifb}"))[0];
    assert_eq!(link["group"], "27510");
    assert!(link["ifalias"].as_str().is_some_and(|alias| alias.ends_with("networks/lan/ports/a")), "{link}");
    // It speaks to nobody by itself.
    assert_eq!(
        host.netns.json(&format!("ip -j address show dev {ifb}"))[0]["addr_info"],
        serde_json::json!([])
    );
    // Somebody else's link of that name is left alone, and the port is refused.
    host.ok("port update lan a --rate-out none");
    host.netns.sh(&format!("ip link add {ifb} type ifb"));
    let outcome = host.kvmctl(&["port", "update", "lan", "a", "--rate-out", "20M"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("belongs to somebody else"), "{}", outcome.stderr);
    host.netns.sh(&format!("ip link delete {ifb}"));
    host.ok("port update lan a --rate-out 20M");
    // A restart finds all in its place.
    let mut host = host;
    host.kill_netd();
    host.start_netd();
    assert_eq!(host.ok_json("port show lan a")["status"]["state"], "ready");
    assert!(host.netns.sh(&format!("tc qdisc show dev {ifb}")).contains("rate 20Mbit"));
    host.ok("network delete lan --force");
    before.assert_same(&Census::of(&host.netns));
    for bad in [&["--rate-in", "7999"][..], &["--rate-in", "100M,burst=100"], &["--rate-out", "2000G"]] {
        host.ok("network create lan --mode isolated");
        let outcome = host.kvmctl(&[&["port", "create", "lan", "bad"][..], bad].concat());
        assert!(outcome.code == 1 && outcome.stderr.contains("hint: "), "{bad:?}: {}", outcome.stderr);
        host.ok("network delete lan");
    }
}
