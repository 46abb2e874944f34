//! Where the objects of a watch are looked up.

use super::{page, shown};
use crate::{
    convert::{self, Seen},
    kernel::Kernel,
    reconciler::Reconciler,
};
use futures_util::StreamExt as _;
use proto::netd::v1 as wire;
use shared::{
    access::Caller,
    events::Cursor,
    fault::Fault,
    name::Name,
    serve::{Messages, until_end},
    watch::{self, Message, Source},
    wire::change,
};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Networks<K>(Reconciler<K>, Caller);

impl<K: Kernel> Source for Networks<K> {
    type Object = wire::Network;

    fn all(&self) -> Vec<String> {
        let readable = self.0.networks(None, usize::MAX).into_iter().map(|view| view.network.resource());
        readable
            .chain(page::broken(&self.0, &self.1).into_iter().map(|network: wire::Network| network.name))
            .collect()
    }

    fn covers(&self, resource: &str) -> bool {
        Name::from_resource(resource, "networks").is_ok()
    }

    fn get(&self, resource: &str) -> Option<wire::Network> {
        let name = Name::from_resource(resource, "networks").ok()?;
        match self.0.network(&name) {
            Ok(view) => Some(shown::network(&self.1, convert::network(view))),
            Err(_) => page::broken(&self.0, &self.1)
                .into_iter()
                .find(|network: &wire::Network| network.name == resource),
        }
    }
}

/// Watches networks until `stop`.
///
/// # Errors
/// EVENTS_GONE.
pub fn networks<K: Kernel>(
    reconciler: &Reconciler<K>,
    since: &Cursor,
    caller: Caller,
    stop: CancellationToken,
) -> Result<Messages<wire::WatchNetworksResponse>, Fault> {
    let send = |message: Message<wire::Network>| {
        let gone = |name| wire::Network { name, ..Default::default() };
        let (change, network, revision, epoch) = change(message, gone);
        wire::WatchNetworksResponse { change: change.into(), network, revision, epoch }
    };
    watch(reconciler, since, Networks(reconciler.clone(), caller), (stop, send))
}

#[derive(Debug)]
struct Ports<K> {
    reconciler: Reconciler<K>,
    network: Option<Name>,
    caller: Caller,
}

impl<K: Kernel> Ports<K> {
    fn broken(&self) -> Vec<wire::Port> {
        page::broken_of(self.network.as_ref(), &self.reconciler, &self.caller)
    }
}

impl<K: Kernel> Source for Ports<K> {
    type Object = wire::Port;

    fn all(&self) -> Vec<String> {
        // There are none of a network that is not there.
        let ports = self.reconciler.ports(self.network.as_ref(), None, usize::MAX).unwrap_or_default();
        let readable = ports.iter().map(|view| view.port.resource());
        readable.chain(self.broken().into_iter().map(|port| port.name)).collect()
    }

    fn covers(&self, resource: &str) -> bool {
        let key = convert::port_key(resource);
        key.is_ok_and(|(network, _)| self.network.as_ref().is_none_or(|wanted| *wanted == network))
    }

    fn get(&self, resource: &str) -> Option<wire::Port> {
        let (network, name) = convert::port_key(resource).ok()?;
        match self.reconciler.port(&network, &name) {
            Ok(view) => Some(shown::port(&self.caller, convert::port(view, &Seen::default()))),
            Err(_) => self.broken().into_iter().find(|port| port.name == resource),
        }
    }
}

/// Watches ports, of one network or of all, until `stop`.
///
/// # Errors
/// EVENTS_GONE.
pub fn ports<K: Kernel>(
    reconciler: &Reconciler<K>,
    since: &Cursor,
    (network, caller): (Option<Name>, Caller),
    stop: CancellationToken,
) -> Result<Messages<wire::WatchPortsResponse>, Fault> {
    let send = |message: Message<wire::Port>| {
        let gone = |name| wire::Port { name, ..Default::default() };
        let (change, port, revision, epoch) = change(message, gone);
        wire::WatchPortsResponse { change: change.into(), port, revision, epoch }
    };
    watch(reconciler, since, Ports { reconciler: reconciler.clone(), network, caller }, (stop, send))
}

fn watch<K: Kernel, S: Source, T: Send + 'static>(
    reconciler: &Reconciler<K>,
    since: &Cursor,
    source: S,
    (stop, send): (CancellationToken, impl Fn(Message<S::Object>) -> T + Send + 'static),
) -> Result<Messages<T>, Fault> {
    let messages = watch::objects(reconciler.log(), since, source)?;
    Ok(until_end(messages.map(move |message| message.map(&send)), stop))
}
