//! IPv6, its extension headers, and how addresses and MACs belong together.

use super::{
    Mac,
    icmp6::Icmp6,
    length,
    transport::{Ends, ICMP6, TCP, UDP, tcp_syn, udp},
};
use std::net::Ipv6Addr;

/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing.
pub const ROUTING: u8 = 43;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: nothing.
pub const NOTHING: u8 = 59;
/// Next header: destination options.
pub const DESTINATION: u8 = 60;

/// Everything a router alert says to MLD (RFC 2711), as options.
pub const ROUTER_ALERT: [u8; 6] = [5, 2, 0, 0, 1, 0];
/// Options that say nothing.
pub const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
/// A routing header of an experimental type, with no segments left: receivers skip it.
pub const NO_SEGMENTS: [u8; 6] = [253, 0, 0, 0, 0, 0];

/// ff02::1
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// ff02::2
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// ff02::16
pub const MLD2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// ff02::1:2
pub const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A packet.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// Sender, as the packet has it.
    pub source: Ipv6Addr,
    /// Receiver.
    pub destination: Ipv6Addr,
    /// What the payload is.
    pub next: u8,
    /// 6.
    pub version: u8,
    /// 255 where neighbour discovery wants it, 64 otherwise.
    pub hop_limit: u8,
    /// Payload length, if it is not the true one.
    pub length: Option<u16>,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Ipv6 {
    /// A packet of some protocol.
    #[must_use]
    pub fn new((source, destination): (Ipv6Addr, Ipv6Addr), next: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, next, version: 6, hop_limit: 64, length: None, payload }
    }

    /// A datagram of UDP.
    #[must_use]
    pub fn udp(ends: (Ipv6Addr, Ipv6Addr), ports: (u16, u16), data: &[u8]) -> Self {
        Self::new(ends, UDP, udp(ends, ports, data))
    }

    /// The first segment of a connection.
    #[must_use]
    pub fn tcp_syn(ends: (Ipv6Addr, Ipv6Addr), ports: (u16, u16)) -> Self {
        Self::new(ends, TCP, tcp_syn(ends, ports))
    }

    /// A message of ICMPv6, with the hop limit it wants.
    #[must_use]
    pub fn icmp(ends: (Ipv6Addr, Ipv6Addr), message: &Icmp6) -> Self {
        let mut bytes = message.bytes();
        let sum = Ends::from(ends).checksum(ICMP6, &bytes);
        bytes[2..4].copy_from_slice(&sum);
        let hop_limit = if message.is_of_neighbours() { 255 } else { 64 };
        Self { hop_limit, ..Self::new(ends, ICMP6, bytes) }
    }

    /// The same behind an extension header of eight bytes.
    #[must_use]
    pub fn behind(self, header: u8, body: [u8; 6]) -> Self {
        let payload = [&[self.next, 0], &body[..], &self.payload].concat();
        Self { next: header, payload, ..self }
    }

    /// The part of the payload from byte `at` to `end`, as a fragment; all but the last end at a multiple of eight.
    ///
    /// # Panics
    /// If there is no such part.
    #[must_use]
    pub fn fragment(&self, at: usize, end: usize) -> Self {
        let more = u16::from(end < self.payload.len());
        let position = u16::try_from(at).expect("an offset that fits") | more;
        // What it was, nothing, where, and the identification, which fragments of a packet share.
        let header = [&[self.next, 0], &position.to_be_bytes()[..], &[0, 0, 0x6b, 0x76]].concat();
        Self { next: FRAGMENT, payload: [&header, &self.payload[at..end]].concat(), ..self.clone() }
    }

    /// A fragment that is all of the packet (RFC 6946).
    #[must_use]
    pub fn atomic_fragment(&self) -> Self {
        self.fragment(0, self.payload.len())
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [
            &[self.version << 4, 0, 0, 0],
            &self.length.map_or_else(|| length(self.payload.len()), u16::to_be_bytes)[..],
            &[self.next, self.hop_limit],
            &self.source.octets(),
            &self.destination.octets(),
            &self.payload,
        ]
        .concat()
    }
}

/// The address that a MAC gets in a /64 (RFC 4291, appendix A).
#[must_use]
pub fn eui64(prefix: Ipv6Addr, mac: Mac) -> Ipv6Addr {
    let mut octets = prefix.octets();
    octets[8..].copy_from_slice(&[mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]]);
    octets.into()
}

/// The link-local address that a MAC gets.
#[must_use]
pub fn link_local(mac: Mac) -> Ipv6Addr {
    eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// The group that whoever has an address listens to (RFC 4291, 2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

/// The MAC that frames to a group have.
#[must_use]
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::frames::{icmp6::Neighbour, mac};

    fn address(text: &str) -> Ipv6Addr {
        text.parse().expect("address")
    }

    #[test]
    fn addresses_and_macs_belong_together() {
        assert_eq!(link_local(mac("52:54:00:12:34:56")), address("fe80::5054:ff:fe12:3456"));
        assert_eq!(solicited_node(address("fd00::1:2:3456:789a")), address("ff02::1:ff56:789a"));
        assert_eq!(group_mac(address("ff02::1:ff56:789a")), mac("33:33:ff:56:78:9a"));
    }

    #[test]
    fn headers_chain_and_fragments_make_the_whole() {
        let ends = (address("fd00::1"), address("fd00::2"));
        let packet = Ipv6::udp(ends, (1, 2), &[5; 40]).behind(DESTINATION, PADDING);
        assert_eq!(packet.bytes()[..8], [0x60, 0, 0, 0, 0, 56, DESTINATION, 64]);
        assert_eq!(packet.payload[..2], [UDP, 0]);
        let (first, later) = (packet.fragment(0, 16), packet.fragment(16, 56));
        assert_eq!(first.payload[..4], [DESTINATION, 0, 0, 1]);
        assert_eq!(later.payload[..4], [DESTINATION, 0, 0, 16]);
        assert_eq!([&first.payload[8..], &later.payload[8..]].concat(), packet.payload);
        assert_eq!(packet.atomic_fragment().payload[..4], [DESTINATION, 0, 0, 0]);
    }

    #[test]
    fn receivers_find_checksums_right() {
        let ends = (address("fe80::1"), ALL_NODES);
        let packet = Ipv6::icmp(ends, &Neighbour::Advertisement(0x20, address("fe80::1")).message(&[]));
        assert_eq!(Ends::from(ends).checksum(ICMP6, &packet.payload), [0, 0]);
        assert_eq!(packet.hop_limit, 255);
    }
}
