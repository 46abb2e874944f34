//! What the port filter costs: two guests on ports with it, on ports without it, and on a plain bridge.

use crate::{
    measure::{Row, Samples},
    subjects::Kvmctl,
};
use integration_tests::{guest::Guest, netns::run, wait};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Bytes of one transfer.
const VOLUME: usize = 64 << 20;
/// Round trips of one sample.
const TRIPS: usize = 4000;
const PORT: u16 = 5201;

/// Two guests that reach each other.
struct Pair {
    from: Guest,
    to: Guest,
    address: String,
}

impl Pair {
    fn new(taps: [(String, String); 2], subnet: u8) -> Self {
        let [from, to] = taps.map(|(tap, mac)| Guest::plug_here(&tap, &mac));
        from.addresses(&[&format!("10.66.{subnet}.11/24")]);
        to.addresses(&[&format!("10.66.{subnet}.12/24")]);
        let address = format!("10.66.{subnet}.12");
        wait::until("the guests to reach each other", || {
            from.netns.succeeds(&format!("ping -n -c 1 -W 1 {address}")).then_some(())
        });
        Self { from, to, address }
    }

    /// Ports of ours on a network of their own.
    fn on_ports(kvmctl: &Kvmctl<'_>, subnet: u8, filter: &str) -> Self {
        let network = format!("traffic{subnet}");
        let range = format!("10.66.{subnet}.1/24");
        kvmctl.time(&["network", "create", &network, "--mode", "isolated", "--ipv4", &range]);
        let port = |name: &str, last: u8| {
            let ip = format!("10.66.{subnet}.{last}");
            let port = kvmctl.value(&["port", "create", &network, name, "--ip", &ip, "--filter", filter]);
            let field = |field: &str| port["status"][field].as_str().expect("a status").to_owned();
            (field("interface"), field("mac"))
        };
        Self::new([port("a", 11), port("b", 12)], subnet)
    }

    /// A bridge and taps as one makes them by hand.
    fn on_a_plain_bridge(subnet: u8) -> Self {
        let script = "ip link add plain type bridge; ip link set plain up
                      for tap in plain-a plain-b; do ip tuntap add $tap mode tap; ip link set $tap master plain up; done";
        run(Command::new("sh").args(["-euc", script]));
        let tap = |name: &str, mac: &str| (name.to_owned(), mac.to_owned());
        Self::new([tap("plain-a", "52:54:00:66:00:0a"), tap("plain-b", "52:54:00:66:00:0b")], subnet)
    }

    /// How long one TCP stream takes for `VOLUME`.
    fn transfer(&self) -> Duration {
        let listener = self.to.netns.enter(|| TcpListener::bind(("0.0.0.0", PORT)).expect("listen"));
        let address = SocketAddr::new(self.address.parse().expect("address"), PORT);
        let mut stream = self.from.netns.enter(|| TcpStream::connect(address).expect("connect"));
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let (mut left, mut buffer) = (VOLUME, vec![0; 1 << 16]);
            while left > 0 {
                let length = stream.read(&mut buffer).expect("read");
                assert!(length > 0, "the stream ends early");
                left -= length;
            }
        });
        let begin = Instant::now();
        stream.write_all(&vec![0; VOLUME]).expect("write");
        receiver.join().expect("receiver");
        begin.elapsed()
    }

    /// How long `TRIPS` datagrams take there and back, one after the other.
    fn round_trips(&self) -> Duration {
        let echo = self.to.netns.enter(|| UdpSocket::bind(("0.0.0.0", PORT)).expect("bind"));
        let asker = self.from.netns.enter(|| UdpSocket::bind(("0.0.0.0", 0)).expect("bind"));
        asker.connect((self.address.as_str(), PORT)).expect("connect");
        asker.set_read_timeout(Some(Duration::from_secs(10))).expect("socket");
        let answerer = thread::spawn(move || {
            let mut buffer = [0; 64];
            for _ in 0..TRIPS {
                let (length, from) = echo.recv_from(&mut buffer).expect("receive");
                echo.send_to(&buffer[..length], from).expect("send");
            }
        });
        let begin = Instant::now();
        for _ in 0..TRIPS {
            asker.send(&[7; 64]).expect("send");
            asker.recv(&mut [0; 64]).expect("an answer");
        }
        let time = begin.elapsed();
        answerer.join().expect("answerer");
        time
    }
}

/// Measures in turns.
pub fn rows(kvmctl: &Kvmctl<'_>, repetitions: usize) -> Vec<Row> {
    let names = ["filter on", "filter off", "plain bridge"];
    let pairs =
        [Pair::on_ports(kvmctl, 1, "on"), Pair::on_ports(kvmctl, 2, "off"), Pair::on_a_plain_bridge(3)];
    let mut stream = [(); 3].map(|()| Samples::default());
    let mut trips = [(); 3].map(|()| Samples::default());
    for turn in 0..=repetitions {
        for (at, pair) in pairs.iter().enumerate() {
            stream[at].add(turn, pair.transfer());
            trips[at].add(turn, pair.round_trips());
        }
    }
    drop(pairs);
    for subnet in [1, 2] {
        kvmctl.time(&["network", "delete", &format!("traffic{subnet}"), "--force"]);
    }
    run(Command::new("sh")
        .args(["-euc", "ip link delete plain-a; ip link delete plain-b; ip link delete plain"]));
    let row = |what: String, samples: &[Samples; 3], other: usize| {
        Row::new(&what, names[0], samples[0].clone(), names[other], samples[other].clone())
            .at_most_slower(1.05)
    };
    let (carry, ask) =
        (format!("carry {} MiB by TCP, guest to guest", VOLUME >> 20), format!("{TRIPS} round trips by UDP"));
    vec![
        row(carry.clone(), &stream, 1),
        row(carry, &stream, 2),
        row(ask.clone(), &trips, 1),
        row(ask, &trips, 2),
    ]
}
