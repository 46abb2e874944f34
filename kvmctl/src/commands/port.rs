//! `kvmctl port`.

use super::resource;
use crate::{
    cli::{OnOff, PortCommand},
    client::{Clients, DEADLINE, within},
    output::{Printer, Stop, port::Port},
};
use proto::netd::v1::{self as wire, PortFilter};
use shared::{fault::Fault, name::Name};

/// Carries out a command on ports.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: PortCommand, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        PortCommand::Create(create) => {
            let filter = match create.filter {
                None => PortFilter::Unspecified,
                Some(OnOff::On) => PortFilter::On,
                Some(OnOff::Off) => PortFilter::Off,
            };
            let mac = create.mac.map(|mac| mac.to_string()).unwrap_or_default();
            let port = wire::Port {
                name: resource::port(&create.network, &create.name),
                spec: Some(wire::PortSpec { mac, filter: filter.into() }),
                ..Default::default()
            };
            let request = wire::CreatePortRequest { port: Some(port) };
            let mut ports = clients.ports()?;
            let call = ports.create_port(within(DEADLINE, request));
            let port: Port = clients.netd.call(DEADLINE, call).await?.into();
            printer.changed("port", "created", &port)
        }
        PortCommand::List { network } => printer.list(&all(clients, network.as_ref()).await?),
        PortCommand::Show(port) => {
            let request = wire::GetPortRequest { name: resource::port(&port.network, &port.name) };
            let mut ports = clients.ports()?;
            let call = ports.get_port(within(DEADLINE, request));
            let port: Port = clients.netd.call(DEADLINE, call).await?.into();
            printer.show(&port)
        }
        PortCommand::Delete(port) => {
            let name = resource::port(&port.network, &port.name);
            let request = wire::DeletePortRequest { name, uid: String::new() };
            let mut ports = clients.ports()?;
            let call = ports.delete_port(within(DEADLINE, request));
            clients.netd.call(DEADLINE, call).await?;
            printer.deleted("port", port.name.as_str())
        }
    }
}

/// The ports of one network or of all, in the order of their names.
///
/// # Errors
/// What netd said.
pub async fn all(clients: &Clients, of: Option<&Name>) -> Result<Vec<Port>, Fault> {
    let parent = of.map_or_else(|| "networks/-".to_owned(), resource::network);
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListPortsRequest { parent: parent.clone(), page_size: 0, page_token };
        let mut ports = clients.ports()?;
        let call = ports.list_ports(within(DEADLINE, request));
        let page = clients.netd.call(DEADLINE, call).await?;
        found.extend(page.ports.into_iter().map(Port::from));
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}
