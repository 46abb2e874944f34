//! The operations, and what they need.

use super::records::deny_out;
use crate::host::TestHost;
use std::net::UdpSocket;

/// Something that is asked of a host.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// A command of kvmctl.
    Kvmctl(&'static str),
    /// Group `g` denies what its guests send, or does not.
    DenyOut(bool),
    /// A datagram from the LAN to a port of the host, which makes an entry in the connection table.
    Datagram(u16),
}

impl Request {
    /// Asks.
    ///
    /// # Errors
    /// What was said.
    pub fn send(&self, host: &TestHost) -> Result<(), String> {
        match self {
            Self::Kvmctl(command) => {
                let outcome = host.kvmctl(&command.split_whitespace().collect::<Vec<_>>());
                if outcome.code == 0 { Ok(()) } else { Err(outcome.stderr) }
            }
            Self::DenyOut(deny) => deny_out(host, *deny),
            Self::Datagram(port) => {
                let sent = host.lan.enter(|| {
                    let socket = UdpSocket::bind("10.99.0.1:4000")?;
                    socket.send_to(b"x", ("10.99.0.2", *port))
                });
                sent.map(drop).map_err(|error| error.to_string())
            }
        }
    }

    /// Asks, and it succeeds.
    ///
    /// # Panics
    /// If it does not.
    pub fn ok(&self, host: &TestHost) {
        self.send(host).unwrap_or_else(|why| panic!("{self:?}: {why}"));
    }

    /// Asks once more; what was to be deleted may be gone.
    ///
    /// # Panics
    /// If it does not succeed.
    pub fn again(&self, host: &TestHost) {
        let Err(why) = self.send(host) else { return };
        let deletes = matches!(self, Self::Kvmctl(command) if command.contains(" delete "));
        assert!(deletes && why.contains("there is no"), "once more, {self:?}: {why}\n{}", host.logs());
    }
}

/// A change that can be taken apart.
#[derive(Clone, Debug)]
pub struct Operation {
    /// For people.
    pub name: String,
    /// What it needs, once.
    pub prepare: Vec<Request>,
    /// What happens before it, each time.
    pub begin: Vec<Request>,
    /// The change.
    pub act: Request,
    /// Leads back from it.
    pub undo: Vec<Request>,
    /// Leads from before the change back to nothing.
    pub clear: Vec<Request>,
}

impl Operation {
    fn new(name: &str, prepare: &[&'static str], act: &'static str, undo: &[&'static str]) -> Self {
        let all = |commands: &[&'static str]| commands.iter().copied().map(Request::Kvmctl).collect();
        Self {
            name: name.to_owned(),
            prepare: all(prepare),
            begin: Vec::new(),
            act: Request::Kvmctl(act),
            undo: all(undo),
            clear: Vec::new(),
        }
    }

    fn cleared_by(mut self, commands: &[&'static str]) -> Self {
        self.clear = commands.iter().copied().map(Request::Kvmctl).collect();
        self
    }

    /// Brings about what is there when the change begins.
    pub(super) fn begin(&self, host: &TestHost) {
        for request in &self.begin {
            request.ok(host);
        }
    }
}

/// Networks of each mode: for people, how to make one, how to remove it.
const NETWORKS: [(&str, &str, &str); 7] = [
    (
        "nat with DHCP",
        "network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64",
        "network delete n",
    ),
    ("routed", "network create r --mode routed --ipv4 10.61.0.1/24 --dhcp off", "network delete r"),
    ("isolated", "network create i --mode isolated", "network delete i"),
    (
        "isolated with DHCP",
        "network create c --mode isolated --ipv4 10.62.0.1/24 --dhcp on",
        "network delete c",
    ),
    ("bridged with a bridge", "network create b --mode bridged --bridge br-x", "network delete b"),
    ("bridged with an uplink", "network create u --mode bridged --uplink up0", "network delete u"),
    (
        "nat behind an uplink",
        "network create m --mode nat --ipv4 10.63.0.1/24 --uplink up0 --dhcp off",
        "network delete m",
    ),
];

const LAN: &str = "network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64 --mtu 1500 --dhcp on";
const PORT: &str = "port create n web --ip 10.60.0.11 --ip fd00:60::11 --mac 52:54:00:00:00:11 --hostname web --rate-in 10M --rate-out 20M --group g";
const PORT_DELETE: &str = "port delete n web";
const FORWARD: &str = "forward add n --name f --protocol udp --listen 8080 --to web:80";
const NO_LAN: &str = "network delete n --force";
const NO_GROUP: &str = "group delete g";
const GROUP: &str = "group create g";

/// All operations. In `make test` without those networks that are part of others: isolated without DHCP, and nat behind
/// an uplink.
#[must_use]
pub fn all() -> Vec<Operation> {
    let mut all = Vec::new();
    for (name, create, delete) in NETWORKS {
        if !crate::soak() && ["isolated", "nat behind an uplink"].contains(&name) {
            continue;
        }
        all.push(
            Operation::new(&format!("network delete, {name}"), &[create], delete, &[create])
                .cleared_by(&[delete]),
        );
        all.push(Operation::new(&format!("network create, {name}"), &[], create, &[delete]));
    }
    all.extend([
        Operation::new("group create", &[], GROUP, &[NO_GROUP]),
        Operation::new("group delete", &[GROUP], NO_GROUP, &[GROUP]).cleared_by(&[NO_GROUP]),
        Operation {
            act: Request::DenyOut(true),
            undo: vec![Request::DenyOut(false)],
            ..Operation::new("group update", &[LAN, GROUP, PORT], GROUP, &[])
        }
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation {
            begin: vec![Request::Datagram(8080)],
            ..Operation::new("forward add", &[LAN, GROUP, PORT], FORWARD, &["forward delete n f"])
        }
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation {
            begin: vec![Request::Datagram(8080)],
            ..Operation::new("forward delete", &[LAN, GROUP, PORT, FORWARD], "forward delete n f", &[FORWARD])
        }
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation::new(
            "port update",
            &[LAN, GROUP, PORT, FORWARD],
            "port update n web --rate-in 30M --hostname other --no-group --isolated on",
            &["port update n web --rate-in 10M --hostname web --group g --isolated off"],
        )
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation::new(
            "network update of the MTU",
            &[LAN, GROUP, PORT],
            "network update n --mtu 1400",
            &["network update n --mtu 1500"],
        )
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation::new(
            "network update that ends DHCP",
            &[LAN, GROUP, PORT, FORWARD],
            "network update n --dhcp off",
            &["network update n --dhcp on"],
        )
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation::new(
            "network update that begins DHCP in a cell",
            &[
                "network create c --mode isolated --ipv4 10.62.0.1/24 --dhcp off",
                "port create c web --mac 52:54:00:00:00:12",
            ],
            "network update c --dhcp on",
            &["network update c --dhcp off"],
        )
        .cleared_by(&["network delete c --force"]),
        Operation {
            begin: vec![Request::Datagram(8080)],
            ..Operation::new("port delete", &[LAN, GROUP, PORT, FORWARD], PORT_DELETE, &[PORT])
        }
        .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation::new("port create", &[LAN, GROUP, PORT, FORWARD, PORT_DELETE], PORT, &[PORT_DELETE])
            .cleared_by(&[NO_LAN, NO_GROUP]),
        Operation::new(
            "network delete with ports and forwards",
            &[LAN, GROUP, PORT, FORWARD],
            NO_LAN,
            &[LAN, PORT, FORWARD],
        )
        .cleared_by(&[NO_LAN, NO_GROUP]),
    ]);
    all
}
