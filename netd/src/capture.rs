//! One capture: from a packet socket to pieces of a pcapng file, within bounds.
//!
//! Memory is bounded by few pieces of bounded size. A reader that falls behind stops the reading of the socket; what
//! the kernel has no room for then, it drops and counts.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod pcapng;

use crate::{
    kernel::{
        bpf::Program,
        packet::{Frame, PacketSocket},
    },
    model::Port,
};
use rustix::{io::Errno, system::uname};
use shared::fault::Fault;
use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Longest snap length, and that of a capture without one; as tcpdump's.
pub const LONGEST_SNAP: u32 = 262_144;
/// Pieces that wait for a slow reader.
pub const QUEUE: usize = 2;
/// A piece is sent once it has this many bytes, or no frame waits.
const PIECE: usize = 64 << 10;
/// How often it is looked whether the link is still there. A socket is told once that it is down, and not that it is
/// gone after that.
const LOOK: Duration = Duration::from_secs(1);
/// How long the last piece may wait for a slow reader; less than the grace that a server gives its streams.
const PARTING: Duration = Duration::from_secs(2);
/// The VLAN tag that the kernel keeps apart.
const TAG: usize = 4;

/// When a capture ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most bytes of a frame, 1 to `LONGEST_SNAP`.
    pub snap_length: u32,
    /// Most frames.
    pub frames: u64,
    /// Most bytes of the file.
    pub bytes: u64,
    /// Longest time.
    pub duration: Duration,
}

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has its frames.
    Frames,
    /// Its file is full.
    Bytes,
    /// Its time is over.
    Duration,
    /// The port was deleted.
    PortDeleted,
    /// Somebody removed the link.
    LinkLost,
    /// netd ends.
    Stopping,
}

/// A piece of the file.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Whole blocks.
    pub data: Vec<u8>,
    /// The block that makes the file complete after this piece; empty in the last one.
    pub closing: Vec<u8>,
    /// Frames in the file so far.
    pub frames: u64,
    /// Bytes of these, on the wire.
    pub bytes: u64,
    /// Frames lost so far.
    pub dropped: u64,
    /// Set in the last piece.
    pub end: Option<End>,
}

/// A running capture. `deleted` tells whether its port is.
pub struct Capture<D> {
    socket: PacketSocket,
    bounds: Bounds,
    deleted: D,
    stop: CancellationToken,
    deadline: Instant,
    look: Interval,
    start: Duration,
    /// What is ready to be sent, and the counters.
    piece: Piece,
    /// Bytes of the file so far, `piece` included.
    size: u64,
}

impl<D: Fn() -> bool> Capture<D> {
    /// Begins to hear a port.
    ///
    /// # Errors
    /// As `PacketSocket::open`.
    pub fn open(
        port: &Port,
        (filter, program): (&str, &Program),
        bounds: Bounds,
        deleted: D,
        stop: CancellationToken,
    ) -> Result<Self, Fault> {
        let socket = PacketSocket::open(&port.tap, program)?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let system = uname();
        let system = format!("Linux {}", system.release().to_string_lossy());
        let data = pcapng::header(&pcapng::Origin {
            hardware: std::env::consts::ARCH,
            system: &system,
            application: concat!("kvmctl netd ", env!("CARGO_PKG_VERSION")),
            interface: port.tap.as_str(),
            description: &port.resource(),
            snap_length: bounds.snap_length,
            filter,
        });
        let size = data.len() as u64;
        let piece = Piece { data, ..Piece::default() };
        let deadline = Instant::now() + bounds.duration;
        Ok(Self { socket, bounds, deleted, stop, deadline, look, start: now(), piece, size })
    }

    /// Runs to the end, or until the reader has gone. `slot` is given back at the end, even if the reader is slow to
    /// take the last piece.
    pub async fn run<S>(mut self, sender: Sender<Piece>, slot: S) {
        let Some(end) = self.record(&sender).await else { return };
        let mut last = self.take();
        last.data.append(&mut last.closing);
        last.end = Some(end);
        drop((self, slot));
        // A reader that does not even take this finds the stream ended.
        let _ = timeout(PARTING, sender.send(last)).await;
    }

    /// `None`: the reader has gone.
    async fn record(&mut self, sender: &Sender<Piece>) -> Option<End> {
        let mut buffer = vec![0; self.bounds.snap_length as usize + TAG];
        loop {
            // The header goes at once, then each piece.
            tokio::select! {
                biased;
                end = interrupted(&self.stop, self.deadline, sender) => return end,
                permit = sender.reserve() => permit.ok()?.send(self.take()),
                end = lost(&mut self.look, &self.deleted, &self.socket) => return Some(end),
            }
            let end = loop {
                tokio::select! {
                    biased;
                    end = interrupted(&self.stop, self.deadline, sender) => return end,
                    frame = self.socket.receive(&mut buffer) => match frame {
                        Ok(frame) => break add(&self.bounds, &mut self.piece, &mut self.size, &frame),
                        Err(error) => if let Some(end) = self.broken(&error) { return Some(end) },
                    },
                    end = lost(&mut self.look, &self.deleted, &self.socket) => return Some(end),
                }
            };
            if end.is_some() {
                return end;
            }
            while self.piece.data.len() < PIECE {
                match self.socket.try_receive(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        let end = add(&self.bounds, &mut self.piece, &mut self.size, &frame);
                        if end.is_some() {
                            return end;
                        }
                    }
                    Err(error) => match self.broken(&error) {
                        None => break,
                        end => return end,
                    },
                }
            }
        }
    }

    /// What an error of the socket means. A link that only went down comes up again.
    fn broken(&self, error: &io::Error) -> Option<End> {
        if Errno::from_io_error(error) != Some(Errno::NETDOWN) {
            tracing::warn!(%error, "a capture lost its socket");
            return Some(End::LinkLost);
        }
        gone(&self.deleted, &self.socket)
    }

    /// The present piece, with the counters as they are; the next one begins.
    fn take(&mut self) -> Piece {
        // Without new numbers those of the last time are shown.
        let counted = self.socket.statistics().inspect_err(|error| {
            tracing::warn!(%error, "a capture cannot read its counters");
        });
        let counted = counted.unwrap_or_default();
        let Piece { frames, bytes, .. } = self.piece;
        let next = Piece { frames, bytes, ..Piece::default() };
        let mut piece = std::mem::replace(&mut self.piece, next);
        piece.dropped = counted.dropped;
        piece.closing = pcapng::statistics(&pcapng::Counters {
            start: self.start,
            now: now(),
            taken: counted.taken,
            dropped: counted.dropped,
            written: frames,
        });
        piece
    }
}

/// Waits for what ends a capture whatever it is about; `None`: the reader has gone.
async fn interrupted(stop: &CancellationToken, deadline: Instant, sender: &Sender<Piece>) -> Option<End> {
    tokio::select! {
        () = stop.cancelled() => Some(End::Stopping),
        () = sender.closed() => None,
        () = sleep_until(deadline) => Some(End::Duration),
    }
}

/// Waits until the port or its link is gone.
async fn lost(look: &mut Interval, deleted: &impl Fn() -> bool, socket: &PacketSocket) -> End {
    loop {
        look.tick().await;
        if let Some(end) = gone(deleted, socket) {
            return end;
        }
    }
}

fn gone(deleted: &impl Fn() -> bool, socket: &PacketSocket) -> Option<End> {
    // A delete is recorded before the link goes.
    if deleted() {
        return Some(End::PortDeleted);
    }
    (!socket.is_bound()).then_some(End::LinkLost)
}

/// Puts a frame into the piece, unless the file is full.
fn add(bounds: &Bounds, piece: &mut Piece, size: &mut u64, frame: &Frame<'_>) -> Option<End> {
    // A VLAN tag that was put back may make it longer than was asked for.
    let data = &frame.data[..frame.data.len().min(bounds.snap_length as usize)];
    let block = (pcapng::FRAME_OVERHEAD + data.len().next_multiple_of(4)) as u64;
    if *size + block + pcapng::STATISTICS as u64 > bounds.bytes {
        return Some(End::Bytes);
    }
    let Frame { length, time, outgoing, .. } = *frame;
    pcapng::frame(&mut piece.data, &pcapng::Packet { data, length, time, outgoing });
    *size += block;
    piece.frames += 1;
    piece.bytes += length as u64;
    (piece.frames >= bounds.frames).then_some(End::Frames)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
