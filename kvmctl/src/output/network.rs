//! Networks as they are printed.

use super::{
    Object, last_part, set,
    text::{Sheet, count, or_dash},
    time::rfc3339,
    word,
};
use proto::netd::v1::{self as wire, NetworkMode, ObjectState};
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
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// The generation this speaks of.
    pub observed_generation: i64,
    /// pending, ready, degraded or deleting.
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
            .line("Ports", status.port_count.to_string())
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
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
}
