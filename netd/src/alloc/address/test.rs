//! Addresses: as asked, as before, or free; and never anybody else's.

use super::*;
use crate::model::{
    Mode,
    fixture::{self, name, port_spec},
};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Whose ports an admin makes.
const ADMIN: u32 = 99;

fn network(ipv4: Option<&str>, ipv6: Option<&str>) -> Network {
    Network {
        ipv4: ipv4.map(|net| net.parse().unwrap()),
        ipv6: ipv6.map(|net| net.parse().unwrap()),
        ..fixture::network("lan", Mode::Nat)
    }
}

fn asks(ipv4: Option<&str>, ipv6: Option<&str>, extra: &[&str]) -> PortSpec {
    PortSpec {
        ipv4: ipv4.map(|text| text.parse().unwrap()),
        ipv6: ipv6.map(|text| text.parse().unwrap()),
        extra: extra.iter().map(|text| text.parse().unwrap()).collect(),
        ..port_spec()
    }
}

fn port(text: &str, ipv4: Option<&str>, spec: PortSpec) -> Port {
    Port { spec, ipv4: ipv4.map(|text| text.parse().unwrap()), owner: 0, ..fixture::port("lan", text) }
}

fn owner(uid: u32) -> Owner {
    Owner { uid, tenant: Some(String::new()) }
}

fn reservation(text: &str, ipv4: &str, order: i64) -> Reservation {
    Reservation {
        network: name("lan"),
        name: name(text),
        owner: Some(owner(0)),
        mac: None,
        extra: BTreeSet::new(),
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: None,
        hostname: None,
        order,
    }
}

fn choose(
    network: &Network,
    text: &str,
    spec: &PortSpec,
    ports: &[Port],
    reservations: &[Reservation],
) -> Result<Addresses, Fault> {
    choose_as(owner(0), network, text, (spec, ports, reservations))
}

fn choose_as(
    owner: Owner,
    network: &Network,
    text: &str,
    (spec, ports, reservations): (&PortSpec, &[Port], &[Reservation]),
) -> Result<Addresses, Fault> {
    let (name, mac) = (name(text), Mac::derived(text, 0));
    let asker = Asker { name: &name, mac, by_admin: owner.uid == ADMIN, owner, has: BTreeSet::new() };
    addresses(network, &asker, spec, ports.iter(), reservations.iter())
}

fn first(chosen: Result<Addresses, Fault>) -> String {
    chosen.unwrap().ipv4.unwrap().to_string()
}

#[test]
fn the_first_free_address_is_chosen_and_the_gateways_is_not() {
    let lan = network(Some("10.0.0.2/29"), Some("fd00:1::1/64"));
    let none = asks(None, None, &[]);
    let ports = [port("b", Some("10.0.0.1"), asks(None, None, &["10.0.0.3"]))];
    let chosen = choose(&lan, "a", &none, &ports, &[]).unwrap();
    assert_eq!(chosen.ipv4.unwrap().to_string(), "10.0.0.4");
    let mac = Mac::derived("a", 0).bytes();
    let expected = format!("fd00:1::5054:ff:fe{:02x}:{:02x}{:02x}", mac[3], mac[4], mac[5]);
    assert_eq!(chosen.ipv6.unwrap(), expected.parse::<Ipv6Addr>().unwrap());
    let bare = choose(&network(None, None), "a", &none, &[], &[]).unwrap();
    assert_eq!(bare, Addresses::default());
}

#[test]
fn a_port_of_the_same_name_gets_its_address_back() {
    let lan = network(Some("10.0.0.1/29"), None);
    let none = asks(None, None, &[]);
    let held = [reservation("a", "10.0.0.5", 1), reservation("b", "10.0.0.2", 2)];
    let back = choose(&lan, "a", &none, &[], &held).unwrap();
    assert_eq!(back.ipv4.unwrap().to_string(), "10.0.0.5");
    assert_eq!(back.given_up, [held[0].key()]);
    assert_eq!(first(choose(&lan, "c", &none, &[], &held)), "10.0.0.3", "others' stay set aside");
    let now_anothers = [port("x", Some("10.0.0.5"), none.clone())];
    assert_eq!(first(choose(&lan, "a", &none, &now_anothers, &held)), "10.0.0.3");
}

/// As `Desired::kept_addresses` tells them.
#[test]
fn the_address_of_a_guest_whose_record_cannot_be_read_is_never_given_up() {
    let lan = network(Some("10.0.0.1/30"), None);
    let none = asks(None, None, &[]);
    let gone = [reservation("gone", "10.0.0.2", i64::MAX)];
    assert_eq!(first(choose(&lan, "a", &none, &[], &gone)), "10.0.0.2");
    let kept = [Reservation { owner: Some(Owner::NOBODY), ..gone[0].clone() }];
    for asker in [owner(0), owner(ADMIN)] {
        let fault = choose_as(asker, &lan, "a", (&none, &[], &kept)).unwrap_err();
        assert_eq!(fault.reason(), "NO_ADDRESS");
    }
    let asked = asks(Some("10.0.0.2"), None, &[]);
    let fault = choose(&lan, "a", &asked, &[], &kept).unwrap_err();
    assert_eq!(fault.reason(), "ADDRESS_TAKEN");
}

#[test]
fn another_owner_gets_nothing_that_is_set_aside() {
    let lan = network(Some("10.0.0.1/29"), Some("fd00:1::1/64"));
    let mine = Reservation {
        ipv6: Some(eui64("fd00:1::1/64".parse().unwrap(), Mac::derived("a", 0))),
        extra: ["10.0.0.6".parse().unwrap()].into(),
        ..reservation("a", "10.0.0.2", 1)
    };
    let held = [mine.clone()];
    let none = asks(None, None, &[]);
    let tenant = Owner { uid: 0, tenant: Some("7".into()) };
    for other in [owner(7), tenant] {
        let chosen = choose_as(other.clone(), &lan, "a", (&none, &[], &held)).unwrap();
        assert_eq!(chosen.ipv4.unwrap().to_string(), "10.0.0.3");
        assert_ne!(chosen.ipv6, mine.ipv6, "nor that of the same MAC");
        assert_eq!(chosen.given_up, []);
        for named in [
            asks(Some("10.0.0.2"), None, &[]),
            asks(None, None, &["10.0.0.2"]),
            asks(None, None, &["10.0.0.6"]),
        ] {
            let fault = choose_as(other.clone(), &lan, "a", (&named, &[], &held)).unwrap_err();
            assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "ADDRESS_TAKEN"), "{named:?}");
            assert!(fault.to_string().contains("another user") && !fault.hints().is_empty(), "{fault}");
        }
    }
    // The owner may, under any name, and so may an admin; then it is no longer set aside.
    for who in [owner(0), owner(ADMIN)] {
        let named = asks(Some("10.0.0.2"), None, &[]);
        let chosen = choose_as(who, &lan, "b", (&named, &[], &held)).unwrap();
        assert_eq!(chosen.given_up, [mine.key()]);
    }
    let back = choose(&lan, "a", &none, &[], &held).unwrap();
    assert_eq!((back.ipv4, back.ipv6), (mine.ipv4, mine.ipv6));
    let legacy = [Reservation { owner: None, ..mine }];
    let of = |uid| choose_as(owner(uid), &lan, "a", (&none, &[], &legacy));
    assert_eq!((first(of(7)), first(of(ADMIN))), ("10.0.0.3".into(), "10.0.0.2".into()));
    let named = choose_as(owner(7), &lan, "b", (&asks(Some("10.0.0.2"), None, &[]), &[], &legacy));
    assert_eq!(first(named), "10.0.0.2", "nobody knows whose it was");
}

#[test]
fn in_a_full_subnet_the_next_to_go_can_be_named_and_no_other() {
    let lan = network(Some("10.0.0.1/29"), None);
    let none = asks(None, None, &[]);
    let held = |text, address, order, uid| Reservation {
        owner: Some(owner(uid)),
        ..reservation(text, address, order)
    };
    let ports = [port("p", Some("10.0.0.5"), asks(None, None, &["10.0.0.6"]))];
    let reserved = [held("a", "10.0.0.2", 1, 0), held("b", "10.0.0.3", 2, 0), held("c", "10.0.0.4", 3, 7)];
    let named = |text| choose_as(owner(8), &lan, "x", (&asks(Some(text), None, &[]), &ports, &reserved));
    assert_eq!(named("10.0.0.3").unwrap_err().reason(), "ADDRESS_TAKEN");
    assert_eq!(named("10.0.0.2").unwrap().given_up, [reserved[0].key()]);
    // Whoever has the most set aside pays, whoever asks.
    for uid in [0, 7, 8] {
        assert_eq!(first(choose_as(owner(uid), &lan, "x", (&none, &ports, &reserved))), "10.0.0.2", "{uid}");
    }
    let tenant = |text, address, order, tenant: &str| Reservation {
        owner: Some(Owner { uid: 0, tenant: Some(tenant.into()) }),
        ..reservation(text, address, order)
    };
    let tenants = [
        tenant("a", "10.0.0.2", 1, "bob"),
        tenant("b", "10.0.0.3", 2, "alice"),
        tenant("c", "10.0.0.4", 3, "alice"),
    ];
    assert_eq!(
        first(choose_as(owner(8), &lan, "x", (&none, &ports, &tenants))),
        "10.0.0.3",
        "of a service's too"
    );
    // Among equals one's own goes first, then the oldest.
    let equals = [held("a", "10.0.0.2", 1, 0), held("b", "10.0.0.3", 2, 7), held("c", "10.0.0.4", 3, 8)];
    for (uid, address) in [(0, "10.0.0.2"), (7, "10.0.0.3"), (8, "10.0.0.4"), (9, "10.0.0.2")] {
        assert_eq!(first(choose_as(owner(uid), &lan, "x", (&none, &ports, &equals))), address, "{uid}");
    }
}

#[test]
fn where_nothing_else_is_left_the_oldest_reservation_goes() {
    let lan = network(Some("10.0.0.1/30"), None);
    let none = asks(None, None, &[]);
    let held = [reservation("a", "10.0.0.2", 7)];
    let taken = choose(&lan, "c", &none, &[], &held).unwrap();
    assert_eq!(taken.ipv4.unwrap().to_string(), "10.0.0.2");
    assert_eq!(taken.given_up, [held[0].key()]);
    let full = [port("b", Some("10.0.0.2"), none.clone())];
    let fault = choose(&lan, "c", &none, &full, &held).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::ResourceExhausted, "NO_ADDRESS"));
    assert!(!fault.hints().is_empty());
}

#[test]
fn addresses_that_cannot_be_are_refused_with_a_reason_and_a_hint() {
    let lan = network(Some("10.0.0.1/24"), Some("fd00:1::1/64"));
    let ports = [port("b", Some("10.0.0.9"), asks(None, None, &["10.0.0.10", "fd00:1::10"]))];
    for (ipv4, ipv6, extra, reason) in [
        (Some("10.0.1.9"), None, &[][..], "ADDRESS_OUTSIDE"),
        (Some("10.0.0.1"), None, &[], "ADDRESS_TAKEN"),
        (Some("10.0.0.9"), None, &[], "ADDRESS_TAKEN"),
        (Some("10.0.0.10"), None, &[], "ADDRESS_TAKEN"),
        (Some("10.0.0.0"), None, &[], "INVALID_ADDRESS"),
        (Some("10.0.0.255"), None, &[], "INVALID_ADDRESS"),
        (Some("224.0.0.1"), None, &[], "INVALID_ADDRESS"),
        (None, Some("fd00:2::2"), &[], "ADDRESS_OUTSIDE"),
        (None, Some("fd00:1::1"), &[], "ADDRESS_TAKEN"),
        (None, Some("fd00:1::10"), &[], "ADDRESS_TAKEN"),
        (None, Some("fd00:1::"), &[], "INVALID_ADDRESS"),
        (None, Some("fe80::5"), &[], "INVALID_ADDRESS"),
        (None, None, &["10.0.0.9"], "ADDRESS_TAKEN"),
        (None, None, &["192.168.7.7"], "ADDRESS_OUTSIDE"),
    ] {
        let fault = choose(&lan, "a", &asks(ipv4, ipv6, extra), &ports, &[]).unwrap_err();
        assert_eq!(fault.reason(), reason, "{ipv4:?} {ipv6:?} {extra:?}");
        assert!(!fault.hints().is_empty());
    }
    let declared = asks(Some("192.0.2.7"), None, &["2001:db8::7"]);
    let on_a_lan = choose(&network(None, None), "a", &declared, &[], &[]).unwrap();
    assert_eq!(first(Ok(on_a_lan)), "192.0.2.7", "where netd knows no subnet, the client does");
}

#[test]
fn host_names_are_one_ports_alone() {
    let named = |text: &str| PortSpec { hostname: Some(name(text)), ..asks(None, None, &[]) };
    let ports = [port("web-0", None, named("web")), port("db", None, asks(None, None, &[]))];
    let check = |own: &str, spec: &PortSpec| check_names(&name(own), spec, ports.iter());
    assert!(check("a", &named("mail")).is_ok());
    assert!(check("web-0", &named("web")).is_ok(), "a port's own name is free for it");
    assert_eq!(check("a", &named("web")).unwrap_err().reason(), "HOSTNAME_TAKEN");
    assert_eq!(check("a", &named("db")).unwrap_err().reason(), "HOSTNAME_TAKEN");
    assert_eq!(check("web", &asks(None, None, &[])).unwrap_err().reason(), "HOSTNAME_TAKEN");
    assert_eq!(
        check("a", &named("web-0")).unwrap_err().reason(),
        "HOSTNAME_TAKEN",
        "in DNS it is a name too"
    );
    assert_eq!(check("web", &named("b")).unwrap_err().reason(), "HOSTNAME_TAKEN");
}

#[test]
fn an_address_that_a_guest_makes_of_its_mac_is_nobody_elses() {
    let lan = network(Some("10.0.0.1/24"), Some("fd00:1::1/64"));
    let own = choose(&lan, "a", &asks(None, None, &[]), &[], &[]).unwrap().ipv6.unwrap();
    assert!(choose(&lan, "a", &asks(None, Some(&own.to_string()), &[]), &[], &[]).is_ok());
    let theirs = Ipv6Addr::from(u128::from(own) ^ 1).to_string();
    let fault = choose(&lan, "a", &asks(None, Some(&theirs), &[]), &[], &[]).unwrap_err();
    assert_eq!(fault.reason(), "ADDRESS_TAKEN");
    let long = network(Some("10.0.0.1/24"), Some("fd00:1::1/80"));
    assert!(long.formed_by(Mac::derived("a", 0)).is_none());
}

proptest! {
    #[test]
    fn ports_never_share_an_address(names in proptest::collection::vec("[a-f]{1,2}", 1..40), length in 27..30_u8) {
        let lan = network(Some(&format!("10.0.0.1/{length}")), Some("fd00:1::1/120"));
        let mut ports: Vec<Port> = Vec::new();
        let mut held: Vec<Reservation> = Vec::new();
        for (order, text) in names.iter().enumerate() {
            // A name that is there goes, one that is not comes.
            if let Some(at) = ports.iter().position(|port| port.name.as_str() == text) {
                let gone = ports.remove(at);
                held.push(Reservation {
                    owner: Some(gone.owner()),
                    ipv4: gone.ipv4,
                    ipv6: gone.ipv6,
                    ..reservation(text, "10.0.0.2", i64::try_from(order).unwrap())
                });
                continue;
            }
            let Ok(chosen) = choose(&lan, text, &asks(None, None, &[]), &ports, &held) else {
                prop_assert!(ports.len() >= (1 << (32 - length)) - 3, "there was room");
                continue;
            };
            held.retain(|r| !chosen.given_up.contains(&r.key()));
            let new = Port { ipv4: chosen.ipv4, ipv6: chosen.ipv6, ..port(text, None, asks(None, None, &[])) };
            ports.push(new);
            let all: Vec<IpAddr> = ports.iter().flat_map(Port::addresses).collect();
            let different: BTreeSet<&IpAddr> = all.iter().collect();
            prop_assert_eq!(different.len(), all.len());
            prop_assert!(!all.contains(&"10.0.0.1".parse().unwrap()));
        }
    }
}

/// All at once is as one after the other, and what it costs grows with the number of ports alone.
#[test]
fn all_ports_of_a_network_get_addresses_at_once() {
    use std::cell::Cell;
    let network = network(Some("10.1.0.1/16"), Some("fd00::1/64"));
    let mut ports: Vec<Port> =
        (0..1000).map(|n| port(&format!("p{n:04}"), None, asks(None, None, &[]))).collect();
    ports[10].ipv4 = Some([10, 1, 0, 3].into());
    ports[20].spec.extra = [[10, 1, 200, 7].into(), [10, 1, 200, 9].into()].into();
    let reserved: Vec<_> = (0..500)
        .map(|n| reservation(&format!("p{:04}", 3 * n), &format!("10.1.{}.{}", n % 7, n % 250 + 2), n))
        .collect();
    let looks = Cell::new(0);
    let count = || looks.set(looks.get() + 1);
    let (all, kept) = (ports.iter().inspect(|_| count()), reserved.iter().inspect(|_| count()));
    let decided = addresses_of_all(&network, all, kept).unwrap();
    assert!(looks.get() <= 2 * (ports.len() + reserved.len()), "{}", looks.get());

    let mut one_by_one = ports.clone();
    for at in 0..ports.len() {
        let asked = &ports[at];
        let mut spec = asked.spec.clone();
        spec.ipv4 = spec.ipv4.or(asked.ipv4);
        let others: Vec<_> = one_by_one.iter().filter(|other| other.name != asked.name).cloned().collect();
        let has = asked.addresses().collect();
        let asker = Asker { name: &asked.name, mac: asked.mac, owner: asked.owner(), by_admin: false, has };
        let mut chosen = addresses(&network, &asker, &spec, others.iter(), reserved.iter()).unwrap();
        (one_by_one[at].ipv4, one_by_one[at].ipv6) = (chosen.ipv4, chosen.ipv6);
        chosen.given_up.sort();
        assert_eq!(decided[at], chosen, "{}", asked.name);
    }
}
