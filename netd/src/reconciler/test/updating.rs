//! Ports and networks that change while guests are on them.

use super::*;
use crate::kernel::Element;

fn change() -> PortChange {
    PortChange {
        filter: Some(false),
        isolated: Some(true),
        extra: Some([[10, 1, 0, 77].into()].into()),
        rate_in: Some(Some(rate(1_000_000))),
        rate_out: Some(Some(rate(2_000_000))),
        ..PortChange::default()
    }
}

fn update(process: &Process, change: PortChange) -> Result<PortView, Fault> {
    process.run(process.netd().update_port(key("lan", "a"), change, 0))
}

/// A nat network with a port `a` beside a port `b`.
fn with_ports() -> (TempDir, FakeKernel, Process) {
    let (dir, kernel, process) = fixture();
    let ipv4 = Some("10.1.0.1/24".parse().unwrap());
    process.create(&network("lan", NetworkSpec { ipv4, ..spec(Mode::Nat) })).unwrap();
    for name in ["a", "b"] {
        process.create_port(&port("lan", name)).unwrap();
    }
    (dir, kernel, process)
}

#[test]
fn a_change_is_carried_out_and_recorded() {
    let (dir, kernel, process) = with_ports();
    let changed = update(&process, change()).unwrap();
    assert_eq!((changed.port.generation, changed.state.clone()), (2, State::Ready));
    let tap = changed.port.tap.clone();
    let picture = kernel.picture();
    assert!(picture.links[&tap].port.unwrap().isolated);
    assert!(picture.links[&tap].bucket.unwrap().carries(rate(1_000_000)));
    assert!(picture.links[&changed.port.ifb()].bucket.unwrap().carries(rate(2_000_000)));
    let elements = picture.tables.unwrap().elements.0;
    assert!(!elements.contains(&Element::FilteredTap(tap)));
    assert!(elements.contains(&Element::Apart4(link("kvb-lan"), [10, 1, 0, 77].into())));
    process.assert_converged();
    // The same again changes nothing, and a restart finds nothing to do.
    assert_eq!(update(&process, change()).unwrap().port, changed.port);
    drop(process);
    let process = Process::start(dir.path(), &kernel);
    process.assert_converged();
}

#[test]
fn a_change_that_fails_at_any_step_is_taken_back() {
    for effect in EFFECTS {
        let mut taken_back = 0;
        for step in 0.. {
            let (_dir, kernel, process) = with_ports();
            let (before, disk) = (kernel.picture(), process.disk());
            kernel.fail_at(step, effect);
            let result = update(&process, change());
            if kernel.steps() <= step {
                result.unwrap();
                break;
            }
            kernel.heal();
            process.converge();
            process.assert_converged();
            // A transaction of the rules that fails is made good by a converge; anything else is taken back.
            if result.is_err() {
                taken_back += 1;
                assert_eq!(process.disk()[1], disk[1], "step {step}");
                let (now, before) = (kernel.picture(), before.clone());
                assert_eq!(now.links, before.links, "step {step}");
                assert_eq!(now.tables.unwrap().elements, before.tables.unwrap().elements, "step {step}");
            }
        }
        assert!(taken_back >= 3, "{taken_back}");
    }
}

#[test]
fn limits_change_and_go_without_a_trace() {
    let (_dir, kernel, process) = with_ports();
    let free = kernel.picture();
    let limits = |rate_in, rate_out| PortChange {
        rate_in: Some(rate_in),
        rate_out: Some(rate_out),
        ..PortChange::default()
    };
    update(&process, limits(Some(rate(1_000_000)), Some(rate(2_000_000)))).unwrap();
    kernel.heal();
    let changed = update(&process, limits(Some(rate(3_000_000)), Some(rate(4_000_000)))).unwrap();
    let (tap, ifb) = (changed.port.tap.clone(), changed.port.ifb());
    // In place: what waits is not lost.
    let in_place = [Action::SetRate(ifb, rate(4_000_000)), Action::SetRate(tap, rate(3_000_000))];
    assert_eq!(kernel.applied(), in_place);
    process.assert_converged();
    update(&process, limits(None, None)).unwrap();
    assert_eq!(kernel.picture(), free);
    process.assert_converged();
}

#[test]
fn a_change_that_cannot_be_changes_nothing() {
    let (_dir, kernel, process) = with_ports();
    let (before, disk) = (kernel.picture(), process.disk());
    let of_b = process.netd().port(&name("lan"), &name("b")).unwrap().port.ipv4.unwrap();
    for (asked, reason) in [
        (PortChange { extra: Some([of_b.into()].into()), ..PortChange::default() }, "ADDRESS_TAKEN"),
        (PortChange { extra: Some([[10, 1, 0, 1].into()].into()), ..PortChange::default() }, "ADDRESS_TAKEN"),
        (
            PortChange { extra: Some([[10, 2, 0, 9].into()].into()), ..PortChange::default() },
            "ADDRESS_OUTSIDE",
        ),
        (PortChange { hostname: Some(Some(name("b"))), ..PortChange::default() }, "HOSTNAME_TAKEN"),
        (PortChange { generation: Some(7), ..change() }, "OTHER_GENERATION"),
    ] {
        assert_eq!(update(&process, asked).unwrap_err().reason(), reason);
    }
    let stranger = process.run(process.netd().update_port(key("lan", "a"), change(), 4711));
    assert_eq!(stranger.unwrap_err().kind(), Kind::PermissionDenied);
    assert_eq!((kernel.picture(), process.disk()), (before, disk));
}

#[test]
fn a_port_of_the_same_name_gets_its_addresses_again_after_a_restart_too() {
    let (dir, kernel, process) = with_ports();
    let address = |process: &Process, port: &str| {
        process.netd().port(&name("lan"), &name(port)).unwrap().port.ipv4.unwrap().to_string()
    };
    assert_eq!((address(&process, "a"), address(&process, "b")), ("10.1.0.2".into(), "10.1.0.3".into()));
    process.delete_port("lan", "a").unwrap();
    drop(process);
    let process = Process::start(dir.path(), &kernel);
    process.create_port(&port("lan", "c")).unwrap();
    assert_eq!(address(&process, "c"), "10.1.0.4");
    process.create_port(&port("lan", "a")).unwrap();
    assert_eq!(address(&process, "a"), "10.1.0.2");
    process.delete("lan", true).unwrap();
    assert_eq!(process.netd().read().desired.reservations.len(), 0, "a network's go with it");
}

fn grow(process: &Process, change: NetworkChange) -> Result<NetworkView, Fault> {
    process.run(process.netd().update_network(name("lan"), change))
}

fn bigger() -> NetworkChange {
    NetworkChange {
        ipv6: Some(Some("fd00:1::1/64".parse().unwrap())),
        mtu: Some(Some(1400)),
        uplink: Some(Some(link("eth1"))),
        ..NetworkChange::default()
    }
}

#[test]
fn a_network_gets_a_subnet_an_mtu_and_an_uplink_with_guests_on_it() {
    let (dir, kernel, process) = with_ports();
    let changed = grow(&process, bigger()).unwrap();
    assert_eq!((changed.network.generation, changed.network.mtu), (2, 1400));
    let picture = kernel.picture();
    assert_eq!(picture.links[&link("kvb-lan")].mtu, 1400);
    assert_eq!(picture.sysctls["net/ipv6/conf/kvb-lan/disable_ipv6"], "0");
    let elements = picture.tables.unwrap().elements.0;
    for text in ["a", "b"] {
        let port = process.netd().port(&name("lan"), &name(text)).unwrap().port;
        let (v4, v6) = (port.ipv4.unwrap(), port.ipv6.unwrap());
        assert!(elements.contains(&Element::TapAddress6(port.tap.clone(), v6)), "{text}");
        assert!(elements.contains(&Element::TapAddress4(port.tap.clone(), port.mac, v4)), "{text}");
        assert_eq!(picture.links[&port.tap].mtu, 1400);
    }
    assert!(elements.contains(&Element::Uplink(link("kvb-lan"), link("eth1"))));
    process.assert_converged();
    drop(process);
    Process::start(dir.path(), &kernel).assert_converged();
}

#[test]
fn a_change_of_a_network_that_fails_at_any_step_is_taken_back() {
    for effect in EFFECTS {
        let mut taken_back = 0;
        for step in 0.. {
            let (_dir, kernel, process) = with_ports();
            let (before, disk) = (kernel.picture(), process.disk());
            kernel.fail_at(step, effect);
            let result = grow(&process, bigger());
            if kernel.steps() <= step {
                result.unwrap();
                break;
            }
            assert!(result.is_err(), "step {step}");
            taken_back += 1;
            kernel.heal();
            process.converge();
            process.assert_converged();
            assert_eq!(process.disk()[..2], disk[..2], "step {step}");
            let now = kernel.picture();
            assert_eq!(now.tables.unwrap().elements, before.tables.unwrap().elements, "step {step}");
            assert_eq!(now.links[&link("kvb-lan")].mtu, 1500, "step {step}");
        }
        assert!(taken_back > 5, "{taken_back}");
    }
}

#[test]
fn a_network_that_netd_was_changing_when_it_died_is_changed_at_the_next_start() {
    for step in 0.. {
        let (dir, kernel, process) = with_ports();
        kernel.hang_at(step, Effect::Done);
        let done = process.until_killed(process.netd().update_network(name("lan"), bigger()));
        drop(process);
        let process = Process::start(dir.path(), &kernel);
        process.assert_converged();
        if done.is_some() {
            break;
        }
    }
}

#[test]
fn what_guests_would_lose_is_refused_and_changes_nothing() {
    let (_dir, kernel, process) = with_ports();
    process
        .create(&network("nic", NetworkSpec { uplink: Some(link("eth1")), ..spec(Mode::Bridged) }))
        .unwrap();
    let (before, disk) = (kernel.picture(), process.disk());
    let none = NetworkChange::default;
    let subnet = |text: &str| Some(Some(text.parse().unwrap()));
    for (change, reason) in [
        (NetworkChange { ipv4: subnet("10.2.0.1/24"), ..none() }, "SUBNET_IN_USE"),
        (NetworkChange { ipv4: Some(None), ..none() }, "SUBNET_IN_USE"),
        (NetworkChange { mtu: Some(Some(1000)), ..bigger() }, "INVALID_MTU"),
        (NetworkChange { uplink: Some(Some(link("nosuch"))), ..none() }, "NO_SUCH_LINK"),
        (NetworkChange { uplink: Some(Some(link("lo"))), ..none() }, "UNFIT_UPLINK"),
        (NetworkChange { ipv6: Some(Some("2001:db8::99/64".parse().unwrap())), ..none() }, "SUBNET_OVERLAPS"),
        (NetworkChange { generation: Some(9), ..bigger() }, "OTHER_GENERATION"),
    ] {
        assert_eq!(grow(&process, change).unwrap_err().reason(), reason);
    }
    let exchange = NetworkChange { uplink: Some(Some(link("eth0"))), ..none() };
    let fault = process.run(process.netd().update_network(name("nic"), exchange)).unwrap_err();
    assert_eq!(fault.reason(), "UPLINK_IN_USE");
    assert_eq!((kernel.picture(), process.disk()), (before, disk));
}

fn plain() -> PortSpec {
    PortSpec { rate_in: None, rate_out: None, ..port("lan", "p0").spec }
}

#[test]
fn a_network_of_1000_ports_changes_with_a_few_steps_of_the_kernel() {
    let (dir, kernel, process) = fixture();
    let ipv4 = Some("10.1.0.1/16".parse().unwrap());
    process.create(&network("lan", NetworkSpec { ipv4, ..spec(Mode::Nat) })).unwrap();
    let first = process.create_port(&NewPort { spec: plain(), ..port("lan", "p0") }).unwrap().port;
    drop(process);
    // The others are recorded only: to make each of them takes longer than what is looked at here.
    let others = (1..1000_u16).map(|n| {
        let [high, low] = (n + 2).to_be_bytes();
        let port = Port {
            name: name(&format!("p{n}")),
            uid: uuid::Uuid::new_v4(),
            mac: Mac::derived(&format!("p{n}"), 0),
            ipv4: Some([10, 1, high, low].into()),
            tap: link(&format!("kvp-p{n}")),
            ..first.clone()
        };
        Op::put(PORT, port.resource(), &port).unwrap()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(reopen(dir.path()).commit(others.collect())).unwrap();
    let process = Process::start(dir.path(), &kernel);
    let steps_of = |change| {
        kernel.heal();
        grow(&process, change).unwrap();
        (kernel.steps(), kernel.applied().len())
    };
    // The taps stay as they are; the rules change in one transaction.
    let (steps, applied) = steps_of(NetworkChange { mtu: None, ..bigger() });
    println!("a subnet for 1000 ports: {steps} steps, {applied} actions");
    assert!(steps < 30, "{steps}");
    // Each has to change.
    let (steps, applied) = steps_of(NetworkChange { mtu: Some(Some(1300)), ..NetworkChange::default() });
    println!("an MTU for 1000 ports: {steps} steps, {applied} actions");
    assert!((1000..1030).contains(&steps), "{steps}");
    process.assert_converged();
    let ports = process.netd().ports(Some(&name("lan")), None, usize::MAX).unwrap();
    let addresses: BTreeSet<_> = ports.iter().flat_map(|view| view.port.addresses()).collect();
    assert_eq!(addresses.len(), 2000);
}

#[test]
fn what_is_set_aside_and_used_up_by_a_change_of_a_network_is_set_aside_no_more() {
    let subnet =
        NetworkChange { ipv4: Some(Some("10.1.0.1/30".parse().unwrap())), ..NetworkChange::default() };
    for fails in [true, false] {
        let (dir, kernel, process) = fixture();
        process.create(&network("lan", spec(Mode::Isolated))).unwrap();
        let mut first = port("lan", "a");
        first.spec.ipv4 = Some([10, 1, 0, 2].into());
        process.create_port(&first).unwrap();
        process.create_port(&port("lan", "b")).unwrap();
        process.delete_port("lan", "a").unwrap();
        let set_aside = |process: &Process| process.netd().read().desired.reservations.clone();
        let before = set_aside(&process);
        assert_eq!(before.len(), 1);
        if fails {
            kernel.fail_at(1, Effect::None);
            grow(&process, subnet.clone()).unwrap_err();
            assert_eq!(set_aside(&process), before);
        } else {
            // The one address that is left.
            grow(&process, subnet.clone()).unwrap();
            let b = process.netd().port(&name("lan"), &name("b")).unwrap().port;
            assert_eq!(b.ipv4.unwrap().to_string(), "10.1.0.2");
            assert_eq!(set_aside(&process).len(), 0);
        }
        drop(process);
        let process = Process::start(dir.path(), &kernel);
        assert_eq!(set_aside(&process).len(), usize::from(fails));
        process.assert_converged();
    }
}

#[test]
fn a_create_that_fails_leaves_what_is_set_aside_as_it_was() {
    let (_dir, kernel, process) = with_ports();
    process.delete_port("lan", "a").unwrap();
    let set_aside = |process: &Process| process.netd().read().desired.reservations.clone();
    let before = set_aside(&process);
    assert_eq!(before.len(), 1);
    kernel.refuse(|action| matches!(action, Action::CreateTap(_)));
    for text in ["a", "new"] {
        process.create_port(&port("lan", text)).unwrap_err();
        assert_eq!(set_aside(&process), before, "{text}");
    }
    kernel.heal();
    let again = process.create_port(&port("lan", "a")).unwrap().port;
    assert_eq!(again.ipv4.unwrap().to_string(), "10.1.0.2");
}

#[test]
fn a_user_sets_no_more_aside_than_it_may_have_ports() {
    let quota = Quota { ports_per_network: Some(2), ports: Some(9), ..Quota::default() };
    for (quota, kept) in [(quota, 2), (Quota::default(), 6)] {
        let (dir, kernel, mut process) = fixture();
        let spec = NetworkSpec { ipv4: Some("10.1.0.1/28".parse().unwrap()), ..spec(Mode::Isolated) };
        process.create(&network("lan", spec)).unwrap();
        let passes = |text: &str, uid, quota| {
            let new = NewPort { owner: owner(uid), quota, ..port("lan", text) };
            let port = process.create_port(&new).unwrap().port;
            process.run(process.netd().delete_port(key("lan", text), None, (uid, quota))).unwrap();
            port.ipv4
        };
        let bobs = passes("bob", 1001, Quota::default());
        for at in 0..6 {
            passes(&format!("x{at}"), 1000, quota);
        }
        let names = |process: &Process| -> Vec<_> {
            process.netd().read().desired.reservations.keys().map(|key| key.1.to_string()).collect()
        };
        assert_eq!(names(&process).len(), 1 + kept, "{quota:?}");
        assert!(names(&process).ends_with(&["x4".into(), "x5".into()]), "the newest stay");
        let before = names(&process);
        drop(process);
        process = Process::start(dir.path(), &kernel);
        assert_eq!(names(&process), before, "the records too");
        process.converge();
        let back = process.create_port(&NewPort { owner: owner(1001), ..port("lan", "bob") }).unwrap();
        assert_eq!(back.port.ipv4, bobs);
        process.assert_converged();
    }
}

#[test]
fn what_a_port_leaves_behind_is_its_owners() {
    let (dir, kernel, mut process) = with_ports();
    let first = process.netd().port(&name("lan"), &name("a")).unwrap().port;
    process.delete_port("lan", "a").unwrap();
    let theirs = NewPort { owner: owner(1001), ..port("lan", "a") };
    let other = process.create_port(&theirs).unwrap().port;
    assert!(other.ipv4 != first.ipv4 && other.mac != first.mac);
    let named = PortSpec { extra: [first.ipv4.unwrap().into()].into(), ..theirs.spec.clone() };
    let extra = NewPort { spec: named.clone(), owner: owner(1001), ..port("lan", "b2") };
    assert_eq!(process.create_port(&extra).unwrap_err().reason(), "ADDRESS_TAKEN");
    let change = PortChange { extra: Some(named.extra), ..PortChange::default() };
    let changed = process.run(process.netd().update_port(key("lan", "a"), change, 1001));
    assert_eq!(changed.unwrap_err().reason(), "ADDRESS_TAKEN");
    // Both owners' are set aside now, and are so in the records.
    process.run(process.netd().delete_port(key("lan", "a"), None, (0, Quota::default()))).unwrap();
    drop(process);
    process = Process::start(dir.path(), &kernel);
    process.converge();
    let back = process.create_port(&port("lan", "a")).unwrap().port;
    assert_eq!((back.ipv4, back.mac), (first.ipv4, first.mac));
    process.delete_port("lan", "a").unwrap();
    let back = process.create_port(&theirs).unwrap().port;
    assert_eq!((back.ipv4, back.mac), (other.ipv4, other.mac));
}

#[test]
fn extra_addresses_count_as_ports() {
    let (_dir, _kernel, process) = with_ports();
    let quota = Quota { ports_per_network: Some(4), ..Quota::default() };
    let extra = |count: u8| (0..count).map(|at| std::net::Ipv4Addr::new(10, 1, 0, 200 + at).into()).collect();
    let new = |count| NewPort {
        spec: PortSpec { extra: extra(count), ..port("lan", "x").spec },
        owner: owner(1001),
        quota,
        ..port("lan", "x")
    };
    let fault = process.create_port(&new(4)).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::ResourceExhausted, "PORT_QUOTA"));
    assert!(fault.chain().contains("counts as 5"), "{}", fault.chain());
    process.create_port(&new(2)).unwrap();
    let change = |count| {
        let rights = Rights { quota, ..Caller::root().rights };
        let by = Some(Caller::new(1001, None, rights, Path::new("/etc/access").into()));
        let change = PortChange { extra: Some(extra(count)), by, ..PortChange::default() };
        process.run(process.netd().update_port(key("lan", "x"), change, 1001))
    };
    assert_eq!(change(4).unwrap_err().reason(), "PORT_QUOTA");
    change(3).unwrap();
    change(1).unwrap();
}

#[test]
fn a_change_that_is_not_the_uplinks_business_goes_on_without_it() {
    let (_dir, kernel, process) = with_ports();
    grow(&process, bigger()).unwrap();
    kernel.meddle(|host| host.delete_link(&link("eth1")));
    let labels = Some(BTreeMap::from([("team".to_owned(), "web".to_owned())]));
    let changed =
        grow(&process, NetworkChange { labels: labels.clone(), ..NetworkChange::default() }).unwrap();
    assert_eq!((Some(changed.network.labels), changed.network.mtu), (labels, 1400));
}
