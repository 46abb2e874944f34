//! Wire types to model types and back: where a request is checked for form.

mod caller;
pub mod diagnose;
mod forward;
mod group;
mod port;
mod service;

pub use caller::caller;
pub use forward::{forward, forward_key, new_forward};
pub use group::{group, group_change, new_group};
pub use port::{Seen, new_port, port, port_change, port_key};
pub use service::lease;

use crate::{
    alloc::{self, MOST_MTU},
    model::{IfName, Mode, NetworkSpec, State},
    reconciler::{NetworkChange, NetworkView, NewNetwork, ServicesChange},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prost_types::FieldMask;
use proto::netd::v1 as wire;
use shared::{
    fault::{Fault, Kind},
    name::{Name, printable},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// Most labels of one object.
const MOST_LABELS: usize = 64;
/// Longest key or value of a label, bytes.
const LONGEST_LABEL: usize = 256;
/// Least MTU of IPv4, bytes.
const LEAST_MTU: u32 = 68;
/// Most fields that an update names; more than there are of any object.
const MOST_PATHS: usize = 32;

fn invalid(reason: &str, message: impl Into<String>) -> Fault {
    Fault::new(Kind::InvalidArgument, reason, message)
}

fn missing(field: &str) -> Fault {
    invalid("MISSING_FIELD", format!("the request has no `{field}`"))
}

fn labels(labels: HashMap<String, String>) -> Result<BTreeMap<String, String>, Fault> {
    if labels.len() > MOST_LABELS {
        return Err(invalid(
            "TOO_MANY_LABELS",
            format!("{} labels, and {MOST_LABELS} is the most", labels.len()),
        ));
    }
    for (key, value) in &labels {
        if key.is_empty() || key.len() > LONGEST_LABEL || value.len() > LONGEST_LABEL {
            return Err(invalid("INVALID_LABEL", format!("label `{}` is empty or too long", printable(key)))
                .hint(format!("keys have 1 to {LONGEST_LABEL} bytes, values at most {LONGEST_LABEL}")));
        }
    }
    Ok(labels.into_iter().collect())
}

/// The fields that a request changes, each once. `example` is one of them.
fn mask(mask: Option<FieldMask>, example: &str) -> Result<BTreeSet<String>, Fault> {
    let paths = mask.unwrap_or_default().paths;
    if paths.is_empty() {
        return Err(
            missing("update_mask").hint(format!("name the fields that are to change, such as {example}"))
        );
    }
    if paths.len() > MOST_PATHS {
        let message = format!("a mask of {} fields, and {MOST_PATHS} is the most", paths.len());
        return Err(invalid("INVALID_MASK", message).hint("name each field once"));
    }
    Ok(paths.into_iter().collect())
}

/// Checks a request to create a network.
pub fn new_network(network: Option<wire::Network>) -> Result<NewNetwork, Fault> {
    let network = network.ok_or_else(|| missing("network"))?;
    let name = Name::from_resource(&network.name, "networks")?;
    let spec = spec(network.spec.ok_or_else(|| missing("network.spec"))?)
        .map_err(|fault| fault.context(format!("the spec of network `{name}` is not valid")))?;
    Ok(NewNetwork { name, spec, labels: labels(network.labels)? })
}

fn spec(spec: wire::NetworkSpec) -> Result<NetworkSpec, Fault> {
    let mode = match spec.mode() {
        wire::NetworkMode::Isolated => Mode::Isolated,
        wire::NetworkMode::Nat => Mode::Nat,
        wire::NetworkMode::Routed => Mode::Routed,
        wire::NetworkMode::Bridged => Mode::Bridged,
        wire::NetworkMode::Unspecified => {
            return Err(
                invalid("INVALID_MODE", "the mode is missing").hint("one of isolated, nat, routed, bridged")
            );
        }
    };
    let spec = NetworkSpec {
        mode,
        ipv4: cidr4(&spec.ipv4_cidr)?,
        ipv6: cidr6(&spec.ipv6_cidr)?,
        bridge: interface(&spec.bridge)?,
        uplink: interface(&spec.uplink)?,
        mtu: mtu(spec.mtu)?,
        services: service::spec(spec.services.unwrap_or_default())?,
    };
    alloc::check_spec(&spec)?;
    Ok(spec)
}

fn interface(text: &str) -> Result<Option<IfName>, Fault> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn mtu(mtu: u32) -> Result<Option<u32>, Fault> {
    match mtu {
        0 => Ok(None),
        LEAST_MTU..=MOST_MTU => Ok(Some(mtu)),
        mtu => Err(invalid("INVALID_MTU", format!("an MTU of {mtu} bytes is not possible"))
            .hint(format!("from {LEAST_MTU} to {MOST_MTU}, the most of a tap; 1500 is usual"))),
    }
}

/// Checks a request to change a network.
pub fn network_change(request: wire::UpdateNetworkRequest) -> Result<(Name, NetworkChange), Fault> {
    let network = request.network.ok_or_else(|| missing("network"))?;
    let name = Name::from_resource(&network.name, "networks")?;
    let spec = network.spec.unwrap_or_default();
    let mut change = NetworkChange {
        generation: (request.expected_generation != 0).then_some(request.expected_generation),
        ..NetworkChange::default()
    };
    for path in mask(request.update_mask, "spec.mtu")? {
        match path.as_str() {
            "labels" => change.labels = Some(labels(network.labels.clone())?),
            "spec.ipv4_cidr" => change.ipv4 = Some(cidr4(&spec.ipv4_cidr)?),
            "spec.ipv6_cidr" => change.ipv6 = Some(cidr6(&spec.ipv6_cidr)?),
            "spec.mtu" => change.mtu = Some(mtu(spec.mtu)?),
            "spec.uplink" => change.uplink = Some(interface(&spec.uplink)?),
            "spec.services" => {
                change
                    .services
                    .push(ServicesChange::All(service::spec(spec.services.clone().unwrap_or_default())?));
            }
            "spec.mode" | "spec.bridge" => {
                return Err(invalid("CANNOT_CHANGE", format!("`{path}` of a network cannot change"))
                    .hint("its guests would lose their network: make another one, and move them there"));
            }
            other => {
                let services = spec.services.clone().unwrap_or_default();
                let field = other.strip_prefix("spec.services.").unwrap_or_default();
                if let Some(part) = service::change(&services, field)? {
                    change.services.push(part);
                    continue;
                }
                return Err(invalid(
                    "INVALID_MASK",
                    format!("a network has no field `{}`", printable(other)),
                )
                .hint("such as labels, spec.ipv6_cidr, spec.mtu, spec.uplink"));
            }
        }
    }
    Ok((name, change))
}

fn cidr4(text: &str) -> Result<Option<Ipv4Net>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let example = "write the host's address and the prefix, such as 192.168.100.1/24";
    let net: Ipv4Net = text.parse().map_err(|e| {
        invalid("INVALID_CIDR", format!("`{}` is not an IPv4 address with prefix", printable(text)))
            .cause(&e)
            .hint(example)
    })?;
    if !(8..=30).contains(&net.prefix_len()) {
        return Err(invalid("INVALID_CIDR", format!("prefix length {} is not possible", net.prefix_len()))
            .hint("from 8 to 30"));
    }
    host_address(IpNet::V4(net), example)?;
    if net.addr() == net.broadcast() {
        return Err(invalid(
            "INVALID_CIDR",
            format!("{} is the broadcast address of its subnet", net.addr()),
        )
        .hint(example));
    }
    Ok(Some(net))
}

fn cidr6(text: &str) -> Result<Option<Ipv6Net>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let example = "write the host's address and the prefix, such as fd00:1::1/64";
    let net: Ipv6Net = text.parse().map_err(|e| {
        invalid("INVALID_CIDR", format!("`{}` is not an IPv6 address with prefix", printable(text)))
            .cause(&e)
            .hint(example)
    })?;
    if !(16..=126).contains(&net.prefix_len()) {
        return Err(invalid("INVALID_CIDR", format!("prefix length {} is not possible", net.prefix_len()))
            .hint("from 16 to 126; 64 is usual"));
    }
    if net.addr().is_unicast_link_local() || net.addr().to_ipv4_mapped().is_some() {
        return Err(
            invalid("INVALID_CIDR", format!("{} cannot be used for a network", net.addr())).hint(example)
        );
    }
    host_address(IpNet::V6(net), example)?;
    Ok(Some(net))
}

fn host_address(net: IpNet, example: &str) -> Result<(), Fault> {
    let address = net.addr();
    if address == net.network() {
        return Err(invalid(
            "INVALID_CIDR",
            format!("{address} is the network itself, not an address in it"),
        )
        .hint(example));
    }
    let reserved = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.octets()[0] >= 240 || v4.is_link_local(),
        IpAddr::V6(_) => false,
    };
    if reserved || address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return Err(invalid("INVALID_CIDR", format!("{address} cannot be used for a network")).hint(example));
    }
    Ok(())
}

fn time(time: Timestamp) -> Option<prost_types::Timestamp> {
    Some(shared::wire::timestamp(time))
}

fn state(state: &State, deleting: bool) -> (wire::ObjectState, String) {
    match state {
        State::Degraded(error) => (wire::ObjectState::Degraded, error.clone()),
        _ if deleting => (wire::ObjectState::Deleting, String::new()),
        State::Pending => (wire::ObjectState::Pending, String::new()),
        State::Ready => (wire::ObjectState::Ready, String::new()),
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// A network for the wire.
pub fn network(view: NetworkView) -> wire::Network {
    let NetworkView { network, state: now, ports, service } = view;
    let (state, error) = state(&now, network.deleting);
    let mode = match network.spec.mode {
        Mode::Isolated => wire::NetworkMode::Isolated,
        Mode::Nat => wire::NetworkMode::Nat,
        Mode::Routed => wire::NetworkMode::Routed,
        Mode::Bridged => wire::NetworkMode::Bridged,
    };
    wire::Network {
        name: network.resource(),
        uid: network.uid.to_string(),
        generation: network.generation,
        create_time: time(network.created),
        update_time: time(network.updated),
        spec: Some(wire::NetworkSpec {
            mode: mode.into(),
            ipv4_cidr: text(network.spec.ipv4),
            ipv6_cidr: text(network.spec.ipv6),
            bridge: text(network.spec.bridge.as_ref()),
            uplink: text(network.spec.uplink.as_ref()),
            mtu: network.spec.mtu.unwrap_or(0),
            services: Some(service::spec_out(&network.spec.services)),
        }),
        status: Some(wire::NetworkStatus {
            observed_generation: if now == State::Pending { 0 } else { network.generation },
            state: state.into(),
            error,
            bridge: network.bridge.to_string(),
            ipv4_cidr: text(network.ipv4),
            ipv6_cidr: text(network.ipv6),
            mtu: network.mtu,
            port_count: u32::try_from(ports).unwrap_or(u32::MAX),
            warnings: crate::alloc::takeover_warnings(&network),
            service: network.services().map(|services| service::status(services, service)),
        }),
        labels: network.labels.into_iter().collect(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn asked(mode: wire::NetworkMode) -> wire::NetworkSpec {
        wire::NetworkSpec { mode: mode.into(), ..Default::default() }
    }

    #[test]
    fn each_mode_takes_what_fits_it() {
        use wire::NetworkMode::{Bridged, Isolated, Nat, Routed};
        let with = |mode, ipv4: &str, bridge: &str, uplink: &str| {
            spec(wire::NetworkSpec {
                ipv4_cidr: ipv4.into(),
                bridge: bridge.into(),
                uplink: uplink.into(),
                ..asked(mode)
            })
        };
        assert!(with(Nat, "", "", "").is_ok());
        assert!(with(Routed, "10.1.0.1/16", "", "eth1").is_ok());
        assert!(with(Isolated, "10.1.0.1/16", "", "").is_ok());
        assert!(with(Bridged, "", "br0", "").is_ok());
        assert!(with(Bridged, "", "", "eth1").is_ok());
        for (mode, ipv4, bridge, uplink) in [
            (Bridged, "", "", ""),
            (Bridged, "", "br0", "eth1"),
            (Bridged, "10.1.0.1/16", "br0", ""),
            (Nat, "", "br0", ""),
            (Isolated, "", "", "eth1"),
            (wire::NetworkMode::Unspecified, "", "", ""),
        ] {
            let fault = with(mode, ipv4, bridge, uplink).unwrap_err();
            assert_eq!(fault.kind(), Kind::InvalidArgument);
            assert!(!fault.hints().is_empty());
        }
    }

    #[test]
    fn a_mask_has_few_fields_and_each_once() {
        let of = |paths: &[&str]| {
            let paths = paths.iter().map(ToString::to_string).collect();
            mask(Some(FieldMask { paths }), "spec.mtu")
        };
        let once: Vec<_> = of(&["spec.mtu", "labels", "spec.mtu"]).unwrap().into_iter().collect();
        assert_eq!(once, ["labels", "spec.mtu"]);
        assert!(of(&["labels"; 32]).is_ok());
        assert_eq!(of(&["labels"; 33]).unwrap_err().reason(), "INVALID_MASK");
        assert_eq!(of(&[]).unwrap_err().reason(), "MISSING_FIELD");
        assert_eq!(mask(None, "spec.mtu").unwrap_err().reason(), "MISSING_FIELD");
        let change = network_change(wire::UpdateNetworkRequest {
            network: Some(wire::Network { name: "networks/lan".into(), ..Default::default() }),
            update_mask: Some(FieldMask { paths: vec!["spec.services".into(); 32] }),
            expected_generation: 0,
        });
        assert_eq!(change.unwrap().1.services.len(), 1);
    }

    #[test]
    fn an_mtu_fits_a_tap() {
        assert_eq!(mtu(0).unwrap(), None);
        for good in [68, 1500, 65_521] {
            assert_eq!(mtu(good).unwrap(), Some(good));
        }
        for bad in [1, 67, 65_522, 65_535, u32::MAX] {
            assert!(!mtu(bad).unwrap_err().hints().is_empty(), "{bad}");
        }
    }

    #[test]
    fn subnets_are_host_addresses_in_usable_ranges() {
        for good in ["192.168.100.1/24", "10.0.0.254/8", "203.0.113.1/30"] {
            assert!(cidr4(good).is_ok(), "{good}");
        }
        for bad in [
            "x",
            "192.168.100.1",
            "192.168.100.0/24",
            "192.168.100.255/24",
            "10.0.0.1/31",
            "10.0.0.1/7",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "169.254.1.1/16",
            "0.0.0.1/8",
            "300.1.1.1/24",
        ] {
            assert_eq!(cidr4(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
        assert!(cidr6("fd00:1::1/64").is_ok());
        for bad in ["fe80::1/64", "::1/64", "ff02::1/64", "fd00:1::/64", "fd00::1/127", "::ffff:10.0.0.1/120"]
        {
            assert_eq!(cidr6(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }
}
