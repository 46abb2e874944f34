//! Events as they are printed.

use super::{
    Object, set,
    text::{Sheet, or_dash},
    time::rfc3339,
    word,
};
use crate::parse::{Cursor, Place};
use proto::events::v1 as wire;
use serde::Serialize;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// The place behind it, and behind all that was printed before it; for `--since`.
    pub cursor: String,
    /// netd or vmd.
    pub daemon: &'static str,
    /// Grows from event to event of the daemon.
    pub revision: i64,
    /// The life of the daemon that gave the revision.
    pub epoch: String,
    /// When it was recorded.
    pub time: Option<String>,
    /// What it tells of, a word; gone: events of the daemon were lost, and objects must be listed again.
    pub kind: String,
    /// The object; null: the daemon as a whole.
    pub resource: Option<String>,
    /// In words.
    pub message: String,
    /// For the order among the daemons.
    #[serde(skip)]
    at: (i64, i32),
}

impl Event {
    /// The place of its daemon behind it.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch.clone(), revision: self.revision }
    }

    /// What a daemon told.
    #[must_use]
    pub fn of(daemon: &'static str, event: wire::Event) -> Self {
        let kind = wire::EventKind::try_from(event.kind).ok().map(|kind| kind.as_str_name());
        Self {
            cursor: String::new(),
            daemon,
            revision: event.revision,
            epoch: event.epoch,
            time: rfc3339(event.time.as_ref()),
            kind: word(kind, "EVENT_KIND_", "unknown"),
            resource: set(event.resource),
            message: event.message,
            at: event.time.map_or((0, 0), |time| (time.seconds, time.nanos)),
        }
    }

    /// That events of a daemon were lost.
    #[must_use]
    pub fn gone(daemon: &'static str, place: &Place) -> Self {
        Self {
            cursor: String::new(),
            daemon,
            revision: place.revision,
            epoch: place.epoch.clone(),
            time: None,
            kind: "gone".to_owned(),
            resource: None,
            message: format!("events of {daemon} were lost: list the objects again"),
            at: (0, 0),
        }
    }
}

/// Moves a cursor behind an event, and gives the event that cursor.
pub fn stamp(event: &mut Event, cursor: &mut Cursor) {
    let place = if event.daemon == "netd" { &mut cursor.netd } else { &mut cursor.vmd };
    *place = event.place();
    event.cursor = cursor.to_string();
}

/// Both daemons' events in the order of time; each daemon's own stay in the order of their revisions, whatever its
/// clock did.
#[must_use]
pub fn merge(netd: Vec<Event>, vmd: Vec<Event>) -> Vec<Event> {
    let (mut netd, mut vmd) = (netd.into_iter().peekable(), vmd.into_iter().peekable());
    std::iter::from_fn(|| match (netd.peek(), vmd.peek()) {
        (Some(first), Some(second)) if second.at < first.at => vmd.next(),
        (Some(_), _) => netd.next(),
        (None, _) => vmd.next(),
    })
    .collect()
}

impl Object for Event {
    const COLUMNS: &'static [&'static str] = &["TIME", "DAEMON", "KIND", "RESOURCE", "MESSAGE"];

    fn name(&self) -> &str {
        &self.cursor
    }

    fn row(&self) -> Vec<String> {
        vec![
            or_dash(self.time.as_deref()),
            self.daemon.to_owned(),
            self.kind.clone(),
            or_dash(self.resource.as_deref()),
            self.message.clone(),
        ]
    }

    fn sheet(&self) -> String {
        Sheet::default()
            .line("Cursor", &self.cursor)
            .line("Daemon", self.daemon)
            .line("Kind", &self.kind)
            .maybe("Time", self.time.as_deref())
            .maybe("Resource", self.resource.as_deref())
            .line("Message", &self.message)
            .render()
    }

    fn summary(&self) -> String {
        self.message.clone()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn event(daemon: &'static str, revision: i64, seconds: i64) -> Event {
        let time = Some(prost_types::Timestamp { seconds, nanos: 0 });
        let epoch = if daemon == "netd" { "aa" } else { "bb" };
        Event::of(daemon, wire::Event { revision, time, epoch: epoch.into(), ..Default::default() })
    }

    fn netd(revision: i64, seconds: i64) -> Event {
        event("netd", revision, seconds)
    }

    fn vmd(revision: i64, seconds: i64) -> Event {
        event("vmd", revision, seconds)
    }

    proptest! {
        /// Whatever the clocks did: each daemon's order holds, nothing is lost, and behind each event its cursor
        /// leaves exactly what was not printed yet.
        #[test]
        fn a_cursor_leaves_exactly_the_rest(
            first in prop::collection::vec(0..20i64, 0..15),
            second in prop::collection::vec(0..20i64, 0..15),
        ) {
            let make = |times: &[i64], event: fn(i64, i64) -> Event| -> Vec<_> {
                (1..).zip(times).map(|(revision, time)| event(revision, *time)).collect()
            };
            let mut merged = merge(make(&first, netd), make(&second, vmd));
            prop_assert_eq!(merged.len(), first.len() + second.len());
            let mut cursor = Cursor::default();
            for at in 0..merged.len() {
                stamp(&mut merged[at], &mut cursor);
                let read: Cursor = merged[at].cursor.parse().unwrap();
                let printed = |daemon| merged[..=at].iter().filter(|event| event.daemon == daemon).count();
                prop_assert_eq!(read.netd.revision, i64::try_from(printed("netd")).unwrap());
                prop_assert_eq!(read.vmd.revision, i64::try_from(printed("vmd")).unwrap());
            }
        }
    }

    #[test]
    fn events_are_in_the_order_of_time() {
        let merged = merge(vec![netd(1, 10), netd(2, 30)], vec![vmd(1, 5), vmd(2, 20), vmd(3, 30)]);
        let order: Vec<_> = merged.iter().map(|event| (event.daemon, event.revision)).collect();
        assert_eq!(order, [("vmd", 1), ("netd", 1), ("vmd", 2), ("netd", 2), ("vmd", 3)]);
    }
}
