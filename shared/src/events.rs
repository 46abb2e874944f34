//! What happened: numbered, kept with the records, and told to whoever watches.
//!
//! An event gets its revision in the transaction that writes it, on the store's one thread, and is told only when it
//! is written. So revisions are told in order, none is told that an end by SIGKILL could take back, and what an event
//! says of a record is true exactly if the record was written.
//!
//! Events that belong to no record are written without waiting for the disk. Only the end of the whole host can lose
//! them. The start after that leaves out numbers, and calls all that was before it gone.
//!
//! Each opening of the store is a *life* with a random id, the epoch. A position in the log is an epoch with a
//! revision, so that one of another store, or of a store's other history after a backup was put back, is known as such.

mod record;
mod serve;
#[cfg(test)]
mod test;

use crate::{
    fault::{Fault, Kind},
    store::Broken,
    time::Timestamp,
};
use record::Life;
pub(crate) use record::{EVENT, is_kind, opened};
use serde::{Deserialize, Serialize};
pub use serve::Page;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

/// Events that are kept, at most.
pub const KEPT: i64 = 4096;
/// New events that a watcher may be behind before it is dropped.
const BEHIND: usize = 1024;

/// What an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An object was recorded.
    Created,
    /// An object's record, or what is shown of it, is another one.
    Updated,
    /// An object is gone.
    Deleted,
    /// A new object is in force.
    Ready,
    /// An object cannot be brought to its record.
    Degraded,
    /// A degraded object is as recorded again.
    Recovered,
    /// Changed by somebody else, and put right.
    Repaired,
    /// Changed by somebody else, and not put right yet.
    Drifted,
    /// An address was given out.
    Leased,
    /// An address that was given out is free again.
    LeaseEnded,
    /// The daemon began. Whatever is not in an object's record may have changed meanwhile.
    Started,
    /// The daemon ended in order.
    Stopped,
    /// A machine is in another state.
    State,
    /// A machine that an earlier daemon started was found again.
    Adopted,
    /// A machine's QEMU does not answer.
    Unresponsive,
    /// A machine's QEMU answers again.
    Responsive,
    /// A machine's run ended as somebody wanted.
    Exited,
    /// A machine's run ended as nobody wanted.
    Crashed,
    /// Somebody asked for a change.
    Audit,
    /// Somebody asked for what they may not have.
    Refused,
}

/// Something that happened, before it has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What it tells of.
    pub kind: EventKind,
    /// The object; empty: the daemon as a whole.
    pub resource: String,
    /// In words.
    pub message: String,
}

impl News {
    /// News of an object.
    #[must_use]
    pub fn of(kind: EventKind, resource: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, resource: resource.into(), message: message.into() }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows from event to event, with gaps.
    pub revision: i64,
    /// Of the life that it was told in; empty in the records of older programs.
    #[serde(default)]
    pub epoch: String,
    /// When it was written, by the host's clock.
    pub time: Timestamp,
    /// What it tells of.
    pub kind: EventKind,
    /// The object; empty: the daemon as a whole.
    pub resource: String,
    /// In words.
    pub message: String,
}

/// A position in a log: behind the event of this revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The life that the revision was told in; empty: whichever it was.
    pub epoch: String,
    /// 0: before all events.
    pub revision: i64,
}

/// What a watcher hears.
#[derive(Clone, Debug)]
pub enum Told {
    /// An event.
    Event(Arc<Event>),
    /// Events could not be written, and are lost.
    Lost,
}

/// What a watcher gets first, and where it hears of the rest.
#[derive(Debug)]
pub struct Watch {
    /// Events after the position that was asked for, the oldest first.
    pub kept: Vec<Arc<Event>>,
    /// The position behind them.
    pub position: Cursor,
    /// New ones; none is in both.
    pub news: broadcast::Receiver<Told>,
}

/// A log of events; clones share it.
#[derive(Clone, Debug)]
pub struct EventLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Mutex<Log>,
    feed: broadcast::Sender<Told>,
    broken: Vec<Broken>,
}

#[derive(Debug)]
struct Log {
    /// Told, the oldest first.
    kept: VecDeque<Arc<Event>>,
    /// Written and not told yet, and whether they may be.
    waiting: VecDeque<(Arc<Event>, bool)>,
    /// Revision of the next event.
    next: i64,
    /// The first revision from which on none is missing.
    floor: i64,
    /// The lives whose positions are known, the present one last.
    lives: Vec<Life>,
    /// Whether the record of the present life has another floor.
    floor_unwritten: bool,
    /// Transactions of events since the disk was waited for.
    unsynced: u32,
}

/// Written events that are told when this is dropped: after what they tell of can be seen.
#[derive(Debug)]
#[must_use = "the events are told when it is dropped"]
pub struct Pending {
    log: EventLog,
    revisions: std::ops::Range<i64>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.revisions.is_empty() {
            return;
        }
        let mut log = self.log.lock();
        for (event, released) in &mut log.waiting {
            *released |= self.revisions.contains(&event.revision);
        }
        while let Some((event, _)) = log.waiting.pop_front_if(|(_, released)| *released) {
            log.kept.push_back(Arc::clone(&event));
            // Under the lock, so that a watcher sees it in one place or the other. Nobody may be watching.
            let _ = self.log.0.feed.send(Told::Event(event));
        }
        log.trim();
    }
}

impl Log {
    /// Revision of the last event that was told.
    fn last(&self) -> i64 {
        self.waiting.front().map_or(self.next, |(event, _)| event.revision) - 1
    }

    fn trim(&mut self) {
        self.floor = self.floor.max(self.next - KEPT);
        while self.kept.front().is_some_and(|event| event.revision <= self.next - 1 - KEPT) {
            self.kept.pop_front();
        }
    }

    fn present(&self) -> Cursor {
        Cursor {
            epoch: self.lives.last().map_or_else(String::new, |life| life.epoch.clone()),
            revision: self.last(),
        }
    }

    /// Whether all that came after a position can be told.
    fn reaches(&self, since: &Cursor) -> bool {
        let known = |epoch: &str| {
            let ends = self.lives.iter().skip(1).map(|life| life.first).chain(std::iter::once(self.next));
            let mut lives = self.lives.iter().zip(ends);
            lives.any(|(life, end)| life.epoch == epoch && (life.first - 1..end).contains(&since.revision))
        };
        since.revision.saturating_add(1) >= self.floor
            && since.revision <= self.last()
            && (since.epoch.is_empty() || known(&since.epoch))
    }

    fn check(&self, since: &Cursor) -> Result<(), Fault> {
        if since.revision == 0 || self.reaches(since) {
            return Ok(());
        }
        Err(self.gone(since.revision))
    }

    fn gone(&self, revision: i64) -> Fault {
        let message =
            format!("what happened after revision {revision} is not known in full, here or any more");
        Fault::new(Kind::FailedPrecondition, "EVENTS_GONE", message)
            .meta("oldest", self.floor)
            .meta("newest", self.last())
            .hint("list again, and go on from the revision that comes with the list")
    }

    fn after(&self, revision: i64) -> impl Iterator<Item = &Arc<Event>> {
        let from = self.kept.partition_point(|event| event.revision <= revision);
        self.kept.range(from..)
    }
}

impl EventLog {
    fn lock(&self) -> MutexGuard<'_, Log> {
        // Each change leaves it whole.
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events that cannot be read.
    #[must_use]
    pub fn broken(&self) -> &[Broken] {
        &self.0.broken
    }

    /// The position behind the newest event.
    #[must_use]
    pub fn present(&self) -> Cursor {
        self.lock().present()
    }

    /// At most `most` events after a position, the oldest first; all that are kept for revision 0.
    ///
    /// # Errors
    /// FAILED_PRECONDITION, EVENTS_GONE, if some that came after it are no longer kept, or if the position is none of
    /// this log's.
    pub fn list(&self, since: &Cursor, most: usize) -> Result<Vec<Arc<Event>>, Fault> {
        let log = self.lock();
        log.check(since)?;
        Ok(log.after(since.revision).take(most).cloned().collect())
    }

    /// At most `most` events after one that was listed before: the next page.
    ///
    /// # Errors
    /// As `list`, if that event itself is no longer kept.
    pub fn list_on(&self, revision: i64, most: usize) -> Result<Vec<Arc<Event>>, Fault> {
        let log = self.lock();
        if log.kept.binary_search_by_key(&revision, |event| event.revision).is_err() {
            return Err(log.gone(revision));
        }
        Ok(log.after(revision).take(most).cloned().collect())
    }

    /// Events after a position, for revision 0 only those that are still to come, and all that come.
    ///
    /// # Errors
    /// As `list`.
    pub fn watch(&self, since: &Cursor) -> Result<Watch, Fault> {
        let log = self.lock();
        log.check(since)?;
        let from = if since.revision == 0 { i64::MAX } else { since.revision };
        let kept = log.after(from).cloned().collect();
        Ok(Watch { kept, position: log.present(), news: self.0.feed.subscribe() })
    }
}

/// The fault of a watcher that was too slow.
#[must_use]
pub fn slow_reader() -> Fault {
    Fault::new(Kind::Aborted, "SLOW_READER", "events came faster than they were read")
        .hint("watch again, from the last revision that arrived")
}

/// The fault of a watch during which events could not be kept.
#[must_use]
pub fn lost() -> Fault {
    Fault::new(Kind::FailedPrecondition, "EVENTS_GONE", "events could not be written, and are lost")
        .hint("list the objects again; the daemon's log says what is wrong with its state folder")
}
