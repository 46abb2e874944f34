use super::*;
use shared::fault::Kind;

fn asked() -> wire::GroupRule {
    wire::GroupRule {
        direction: RuleDirection::In.into(),
        protocol: RuleProtocol::Tcp.into(),
        ..Default::default()
    }
}

fn with_ports(first: u32, last: u32) -> wire::GroupRule {
    wire::GroupRule { ports: Some(wire::PortRange { first, last }), ..asked() }
}

fn from(cidr: &str) -> wire::GroupRule {
    wire::GroupRule { remote: Some(group_rule::Remote::RemoteCidr(cidr.to_owned())), ..asked() }
}

#[test]
fn a_rule_goes_to_the_model_and_back() {
    for wire in [
        asked(),
        with_ports(22, 22),
        with_ports(1, 65_535),
        from("10.0.0.0/8"),
        from("::/0"),
        wire::GroupRule {
            direction: RuleDirection::Out.into(),
            protocol: RuleProtocol::Icmp.into(),
            remote: Some(group_rule::Remote::RemoteGroup("groups/web".into())),
            ..Default::default()
        },
    ] {
        assert_eq!(rule_for_wire(&rule(&wire).unwrap()), wire);
    }
    assert_eq!(rule(&with_ports(22, 0)).unwrap().allows.ports, Some((22, 22)));
    assert_eq!(rule_for_wire(&rule(&from("192.0.2.7")).unwrap()), from("192.0.2.7/32"));
}

#[test]
fn what_no_rule_can_mean_is_refused_with_a_hint() {
    let icmp_with_port = wire::GroupRule { protocol: RuleProtocol::Icmp.into(), ..with_ports(8, 8) };
    let any_with_port = wire::GroupRule { protocol: RuleProtocol::Any.into(), ..with_ports(8, 8) };
    let group = |name: &str| wire::GroupRule {
        remote: Some(group_rule::Remote::RemoteGroup(name.to_owned())),
        ..asked()
    };
    for wrong in [
        with_ports(0, 0),
        with_ports(0, 22),
        with_ports(70_000, 70_000),
        with_ports(1, 70_000),
        with_ports(23, 22),
        icmp_with_port,
        any_with_port,
        from(""),
        from("10.0.0.1/8"),
        from("fd00::1/64"),
        from("10.0.0.0/33"),
        from("10.0.0.0/8\n"),
        from("10.0.0.0/8, 0.0.0.0/0"),
        group("web"),
        group("groups/"),
        group("groups/a/b"),
        wire::GroupRule { direction: 0, ..asked() },
        wire::GroupRule { direction: 9, ..asked() },
        wire::GroupRule { protocol: 0, ..asked() },
    ] {
        let fault = rule(&wrong).unwrap_err();
        assert_eq!(fault.kind(), Kind::InvalidArgument, "{wrong:?}");
        assert!(!fault.hints().is_empty(), "{wrong:?}");
    }
}

#[test]
fn rules_are_few_and_no_two_the_same() {
    let many = |count: u32| (1..=count).map(|port| with_ports(port, port)).collect::<Vec<_>>();
    assert_eq!(rules(&many(64)).unwrap().len(), 64);
    assert_eq!(rules(&many(65)).unwrap_err().reason(), "TOO_MANY_RULES");
    assert_eq!(rules(&[with_ports(22, 22), with_ports(22, 0)]).unwrap_err().reason(), "DUPLICATE_RULE");
}

#[test]
fn a_group_denies_in_and_allows_out_unless_it_says_otherwise() {
    let plain = spec(&wire::GroupSpec::default()).unwrap();
    assert_eq!((plain.deny_in, plain.deny_out), (true, false));
    let (allow, deny) = (GroupDefault::Allow.into(), GroupDefault::Deny.into());
    let other = spec(&wire::GroupSpec { default_in: allow, default_out: deny, rules: vec![] }).unwrap();
    assert_eq!((other.deny_in, other.deny_out), (false, true));
    assert!(spec(&wire::GroupSpec { default_in: 9, ..Default::default() }).is_err());
}

#[test]
fn a_change_names_its_fields() {
    let change = |paths: &[&str]| {
        group_change(wire::UpdateGroupRequest {
            group: Some(wire::Group { name: "groups/web".into(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(ToString::to_string).collect(),
            }),
            expected_generation: 3,
        })
    };
    let (name, some) = change(&["spec.rules", "spec.default_in"]).unwrap();
    assert_eq!((name.as_str(), some.generation), ("web", Some(3)));
    assert_eq!((some.rules, some.deny_in, some.deny_out), (Some(Vec::new()), Some(true), None));
    for bad in [&[][..], &["spec"], &["name"], &["status.port_count"]] {
        assert_eq!(change(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad:?}");
    }
}
