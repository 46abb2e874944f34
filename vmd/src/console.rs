//! The serial console: read always, kept in a ring on disk, watched by any number, written by one at a time.
//!
//! Viewers hold nothing but an offset and read from the ring, so that a slow one costs nothing and misses only what the
//! ring no longer has.

mod log;
mod pump;
mod ring;

pub use log::Log;
pub use pump::Pump;
pub use ring::Ring;

use shared::fault::{Fault, Kind};
use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{mpsc, watch};

/// Two of these are kept.
const SEGMENT: u64 = 1 << 20;
const FILE: &str = "console";
/// Most bytes of a chunk.
const CHUNK: usize = 32 << 10;
/// Messages a writer may be ahead of the guest; at most 64 KiB each.
const INPUT: usize = 8;

/// A machine's console. It outlives the guest's runs.
#[derive(Debug)]
pub struct Console {
    log: Arc<Log>,
    /// To the guest, while there is one.
    input: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    writing: AtomicBool,
}

impl Console {
    /// The console whose output is kept in `folder`.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(folder: &Path) -> io::Result<Arc<Self>> {
        let log = Log::open(folder, FILE, SEGMENT)?;
        Ok(Arc::new(Self { log, input: Mutex::new(None), writing: AtomicBool::new(false) }))
    }

    /// Offset after the last byte, and each new one.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.log.follow()
    }

    /// Output from `offset` on, or from the oldest byte that is kept: where it begins, and some bytes; none at the
    /// end.
    pub async fn read(&self, offset: u64) -> (u64, Vec<u8>) {
        self.log.read(offset, CHUNK).await
    }

    /// Becomes the console's only writer until the result is dropped.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if there is one.
    pub fn writer(self: &Arc<Self>) -> Result<Writer, Fault> {
        if self.writing.swap(true, Ordering::AcqRel) {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "CONSOLE_BUSY",
                "somebody else is writing to this console",
            )
            .hint("watch it with `read_only`, or wait until the other one has left"));
        }
        Ok(Writer(Arc::clone(self)))
    }

    fn input(&self) -> MutexGuard<'_, Option<mpsc::Sender<Vec<u8>>>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to write to a console.
#[derive(Debug)]
pub struct Writer(Arc<Console>);

impl Writer {
    /// Sends bytes to the guest, and waits while it is too slow.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the machine does not run.
    pub async fn write(&self, bytes: Vec<u8>) -> Result<(), Fault> {
        let sender = self.0.input().clone();
        let sent = match sender {
            Some(sender) => sender.send(bytes).await.is_ok(),
            None => false,
        };
        if sent {
            return Ok(());
        }
        Err(Fault::new(
            Kind::FailedPrecondition,
            "NOT_RUNNING",
            "the machine does not run and takes no input",
        )
        .hint("start it, and attach again"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.writing.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn one_writes_and_the_next_may_after_that() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(dir.path()).unwrap();
        let first = console.writer().unwrap();
        assert_eq!(console.writer().unwrap_err().reason(), "CONSOLE_BUSY");
        assert_eq!(first.write(b"x".to_vec()).await.unwrap_err().reason(), "NOT_RUNNING");
        drop(first);
        console.writer().unwrap();
    }

    #[tokio::test]
    async fn viewers_see_what_was_before_them_and_are_told_of_more() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(dir.path()).unwrap();
        console.log.append(b"before ").await;
        console.log.flush().await;
        let follow = console.follow();
        assert_eq!(*follow.borrow(), 7);
        console.log.append(b"after").await;
        console.log.flush().await;
        assert!(follow.has_changed().unwrap());
        assert_eq!(console.read(0).await, (0, b"before after".to_vec()));
        assert_eq!(console.read(7).await, (7, b"after".to_vec()));
        assert_eq!(console.read(12).await, (12, vec![]));
    }
}
