//! What is decided at a create, and what is refused.

use super::*;
use crate::{
    kernel::fake::{FakeKernel, Host},
    kernel::{Action, Kernel as _, Scope},
    model::{
        Address, Cell, LINK_GROUP, Mode, Owner, Port, Reservation, Route,
        fixture::{self, link, name, network_spec as spec},
    },
};
use futures_util::FutureExt as _;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn network(text: &str, mode: Mode, ipv4: Option<&str>) -> Network {
    Network { ipv4: ipv4.map(|net| net.parse().unwrap()), ..fixture::network(text, mode) }
}

fn port(text: &str, mac: Mac) -> Port {
    Port { mac, ..fixture::port("lan", text) }
}

fn observed(change: impl FnOnce(&mut Host)) -> Observed {
    let kernel = FakeKernel::new();
    kernel.meddle(change);
    kernel.observe(&Scope::All).now_or_never().expect("the fake never waits").unwrap()
}

fn with_address(net: &str) -> Observed {
    let address =
        Address { net: net.parse().unwrap(), broadcast: None, no_prefix_route: false, valid_seconds: None };
    observed(|host| host.link("eth0").addresses.push(address))
}

fn with_route(to: &str) -> Observed {
    let route = Route {
        destination: to.parse().unwrap(),
        gateway: None,
        source: None,
        metric: None,
        table: 254,
        protocol: 4,
        scope: 0,
        mtu: None,
        on_link: false,
    };
    observed(|host| host.routes.push((link("eth1"), route)))
}

fn free4(observed: &Observed, networks: &[Network]) -> String {
    subnet4(None, observed, networks.iter()).unwrap().to_string()
}

#[test]
fn the_first_free_range_is_chosen() {
    assert_eq!(free4(&observed(|_| {}), &[]), "192.168.100.1/24");
    assert_eq!(free4(&with_address("192.168.100.77/24"), &[]), "192.168.101.1/24");
    assert_eq!(free4(&with_address("192.168.100.77/32"), &[]), "192.168.101.1/24");
    assert_eq!(free4(&with_route("192.168.96.0/20"), &[]), "192.168.112.1/24");
    assert_eq!(free4(&with_route("192.168.0.0/16"), &[]), "172.16.0.1/24");
    assert_eq!(free4(&with_route("0.0.0.0/0"), &[]), "192.168.100.1/24", "a default route hides nothing");
    let nat = network("lan", Mode::Nat, Some("192.168.100.1/24"));
    assert_eq!(free4(&observed(|_| {}), std::slice::from_ref(&nat)), "192.168.101.1/24");
    let isolated = network("lab", Mode::Isolated, Some("192.168.100.1/24"));
    assert_eq!(
        free4(&observed(|_| {}), &[isolated]),
        "192.168.100.1/24",
        "an isolated subnet is nobody else's matter"
    );
}

#[test]
fn no_free_range_is_an_error_with_a_way_out() {
    let taken: Vec<_> = ["192.168.0.1/16", "172.16.0.1/12", "10.0.0.1/8"]
        .iter()
        .enumerate()
        .map(|(at, net)| network(&format!("n{at}"), Mode::Nat, Some(net)))
        .collect();
    let fault = subnet4(None, &observed(|_| {}), taken.iter()).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::ResourceExhausted, "NO_SUBNET"));
    assert!(!fault.hints().is_empty());
}

#[test]
fn an_overlap_names_the_other_side() {
    let asked: Ipv4Net = "10.1.0.1/16".parse().unwrap();
    let lan = network("lan", Mode::Routed, Some("10.1.2.1/24"));
    let cases = [
        (observed(|_| {}), vec![lan], "network `lan`"),
        (with_address("10.1.7.7/30"), vec![], "interface `eth0`"),
        (with_route("10.0.0.0/8"), vec![], "a route by `eth1`"),
    ];
    for (observed, networks, other) in cases {
        let fault = subnet4(Some(asked), &observed, networks.iter()).unwrap_err();
        assert_eq!((fault.kind(), fault.reason()), (Kind::FailedPrecondition, "SUBNET_OVERLAPS"));
        assert!(fault.to_string().contains("10.1.0.0/16") && fault.to_string().contains(other), "{fault}");
    }
    let fault = subnet6(Some("fd00::1/48".parse().unwrap()), &with_address("fd00:0:0:7::1/64"), [].iter());
    assert_eq!(fault.unwrap_err().metadata()["subnet"], "fd00:0:0:7::/64");
    assert_eq!(subnet6(None, &observed(|_| {}), [].iter()).unwrap(), None);
}

fn reserved_mac(text: &str, uid: u32, mac: Mac) -> Reservation {
    Reservation {
        network: name("lan"),
        name: name(text),
        owner: Some(Owner { uid, tenant: Some(String::new()) }),
        mac: Some(mac),
        ipv4: None,
        ipv6: None,
        extra: BTreeSet::new(),
        hostname: None,
        order: 1,
    }
}

/// The MAC of a port `a` of uid 0.
fn mac_of_a(
    network: &Network,
    asked: Option<Mac>,
    ports: &[Port],
    held: &[Reservation],
) -> Result<Mac, Fault> {
    let (name, owner) = (name("a"), Owner { uid: 0, tenant: Some(String::new()) });
    let asker = MacAsker { name: &name, owner: &owner, by_admin: false, reservations: held.iter().collect() };
    port_mac(network, asked, &asker, ports.iter())
}

#[test]
fn a_mac_is_unique_on_its_network() {
    let lan = network("lan", Mode::Nat, None);
    let own = mac_of_a(&lan, None, &[], &[]).unwrap();
    assert_eq!(own, Mac::derived("networks/lan/ports/a", 0));
    let other = [port("b", own)];
    let next = mac_of_a(&lan, None, &other, &[]).unwrap();
    assert_eq!(next, Mac::derived("networks/lan/ports/a", 1));
    let fault = mac_of_a(&lan, Some(own), &other, &[]).unwrap_err();
    assert!(fault.to_string().contains("networks/lan/ports/b"), "{fault}");
}

#[test]
fn a_mac_that_is_set_aside_is_its_owners() {
    let lan = network("lan", Mode::Nat, None);
    let first = Mac::derived("networks/lan/ports/a", 0);
    let anothers = [reserved_mac("a", 1, first)];
    assert_eq!(mac_of_a(&lan, None, &[], &anothers).unwrap(), Mac::derived("networks/lan/ports/a", 1));
    let fault = mac_of_a(&lan, Some(first), &[], &anothers).unwrap_err();
    assert_eq!((fault.reason(), fault.hints().is_empty()), ("MAC_TAKEN", false));
    let odd = "52:54:00:00:00:99".parse().unwrap();
    let own = [reserved_mac("a", 0, odd)];
    assert_eq!(mac_of_a(&lan, None, &[], &own).unwrap(), odd, "a port of the same name has the same again");
    assert_eq!(mac_of_a(&lan, Some(first), &[], &[reserved_mac("x", 0, first)]).unwrap(), first);
}

/// A guest with it would be the gateway, or the server of DHCP, to the others.
#[test]
fn a_port_does_not_get_a_mac_of_the_host() {
    let resource = "networks/lan/ports/a";
    let (first, second) = (Mac::derived(resource, 0), Mac::derived(resource, 1));
    let cell = Cell { link: link("kvc-lan"), mac: second };
    let lan = Network { bridge_mac: first, cell: Some(cell), ..network("lan", Mode::Isolated, None) };
    for mac in [first, second] {
        let fault = mac_of_a(&lan, Some(mac), &[], &[]).unwrap_err();
        assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "MAC_TAKEN"));
        assert!(fault.to_string().contains("this host"), "{fault}");
    }
    assert_eq!(mac_of_a(&lan, None, &[], &[]).unwrap(), Mac::derived(resource, 2));
    // An existing bridge has another one than the record says.
    let br0 = Network { bridge: link("eth0"), ..network("lan", Mode::Bridged, None) };
    let mut host = observed(|_| {});
    host.links.get_mut(&link("eth0")).unwrap().mac = Some(first);
    assert_eq!(check_bridge(first, &br0, &host).unwrap_err().reason(), "MAC_TAKEN");
    check_bridge(second, &br0, &host).unwrap();
}

#[test]
fn names_that_fit_are_used_as_they_are() {
    assert_eq!(bridge_name(&name("lan"), &observed(|_| {})).unwrap(), link("kvb-lan"));
    assert_eq!(tap_name(&name("lan"), &name("web-0"), |_| false).unwrap(), link("kvp-web-0"));
    let taken = observed(|host| {
        host.add_link(&link("kvb-lan"), LinkKind::Nic);
    });
    let other = bridge_name(&name("lan"), &taken).unwrap();
    assert!(other.as_str().starts_with("kvb-lan-"), "{other}");
}

#[test]
fn a_host_without_free_names_is_an_error() {
    let fault = tap_name(&name("lan"), &name("web"), |_| true).unwrap_err();
    assert_eq!(fault.kind(), Kind::ResourceExhausted);
}

proptest! {
    #[test]
    fn taps_have_valid_names_of_their_own(
        ports in prop::collection::btree_set("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", 1..60),
        prefix in "[a-z]{0,40}",
    ) {
        let mut taken = BTreeSet::new();
        for text in &ports {
            // Long names that differ only at their end.
            let long: String = format!("{prefix}{text}").chars().take(63).collect();
            let (network, port) = (name("lan"), name(long.trim_end_matches('-')));
            let tap = tap_name(&network, &port, |name| taken.contains(name)).unwrap();
            prop_assert!(tap.as_str().len() <= IfName::MAX_LEN);
            prop_assert!(tap.as_str().starts_with("kvp-") && tap.as_str().parse::<IfName>().is_ok());
            prop_assert!(taken.insert(tap));
        }
    }

    #[test]
    fn a_chosen_range_is_free(taken in prop::collection::vec((any::<u32>(), 8_u8..=32), 0..40)) {
        let mut observed = observed(|_| {});
        let eth0 = observed.links.get_mut(&link("eth0")).unwrap();
        let nets: Vec<Ipv4Net> =
            taken.iter().map(|(ip, len)| Ipv4Net::new(Ipv4Addr::from(*ip), *len).unwrap()).collect();
        for net in &nets {
            eth0.addresses.push(Address { net: IpNet::V4(*net), broadcast: None, no_prefix_route: false, valid_seconds: None });
        }
        if let Ok(chosen) = subnet4(None, &observed, [].iter()) {
            prop_assert_eq!(chosen.prefix_len(), 24);
            for net in nets {
                prop_assert!(chosen.broadcast() < net.network() || chosen.network() > net.broadcast());
            }
        }
    }
}

fn stand(spec: &NetworkSpec, observed: &Observed) -> Result<Footing, Fault> {
    footing(&name("lan"), Uuid::nil(), spec, observed)
}

fn bridged(uplink: &str) -> NetworkSpec {
    NetworkSpec { uplink: Some(link(uplink)), ..spec(Mode::Bridged) }
}

fn on_bridge(bridge: &str) -> NetworkSpec {
    NetworkSpec { bridge: Some(link(bridge)), ..spec(Mode::Bridged) }
}

#[test]
fn unfit_links_are_refused_with_a_reason_and_a_hint() {
    let host = observed(|host| {
        host.add_link(&link("wlan0"), LinkKind::Wifi);
        host.add_link(&link("br0"), LinkKind::Bridge);
        host.add_link(&link("tap0"), LinkKind::Tap { owner: None, persist: true });
        host.add_link(&link("kvb-x"), LinkKind::Bridge).group = LINK_GROUP;
        host.add_link(&link("slave"), LinkKind::Nic).master = Some(link("br0"));
        host.add_link(&link("lower"), LinkKind::Nic).uppers.push(link("macvlan0"));
        host.add_link(&link("nomac"), LinkKind::Nic).mac = None;
    });
    for (spec, reason, words) in [
        (bridged("lo"), "UNFIT_UPLINK", "loopback"),
        (bridged("wlan0"), "UNFIT_UPLINK", "Wi-Fi"),
        (bridged("br0"), "UNFIT_UPLINK", "is a bridge"),
        (bridged("tap0"), "UNFIT_UPLINK", "is a tap"),
        (bridged("slave"), "UNFIT_UPLINK", "port of `br0`"),
        (bridged("lower"), "UNFIT_UPLINK", "`macvlan0`"),
        (bridged("eth9"), "NO_SUCH_LINK", "`eth9`"),
        (on_bridge("eth9"), "NO_SUCH_LINK", "`eth9`"),
        (on_bridge("eth0"), "NOT_A_BRIDGE", "`eth0`"),
        (on_bridge("kvb-x"), "UNFIT_UPLINK", "another network of netd"),
        (NetworkSpec { uplink: Some(link("lo")), ..spec(Mode::Nat) }, "UNFIT_UPLINK", "loopback"),
        (NetworkSpec { uplink: Some(link("kvb-x")), ..spec(Mode::Nat) }, "UNFIT_UPLINK", "another network"),
        (NetworkSpec { uplink: Some(link("eth9")), ..spec(Mode::Routed) }, "NO_SUCH_LINK", "`eth9`"),
    ] {
        let fault = stand(&spec, &host).unwrap_err();
        assert_eq!(fault.reason(), reason, "{fault}");
        assert!(fault.to_string().contains(words) && !fault.hints().is_empty(), "{fault}");
    }
    let fault = stand(&bridged("nomac"), &host).unwrap_err();
    assert!(fault.to_string().contains("no Ethernet address"), "{fault}");
}

#[test]
fn a_nic_gives_its_mac_mtu_addresses_and_routes() {
    let kernel = FakeKernel::new();
    let address = Address {
        net: "192.0.2.10/24".parse().unwrap(),
        broadcast: None,
        no_prefix_route: false,
        valid_seconds: None,
    };
    kernel.prepare(&[
        Action::SetUp(link("eth0"), true),
        Action::SetMtu(link("eth0"), 9000),
        Action::AddAddress(link("eth0"), address.clone()),
    ]);
    let gateway = Route {
        gateway: Some("192.0.2.1".parse().unwrap()),
        protocol: 4,
        ..with_route("0.0.0.0/0").links[&link("eth1")].routes[0].clone()
    };
    kernel.meddle(|host| host.routes.insert(0, (link("eth0"), gateway)));
    let host = kernel.observe(&Scope::All).now_or_never().unwrap().unwrap();
    let footing = stand(&bridged("eth0"), &host).unwrap();
    assert_eq!((footing.bridge, footing.mtu), (link("kvb-lan"), 9000));
    assert_eq!(Some(footing.mac), host.links[&link("eth0")].mac);
    let takeover = footing.takeover.unwrap();
    assert_eq!((takeover.addresses, takeover.was_up), (vec![address], true));
    let gateways: Vec<_> = takeover.routes.iter().map(|route| route.gateway.is_some()).collect();
    assert_eq!(gateways, [false, true], "a gateway is reached by a route that is there before");
}

#[test]
fn the_mtu_fits_what_it_stands_on() {
    let host = observed(|host| {
        host.add_link(&link("br0"), LinkKind::Bridge).mtu = 1400;
        host.add_link(&link("br1"), LinkKind::Bridge).mtu = 65_535;
        host.add_link(&link("big"), LinkKind::Nic).mtu = 65_535;
        host.link("eth0").mtu = 9000;
    });
    let mtu = |spec: NetworkSpec| stand(&spec, &host).map(|footing| footing.mtu);
    assert_eq!(mtu(spec(Mode::Isolated)).unwrap(), 1500);
    assert_eq!(mtu(NetworkSpec { mtu: Some(9000), ..spec(Mode::Isolated) }).unwrap(), 9000);
    assert_eq!(mtu(on_bridge("br0")).unwrap(), 1400);
    assert_eq!(mtu(NetworkSpec { mtu: Some(1300), ..on_bridge("br0") }).unwrap(), 1300);
    let fault = mtu(NetworkSpec { mtu: Some(1500), ..on_bridge("br0") }).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::FailedPrecondition, "MTU_TOO_LARGE"));
    assert!(fault.to_string().contains("`br0`") && fault.to_string().contains("1400"), "{fault}");
    assert_eq!(mtu(NetworkSpec { uplink: Some(link("eth0")), ..spec(Mode::Nat) }).unwrap(), 9000);
    // No tap takes as much as these.
    assert_eq!(mtu(on_bridge("br1")).unwrap(), 65_521);
    assert_eq!(mtu(NetworkSpec { uplink: Some(link("big")), ..spec(Mode::Nat) }).unwrap(), 65_521);
}

#[test]
fn a_lease_that_moves_to_the_bridge_is_warned_of() {
    let lease = |net: &str, valid_seconds| Address {
        net: net.parse().unwrap(),
        broadcast: None,
        no_prefix_route: false,
        valid_seconds,
    };
    let takeover = Takeover {
        addresses: vec![
            lease("192.0.2.10/24", Some(3600)),
            lease("192.0.2.11/24", None),
            lease("2001:db8::1/64", Some(60)),
        ],
        routes: vec![],
        was_up: true,
    };
    let network =
        Network { takeover: Some(takeover), spec: bridged("eth0"), ..network("lan", Mode::Bridged, None) };
    let warnings = takeover_warnings(&network);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("192.0.2.10/24") && warnings[0].contains("`kvb-lan`"));
}
