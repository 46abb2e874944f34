//! Reads what `nft monitor trace` printed of one flow. Pure.

use super::why::StepVerdict;
use crate::kernel::{TRACE_TABLE, TraceFlow};

/// Most lines of verdicts that are told.
const MOST_LINES: usize = 50;

/// What became of real packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// How many were seen.
    pub packets: u32,
    /// How many of them a rule or policy dropped.
    pub dropped: u32,
    /// What decided, in nft's words, each once: `inet filter forward policy drop`.
    pub lines: Vec<String>,
}

impl Traced {
    /// What is proven: a drop, or that packets passed all rules; nothing if none was seen.
    #[must_use]
    pub fn verdict(&self) -> StepVerdict {
        match (self.packets, self.dropped) {
            (0, _) => StepVerdict::Unknown,
            (_, 0) => StepVerdict::Pass,
            _ => StepVerdict::Drop,
        }
    }
}

/// Reads the lines of a trace. The kernel gives a packet another number after it was routed, so packets are told by
/// their addresses, too.
#[must_use]
pub fn read(lines: &[String], flow: &TraceFlow) -> Traced {
    let ip = if flow.destination.is_ipv4() { "ip" } else { "ip6" };
    let addresses = format!(" {ip} saddr {} {ip} daddr {} ", flow.source, flow.destination);
    // A packet from a guest is seen by the table of frames first, another by that of packets.
    let entry = if flow.tap.is_some() { "bridge" } else { "inet" };
    let first = format!("{entry} {TRACE_TABLE} prerouting packet:");
    let ours: Vec<&str> = lines
        .iter()
        .filter(|line| line.contains(" packet: ") && line.contains(&addresses))
        .filter_map(|line| id(line))
        .collect();
    let mut traced = Traced::default();
    for line in lines {
        let Some(id) = id(line).filter(|id| ours.contains(id)) else { continue };
        let words = line.split_once(id).map_or("", |(_, rest)| rest).trim();
        if words.starts_with(&first) {
            traced.packets += 1;
        }
        let table = words.split_whitespace().nth(1);
        let dropped = words.ends_with("(verdict drop)") || words.ends_with("policy drop");
        let decides = dropped || words.ends_with("(verdict accept)") || words.ends_with("policy accept");
        if !decides || table == Some(TRACE_TABLE) {
            continue;
        }
        traced.dropped += u32::from(dropped);
        let words = words.to_owned();
        if traced.lines.len() < MOST_LINES && !traced.lines.contains(&words) {
            traced.lines.push(words);
        }
    }
    traced
}

/// The number of the packet that a line speaks of.
fn id(line: &str) -> Option<&str> {
    line.strip_prefix("trace id ")?.split_whitespace().next()
}
