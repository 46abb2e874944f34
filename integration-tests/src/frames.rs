//! Ethernet frames as a hostile guest would write them.

/// A frame: destination, source, then type and payload.
#[must_use]
pub fn ethernet(destination: [u8; 6], source: [u8; 6], rest: &[u8]) -> Vec<u8> {
    let mut frame = [destination.as_slice(), &source, rest].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The six bytes of a MAC.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

/// An IPv4 packet with a UDP datagram of the payload, ethertype included.
#[must_use]
pub fn udp4(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let length = |header: usize| u16::try_from(header + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&length(28));
    ip.extend(source);
    ip.extend(destination);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    // No UDP checksum: IPv4 allows that.
    let udp = [&port.to_be_bytes()[..], &port.to_be_bytes(), &length(8), &[0, 0], payload].concat();
    [&[0x08, 0x00][..], &ip, &udp].concat()
}
