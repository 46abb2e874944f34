//! Ports as they are printed.

use super::{
    Object,
    broken::{self, Broken},
    last_part, network, set,
    text::{Sheet, or_dash, yes_no},
    time::rfc3339,
    word,
};
use crate::parse::rate_text;
use proto::netd::v1::{self as wire, AddressEvidence, PortFilter};
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
    /// Null: chosen by netd, or none.
    pub ipv4_address: Option<String>,
    /// As `ipv4_address`.
    pub ipv6_address: Option<String>,
    /// More addresses that the guest may use.
    pub extra_addresses: Vec<String>,
    /// Null: the port's name.
    pub hostname: Option<String>,
    /// Kept apart from other isolated ports of the network.
    pub isolated: bool,
    /// Toward the guest. Null: not limited.
    pub rate_in: Option<Rate>,
    /// From the guest. Null: not limited.
    pub rate_out: Option<Rate>,
    /// Bare names of the groups it is in.
    pub groups: Vec<String>,
    /// Whom the owner made it for. Null: for itself.
    pub tenant: Option<String>,
}

/// A limit of bandwidth.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    /// With Ethernet headers.
    pub bits_per_second: u64,
    /// Bytes that may pass at once.
    pub burst_bytes: u32,
}

impl From<wire::Rate> for Rate {
    fn from(rate: wire::Rate) -> Self {
        Self { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes }
    }
}

impl Rate {
    fn text(self) -> String {
        format!("{}bit/s, burst {} bytes", rate_text(self.bits_per_second), self.burst_bytes)
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    /// The generation this speaks of.
    pub observed_generation: i64,
    /// pending, ready, degraded, deleting or broken.
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
    /// The guest's address, if netd knows it.
    pub ipv4_address: Option<String>,
    /// As `ipv4_address`.
    pub ipv6_address: Option<String>,
    /// The guest's name in DNS and DHCP.
    pub hostname: Option<String>,
    /// All addresses that belong to the port or were seen on it.
    pub addresses: Vec<PortAddress>,
    /// Frames that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// An address of a port.
#[derive(Clone, Debug, Serialize)]
pub struct PortAddress {
    /// Without prefix length.
    pub address: String,
    /// static, dhcp, observed.
    pub evidence: Vec<String>,
}

impl From<wire::PortAddress> for PortAddress {
    fn from(address: wire::PortAddress) -> Self {
        let evidence = address.evidence.iter().map(|value| {
            let name = AddressEvidence::try_from(*value).ok().map(|e| e.as_str_name());
            word(name, "ADDRESS_EVIDENCE_", "unknown")
        });
        Self { evidence: evidence.collect(), address: address.address }
    }
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
            spec: PortSpec {
                mac: set(spec.mac),
                filter: word(filter, "PORT_FILTER_", "on"),
                ipv4_address: set(spec.ipv4_address),
                ipv6_address: set(spec.ipv6_address),
                extra_addresses: spec.extra_addresses,
                hostname: set(spec.hostname),
                isolated: spec.isolated,
                rate_in: spec.rate_in.map(Rate::from),
                rate_out: spec.rate_out.map(Rate::from),
                groups: spec.groups.iter().map(|name| last_part(name)).collect(),
                tenant: set(spec.tenant),
            },
            status: PortStatus {
                observed_generation: status.observed_generation,
                state: network::state(status.state),
                error: set(status.error),
                interface: set(status.interface),
                mac: set(status.mac),
                mtu: (status.mtu != 0).then_some(status.mtu),
                owner_uid: status.owner_uid,
                attached: status.attached,
                ipv4_address: set(status.ipv4_address),
                ipv6_address: set(status.ipv6_address),
                hostname: set(status.hostname),
                addresses: status.addresses.into_iter().map(PortAddress::from).collect(),
                drops: status.drops.into_iter().collect(),
            },
        }
    }
}

impl Object for Port {
    const COLUMNS: &'static [&'static str] =
        &["NETWORK", "NAME", "STATE", "MAC", "ADDRESS", "INTERFACE", "ATTACHED", "FILTER"];

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
            or_dash(status.ipv4_address.as_deref().or(status.ipv6_address.as_deref())),
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
            .maybe("Host name", status.hostname.as_deref())
            .line("Filter", &self.spec.filter)
            .maybe("Isolated", self.spec.isolated.then_some("yes"))
            .maybe("Rate in", self.spec.rate_in.map(Rate::text))
            .maybe("Rate out", self.spec.rate_out.map(Rate::text))
            .maybe("Groups", (!self.spec.groups.is_empty()).then(|| self.spec.groups.join(", ")))
            .line("Attached", yes_no(status.attached))
            .line("Owner", format!("uid {}", status.owner_uid))
            .maybe("For", self.spec.tenant.as_deref())
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
            .items(
                "Addresses",
                status.addresses.iter().map(|a| format!("{} ({})", a.address, a.evidence.join(", "))),
            )
            .items(
                "Dropped frames",
                status.drops.iter().map(|(reason, frames)| format!("{reason}: {frames}")),
            )
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
            status.ipv4_address.clone(),
            status.ipv6_address.clone(),
            (self.spec.filter == "off").then(|| "no filter".to_owned()),
            (!self.spec.groups.is_empty()).then(|| format!("groups {}", self.spec.groups.join(", "))),
            not_ready,
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
    }

    fn broken(&self) -> Option<Broken<'_>> {
        broken::of((&self.name, Some(&self.network)), &self.status.state, self.status.error.as_deref())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_port_knows_its_network_and_says_when_it_is_not_filtered() {
        let port = Port::from(wire::Port {
            name: "networks/lan/ports/web-0".into(),
            spec: Some(wire::PortSpec { filter: PortFilter::Off.into(), ..Default::default() }),
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
        assert_eq!(port.row(), ["lan", "web-0", "degraded", "52:54:00:00:00:01", "-", "kvt-1", "no", "off"]);
        assert_eq!(port.summary(), "network lan, interface kvt-1, 52:54:00:00:00:01, no filter, degraded");
        assert!(port.sheet().contains("Error:      the tap is gone\n"), "{}", port.sheet());
    }

    #[test]
    fn a_port_shows_its_limits() {
        let rate_in = Some(wire::Rate { bits_per_second: 100_000_000, burst_bytes: 65_536 });
        let spec = wire::PortSpec { rate_in, ..Default::default() };
        let port = Port::from(wire::Port { spec: Some(spec), ..Default::default() });
        let sheet = port.sheet();
        assert!(sheet.contains("100Mbit/s, burst 65536 bytes\n") && !sheet.contains("Rate out"), "{sheet}");
    }

    #[test]
    fn a_filter_that_is_not_named_is_on() {
        assert_eq!(Port::from(wire::Port::default()).spec.filter, "on");
    }
}
