//! Ethernet, and what hides a packet from those who read the ethertype only: tags, LLC and SNAP.

use super::{Mac, length};

/// `ether type` of ARP.
pub const ARP: u16 = 0x0806;
/// `ether type` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `ether type` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// A customer's VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// A provider's VLAN tag (802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;
/// Shortest frame without its check sequence.
const SHORTEST: usize = 60;

/// Who sends a frame to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Receiver.
    pub destination: Mac,
    /// Sender, as the frame has it.
    pub source: Mac,
}

impl Ethernet {
    /// A frame, padded to the shortest length.
    #[must_use]
    pub fn frame(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        padded(self.short(ethertype, payload))
    }

    /// A frame without padding, as no wire carries it, but a tap does.
    #[must_use]
    pub fn short(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&self.destination, &self.source, &ethertype.to_be_bytes()[..], payload].concat()
    }

    /// A frame behind tags, the outermost first; each is a tag protocol, and priority and VLAN id.
    #[must_use]
    pub fn tagged(&self, tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [self.destination, self.source].concat();
        for (protocol, control) in tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        padded(frame)
    }

    /// An 802.3 frame: a length where the ethertype would be, then LLC of one control byte.
    #[must_use]
    pub fn llc(&self, access_points: [u8; 2], control: u8, payload: &[u8]) -> Vec<u8> {
        let llc = [&access_points, &[control][..], payload].concat();
        padded([&self.destination, &self.source, &length(llc.len())[..], &llc].concat())
    }

    /// An 802.3 frame with SNAP: an organisation and its own protocol number, which is an ethertype if the
    /// organisation is zero.
    #[must_use]
    pub fn snap(&self, organisation: [u8; 3], protocol: u16, payload: &[u8]) -> Vec<u8> {
        self.llc([0xaa, 0xaa], 3, &[&organisation, &protocol.to_be_bytes()[..], payload].concat())
    }
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}

#[cfg(test)]
mod test {
    use super::*;

    const WIRE: Ethernet = Ethernet { destination: [2; 6], source: [4; 6] };

    #[test]
    fn headers_are_where_they_belong() {
        let frame = WIRE.frame(ARP, &[7]);
        assert_eq!(frame[..15], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 6, 7]);
        assert_eq!(frame.len(), 60);
        assert_eq!(WIRE.short(ARP, &[7]).len(), 15);
        let frame = WIRE.tagged(&[(SERVICE_VLAN, 5), (VLAN, 0x2006)], IPV4, &[]);
        assert_eq!(frame[12..22], [0x88, 0xa8, 0, 5, 0x81, 0, 0x20, 6, 8, 0]);
        let frame = WIRE.snap([0; 3], IPV6, &[9, 9]);
        assert_eq!(frame[12..24], [0, 10, 0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd, 9, 9]);
    }
}
