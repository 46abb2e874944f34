//! Ports as they are printed.

use super::{
    Object, last_part, network, set,
    text::{Sheet, or_dash, yes_no},
    time::rfc3339,
    word,
};
use proto::netd::v1::{self as wire, PortFilter};
use serde::Serialize;
use std::collections::BTreeMap;

/// A port.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// Its bare name, unique on its network.
    pub name: String,
    /// Bare name of its network.
    pub network: String,
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
    pub spec: PortSpec,
    /// What came of it.
    pub status: PortStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct PortSpec {
    /// Null: derived from the names.
    pub mac: Option<String>,
    /// on or off.
    pub filter: String,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    /// The generation this speaks of.
    pub observed_generation: i64,
    /// pending, ready, degraded or deleting.
    pub state: String,
    /// Why it is degraded.
    pub error: Option<String>,
    /// The tap.
    pub interface: Option<String>,
    /// The guest's MAC in force.
    pub mac: Option<String>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Who may open the tap.
    pub owner_uid: u32,
    /// Whether somebody has it open.
    pub attached: bool,
}

impl From<wire::Port> for Port {
    fn from(port: wire::Port) -> Self {
        let spec = port.spec.unwrap_or_default();
        let status = port.status.unwrap_or_default();
        let filter = PortFilter::try_from(spec.filter).ok().map(|f| f.as_str_name());
        Self {
            name: last_part(&port.name),
            network: port.name.split('/').nth(1).unwrap_or_default().to_owned(),
            uid: port.uid,
            generation: port.generation,
            create_time: rfc3339(port.create_time.as_ref()),
            update_time: rfc3339(port.update_time.as_ref()),
            labels: port.labels.into_iter().collect(),
            spec: PortSpec { mac: set(spec.mac), filter: word(filter, "PORT_FILTER_", "on") },
            status: PortStatus {
                observed_generation: status.observed_generation,
                state: network::state(status.state),
                error: set(status.error),
                interface: set(status.interface),
                mac: set(status.mac),
                mtu: (status.mtu != 0).then_some(status.mtu),
                owner_uid: status.owner_uid,
                attached: status.attached,
            },
        }
    }
}

impl Object for Port {
    const COLUMNS: &'static [&'static str] =
        &["NETWORK", "NAME", "STATE", "MAC", "INTERFACE", "ATTACHED", "FILTER"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        let status = &self.status;
        vec![
            self.network.clone(),
            self.name.clone(),
            status.state.clone(),
            or_dash(status.mac.as_deref()),
            or_dash(status.interface.as_deref()),
            yes_no(status.attached).to_owned(),
            self.spec.filter.clone(),
        ]
    }

    fn sheet(&self) -> String {
        let status = &self.status;
        Sheet::default()
            .line("Name", &self.name)
            .line("Network", &self.network)
            .line("State", &status.state)
            .maybe("Error", status.error.as_deref())
            .maybe("Interface", status.interface.as_deref())
            .maybe("MAC", status.mac.as_deref())
            .maybe("MTU", status.mtu.map(|mtu| mtu.to_string()))
            .line("Filter", &self.spec.filter)
            .line("Attached", yes_no(status.attached))
            .line("Owner", format!("uid {}", status.owner_uid))
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
            .items("Labels", self.labels.iter().map(|(key, value)| format!("{key}={value}")))
            .render()
    }

    fn summary(&self) -> String {
        let status = &self.status;
        let not_ready = (status.state != "ready").then(|| status.state.clone());
        [
            Some(format!("network {}", self.network)),
            status.interface.as_ref().map(|interface| format!("interface {interface}")),
            status.mac.clone(),
            (self.spec.filter == "off").then(|| "no filter".to_owned()),
            not_ready,
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_port_knows_its_network_and_says_when_it_is_not_filtered() {
        let port = Port::from(wire::Port {
            name: "networks/lan/ports/web-0".into(),
            spec: Some(wire::PortSpec { mac: String::new(), filter: PortFilter::Off.into() }),
            status: Some(wire::PortStatus {
                state: wire::ObjectState::Degraded.into(),
                error: "the tap is gone".into(),
                interface: "kvt-1".into(),
                mac: "52:54:00:00:00:01".into(),
                owner_uid: 1000,
                ..Default::default()
            }),
            ..Default::default()
        });
        assert_eq!(port.row(), ["lan", "web-0", "degraded", "52:54:00:00:00:01", "kvt-1", "no", "off"]);
        assert_eq!(port.summary(), "network lan, interface kvt-1, 52:54:00:00:00:01, no filter, degraded");
        assert!(port.sheet().contains("Error:      the tap is gone\n"), "{}", port.sheet());
    }

    #[test]
    fn a_filter_that_is_not_named_is_on() {
        assert_eq!(Port::from(wire::Port::default()).spec.filter, "on");
    }
}
