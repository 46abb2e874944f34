use super::*;
use crate::{
    kernel::{Link, LinkKind},
    model::{Address, Mode, fixture},
};
use shared::time::Timestamp;
use std::collections::BTreeMap;
use uuid::Uuid;

fn network(mode: Mode, ipv6: Option<&str>) -> Network {
    Network {
        ipv4: Some("10.0.0.1/24".parse().unwrap()),
        ipv6: ipv6.map(|net| net.parse().unwrap()),
        ..fixture::network("lan", mode)
    }
}

fn spec(protocol: Protocol, listen: &str, port: u16) -> ForwardSpec {
    ForwardSpec {
        protocol,
        listen_address: (!listen.is_empty()).then(|| listen.parse().unwrap()),
        listen_port: port.try_into().unwrap(),
        target: Target::Name("web".parse().unwrap()),
        target_port: None,
    }
}

fn forward(spec: ForwardSpec) -> Forward {
    let now = Timestamp::now();
    Forward {
        network: "other".parse().unwrap(),
        name: forward_name(&spec).unwrap(),
        uid: Uuid::nil(),
        generation: 1,
        created: now,
        updated: now,
        labels: BTreeMap::new(),
        spec,
        of: None,
        deleting: false,
    }
}

/// A host with an uplink of both families.
fn host() -> Observed {
    let addresses = ["192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "fe80::1/64"];
    let addresses = addresses.map(|net| Address {
        net: net.parse().unwrap(),
        broadcast: None,
        no_prefix_route: false,
        valid_seconds: None,
    });
    let up = Link { mtu: 1500, up: true, carrier: true, ..Link::new(2, LinkKind::Nic) };
    let link = Link { addresses: addresses.to_vec(), ..up };
    Observed { links: [("eth0".parse().unwrap(), link)].into(), ..Observed::default() }
}

fn check(spec: &ForwardSpec, forwards: &[Forward], listeners: &[Listener]) -> Result<(), Fault> {
    let network = network(Mode::Nat, Some("fd00::1/64"));
    let networks = [network.clone()];
    check_listen((&network, spec), forwards.iter(), networks.iter(), &host(), listeners)
}

#[test]
fn only_nat_and_routed_networks_have_forwards_and_only_to_their_guests() {
    let plain = spec(Protocol::Tcp, "", 80);
    for (mode, good) in
        [(Mode::Nat, true), (Mode::Routed, true), (Mode::Isolated, false), (Mode::Bridged, false)]
    {
        let result = check_forward(&network(mode, None), &plain);
        assert_eq!(result.is_ok(), good, "{mode}");
        if let Err(fault) = result {
            assert_eq!(fault.reason(), "NO_FORWARDS");
            assert!(!fault.hints().is_empty());
        }
    }
    let lan = network(Mode::Nat, None);
    assert_eq!(
        check_forward(&lan, &spec(Protocol::Tcp, "2001:db8::1", 80)).unwrap_err().reason(),
        "NO_SUCH_FAMILY"
    );
    let to =
        |address: &str| ForwardSpec { target: Target::Address(address.parse().unwrap()), ..plain.clone() };
    assert!(check_forward(&lan, &to("10.0.0.2")).is_ok());
    for bad in ["10.0.0.1", "10.0.0.0", "10.0.0.255", "10.0.1.2", "192.0.2.1", "fd00::2"] {
        assert_eq!(check_forward(&lan, &to(bad)).unwrap_err().reason(), "ADDRESS_OUTSIDE", "{bad}");
    }
}

#[test]
fn forwards_that_overlap_exclude_each_other() {
    let there = [forward(spec(Protocol::Tcp, "", 80)), forward(spec(Protocol::Tcp, "192.0.2.1", 81))];
    for (asked, free) in [
        (spec(Protocol::Tcp, "", 80), false),
        (spec(Protocol::Tcp, "192.0.2.1", 80), false),
        (spec(Protocol::Tcp, "2001:db8::1", 80), false),
        (spec(Protocol::Udp, "", 80), true),
        (spec(Protocol::Tcp, "", 81), false),
        (spec(Protocol::Tcp, "192.0.2.1", 81), false),
        (spec(Protocol::Tcp, "192.0.2.2", 81), true),
        (spec(Protocol::Tcp, "2001:db8::1", 81), true),
        (spec(Protocol::Tcp, "", 82), true),
    ] {
        let result = check(&asked, &there, &[]);
        assert_eq!(result.is_ok(), free, "{asked:?}");
        if let Err(fault) = result {
            assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "PORT_TAKEN"));
            assert!(fault.to_string().contains("networks/other/forwards/tcp-8"), "{fault}");
        }
    }
}

#[test]
fn what_guests_find_at_their_gateway_stays_there() {
    for (protocol, port) in
        [(Protocol::Tcp, 53), (Protocol::Udp, 53), (Protocol::Udp, 67), (Protocol::Udp, 547)]
    {
        for listen in ["", "10.0.0.1", "fd00::1"] {
            let fault = check(&spec(protocol, listen, port), &[], &[]).unwrap_err();
            assert!(fault.to_string().contains("gateways"), "{protocol} {port}: {fault}");
        }
        assert!(check(&spec(protocol, "192.0.2.1", port), &[], &[]).is_ok());
    }
    assert!(check(&spec(Protocol::Tcp, "", 67), &[], &[]).is_ok());
}

#[test]
fn the_address_is_one_of_the_hosts() {
    let fault = check(&spec(Protocol::Tcp, "192.0.2.9", 80), &[], &[]).unwrap_err();
    assert_eq!(fault.reason(), "NOT_AN_ADDRESS_OF_THE_HOST");
    assert!(fault.hints().concat().contains("192.0.2.1, 192.0.2.2"), "{:?}", fault.hints());
    let fault = check(&spec(Protocol::Tcp, "2001:db8::9", 80), &[], &[]).unwrap_err();
    assert!(!fault.hints().concat().contains("fe80"), "{:?}", fault.hints());
}

#[test]
fn a_program_that_would_lose_flows_is_named() {
    for (listens, asked, free) in [
        ("0.0.0.0", "", false),
        ("0.0.0.0", "192.0.2.1", false),
        ("0.0.0.0", "2001:db8::1", true),
        ("::", "", false),
        ("::", "192.0.2.1", false),
        ("::", "2001:db8::1", false),
        ("192.0.2.1", "", false),
        ("192.0.2.1", "192.0.2.1", false),
        ("192.0.2.1", "192.0.2.2", true),
        ("2001:db8::1", "", false),
        ("2001:db8::1", "192.0.2.1", true),
        // Programs that only the host itself reaches keep what they have.
        ("127.0.0.1", "", true),
        ("127.0.0.53", "", true),
        ("::1", "", true),
        ("fe80::1", "", true),
    ] {
        let listener =
            Listener { address: listens.parse().unwrap(), program: Some("`sshd` (process 7)".into()) };
        let result = check(&spec(Protocol::Tcp, asked, 22), &[], &[listener]);
        assert_eq!(result.is_ok(), free, "{listens}, {asked}");
        if let Err(fault) = result {
            assert!(fault.to_string().contains("`sshd` (process 7), which listens at"), "{fault}");
        }
    }
    // Where guests have no IPv6 a forward takes nothing of it.
    let v4_only = network(Mode::Nat, None);
    let listener = [Listener { address: "2001:db8::1".parse().unwrap(), program: None }];
    let spec = spec(Protocol::Tcp, "", 22);
    assert!(check_listen((&v4_only, &spec), [].iter(), [].iter(), &host(), &listener).is_ok());
}
