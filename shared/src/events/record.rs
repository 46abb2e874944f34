//! How the log is kept in the store, and what its opening makes of it.

use super::{BEHIND, Event, EventKind, EventLog, Inner, KEPT, Log, News, Pending, Told};
use crate::{
    fault::Fault,
    store::{Broken, Op, Rows},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::sync::broadcast;
use uuid::Uuid;

/// Kind of the records of events.
pub(crate) const EVENT: &str = "event";
/// Kind of the records of lives.
const LIFE: &str = "life";
/// Events that are written at most before the disk is waited for.
const UNSYNCED: u32 = 256;
/// Revisions left out when events may have been lost: more than there are without waiting for the disk.
const LEAP: i64 = 1000;

/// One opening of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    /// Random, as hexadecimal digits.
    pub(super) epoch: String,
    /// Revision of its first event.
    pub(super) first: i64,
    /// The first revision from which on none was missing when it was written.
    floor: i64,
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

/// Events of a transaction that is not committed yet.
#[derive(Debug)]
pub(crate) struct Numbered {
    events: Vec<Event>,
    /// Whether the transaction has the floor that the log has.
    floor: bool,
}

/// Whether records of this kind are the log's.
pub(crate) fn is_kind(kind: &str) -> bool {
    [EVENT, LIFE].contains(&kind)
}

/// Sorts as the number does.
fn id(revision: i64) -> String {
    format!("{revision:020}")
}

/// What was read of a kind, by revision; `None`: it cannot be read.
fn rows<T: for<'a> Deserialize<'a>>(
    stored: &Rows,
    kind: &str,
    broken: &mut Vec<Broken>,
) -> Vec<(i64, Option<T>)> {
    let mut found = Vec::new();
    let from = (kind.to_owned(), String::new());
    for ((_, name), row) in stored.range(from..).take_while(|((is, _), _)| is == kind) {
        let Ok(revision) = name.parse() else {
            let why = format!("`{}` is no revision", name.escape_debug());
            broken.push(Broken { id: String::new(), why });
            continue;
        };
        let record = match row.record() {
            Some(record) => serde_json::from_str(record).map_err(|error| error.to_string()),
            None => Err(row.why.clone().unwrap_or_default()),
        };
        if let Err(why) = &record {
            broken.push(Broken { id: name.clone(), why: why.clone() });
        }
        found.push((revision, record.ok()));
    }
    found
}

/// Reads the log, and begins a life: what has to be written for that. `boot` is the host's boot id; `restored`: the
/// store was damaged, and events may be missing.
pub(crate) fn opened(stored: &Rows, boot: &str, restored: bool) -> Result<(EventLog, Vec<Op>), Fault> {
    let mut broken = Vec::new();
    let events: Vec<(i64, Option<Event>)> = rows(stored, EVENT, &mut broken);
    let mut lives: Vec<Life> =
        rows(stored, LIFE, &mut broken).into_iter().filter_map(|(_, life)| life).collect();
    let before = lives.last();
    let newest = events.iter().map(|(revision, _)| *revision).max().unwrap_or(0);
    let next = (newest + 1).max(before.map_or(1, |life| life.first));
    // An event that nobody can read is missing.
    let unread = events.iter().filter(|(_, event)| event.is_none()).map(|(revision, _)| revision + 1).max();
    let oldest = events.first().map_or(1, |(revision, _)| *revision);
    let floor = before.map_or(oldest, |life| life.floor).max(unread.unwrap_or(1));
    let in_order = matches!(events.last(), Some((_, Some(last))) if last.kind == EventKind::Stopped);
    let lossy = restored
        || before.is_some_and(|life| life.boot != boot && !in_order)
        || broken.iter().any(|b| b.id.is_empty());
    let first = if lossy { next + LEAP } else { next };
    let floor = if lossy { first } else { floor }.max(first - KEPT);
    let epoch = format!("{:08x}", Uuid::new_v4().as_fields().0);
    let kept = events.into_iter().filter_map(|(_, event)| event).map(Arc::new).collect::<VecDeque<_>>();
    let mut ops = Vec::new();
    // No position of a life is of use whose successor began before all that is told in full.
    while lives.get(1).is_some_and(|next| next.first < floor) {
        let gone = lives.remove(0);
        ops.push(Op::delete(LIFE, id(gone.first)));
    }
    // A life that told nothing is followed by one that begins where it did.
    lives.retain(|life| life.first < first);
    lives.push(Life { epoch, first, floor, boot: boot.to_owned() });
    let life = lives.last();
    if let Some(life) = life {
        ops.push(Op::put(LIFE, id(first), life)?);
    }
    let log = Log {
        kept,
        waiting: VecDeque::new(),
        next: first,
        floor,
        lives,
        floor_unwritten: false,
        unsynced: 0,
    };
    let inner = Inner { log: Mutex::new(log), feed: broadcast::channel(BEHIND).0, broken };
    Ok((EventLog(Arc::new(inner)), ops))
}

impl EventLog {
    /// Whether the next transaction of events need not wait for the disk: all but one in so many.
    pub(crate) fn may_be_quick(&self) -> bool {
        let mut log = self.lock();
        log.unsynced = (log.unsynced + 1) % UNSYNCED;
        log.unsynced != 0
    }

    /// Numbers events as they will be if their transaction is committed: what has to be written, and up to which id
    /// they are too old to be kept. Only the store's thread calls this and what follows it.
    pub(crate) fn number(&self, news: &[News]) -> Result<(Numbered, Vec<Op>, String), Fault> {
        let (next, life) = {
            let log = self.lock();
            (log.next, log.lives.last().cloned().map(|life| (life, log.floor_unwritten)))
        };
        let Some((life, floor)) = life else {
            return Ok((Numbered { events: Vec::new(), floor: false }, Vec::new(), String::new()));
        };
        let mut ops = Vec::new();
        if floor {
            ops.push(Op::put(LIFE, id(life.first), &life)?);
        }
        let number = |(revision, news): (i64, &News)| Event {
            revision,
            epoch: life.epoch.clone(),
            time: Timestamp::now(),
            kind: news.kind,
            resource: news.resource.clone(),
            message: news.message.clone(),
        };
        let events: Vec<_> = (next..).zip(news).map(number).collect();
        for event in &events {
            ops.push(Op::put(EVENT, id(event.revision), event)?);
        }
        let too_old = events.last().map_or_else(String::new, |last| id((last.revision - KEPT).max(0)));
        Ok((Numbered { events, floor }, ops, too_old))
    }

    /// Takes over events whose transaction was committed.
    pub(crate) fn append(&self, Numbered { events, floor }: Numbered) -> Pending {
        let mut log = self.lock();
        log.floor_unwritten &= !floor;
        let first = log.next;
        log.next += i64::try_from(events.len()).unwrap_or(0);
        let revisions = first..log.next;
        log.waiting.extend(events.into_iter().map(|event| (Arc::new(event), false)));
        drop(log);
        Pending { log: self.clone(), revisions }
    }

    /// Tells that events could not be written: whoever watches has to list again.
    pub(crate) fn lose(&self) {
        let mut log = self.lock();
        log.next += 1;
        log.floor = log.next;
        log.floor_unwritten = true;
        let floor = log.floor;
        if let Some(life) = log.lives.last_mut() {
            life.floor = floor;
        }
        let _ = self.0.feed.send(Told::Lost);
    }
}
