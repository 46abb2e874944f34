//! Network cards of machines as they are printed.

use super::{last_part, port::PortAddress, set, word};
use crate::parse::rate_text;
use proto::vmd::v1::{self as wire, NicFilter, NicModel};
use serde::Serialize;

/// A network card as it was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Nic {
    /// Bare name of the network.
    pub network: String,
    /// Null: derived from the names.
    pub mac: Option<String>,
    /// virtio, e1000 or e1000e.
    pub model: String,
    /// Null: chosen by netd, or none.
    pub ipv4_address: Option<String>,
    /// As `ipv4_address`.
    pub ipv6_address: Option<String>,
    /// More addresses that the guest may use.
    pub extra_addresses: Vec<String>,
    /// on or off.
    pub filter: String,
    /// Kept apart from other isolated ones of the network.
    pub isolated: bool,
    /// Bare names of the groups it is in.
    pub groups: Vec<String>,
    /// Toward the guest; null: not limited.
    pub rate_in: Option<Rate>,
    /// From the guest; null: not limited.
    pub rate_out: Option<Rate>,
}

/// A limit of bandwidth.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// With Ethernet headers.
    pub bits_per_second: u64,
    /// Null: netd's choice.
    pub burst_bytes: Option<u32>,
}

/// A network card as it is.
#[derive(Clone, Debug, Serialize)]
pub struct NicStatus {
    /// `networks/NETWORK/ports/NAME` of netd.
    pub port: Option<String>,
    /// In force.
    pub mac: Option<String>,
    /// The tap; null when not running.
    pub interface: Option<String>,
    /// Recorded for the guest at its start; null when not running, or if netd knows none.
    pub ipv4_address: Option<String>,
    /// As `ipv4_address`.
    pub ipv6_address: Option<String>,
    /// All that netd knows of now; null where it was not asked.
    pub addresses: Option<Vec<PortAddress>>,
}

impl From<wire::Nic> for Nic {
    fn from(nic: wire::Nic) -> Self {
        let model = NicModel::try_from(nic.model).ok().map(|m| m.as_str_name());
        let filter = NicFilter::try_from(nic.filter).ok().map(|f| f.as_str_name());
        Self {
            network: last_part(&nic.network),
            mac: set(nic.mac),
            model: word(model, "NIC_MODEL_", "virtio"),
            ipv4_address: set(nic.ipv4_address),
            ipv6_address: set(nic.ipv6_address),
            extra_addresses: nic.extra_addresses,
            filter: word(filter, "NIC_FILTER_", "on"),
            isolated: nic.isolated,
            groups: nic.groups.iter().map(|group| last_part(group)).collect(),
            rate_in: nic.rate_in.map(Into::into),
            rate_out: nic.rate_out.map(Into::into),
        }
    }
}

impl From<wire::Rate> for Rate {
    fn from(rate: wire::Rate) -> Self {
        let wire::Rate { bits_per_second, burst_bytes } = rate;
        Self { bits_per_second, burst_bytes: (burst_bytes != 0).then_some(burst_bytes) }
    }
}

impl From<wire::NicStatus> for NicStatus {
    fn from(nic: wire::NicStatus) -> Self {
        Self {
            port: set(nic.port),
            mac: set(nic.mac),
            interface: set(nic.interface),
            ipv4_address: set(nic.ipv4_address),
            ipv6_address: set(nic.ipv6_address),
            addresses: None,
        }
    }
}

impl Nic {
    /// The network, and a word if the guest may send what it likes.
    pub(super) fn cell(&self) -> String {
        match self.filter.as_str() {
            "on" => self.network.clone(),
            filter => format!("{}[filter={filter}]", self.network),
        }
    }

    /// That it is not filtered.
    pub(super) fn open(&self) -> Option<String> {
        (self.filter == "off").then(|| format!("no filter on {}", self.network))
    }

    /// Its own addresses: those recorded while the machine runs, else those asked for.
    pub(super) fn known<'a>(&'a self, status: Option<&'a NicStatus>) -> impl Iterator<Item = &'a str> {
        let recorded = status.map(|s| [s.ipv4_address.as_deref(), s.ipv6_address.as_deref()]);
        let [ipv4, ipv6] = recorded.unwrap_or_default();
        let (ipv4, ipv6) = (ipv4.or(self.ipv4_address.as_deref()), ipv6.or(self.ipv6_address.as_deref()));
        ipv4.into_iter().chain(ipv6)
    }

    pub(super) fn line(&self, status: Option<&NicStatus>) -> String {
        let mac = status.and_then(|s| s.mac.as_ref()).or(self.mac.as_ref());
        let interface = status.and_then(|s| s.interface.as_ref()).map(|i| format!("interface {i}"));
        let port = status.and_then(|s| s.port.as_ref()).map(|p| format!("port {}", last_part(p)));
        let rate = |rate: &Option<Rate>, way| {
            rate.as_ref().map(|rate| format!("{} bit/s {way}", rate_text(rate.bits_per_second)))
        };
        let facts = [
            Some(self.model.clone()),
            mac.cloned(),
            interface,
            port,
            (self.filter != "on").then(|| format!("filter {}", self.filter)),
            self.isolated.then(|| "isolated".to_owned()),
            (!self.groups.is_empty()).then(|| format!("groups {}", self.groups.join(", "))),
            rate(&self.rate_in, "in"),
            rate(&self.rate_out, "out"),
        ];
        format!("{} ({})", self.network, facts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }

    /// What netd knows now; else what is recorded or asked for.
    pub(super) fn address_lines(&self, status: Option<&NicStatus>) -> Vec<String> {
        match status.and_then(|s| s.addresses.as_ref()) {
            Some(addresses) => addresses
                .iter()
                .map(|a| format!("{} on {} ({})", a.address, self.network, a.evidence.join(", ")))
                .collect(),
            None => self
                .known(status)
                .chain(self.extra_addresses.iter().map(String::as_str))
                .map(|address| format!("{address} on {} (static)", self.network))
                .collect(),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn nic() -> Nic {
        wire::Nic {
            network: "networks/lan".into(),
            ipv4_address: "10.0.0.2".into(),
            extra_addresses: vec!["10.0.0.3".into()],
            filter: NicFilter::Off.into(),
            isolated: true,
            groups: vec!["groups/web".into()],
            rate_in: Some(wire::Rate { bits_per_second: 100_000_000, burst_bytes: 0 }),
            rate_out: Some(wire::Rate { bits_per_second: 1_500_000, burst_bytes: 20_000 }),
            ..Default::default()
        }
        .into()
    }

    #[test]
    fn a_line_says_what_is_out_of_the_ordinary() {
        assert_eq!(
            nic().line(None),
            "lan (virtio, filter off, isolated, groups web, 100M bit/s in, 1500K bit/s out)"
        );
        let plain = Nic::from(wire::Nic { network: "networks/lan".into(), ..Default::default() });
        assert_eq!((plain.line(None), plain.cell()), ("lan (virtio)".to_owned(), "lan".to_owned()));
    }

    #[test]
    fn a_nic_without_a_filter_says_so_in_every_listing() {
        assert_eq!(nic().cell(), "lan[filter=off]");
        assert_eq!(nic().open().as_deref(), Some("no filter on lan"));
        assert_eq!(Nic::from(wire::Nic::default()).open(), None);
    }

    #[test]
    fn addresses_are_those_asked_for_then_recorded_then_observed() {
        let nic = nic();
        let lines = |status: &NicStatus| nic.address_lines(Some(status));
        let mut status = NicStatus::from(wire::NicStatus::default());
        assert_eq!(lines(&status), ["10.0.0.2 on lan (static)", "10.0.0.3 on lan (static)"]);
        status.ipv6_address = Some("fd00::2".into());
        assert_eq!(nic.known(Some(&status)).collect::<Vec<_>>(), ["10.0.0.2", "fd00::2"]);
        let evidence = vec!["static".into(), "observed".into()];
        status.addresses = Some(vec![PortAddress { address: "10.0.0.2".into(), evidence }]);
        assert_eq!(lines(&status), ["10.0.0.2 on lan (static, observed)"]);
    }
}
