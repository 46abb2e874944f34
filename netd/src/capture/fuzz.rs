//! Frames, and what tcpdump says of a filter.

use super::pcapng::{self, Origin, Packet};
use crate::{fuzz::Outcome, kernel::bpf};
use std::time::Duration;

/// A filter's text, and a compiled program as tcpdump prints it.
///
/// # Errors
/// If it is neither.
pub fn filter_program(data: &[u8]) -> Outcome {
    let text = std::str::from_utf8(data).map_err(|_| "no text")?;
    let filter = bpf::check(text);
    if filter.is_ok() {
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text:?}");
        assert!(!text.trim_start().starts_with('-'), "an option: {text:?}");
    }
    match (bpf::parse(text), filter) {
        (None, Err(fault)) => Err(fault.reason().to_owned()),
        _ => Ok(()),
    }
}

/// Frames into a file: lengths in two bytes, then the frame. A name and a filter are the first two.
///
/// # Errors
/// If there is no frame.
pub fn pcapng(data: &[u8]) -> Outcome {
    let mut rest = data;
    let mut parts = Vec::new();
    while let [low, high, more @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        parts.push(&more[..length]);
        rest = &more[length..];
    }
    let [name, filter, frames @ ..] = &parts[..] else { return Err("too few parts".into()) };
    if frames.is_empty() {
        return Err("no frame".into());
    }
    let (name, filter) = (String::from_utf8_lossy(name), String::from_utf8_lossy(filter));
    let origin = Origin {
        hardware: &name,
        system: &filter,
        application: &name,
        interface: &name,
        description: &filter,
        snap_length: data.len() as u32,
        filter: &filter,
    };
    let mut file = pcapng::header(&origin);
    for (count, frame) in frames.iter().enumerate() {
        let time = Duration::from_nanos(u64::MAX >> (count % 64));
        let packet =
            Packet { data: frame, length: frame.len() << (count % 40), time, outgoing: count % 2 == 0 };
        pcapng::frame(&mut file, &packet);
    }
    // Every block's length stands at both of its ends, and they fill the file.
    let mut rest = &file[..];
    let mut blocks = 0;
    while let Some(length) = rest.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) {
        let length = length as usize;
        assert!(length.is_multiple_of(4) && length >= 12, "{length}");
        assert_eq!(rest[4..8], rest[length - 4..length]);
        rest = &rest[length..];
        blocks += 1;
    }
    assert!(rest.is_empty());
    assert_eq!(blocks, 2 + frames.len());
    Ok(())
}
