//! NICs, from the wire and to it. Whether a network has room for what they ask, netd decides.

use super::parse::{invalid, unknown};
use crate::model::{Nic, NicModel, PortOptions, Rate};
use proto::vmd::v1 as wire;
use shared::{
    fault::Fault,
    mac::Mac,
    name::Name,
    wire::port::{SLOWEST_RATE, address, extra_addresses, groups},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

const MAX_NICS: usize = 16;

/// The NICs of a spec.
pub(super) fn parse(nics: Vec<wire::Nic>) -> Result<Vec<Nic>, Fault> {
    if nics.len() > MAX_NICS {
        return Err(invalid(
            "TOO_MANY_NICS",
            format!("there are {} NICs, and {MAX_NICS} is the most", nics.len()),
        )
        .hint("let a guest route between networks instead"));
    }
    let nics = nics
        .into_iter()
        .enumerate()
        .map(|(index, one)| nic(one).map_err(|e| e.context(format!("NIC {index} is invalid"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    for mac in nics.iter().filter_map(|nic| nic.mac) {
        if !seen.insert(mac) {
            return Err(invalid("DUPLICATE_MAC", format!("two NICs have the MAC {mac}"))
                .meta("mac", mac)
                .hint("leave `mac` empty to get a unique one"));
        }
    }
    addresses_once(&nics)?;
    Ok(nics)
}

fn nic(nic: wire::Nic) -> Result<Nic, Fault> {
    Ok(Nic {
        network: Name::from_resource(&nic.network, super::NETWORKS)?,
        mac: match nic.mac.as_str() {
            "" => None,
            text => Some(text.parse::<Mac>()?),
        },
        model: match wire::NicModel::try_from(nic.model).map_err(|e| unknown("model", e.0))? {
            wire::NicModel::Unspecified | wire::NicModel::Virtio => NicModel::Virtio,
            wire::NicModel::E1000 => NicModel::E1000,
            wire::NicModel::E1000e => NicModel::E1000e,
        },
        port: PortOptions {
            ipv4: address(&nic.ipv4_address, "an IPv4 address", "192.168.100.10")?,
            ipv6: address(&nic.ipv6_address, "an IPv6 address", "fd00:1::10")?,
            extra: extra_addresses(&nic.extra_addresses)?,
            filter: match wire::NicFilter::try_from(nic.filter).map_err(|e| unknown("filter", e.0))? {
                wire::NicFilter::Unspecified | wire::NicFilter::On => true,
                wire::NicFilter::Off => false,
            },
            isolated: nic.isolated,
            rate_in: rate(nic.rate_in)?,
            rate_out: rate(nic.rate_out)?,
            groups: groups(&nic.groups)?,
        },
    })
}

fn rate(rate: Option<wire::Rate>) -> Result<Option<Rate>, Fault> {
    let Some(wire::Rate { bits_per_second, burst_bytes }) = rate else { return Ok(None) };
    if bits_per_second < SLOWEST_RATE {
        return Err(invalid(
            "INVALID_RATE",
            format!("a rate of {bits_per_second} bits per second is not possible"),
        )
        .hint(format!("from {SLOWEST_RATE} up; leave it out for no limit")));
    }
    Ok(Some(Rate { bits_per_second, burst_bytes }))
}

/// Two NICs of one network cannot have the same address: netd would refuse the second at each start.
fn addresses_once(nics: &[Nic]) -> Result<(), Fault> {
    let mut seen: BTreeMap<(&Name, IpAddr), usize> = BTreeMap::new();
    for (index, nic) in nics.iter().enumerate() {
        let PortOptions { ipv4, ipv6, extra, .. } = &nic.port;
        let own = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6));
        for address in own.chain(extra.iter().copied()) {
            match seen.insert((&nic.network, address), index) {
                Some(other) if other != index => {
                    return Err(invalid(
                        "DUPLICATE_ADDRESS",
                        format!("NICs {other} and {index} both have {address} on network `{}`", nic.network),
                    )
                    .meta("address", address)
                    .hint("give each NIC addresses of its own"));
                }
                Some(_) | None => {}
            }
        }
    }
    Ok(())
}

/// A NIC as it was asked for.
pub(super) fn emit(nic: &Nic) -> wire::Nic {
    let Nic { network, mac, model, port } = nic;
    let filter = if port.filter { wire::NicFilter::On } else { wire::NicFilter::Off };
    wire::Nic {
        network: format!("{}/{network}", super::NETWORKS),
        mac: text(*mac),
        model: match model {
            NicModel::Virtio => wire::NicModel::Virtio,
            NicModel::E1000 => wire::NicModel::E1000,
            NicModel::E1000e => wire::NicModel::E1000e,
        }
        .into(),
        ipv4_address: text(port.ipv4),
        ipv6_address: text(port.ipv6),
        extra_addresses: port.extra.iter().map(ToString::to_string).collect(),
        filter: filter.into(),
        isolated: port.isolated,
        rate_in: port.rate_in.map(wire_rate),
        rate_out: port.rate_out.map(wire_rate),
        groups: port.groups.iter().map(|group| format!("groups/{group}")).collect(),
    }
}

fn wire_rate(rate: Rate) -> wire::Rate {
    wire::Rate { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes }
}

/// Nothing is the empty text.
pub(super) fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;
    use shared::fault::Kind;

    fn on(network: &str) -> wire::Nic {
        wire::Nic { network: format!("networks/{network}"), ..Default::default() }
    }

    #[test]
    fn a_nic_is_filtered_unless_it_says_otherwise() {
        let filter = |filter: wire::NicFilter| {
            parse(vec![wire::Nic { filter: filter.into(), ..on("lan") }]).unwrap()[0].port.filter
        };
        assert!(filter(wire::NicFilter::Unspecified) && filter(wire::NicFilter::On));
        assert!(!filter(wire::NicFilter::Off));
        assert_eq!(parse(vec![on("lan")]).unwrap()[0].port, PortOptions::default());
    }

    #[test]
    fn what_is_shown_is_what_can_be_asked_for_again() {
        let full = wire::Nic {
            mac: "52:54:00:ab:00:01".into(),
            model: wire::NicModel::E1000e.into(),
            ipv4_address: "10.0.0.2".into(),
            ipv6_address: "fd00::2".into(),
            extra_addresses: vec!["10.0.0.3".into(), "fd00::3".into()],
            filter: wire::NicFilter::Off.into(),
            isolated: true,
            rate_in: Some(wire::Rate { bits_per_second: 100_000_000, burst_bytes: 0 }),
            rate_out: Some(wire::Rate { bits_per_second: 8_000, burst_bytes: 20_000 }),
            ..on("lan")
        };
        let parsed = parse(vec![full.clone()]).unwrap();
        assert_eq!(emit(&parsed[0]), full);
    }

    #[test]
    fn what_is_wrong_is_refused_with_reason_and_hint() {
        let with = |change: &dyn Fn(&mut wire::Nic)| {
            let mut nic = on("lan");
            change(&mut nic);
            parse(vec![nic])
        };
        let cases: Vec<(&str, Result<_, Fault>)> = vec![
            ("INVALID_ADDRESS", with(&|nic| nic.ipv4_address = "10.0.0.2/24".into())),
            ("INVALID_ADDRESS", with(&|nic| nic.ipv4_address = "fd00::2".into())),
            ("INVALID_ADDRESS", with(&|nic| nic.ipv6_address = "10.0.0.2".into())),
            ("INVALID_ADDRESS", with(&|nic| nic.extra_addresses = vec!["10.0.0.2\n".into()])),
            ("INVALID_ADDRESS", with(&|nic| nic.extra_addresses = vec![String::new()])),
            ("TOO_MANY_ADDRESSES", with(&|nic| nic.extra_addresses = vec!["10.0.0.2".into(); 65])),
            ("INVALID_RATE", with(&|nic| nic.rate_in = Some(wire::Rate::default()))),
            (
                "INVALID_RATE",
                with(&|nic| nic.rate_out = Some(wire::Rate { bits_per_second: 7_999, burst_bytes: 0 })),
            ),
            ("UNKNOWN_VALUE", with(&|nic| nic.filter = 99)),
            (
                "DUPLICATE_ADDRESS",
                parse(vec![
                    wire::Nic { ipv4_address: "10.0.0.2".into(), ..on("lan") },
                    wire::Nic { extra_addresses: vec!["10.0.0.2".into()], ..on("lan") },
                ]),
            ),
        ];
        for (reason, result) in cases {
            let fault = result.expect_err(reason);
            assert_eq!((fault.reason(), fault.kind()), (reason, Kind::InvalidArgument), "{}", fault.chain());
            assert!(!fault.hints().is_empty(), "{reason} has no hint");
        }
    }

    #[test]
    fn two_networks_may_have_the_same_addresses() {
        let nic = |network| wire::Nic { ipv4_address: "10.0.0.2".into(), ..on(network) };
        assert!(parse(vec![nic("lan"), nic("lab")]).is_ok());
    }
}
