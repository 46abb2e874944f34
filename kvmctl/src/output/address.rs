//! Addresses of a machine as they are printed.

use super::{
    Object,
    port::{Port, PortAddress},
    text::Sheet,
};
use serde::Serialize;
use std::net::IpAddr;

/// An address that a guest uses.
#[derive(Clone, Debug, Serialize)]
pub struct GuestAddress {
    /// Without prefix length.
    pub address: String,
    /// Bare name of the network.
    pub network: String,
    /// Bare name of the port.
    pub port: String,
    /// static, dhcp, observed.
    pub evidence: Vec<String>,
}

impl GuestAddress {
    /// The addresses of a port that its guest has from the DHCP server or was seen to use, and that others can reach:
    /// link-local ones cannot be told from those of a guest which found no server.
    #[must_use]
    pub fn in_use(port: Port) -> Vec<Self> {
        let Port { name, network, status, .. } = port;
        let used =
            |a: &PortAddress| a.evidence.iter().any(|evidence| evidence == "dhcp" || evidence == "observed");
        status
            .addresses
            .into_iter()
            .filter(|a| used(a) && !link_local(&a.address))
            .map(|a| Self {
                address: a.address,
                network: network.clone(),
                port: name.clone(),
                evidence: a.evidence,
            })
            .collect()
    }
}

fn link_local(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(v4)) => v4.is_link_local(),
        Ok(IpAddr::V6(v6)) => v6.is_unicast_link_local(),
        Err(_) => false,
    }
}

impl Object for GuestAddress {
    const COLUMNS: &'static [&'static str] = &["ADDRESS", "NETWORK", "PORT", "EVIDENCE"];

    fn name(&self) -> &str {
        &self.address
    }

    fn row(&self) -> Vec<String> {
        vec![self.address.clone(), self.network.clone(), self.port.clone(), self.evidence.join(",")]
    }

    fn sheet(&self) -> String {
        Sheet::default()
            .line("Address", &self.address)
            .line("Network", &self.network)
            .line("Port", &self.port)
            .line("Evidence", self.evidence.join(", "))
            .render()
    }

    fn summary(&self) -> String {
        format!("network {}, port {}, {}", self.network, self.port, self.evidence.join(", "))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proto::netd::v1::{self as wire, AddressEvidence};

    #[test]
    fn only_addresses_that_are_used_and_can_be_reached_count() {
        use AddressEvidence::{Dhcp, Observed, Static};
        let known = [
            ("10.0.0.2", vec![Static]),
            ("10.0.0.3", vec![Static, Observed]),
            ("10.0.0.4", vec![Dhcp]),
            ("169.254.7.7", vec![Observed]),
            ("fd00::2", vec![Observed]),
            ("fe80::1", vec![Observed]),
        ];
        let addresses = known.into_iter().map(|(address, evidence)| wire::PortAddress {
            address: address.into(),
            evidence: evidence.into_iter().map(Into::into).collect(),
        });
        let port = wire::Port {
            name: "networks/lan/ports/web-0".into(),
            status: Some(wire::PortStatus { addresses: addresses.collect(), ..Default::default() }),
            ..Default::default()
        };
        let found = GuestAddress::in_use(port.into());
        assert_eq!(found.iter().map(Object::name).collect::<Vec<_>>(), ["10.0.0.3", "10.0.0.4", "fd00::2"]);
        assert_eq!(found[0].row(), ["10.0.0.3", "lan", "web-0", "static,observed"]);
    }
}
