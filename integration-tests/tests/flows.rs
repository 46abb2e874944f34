//! A guest that begins flows without end does not fill the host's table of tracked flows.

use integration_tests::{
    client::dig,
    frames::{
        ethernet::{Ethernet, IPV4},
        ipv4::Ipv4,
        mac,
    },
    guest::Guest,
    host::TestHost,
    wait,
    wire::Wire,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, send, socket_with};
use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// Flows of one guest, as README.md promises.
const MOST: usize = 8_192;
/// Those of the host itself and of the other guest.
const OTHERS: usize = 64;
/// Where the LAN answers.
const ECHO: u16 = 7;
/// Where nobody does.
const DISCARD: u16 = 9;
const LAN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// A guest that writes what it likes.
struct Hostile {
    wire: Wire,
    own: Ipv4Addr,
    ethernet: Ethernet,
}

impl Hostile {
    fn send(&self, port: u16, to: u16, data: &[u8]) {
        let packet = Ipv4::udp((self.own, LAN), (port, to), data).bytes();
        self.wire.send(&self.ethernet.frame(IPV4, &packet));
    }

    /// Whether a question by each of these ports is answered, of which the last one is.
    fn answered(&self, ports: &[u16]) -> Vec<bool> {
        let question = |port: &u16| format!("question by {port}").into_bytes();
        let mut answers = vec![false; ports.len()];
        wait::until("the last answer", || {
            for port in ports {
                self.send(*port, ECHO, &question(port));
            }
            while let Some(frame) = self.wire.receive() {
                for (port, answer) in ports.iter().zip(&mut answers) {
                    let question = question(port);
                    *answer |= frame.windows(question.len()).any(|part| part == question);
                }
            }
            answers.last().is_some_and(|last| *last).then_some(())
        });
        answers
    }
}

/// A question for the IPv4 address of a name of one label.
fn question(number: u16, name: &str) -> Vec<u8> {
    let mut message = [&number.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [name, "test"] {
        message.push(u8::try_from(label.len()).expect("a label"));
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The LAN's name server: it answers for `outside.test`, and for no other name ever.
fn half_deaf_resolver(host: &TestHost) {
    let socket = host.lan.enter(|| UdpSocket::bind((LAN, 53)).expect("bind"));
    thread::spawn(move || {
        let mut data = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut data) {
            let asked = &data[..length];
            let end = 12 + b"\x07outside\x04test\0\0\x01\0\x01".len();
            if asked.get(12..20) != Some(b"\x07outside") || length < end {
                continue;
            }
            let header = [&asked[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
            let answer = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 203, 0, 113, 9];
            // One that cannot be answered is none that is waited for.
            let _ = socket.send_to(&[&header, &asked[12..end], &answer[..]].concat(), from);
        }
    });
}

#[test]
fn a_guest_that_asks_dns_without_end_leaves_others_theirs() {
    // More than dnsmasq lets wait, also if it is too slow to hear all of them.
    const QUESTIONS: u16 = 8_000;
    let host = TestHost::new();
    half_deaf_resolver(&host);
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --dns 10.99.0.1");
    let (tap, own_mac) = host.port_with("n", "a", &["10.60.0.2"]);
    let (other_tap, other_mac) = host.port_with("n", "b", &["10.60.0.3"]);
    let bridge = host.netns.json("ip -j link show kvb-n")[0]["address"].as_str().expect("a MAC").to_owned();
    let ethernet = Ethernet { destination: mac(&bridge), source: mac(&own_mac) };
    let wire = Wire::plug(&host.netns, &tap);
    let other = Guest::plug(&host.netns, &other_tap, &other_mac);
    other.addresses(&["10.60.0.3/24"]);
    let answered = || dig(&other.netns, "10.60.0.1", "outside.test +retry=0") == ["203.0.113.9"];
    wait::until("the other guest's answer", || answered().then_some(()));

    // In one flow, of which one question has been answered: it is established.
    let ends = (Ipv4Addr::new(10, 60, 0, 2), Ipv4Addr::new(10, 60, 0, 1));
    let ask = |number, name: &str| {
        let packet = Ipv4::udp(ends, (4000, 53), &question(number, name)).bytes();
        wire.send(&ethernet.frame(IPV4, &packet));
    };
    host.netns.sh(&format!("ip neigh replace 10.60.0.2 lladdr {own_mac} dev kvb-n nud permanent"));
    wait::until("an answer to the hostile guest", || {
        ask(1, "outside");
        wire.receive().filter(|frame| frame.windows(4).any(|bytes| bytes == [203, 0, 113, 9]))
    });
    let begin = Instant::now();
    for number in 0..QUESTIONS {
        ask(number, &format!("silent-{number}"));
    }
    let took = begin.elapsed();
    assert!(answered(), "one guest has all of the network's DNS");
    let dropped = wait::until("what was dropped to be shown", || {
        host.ok_json("port show n a")["status"]["drops"]["dns"].as_u64()
    });
    println!("{QUESTIONS} questions in {took:?}, {dropped} of them dropped");
    // With what comes in while they are asked, however slow that is.
    let most = 200 + 50 * (took.as_secs() + 2);
    assert!(dropped + most >= u64::from(QUESTIONS), "{dropped} dropped in {took:?}");
    assert_eq!(host.ok_json("port show n b")["status"]["drops"], serde_json::json!({}));
}

/// Flows that the host tracks.
fn tracked(host: &TestHost) -> usize {
    host.netns.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse().expect("a number")
}

/// Empties the host's table, as time would.
fn end_all_flows(host: &TestHost) {
    host.netns.enter(|| {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )
        .expect("socket");
        // A header (include/uapi/linux/netlink.h): length, IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK, NLM_F_REQUEST,
        // number, sender; then family, version and a zero (struct nfgenmsg). Without an attribute all entries are meant.
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.extend([0x0102_u16, 1].map(u16::to_ne_bytes).concat());
        message.extend([0; 12]);
        send(&socket, &message, SendFlags::empty()).expect("send");
    });
    wait::until("the flows to be gone", || (tracked(host) < OTHERS).then_some(()));
}

#[test]
fn a_guest_that_begins_flows_without_end_takes_its_share_of_the_table_and_no_more() {
    let host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --dhcp off");
    let (tap, own_mac) = host.port_with("n", "a", &["10.60.0.2"]);
    let (other_tap, other_mac) = host.port_with("n", "b", &["10.60.0.3"]);
    // However slow the machine is, none of them ends by itself.
    host.netns.sh("echo 600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout");
    host.netns.sh(&format!("ip neigh replace 10.60.0.2 lladdr {own_mac} dev kvb-n nud permanent"));
    let bridge = host.netns.json("ip -j link show kvb-n")[0]["address"].as_str().expect("a MAC").to_owned();
    let ethernet = Ethernet { destination: mac(&bridge), source: mac(&own_mac) };
    let hostile = Hostile { wire: Wire::plug(&host.netns, &tap), own: Ipv4Addr::new(10, 60, 0, 2), ethernet };
    let other = Guest::plug(&host.netns, &other_tap, &other_mac);
    other.addresses(&["10.60.0.3/24"]);
    other.gateways(&["10.60.0.1"]);
    let echo = host.lan.enter(|| UdpSocket::bind((LAN, ECHO)).expect("bind"));
    thread::spawn(move || {
        let mut data = [0; 256];
        while let Ok((length, from)) = echo.recv_from(&mut data) {
            // One that cannot be answered is none that is waited for.
            let _ = echo.send_to(&data[..length], from);
        }
    });
    assert_eq!(hostile.answered(&[1000]), [true]);

    let mut began = 0;
    let mut flood = |flows: usize| {
        let begin = Instant::now();
        for flow in began..began + flows {
            // From port 10000 up, as long as that lasts; then to the next one.
            let (port, to) = (10_000 + flow % 50_000, usize::from(DISCARD) + flow / 50_000);
            hostile.send(u16::try_from(port).expect("port"), u16::try_from(to).expect("port"), b"");
        }
        began += flows;
        begin.elapsed()
    };
    let free = flood(1_000);
    wait::until("the guest's share to be taken", || {
        flood(1_000);
        (tracked(&host) >= MOST).then_some(())
    });
    let full = flood(4_000) / 4;
    let all = tracked(&host);
    assert!((MOST..MOST + OTHERS).contains(&all), "{all} flows are tracked");

    // The flow that there was goes on, and a new one of the guest's does not begin.
    assert_eq!(hostile.answered(&[1001, 1000]), [false, true]);
    let socket = other.netns.enter(|| UdpSocket::bind("10.60.0.3:0").expect("bind"));
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    wait::until("the other guest's answer", || {
        socket.send_to(b"question", (LAN, ECHO)).expect("send");
        socket.recv(&mut [0; 64]).ok()
    });
    let drops = &host.ok_json("port show n a")["status"]["drops"];
    assert!(drops["flows"].as_u64().is_some_and(|packets| packets >= 4_000), "{drops}");
    assert_eq!(host.ok_json("port show n b")["status"]["drops"], serde_json::json!({}));
    println!(
        "{began} flows begun, {all} tracked; 1,000 take the guest {free:?} at first and {full:?} beyond its share"
    );

    // As soon as flows have ended others can begin.
    end_all_flows(&host);
    wait::until("a new flow of the guest", || hostile.answered(&[1002, 1000])[0].then_some(()));
}
