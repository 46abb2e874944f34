//! The host's kernel, at the level of intentions: what there is, and one change at a time.

mod action;
mod allow;
pub mod bpf;
pub mod cell;
mod conntrack;
#[cfg(any(test, fuzzing))]
pub mod fake;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod inspect;
mod link;
mod linux;
#[cfg(test)]
pub mod netns;
pub mod nft;
pub mod packet;
mod program;
mod route;
mod ruleset;
mod shape;
mod socket;
mod sysctl;
mod tap;
pub mod trace;
pub mod watch;

pub use action::Action;
pub use allow::{Allow, Allowed, Peer, Place, With};
pub use inspect::{Inspect, Inspection, Refusal, RouteAnswer, RouteQuery, Save};
pub use linux::LinuxKernel;
pub use ruleset::{HOST_DROPS, HOST_LIMITS, TABLE};
pub use shape::Bucket;
pub use socket::Listener;
pub use trace::{TRACE_TABLE, TraceFlow};

use crate::model::{Address, Direction, Forwarding, IfName, Protocol, Rate, Route};
use ipnet::{Ipv4Net, Ipv6Net};
use shared::{fault::Fault, mac::Mac};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All links, addresses, routes, our tables and the sysctls that we know.
    All,
    /// As `All`, without the tables: two runs of nft less.
    Host,
    /// These links only, no tables: the cost does not grow with the number of ports.
    Links(Vec<IfName>),
    /// As `Links`, with what limits their bandwidth.
    Port(Vec<IfName>),
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// By name.
    pub links: BTreeMap<IfName, Link>,
    /// Values of host-wide sysctls, of every link's `accept_ra` and of what `BridgeProfile::watched` names for each
    /// bridge of ours, by key (`net/ipv4/ip_forward`).
    pub sysctls: BTreeMap<String, String>,
    /// Our nft tables; `None` where the scope did not include them.
    pub tables: Option<Tables>,
}

/// A link with what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Kernel's number of it.
    pub index: u32,
    /// Its sort.
    pub kind: LinkKind,
    /// IFLA_GROUP.
    pub group: u32,
    /// IFLA_IFALIAS; empty if none.
    pub alias: String,
    /// Name of the bridge (or other master) it is a port of.
    pub master: Option<IfName>,
    /// Hardware address; `None` if it has none of 6 bytes, or a group address.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier.
    pub carrier: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Unicast routes with one next hop that leave by it, without the kernel's own link-local and multicast ones.
    pub routes: Vec<Route>,
    /// Whether a route with several next hops leaves by it too.
    pub multipath: bool,
    /// Flags as a bridge port.
    pub port: Option<PortFlags>,
    /// Names of links stacked on it other than as a bridge port (macvlan, VLAN, ...).
    pub uppers: Vec<IfName>,
    /// Our token bucket for what it sends. Looked for on our own links only, and not in `Scope::Links`.
    pub bucket: Option<Bucket>,
    /// Number of the link that all it receives is led through, 0 if that one is gone. As `bucket`.
    pub redirect: Option<u32>,
}

impl Link {
    /// A link that is down, of which nothing else is known yet.
    #[must_use]
    pub fn new(index: u32, kind: LinkKind) -> Self {
        Self {
            index,
            kind,
            group: 0,
            alias: String::new(),
            master: None,
            mac: None,
            mtu: 0,
            up: false,
            carrier: false,
            addresses: Vec::new(),
            routes: Vec::new(),
            multipath: false,
            port: None,
            uppers: Vec::new(),
            bucket: None,
            redirect: None,
        }
    }
}

/// Sort of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A tap, with the uid that may open it.
    Tap {
        /// `None`: any process with CAP_NET_ADMIN.
        owner: Option<u32>,
        /// Outlives the descriptor.
        persist: bool,
    },
    /// An intermediate device, which what another link receives is led through.
    Ifb,
    /// The loopback device.
    Loopback,
    /// A wireless station.
    Wifi,
    /// A hardware NIC, or a kind that behaves as one: veth, bond, VLAN, ...
    Nic,
}

/// Flags of a bridge port that guard against what a guest may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortFlags {
    /// Learns source addresses.
    pub learning: bool,
    /// Gets frames for unknown addresses.
    pub flood: bool,
    /// Shuts down on a BPDU.
    pub bpdu_guard: bool,
    /// Never becomes the root port.
    pub root_block: bool,
    /// Exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// Of the frames to 01:80:c2:00:00:0X, bit X: those that pass the bridge and its rules like any others. Without
    /// its bit, one is the port's own: the host's IP takes what is in it as come by the tap, and no rule for bridges
    /// sees it.
    pub reserved_groups: u16,
    /// Gets its own frames back where they are for its own MAC. With bridge netfilter on, what a guest sends to a
    /// forward that leads to itself stays on the bridge.
    pub hairpin: bool,
}

/// All reserved groups but the pause frame's, which never passes; the kernel refuses its bit.
pub const RESERVED_GROUPS: u16 = 0xfffd;

/// Our two tables, as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Digest of all that is static: chains, rules, declarations of sets. `None` if a table is missing.
    pub digest: Option<String>,
    /// Instance in the mark chain; `None` if there is no mark.
    pub instance: Option<String>,
    /// Members of the sets.
    pub elements: Elements,
    /// A table of our name without our mark exists.
    pub foreign: bool,
}

/// Data of the packet rules: all that differs from network to network and port to port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements(pub BTreeSet<Element>);

/// One member of one set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Bridge of an isolated network.
    IsolatedBridge(IfName),
    /// Bridge of a nat or routed network.
    GuestBridge(IfName),
    /// Bridge whose traffic leaves with the host's address.
    NatBridge(IfName),
    /// Bridge whose guests may be reached from outside.
    RoutedBridge(IfName),
    /// Bridge whose traffic may use any interface that is not ours.
    AnyUplink(IfName),
    /// Bridge and the only interface its traffic may use.
    Uplink(IfName, IfName),
    /// Bridge and the prefix its guests may use.
    Subnet4(IfName, Ipv4Net),
    /// As `Subnet4`.
    Subnet6(IfName, Ipv6Net),
    /// Bridge and its MAC, by which what the host routes is told from what stays on the bridge.
    BridgeMac(IfName, Mac),
    /// Bridge and the host's address there.
    Gateway4(IfName, Ipv4Addr),
    /// As `Gateway4`.
    Gateway6(IfName, Ipv6Addr),
    /// Bridge and a guest's address there that is kept apart from the others of that sort.
    Apart4(IfName, Ipv4Addr),
    /// As `Apart4`.
    Apart6(IfName, Ipv6Addr),
    /// Tap of ours.
    Tap(IfName),
    /// Tap whose frames are checked.
    FilteredTap(IfName),
    /// Tap and the source MAC it may use.
    TapMac(IfName, Mac),
    /// Tap that may use any IPv4 address.
    AnyAddress4(IfName),
    /// As `AnyAddress4`.
    AnyAddress6(IfName),
    /// Tap, its MAC, and an IPv4 address it may use.
    TapAddress4(IfName, Mac, Ipv4Addr),
    /// Tap and an IPv6 address it may use.
    TapAddress6(IfName, Ipv6Addr),
    /// Tap whose frames never reach the host.
    IsolatedTap(IfName),
    /// Tap that gets frames back which it sent to its own MAC.
    ReflectedTap(IfName),
    /// Port of the host that leads to a guest.
    Forward4(Forwarding<Ipv4Addr>),
    /// As `Forward4`.
    Forward6(Forwarding<Ipv6Addr>),
    /// Bridge, and a guest's address and port there that a forward leads to.
    Open4(IfName, Ipv4Addr, Protocol, u16),
    /// As `Open4`.
    Open6(IfName, Ipv6Addr, Protocol, u16),
    /// Tap whose guest gets, or sends, only what a rule of a group allows.
    GroupedTap(Direction, IfName),
    /// Tap that may be in groups on a bridge where the host is a station as any other.
    StationTap(IfName),
    /// Tap and the number of its network and groups, from 1.
    TapProfile(IfName, u16),
    /// Bridge and the address of a guest there, as `GroupedTap`.
    GroupedAddress(Direction, IfName, IpAddr),
    /// Bridge, the address of a guest there, and its number, as `TapProfile`.
    AddressProfile(IfName, IpAddr, u16),
    /// Whose address is at the other end.
    Peer(Place, Peer),
    /// What the guests of a number may get or send. No two overlap.
    Allow(Place, Allow),
}

/// What guests' frames have left behind, by tap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Taps without any are left out.
    pub taps: BTreeMap<IfName, TapTraffic>,
    /// Packets that the host dropped, by the guest's bridge and MAC and by reason.
    pub by_host: BTreeMap<(IfName, Mac), BTreeMap<&'static str, u64>>,
}

/// What one guest's frames have left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapTraffic {
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Addresses that the guest used in ARP and neighbour discovery in the last 30 minutes.
    pub seen: BTreeSet<IpAddr>,
    /// UDP datagrams of the last two minutes that may be answered: from, to, and their ports.
    pub flows: BTreeSet<(IpAddr, IpAddr, u16, u16)>,
}

/// How the host behaves on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeProfile {
    /// No IP at all: nothing answers there.
    Silent,
    /// A gateway: answers for its own address only, takes no router advertisements.
    Gateway {
        /// Whether it speaks IPv6 at all.
        ipv6: bool,
    },
    /// Stands for a NIC: as any interface of the host.
    Uplink,
}

impl BridgeProfile {
    /// Keys and values for a bridge. `arp_ignore`: 1 answers for addresses of that interface only, 8 for none.
    #[must_use]
    pub fn sysctls(self, bridge: &IfName) -> Vec<(String, &'static str)> {
        let v4 = |key: &str| format!("net/ipv4/conf/{bridge}/{key}");
        let v6 = |key: &str| format!("net/ipv6/conf/{bridge}/{key}");
        match self {
            Self::Silent => vec![(v6("disable_ipv6"), "1"), (v4("arp_ignore"), "8")],
            Self::Gateway { ipv6 } => vec![
                (v6("accept_ra"), "0"),
                (v6("accept_redirects"), "0"),
                // From the MAC: the port filter knows the gateway's link-local address by that form.
                (v6("addr_gen_mode"), "0"),
                (v6("disable_ipv6"), if ipv6 { "0" } else { "1" }),
                (v4("arp_ignore"), "1"),
                (v4("accept_redirects"), "0"),
                (v4("send_redirects"), "0"),
                (v4("proxy_arp"), "0"),
            ],
            // The NIC's link-local address moves here; a second one is not wanted.
            Self::Uplink => vec![(v6("addr_gen_mode"), "1")],
        }
    }

    /// Keys of a bridge that are observed: those whose change would open the host, or close IPv6.
    #[must_use]
    pub fn watched(bridge: &IfName) -> [String; 2] {
        [format!("net/ipv6/conf/{bridge}/disable_ipv6"), format!("net/ipv4/conf/{bridge}/arp_ignore")]
    }
}

/// A tap as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    /// Its name.
    pub name: IfName,
    /// The bridge it is a port of.
    pub bridge: IfName,
    /// The uid that may open it.
    pub owner: u32,
    /// Bytes.
    pub mtu: u32,
    /// The guest's MAC, for the static FDB entry.
    pub mac: Mac,
    /// Alias, which is the mark.
    pub alias: String,
    /// Flags as a bridge port.
    pub flags: PortFlags,
    /// Limit of what it sends, which is toward the guest.
    pub rate: Option<Rate>,
    /// The ifb that limits what it receives, which is from the guest.
    pub ifb: Option<IfName>,
}

/// A veth into a cell as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellSpec {
    /// Its end on the bridge, which is guarded as a tap is.
    pub outer: TapSpec,
    /// MAC of its other end.
    pub inner_mac: Mac,
    /// A process of the namespace that the other end is in.
    pub pid: u32,
}

/// The kernel. The second implementation is a fake for tests.
pub trait Kernel: Send + Sync + 'static {
    /// Reads what there is.
    ///
    /// # Errors
    /// INTERNAL if the kernel or nft cannot be read.
    fn observe(&self, scope: &Scope) -> impl Future<Output = Result<Observed, Fault>> + Send;

    /// First line of `nft --version`.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if nft is missing.
    fn nft_version(&self) -> impl Future<Output = Result<String, Fault>> + Send;

    /// Reads what guests' frames have left behind. What it costs grows with the number of ports.
    ///
    /// # Errors
    /// INTERNAL if nft cannot be read.
    fn traffic(&self) -> impl Future<Output = Result<Traffic, Fault>> + Send;

    /// The programs of the host that listen at a port, loopback included.
    ///
    /// # Errors
    /// INTERNAL if the kernel cannot be read.
    fn listeners(
        &self,
        protocol: Protocol,
        port: u16,
    ) -> impl Future<Output = Result<Vec<Listener>, Fault>> + Send;

    /// Carries out one change. Doing it twice is no error.
    ///
    /// # Errors
    /// What the kernel or nft refused, with its own text.
    fn apply(&self, action: &Action) -> impl Future<Output = Result<(), Fault>> + Send;
}
