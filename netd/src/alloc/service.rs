//! What a network does for its guests. Pure.

use crate::{
    kernel::Observed,
    model::{Cell, Mode, NetworkSpec},
};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::Name,
};
use uuid::Uuid;

/// Checks what is asked of a network's services against the rest of its spec.
pub(super) fn check(spec: &NetworkSpec) -> Result<(), Fault> {
    let (mode, asked) = (spec.mode, &spec.services);
    let refuse = |what: &str, hint: &str| {
        Err(Fault::new(Kind::InvalidArgument, "INVALID_SERVICES", format!("{mode} networks {what}"))
            .hint(hint))
    };
    if mode == Mode::Bridged && asked.dhcp == Some(true) {
        return refuse("have the DHCP and DNS of their LAN", "leave --dhcp out");
    }
    if !asked.wanted(mode) {
        let details = asked.domain.is_some() || !asked.upstreams.is_empty() || asked.lease_seconds.is_some();
        return match (details, mode) {
            (false, _) => Ok(()),
            (true, Mode::Bridged) => {
                refuse("have the DHCP and DNS of their LAN", "leave --domain, --dns and --lease-time out")
            }
            (true, _) => refuse(
                "without DHCP have no domain, DNS servers or lease time",
                "add --dhcp on, or leave --domain, --dns and --lease-time out",
            ),
        };
    }
    if mode == Mode::Isolated {
        if !asked.upstreams.is_empty() {
            return refuse("forward no DNS questions", "--dns is for nat and routed");
        }
        if spec.ipv4.is_none() && spec.ipv6.is_none() {
            return refuse("have no DHCP without a subnet", "add --ipv4, 10.9.0.1/24 for example, or --ipv6");
        }
    }
    Ok(())
}

/// Where the services of an isolated network live; `None` if it has none.
///
/// # Errors
/// RESOURCE_EXHAUSTED if no interface name is free.
pub fn cell(
    network: &Name,
    uid: Uuid,
    spec: &NetworkSpec,
    observed: &Observed,
) -> Result<Option<Cell>, Fault> {
    if spec.mode != Mode::Isolated || !spec.services.wanted(spec.mode) {
        return Ok(None);
    }
    let link =
        super::interface_name("kvs", network, network.as_str(), |name| observed.links.contains_key(name))?;
    Ok(Some(Cell { link, mac: Mac::derived(&format!("networks/{network}/{uid}/cell"), 0) }))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{
        Mode::{Bridged, Isolated, Nat, Routed},
        ServicesSpec,
    };

    #[test]
    fn services_fit_the_mode() {
        let domain = Some("lan.example.com".parse().unwrap());
        let upstreams = vec!["192.0.2.53".parse().unwrap()];
        let with = |mode, subnet: bool, services| {
            check(&NetworkSpec {
                mode,
                ipv4: subnet.then(|| "10.9.0.1/24".parse().unwrap()),
                ipv6: None,
                bridge: None,
                uplink: None,
                mtu: None,
                services,
            })
        };
        let on = || ServicesSpec { dhcp: Some(true), ..ServicesSpec::default() };
        let off = || ServicesSpec { dhcp: Some(false), ..ServicesSpec::default() };
        for mode in [Nat, Routed] {
            assert!(with(mode, false, on()).is_ok());
            assert!(with(mode, false, off()).is_ok());
            let all = ServicesSpec { domain: domain.clone(), upstreams: upstreams.clone(), ..on() };
            assert!(with(mode, false, ServicesSpec { dhcp: None, ..all.clone() }).is_ok());
            assert!(with(mode, false, ServicesSpec { dhcp: Some(false), ..all }).is_err());
        }
        assert!(with(Isolated, false, ServicesSpec::default()).is_ok());
        assert!(with(Isolated, true, on()).is_ok());
        assert!(with(Isolated, false, on()).is_err());
        assert!(with(Isolated, true, ServicesSpec { domain: domain.clone(), ..on() }).is_ok());
        assert!(
            with(Isolated, true, ServicesSpec { domain: domain.clone(), ..ServicesSpec::default() }).is_err()
        );
        assert!(with(Isolated, true, ServicesSpec { upstreams, ..on() }).is_err());
        assert!(with(Bridged, false, off()).is_ok());
        assert!(with(Bridged, false, on()).is_err());
        assert!(with(Bridged, false, ServicesSpec { domain, ..ServicesSpec::default() }).is_err());
    }
}
