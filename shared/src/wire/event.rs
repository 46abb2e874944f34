//! Events and watches.

use super::timestamp;
use crate::{
    access::Caller,
    events::{Cursor, Event, EventKind, EventLog},
    serve::{Messages, until_end},
    watch::{Change, Message},
};
use futures_util::StreamExt as _;
use proto::events::v1::{self as wire, event_service_server::EventService as Calls};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// `events.v1.EventService` of one daemon.
#[derive(Debug)]
pub struct EventService {
    log: EventLog,
    stop: CancellationToken,
}

impl EventService {
    /// What a log has, until `stop`.
    #[must_use]
    pub fn new(log: EventLog, stop: CancellationToken) -> Self {
        Self { log, stop }
    }
}

#[tonic::async_trait]
impl Calls for EventService {
    type WatchEventsStream = Messages<wire::Event>;

    async fn list_events(
        &self,
        request: Request<wire::ListEventsRequest>,
    ) -> Result<Response<wire::ListEventsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let page = self.log.page(&since, &request.page_token, request.page_size)?;
        Ok(Response::new(wire::ListEventsResponse {
            events: page.events.iter().map(|told| event(told, &caller)).collect(),
            next_page_token: page.next,
            revision: page.position.revision,
            epoch: page.position.epoch,
        }))
    }

    async fn watch_events(
        &self,
        request: Request<wire::WatchEventsRequest>,
    ) -> Result<Response<Messages<wire::Event>>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let events = self.log.follow(&since)?.map(move |told| told.map(|told| event(&told, &caller)));
        Ok(Response::new(until_end(events, self.stop.clone())))
    }
}

/// An event as the caller may see it: without host paths, unless it is an admin.
fn event(event: &Event, caller: &Caller) -> wire::Event {
    wire::Event {
        revision: event.revision,
        epoch: event.epoch.clone(),
        time: Some(timestamp(event.time)),
        kind: kind(event.kind).into(),
        resource: event.resource.clone(),
        message: caller.words(&event.message),
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
        EventKind::State => wire::EventKind::State,
        EventKind::Adopted => wire::EventKind::Adopted,
        EventKind::Unresponsive => wire::EventKind::Unresponsive,
        EventKind::Responsive => wire::EventKind::Responsive,
        EventKind::Exited => wire::EventKind::Exited,
        EventKind::Crashed => wire::EventKind::Crashed,
        EventKind::Audit => wire::EventKind::Audit,
        EventKind::Refused => wire::EventKind::Refused,
    }
}

/// The parts of a message of a watch: what it tells, the object or, by `gone`, its name, revision and epoch.
pub fn change<T>(
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
