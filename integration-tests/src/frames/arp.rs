//! ARP.

use super::Mac;
use std::net::Ipv4Addr;

/// A message of ARP for Ethernet and IPv4, unless a field says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// 1 is Ethernet.
    pub hardware: u16,
    /// An ethertype; 0x0800 is IPv4.
    pub protocol: u16,
    /// Bytes of a hardware address, as the message has it; what follows is six in any case.
    pub hardware_length: u8,
    /// Bytes of a protocol address, as the message has it; what follows is four in any case.
    pub protocol_length: u8,
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// Who says this.
    pub sender: (Mac, Ipv4Addr),
    /// Of whom.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// Who has `wanted`?
    #[must_use]
    pub fn request(sender: (Mac, Ipv4Addr), wanted: Ipv4Addr) -> Self {
        Self {
            hardware: 1,
            protocol: 0x0800,
            hardware_length: 6,
            protocol_length: 4,
            operation: 1,
            sender,
            target: ([0; 6], wanted),
        }
    }

    /// The sender has its address, says it to the target.
    #[must_use]
    pub fn reply(sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        Self { operation: 2, target, ..Self::request(sender, target.1) }
    }

    /// Has anybody `wanted`? I would like to take it (RFC 5227).
    #[must_use]
    pub fn probe(sender: Mac, wanted: Ipv4Addr) -> Self {
        Self::request((sender, Ipv4Addr::UNSPECIFIED), wanted)
    }

    /// I have taken this address (RFC 5227).
    #[must_use]
    pub fn announcement(sender: (Mac, Ipv4Addr)) -> Self {
        Self::request(sender, sender.1)
    }

    /// The message.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [
            &self.hardware.to_be_bytes()[..],
            &self.protocol.to_be_bytes(),
            &[self.hardware_length, self.protocol_length],
            &self.operation.to_be_bytes(),
            &self.sender.0,
            &self.sender.1.octets(),
            &self.target.0,
            &self.target.1.octets(),
        ]
        .concat()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_reply_has_its_fields_where_rfc_826_wants_them() {
        let bytes =
            Arp::reply(([2; 6], Ipv4Addr::new(10, 0, 0, 1)), ([4; 6], Ipv4Addr::new(10, 0, 0, 2))).bytes();
        let expected = [0, 1, 8, 0, 6, 4, 0, 2, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1, 4, 4, 4, 4, 4, 4, 10, 0, 0, 2];
        assert_eq!(bytes, expected);
    }
}
