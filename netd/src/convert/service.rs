//! What networks do for their guests.

use super::{invalid, time};
use crate::{
    model::{Port, Services, ServicesSpec, Upstreams},
    reconciler::ServicesChange,
    services::{Lease, Status},
};
use proto::netd::v1 as wire;
use shared::{fault::Fault, name::printable, time::Timestamp};
use std::net::IpAddr;

/// Most upstream servers of one network.
const MOST_UPSTREAMS: usize = 8;
/// Shortest lease in seconds; dnsmasq takes no shorter one.
const SHORTEST_LEASE: u32 = 120;
/// Longest lease in seconds, a year.
const LONGEST_LEASE: u32 = 365 * 86_400;

/// Changes one field of a request, by its name.
pub(super) fn change(services: &wire::NetworkServices, field: &str) -> Result<Option<ServicesChange>, Fault> {
    let spec = spec(services.clone())?;
    Ok(Some(match field {
        "dhcp" => ServicesChange::Dhcp(spec.dhcp),
        "domain" => ServicesChange::Domain(spec.domain),
        "dns_upstreams" => ServicesChange::Upstreams(spec.upstreams),
        "lease_seconds" => ServicesChange::LeaseSeconds(spec.lease_seconds),
        _ => return Ok(None),
    }))
}

/// Checks what a client asks for.
pub(super) fn spec(services: wire::NetworkServices) -> Result<ServicesSpec, Fault> {
    let dhcp = match services.dhcp() {
        wire::ServiceSwitch::Unspecified => None,
        wire::ServiceSwitch::On => Some(true),
        wire::ServiceSwitch::Off => Some(false),
    };
    if services.dns_upstreams.len() > MOST_UPSTREAMS {
        let message =
            format!("{} DNS servers, and {MOST_UPSTREAMS} is the most", services.dns_upstreams.len());
        return Err(invalid("TOO_MANY_UPSTREAMS", message));
    }
    let lease_seconds = match services.lease_seconds {
        0 => None,
        seconds if (SHORTEST_LEASE..=LONGEST_LEASE).contains(&seconds) => Some(seconds),
        seconds => {
            return Err(invalid(
                "INVALID_LEASE_TIME",
                format!("a lease of {seconds} seconds is not possible"),
            )
            .hint(format!("from {SHORTEST_LEASE} to {LONGEST_LEASE}; 3600 is usual")));
        }
    };
    Ok(ServicesSpec {
        dhcp,
        domain: if services.domain.is_empty() { None } else { Some(services.domain.parse()?) },
        upstreams: services.dns_upstreams.iter().map(|text| upstream(text)).collect::<Result<_, _>>()?,
        lease_seconds,
    })
}

fn upstream(text: &str) -> Result<IpAddr, Fault> {
    let hint = "write an address without a port, such as 192.0.2.53";
    let refuse = |why: &str| invalid("INVALID_UPSTREAM", format!("`{}` {why}", printable(text))).hint(hint);
    let address: IpAddr = text.parse().map_err(|_| refuse("is not the address of a DNS server"))?;
    let scoped = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.is_unspecified() || address.is_multicast() || scoped {
        return Err(refuse("cannot be the address of a DNS server"));
    }
    Ok(address)
}

/// What was asked for, for the wire.
pub(super) fn spec_out(spec: &ServicesSpec) -> wire::NetworkServices {
    let dhcp = match spec.dhcp {
        None => wire::ServiceSwitch::Unspecified,
        Some(true) => wire::ServiceSwitch::On,
        Some(false) => wire::ServiceSwitch::Off,
    };
    wire::NetworkServices {
        dhcp: dhcp.into(),
        domain: super::text(spec.domain.as_ref()),
        dns_upstreams: spec.upstreams.iter().map(ToString::to_string).collect(),
        lease_seconds: spec.lease_seconds.unwrap_or(0),
    }
}

/// What came of it, for the wire.
pub(super) fn status(services: Services, status: Status) -> wire::ServiceStatus {
    let (state, pid, error) = match status {
        Status::Starting => (wire::ServiceState::Starting, 0, String::new()),
        Status::Running(pid) => (wire::ServiceState::Running, pid, String::new()),
        Status::Failed(error) => (wire::ServiceState::Failed, 0, error),
    };
    let upstreams = match services.upstreams {
        Upstreams::These(these) => these,
        Upstreams::None | Upstreams::Host => Vec::new(),
    };
    wire::ServiceStatus {
        state: state.into(),
        pid,
        error,
        domain: services.domain.to_string(),
        dns_upstreams: upstreams.iter().map(ToString::to_string).collect(),
        lease_seconds: services.lease_seconds,
    }
}

/// A lease for the wire; `holder` is the port that the address is reserved for.
pub fn lease(lease: &Lease, holder: Option<&Port>) -> wire::Lease {
    wire::Lease {
        address: lease.address.to_string(),
        mac: super::text(holder.map(|port| port.mac).or(lease.mac)),
        hostname: super::text(holder.map(Port::hostname)),
        expire_time: time(Timestamp { seconds: lease.expires, nanos: 0 }),
        port: super::text(holder.map(Port::resource)),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn asked(change: impl FnOnce(&mut wire::NetworkServices)) -> Result<ServicesSpec, Fault> {
        let mut services = wire::NetworkServices::default();
        change(&mut services);
        spec(services)
    }

    #[test]
    fn what_is_no_domain_server_or_time_is_refused() {
        assert_eq!(asked(|_| {}).unwrap(), ServicesSpec::default());
        let good = asked(|s| {
            s.set_dhcp(wire::ServiceSwitch::On);
            s.domain = "lan.example.com".into();
            s.dns_upstreams = vec!["192.0.2.53".into(), "2001:db8::53".into()];
            s.lease_seconds = 120;
        })
        .unwrap();
        assert_eq!(spec(spec_out(&good)).unwrap(), good);
        for domain in ["a\nserver=/x/1.2.3.4", "a,b", "#", "A", "a..b"] {
            assert_eq!(asked(|s| s.domain = domain.into()).unwrap_err().reason(), "INVALID_DOMAIN");
        }
        for server in ["", "x", "192.0.2.53#5353", "0.0.0.0", "ff02::1", "fe80::1", "192.0.2.53\nuser=root"] {
            let fault = asked(|s| s.dns_upstreams = vec![server.into()]).unwrap_err();
            assert_eq!(fault.reason(), "INVALID_UPSTREAM", "{server:?}");
        }
        assert!(asked(|s| s.dns_upstreams = vec!["192.0.2.53".into(); 9]).is_err());
        for seconds in [1, 119, LONGEST_LEASE + 1, u32::MAX] {
            assert_eq!(asked(|s| s.lease_seconds = seconds).unwrap_err().reason(), "INVALID_LEASE_TIME");
        }
    }
}
