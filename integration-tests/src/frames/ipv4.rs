//! IPv4.

use super::{
    checksum, length,
    transport::{ICMP, TCP, UDP, echo, icmp, tcp_syn, udp},
};
use std::net::Ipv4Addr;

/// "More fragments", in `Ipv4::fragment`.
pub const MORE: u16 = 0x2000;

/// A packet.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Sender, as the packet has it.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
    /// What the payload is.
    pub protocol: u8,
    /// 4.
    pub version: u8,
    /// Header length in words of four bytes, if it is not the true one.
    pub words: Option<u8>,
    /// Total length, if it is not the true one.
    pub total: Option<u16>,
    /// Flags, and the offset in units of eight bytes.
    pub fragment: u16,
    /// A multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Ipv4 {
    /// A packet of some protocol.
    #[must_use]
    pub fn new((source, destination): (Ipv4Addr, Ipv4Addr), protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            protocol,
            version: 4,
            words: None,
            total: None,
            fragment: 0,
            options: Vec::new(),
            payload,
        }
    }

    /// A datagram of UDP.
    #[must_use]
    pub fn udp(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), data: &[u8]) -> Self {
        Self::new(ends, UDP, udp(ends, ports, data))
    }

    /// The first segment of a connection.
    #[must_use]
    pub fn tcp_syn(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16)) -> Self {
        Self::new(ends, TCP, tcp_syn(ends, ports))
    }

    /// An echo request.
    #[must_use]
    pub fn echo(ends: (Ipv4Addr, Ipv4Addr)) -> Self {
        Self::new(ends, ICMP, icmp(8, 0, &echo(b"is anybody there who answers")))
    }

    /// Two fragments, the second from byte `at` of the payload on; a multiple of eight.
    #[must_use]
    pub fn fragments(&self, at: usize) -> [Self; 2] {
        let offset = u16::try_from(at / 8).expect("an offset that fits");
        let (first, later) = self.payload.split_at(at);
        [
            Self { fragment: MORE, payload: first.to_vec(), ..self.clone() },
            Self { fragment: offset, payload: later.to_vec(), ..self.clone() },
        ]
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = self.words.unwrap_or(u8::try_from(header / 4).expect("options that fit"));
        let total = self.total.map_or_else(|| length(header + self.payload.len()), u16::to_be_bytes);
        let mut packet = [
            &[self.version << 4 | words, 0],
            &total[..],
            // The identification, which fragments of a packet share.
            &[0x6b, 0x76],
            &self.fragment.to_be_bytes(),
            &[64, self.protocol, 0, 0],
            &self.source.octets(),
            &self.destination.octets(),
            &self.options,
        ]
        .concat();
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend(&self.payload);
        packet
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn headers_add_up_and_fragments_make_the_whole() {
        let ends = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let whole = Ipv4 { options: vec![1; 8], ..Ipv4::udp(ends, (1, 2), &[5; 40]) };
        let bytes = whole.bytes();
        assert_eq!(bytes[..4], [0x47, 0, 0, 76]);
        assert_eq!(checksum(&bytes[..28]), 0);
        let [first, later] = whole.fragments(16);
        assert_eq!([first.payload.clone(), later.payload.clone()].concat(), whole.payload);
        assert_eq!(first.bytes()[6..8], [0x20, 0]);
        assert_eq!(later.bytes()[6..8], [0, 2]);
    }
}
