//! What happened without a request: numbered, kept, and told to whoever watches.

use super::Reconciler;
use crate::{
    kernel::Kernel,
    model::{Event, EventKind},
};
use shared::{
    fault::{Fault, Kind},
    store::{Op, Store},
    time::Timestamp,
};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

pub(super) const EVENT: &str = "event";
/// Events that are kept.
const KEPT: usize = 1000;
/// New events that a watcher may be behind.
const BEHIND: usize = 256;
/// Left out after a start: an event that was told may not have been written before the end.
const GAP: i64 = 100;

/// The events of one netd.
#[derive(Debug)]
pub(super) struct Events {
    log: Mutex<Log>,
    news: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Log {
    kept: VecDeque<Event>,
    next: i64,
}

/// What a watcher gets first, and where it hears of the rest.
#[derive(Debug)]
pub struct Watch {
    /// Events that there are already.
    pub kept: Vec<Event>,
    /// New ones, none twice.
    pub news: broadcast::Receiver<Event>,
}

impl Events {
    /// With those that were recorded, in any order.
    pub(super) fn new(mut recorded: Vec<Event>) -> Self {
        recorded.sort_by_key(|event| event.revision);
        let next = recorded.last().map_or(1, |last| last.revision + GAP);
        let log = Mutex::new(Log { kept: recorded.into(), next });
        Self { log, news: broadcast::channel(BEHIND).0 }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers an event and tells of it; returns what is to be written.
    fn add(&self, kind: EventKind, resource: &str, message: String) -> Result<Vec<Op>, Fault> {
        let mut log = self.log();
        let event = Event {
            revision: log.next,
            time: Timestamp::now(),
            kind,
            resource: resource.to_owned(),
            message,
        };
        log.next += 1;
        let mut ops = vec![Op::put(EVENT, id(event.revision), &event)?];
        log.kept.push_back(event.clone());
        while log.kept.len() > KEPT {
            ops.extend(log.kept.pop_front().map(|oldest| Op::delete(EVENT, id(oldest.revision))));
        }
        // Under the lock, so that a watcher sees it in one place or the other. Nobody may be watching.
        let _ = self.news.send(event);
        Ok(ops)
    }

    fn after(&self, revision: i64, most: usize) -> Vec<Event> {
        self.log().kept.iter().filter(|event| event.revision > revision).take(most).cloned().collect()
    }

    fn watch(&self, since: i64) -> Result<Watch, Fault> {
        let log = self.log();
        let oldest = log.kept.front().map_or(log.next, |oldest| oldest.revision);
        // With fewer than are kept, none has gone yet.
        let gone = since > 0 && since.saturating_add(1) < oldest && log.kept.len() >= KEPT;
        if gone || since >= log.next {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "EVENTS_GONE",
                format!("events after revision {since} are not kept; the oldest is {oldest}"),
            )
            .hint("list the events again, and watch from the last one"));
        }
        let kept = log.kept.iter().filter(|event| since > 0 && event.revision > since).cloned().collect();
        Ok(Watch { kept, news: self.news.subscribe() })
    }
}

/// Sorts as the number does.
fn id(revision: i64) -> String {
    format!("{revision:020}")
}

/// Writes in the background: an event is no reason to wait, and its loss none to fail.
fn write(store: Store, ops: Vec<Op>) {
    tokio::spawn(async move {
        if let Err(fault) = store.commit(ops).await {
            tracing::warn!(error = fault.chain(), "cannot keep an event");
        }
    });
}

impl<K: Kernel> Reconciler<K> {
    pub(super) fn tell(&self, kind: EventKind, resource: &str, message: String) {
        match self.0.events.add(kind, resource, message) {
            Ok(ops) => write(self.0.store.clone(), ops),
            Err(fault) => tracing::warn!(error = fault.chain(), "cannot keep an event"),
        }
    }

    /// Events after a revision, the oldest first, at most `most`.
    #[must_use]
    pub fn events(&self, after: i64, most: usize) -> Vec<Event> {
        self.0.events.after(after, most)
    }

    /// Events after a revision, 0 for new ones only, and all that come.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if some of them are no longer kept.
    pub fn watch_events(&self, since: i64) -> Result<Watch, Fault> {
        self.0.events.watch(since)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn full(events: &Events, number: usize) {
        for at in 0..number {
            events.add(EventKind::Repaired, "networks/lan", format!("{at}")).unwrap();
        }
    }

    #[test]
    fn revisions_grow_over_a_restart_and_the_oldest_go() {
        let events = Events::new(Vec::new());
        full(&events, KEPT + 5);
        let kept = events.after(0, usize::MAX);
        assert_eq!((kept.len(), kept[0].revision), (KEPT, 6));
        let again = Events::new(kept.clone());
        full(&again, 1);
        let newest = again.after(0, usize::MAX).pop().unwrap().revision;
        assert!(newest > kept.last().unwrap().revision);
        assert_eq!(again.after(newest - 1, 10).len(), 1);
    }

    #[test]
    fn a_watch_misses_nothing_or_says_so() {
        let events = Events::new(Vec::new());
        full(&events, 3);
        let mut watch = events.watch(1).unwrap();
        full(&events, 1);
        let mut seen: Vec<_> = watch.kept.iter().map(|event| event.revision).collect();
        seen.push(watch.news.try_recv().unwrap().revision);
        assert_eq!(seen, [2, 3, 4]);
        assert!(events.watch(0).unwrap().kept.is_empty(), "only what comes");
        assert_eq!(events.watch(9).unwrap_err().reason(), "EVENTS_GONE", "a revision that never was");
        assert_eq!(events.watch(i64::MAX).unwrap_err().reason(), "EVENTS_GONE");
        full(&events, KEPT);
        assert_eq!(events.watch(1).unwrap_err().reason(), "EVENTS_GONE");
        assert!(events.watch(4).is_ok());
    }
}
