//! What groups come to, as members of sets: see `plan/groups`.

use crate::model::Direction;
use ipnet::IpNet;
use std::net::IpAddr;

/// Where rules of groups are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Between the ports of a bridge.
    Bridge,
    /// Where a packet passes the host or comes from it.
    Host,
}

/// An address that guests of a number know as that of one of their peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Where the rules are that name its group.
    pub direction: Direction,
    /// Whose rules, as `Element::TapProfile`.
    pub profile: u16,
    /// Of a guest that is in a group which these rules name.
    pub address: IpAddr,
    /// That guest's number.
    pub peer: u16,
}

/// Something that the guests of a number may get or send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// Which way.
    pub direction: Direction,
    /// As `Element::TapProfile`.
    pub profile: u16,
    /// Who is at the other end.
    pub remote: With,
    /// What.
    pub what: Allowed,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum With {
    /// Whoever has an address in the prefix.
    Net(IpNet),
    /// A peer of this number.
    Profile(u16),
}

/// What may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowed {
    /// Protocols by number, where there are no ports: all but TCP and UDP, and what is not the first fragment.
    Protocols {
        /// The least.
        first: u8,
        /// The largest.
        last: u8,
    },
    /// TCP or UDP to these ports.
    Ports {
        /// 6 or 17.
        protocol: u8,
        /// The least.
        first: u16,
        /// The largest.
        last: u16,
    },
}
