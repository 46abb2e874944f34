//! Frames as a guest writes them, well-formed or hostile.
//!
//! Each builder fills in lengths and checksums, and leaves every field public, so that a hostile frame says in one
//! line what is wrong with it: `Arp { hardware_length: 8, ..Arp::request(..) }`.

pub mod arp;
pub mod ethernet;
pub mod icmp6;
pub mod ipv4;
pub mod ipv6;
pub mod transport;

/// A MAC.
pub type Mac = [u8; 6];

/// Everybody's MAC.
pub const BROADCAST: Mac = [0xff; 6];

/// The six bytes of a MAC.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

/// A MAC in the words of `ip`.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The internet checksum (RFC 1071) of bytes that follow each other.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A length as a header has it.
///
/// # Panics
/// If it is more than 65535.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("a length that fits").to_be_bytes()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn macs_read_as_they_are_written() {
        assert_eq!(mac("52:54:00:0a:ff:01"), [0x52, 0x54, 0, 0x0a, 0xff, 1]);
        assert_eq!(mac_text([0x52, 0x54, 0, 0x0a, 0xff, 1]), "52:54:00:0a:ff:01");
    }

    #[test]
    fn checksums_are_those_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0x01]), !0x0100);
        assert_eq!(checksum(&[]), 0xffff);
    }
}
