//! Who changed what, and who was refused: one JSON line each, in a file of bounded size.
//!
//! A line is handed to the thread that writes before its answer goes out. It has no text of the request but the name of
//! its object, and no message of an error but its reason, so that no secret gets there. A disk that takes no line, or
//! hangs, stops nothing.

mod feed;
mod file;
mod writer;

use crate::{
    access::{Caller, Role},
    bucket::{Buckets, Pace},
    fault::Fault,
    time::Timestamp,
};
pub use feed::feed;
use file::LogFile;
use serde::Serialize;
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::broadcast;
use tonic::{Code, Status};
use writer::Writer;

/// Lines that wait for one slow subscriber; it hears of those that it missed.
const QUEUE: usize = 256;
/// Longest path of a method that is written, in characters.
const LONGEST_RPC: usize = 120;
/// Refusals of one user that are written; of all who have no role together.
const REFUSALS: Pace = Pace { burst: 30.0, per_second: 1.0 };
/// How long an orderly end waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When the answer was ready, RFC 3339 in UTC.
    #[serde(serialize_with = "as_text")]
    pub time: Timestamp,
    /// Grows by one from line to line, over restarts too.
    pub sequence: u64,
    /// Who called; `None`: unknown.
    pub uid: Option<u32>,
    /// What they are; `None`: nothing.
    pub role: Option<Role>,
    /// The method, `/PACKAGE.SERVICE/METHOD`.
    pub rpc: String,
    /// The object, as the client named it; empty if the request was not read.
    pub object: String,
    /// The result, such as `OK` or `PERMISSION_DENIED`.
    pub code: &'static str,
    /// Why, UPPER_SNAKE_CASE; empty for OK.
    pub reason: String,
    /// From the request to the answer, or to the begin of a stream.
    pub duration_us: u64,
    /// Refused calls before this one that were too many to be written.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// Lines before this one that the disk did not take.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
}

// By reference, since serde passes one.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn as_text<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.rfc3339().unwrap_or_default())
}

/// The log. Clones share it.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Held while a line is handed over, so that they are in order; never while one is written.
    state: Mutex<State>,
    writer: Writer,
    news: broadcast::Sender<Arc<Record>>,
}

#[derive(Debug)]
struct State {
    sequence: u64,
    left_out: u64,
    /// Lines since the last that was handed over: too many waited for the disk.
    lost: u64,
    /// That was said.
    said: bool,
    buckets: Buckets,
}

impl Audit {
    /// Goes on with the log in a folder, `audit.jsonl`. It is made with the first line; where that cannot be, the
    /// lines are lost, and the daemon's own log says so once.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let file = LogFile::new(folder);
        let sequence = file.last_sequence();
        let state = State { sequence, left_out: 0, lost: 0, said: false, buckets: Buckets::default() };
        let (writer, news) = (Writer::start(file), broadcast::channel(QUEUE).0);
        Self(Arc::new(Inner { state: Mutex::new(state), writer, news }))
    }

    /// Waits for the last lines to be written, for a second at most.
    pub async fn finish(&self) {
        if !self.0.writer.flush(LAST_LINES).await {
            tracing::warn!("the disk does not take the last lines of the audit log");
        }
    }

    /// Each line from now on, whether or not the disk takes it.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Record>> {
        self.0.news.subscribe()
    }

    fn write(&self, mut record: Record, now: Instant) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is refused without end must neither fill the log nor push others' lines out of it.
        // Who no longer waits for a change has not stopped it: its line is as good as that of one that was made.
        let refused = !matches!(record.code, "OK" | "CANCELLED" | "DEADLINE_EXCEEDED");
        // All without a role share one bucket, since one user can have 65,536 uids of them.
        if refused && state.buckets.take(record.uid.filter(|_| record.role.is_some()), REFUSALS, now).is_err()
        {
            state.left_out += 1;
            return;
        }
        state.sequence += 1;
        record.sequence = state.sequence;
        (record.left_out, record.lost) = (state.left_out, state.lost);
        let record = Arc::new(record);
        if self.0.writer.hand(&record) {
            (state.left_out, state.lost) = (0, 0);
            state.said &= !self.0.writer.is_calm();
        } else {
            state.lost += 1;
            if !std::mem::replace(&mut state.said, true) {
                tracing::error!("the disk is too slow for the audit log; lines are lost until it is not");
            }
        }
        // Nobody listens, or somebody does.
        let _ = self.0.news.send(record);
    }
}

/// A call that is being answered.
#[derive(Debug)]
pub struct Call {
    audit: Audit,
    begun: Instant,
    uid: Option<u32>,
    role: Option<Role>,
    rpc: String,
    /// Set: it has to be written even if nobody waits for its end.
    expected: Option<Caller>,
}

impl Call {
    /// A call begins.
    #[must_use]
    pub fn begin(audit: &Audit, uid: Option<u32>, rpc: &str) -> Self {
        let rpc = rpc.chars().take(LONGEST_RPC).flat_map(char::escape_debug).collect();
        Self { audit: audit.clone(), begun: Instant::now(), uid, role: None, rpc, expected: None }
    }

    /// What the caller is.
    pub fn by(&mut self, role: Option<Role>) {
        self.role = role;
    }

    /// If the client goes away before the answer, that is written, with the object that the caller has by then.
    pub fn expect_an_end(&mut self, caller: Option<Caller>) {
        self.expected = caller;
    }

    /// It was answered: written if it is `audited`, or refused for want of a right.
    pub fn end(mut self, status: &Status, object: &str, audited: bool) {
        self.expected = None;
        if audited || status.code() == Code::PermissionDenied {
            let reason = if status.code() == Code::Ok {
                String::new()
            } else {
                Fault::from(status.clone()).reason().to_owned()
            };
            self.write(object, code_name(status.code()), reason);
        }
    }

    fn write(&self, object: &str, code: &'static str, reason: String) {
        let now = Instant::now();
        let record = Record {
            time: Timestamp::now(),
            sequence: 0,
            uid: self.uid,
            role: self.role,
            rpc: self.rpc.clone(),
            object: object.to_owned(),
            code,
            reason,
            duration_us: micros(now.saturating_duration_since(self.begun)),
            left_out: 0,
            lost: 0,
        };
        self.audit.write(record, now);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(caller) = self.expected.take() {
            // What was begun is carried out all the same.
            self.write(caller.object(), "CANCELLED", "CLIENT_GONE".into());
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod test;
