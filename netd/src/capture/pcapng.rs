//! Pure: the blocks of a pcapng file with one Ethernet interface (draft-ietf-opsawg-pcapng), little-endian.

use std::time::Duration;

/// Block types.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// Tells readers the byte order.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Of the section: the length of a stream is not known.
const UNKNOWN_LENGTH: u64 = u64::MAX;
const LINKTYPE_ETHERNET: u16 = 1;
/// `if_tsresol`: ten to the minus ninth.
const NANOSECONDS: u8 = 9;
/// Longest value of an option, bytes.
const LONGEST_OPTION: usize = u16::MAX as usize;

/// All that a block of a frame has beside the frame's data and padding, bytes.
pub const FRAME_OVERHEAD: usize = 44;
/// Length of the block with the counters, bytes.
pub const STATISTICS: usize = 88;

/// What the file says of where it came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Such as `x86_64`.
    pub hardware: &'a str,
    /// Such as `Linux 6.1.0`.
    pub system: &'a str,
    /// Such as `netd 1.0`.
    pub application: &'a str,
    /// Name of the interface.
    pub interface: &'a str,
    /// What the interface is.
    pub description: &'a str,
    /// Most bytes of a frame.
    pub snap_length: u32,
    /// In libpcap's language; empty: none.
    pub filter: &'a str,
}

/// A frame to be written.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The bytes that are kept.
    pub data: &'a [u8],
    /// How long the frame was; more than that is written as 2^32 - 1.
    pub length: usize,
    /// Since the Unix epoch.
    pub time: Duration,
    /// Sent by the interface, not received.
    pub outgoing: bool,
}

/// Counters of a whole capture.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// When it began, since the Unix epoch.
    pub start: Duration,
    /// Now.
    pub now: Duration,
    /// Frames that the filter took.
    pub taken: u64,
    /// Frames of these that were lost.
    pub dropped: u64,
    /// Frames in the file.
    pub written: u64,
}

/// The file's beginning.
#[must_use]
pub fn header(origin: &Origin<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    block(&mut out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER.to_le_bytes());
        // Version 1.0.
        out.extend([1, 0, 0, 0]);
        out.extend(UNKNOWN_LENGTH.to_le_bytes());
        text(out, 2, origin.hardware);
        text(out, 3, origin.system);
        text(out, 4, origin.application);
        end_of_options(out);
    });
    block(&mut out, INTERFACE_DESCRIPTION, |out| {
        out.extend(LINKTYPE_ETHERNET.to_le_bytes());
        out.extend([0; 2]);
        out.extend(origin.snap_length.to_le_bytes());
        text(out, 2, origin.interface);
        text(out, 3, origin.description);
        option(out, 9, &[NANOSECONDS]);
        if !origin.filter.is_empty() {
            // A zero says that libpcap's text follows.
            option(out, 11, &[&[0], origin.filter.as_bytes()].concat());
        }
        text(out, 12, origin.system);
        end_of_options(out);
    });
    out
}

/// Appends a frame.
pub fn frame(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        out.extend([0; 4]);
        timestamp(out, packet.time);
        out.extend(u32_of(packet.data.len()).to_le_bytes());
        out.extend(u32_of(packet.length).to_le_bytes());
        padded(out, packet.data);
        // `epb_flags`: the direction.
        option(out, 2, &[if packet.outgoing { 2 } else { 1 }, 0, 0, 0]);
        end_of_options(out);
    });
}

/// The file's end.
#[must_use]
pub fn statistics(counters: &Counters) -> Vec<u8> {
    let mut out = Vec::new();
    block(&mut out, INTERFACE_STATISTICS, |out| {
        out.extend([0; 4]);
        timestamp(out, counters.now);
        for (code, time) in [(2, counters.start), (3, counters.now)] {
            let mut value = Vec::new();
            timestamp(&mut value, time);
            option(out, code, &value);
        }
        for (code, count) in [(4, counters.taken), (5, counters.dropped), (8, counters.written)] {
            option(out, code, &count.to_le_bytes());
        }
        end_of_options(out);
    });
    out
}

/// A block: type, length, body, length again.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = u32_of(out.len() + 4 - start).to_le_bytes();
    out.extend(length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

/// 64 bits, the upper half first.
fn timestamp(out: &mut Vec<u8>, time: Duration) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    out.extend(((nanoseconds >> 32) as u32).to_le_bytes());
    out.extend((nanoseconds as u32).to_le_bytes());
}

fn text(out: &mut Vec<u8>, code: u16, value: &str) {
    option(out, code, value.as_bytes());
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(LONGEST_OPTION)];
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

/// To a multiple of four bytes; every block begins at one.
fn padded(out: &mut Vec<u8>, value: &[u8]) {
    out.extend(value);
    out.resize(out.len() + value.len().wrapping_neg() % 4, 0);
}

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    const ORIGIN: Origin<'_> = Origin {
        hardware: "x86_64",
        system: "Linux",
        application: "netd",
        interface: "kvp-1",
        description: "networks/lan/ports/web",
        snap_length: 96,
        filter: "arp",
    };

    /// Splits a file into (type, body); panics where the two lengths of a block differ.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = number(&file[4..8]) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(number(&file[length - 4..length]) as usize, length);
            found.push((number(&file[..4]), &file[8..length - 4]));
            file = &file[length..];
        }
        found
    }

    /// Code and value of each option up to the end of them.
    fn options(mut body: &[u8]) -> Vec<(u16, &[u8])> {
        let number = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().unwrap());
        let mut found = Vec::new();
        loop {
            let (code, length) = (number(&body[..2]), usize::from(number(&body[2..4])));
            if code == 0 {
                assert_eq!((length, body.len()), (0, 4));
                return found;
            }
            found.push((code, &body[4..4 + length]));
            body = &body[4 + length.next_multiple_of(4)..];
        }
    }

    #[test]
    fn a_file_says_where_it_came_from() {
        let file = header(&ORIGIN);
        let blocks = blocks(&file);
        let [(SECTION_HEADER, section), (INTERFACE_DESCRIPTION, interface)] = blocks[..] else {
            panic!("{blocks:?}")
        };
        assert_eq!(&section[..4], [0x4d, 0x3c, 0x2b, 0x1a]);
        let said: [(u16, &[u8]); 3] = [(2, b"x86_64"), (3, b"Linux"), (4, b"netd")];
        assert_eq!(options(&section[16..]), said);
        assert_eq!(interface[..8], [1, 0, 0, 0, 96, 0, 0, 0]);
        let said: [(u16, &[u8]); 5] =
            [(2, b"kvp-1"), (3, b"networks/lan/ports/web"), (9, &[9]), (11, b"\0arp"), (12, b"Linux")];
        assert_eq!(options(&interface[8..]), said);
    }

    #[test]
    fn the_end_has_the_counters() {
        let second = Duration::from_secs(1);
        let counters = Counters { start: second, now: second * 2, taken: 30, dropped: 10, written: 20 };
        let file = statistics(&counters);
        assert_eq!(file.len(), STATISTICS);
        let (kind, body) = blocks(&file)[0];
        assert_eq!(kind, INTERFACE_STATISTICS);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let counts: Vec<_> = options(&body[12..])[2..].iter().map(|(code, v)| (*code, number(v))).collect();
        assert_eq!(counts, [(4, 30), (5, 10), (8, 20)]);
    }

    proptest! {
        #[test]
        fn a_frame_keeps_its_bytes_time_and_direction(
            data in proptest::collection::vec(any::<u8>(), 0..200),
            more in 0..2000_usize,
            nanoseconds in 0..u64::MAX,
            outgoing: bool,
        ) {
            let mut file = Vec::new();
            let time = Duration::from_nanos(nanoseconds);
            frame(&mut file, &Packet { data: &data, length: data.len() + more, time, outgoing });
            prop_assert_eq!(file.len(), FRAME_OVERHEAD + data.len().next_multiple_of(4));
            let (kind, body) = blocks(&file)[0];
            let number = |at: usize| u64::from(u32::from_le_bytes(body[at..at + 4].try_into().unwrap()));
            prop_assert_eq!(kind, ENHANCED_PACKET);
            prop_assert_eq!(number(4) << 32 | number(8), nanoseconds);
            prop_assert_eq!((number(12), number(16)), (data.len() as u64, (data.len() + more) as u64));
            prop_assert_eq!(&body[20..20 + data.len()], &data[..]);
            let flags: [u8; 4] = [if outgoing { 2 } else { 1 }, 0, 0, 0];
            let options = options(&body[20 + data.len().next_multiple_of(4)..]);
            prop_assert_eq!(options, vec![(2, &flags[..])]);
        }
    }
}
