//! What IPv4 and IPv6 carry alike: UDP, TCP, echo.

use super::{checksum, length};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Next header of ICMPv6.
pub const ICMP6: u8 = 58;

/// From whom to whom: what a checksum covers beside the message.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    source: IpAddr,
    destination: IpAddr,
}

impl From<(Ipv4Addr, Ipv4Addr)> for Ends {
    fn from((source, destination): (Ipv4Addr, Ipv4Addr)) -> Self {
        Self { source: source.into(), destination: destination.into() }
    }
}

impl From<(Ipv6Addr, Ipv6Addr)> for Ends {
    fn from((source, destination): (Ipv6Addr, Ipv6Addr)) -> Self {
        Self { source: source.into(), destination: destination.into() }
    }
}

impl Ends {
    /// The checksum of a message between these ends.
    #[must_use]
    pub fn checksum(&self, protocol: u8, message: &[u8]) -> [u8; 2] {
        let octets = |address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let tail = [&[0, protocol], &length(message.len())[..], message].concat();
        checksum(&[octets(self.source), octets(self.destination), tail].concat()).to_be_bytes()
    }
}

/// A datagram of UDP; ports are source and destination.
#[must_use]
pub fn udp(ends: impl Into<Ends>, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut datagram =
        [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &length(8 + data.len()), &[0, 0], data].concat();
    let sum = ends.into().checksum(UDP, &datagram);
    // Zero would mean: none.
    datagram[6..8].copy_from_slice(if sum == [0, 0] { &[0xff, 0xff] } else { &sum });
    datagram
}

/// The first segment of a connection, with the options that Linux sends: 40 bytes.
#[must_use]
pub fn tcp_syn(ends: impl Into<Ends>, ports: (u16, u16)) -> Vec<u8> {
    let mut segment = [
        &ports.0.to_be_bytes()[..],
        &ports.1.to_be_bytes(),
        // Sequence and acknowledgement; ten words, SYN; window; checksum and urgent pointer.
        &[1, 2, 3, 4, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0, 0, 0, 0],
        // Maximum segment size, SACK permitted, timestamps, padding, window scale.
        &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
    ]
    .concat();
    let sum = ends.into().checksum(TCP, &segment);
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// A message of ICMP.
#[must_use]
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], body].concat();
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// The body of an echo request or reply, ICMP or ICMPv6: identifier, sequence number and some data.
#[must_use]
pub fn echo(data: &[u8]) -> Vec<u8> {
    [&[0x6b, 0x76, 0, 1], data].concat()
}

#[cfg(test)]
mod test {
    use super::*;

    /// A receiver adds all up, checksum included, and must get none.
    fn is_whole(ends: impl Into<Ends>, protocol: u8, message: &[u8]) -> bool {
        ends.into().checksum(protocol, message) == [0, 0]
    }

    #[test]
    fn receivers_find_checksums_right() {
        let v4 = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let v6 = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        assert!(is_whole(v4, UDP, &udp(v4, (1, 2), b"odd")));
        assert!(is_whole(v6, UDP, &udp(v6, (1, 2), b"even")));
        assert!(is_whole(v4, TCP, &tcp_syn(v4, (1, 2))));
        assert!(!is_whole(v6, TCP, &tcp_syn(v4, (1, 2))));
        assert_eq!(checksum(&icmp(8, 0, &echo(b"x"))), 0);
    }
}
