//! What becomes of machines, as a stream.

use super::{Server, shown};
use crate::{convert, ports::Ports, supervisor::Supervisor};
use futures_util::StreamExt as _;
use proto::vmd::v1 as wire;
use shared::{
    access::Caller,
    events::Cursor,
    fault::Fault,
    serve::{Messages, until_end},
    watch,
    wire::change,
};

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

/// Watches machines.
pub(super) fn vms<P: Ports>(
    server: &Server<P>,
    request: wire::WatchVmsRequest,
    caller: Caller,
) -> Result<Messages<wire::WatchVmsResponse>, Fault> {
    let since = Cursor::new(request.since_revision, request.since_epoch)?;
    let messages = watch::objects(server.supervisor.log(), &since, Vms(server.supervisor.clone(), caller))?;
    Ok(until_end(messages.map(|message| message.map(sent)), server.stop.clone()))
}

fn sent(message: watch::Message<wire::Vm>) -> wire::WatchVmsResponse {
    let (change, vm, revision, epoch) = change(message, |name| wire::Vm { name, ..wire::Vm::default() });
    wire::WatchVmsResponse { change: change.into(), vm, revision, epoch }
}
