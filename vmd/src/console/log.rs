//! A ring that is written off the runtime's workers: a disk that is slow holds up nobody but the one who writes to it,
//! and that one not for long.

use super::Ring;
use std::{
    io, mem,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::timeout,
};

/// Bytes that may wait for the disk.
const QUEUE: usize = 256 << 10;
/// How long a writer waits for the disk before its output is lost: whatever happens here must not stop a guest.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last bytes of an endless stream.
#[derive(Debug)]
pub struct Log {
    ring: Mutex<Ring>,
    queue: Mutex<Queue>,
    /// The queue was taken.
    room: Notify,
    /// Offset after the last byte that can be read.
    end: watch::Sender<u64>,
}

/// What is not in the ring yet.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Bytes after these that found no room.
    lost: u64,
    /// Somebody is about to take it.
    taking: bool,
    /// The disk has made somebody wait in vain.
    stalled: bool,
}

impl Queue {
    fn has_room(&self, more: usize) -> bool {
        // What was lost is followed by nothing until it has its place in the ring.
        self.lost == 0 && (self.bytes.is_empty() || self.bytes.len() + more <= QUEUE)
    }
}

impl Log {
    /// Opens the ring `name` in `folder`, of two segments of `segment` bytes.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(folder: &Path, name: &'static str, segment: u64) -> io::Result<Arc<Self>> {
        let ring = Ring::open(folder, name, segment)?;
        let end = watch::Sender::new(ring.end());
        Ok(Arc::new(Self { ring: Mutex::new(ring), queue: Mutex::default(), room: Notify::new(), end }))
    }

    /// Offset after the last byte that can be read, and each new one.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Adds bytes. If the disk does not take them within a second they are lost, and the offsets go on.
    pub async fn append(self: &Arc<Self>, bytes: &[u8]) {
        if self.offer(bytes) {
            return;
        }
        let waited = timeout(PATIENCE, async {
            loop {
                let room = self.room.notified();
                if self.offer(bytes) {
                    return;
                }
                room.await;
            }
        });
        if waited.await.is_err() {
            tracing::warn!("output of a guest is lost: the disk does not take it");
            let mut queue = self.queue();
            queue.stalled = true;
            queue.lost += bytes.len() as u64;
        }
    }

    /// Whether there was room, or no hope for any.
    fn offer(self: &Arc<Self>, bytes: &[u8]) -> bool {
        let mut queue = self.queue();
        if queue.has_room(bytes.len()) {
            queue.bytes.extend_from_slice(bytes);
        } else if queue.stalled {
            queue.lost += bytes.len() as u64;
        } else {
            return false;
        }
        if !mem::replace(&mut queue.taking, true) {
            let log = Arc::clone(self);
            spawn_blocking(move || log.drain());
        }
        true
    }

    /// Waits until all that was added before is in the ring.
    pub async fn flush(self: &Arc<Self>) {
        let log = Arc::clone(self);
        let _ = spawn_blocking(move || log.drain()).await;
    }

    /// Bytes from `offset` on, or from the oldest that is kept, and where they begin; none at the end.
    pub async fn read(self: &Arc<Self>, offset: u64, most: usize) -> (u64, Vec<u8>) {
        let end = *self.end.borrow();
        if offset >= end {
            return (offset, Vec::new());
        }
        let log = Arc::clone(self);
        spawn_blocking(move || log.ring().read(offset, most)).await.unwrap_or((offset, Vec::new()))
    }

    /// Moves the queue into the ring until it is empty.
    fn drain(&self) {
        loop {
            // First, so that of two who drain each has what it took written before the other takes more.
            let mut ring = self.ring();
            let (bytes, lost) = {
                let mut queue = self.queue();
                if queue.bytes.is_empty() && queue.lost == 0 {
                    queue.taking = false;
                    return;
                }
                queue.stalled = false;
                (mem::take(&mut queue.bytes), mem::take(&mut queue.lost))
            };
            self.room.notify_one();
            ring.append(&bytes);
            ring.skip(lost);
            // Before another one finds the queue empty and takes that for the end of the work.
            self.end.send_replace(ring.end());
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// With a ring that is held, as by a disk that does not answer.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_hangs_costs_output_and_neither_order_nor_memory_nor_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), "log", 1 << 20).unwrap();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (began, begun) = tokio::sync::oneshot::channel();
        let disk = Arc::clone(&log);
        let hung = spawn_blocking(move || {
            let ring = disk.ring();
            began.send(()).unwrap();
            let _ = held.recv();
            drop(ring);
        });
        begun.await.unwrap();
        let block = vec![b'x'; 16 << 10];
        for _ in 0..100 {
            log.append(&block).await;
        }
        let (kept, room, lost) = {
            let queue = log.queue();
            (queue.bytes.len(), queue.bytes.capacity(), queue.lost)
        };
        assert!(kept <= QUEUE && room <= 2 * QUEUE, "{kept} bytes wait");
        assert_eq!(kept as u64 + lost, 100 * (16 << 10));
        drop(hold);
        hung.await.unwrap();
        log.flush().await;
        log.append(b"after").await;
        log.flush().await;
        assert_eq!(*log.follow().borrow(), 100 * (16 << 10) + 5, "offsets go on");
        // What was lost is a gap, and what follows has its right offset.
        assert_eq!(log.read(kept as u64, 100).await, (100 * (16 << 10), b"after".to_vec()));
        assert_eq!(log.read(0, 3).await, (0, b"xxx".to_vec()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_added_comes_out_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), "log", 1 << 20).unwrap();
        let mut wanted = Vec::new();
        for number in 0..50_000_u32 {
            log.append(&number.to_be_bytes()).await;
            wanted.extend(number.to_be_bytes());
            if number % 1000 == 0 {
                log.flush().await;
            }
        }
        log.flush().await;
        let mut seen = Vec::new();
        while seen.len() < wanted.len() {
            let (at, more) = log.read(seen.len() as u64, 32 << 10).await;
            assert_eq!((at, more.is_empty()), (seen.len() as u64, false));
            seen.extend(more);
        }
        assert_eq!(seen, wanted);
    }
}
