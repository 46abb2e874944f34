//! What netd knows of a machine's addresses.

use crate::{
    client::{Clients, DEADLINE, within},
    output::{port::Port, vm::Vm},
};
use proto::netd::v1::GetPortRequest;
use shared::fault::{Fault, Kind};
use std::time::Duration;

/// How long a look at a machine waits for netd, which is not what was asked for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The machine's ports, in the order of its network cards; `None` where there is none.
///
/// # Errors
/// What netd said.
pub(super) async fn ports(vm: &Vm, clients: &Clients) -> Result<Vec<Option<Port>>, Fault> {
    let mut found = Vec::new();
    for nic in &vm.status.nics {
        let request = GetPortRequest { name: nic.port.clone().unwrap_or_default() };
        let answer = clients.netd.call(DEADLINE, clients.ports()?.get_port(within(DEADLINE, request))).await;
        found.push(match answer {
            Ok(port) => Some(port.into()),
            Err(fault) if fault.kind() == Kind::NotFound => None,
            Err(fault) => return Err(fault),
        });
    }
    Ok(found)
}

/// Adds what netd knows of a machine that runs, if it can be had now.
pub(super) async fn add(vm: &mut Vm, clients: &Clients) {
    if vm.status.nics.iter().all(|nic| nic.interface.is_none()) {
        return;
    }
    let Ok(Ok(ports)) = tokio::time::timeout(PATIENCE, ports(vm, clients)).await else { return };
    for (nic, port) in vm.status.nics.iter_mut().zip(ports) {
        nic.addresses = port.map(|port| port.status.addresses);
    }
}
