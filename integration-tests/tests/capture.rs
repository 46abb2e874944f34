//! Captures: what passes a port as a file that other programs read, within bounds, for those who may see it.

use integration_tests::{
    figures::Figures,
    frames::{
        BROADCAST,
        arp::Arp,
        ethernet::{ARP, Ethernet, IPV4, VLAN},
        ipv4::Ipv4,
        mac,
    },
    guest::Guest,
    host::{TestHost, VMD_UID},
    netns::{self, Netns},
    tap::open_tap,
    wait,
};
use proto::netd::v1::{
    CaptureChunk, CaptureEnd, CaptureRequest, capture_service_client::CaptureServiceClient,
};
use rustix::{
    io::write,
    process::{Pid, Signal, kill_process},
};
use std::{
    fs,
    io::Read as _,
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    process::{Child, Command, Stdio},
};
use tokio::runtime::Runtime;

const MAC: &str = "52:54:00:00:00:0a";
/// The guest's address, and another's.
const ENDS: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));

/// From the guest to everybody.
fn to_all() -> Ethernet {
    Ethernet { destination: BROADCAST, source: mac(MAC) }
}

/// Starts a capture of port `web` into a file, and waits until it hears.
fn capture(host: &TestHost, file: &str, arguments: &str) -> Running {
    let path = host.path(file);
    let words = format!("port capture lan web -w {path} {arguments}");
    let child = host
        .kvmctl_command(&words.split_whitespace().collect::<Vec<_>>())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvmctl");
    let running = Running(child);
    // The file begins with its header, which is sent once the socket is bound.
    wait::until("the capture's header", || (fs::metadata(&path).ok()?.len() > 0).then_some(()));
    running
}

/// The frames of a file in tcpdump's words.
fn tcpdump(host: &TestHost, file: &str, filter: &str) -> Vec<String> {
    let script = format!("tcpdump -n -e -tt --nano -r {} {filter} 2>/dev/null", host.path(file));
    // A file that is being written may end inside of a block.
    let output = netns::output(Command::new("sh").args(["-c", &script]));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A host with a port whose tap the test holds, as a guest's QEMU would.
struct Port {
    host: TestHost,
    tap: OwnedFd,
}

impl Port {
    fn new() -> Self {
        let host = TestHost::new();
        host.ok("network create lan --mode isolated");
        host.ok(&format!("port create lan web --mac {MAC}"));
        let tap = open(&host);
        Self { host, tap }
    }

    /// Sends a frame as the guest: UDP of this port and this many bytes of payload.
    fn send(&self, port: u16, payload: usize) {
        let packet = Ipv4::udp(ENDS, (port, port), &vec![0x2a; payload]);
        write(&self.tap, &to_all().frame(IPV4, &packet.bytes())).expect("write");
    }
}

/// The tap of port `web`.
fn link(host: &TestHost) -> String {
    host.ok_json("port show lan web")["status"]["interface"].as_str().expect("tap").to_owned()
}

fn open(host: &TestHost) -> OwnedFd {
    let link = link(host);
    host.netns.enter(|| open_tap(&link)).expect("open")
}

/// A kvmctl that captures.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("signal");
    }

    /// Waits for its end; its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let status = wait::until("the capture's end", || self.0.try_wait().expect("wait"));
        let mut words = String::new();
        self.0.stderr.take().expect("stderr").read_to_string(&mut words).expect("stderr");
        (status.code(), words)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nanoseconds(line: &str) -> u128 {
    line.split(' ').next().and_then(|time| time.replace('.', "").parse().ok()).expect("a time")
}

#[test]
fn frames_of_both_directions_are_in_a_file_that_tcpdump_reads() {
    let host = TestHost::new();
    host.ok("network create lan --mode nat --ipv4 10.7.0.1/24");
    let (tap, mac) = host.port("lan", "web");
    let guest = Guest::plug(&host.netns, &tap, &mac);
    guest.addresses(&["10.7.0.2/24"]);
    let before =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_nanos();
    let running = capture(&host, "all.pcapng", "");
    assert!(guest.netns.succeeds("ping -c 3 -i 0.01 10.7.0.1"));
    let seen = |what: &str| tcpdump(&host, "all.pcapng", "icmp").iter().filter(|l| l.contains(what)).count();
    wait::until("three answers", || (seen("echo reply") == 3).then_some(()));
    running.signal(Signal::INT);
    let (code, words) = running.end();
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("frames captured") && words.contains(" 0 dropped"), "{words}");
    assert_eq!(seen("echo request"), 3);
    // As they were: addresses, lengths and times.
    let lines = tcpdump(&host, "all.pcapng", "icmp");
    assert!(lines.iter().all(|l| l.contains("length 98: 10.7.0.")), "{lines:#?}");
    assert!(lines.iter().any(|l| l.contains(&format!("{mac} >"))), "{lines:#?}");
    let times: Vec<u128> = lines.iter().map(|line| nanoseconds(line)).collect();
    assert!(times.is_sorted() && times[0] > before, "{before}: {times:?}");
    assert!(times.iter().any(|time| time % 1000 != 0), "no nanoseconds: {times:?}");
    let mode = fs::metadata(host.path("all.pcapng")).expect("file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What it is of, who filtered it, and how it ended.
    let file = fs::read(host.path("all.pcapng")).expect("file");
    let has = |text: &str| file.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has(&tap) && has("networks/lan/ports/web"));
    let blocks = blocks(&file);
    assert_eq!(blocks.last().map(|(kind, _)| *kind), Some(5), "no statistics at the end");
    let directions = |flag: u8| {
        let mut frames = blocks.iter().filter(|(kind, _)| *kind == 6);
        frames.any(|(_, body)| body[body.len() - 12..] == [2, 0, 4, 0, flag, 0, 0, 0, 0, 0, 0, 0])
    };
    assert!(directions(1) && directions(2), "one direction only");
    wireshark(&host, "all.pcapng", lines.len());
}

/// Type and body of each block of a pcapng file.
fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four"));
    let mut found = Vec::new();
    while !file.is_empty() {
        let length = number(&file[4..8]) as usize;
        found.push((number(&file[..4]), &file[8..length - 4]));
        file = &file[length..];
    }
    found
}

/// Wireshark's own readers, where there are any.
fn wireshark(host: &TestHost, file: &str, frames: usize) {
    let path = host.path(file);
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !there("tshark") || !there("capinfos") {
        println!("SKIPPED: no tshark and capinfos to read the capture; tcpdump has read it");
        return;
    }
    let output = netns::run(Command::new("tshark").args(["-r", &path, "icmp"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), frames);
    let output = netns::run(Command::new("capinfos").arg(&path));
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(words.contains("nanoseconds") && words.contains("networks/lan/ports/web"), "{words}");
}

#[test]
fn a_filter_takes_what_it_says_and_the_snap_length_cuts() {
    let port = Port::new();
    let filtered =
        capture(&port.host, "filtered.pcapng", "--snaplen 60 --count 2 udp port 7 and not broadcast or arp");
    let inbound = capture(&port.host, "inbound.pcapng", "-c 5 inbound");
    let frames = [(7, 200), (8, 200)];
    for (number, payload) in frames {
        port.send(number, payload);
    }
    // Two ARP questions, as the filter takes them; a longer frame shows the cut.
    let mut arp = to_all().frame(ARP, &Arp::request((mac(MAC), ENDS.0), ENDS.1).bytes());
    arp.resize(100, 0);
    for _ in 0..3 {
        write(&port.tap, &arp).expect("write");
    }
    let (code, words) = filtered.end();
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("2 frames captured, 200 bytes"), "{words}");
    let lines = tcpdump(&port.host, "filtered.pcapng", "");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines.iter().all(|l| l.contains("ARP") && l.contains("length 100")), "{lines:#?}");
    let file = fs::read(port.host.path("filtered.pcapng")).expect("file");
    let filter = b"\0udp port 7 and not broadcast or arp";
    assert!(file.windows(filter.len()).any(|window| window == filter), "the filter is not in the file");
    for (kind, body) in blocks(&file) {
        // Kept and whole length of a frame.
        assert!(kind != 6 || (body[12..16] == [60, 0, 0, 0] && body[16..20] == [100, 0, 0, 0]), "{body:?}");
    }
    assert_eq!(inbound.end().0, Some(0));
    assert_eq!(tcpdump(&port.host, "inbound.pcapng", "").len(), 5);
}

#[test]
fn a_tag_that_the_kernel_takes_off_is_in_the_file() {
    let port = Port::new();
    let running = capture(&port.host, "tag.pcapng", "--count 1");
    let packet = Ipv4::udp(ENDS, (7, 7), b"tagged").bytes();
    // The port's filter drops it; the capture shows it all the same.
    write(&port.tap, &to_all().tagged(&[(VLAN, 0xa005)], IPV4, &packet)).expect("write");
    assert_eq!(running.end().0, Some(0));
    let lines = tcpdump(&port.host, "tag.pcapng", "vlan 5");
    assert!(
        lines.len() == 1 && lines[0].contains("vlan 5, p 5") && lines[0].contains("10.0.0.1.7"),
        "{lines:?}"
    );
}

#[test]
fn a_limited_guests_frames_are_recorded_once() {
    let port = Port::new();
    // They pass the tap twice: on their way to where they wait, and back.
    port.host.ok("port update lan web --rate-out 8M");
    let running = capture(&port.host, "limited.pcapng", "udp");
    for number in 1..=3 {
        port.send(number, 10);
    }
    wait::until("three frames", || (tcpdump(&port.host, "limited.pcapng", "").len() >= 3).then_some(()));
    let ifb = link(&port.host).replacen("kvp", "kvi", 1);
    wait::until("the frames to be let through", || {
        let qdiscs = port.host.netns.json(&format!("tc -s -j qdisc show dev {ifb}"));
        (qdiscs[0]["packets"] == 3).then_some(())
    });
    port.host.ok("port delete lan web");
    assert_eq!(running.end().0, Some(0));
    assert_eq!(tcpdump(&port.host, "limited.pcapng", "").len(), 3);
}

#[test]
fn bounds_end_a_capture() {
    let port = Port::new();
    let timed = capture(&port.host, "time.pcapng", "--duration 200ms");
    let (code, words) = timed.end();
    assert_eq!(code, Some(0), "{words}");
    let full = capture(&port.host, "full.pcapng", "--size 8K");
    for _ in 0..20 {
        port.send(7, 1000);
    }
    let (code, words) = full.end();
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("7 frames captured") && words.contains("the file is full"), "{words}");
    assert_eq!(tcpdump(&port.host, "full.pcapng", "").len(), 7);
    let size = fs::metadata(port.host.path("full.pcapng")).expect("file").len();
    assert!((7000..=8192).contains(&size), "{size}");
}

#[test]
fn a_pipe_gets_the_file_and_its_end_is_no_failure() {
    let port = Port::new();
    let command = format!(
        "{} --netd {} port capture lan web --count 3 | tcpdump -n -r - 2>/dev/null",
        port.host.path("kvmctl"),
        port.host.netd_address()
    );
    let reader = Command::new("sh").args(["-c", &command]).stdout(Stdio::piped()).spawn().expect("sh");
    // Nothing tells when it hears; frames come until it has three.
    let mut reader = Running(reader);
    wait::until("three frames", || {
        port.send(7, 10);
        reader.0.try_wait().expect("wait")
    });
    let mut lines = String::new();
    reader.0.stdout.take().expect("stdout").read_to_string(&mut lines).expect("lines");
    assert_eq!(lines.matches("UDP, length 10").count(), 3, "{lines}");
}

#[test]
fn on_a_terminal_frames_are_lines() {
    let port = Port::new();
    // script(1) is a terminal for what it runs.
    let command = format!(
        "{} --netd {} port capture lan web --count 3",
        port.host.path("kvmctl"),
        port.host.netd_address()
    );
    let reader = Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script");
    let mut reader = Running(reader);
    let status = wait::until("three frames", || {
        port.send(7, 10);
        reader.0.try_wait().expect("wait")
    });
    let mut lines = String::new();
    reader.0.stdout.take().expect("stdout").read_to_string(&mut lines).expect("lines");
    assert!(status.success(), "{lines}");
    assert_eq!(lines.matches("UDP, length 10").count(), 3, "{lines}");
    assert!(lines.contains("3 frames captured"), "{lines}");
}

#[test]
fn what_is_no_filter_is_refused_and_nothing_is_left() {
    let port = Port::new();
    let file = port.host.path("kept");
    fs::write(&file, "kept").expect("write");
    let canary = port.host.path("canary");
    for (filter, reason) in [
        ("--help", "is no filter"),
        (&*format!("-w {canary}"), "is no filter"),
        (&*format!("arp -w {canary}"), "syntax error"),
        (&*format!("arp\n-w {canary}"), "has no place"),
        ("arp; id", "syntax error"),
        ("$(id)", "syntax error"),
        ("udp prot 7", "syntax error"),
        ("vlan 5", "when you read the file"),
        ("ip6 protochain 7", "does not take the filter"),
        ("host kvmctl.example", "unknown host"),
    ] {
        let outcome = port.host.kvmctl(&["port", "capture", "lan", "web", "-w", &file, "--", filter]);
        assert_eq!(outcome.code, 1, "{filter}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(reason), "{filter}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("hint: "), "{filter}: {}", outcome.stderr);
    }
    for (port_name, arguments, reason) in [
        ("none", "", "there is no port `none`"),
        ("web", "--duration 25h", "1 ms to 24 h"),
        ("web", "--size 1K", "8192 bytes to 64 GiB"),
    ] {
        let words = format!("port capture lan {port_name} -w {file} {arguments}");
        let outcome = port.host.kvmctl(&words.split_whitespace().collect::<Vec<_>>());
        assert!(outcome.code == 1 && outcome.stderr.contains(reason), "{arguments}: {}", outcome.stderr);
    }
    assert!(!fs::exists(&canary).expect("look"));
    assert_eq!(fs::read_to_string(&file).expect("read"), "kept");
    assert_eq!(packet_sockets(&port.host.netns), 0);
}

/// Packet sockets of a namespace, as the kernel lists them.
fn packet_sockets(netns: &Netns) -> usize {
    netns.sh("cat /proc/net/packet").lines().skip(1).count()
}

#[test]
fn only_root_and_the_owner_capture() {
    let port = Port::new();
    let capture = |user: u32, name: &str| {
        let user = user.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &VMD_UID.to_string(), "--clear-groups"]).args([
            &port.host.path("kvmctl"),
            "--netd",
            &port.host.netd_address(),
            "port",
        ]);
        match name {
            "create" => command.args(["create", "lan", "theirs"]),
            _ => command.args(["capture", "lan", name, "--duration", "1ms"]),
        };
        netns::output(&mut command)
    };
    let refused = capture(VMD_UID, "web");
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("the port belongs to uid 0"), "{words}");
    assert!(refused.stdout.is_empty());
    // Without any raw socket of their own.
    assert!(capture(VMD_UID, "create").status.success());
    let own = capture(VMD_UID, "theirs");
    assert!(own.status.success(), "{}", String::from_utf8_lossy(&own.stderr));
    assert!(!own.stdout.is_empty());
    assert_eq!(capture(VMD_UID + 1, "theirs").status.code(), Some(1));
    port.host.ok("port capture lan theirs --duration 1ms -w /dev/null");
}

#[test]
fn the_ports_end_and_netds_end_are_the_captures() {
    let mut port = Port::new();
    let running = capture(&port.host, "deleted.pcapng", "");
    port.send(7, 10);
    port.host.ok("port delete lan web");
    let (code, words) = running.end();
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("1 frame captured") && words.contains("the port was deleted"), "{words}");
    assert_eq!(tcpdump(&port.host, "deleted.pcapng", "").len(), 1);

    // A link that goes down and up again is still the port's.
    port.host.ok(&format!("port create lan web --mac {MAC}"));
    let tap = link(&port.host);
    port.tap = open(&port.host);
    let running = capture(&port.host, "flap.pcapng", "--count 2 udp");
    port.send(7, 10);
    wait::until("a frame", || (tcpdump(&port.host, "flap.pcapng", "").len() == 1).then_some(()));
    port.host.netns.sh(&format!("ip link set {tap} down && ip link set {tap} up"));
    port.send(7, 10);
    let (code, words) = running.end();
    assert_eq!(code, Some(0), "{words}");

    // One that somebody removed is not, though netd makes another.
    let running = capture(&port.host, "lost.pcapng", "");
    port.host.netns.sh(&format!("ip link delete {tap}"));
    let (code, words) = running.end();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("somebody removed the port's link"), "{words}");

    // netd notices a little later than the capture does.
    wait::until("another link of the port", || {
        let shown = port.host.ok_json("port show lan web");
        let links = port.host.netns.json("ip -j link");
        let there =
            links.as_array()?.iter().any(|link| link["ifname"] == tap.as_str() && link["master"].is_string());
        (there && shown["status"]["state"] == "ready").then_some(())
    });
    let running = capture(&port.host, "stopped.pcapng", "");
    let netd = Pid::from_raw(port.host.netd_pid().cast_signed()).expect("pid");
    kill_process(netd, Signal::TERM).expect("signal");
    let (code, words) = running.end();
    assert_eq!(code, Some(3), "{words}");
    assert!(words.contains("netd ended"), "{words}");
    let file = fs::read(port.host.path("stopped.pcapng")).expect("file");
    assert_eq!(blocks(&file).last().map(|(kind, _)| *kind), Some(5), "no statistics at the end");
}

/// Starts captures by the API, which a reader may leave unread as kvmctl never does.
fn captures(runtime: &Runtime, address: &str, many: usize) -> Vec<tonic::Streaming<CaptureChunk>> {
    runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..many {
            // A connection each, since the streams of one share what may be on its way.
            let channel = shared::socket::channel(address).expect("address");
            let request = CaptureRequest { name: "networks/lan/ports/web".into(), ..Default::default() };
            let mut client = CaptureServiceClient::new(channel);
            streams.push(client.capture(request).await.expect("capture").into_inner());
        }
        streams
    })
}

#[test]
fn readers_that_stall_neither_grow_netd_nor_hold_it_up() {
    let port = Port::new();
    let runtime = Runtime::new().expect("runtime");
    let mut streams = captures(&runtime, &port.host.netd_address(), 20);
    // No more, for root either.
    let outcome = port.host.kvmctl(&["port", "capture", "lan", "web", "--duration", "1s"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("20 captures are running"), "{}", outcome.stderr);

    let before = Figures::of(port.host.netd_pid()).resident;
    // 300 MB each, of which nobody reads a byte.
    for round in 0..5 {
        for _ in 0..1000 {
            port.send(7, 60_000);
        }
        port.host.ok("port show lan web");
        port.host.ok(&format!("port create lan other-{round}"));
    }
    let grown = Figures::of(port.host.netd_pid()).resident.saturating_sub(before);
    // Twenty of: four pieces of 128 KiB, a frame's buffer of 256 KiB, and what HTTP/2 has on its way. MiB, as KiB.
    assert!(grown < 96 << 10, "{grown} KiB more");
    println!("{grown} KiB more, with 20 readers that stall and 6 GB of frames");

    // What a reader gets in the end is whole, and it says what is missing.
    runtime.block_on(async {
        port.host.ok("port delete lan web");
        let (mut file, mut last) = (Vec::new(), CaptureChunk::default());
        while let Some(chunk) = streams[0].message().await.expect("stream") {
            file.extend_from_slice(&chunk.data);
            last = chunk;
        }
        assert_ne!(last.dropped, 0);
        if last.end() == CaptureEnd::Unspecified {
            file.extend_from_slice(&last.closing);
        }
        let frames = blocks(&file).iter().filter(|(kind, _)| *kind == 6).count();
        assert_eq!(frames as u64, last.frames);
        assert!(frames > 0 && last.frames + last.dropped <= 5000, "{frames} and {}", last.dropped);
    });
    drop(streams);
    wait::until("the sockets to be closed", || (packet_sockets(&port.host.netns) == 0).then_some(()));
}

#[test]
fn without_the_right_the_error_says_what_is_missing() {
    let mut host = TestHost::bare();
    host.start_netd_by(&["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]);
    host.ok("network create lan --mode isolated");
    host.ok("port create lan web");
    let outcome = host.kvmctl(&["port", "capture", "lan", "web"]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: give netd CAP_NET_RAW"), "{}", outcome.stderr);
    assert!(outcome.stdout.is_empty());
}
