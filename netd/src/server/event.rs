//! `netd.v1.EventService`.

use super::page_size;
use crate::{convert, kernel::Kernel, reconciler::Reconciler};
use futures_util::{Stream, StreamExt as _};
use proto::netd::v1 as wire;
use shared::fault::{Fault, Kind};
use std::pin::Pin;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
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
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => request.since_revision,
            token => token.parse().map_err(|e| {
                Fault::new(Kind::InvalidArgument, "INVALID_PAGE_TOKEN", "the page token is none of netd's")
                    .cause(&e)
            })?,
        };
        let events = self.reconciler.events(revision(after)?, size);
        let last = events.last().filter(|_| events.len() == size);
        let next_page_token = last.map_or_else(String::new, |last| last.revision.to_string());
        let events = events.into_iter().map(convert::event).collect();
        Ok(Response::new(wire::ListEventsResponse { events, next_page_token }))
    }

    async fn watch_events(
        &self,
        request: Request<wire::WatchEventsRequest>,
    ) -> Result<Response<Events>, Status> {
        let since = revision(request.into_inner().since_revision)?;
        let watch = self.reconciler.watch_events(since)?;
        let news = BroadcastStream::new(watch.news).map(|event| match event {
            Ok(event) => Ok(convert::event(event)),
            Err(BroadcastStreamRecvError::Lagged(_)) => {
                Err(Fault::new(Kind::Aborted, "SLOW_READER", "events came faster than they were read")
                    .hint("list the events again, and watch from the last one")
                    .into())
            }
        });
        let kept = futures_util::stream::iter(watch.kept.into_iter().map(|event| Ok(convert::event(event))));
        let stop = self.stop.clone();
        Ok(Response::new(kept.chain(news).take_until(stop.cancelled_owned()).boxed()))
    }
}

fn revision(asked: i64) -> Result<i64, Fault> {
    if asked >= 0 {
        return Ok(asked);
    }
    Err(Fault::new(Kind::InvalidArgument, "INVALID_REVISION", "the revision is negative")
        .hint("that of an event, or 0"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn revisions_are_not_negative() {
        assert_eq!(revision(0).unwrap(), 0);
        assert_eq!(revision(i64::MAX).unwrap(), i64::MAX);
        for bad in [-1, i64::MIN] {
            assert_eq!(revision(bad).unwrap_err().kind(), Kind::InvalidArgument);
        }
    }
}
