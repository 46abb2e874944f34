//! What happened, and what becomes of machines, as streams.

use super::{Answer, Server, ending, shown};
use crate::{convert, ports::Ports, supervisor::Supervisor};
use futures_util::{Stream, StreamExt as _, stream};
use proto::vmd::v1 as wire;
use shared::{
    access::Caller,
    events::{Cursor, Event},
    fault::Fault,
    watch,
};
use std::pin::Pin;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// A stream of a service.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where the machines of a watch are looked up.
struct Vms<P>(Supervisor<P>, Caller);

impl<P: Ports> watch::Source for Vms<P> {
    type Object = wire::Vm;

    fn all(&self) -> Vec<String> {
        let (vms, _) = self.0.list(None, usize::MAX);
        let broken = self.0.broken().into_keys().map(|name| convert::broken_vm(&name, String::new()).name);
        vms.iter().map(|vm| vm.record.resource()).chain(broken).collect()
    }

    fn covers(&self, resource: &str) -> bool {
        convert::resource(resource).is_ok()
    }

    fn get(&self, resource: &str) -> Option<wire::Vm> {
        let name = convert::resource(resource).ok()?;
        match self.0.get(&name) {
            Ok(handle) => handle.now().map(|vm| shown(&self.1, &vm)),
            Err(_) => self.0.broken().remove(&name).map(|why| convert::broken_vm(&name, self.1.words(&why))),
        }
    }
}

/// An event as the caller may see it.
fn told(caller: &Caller, event: &Event) -> wire::Event {
    let mut event = convert::event(event);
    event.message = caller.words(&event.message);
    event
}

/// A stream that says so when vmd ends.
fn until_end<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Fault>> + Send + 'static,
    stop: CancellationToken,
) -> Messages<T> {
    let end = stream::once(stop.clone().cancelled_owned()).map(|()| Err(ending()));
    let stream = stream.map(|item| item.map_err(Status::from)).take_until(stop.cancelled_owned());
    watch::until_error(stream.chain(end)).boxed()
}

/// Watches machines.
pub(super) fn vms<P: Ports>(
    server: &Server<P>,
    request: wire::WatchVmsRequest,
    caller: Caller,
) -> Result<Messages<wire::WatchVmsResponse>, Fault> {
    let since = Cursor::new(request.since_revision, request.since_epoch)?;
    let messages = watch::objects(server.supervisor.log(), &since, Vms(server.supervisor.clone(), caller))?;
    Ok(until_end(messages.map(|message| message.map(convert::message)), server.stop.clone()))
}

#[tonic::async_trait]
impl<P: Ports> wire::event_service_server::EventService for Server<P> {
    type WatchEventsStream = Messages<wire::Event>;

    async fn list_events(
        &self,
        request: Request<wire::ListEventsRequest>,
    ) -> Answer<wire::ListEventsResponse> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let page = self.supervisor.log().page(&since, &request.page_token, request.page_size)?;
        Ok(Response::new(wire::ListEventsResponse {
            events: page.events.iter().map(|event| told(&caller, event)).collect(),
            next_page_token: page.next,
            revision: page.position.revision,
            epoch: page.position.epoch,
        }))
    }

    async fn watch_events(
        &self,
        request: Request<wire::WatchEventsRequest>,
    ) -> Answer<Messages<wire::Event>> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let events = self.supervisor.log().follow(&since)?;
        let events = events.map(move |event| event.map(|event| told(&caller, &event)));
        Ok(Response::new(until_end(events, self.stop.clone())))
    }
}
