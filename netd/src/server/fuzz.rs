//! Requests, from the bytes on the wire to the records and the kernel that they leave.

use super::{capture, forward, group, network, port};
use crate::{
    convert::diagnose,
    fuzz::{Outcome, netd::Netd},
    kernel::fake::FakeKernel,
};
use prost::Message;
use proto::netd::v1::{
    self as wire, forward_service_server::ForwardService as _, group_service_server::GroupService as _,
    network_service_server::NetworkService as _, port_service_server::PortService as _,
};
use shared::access::{Caller, Rights, Role};
use std::path::Path;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

/// Most requests of one input: more would only be slower.
const MOST: usize = 8;
/// Methods, by the lower bits of the byte before a message.
const METHODS: u8 = 24;

/// Carries one request out, as the user 0, 1000 or, where the kernel does not say who it is, nobody.
async fn call(netd: &Netd, sort: u8, body: &[u8]) -> Result<(), Status> {
    let caller = match sort / METHODS {
        0..=7 => Some(Caller::root()),
        8 | 9 => {
            let rights = Rights { role: Role::Operator, ..Caller::root().rights };
            Some(Caller::new(1000, None, rights, Path::new("/access").into()))
        }
        _ => None,
    };
    fn read<M: Message + Default>(body: &[u8], caller: Option<Caller>) -> Result<Request<M>, Status> {
        let message = M::decode(body).map_err(|_| Status::invalid_argument("no message"))?;
        let mut request = Request::new(message);
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        Ok(request)
    }
    macro_rules! to {
        ($service:expr, $method:ident) => {
            $service.$method(read(body, caller)?).await.map(drop)
        };
    }
    let reconciler = || netd.reconciler().clone();
    let networks = network::Service::<FakeKernel>::new(reconciler(), CancellationToken::new());
    let ports = port::Service::<FakeKernel>::new(reconciler(), CancellationToken::new());
    let forwards = forward::Service::<FakeKernel>(reconciler());
    let groups = group::Service::<FakeKernel>(reconciler());
    match sort % METHODS {
        0 | 1 => to!(networks, create_network),
        2 => to!(networks, update_network),
        3 => to!(networks, delete_network),
        4 => to!(networks, get_network),
        5 => to!(networks, list_networks),
        6 => to!(networks, list_leases),
        7..=9 => to!(ports, create_port),
        10 => to!(ports, update_port),
        11 => to!(ports, delete_port),
        12 => to!(ports, get_port),
        13 => to!(ports, list_ports),
        14 => to!(forwards, create_forward),
        15 => to!(forwards, delete_forward),
        16 => to!(forwards, get_forward),
        17 => to!(forwards, list_forwards),
        18 => to!(groups, create_group),
        19 => to!(groups, update_group),
        20 => to!(groups, delete_group),
        21 => to!(groups, list_groups),
        22 => to!(groups, get_group),
        // What follows is carried out on a real kernel only.
        _ => {
            let explain: Request<wire::ExplainRequest> = read(body, caller.clone())?;
            diagnose::asked(explain.into_inner())?;
            let capture: Request<wire::CaptureRequest> = read(body, caller)?;
            capture::bounds(capture.get_ref())?;
            Ok(())
        }
    }
}

/// A sequence of requests: a byte for the method, the length in two, the message. Everything is gone after it.
///
/// # Errors
/// Why the last was refused, if all were.
pub fn netd_requests(data: &[u8]) -> Outcome {
    Netd::with(|netd| {
        let bare = netd.picture();
        let mut rest = data;
        let mut outcome = Err("no request".to_owned());
        let mut count = 0;
        while let [sort, low, high, more @ ..] = rest
            && count < MOST
        {
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
            let before = (netd.picture(), netd.records());
            match netd.run(call(netd, *sort, &more[..length])) {
                Ok(()) => outcome = Ok(()),
                Err(status) => {
                    assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{status:?}");
                    assert!(!status.message().chars().any(char::is_control), "{status:?}");
                    assert_eq!((netd.picture(), netd.records()), before, "refused, and done: {status:?}");
                    if outcome.is_err() {
                        let told = status.message().split('`').step_by(2).collect::<String>();
                        outcome = Err(told.chars().take(60).collect());
                    }
                }
            }
            netd.assert_converged();
            rest = &more[length..];
            count += 1;
        }
        netd.clear();
        assert_eq!(netd.picture(), bare, "something is left");
        outcome
    })
}

#[cfg(test)]
mod test;
