//! Forwards as they are printed.

use super::{
    Object,
    broken::{self, Broken},
    last_part, network, set,
    text::{Sheet, or_dash},
    time::rfc3339,
    word,
};
use proto::netd::v1::{self as wire, ForwardProtocol};
use serde::Serialize;
use std::collections::BTreeMap;

/// A forward.
#[derive(Clone, Debug, Serialize)]
pub struct Forward {
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
    pub spec: ForwardSpec,
    /// What came of it.
    pub status: ForwardStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct ForwardSpec {
    /// tcp or udp.
    pub protocol: String,
    /// Null: every address of the host.
    pub listen_address: Option<String>,
    /// The host's port.
    pub listen_port: u32,
    /// A host name, a port's name or an address.
    pub target: String,
    /// Null: as `listen_port`.
    pub target_port: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ForwardStatus {
    /// The generation this speaks of.
    pub observed_generation: i64,
    /// pending, ready, degraded, deleting or broken.
    pub state: String,
    /// Why it is pending or degraded.
    pub error: Option<String>,
    /// Bare name of the port that it leads to.
    pub target_port_name: Option<String>,
    /// The guest's addresses.
    pub target_addresses: Vec<String>,
}

/// An address with a port, an IPv6 one in brackets.
fn with_port(address: &str, port: u32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

impl ForwardSpec {
    fn listens_at(&self) -> String {
        with_port(self.listen_address.as_deref().unwrap_or("*"), self.listen_port)
    }

    fn leads_to(&self) -> String {
        with_port(&self.target, self.to_port())
    }

    fn to_port(&self) -> u32 {
        self.target_port.unwrap_or(self.listen_port)
    }
}

impl From<wire::Forward> for Forward {
    fn from(forward: wire::Forward) -> Self {
        let spec = forward.spec.unwrap_or_default();
        let status = forward.status.unwrap_or_default();
        let protocol = ForwardProtocol::try_from(spec.protocol).ok().map(|p| p.as_str_name());
        Self {
            name: last_part(&forward.name),
            network: forward.name.split('/').nth(1).unwrap_or_default().to_owned(),
            uid: forward.uid,
            generation: forward.generation,
            create_time: rfc3339(forward.create_time.as_ref()),
            update_time: rfc3339(forward.update_time.as_ref()),
            labels: forward.labels.into_iter().collect(),
            spec: ForwardSpec {
                protocol: word(protocol, "FORWARD_PROTOCOL_", "unknown"),
                listen_address: set(spec.listen_address),
                listen_port: spec.listen_port,
                target: spec.target,
                target_port: (spec.target_port != 0).then_some(spec.target_port),
            },
            status: ForwardStatus {
                observed_generation: status.observed_generation,
                state: network::state(status.state),
                error: set(status.error),
                target_port_name: set(last_part(&status.target_port_resource)),
                target_addresses: status.target_addresses,
            },
        }
    }
}

impl Object for Forward {
    const COLUMNS: &'static [&'static str] =
        &["NETWORK", "NAME", "STATE", "PROTOCOL", "LISTEN", "TO", "ADDRESS"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.network.clone(),
            self.name.clone(),
            self.status.state.clone(),
            self.spec.protocol.clone(),
            self.spec.listens_at(),
            self.spec.leads_to(),
            or_dash(self.status.target_addresses.first().map(String::as_str)),
        ]
    }

    fn sheet(&self) -> String {
        let (spec, status) = (&self.spec, &self.status);
        let to = status.target_addresses.iter().map(|address| with_port(address, spec.to_port()));
        Sheet::default()
            .line("Name", &self.name)
            .line("Network", &self.network)
            .line("State", &status.state)
            .maybe(if status.state == "pending" { "Waiting" } else { "Error" }, status.error.as_deref())
            .line("Protocol", &spec.protocol)
            .line("Listen", spec.listens_at())
            .line("To", spec.leads_to())
            .maybe("Port", status.target_port_name.as_deref())
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
            .items("Addresses", to)
            .items("Labels", self.labels.iter().map(|(key, value)| format!("{key}={value}")))
            .render()
    }

    fn summary(&self) -> String {
        let status = &self.status;
        let waits = status.error.as_ref().map(|error| format!("{}: {error}", status.state));
        [
            Some(format!("network {}", self.network)),
            Some(format!("{} {} to {}", self.spec.protocol, self.spec.listens_at(), self.spec.leads_to())),
            waits.or_else(|| (status.state != "ready").then(|| status.state.clone())),
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

    fn wire(listen: &str, state: wire::ObjectState) -> wire::Forward {
        let ready = state == wire::ObjectState::Ready;
        wire::Forward {
            name: "networks/lan/forwards/tcp-8080".into(),
            spec: Some(wire::ForwardSpec {
                protocol: ForwardProtocol::Tcp.into(),
                listen_address: listen.into(),
                listen_port: 8080,
                target: "web".into(),
                target_port: 80,
            }),
            status: Some(wire::ForwardStatus {
                state: state.into(),
                error: if ready { String::new() } else { "no port answers to `web`".into() },
                target_port_resource: if ready { "networks/lan/ports/web-0".into() } else { String::new() },
                target_addresses: if ready { vec!["10.0.0.2".into(), "fd00::2".into()] } else { Vec::new() },
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_forward_says_where_it_listens_and_leads() {
        let ready = Forward::from(wire("", wire::ObjectState::Ready));
        assert_eq!(ready.row(), ["lan", "tcp-8080", "ready", "tcp", "*:8080", "web:80", "10.0.0.2"]);
        assert_eq!(ready.summary(), "network lan, tcp *:8080 to web:80");
        assert!(ready.sheet().contains("Addresses:\n  - 10.0.0.2:80\n  - [fd00::2]:80"), "{}", ready.sheet());
        let one = Forward::from(wire("2001:db8::1", wire::ObjectState::Ready));
        assert_eq!(one.row()[4], "[2001:db8::1]:8080");
    }

    #[test]
    fn one_that_waits_says_for_what() {
        let waits = Forward::from(wire("", wire::ObjectState::Pending));
        assert_eq!(waits.row()[6], "-");
        assert!(waits.summary().ends_with("pending: no port answers to `web`"), "{}", waits.summary());
        assert!(waits.sheet().contains("Waiting:   no port answers to `web`\n"), "{}", waits.sheet());
    }
}
