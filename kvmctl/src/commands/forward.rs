//! `kvmctl forward`.

use crate::{
    cli::{AddForward, ForwardCommand, Protocol},
    client::{Clients, DEADLINE, within},
    listing,
    output::{Printer, Stop, forward::Forward},
    resource,
};
use proto::{
    netd::v1::{self as wire, ForwardProtocol},
    vmd::v1 as vmd,
};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};

/// Carries out a command on forwards.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: ForwardCommand, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        ForwardCommand::Add(asked) => printer.changed("forward", "added", &add(&asked, clients).await?),
        ForwardCommand::List { network } => {
            printer.list(&listing::forwards(clients, network.as_ref()).await?)
        }
        ForwardCommand::Show(forward) => {
            let request =
                wire::GetForwardRequest { name: resource::forward(&forward.network, forward.name.as_str()) };
            let mut forwards = clients.forwards()?;
            let call = forwards.get_forward(within(DEADLINE, request));
            let forward: Forward = clients.netd.call(DEADLINE, call).await?.into();
            printer.show(&forward)
        }
        ForwardCommand::Delete(forward) => {
            let name = resource::forward(&forward.network, forward.name.as_str());
            let mut forwards = clients.forwards()?;
            let call = forwards.delete_forward(within(DEADLINE, wire::DeleteForwardRequest { name }));
            clients.netd.call(DEADLINE, call).await?;
            printer.deleted("forward", forward.name.as_str())
        }
    }
}

/// netd knows machines by their ports only: one that was never started is asked of vmd.
async fn add(asked: &AddForward, clients: &Clients) -> Result<Forward, Fault> {
    let refused = match create(asked, false, clients).await {
        Err(fault) if fault.reason() == "TARGET_NOT_FOUND" => fault,
        other => return other,
    };
    match machine(asked, clients).await {
        Ok(true) => create(asked, true, clients).await,
        Ok(false) => Err(refused.hint(format!(
            "nor is there a machine `{}` with a NIC on network `{}`: `kvmctl vm list` shows the machines",
            asked.to.guest, asked.network
        ))),
        Err(silent) => Err(refused.hint(format!("whether there is such a machine is not known: {silent}"))),
    }
}

async fn create(asked: &AddForward, allow_absent: bool, clients: &Clients) -> Result<Forward, Fault> {
    let protocol = match asked.protocol {
        Protocol::Tcp => ForwardProtocol::Tcp,
        Protocol::Udp => ForwardProtocol::Udp,
    };
    let spec = wire::ForwardSpec {
        protocol: protocol.into(),
        listen_address: asked.listen.address.map(|address| address.to_string()).unwrap_or_default(),
        listen_port: asked.listen.port.into(),
        target: asked.to.guest.clone(),
        target_port: asked.to.port.map_or(0, Into::into),
    };
    let forward = wire::Forward {
        name: resource::forward(&asked.network, asked.name.as_ref().map_or("-", Name::as_str)),
        spec: Some(spec),
        ..Default::default()
    };
    let request = wire::CreateForwardRequest { forward: Some(forward), allow_absent };
    let mut forwards = clients.forwards()?;
    let call = forwards.create_forward(within(DEADLINE, request));
    Ok(clients.netd.call(DEADLINE, call).await?.into())
}

/// Whether vmd has a machine of the target's name with a NIC on the network.
async fn machine(asked: &AddForward, clients: &Clients) -> Result<bool, Fault> {
    let Ok(name) = asked.to.guest.parse::<Name>() else { return Ok(false) };
    let request = within(DEADLINE, vmd::GetVmRequest { name: resource::vm(&name) });
    match clients.vmd.call(DEADLINE, clients.vms()?.get_vm(request)).await {
        Ok(vm) => {
            let network = resource::network(&asked.network);
            Ok(vm.spec.unwrap_or_default().nics.iter().any(|nic| nic.network == network))
        }
        Err(fault) if fault.kind() == Kind::NotFound => Ok(false),
        Err(fault) => Err(fault),
    }
}
