//! A NIC goes onto a bridge and comes back, and its own connections do not notice.

use integration_tests::{census::Census, host::TestHost, netns::Netns, wait};
use std::{
    collections::BTreeSet,
    net::UdpSocket,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Between two datagrams of the stream.
const PACE: Duration = Duration::from_millis(1);

/// How often the NIC goes and comes back.
const ROUNDS: usize = 3;

/// A stream of numbered datagrams from the host to the LAN and back.
struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

impl Stream {
    /// Starts the stream; `from` and `to` are addresses of host and LAN.
    fn start(host: &Netns, lan: &Netns, to: &str) -> Self {
        let echo = lan.enter(|| UdpSocket::bind((to, 4000)).expect("bind"));
        thread::spawn(move || {
            let mut number = [0; 4];
            while let Ok((4, from)) = echo.recv_from(&mut number) {
                // A full queue would be this machine's loss, not the host's.
                echo.send_to(&number, from).expect("echo");
            }
        });
        let any = if to.contains(':') { "::" } else { "0.0.0.0" };
        let socket = host.enter(|| UdpSocket::bind((any, 0)).expect("bind"));
        socket.connect((to, 4000)).expect("connect");
        let stop = Arc::new(AtomicBool::new(false));
        let (answers, done) = (socket.try_clone().expect("socket"), Arc::clone(&stop));
        answers.set_read_timeout(Some(Duration::from_secs(2))).expect("socket");
        let receiver = thread::spawn(move || {
            let mut got = BTreeSet::new();
            let mut number = [0; 4];
            loop {
                match answers.recv(&mut number) {
                    Ok(_) => drop(got.insert(u32::from_be_bytes(number))),
                    // Silence for two seconds after the last one was sent: nothing more comes.
                    Err(_) if done.load(Ordering::Relaxed) => return got,
                    Err(_) => {}
                }
            }
        });
        let done = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut sent = 0u32;
            while !done.load(Ordering::Relaxed) {
                // An unreachable network shows as a lost number.
                let _ = socket.send(&sent.to_be_bytes());
                sent += 1;
                thread::park_timeout(PACE);
            }
            // Ends the echo.
            let _ = socket.send(b"stop!");
            sent
        });
        Self { stop, sender, receiver }
    }

    /// How many were sent, and which were lost.
    fn end(self) -> (u32, Vec<u32>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("sender");
        let got = self.receiver.join().expect("receiver");
        (sent, (0..sent).filter(|number| !got.contains(number)).collect())
    }
}

#[test]
fn the_hosts_own_connections_do_not_notice_and_all_is_put_back() {
    let host = TestHost::new();
    host.netns.sh(
        "ip route add 10.70.0.0/16 via 10.99.0.1 metric 77; ip route add 10.71.0.0/16 via 10.99.0.1 mtu 1400
                   ip -6 route add 2001:db8:70::/48 via 2001:db8:99::1 metric 77
                   ip address add 10.99.1.2/24 dev up0",
    );
    let before = Census::of(&host.netns);
    let v4 = Stream::start(&host.netns, &host.lan, "10.99.0.1");
    let v6 = Stream::start(&host.netns, &host.lan, "2001:db8:99::1");
    for _ in 0..ROUNDS {
        host.ok("network create lan --mode bridged --uplink up0");
        let up0 = &host.netns.json("ip -j address show up0")[0];
        assert_eq!(up0["master"], "kvb-lan");
        assert_eq!(up0["addr_info"].as_array().map(Vec::len), Some(0), "{up0}");
        let routes = host.netns.sh("ip route; ip -6 route");
        assert!(!routes.contains("dev up0"), "{routes}");
        assert!(routes.contains("10.71.0.0/16 via 10.99.0.1 dev kvb-lan mtu 1400"), "{routes}");
        let bridge = &host.netns.json("ip -j link show kvb-lan")[0];
        assert_eq!(bridge["address"], up0["address"], "the bridge has the NIC's MAC");
        host.ok("network delete lan");
    }
    for (name, (sent, lost)) in [("IPv4", v4.end()), ("IPv6", v6.end())] {
        println!("{name}: lost {} of {sent} while the NIC was moved {} times", lost.len(), 2 * ROUNDS);
        assert!(sent > 100, "{name}: only {sent} datagrams were sent");
        // The kernel itself drops what arrives in the microseconds in which a port is being enabled or disabled
        // (net/bridge/br_if.c, del_nbp): never two in a row, and not each time.
        let gap = lost.windows(2).any(|pair| pair[1] == pair[0] + 1);
        assert!(!gap && lost.len() <= ROUNDS, "{name}: lost {lost:?} of {sent}");
    }
    before.assert_same(&Census::of(&host.netns));
}

#[test]
fn a_takeover_that_netd_did_not_finish_is_finished_at_the_next_start() {
    let mut host = TestHost::bare();
    let before = Census::of(&host.netns);
    host.start_netd();
    // Each time netd is killed a little later in the change, until it gets through.
    let mut cut_short = 0;
    for step in 1.. {
        let mut strace = Command::new("strace");
        // Each change of a link, an address or a route is one sendto on the netlink socket.
        strace
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=sendto"])
            .arg("-e")
            .arg(format!("inject=sendto:signal=SIGKILL:when={}", step * 3))
            .args(["-p", &host.netd_pid().to_string()]);
        let mut tracer = strace.spawn().expect("strace");
        let traced = format!("/proc/{}/status", host.netd_pid());
        wait::until("strace to attach", || {
            let status = std::fs::read_to_string(&traced).ok()?;
            (!status.contains("TracerPid:\t0")).then_some(())
        });
        let created = host.kvmctl(&["network", "create", "lan", "--mode", "bridged", "--uplink", "up0"]);
        let _ = tracer.kill();
        let _ = tracer.wait();
        if created.code == 0 {
            break;
        }
        cut_short += 1;
        host.kill_netd();
        host.start_netd();
        // Fully there or fully gone, as the record says.
        let listed = host.ok_json("network list");
        let master = host.netns.json("ip -j link show up0")[0]["master"].clone();
        if listed.as_array().is_some_and(|networks| networks.is_empty()) {
            before.assert_same(&Census::of(&host.netns));
        } else {
            assert_eq!(master, "kvb-lan", "killed at {step}");
            assert_eq!(listed[0]["status"]["state"], "ready", "{listed}");
            let routes = host.netns.sh("ip route; ip -6 route");
            assert!(routes.contains("default via 10.99.0.1 dev kvb-lan"), "{routes}");
            assert!(!routes.contains("dev up0"), "{routes}");
            host.ok("network delete lan");
            before.assert_same(&Census::of(&host.netns));
        }
        assert!(host.netns.succeeds("ping -n -c 1 -W 2 10.99.0.1"), "killed at {step}");
    }
    assert!(cut_short >= 3, "only {cut_short} kills landed inside the change");
    host.kill_netd();
    host.start_netd();
    host.ok("network delete lan");
    before.assert_same(&Census::of(&host.netns));
}
