//! `list --watch`: a list that goes on.

use super::events::{FIRST, LONGEST, ended};
use crate::{
    client::{Clients, DEADLINE, Daemon},
    output::{
        Object, Printer, Stop,
        network::Network,
        port::Port,
        vm::Vm,
        watched::{Change, Watched},
    },
};
use proto::{events::v1::ChangeType, netd::v1 as netd, vmd::v1 as vmd};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::time::Duration;
use tonic::{Request, Streaming};

/// A message of a watch.
trait Message {
    type Object: Object;

    /// What it tells, and where to go on: revision, 0 for nowhere yet, and epoch.
    fn parts(self) -> (Option<Watched<Self::Object>>, i64, String);
}

/// A message of one sort of object; all have the same shape.
macro_rules! message {
    ($package:ident, $response:ident, $field:ident, $object:ident) => {
        impl Message for $package::$response {
            type Object = $object;

            fn parts(self) -> (Option<Watched<$object>>, i64, String) {
                let change = match self.change() {
                    ChangeType::Present => Some(Change::Present),
                    ChangeType::Synced => Some(Change::Synced),
                    ChangeType::Changed => Some(Change::Changed),
                    ChangeType::Deleted => Some(Change::Deleted),
                    // What a newer daemon tells besides.
                    ChangeType::Unspecified => None,
                };
                let resource = self.$field.as_ref().map(|object| object.name.clone());
                let object = self.$field.map($object::from);
                let watched = change.map(|change| Watched::new(change, resource, object));
                (watched, self.revision, self.epoch)
            }
        }
    };
}

message!(netd, WatchNetworksResponse, network, Network);
message!(netd, WatchPortsResponse, port, Port);
message!(vmd, WatchVmsResponse, vm, Vm);

/// Prints all networks, then their changes, until Ctrl-C.
///
/// # Errors
/// What netd said, but for its end: it is waited for.
pub async fn networks(clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let open = async |since_revision, since_epoch| {
        let request = Request::new(netd::WatchNetworksRequest { since_revision, since_epoch });
        clients.netd.call(DEADLINE, clients.networks()?.watch_networks(request)).await
    };
    follow(open, &clients.netd, printer).await
}

/// Prints all ports, of one network or of all, then their changes, until Ctrl-C.
///
/// # Errors
/// As `networks`.
pub async fn ports(network: Option<&Name>, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let parent = network.map_or_else(|| "networks/-".to_owned(), crate::resource::network);
    let open = async |since_revision, since_epoch| {
        let request =
            Request::new(netd::WatchPortsRequest { since_revision, since_epoch, parent: parent.clone() });
        clients.netd.call(DEADLINE, clients.ports()?.watch_ports(request)).await
    };
    follow(open, &clients.netd, printer).await
}

/// Prints all machines, then their changes, until Ctrl-C.
///
/// # Errors
/// As `networks`, of vmd.
pub async fn vms(clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let open = async |since_revision, since_epoch| {
        let request = Request::new(vmd::WatchVmsRequest { since_revision, since_epoch });
        clients.vmd.call(DEADLINE, clients.vms()?.watch_vms(request)).await
    };
    follow(open, &clients.vmd, printer).await
}

async fn follow<M: Message>(
    open: impl AsyncFn(i64, String) -> Result<Streaming<M>, Fault>,
    daemon: &Daemon,
    printer: &mut Printer<'_>,
) -> Result<(), Stop> {
    printer.heading::<M::Object>("CHANGE")?;
    let mut place = (0, String::new());
    // The first connection fails as any command's does.
    let mut stream = open(place.0, place.1.clone()).await?;
    loop {
        let fault = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    let (watched, revision, epoch) = message.parts();
                    if revision > 0 {
                        place = (revision, epoch);
                    }
                    // People see it by what they read.
                    let shown =
                        |watched: &Watched<_>| watched.change != Change::Synced || printer.is_structured();
                    if let Some(watched) = watched.filter(shown) {
                        printer.entry(&watched)?;
                    }
                }
                Ok(None) => break ended(daemon),
                Err(status) => break daemon.fault(status),
            }
        };
        stream = again(fault, &open, (&mut place, daemon), printer).await?;
    }
}

/// Takes the watch up where it ended; from the beginning, and saying so, where what came since is not known in full.
async fn again<M: Message>(
    mut fault: Fault,
    open: &impl AsyncFn(i64, String) -> Result<Streaming<M>, Fault>,
    (place, daemon): (&mut (i64, String), &Daemon),
    printer: &mut Printer<'_>,
) -> Result<Streaming<M>, Stop> {
    let (mut pause, mut away): (Duration, bool) = (FIRST, false);
    loop {
        match (fault.kind(), fault.reason()) {
            (_, "EVENTS_GONE") => {
                *place = (0, String::new());
                if printer.is_structured() {
                    printer.entry(&Watched::<M::Object>::new(Change::Gone, None, None))?;
                }
                printer.remark("warning: what happened meanwhile is not known in full: the list begins anew");
            }
            (Kind::Aborted, _) => {}
            (Kind::Unavailable, _) => {
                if !away {
                    printer.remark(&format!("warning: {fault}; waiting for {}", daemon.name()));
                }
                away = true;
            }
            _ => return Err(fault.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
        match open(place.0, place.1.clone()).await {
            Ok(stream) => {
                if away {
                    printer.remark(&format!("{} is back", daemon.name()));
                }
                return Ok(stream);
            }
            Err(next) => fault = next,
        }
    }
}
