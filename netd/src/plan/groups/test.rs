use super::*;
use crate::model::{
    Group, IfName, Rule,
    fixture::{name, network, port, port_spec},
};
use proptest::prelude::*;
use shared::time::Timestamp;
use uuid::Uuid;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn group(text: &str, deny: (bool, bool), rules: &[(Direction, IpProtocol, Option<Range>, Remote)]) -> Group {
    let now = Timestamp::now();
    let rules = rules.iter().cloned().enumerate().map(|(at, (direction, protocol, ports, remote))| Rule {
        id: format!("r-{at:08x}"),
        allows: Allowance { direction, protocol, ports, remote },
    });
    Group {
        name: name(text),
        uid: Uuid::nil(),
        generation: 1,
        created: now,
        updated: now,
        labels: BTreeMap::new(),
        deny_in: deny.0,
        deny_out: deny.1,
        rules: rules.collect(),
    }
}

fn spec(groups: &[&str]) -> PortSpec {
    PortSpec { groups: groups.iter().map(|text| name(text)).collect(), ..port_spec() }
}

/// Records of these networks and groups.
fn records(networks: &[(&str, Mode)], groups: Vec<Group>) -> Desired {
    Desired {
        networks: networks.iter().map(|(text, mode)| (name(text), network(text, *mode))).collect(),
        groups: groups.into_iter().map(|group| (group.name.clone(), group)).collect(),
        ..Desired::default()
    }
}

/// Adds a port as the reconciler does.
fn add(desired: &mut Desired, at: (&str, &str), ipv4: &str, groups: &[&str]) -> Port {
    let key = (name(at.0), name(at.1));
    let spec = spec(groups);
    let port = Port {
        profile: desired.profile(&key, &spec).unwrap(),
        spec,
        ipv4: Some(ipv4.parse().unwrap()),
        ..port(at.0, at.1)
    };
    desired.ports.insert(key, port.clone());
    port
}

fn allows(desired: &Desired) -> Vec<(Place, Allow)> {
    let pair = |element| match element {
        Element::Allow(place, allow) => Some((place, allow)),
        _ => None,
    };
    desired.allows().into_iter().filter_map(pair).collect()
}

/// The TCP ports that a number may get from an address between the ports of a bridge.
fn tcp_from(desired: &Desired, profile: u16, from: &str) -> Vec<Range> {
    let from: IpAddr = from.parse().unwrap();
    let peer = desired.allows().into_iter().find_map(|element| match element {
        Element::Peer(Place::Bridge, peer) if (peer.profile, peer.address) == (profile, from) => {
            Some(peer.peer)
        }
        _ => None,
    });
    let meant = |remote| match remote {
        With::Net(net) => net.contains(&from),
        With::Profile(number) => Some(number) == peer,
    };
    let one = |(place, allow): (Place, Allow)| match allow.what {
        Allowed::Ports { protocol: TCP, first, last }
            if place == Place::Bridge && allow.profile == profile && meant(allow.remote) =>
        {
            Some((first, last))
        }
        _ => None,
    };
    merged(allows(desired).into_iter().filter_map(one).collect())
}

#[test]
fn ports_of_the_same_groups_and_network_are_one_number() {
    let mut desired = records(
        &[("lan", Mode::Nat), ("lab", Mode::Isolated)],
        vec![group("web", (true, false), &[]), group("db", (true, true), &[])],
    );
    let profile = |port: Port| port.profile;
    assert_eq!(profile(add(&mut desired, ("lan", "none"), "10.0.0.2", &[])), None);
    assert_eq!(profile(add(&mut desired, ("lan", "a"), "10.0.0.3", &["web"])), Some(1));
    assert_eq!(profile(add(&mut desired, ("lan", "b"), "10.0.0.4", &["web", "db"])), Some(2));
    assert_eq!(profile(add(&mut desired, ("lan", "c"), "10.0.0.5", &["db", "web"])), Some(2));
    // Another network, where other guests may have the same addresses.
    assert_eq!(profile(add(&mut desired, ("lab", "a"), "10.0.0.3", &["web"])), Some(3));
    desired.ports.remove(&(name("lan"), name("a")));
    assert_eq!(profile(add(&mut desired, ("lan", "d"), "10.0.0.6", &["db"])), Some(1), "a free number");
}

#[test]
fn a_port_denies_if_any_of_its_groups_does_and_may_what_any_allows() {
    let from = |text: &str| Remote::Net(net(text));
    let open =
        group("open", (false, false), &[(Direction::In, IpProtocol::Tcp, Some((80, 80)), Remote::Any)]);
    let shut = group(
        "shut",
        (true, false),
        &[(Direction::In, IpProtocol::Tcp, Some((22, 22)), from("10.9.0.0/16"))],
    );
    let mut desired = records(&[("lan", Mode::Nat)], vec![open, shut]);
    let a = add(&mut desired, ("lan", "a"), "10.0.0.2", &["open"]);
    assert_eq!(allows(&desired), [], "where nothing is denied, rules have nothing to allow");
    let in_ = |port: &Port| Element::GroupedTap(Direction::In, port.tap.clone());
    assert!(!desired.port_elements(&a).0.contains(&in_(&a)));
    let b = add(&mut desired, ("lan", "b"), "10.0.0.3", &["open", "shut"]);
    let elements = desired.port_elements(&b).0;
    assert!(elements.contains(&in_(&b)));
    assert!(!elements.contains(&Element::GroupedTap(Direction::Out, b.tap.clone())));
    let bridge: IfName = "kvb-lan".parse().unwrap();
    assert!(elements.contains(&Element::GroupedAddress(Direction::In, bridge, "10.0.0.3".parse().unwrap())));
    assert_eq!(tcp_from(&desired, 2, "10.9.1.1"), [(22, 22), (80, 80)]);
    assert_eq!(tcp_from(&desired, 2, "10.8.1.1"), [(80, 80)]);
    assert_eq!(tcp_from(&desired, 2, "fd00::1"), [(80, 80)]);
    let places: BTreeSet<_> = allows(&desired).into_iter().map(|(place, _)| place).collect();
    assert_eq!(places, [Place::Bridge, Place::Host].into(), "the host forwards for a nat network");
}

#[test]
fn a_remote_group_is_its_members_where_both_may_meet() {
    let db = group(
        "db",
        (true, false),
        &[(Direction::In, IpProtocol::Tcp, Some((5432, 5432)), Remote::Group(name("web")))],
    );
    let modes =
        [("lan", Mode::Nat), ("dmz", Mode::Routed), ("lab", Mode::Isolated), ("lab2", Mode::Isolated)];
    let mut desired = records(&modes, vec![db, group("web", (true, false), &[])]);
    let on_lan = add(&mut desired, ("lan", "db"), "10.1.0.9", &["db"]).profile.unwrap();
    let on_lab = add(&mut desired, ("lab", "db"), "10.3.0.9", &["db"]).profile.unwrap();
    assert_eq!(tcp_from(&desired, on_lan, "10.1.0.2"), []);
    for (at, address) in [
        (("lan", "web"), "10.1.0.2"),
        (("dmz", "web"), "10.2.0.2"),
        (("lab", "web"), "10.3.0.2"),
        (("lab2", "web"), "10.4.0.2"),
    ] {
        add(&mut desired, at, address, &["web"]);
    }
    for (address, lan, lab) in
        [("10.1.0.2", 1, 0), ("10.2.0.2", 1, 0), ("10.3.0.2", 0, 1), ("10.4.0.2", 0, 0), ("10.1.0.3", 0, 0)]
    {
        assert_eq!(tcp_from(&desired, on_lan, address).len(), lan, "lan {address}");
        assert_eq!(tcp_from(&desired, on_lab, address).len(), lab, "lab {address}");
    }
    let key = (name("lan"), name("web"));
    let without = desired.allows_with(&key, None);
    let gone: Vec<_> = desired.allows().difference(&without).cloned().collect();
    // No rule is about it alone: what its number may is the same as before, and so is the one of dmz.
    let rules = |elements: &[Element]| elements.iter().filter(|e| matches!(e, Element::Allow(..))).count();
    assert_eq!((gone.len(), rules(&gone)), (6, 4), "address, protocol and port in two places: {gone:?}");
    assert_eq!(desired.allows_with(&key, desired.ports.get(&key)), desired.allows());
}

#[test]
fn a_group_that_cannot_be_read_denies() {
    let mut desired = records(&[("lan", Mode::Nat)], vec![group("web", (false, false), &[])]);
    let port = add(&mut desired, ("lan", "a"), "10.0.0.2", &["web"]);
    desired.groups.clear();
    let elements = desired.port_elements(&port).0;
    for direction in [Direction::In, Direction::Out] {
        assert!(elements.contains(&Element::GroupedTap(direction, port.tap.clone())));
    }
}

#[test]
fn what_cannot_be_in_a_group_is_refused() {
    let desired = records(&[("lan", Mode::Nat)], vec![group("web", (true, true), &[])]);
    let key = (name("lan"), name("a"));
    assert_eq!(desired.profile(&key, &spec(&["other"])).unwrap_err().reason(), "GROUP_NOT_FOUND");
    let unfiltered = PortSpec { filter: false, ..spec(&["web"]) };
    assert_eq!(desired.profile(&key, &unfiltered).unwrap_err().reason(), "GROUP_WITHOUT_FILTER");
    assert_eq!(desired.profile(&key, &PortSpec { filter: false, ..spec(&[]) }).unwrap(), None);
}

#[test]
fn rules_come_to_so_many_members_at_most() {
    let all = |protocol| (Direction::In, protocol, None, Remote::Group(name("all")));
    let rules = [all(IpProtocol::Tcp), all(IpProtocol::Udp), all(IpProtocol::Icmp)];
    let mut desired = records(&[("lan", Mode::Nat)], vec![group("all", (true, false), &rules)]);
    for at in 0..40_u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_0002 + at);
        add(&mut desired, ("lan", &format!("p{at}")), &address.to_string(), &["all"]);
    }
    // An address for each member, and once four protocols and two of ports, in two places.
    assert_eq!(desired.allows().len(), (40 + 6) * 2);
    check_allows(&desired.allows()).unwrap();
    let many = |count: u32| -> BTreeSet<Element> {
        let address = |at: u32| IpAddr::from(std::net::Ipv4Addr::from(at));
        let one = |at| Peer { direction: Direction::In, profile: 1, address: address(at), peer: 1 };
        (0..count).map(|at| Element::Peer(Place::Bridge, one(at))).collect()
    };
    check_allows(&many(65_536)).unwrap();
    assert_eq!(check_allows(&many(65_537)).unwrap_err().reason(), "GROUPS_TOO_LARGE");
}

#[test]
fn what_is_allowed_of_everything_takes_the_rest_with_it() {
    let rules = [
        (IpProtocol::Any, None, Remote::Net(net("10.0.0.0/8"))),
        (IpProtocol::Icmp, None, Remote::Any),
        (IpProtocol::Tcp, Some((22, 22)), Remote::Any),
        (IpProtocol::Tcp, Some((20, 23)), Remote::Net(net("10.1.0.0/16"))),
    ];
    let rules = rules.map(|(protocol, ports, remote)| Allowance {
        direction: Direction::In,
        protocol,
        ports,
        remote,
    });
    let reaches = |remote: &Remote| match remote {
        Remote::Net(net) => vec![*net],
        _ => vec![net("0.0.0.0/0"), net("::/0")],
    };
    let mut expanded: Vec<_> = expand(&rules.iter().collect::<Vec<_>>(), reaches)
        .into_iter()
        .map(|(net, what)| (net.to_string(), what))
        .collect();
    expanded.sort();
    let protocols = |first, last| Allowed::Protocols { first, last };
    let ports = |protocol, first, last| Allowed::Ports { protocol, first, last };
    let wanted = [
        ("0.0.0.0/0", protocols(ICMP, ICMP)),
        ("0.0.0.0/0", protocols(TCP, TCP)),
        ("0.0.0.0/0", ports(TCP, 22, 22)),
        ("10.0.0.0/8", protocols(2, 5)),
        ("10.0.0.0/8", protocols(7, 255)),
        ("10.0.0.0/8", ports(TCP, 0, 21)),
        ("10.0.0.0/8", ports(TCP, 23, 65_535)),
        ("10.0.0.0/8", ports(UDP, 0, 65_535)),
        ("::/0", protocols(TCP, TCP)),
        ("::/0", protocols(ICMPV6, ICMPV6)),
        ("::/0", ports(TCP, 22, 22)),
    ];
    assert_eq!(expanded, wanted.map(|(net, what)| (net.to_owned(), what)));
}

prop_compose! {
    /// A piece in a small world, where pieces meet often.
    fn piece()(v6 in any::<bool>(), bits in 0..16_u8, length in 0..=4_u8, a in 0..12_u16, b in 0..12_u16, high in any::<bool>()) -> (IpNet, Range) {
        let net = if v6 {
            IpNet::new(std::net::Ipv6Addr::from(u128::from(bits) << 124).into(), length)
        } else {
            IpNet::new(std::net::Ipv4Addr::from(u32::from(bits) << 28).into(), length)
        };
        let (first, last) = (a.min(b), a.max(b));
        // The largest number too, which has no next one.
        let range = if high { (u16::MAX - last, u16::MAX - first) } else { (first, last) };
        (net.unwrap().trunc(), range)
    }
}

proptest! {
    #[test]
    fn disjoint_pieces_are_the_same_and_never_overlap(pieces in prop::collection::vec(piece(), 0..12)) {
        let result = disjoint(pieces.clone());
        let has = |pieces: &[(IpNet, Range)], address: IpAddr, number: u16| {
            pieces.iter().filter(|(net, (first, last))| net.contains(&address) && (*first..=*last).contains(&number)).count()
        };
        for bits in 0..16_u8 {
            let v4 = std::net::Ipv4Addr::from((u32::from(bits) << 28) + 5);
            let v6 = std::net::Ipv6Addr::from((u128::from(bits) << 124) + 5);
            for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
                for number in (0..14).chain(u16::MAX - 13..=u16::MAX) {
                    let (before, after) = (has(&pieces, address, number), has(&result, address, number));
                    prop_assert_eq!(after, usize::from(before > 0), "{} {}", address, number);
                }
            }
        }
    }

    #[test]
    fn disjoint_again_is_no_change(pieces in prop::collection::vec(piece(), 0..12)) {
        let once: BTreeSet<_> = disjoint(pieces).into_iter().collect();
        let twice: BTreeSet<_> = disjoint(once.iter().copied().collect()).into_iter().collect();
        prop_assert_eq!(once, twice);
    }
}

#[test]
fn an_address_that_two_ports_have_is_the_one_of_the_own_network() {
    let rule = (Direction::In, IpProtocol::Tcp, Some((22, 22)), Remote::Group(name("web")));
    let groups = vec![group("db", (true, false), &[rule]), group("web", (true, false), &[])];
    let mut desired = records(&[("a", Mode::Bridged), ("lan", Mode::Bridged)], groups);
    let db = add(&mut desired, ("lan", "db"), "10.0.0.9", &["db"]).profile.unwrap();
    add(&mut desired, ("a", "web"), "10.0.0.2", &["web"]);
    let own = add(&mut desired, ("lan", "web"), "10.0.0.2", &["web"]).profile.unwrap();
    let peers: Vec<_> = desired
        .allows()
        .into_iter()
        .filter_map(|element| match element {
            Element::Peer(_, peer) => Some((peer.profile, peer.peer)),
            _ => None,
        })
        .collect();
    assert_eq!(peers, [(db, own)], "once: a map holds an address once");
    assert_eq!(tcp_from(&desired, db, "10.0.0.2"), [(22, 22)]);
}
