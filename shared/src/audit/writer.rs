//! The thread that writes: a disk that hangs holds it up, and nobody else.

use super::{Record, file::LogFile};
use std::{sync::Arc, thread, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Lines that may wait for the disk, of 1 KiB at most.
pub const WAITING: usize = 4096;

#[derive(Debug)]
enum Job {
    Line(Arc<Record>),
    /// All before it was written, or lost.
    Tell(oneshot::Sender<()>),
}

/// Hands lines to the thread.
#[derive(Debug)]
pub struct Writer(mpsc::Sender<Job>);

impl Writer {
    /// Starts the thread, which ends when nobody can hand it anything.
    pub fn start(mut file: LogFile) -> Self {
        let (sender, mut jobs) = mpsc::channel(WAITING);
        let work = move || {
            while let Some(job) = jobs.blocking_recv() {
                match job {
                    Job::Line(record) => file.append(&record),
                    // Whoever asked may have lost patience.
                    Job::Tell(done) => drop(done.send(())),
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("audit".into()).spawn(work) {
            tracing::error!(%error, "cannot start the thread that writes the audit log");
        }
        Self(sender)
    }

    /// Whether the thread takes it. It does not if too many wait already.
    pub fn hand(&self, record: &Arc<Record>) -> bool {
        self.0.try_send(Job::Line(Arc::clone(record))).is_ok()
    }

    /// Whether few wait.
    pub fn is_calm(&self) -> bool {
        self.0.capacity() > WAITING / 2
    }

    /// Waits until what was handed over is written, or lost; whether it was within that time.
    pub async fn flush(&self, patience: Duration) -> bool {
        let flushed = async {
            let (done, told) = oneshot::channel();
            self.0.send(Job::Tell(done)).await.is_ok() && told.await.is_ok()
        };
        timeout(patience, flushed).await.unwrap_or(false)
    }
}
