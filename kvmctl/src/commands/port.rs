//! `kvmctl port`.

use super::{capture, watch};
use crate::{
    cli::{CreatePort, OnOff, PortCommand, UpdatePort},
    client::{Clients, DEADLINE, within},
    listing,
    output::{Printer, Stop, port::Port},
    parse::Limit,
    resource,
};
use prost_types::FieldMask;
use proto::netd::v1::{self as wire, PortFilter};
use shared::fault::{Fault, Kind};
use std::net::IpAddr;

/// Carries out a command on ports.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: PortCommand, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        PortCommand::Create(create) => {
            let port = wire::Port {
                name: resource::port(&create.network, &create.name),
                spec: Some(spec(&create)?),
                ..Default::default()
            };
            let request = wire::CreatePortRequest { port: Some(port) };
            let mut ports = clients.ports()?;
            let call = ports.create_port(within(DEADLINE, request));
            let port: Port = clients.netd.call(DEADLINE, call).await?.into();
            printer.changed("port", "created", &port)
        }
        PortCommand::Update(update) => {
            let mut ports = clients.ports()?;
            let call = ports.update_port(within(DEADLINE, change(update)));
            let port: Port = clients.netd.call(DEADLINE, call).await?.into();
            printer.changed("port", "changed", &port)
        }
        PortCommand::List { network, watch: true } => watch::ports(network.as_ref(), clients, printer).await,
        PortCommand::List { network, watch: false } => {
            printer.list(&listing::ports(clients, network.as_ref()).await?)
        }
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
        PortCommand::Capture(asked) => capture::run(asked, clients, printer).await,
    }
}

fn filter(choice: Option<OnOff>) -> i32 {
    match choice {
        None => PortFilter::Unspecified,
        Some(OnOff::On) => PortFilter::On,
        Some(OnOff::Off) => PortFilter::Off,
    }
    .into()
}

fn rate(limit: Limit) -> Option<wire::Rate> {
    match limit {
        Limit::None => None,
        Limit::Rate { bits_per_second, burst_bytes } => Some(wire::Rate { bits_per_second, burst_bytes }),
    }
}

fn spec(create: &CreatePort) -> Result<wire::PortSpec, Fault> {
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = create.addresses.iter().partition(|address| address.is_ipv4());
    Ok(wire::PortSpec {
        mac: create.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        filter: filter(create.filter),
        ipv4_address: only(&ipv4)?,
        ipv6_address: only(&ipv6)?,
        extra_addresses: create.extra.iter().map(ToString::to_string).collect(),
        hostname: create.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
        isolated: create.isolated,
        rate_in: create.rate_in.and_then(rate),
        rate_out: create.rate_out.and_then(rate),
        groups: create.groups.iter().map(resource::group).collect(),
        tenant: String::new(),
    })
}

/// One address of a family at most.
fn only(addresses: &[&IpAddr]) -> Result<String, Fault> {
    match addresses {
        [] => Ok(String::new()),
        [one] => Ok(one.to_string()),
        [one, two, ..] => Err(Fault::new(
            Kind::InvalidArgument,
            "TWO_ADDRESSES",
            format!("{one} and {two} are of one family, and a port has one address of each"),
        )
        .hint("further ones are given with --extra-ip")),
    }
}

fn change(update: UpdatePort) -> wire::UpdatePortRequest {
    let mut paths = Vec::new();
    let mut named = |field: &str, is: bool| {
        if is {
            paths.push(format!("spec.{field}"));
        }
    };
    named("filter", update.filter.is_some());
    named("extra_addresses", !update.extra.is_empty() || update.no_extra);
    named("hostname", update.hostname.is_some());
    named("isolated", update.isolated.is_some());
    named("rate_in", update.rate_in.is_some());
    named("rate_out", update.rate_out.is_some());
    named("groups", !update.groups.is_empty() || update.no_group);
    let spec = wire::PortSpec {
        filter: filter(update.filter),
        extra_addresses: update.extra.iter().map(ToString::to_string).collect(),
        hostname: update.hostname.map(|name| name.to_string()).unwrap_or_default(),
        isolated: update.isolated == Some(OnOff::On),
        rate_in: update.rate_in.and_then(rate),
        rate_out: update.rate_out.and_then(rate),
        groups: update.groups.iter().map(resource::group).collect(),
        ..Default::default()
    };
    wire::UpdatePortRequest {
        port: Some(wire::Port {
            name: resource::port(&update.port.network, &update.port.name),
            spec: Some(spec),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths }),
        expected_generation: 0,
    }
}
