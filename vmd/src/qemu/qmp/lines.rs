//! Lines of JSON from a peer that is not trusted: their length is bounded, and so is how many come in a time.

use serde_json::Value;
use std::{io, time::Duration};
use tokio::{io::AsyncReadExt as _, net::unix::OwnedReadHalf, time::Instant};

/// Longest line taken; `query-qmp-schema`, which is never asked, would be 200 KiB.
const MAX_LINE: usize = 1 << 20;
/// Bytes that a line of QEMU's counts as at least; what costs time is the line, however short it is.
const LEAST: u64 = 1 << 10;
/// Bytes that may come at once.
const BURST: u64 = 4 << 20;
/// Bytes a second that may come for ever: a thousand events. QEMU itself sends each kind of frequent event once a
/// second.
const RATE: u64 = 1 << 20;

/// The reading end of a monitor.
pub(super) struct Lines {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
    /// How much of the buffer is known to have no end of line.
    searched: usize,
    allowance: Allowance,
}

impl Lines {
    pub(super) fn new(reader: OwnedReadHalf) -> Self {
        let allowance = Allowance { left: BURST, at: Instant::now() };
        Self { reader, buffer: Vec::new(), searched: 0, allowance }
    }

    /// Ends the connection in both directions, whoever still holds its other half: QEMU serves one client at a time,
    /// and must neither wait for this one to read nor keep the next one waiting.
    pub(super) fn hang_up(&self) {
        // Gone already is as good.
        let _ = rustix::net::shutdown(self.reader.as_ref(), rustix::net::Shutdown::Both);
    }

    /// The next line. Cancel-safe: what was read stays in the buffer.
    ///
    /// # Errors
    /// The end of the connection, a line that is too long or no JSON, or lines faster than anybody needs them.
    pub(super) async fn next(&mut self) -> io::Result<Value> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let message = serde_json::from_slice(&self.buffer[..end]);
                self.buffer.drain(..=end);
                self.searched = 0;
                // One large reply must not stay with us for ever.
                self.buffer.shrink_to(8 << 10);
                if !self.allowance.take(end as u64, Instant::now()) {
                    return Err(io::Error::other("it sends more than anybody could read"));
                }
                return message.map_err(|e| io::Error::other(format!("it sends what is no JSON: {e}")));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::other("it sends a line longer than 1 MiB"));
            }
            self.buffer.reserve(4 << 10);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
            }
        }
    }
}

/// A token bucket of bytes.
struct Allowance {
    left: u64,
    at: Instant,
}

impl Allowance {
    /// Takes a line's worth, if there is as much.
    fn take(&mut self, length: u64, now: Instant) -> bool {
        let gained = RATE.saturating_mul(millis(now.duration_since(self.at))) / 1000;
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(BURST);
            self.at = now;
        }
        match self.left.checked_sub(length.max(LEAST)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_thousand_lines_a_second_pass_for_ever_and_a_storm_does_not() {
        let mut now = Instant::now();
        let mut allowance = Allowance { left: BURST, at: now };
        for line in 0..100_000 {
            now += Duration::from_millis(1);
            assert!(allowance.take(100, now), "line {line}");
        }
        let stormed = (0..).take_while(|_| allowance.take(100, now)).count() as u64;
        assert!(stormed <= BURST / LEAST, "{stormed} lines at once");
        now += Duration::from_secs(10);
        assert!(allowance.take(BURST, now), "it is forgiven");
    }
}
