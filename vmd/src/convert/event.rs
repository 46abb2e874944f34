//! Events and watches for the wire.

use super::timestamp;
use proto::vmd::v1 as wire;
use shared::{
    events::{Event, EventKind},
    watch::{Change, Message},
};

/// An event.
#[must_use]
pub fn event(event: &Event) -> wire::Event {
    wire::Event {
        revision: event.revision,
        epoch: event.epoch.clone(),
        time: Some(timestamp(event.time)),
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
        EventKind::State => wire::EventKind::State,
        EventKind::Adopted => wire::EventKind::Adopted,
        EventKind::Unresponsive => wire::EventKind::Unresponsive,
        EventKind::Responsive => wire::EventKind::Responsive,
        EventKind::Exited => wire::EventKind::Exited,
        EventKind::Crashed => wire::EventKind::Crashed,
        EventKind::Started => wire::EventKind::Started,
        EventKind::Stopped => wire::EventKind::Stopped,
        EventKind::Audit => wire::EventKind::Audit,
        EventKind::Refused => wire::EventKind::Refused,
        // Of networks, which vmd does not keep.
        EventKind::Ready
        | EventKind::Degraded
        | EventKind::Recovered
        | EventKind::Repaired
        | EventKind::Drifted
        | EventKind::Leased
        | EventKind::LeaseEnded => wire::EventKind::Unspecified,
    }
}

/// A message of a watch of machines.
#[must_use]
pub fn message(message: Message<wire::Vm>) -> wire::WatchVmsResponse {
    let (change, vm) = match message.change {
        Change::Present(vm) => (wire::ChangeType::Present, Some(vm)),
        Change::Changed(vm) => (wire::ChangeType::Changed, Some(vm)),
        Change::Deleted(name) => (wire::ChangeType::Deleted, Some(wire::Vm { name, ..Default::default() })),
        Change::Synced => (wire::ChangeType::Synced, None),
    };
    let position = message.position.unwrap_or_default();
    wire::WatchVmsResponse { change: change.into(), vm, revision: position.revision, epoch: position.epoch }
}
