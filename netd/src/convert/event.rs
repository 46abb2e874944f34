//! Events and watches for the wire.

use super::time;
use proto::netd::v1 as wire;
use shared::{
    events::{Event, EventKind},
    watch::{Change, Message},
};

/// An event for the wire.
pub fn event(event: &Event) -> wire::Event {
    wire::Event {
        revision: event.revision,
        epoch: event.epoch.clone(),
        time: time(event.time),
        kind: kind(event.kind).into(),
        resource: event.resource.clone(),
        message: event.message.clone(),
    }
}

fn kind(kind: EventKind) -> wire::EventKind {
    match kind {
        EventKind::Created => wire::EventKind::Created,
        EventKind::Updated => wire::EventKind::Updated,
        EventKind::Deleted => wire::EventKind::Deleted,
        EventKind::Ready => wire::EventKind::Ready,
        EventKind::Degraded => wire::EventKind::Degraded,
        EventKind::Recovered => wire::EventKind::Recovered,
        EventKind::Repaired => wire::EventKind::Repaired,
        EventKind::Drifted => wire::EventKind::Drifted,
        EventKind::Leased => wire::EventKind::Leased,
        EventKind::LeaseEnded => wire::EventKind::LeaseEnded,
        EventKind::Started => wire::EventKind::Started,
        EventKind::Stopped => wire::EventKind::Stopped,
        EventKind::Audit => wire::EventKind::Audit,
        EventKind::Refused => wire::EventKind::Refused,
        // Of machines, which netd does not know.
        EventKind::State
        | EventKind::Adopted
        | EventKind::Unresponsive
        | EventKind::Responsive
        | EventKind::Exited
        | EventKind::Crashed => wire::EventKind::Unspecified,
    }
}

/// The parts of a message of a watch: what it tells, the object or its name, revision and epoch.
pub fn message<T>(
    message: Message<T>,
    gone: impl FnOnce(String) -> T,
) -> (wire::ChangeType, Option<T>, i64, String) {
    let (change, object) = match message.change {
        Change::Present(object) => (wire::ChangeType::Present, Some(object)),
        Change::Changed(object) => (wire::ChangeType::Changed, Some(object)),
        Change::Deleted(name) => (wire::ChangeType::Deleted, Some(gone(name))),
        Change::Synced => (wire::ChangeType::Synced, None),
    };
    let position = message.position.unwrap_or_default();
    (change, object, position.revision, position.epoch)
}
