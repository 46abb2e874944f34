//! `kvmctl network`.

use super::watch;
use crate::{
    cli::{Mode, NetworkCommand, OnOff, UpdateNetwork},
    client::{Clients, DEADLINE, within},
    listing,
    output::{Printer, Stop, lease::Lease, network::Network},
    resource,
};
use prost_types::FieldMask;
use proto::netd::v1::{self as wire, NetworkMode, ServiceSwitch};
use std::time::Duration;

/// Carries out a command on networks.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: NetworkCommand, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        NetworkCommand::Create(create) => {
            let spec = wire::NetworkSpec {
                mode: mode(create.mode).into(),
                ipv4_cidr: create.ipv4.unwrap_or_default(),
                ipv6_cidr: create.ipv6.unwrap_or_default(),
                bridge: create.bridge.unwrap_or_default(),
                uplink: create.uplink.unwrap_or_default(),
                mtu: create.mtu.unwrap_or_default(),
                services: Some(wire::NetworkServices {
                    dhcp: switch(create.dhcp).into(),
                    domain: create.domain.unwrap_or_default(),
                    dns_upstreams: create.upstreams.iter().map(ToString::to_string).collect(),
                    lease_seconds: create.lease_time.map_or(0, seconds),
                }),
            };
            let network = wire::Network {
                name: resource::network(&create.name),
                spec: Some(spec),
                ..Default::default()
            };
            let request = wire::CreateNetworkRequest { network: Some(network), validate_only: false };
            let mut networks = clients.networks()?;
            let call = networks.create_network(within(DEADLINE, request));
            let network: Network = clients.netd.call(DEADLINE, call).await?.into();
            printer.changed("network", "created", &network)
        }
        NetworkCommand::List { watch: true } => watch::networks(clients, printer).await,
        NetworkCommand::List { watch: false } => printer.list(&listing::networks(clients).await?),
        NetworkCommand::Show { name } => {
            let request = wire::GetNetworkRequest { name: resource::network(&name) };
            let mut networks = clients.networks()?;
            let call = networks.get_network(within(DEADLINE, request));
            let network: Network = clients.netd.call(DEADLINE, call).await?.into();
            printer.show(&network)
        }
        NetworkCommand::Update(update) => {
            let mut networks = clients.networks()?;
            let call = networks.update_network(within(DEADLINE, change(update)));
            let network: Network = clients.netd.call(DEADLINE, call).await?.into();
            printer.changed("network", "changed", &network)
        }
        NetworkCommand::Leases { name } => {
            let request = wire::ListLeasesRequest { parent: resource::network(&name) };
            let mut networks = clients.networks()?;
            let call = networks.list_leases(within(DEADLINE, request));
            let leases = clients.netd.call(DEADLINE, call).await?.leases;
            printer.list(&leases.into_iter().map(Lease::from).collect::<Vec<_>>())
        }
        NetworkCommand::Delete { name, force } => {
            let request = wire::DeleteNetworkRequest { name: resource::network(&name), force };
            let mut networks = clients.networks()?;
            let call = networks.delete_network(within(DEADLINE, request));
            clients.netd.call(DEADLINE, call).await?;
            printer.deleted("network", name.as_str())
        }
    }
}

fn change(update: UpdateNetwork) -> wire::UpdateNetworkRequest {
    let fields = [
        ("ipv4_cidr", update.ipv4.is_some()),
        ("ipv6_cidr", update.ipv6.is_some()),
        ("mtu", update.mtu.is_some()),
        ("uplink", update.uplink.is_some() || update.any_uplink),
        ("services.dhcp", update.dhcp.is_some()),
        ("services.domain", update.domain.is_some()),
        ("services.dns_upstreams", !update.upstreams.is_empty() || update.host_dns),
        ("services.lease_seconds", update.lease_time.is_some()),
    ];
    let paths = fields.iter().filter(|(_, named)| *named).map(|(field, _)| format!("spec.{field}")).collect();
    let spec = wire::NetworkSpec {
        ipv4_cidr: update.ipv4.unwrap_or_default(),
        ipv6_cidr: update.ipv6.unwrap_or_default(),
        mtu: update.mtu.unwrap_or_default(),
        uplink: update.uplink.unwrap_or_default(),
        services: Some(wire::NetworkServices {
            dhcp: switch(update.dhcp).into(),
            domain: update.domain.unwrap_or_default(),
            dns_upstreams: update.upstreams.iter().map(ToString::to_string).collect(),
            lease_seconds: update.lease_time.map_or(0, seconds),
        }),
        ..Default::default()
    };
    let network =
        wire::Network { name: resource::network(&update.name), spec: Some(spec), ..Default::default() };
    wire::UpdateNetworkRequest {
        network: Some(network),
        update_mask: Some(FieldMask { paths }),
        expected_generation: 0,
    }
}

fn switch(choice: Option<OnOff>) -> ServiceSwitch {
    match choice {
        None => ServiceSwitch::Unspecified,
        Some(OnOff::On) => ServiceSwitch::On,
        Some(OnOff::Off) => ServiceSwitch::Off,
    }
}

/// Whole seconds. Less than one is one, which netd refuses, where zero would be the default.
fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn mode(mode: Mode) -> NetworkMode {
    match mode {
        Mode::Isolated => NetworkMode::Isolated,
        Mode::Nat => NetworkMode::Nat,
        Mode::Routed => NetworkMode::Routed,
        Mode::Bridged => NetworkMode::Bridged,
    }
}
