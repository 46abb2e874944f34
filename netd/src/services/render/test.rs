//! Configurations word for word.

use super::*;
use crate::model::{NetworkSpec, PortSpec, ServicesSpec, fixture};
use proptest::prelude::*;
use shared::name::Name;

fn network(mode: Mode, ipv4: Option<&str>, ipv6: Option<&str>, services: ServicesSpec) -> Network {
    let (ipv4, ipv6) = (ipv4.map(|net| net.parse().unwrap()), ipv6.map(|net| net.parse().unwrap()));
    let spec = NetworkSpec { ipv4, ipv6, services, ..fixture::network_spec(mode) };
    Network { spec, ipv4, ipv6, mtu: 1400, ..fixture::network("lan", mode) }
}

fn on() -> ServicesSpec {
    ServicesSpec { dhcp: Some(true), ..ServicesSpec::default() }
}

fn lines(network: &Network) -> Vec<String> {
    let user = Some(("dnsmasq", "nogroup"));
    let around = Surroundings { folder: "/run/netd/lan", interface: "kvb-lan", user };
    config(network, &network.services().unwrap(), around).lines().map(str::to_owned).collect()
}

fn port(name: &str, hostname: Option<&str>) -> Port {
    let hostname = hostname.map(|name| name.parse().unwrap());
    Port {
        spec: PortSpec { hostname, ..fixture::port_spec() },
        mac: "52:54:00:12:34:56".parse().unwrap(),
        ipv4: Some("10.1.0.7".parse().unwrap()),
        ipv6: Some("fd00:1::7".parse().unwrap()),
        ..fixture::port("lan", name)
    }
}

#[test]
fn a_nat_network_serves_both_families_and_forwards() {
    let lan = network(Mode::Nat, Some("10.1.0.1/24"), Some("fd00:1::1/64"), ServicesSpec::default());
    let expected = "\
# Made by netd, which writes it anew.
keep-in-foreground
log-facility=-
quiet-dhcp
quiet-dhcp6
quiet-ra
pid-file
user=dnsmasq
group=nogroup
interface=kvb-lan
except-interface=lo
bind-dynamic
cache-size=1000
dns-forward-max=1000
no-hosts
hostsdir=/run/netd/lan/names
domain=lan.internal
local=/lan.internal/
domain-needed
resolv-file=/etc/resolv.conf
dns-loop-detect
rev-server=10.1.0.0/24
rev-server=fd00:1::/64
dhcp-leasefile=/run/netd/lan/leases
dhcp-hostsdir=/run/netd/lan/hosts
dhcp-lease-max=100000
dhcp-authoritative
dhcp-ignore-names
dhcp-ignore-clid
no-ping
dhcp-range=10.1.0.0,static,255.255.255.0,3600
dhcp-option=option:router,10.1.0.1
dhcp-option=option:dns-server,10.1.0.1
dhcp-option=option:mtu,1400
dhcp-option=option:domain-search,lan.internal
enable-ra
dhcp-range=fd00:1::,static,slaac,64,3600
dhcp-duid=32473,00000000000000000000000000000000
dhcp-option=option6:dns-server,[fd00:1::1]
dhcp-option=option6:domain-search,lan.internal
ra-param=kvb-lan,mtu:1400,60,1800";
    assert_eq!(lines(&lan).join("\n"), expected);
}

#[test]
fn an_isolated_network_names_no_router_and_asks_nobody() {
    let lines = lines(&network(Mode::Isolated, Some("10.1.0.1/24"), Some("fd00:1::1/64"), on()));
    let has = |line: &str| lines.iter().any(|l| l == line);
    assert!(has("no-resolv") && has("dhcp-option=option:router") && has("ra-param=kvb-lan,mtu:1400,60,0"));
    assert!(!lines.iter().any(|l| l.starts_with("server=") || l.starts_with("resolv-file")));
}

#[test]
fn settings_and_prefixes_are_followed() {
    let services = ServicesSpec {
        domain: Some("corp.example".parse().unwrap()),
        upstreams: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        lease_seconds: Some(120),
        ..ServicesSpec::default()
    };
    let with = |ipv6: &str| lines(&network(Mode::Routed, Some("10.1.0.1/25"), Some(ipv6), services.clone()));
    let text = with("2001:db8:1:2::1/80");
    for line in [
        "no-resolv",
        "server=192.0.2.53",
        "server=2001:db8::53",
        "domain=corp.example",
        "dhcp-range=10.1.0.0,static,255.255.255.128,120",
        // Longer than guests can form an address in.
        "dhcp-range=2001:db8:1:2::,static,80,120",
    ] {
        assert!(text.iter().any(|l| l == line), "{line}: {text:#?}");
    }
    let shorter = with("2001:db8:1:2::1/48");
    assert!(shorter.iter().any(|l| l == "dhcp-range=2001:db8:1:2::,static,slaac,64,120"), "{shorter:#?}");
}

#[test]
fn a_port_is_a_reservation_and_its_names() {
    let both = network(Mode::Nat, Some("10.1.0.1/24"), Some("fd00:1::1/64"), on());
    let services = both.services().unwrap();
    let plain = port("web-0", None);
    assert_eq!(reservation(&both, &plain), "52:54:00:12:34:56,10.1.0.7,[fd00:1::7],web-0\n");
    assert_eq!(
        names(&services, &plain),
        "10.1.0.7 web-0.lan.internal web-0\nfd00:1::7 web-0.lan.internal web-0\n"
    );
    let named = Port { ipv6: None, ..port("web-0", Some("www")) };
    assert_eq!(names(&services, &named), "10.1.0.7 www.lan.internal www web-0.lan.internal web-0\n");
    let only4 = network(Mode::Nat, Some("10.1.0.1/24"), None, on());
    assert_eq!(reservation(&only4, &plain), "52:54:00:12:34:56,10.1.0.7,web-0\n");
    // What dnsmasq would read as something else is told by DNS only.
    for keyword in ["ignore", "infinite", "deprecated", "1h", "42", "7d", "w"] {
        let odd = port("a", Some(keyword));
        assert_eq!(reservation(&only4, &odd), "52:54:00:12:34:56,10.1.0.7\n", "{keyword}");
        assert!(names(&services, &odd).contains(&format!(" {keyword}.lan.internal")));
    }
}

proptest! {
    #[test]
    fn whatever_is_a_name_stays_one_field(text in "[a-z0-9-]{1,63}", domain in "[a-z0-9.-]{1,80}") {
        let (Ok(name), Ok(domain)) = (text.parse::<Name>(), domain.parse()) else { return Ok(()) };
        let services = ServicesSpec { domain: Some(domain), ..on() };
        let lan = network(Mode::Nat, Some("10.1.0.1/24"), None, services);
        let plain = network(Mode::Nat, Some("10.1.0.1/24"), None, on());
        prop_assert_eq!(lines(&lan).len(), lines(&plain).len());
        let named = port("a", Some(name.as_str()));
        let reservation = reservation(&lan, &named);
        prop_assert!(reservation.matches(',').count() <= 2 && reservation.lines().count() == 1);
        prop_assert_eq!(names(&lan.services().unwrap(), &named).lines().count(), 2);
    }
}
