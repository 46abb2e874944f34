//! How the log is kept in the store, and what its opening makes of it.

use super::{BEHIND, Event, EventKind, EventLog, Inner, KEPT, Log, News, Pending, Told};
use crate::{store::Broken, time::Timestamp};
use rusqlite::{Connection, Transaction, params};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs,
    sync::{Arc, Mutex},
};
use tokio::sync::broadcast;
use uuid::Uuid;

/// Kind of the records of events.
const EVENT: &str = "event";
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

/// Sorts as the number does.
fn id(revision: i64) -> String {
    format!("{revision:020}")
}

fn put(
    transaction: &Transaction<'_>,
    kind: &str,
    revision: i64,
    document: &impl Serialize,
) -> rusqlite::Result<()> {
    let document =
        serde_json::to_string(document).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    let sql = "INSERT INTO o (kind, id, doc) VALUES (?1, ?2, ?3) ON CONFLICT (kind, id) DO UPDATE SET doc = excluded.doc";
    transaction.prepare_cached(sql)?.execute(params![kind, id(revision), document])?;
    Ok(())
}

/// What was read of a kind, by revision; `None`: it cannot be read.
fn rows<T: for<'a> Deserialize<'a>>(
    connection: &Connection,
    kind: &str,
    broken: &mut Vec<Broken>,
) -> rusqlite::Result<Vec<(i64, Option<T>)>> {
    let mut statement = connection
        .prepare("SELECT CAST(id AS BLOB), CAST(doc AS BLOB) FROM o WHERE kind = ?1 ORDER BY id")?;
    let rows =
        statement.query_map([kind], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let mut found = Vec::new();
    for row in rows {
        let (name, document) = row?;
        let name = String::from_utf8(name).unwrap_or_default();
        let Ok(revision) = name.parse() else {
            broken
                .push(Broken { id: String::new(), why: format!("`{}` is no revision", name.escape_debug()) });
            continue;
        };
        let record = serde_json::from_slice(&document);
        if let Err(error) = &record {
            broken.push(Broken { id: name, why: error.to_string() });
        }
        found.push((revision, record.ok()));
    }
    Ok(found)
}

/// Reads the log, and begins a life.
pub(crate) fn opened(connection: &mut Connection) -> rusqlite::Result<EventLog> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    opened_in(connection, boot.trim())
}

pub(super) fn opened_in(connection: &mut Connection, boot: &str) -> rusqlite::Result<EventLog> {
    let mut broken = Vec::new();
    let events: Vec<(i64, Option<Event>)> = rows(connection, EVENT, &mut broken)?;
    let mut lives: Vec<Life> =
        rows(connection, LIFE, &mut broken)?.into_iter().filter_map(|(_, life)| life).collect();
    let before = lives.last();
    let newest = events.iter().map(|(revision, _)| *revision).max().unwrap_or(0);
    let next = (newest + 1).max(before.map_or(1, |life| life.first));
    // An event that nobody can read is missing.
    let unread = events.iter().filter(|(_, event)| event.is_none()).map(|(revision, _)| revision + 1).max();
    let oldest = events.first().map_or(1, |(revision, _)| *revision);
    let floor = before.map_or(oldest, |life| life.floor).max(unread.unwrap_or(1));
    let in_order = matches!(events.last(), Some((_, Some(last))) if last.kind == EventKind::Stopped);
    let lossy =
        before.is_some_and(|life| life.boot != boot && !in_order) || broken.iter().any(|b| b.id.is_empty());
    let first = if lossy { next + LEAP } else { next };
    let floor = if lossy { first } else { floor }.max(first - KEPT);
    let epoch = format!("{:08x}", Uuid::new_v4().as_fields().0);
    let kept = events.into_iter().filter_map(|(_, event)| event).map(Arc::new).collect::<VecDeque<_>>();
    let transaction = connection.transaction()?;
    // No position of a life is of use whose successor began before all that is told in full.
    while lives.get(1).is_some_and(|next| next.first < floor) {
        let gone = lives.remove(0);
        transaction.execute("DELETE FROM o WHERE kind = ?1 AND id = ?2", params![LIFE, id(gone.first)])?;
    }
    // A life that told nothing is followed by one that begins where it did.
    lives.retain(|life| life.first < first);
    lives.push(Life { epoch, first, floor, boot: boot.to_owned() });
    let life = lives.last();
    life.map_or(Ok(()), |life| put(&transaction, LIFE, first, life))?;
    transaction.commit()?;
    let log = Log {
        kept,
        waiting: VecDeque::new(),
        next: first,
        floor,
        lives,
        floor_unwritten: false,
        unsynced: 0,
    };
    Ok(EventLog(Arc::new(Inner { log: Mutex::new(log), feed: broadcast::channel(BEHIND).0, broken })))
}

impl EventLog {
    /// Whether the next transaction of events need not wait for the disk: all but one in so many.
    pub(crate) fn may_be_quick(&self) -> bool {
        let mut log = self.lock();
        log.unsynced = (log.unsynced + 1) % UNSYNCED;
        log.unsynced != 0
    }

    /// Writes events with the numbers that they will have, and removes those that are too old. Only the store's
    /// thread calls this and what follows it.
    pub(crate) fn write(&self, transaction: &Transaction<'_>, news: &[News]) -> rusqlite::Result<Numbered> {
        let (next, life) = {
            let log = self.lock();
            (log.next, log.lives.last().cloned().map(|life| (life, log.floor_unwritten)))
        };
        let Some((life, floor)) = life else { return Ok(Numbered { events: Vec::new(), floor: false }) };
        if floor {
            put(transaction, LIFE, life.first, &life)?;
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
            put(transaction, EVENT, event.revision, event)?;
        }
        if let Some(last) = events.last() {
            let sql = "DELETE FROM o WHERE kind = ?1 AND id <= ?2";
            transaction.prepare_cached(sql)?.execute(params![EVENT, id(last.revision - KEPT)])?;
        }
        Ok(Numbered { events, floor })
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
