//! `netd.v1.EventService`.

use super::shown;
use crate::{convert, kernel::Kernel, reconciler::Reconciler};
use futures_util::{Stream, StreamExt as _};
use proto::netd::v1 as wire;
use shared::{access::Caller, events::Cursor};
use std::pin::Pin;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

type Events = Pin<Box<dyn Stream<Item = Result<wire::Event, Status>> + Send>>;

#[derive(Debug)]
pub struct Service<K> {
    reconciler: Reconciler<K>,
    stop: CancellationToken,
}

impl<K: Kernel> Service<K> {
    pub fn new(reconciler: Reconciler<K>, stop: CancellationToken) -> Self {
        Self { reconciler, stop }
    }
}

#[tonic::async_trait]
impl<K: Kernel> wire::event_service_server::EventService for Service<K> {
    type WatchEventsStream = Events;

    async fn list_events(
        &self,
        request: Request<wire::ListEventsRequest>,
    ) -> Result<Response<wire::ListEventsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let page = self.reconciler.log().page(&since, &request.page_token, request.page_size)?;
        Ok(Response::new(wire::ListEventsResponse {
            events: page.events.iter().map(|event| shown::event(&caller, convert::event(event))).collect(),
            next_page_token: page.next,
            revision: page.position.revision,
            epoch: page.position.epoch,
        }))
    }

    async fn watch_events(
        &self,
        request: Request<wire::WatchEventsRequest>,
    ) -> Result<Response<Events>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let events = self.reconciler.log().follow(&since)?;
        let events = events.map(move |event| Ok(shown::event(&caller, convert::event(&*event?))));
        Ok(Response::new(events.take_until(self.stop.clone().cancelled_owned()).boxed()))
    }
}
