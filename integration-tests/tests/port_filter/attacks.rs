//! What a hostile guest writes.

mod arp;
mod ipv4;
mod ipv6;
mod link;
mod nd;
mod router;

use crate::scene::Scene;
use Group::*;

/// What an attack is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Mac,
    Arp,
    Ipv4,
    Dhcp,
    Ipv6,
    Router,
    Neighbour,
    Encapsulation,
    Other,
}

/// Each group, and how many attacks of it there are at least.
pub const AT_LEAST: [(Group, usize); 9] = [
    (Mac, 4),
    (Arp, 8),
    (Ipv4, 6),
    (Dhcp, 4),
    (Ipv6, 6),
    (Router, 7),
    (Neighbour, 8),
    (Encapsulation, 8),
    (Other, 9),
];

impl Group {
    /// The drop counter that counts it, unless the attack says another.
    fn reason(self) -> &'static str {
        match self {
            Mac => "mac",
            Arp => "arp",
            Ipv4 => "ipv4",
            Dhcp => "dhcp",
            Ipv6 => "ipv6",
            Router => "router",
            Neighbour => "nd",
            Encapsulation | Other => "ethertype",
        }
    }
}

/// One frame.
pub struct Attack {
    pub group: Group,
    pub what: &'static str,
    pub frame: Vec<u8>,
    /// The drop counter that counts it; `None` if it ends before any filter, and would without one.
    pub reason: Option<&'static str>,
    /// All that is wrong with it is that the address in it is not the guest's.
    pub of_an_address: bool,
}

impl Attack {
    fn new(group: Group, what: &'static str, frame: Vec<u8>) -> Self {
        Self { group, what, frame, reason: Some(group.reason()), of_an_address: false }
    }

    /// Another counter counts it.
    fn counted_as(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// Were the address its own, the guest might send it.
    fn of_an_address(self) -> Self {
        Self { of_an_address: true, ..self }
    }

    /// A bridge of Linux drops it before any filter sees it.
    fn ended_by_the_bridge(self) -> Self {
        Self { reason: None, ..self }
    }
}

/// All attacks on a scene. Listener queries come last: a bridge without filter changes its ways after one.
pub fn all(scene: &Scene) -> Vec<Attack> {
    [
        link::macs(scene),
        arp::attacks(scene),
        ipv4::attacks(scene),
        ipv4::dhcp_servers(scene),
        ipv4::dhcp_clients(scene),
        ipv6::attacks(scene),
        ipv6::dhcp_servers(scene),
        ipv6::dhcp_relays(scene),
        nd::attacks(scene),
        link::encapsulations(scene),
        link::others(scene),
        router::attacks(scene),
    ]
    .into_iter()
    .flatten()
    .collect()
}
