//! Ports.

use super::{group::group_names, invalid, labels, mask, missing, state, text, time};
use crate::{
    kernel::TapTraffic,
    model::{Owner, PortKey, PortSpec, Rate, State},
    reconciler::{NewPort, PortChange, PortView},
};
use proto::netd::v1 as wire;
use shared::{
    access::Caller,
    fault::Fault,
    name::printable,
    wire::port::{SLOWEST_RATE, address, extra_addresses, groups},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    str::FromStr,
};

/// Longest tenant, bytes.
const LONGEST_TENANT: usize = 64;
/// Fastest rate, bits per second: 1 Tbit/s.
const FASTEST: u64 = 1_000_000_000_000;
/// Bytes of a full-size frame of an ordinary MTU.
const FRAME: u64 = 1_514;

/// Network and port out of `networks/NETWORK/ports/NAME`.
pub fn port_key(resource: &str) -> Result<PortKey, Fault> {
    let parts: Vec<&str> = resource.split('/').collect();
    match parts.as_slice() {
        ["networks", network, "ports", port] => Ok((network.parse()?, port.parse()?)),
        _ => Err(invalid(
            "INVALID_RESOURCE_NAME",
            format!("`{}` is not the name of a port", printable(resource)),
        )
        .hint("write networks/NETWORK/ports/NAME")),
    }
}

/// Checks a request to create a port, which will be the caller's.
pub fn new_port(port: Option<wire::Port>, caller: &Caller) -> Result<NewPort, Fault> {
    let port = port.ok_or_else(|| missing("port"))?;
    let (network, name) = port_key(&port.name)?;
    let asked = port.spec.unwrap_or_default();
    let tenant = tenant(&asked.tenant)?;
    let spec =
        spec(asked).map_err(|fault| fault.context(format!("the spec of port `{name}` is not valid")))?;
    // What is set aside for another tenant is not to be had by way of a service that is an admin.
    let by_admin = caller.is_admin() && tenant.is_empty();
    let owner = Owner { uid: caller.uid, tenant: Some(tenant) };
    let quota = caller.rights.quota;
    Ok(NewPort { network, name, spec, labels: labels(port.labels)?, owner, by_admin, quota })
}

/// Whom a port is for; empty: its owner.
fn tenant(text: &str) -> Result<String, Fault> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() > LONGEST_TENANT || !text.chars().all(known) {
        return Err(invalid("INVALID_TENANT", format!("`{}` cannot be a tenant", printable(text)))
            .hint(format!("at most {LONGEST_TENANT} of the letters and digits of ASCII, `-`, `_` and `.`")));
    }
    Ok(text.to_owned())
}

fn spec(spec: wire::PortSpec) -> Result<PortSpec, Fault> {
    Ok(PortSpec {
        filter: filter(&spec),
        mac: optional(&spec.mac)?,
        ipv4: address(&spec.ipv4_address, "an IPv4 address", "192.168.100.10")?,
        ipv6: address(&spec.ipv6_address, "an IPv6 address", "fd00:1::10")?,
        extra: extra_addresses(&spec.extra_addresses)?,
        hostname: optional(&spec.hostname)?,
        isolated: spec.isolated,
        rate_in: rate(spec.rate_in)?,
        rate_out: rate(spec.rate_out)?,
        groups: groups(&spec.groups)?,
    })
}

fn filter(spec: &wire::PortSpec) -> bool {
    spec.filter() != wire::PortFilter::Off
}

fn optional<T: FromStr<Err = Fault>>(text: &str) -> Result<Option<T>, Fault> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn rate(rate: Option<wire::Rate>) -> Result<Option<Rate>, Fault> {
    let Some(wire::Rate { bits_per_second, burst_bytes }) = rate else { return Ok(None) };
    if !(SLOWEST_RATE..=FASTEST).contains(&bits_per_second) {
        return Err(invalid(
            "INVALID_RATE",
            format!("a rate of {bits_per_second} bits per second is not possible"),
        )
        .hint(format!("from {SLOWEST_RATE} to {FASTEST}; leave it out for no limit")));
    }
    let ten_ms = bits_per_second / 8 / 100;
    let burst = match u64::from(burst_bytes) {
        0 => ten_ms.max(10 * FRAME),
        burst if burst < FRAME => {
            return Err(invalid(
                "INVALID_RATE",
                format!("a burst of {burst} bytes lets no full-size frame pass"),
            )
            .hint(format!("at least {FRAME}; leave it out for what 10 ms of the rate carry")));
        }
        burst => burst,
    };
    Ok(Some(Rate { bits_per_second, burst_bytes: u32::try_from(burst).unwrap_or(u32::MAX) }))
}

/// Checks a request to change a port.
pub fn port_change(request: wire::UpdatePortRequest) -> Result<(PortKey, PortChange), Fault> {
    let port = request.port.ok_or_else(|| missing("port"))?;
    let key = port_key(&port.name)?;
    let spec = port.spec.unwrap_or_default();
    let mut change = PortChange {
        generation: (request.expected_generation != 0).then_some(request.expected_generation),
        ..PortChange::default()
    };
    for path in mask(request.update_mask, "spec.filter")? {
        match path.as_str() {
            "labels" => change.labels = Some(labels(port.labels.clone())?),
            "spec.filter" => change.filter = Some(filter(&spec)),
            "spec.extra_addresses" => change.extra = Some(extra_addresses(&spec.extra_addresses)?),
            "spec.hostname" => change.hostname = Some(optional(&spec.hostname)?),
            "spec.isolated" => change.isolated = Some(spec.isolated),
            "spec.rate_in" => change.rate_in = Some(rate(spec.rate_in)?),
            "spec.rate_out" => change.rate_out = Some(rate(spec.rate_out)?),
            "spec.groups" => change.groups = Some(groups(&spec.groups)?),
            "spec.mac" | "spec.ipv4_address" | "spec.ipv6_address" | "spec.tenant" => {
                return Err(invalid("CANNOT_CHANGE", format!("`{path}` of a port cannot change"))
                    .hint("delete the port and create it anew"));
            }
            other => {
                return Err(invalid("INVALID_MASK", format!("a port has no field `{}`", printable(other)))
                    .hint("such as labels, spec.filter, spec.isolated, spec.rate_in"));
            }
        }
    }
    Ok((key, change))
}

/// What is known of a port just now besides its record.
#[derive(Debug, Default)]
pub struct Seen {
    /// Whether a program has its tap open.
    pub attached: bool,
    /// What its guest's frames have left behind.
    pub traffic: TapTraffic,
    /// What the DHCP server has given out, to whichever port.
    pub leased: BTreeSet<IpAddr>,
}

/// A port for the wire.
pub fn port(view: PortView, seen: &Seen) -> wire::Port {
    let Seen { attached, traffic, leased } = seen;

    let PortView { port, state: now, mtu } = view;
    let (state, error) = state(&now, port.deleting);
    let filter = if port.spec.filter { wire::PortFilter::On } else { wire::PortFilter::Off };
    let addresses = addresses(&port.addresses().collect(), leased, traffic);
    let rate = |rate: Option<Rate>| {
        rate.map(|rate| wire::Rate { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes })
    };
    wire::Port {
        name: port.resource(),
        uid: port.uid.to_string(),
        generation: port.generation,
        create_time: time(port.created),
        update_time: time(port.updated),
        spec: Some(wire::PortSpec {
            mac: text(port.spec.mac),
            filter: filter.into(),
            ipv4_address: text(port.spec.ipv4),
            ipv6_address: text(port.spec.ipv6),
            extra_addresses: port.spec.extra.iter().map(ToString::to_string).collect(),
            hostname: text(port.spec.hostname.as_ref()),
            isolated: port.spec.isolated,
            rate_in: rate(port.spec.rate_in),
            rate_out: rate(port.spec.rate_out),
            groups: group_names(&port.spec.groups),
            tenant: port.tenant.clone().unwrap_or_default(),
        }),
        status: Some(wire::PortStatus {
            observed_generation: if now == State::Pending { 0 } else { port.generation },
            state: state.into(),
            error,
            interface: port.tap.to_string(),
            mac: port.mac.to_string(),
            mtu,
            owner_uid: port.owner,
            attached: *attached,
            ipv4_address: text(port.ipv4),
            ipv6_address: text(port.ipv6),
            hostname: port.hostname().to_string(),
            addresses,
            drops: traffic.drops.clone().into_iter().collect(),
        }),
        labels: port.labels.into_iter().collect(),
    }
}

/// Every address once, with how it is known.
fn addresses(
    recorded: &BTreeSet<IpAddr>,
    leased: &BTreeSet<IpAddr>,
    traffic: &TapTraffic,
) -> Vec<wire::PortAddress> {
    let mut known: BTreeMap<IpAddr, Vec<i32>> = BTreeMap::new();
    for address in recorded {
        known.entry(*address).or_default().push(wire::AddressEvidence::Static.into());
    }
    for address in recorded.intersection(leased) {
        known.entry(*address).or_default().push(wire::AddressEvidence::Dhcp.into());
    }
    for address in &traffic.seen {
        known.entry(*address).or_default().push(wire::AddressEvidence::Observed.into());
    }
    known
        .into_iter()
        .map(|(address, evidence)| wire::PortAddress { address: address.to_string(), evidence })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use shared::fault::Kind;

    #[test]
    fn port_names_have_two_parts() {
        assert!(port_key("networks/lan/ports/web-0").is_ok());
        for bad in ["", "lan/web", "networks/lan", "networks/../ports/x", "networks/lan/ports/a/b"] {
            assert!(port_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_admin_that_makes_a_port_for_a_tenant_has_no_more_than_the_tenant() {
        let port = |tenant: &str| {
            let spec = wire::PortSpec { tenant: tenant.into(), ..Default::default() };
            let name = "networks/lan/ports/a".to_owned();
            let port = wire::Port { name, spec: Some(spec), ..Default::default() };
            new_port(Some(port), &Caller::root()).unwrap()
        };
        assert!(port("").by_admin);
        assert!(!port("1000").by_admin);
    }

    #[test]
    fn addresses_have_no_prefix_and_the_right_family() {
        let with = |ipv4: &str, ipv6: &str, extra: &[&str]| {
            spec(wire::PortSpec {
                ipv4_address: ipv4.into(),
                ipv6_address: ipv6.into(),
                extra_addresses: extra.iter().map(ToString::to_string).collect(),
                ..Default::default()
            })
        };
        assert!(with("10.0.0.2", "fd00::2", &["10.0.0.3", "fd00::3"]).is_ok());
        for (ipv4, ipv6, extra) in [
            ("10.0.0.2/24", "", &[][..]),
            ("fd00::2", "", &[]),
            ("", "10.0.0.2", &[]),
            ("10.0.0.300", "", &[]),
            ("10.0.0.2\n", "", &[]),
            ("", "", &["10.0.0.0/24"]),
            ("", "", &[""]),
        ] {
            let fault = with(ipv4, ipv6, extra).unwrap_err();
            assert_eq!(fault.kind(), Kind::InvalidArgument, "{ipv4} {ipv6} {extra:?}");
        }
    }

    #[test]
    fn a_rate_has_a_burst_that_lets_a_frame_pass() {
        let rate = |bits_per_second, burst_bytes| rate(Some(wire::Rate { bits_per_second, burst_bytes }));
        assert_eq!(rate(100_000_000, 0).unwrap().unwrap().burst_bytes, 125_000);
        assert_eq!(rate(8_000, 0).unwrap().unwrap().burst_bytes, 15_140);
        for (bits, burst) in [(0, 0), (7_999, 0), (u64::MAX, 0), (100_000_000, 100)] {
            assert!(!rate(bits, burst).unwrap_err().hints().is_empty());
        }
    }

    #[test]
    fn a_change_names_its_fields() {
        let change = |paths: &[&str]| {
            port_change(wire::UpdatePortRequest {
                port: Some(wire::Port { name: "networks/lan/ports/a".into(), ..Default::default() }),
                update_mask: Some(prost_types::FieldMask {
                    paths: paths.iter().map(ToString::to_string).collect(),
                }),
                expected_generation: 0,
            })
        };
        let (_, some) = change(&["spec.isolated", "spec.rate_in"]).unwrap();
        assert_eq!((some.isolated, some.rate_in, some.filter), (Some(false), Some(None), None));
        for bad in [&[][..], &["spec.mac"], &["spec.ipv4_address"], &["status"], &["spec"]] {
            assert_eq!(change(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad:?}");
        }
    }
}
