//! Networks as they are printed.

use super::{
    Object,
    broken::{self, Broken},
    last_part, set,
    text::{Sheet, count, or_dash},
    time::rfc3339,
    word,
};
use proto::netd::v1::{self as wire, NetworkMode, ObjectState, ServiceState, ServiceSwitch};
use serde::Serialize;
use std::collections::BTreeMap;

/// A network.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// Its bare name.
    pub name: String,
    /// UUID.
    pub uid: String,
    /// Counts changes of the spec.
    pub generation: i64,
    /// When it was recorded.
    pub create_time: Option<String>,
    /// When its record last changed.
    pub update_time: Option<String>,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// What was asked for.
    pub spec: NetworkSpec,
    /// What came of it.
    pub status: NetworkStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkSpec {
    /// isolated, nat, routed or bridged.
    pub mode: String,
    /// Null: netd's choice.
    pub ipv4_cidr: Option<String>,
    /// Null: no IPv6.
    pub ipv6_cidr: Option<String>,
    /// The existing bridge to use.
    pub bridge: Option<String>,
    /// The NIC.
    pub uplink: Option<String>,
    /// Bytes; null: netd's choice.
    pub mtu: Option<u32>,
    /// DHCP, DNS and router advertisements.
    pub services: NetworkServices,
}

/// What was asked for guests; null: the default.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkServices {
    /// on or off.
    pub dhcp: Option<String>,
    /// What guests' names end in.
    pub domain: Option<String>,
    /// Empty: the host's own.
    pub dns_upstreams: Vec<String>,
    /// Seconds.
    pub lease_seconds: Option<u32>,
}

/// The process that serves guests.
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    /// starting, running or failed.
    pub state: String,
    /// Its process id.
    pub pid: Option<u32>,
    /// Why it failed.
    pub error: Option<String>,
    /// What guests' names end in.
    pub domain: String,
    /// Empty: the host's own, or none on isolated.
    pub dns_upstreams: Vec<String>,
    /// Seconds.
    pub lease_seconds: u32,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// The generation this speaks of.
    pub observed_generation: i64,
    /// pending, ready, degraded, deleting or broken.
    pub state: String,
    /// Why it is degraded.
    pub error: Option<String>,
    /// The bridge interface.
    pub bridge: Option<String>,
    /// The host's address in force.
    pub ipv4_cidr: Option<String>,
    /// The host's address in force.
    pub ipv6_cidr: Option<String>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Number of ports.
    pub port_count: u32,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Null: the network serves nothing.
    pub service: Option<Service>,
}

impl From<wire::NetworkServices> for NetworkServices {
    fn from(services: wire::NetworkServices) -> Self {
        let dhcp = match services.dhcp() {
            ServiceSwitch::Unspecified => None,
            ServiceSwitch::On => Some("on".to_owned()),
            ServiceSwitch::Off => Some("off".to_owned()),
        };
        Self {
            dhcp,
            domain: set(services.domain),
            dns_upstreams: services.dns_upstreams,
            lease_seconds: (services.lease_seconds != 0).then_some(services.lease_seconds),
        }
    }
}

impl From<wire::ServiceStatus> for Service {
    fn from(status: wire::ServiceStatus) -> Self {
        let state = ServiceState::try_from(status.state).ok().map(|s| s.as_str_name());
        Self {
            state: word(state, "SERVICE_STATE_", "unknown"),
            pid: (status.pid != 0).then_some(status.pid),
            error: set(status.error),
            domain: status.domain,
            dns_upstreams: status.dns_upstreams,
            lease_seconds: status.lease_seconds,
        }
    }
}

impl Service {
    fn text(&self) -> String {
        let pid = self.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
        format!("{}{pid}", self.state)
    }
}

/// An object's state as a word.
pub(super) fn state(state: i32) -> String {
    word(ObjectState::try_from(state).ok().map(|s| s.as_str_name()), "OBJECT_STATE_", "unknown")
}

impl From<wire::Network> for Network {
    fn from(network: wire::Network) -> Self {
        let spec = network.spec.unwrap_or_default();
        let status = network.status.unwrap_or_default();
        let mode = NetworkMode::try_from(spec.mode).ok().map(|m| m.as_str_name());
        Self {
            name: last_part(&network.name),
            uid: network.uid,
            generation: network.generation,
            create_time: rfc3339(network.create_time.as_ref()),
            update_time: rfc3339(network.update_time.as_ref()),
            labels: network.labels.into_iter().collect(),
            spec: NetworkSpec {
                mode: word(mode, "NETWORK_MODE_", "unknown"),
                ipv4_cidr: set(spec.ipv4_cidr),
                ipv6_cidr: set(spec.ipv6_cidr),
                bridge: set(spec.bridge),
                uplink: set(spec.uplink),
                mtu: (spec.mtu != 0).then_some(spec.mtu),
                services: spec.services.unwrap_or_default().into(),
            },
            status: NetworkStatus {
                observed_generation: status.observed_generation,
                state: state(status.state),
                error: set(status.error),
                bridge: set(status.bridge),
                ipv4_cidr: set(status.ipv4_cidr),
                ipv6_cidr: set(status.ipv6_cidr),
                mtu: (status.mtu != 0).then_some(status.mtu),
                port_count: status.port_count,
                warnings: status.warnings,
                service: status.service.map(Service::from),
            },
        }
    }
}

impl Object for Network {
    const COLUMNS: &'static [&'static str] = &["NAME", "MODE", "STATE", "BRIDGE", "PORTS", "IPV4", "IPV6"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        let status = &self.status;
        vec![
            self.name.clone(),
            self.spec.mode.clone(),
            status.state.clone(),
            or_dash(status.bridge.as_deref()),
            status.port_count.to_string(),
            or_dash(status.ipv4_cidr.as_deref()),
            or_dash(status.ipv6_cidr.as_deref()),
        ]
    }

    fn sheet(&self) -> String {
        let status = &self.status;
        Sheet::default()
            .line("Name", &self.name)
            .line("Mode", &self.spec.mode)
            .line("State", &status.state)
            .maybe("Error", status.error.as_deref())
            .maybe("Bridge", status.bridge.as_deref())
            .maybe("Uplink", self.spec.uplink.as_deref())
            .maybe("IPv4", status.ipv4_cidr.as_deref())
            .maybe("IPv6", status.ipv6_cidr.as_deref())
            .maybe("MTU", status.mtu.map(|mtu| mtu.to_string()))
            .line("DHCP and DNS", status.service.as_ref().map_or_else(|| "off".to_owned(), Service::text))
            .maybe("Domain", status.service.as_ref().map(|service| service.domain.as_str()))
            .maybe(
                "Lease time",
                status.service.as_ref().map(|service| format!("{} s", service.lease_seconds)),
            )
            .line("Ports", status.port_count.to_string())
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
            .items("DNS servers", status.service.iter().flat_map(|service| service.dns_upstreams.clone()))
            .items("Labels", self.labels.iter().map(|(key, value)| format!("{key}={value}")))
            .items("Warnings", status.warnings.clone())
            .render()
    }

    fn summary(&self) -> String {
        let status = &self.status;
        let not_ready = (status.state != "ready").then(|| status.state.clone());
        [
            Some(self.spec.mode.clone()),
            status.ipv4_cidr.clone(),
            status.ipv6_cidr.clone(),
            status.bridge.as_ref().map(|bridge| format!("bridge {bridge}")),
            (status.port_count > 0).then(|| count(status.port_count, "port")),
            not_ready,
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
    }

    fn warnings(&self) -> &[String] {
        &self.status.warnings
    }

    fn broken(&self) -> Option<Broken<'_>> {
        broken::of((&self.name, None), &self.status.state, self.status.error.as_deref())
    }
}
