//! What a caller may see of an object: its messages without host paths, unless it is an admin.

use proto::netd::v1 as wire;
use shared::access::Caller;

/// A network.
pub fn network(caller: &Caller, mut network: wire::Network) -> wire::Network {
    if let Some(status) = &mut network.status {
        status.error = caller.words(&status.error);
        status.warnings.iter_mut().for_each(|warning| *warning = caller.words(warning));
        if let Some(service) = &mut status.service {
            service.error = caller.words(&service.error);
        }
    }
    network
}

/// A port.
pub fn port(caller: &Caller, mut port: wire::Port) -> wire::Port {
    if let Some(status) = &mut port.status {
        status.error = caller.words(&status.error);
    }
    port
}

/// A forward.
pub fn forward(caller: &Caller, mut forward: wire::Forward) -> wire::Forward {
    if let Some(status) = &mut forward.status {
        status.error = caller.words(&status.error);
    }
    forward
}
