//! What happens when nothing fails.

use super::*;
use uuid::Uuid;

#[test]
fn each_mode_comes_and_goes_without_a_trace() {
    for new in every_mode() {
        let (_dir, kernel, process) = fixture();
        let before = kernel.picture();
        let view = process.create(&new).unwrap();
        assert_eq!(view.state, State::Ready);
        process.assert_converged();
        process.create_port(&port(new.name.as_str(), "web-0")).unwrap();
        process.assert_converged();
        process.delete_port(new.name.as_str(), "web-0").unwrap();
        process.assert_converged();
        process.delete(new.name.as_str(), false).unwrap();
        assert_eq!(kernel.picture(), before, "{new:?}");
        assert_eq!(process.disk(), [vec![], vec![], vec![]]);
    }
}

#[test]
fn all_modes_together_come_and_go_without_a_trace() {
    let (_dir, kernel, process) = fixture();
    let before = kernel.picture();
    let mut networks = every_mode();
    networks.retain(|new| new.name != name("wan"));
    for new in &networks {
        process.create(new).unwrap();
        process.create_port(&port(new.name.as_str(), "web-0")).unwrap();
    }
    process.assert_converged();
    kernel.heal();
    process.converge();
    assert_eq!(kernel.applied(), [], "a resync of a healthy host changes nothing");
    for new in &networks {
        process.delete(new.name.as_str(), true).unwrap();
    }
    assert_eq!(kernel.picture(), before);
    assert_eq!(process.disk(), [vec![], vec![], vec![]]);
}

#[test]
fn the_same_create_twice_is_one_object() {
    let (_dir, kernel, process) = fixture();
    let new = network("lan", spec(Mode::Nat));
    let first = process.create(&new).unwrap();
    kernel.heal();
    let again = process.create(&new).unwrap();
    assert_eq!(first.network, again.network);
    assert_eq!(kernel.applied(), []);
    let first = process.create_port(&port("lan", "a")).unwrap();
    kernel.heal();
    let again = process.create_port(&port("lan", "a")).unwrap();
    assert_eq!((first.port, first.mtu), (again.port, again.mtu));
    assert_eq!(kernel.applied(), []);
}

#[test]
fn another_spec_of_the_same_name_is_refused() {
    let (_dir, _kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let fault = process.create(&network("lan", spec(Mode::Isolated))).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "NETWORK_EXISTS"));
    assert!(fault.chain().contains("cannot create network `lan`") && !fault.hints().is_empty());
    process.create_port(&port("lan", "a")).unwrap();
    let unfiltered = PortSpec { filter: false, ..port("lan", "a").spec };
    for other in
        [NewPort { owner: owner(1001), ..port("lan", "a") }, NewPort { spec: unfiltered, ..port("lan", "a") }]
    {
        let fault = process.create_port(&other).unwrap_err();
        assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "PORT_EXISTS"));
    }
}

#[test]
fn validate_only_changes_nothing() {
    let (_dir, kernel, process) = fixture();
    let before = kernel.picture();
    for new in every_mode() {
        let view = process.run(process.netd().create_network(new, true)).unwrap();
        assert_eq!(view.state, State::Pending);
    }
    assert_eq!((kernel.picture(), process.netd().counts()), (before, (0, 0)));
}

#[test]
fn a_mac_belongs_to_one_port_of_a_network() {
    let (_dir, _kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let mac: Option<Mac> = Some("52:54:00:00:00:01".parse().unwrap());
    let asks = |text| NewPort { spec: PortSpec { mac, ..port("lan", text).spec }, ..port("lan", text) };
    process.create_port(&asks("a")).unwrap();
    let fault = process.create_port(&asks("b")).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "MAC_TAKEN"));
    assert_eq!(fault.metadata()["port"], "networks/lan/ports/a");
    let free = process.create_port(&port("lan", "b")).unwrap();
    assert_ne!(Some(free.port.mac), mac);
}

#[test]
fn a_port_with_the_mac_of_the_networks_bridge_is_refused_and_leaves_nothing() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let picture = kernel.picture();
    let recorded = process.netd().network(&name("lan")).unwrap().network.bridge_mac;
    let real: Mac = "52:54:00:00:00:77".parse().unwrap();
    let asks =
        |mac| NewPort { spec: PortSpec { mac: Some(mac), ..port("lan", "a").spec }, ..port("lan", "a") };
    let refused = |mac| {
        let fault = process.create_port(&asks(mac)).unwrap_err();
        assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "MAC_TAKEN"));
        assert_eq!(fault.metadata()["link"], "kvb-lan");
    };
    refused(recorded);
    assert_eq!((kernel.picture(), process.netd().counts()), (picture, (1, 0)));
    kernel.meddle(|host| host.link("kvb-lan").mac = Some(real));
    refused(real);
    assert_eq!(process.netd().counts(), (1, 0));
}

#[test]
fn ports_of_the_same_name_get_taps_of_their_own() {
    let (_dir, kernel, process) = fixture();
    kernel.meddle(|host| {
        host.add_link(&link("kvp-b"), LinkKind::Nic);
    });
    for network_ in ["one", "two"] {
        process.create(&network(network_, spec(Mode::Isolated))).unwrap();
        process.create_port(&port(network_, "a")).unwrap();
        process.create_port(&port(network_, "b")).unwrap();
    }
    let views = process.netd().ports(None, None, 10).unwrap();
    let taps: BTreeSet<_> = views.iter().map(|view| view.port.tap.clone()).collect();
    assert_eq!(taps.len(), 4);
    assert!(!taps.contains(&link("kvp-b")), "somebody else's link is passed by");
    process.assert_converged();
}

#[test]
fn a_delete_by_uid_is_for_that_port_only() {
    let (_dir, _kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let uid = process.create_port(&port("lan", "a")).unwrap().port.uid;
    let delete = |uid, caller| {
        process.run(process.netd().delete_port(key("lan", "a"), uid, (caller, Quota::default())))
    };
    assert_eq!(delete(Some(Uuid::new_v4()), 0).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(delete(Some(uid), 1001).unwrap_err().kind(), Kind::PermissionDenied);
    process.assert_converged();
    delete(Some(uid), 1000).unwrap();
    assert_eq!(delete(Some(uid), 1000).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_network_with_ports_goes_by_force_only() {
    let (_dir, kernel, process) = fixture();
    let before = kernel.picture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    process.create(&network("lan-2", spec(Mode::Nat))).unwrap();
    for at in 0..7 {
        process.create_port(&port("lan", &format!("web-{at}"))).unwrap();
    }
    let counts: Vec<_> = process.netd().networks(None, 10).iter().map(|view| view.ports).collect();
    assert_eq!(counts, [7, 0]);
    let fault = process.delete("lan", false).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::FailedPrecondition, "NETWORK_IN_USE"));
    assert!(fault.chain().contains("`web-0`") && fault.chain().contains('…') && !fault.hints().is_empty());
    process.assert_converged();
    process.delete("lan", true).unwrap();
    process.assert_converged();
    process.delete("lan-2", false).unwrap();
    assert_eq!(kernel.picture(), before);
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let (_dir, _kernel, process) = fixture();
    for network_ in ["a", "b", "c"] {
        process.create(&network(network_, spec(Mode::Isolated))).unwrap();
        process.create_port(&port(network_, "x")).unwrap();
    }
    let names = |after: Option<&str>, most| -> Vec<String> {
        let after = after.map(name);
        process.netd().networks(after.as_ref(), most).iter().map(|v| v.network.name.to_string()).collect()
    };
    assert_eq!(names(None, 2), ["a", "b"]);
    assert_eq!(names(Some("b"), 2), ["c"]);
    let after = key("a", "x");
    let page = process.netd().ports(None, Some(&after), 1).unwrap();
    assert_eq!(page[0].port.key(), key("b", "x"));
    assert_eq!(process.netd().ports(Some(&name("z")), None, 1).unwrap_err().kind(), Kind::NotFound);
}

fn sysctl(kernel: &FakeKernel, key: &str) -> String {
    kernel.picture().sysctls[key].clone()
}

#[test]
fn forwarding_is_on_while_a_network_needs_it() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("lab", spec(Mode::Isolated))).unwrap();
    assert_eq!(sysctl(&kernel, FORWARD4), "0");
    process.create(&network("a", spec(Mode::Nat))).unwrap();
    process
        .create(&network(
            "b",
            NetworkSpec { ipv6: Some("fd00::1/64".parse().unwrap()), ..spec(Mode::Routed) },
        ))
        .unwrap();
    assert_eq!((sysctl(&kernel, FORWARD4), sysctl(&kernel, FORWARD6)), ("1".into(), "1".into()));
    // eth1 has its default route from a router advertisement, which a forwarding host ignores unless told.
    assert_eq!(sysctl(&kernel, "net/ipv6/conf/eth1/accept_ra"), "2");
    assert_eq!(sysctl(&kernel, "net/ipv6/conf/eth0/accept_ra"), "1");
    // A router that is away for a while is still listened for.
    kernel.meddle(|host| host.routes.retain(|(_, route)| route.protocol != 9));
    process.converge();
    assert_eq!(sysctl(&kernel, "net/ipv6/conf/eth1/accept_ra"), "2");
    process.delete("b", false).unwrap();
    assert_eq!((sysctl(&kernel, FORWARD4), sysctl(&kernel, FORWARD6)), ("1".into(), "0".into()));
    assert_eq!(sysctl(&kernel, "net/ipv6/conf/eth1/accept_ra"), "1");
    process.delete("a", false).unwrap();
    assert_eq!(sysctl(&kernel, FORWARD4), "0");
    assert_eq!(process.disk()[2], []);
}

#[test]
fn a_sysctl_that_somebody_else_changed_is_left_alone() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("a", spec(Mode::Nat))).unwrap();
    kernel.meddle(|host| drop(host.sysctls.insert(FORWARD4.into(), "7".into())));
    process.delete("a", false).unwrap();
    assert_eq!(sysctl(&kernel, FORWARD4), "7");
    assert_eq!(process.disk()[2], []);
}

#[test]
fn forwarding_that_was_on_before_stays_on() {
    let (_dir, kernel, process) = fixture();
    kernel.meddle(|host| drop(host.sysctls.insert(FORWARD4.into(), "1".into())));
    process.create(&network("a", spec(Mode::Nat))).unwrap();
    process.delete("a", false).unwrap();
    assert_eq!(sysctl(&kernel, FORWARD4), "1");
    assert_eq!(sysctl(&kernel, BRIDGE_NF), "1", "never touched");
}

#[test]
fn a_foreign_table_of_our_name_is_never_replaced() {
    let (_dir, kernel, process) = fixture();
    let foreign = crate::kernel::fake::FakeTables { rules: 9, ..Default::default() };
    for theirs in
        [foreign.clone(), crate::kernel::fake::FakeTables { instance: Some("other".into()), ..foreign }]
    {
        kernel.meddle(|host| host.tables = Some(theirs.clone()));
        let before = kernel.picture();
        let fault = process.create(&network("lan", spec(Mode::Nat))).unwrap_err();
        assert_eq!((fault.kind(), fault.reason()), (Kind::FailedPrecondition, "FOREIGN_TABLE"));
        assert!(!fault.hints().is_empty());
        assert_eq!((kernel.picture(), process.disk()), (before, [vec![], vec![], vec![]]));
        assert!(process.netd().read().states.is_empty());
    }
}

#[test]
fn tables_that_somebody_removed_or_changed_come_back() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    process.create_port(&port("lan", "a")).unwrap();
    let good = kernel.picture();
    kernel.meddle(|host| host.tables.as_mut().unwrap().rules = 9);
    process.converge();
    assert_eq!(kernel.picture(), good);
    kernel.meddle(|host| drop(host.tables.as_mut().unwrap().elements.0.pop_first()));
    process.converge();
    assert_eq!(kernel.picture(), good);
    kernel.meddle(|host| host.tables = None);
    process.create_port(&port("lan", "b")).unwrap();
    process.assert_converged();
    kernel.meddle(|host| host.tables = None);
    process.delete_port("lan", "b").unwrap();
    process.assert_converged();
    assert_eq!(kernel.picture(), good);
}

#[test]
fn what_somebody_changes_right_after_a_transaction_is_not_taken_for_ours() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let rules = || kernel.picture().tables.unwrap().rules;
    assert_eq!(rules(), 0);
    // After new members.
    kernel.meddle_with_rules(1);
    process.create(&network("more", spec(Mode::Nat))).unwrap();
    assert_eq!(rules(), 0);
    // After new tables, and once more.
    kernel.meddle(|host| host.tables.as_mut().unwrap().rules = 9);
    kernel.meddle_with_rules(2);
    process.converge();
    assert_eq!(rules(), 0);
    // Somebody who goes on and on: an error, until he stops.
    kernel.meddle_with_rules(usize::MAX);
    process.create(&network("third", spec(Mode::Nat))).unwrap_err();
    kernel.meddle_with_rules(0);
    process.converge();
    assert_eq!(rules(), 0);
    process.assert_converged();
}

#[test]
fn a_foreign_link_in_the_way_degrades_one_object_and_is_not_touched() {
    let (_dir, kernel, process) = fixture();
    for network_ in ["a", "b"] {
        process.create(&network(network_, spec(Mode::Isolated))).unwrap();
        process.create_port(&port(network_, "x")).unwrap();
    }
    kernel.meddle(|host| {
        host.delete_link(&link("kvb-a"));
        host.delete_link(&link("kvp-x"));
        host.add_link(&link("kvb-a"), LinkKind::Bridge);
        host.add_link(&link("kvp-x"), LinkKind::Nic);
    });
    let theirs = kernel.picture();
    process.converge();
    for resource in ["networks/a", "networks/a/ports/x"] {
        let states = &process.netd().read().states;
        assert!(
            matches!(&states[resource], State::Degraded(why) if why.contains("somebody else")),
            "{states:?}"
        );
    }
    assert_eq!(process.netd().network(&name("b")).unwrap().state, State::Ready);
    assert_eq!(kernel.picture(), theirs);
    process.delete("a", true).unwrap();
    assert_eq!(kernel.picture().links, theirs.links, "a delete leaves what is not ours");
    // Away with the obstacle, and all is well again.
    process.create(&network("a", spec(Mode::Isolated))).unwrap();
    process.assert_converged();
}

#[test]
fn a_bridge_that_somebody_removed_comes_back_with_its_ports() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("nic", every_mode().remove(5).spec)).unwrap();
    process.create_port(&port("nic", "a")).unwrap();
    let good = kernel.picture();
    kernel.meddle(|host| host.delete_link(&link("kvb-nic")));
    process.converge();
    process.assert_converged();
    assert_eq!(kernel.picture(), good);
}

#[test]
fn a_marked_link_without_a_record_is_named_and_left_alone() {
    let (_dir, kernel, process) = fixture();
    let stray = Action::CreateBridge {
        name: link("kvb-old"),
        mac: "52:54:00:00:00:09".parse().unwrap(),
        mtu: 1500,
        alias: "kvmctl:11111111111111111111111111111111:networks/old".into(),
        profile: crate::kernel::BridgeProfile::Silent,
    };
    kernel.prepare(&[stray]);
    let before = kernel.picture();
    process.converge();
    process.converge();
    let warnings = process.netd().warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("`kvb-old`") && warnings[0].contains("--state-dir"));
    assert_eq!(kernel.picture(), before);
    // A network of that very name passes it by.
    let view = process.create(&network("old", spec(Mode::Isolated))).unwrap();
    assert_ne!(view.network.bridge, link("kvb-old"));
    process.delete("old", false).unwrap();
    assert_eq!(kernel.picture(), before);
    kernel.meddle(|host| host.delete_link(&link("kvb-old")));
    process.converge();
    assert_eq!(process.netd().warnings(), Vec::<String>::new());
}

#[test]
fn a_client_that_goes_away_does_not_cut_a_change_short() {
    let (_dir, _kernel, process) = fixture();
    process.run(async {
        let new = network("lan", spec(Mode::Nat));
        let mut create = Box::pin(process.netd().create_network(new, false));
        // One poll starts the task; then the caller is gone.
        assert!(futures_util::poll!(&mut create).is_pending());
        drop(create);
        let _after = process.netd().delete_port(key("lan", "none"), None, (0, Quota::default())).await;
    });
    assert_eq!(process.netd().network(&name("lan")).unwrap().state, State::Ready);
    process.assert_converged();
}
