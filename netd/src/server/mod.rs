//! The gRPC services. Wire types end here.

mod capture;
mod diagnose;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod group;
mod host;
mod network;
mod page;
mod port;
mod shown;
pub(crate) mod watch;

use crate::{
    kernel::{Inspect, Kernel},
    reconciler::Reconciler,
};
use proto::{
    events::v1::event_service_server::EventServiceServer,
    netd::v1::{
        capture_service_server::CaptureServiceServer, diagnose_service_server::DiagnoseServiceServer,
        forward_service_server::ForwardServiceServer, group_service_server::GroupServiceServer,
        host_service_server::HostServiceServer, network_service_server::NetworkServiceServer,
        port_service_server::PortServiceServer,
    },
};
use shared::{access::Access, wire::EventService};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Most items of one page, and how many where the client does not say.
const PAGE: usize = 1000;

/// All services, to be served behind a gate that knows the caller by `access`. Their streams end when
/// `stop` is cancelled.
#[must_use]
pub fn routes<K: Kernel + Inspect>(
    reconciler: Reconciler<K>,
    access: Access,
    stop: CancellationToken,
) -> Routes {
    Routes::new(NetworkServiceServer::new(network::Service::new(reconciler.clone(), stop.clone())))
        .add_service(PortServiceServer::new(port::Service::new(reconciler.clone(), stop.clone())))
        .add_service(CaptureServiceServer::new(capture::Service::new(reconciler.clone(), stop.clone())))
        .add_service(EventServiceServer::new(EventService::new(reconciler.log().clone(), stop)))
        .add_service(DiagnoseServiceServer::new(diagnose::Service::new(reconciler.clone())))
        .add_service(ForwardServiceServer::new(forward::Service(reconciler.clone())))
        .add_service(GroupServiceServer::new(group::Service(reconciler.clone())))
        .add_service(HostServiceServer::new(host::Service(reconciler, access)))
}
