//! Forwards: where they lead as ports come, change and go, and what is left when they go.

use super::*;
use crate::{
    kernel::Element,
    model::{Forward, ForwardKey, ForwardSpec, Protocol, Target},
};

fn forward(port: u16, target: &str) -> NewForward {
    let spec = ForwardSpec {
        protocol: Protocol::Tcp,
        listen_address: None,
        listen_port: port.try_into().unwrap(),
        target: target.parse().map_or_else(|_| Target::Name(name(target)), Target::Address),
        target_port: Some(80.try_into().unwrap()),
    };
    let named = format!("tcp-{port}");
    NewForward { network: name("lan"), name: name(&named), spec, labels: BTreeMap::new(), allow_absent: true }
}

fn at(port: u16) -> ForwardKey {
    (name("lan"), name(&format!("tcp-{port}")))
}

fn lan() -> NewNetwork {
    let (ipv4, ipv6) = (Some("10.0.0.1/24".parse().unwrap()), Some("fd00::1/64".parse().unwrap()));
    network("lan", NetworkSpec { ipv4, ipv6, ..spec(Mode::Nat) })
}

fn with_ip(text: &str, ipv4: &str) -> NewPort {
    NewPort {
        spec: PortSpec { ipv4: Some(ipv4.parse().unwrap()), ..port("lan", text).spec },
        ..port("lan", text)
    }
}

fn with_hostname(text: &str, hostname: &str) -> NewPort {
    let spec = PortSpec { hostname: Some(name(hostname)), ..port("lan", text).spec };
    NewPort { spec, ..port("lan", text) }
}

fn lan_fixture() -> (TempDir, FakeKernel, Process) {
    let (dir, kernel, process) = fixture();
    process.create(&lan()).unwrap();
    (dir, kernel, process)
}

impl Process {
    fn forward(&self, new: &NewForward) -> Result<ForwardView, Fault> {
        self.run(self.netd().create_forward(new.clone()))
    }

    fn delete_forward(&self, port: u16) -> Result<(), Fault> {
        self.run(self.netd().delete_forward(at(port)))
    }

    /// Where the rules let a port of the host lead, over IPv4; to be allowed on both sides.
    fn leads_to(&self, port: u16) -> Option<String> {
        let elements = self.kernel.picture().tables.unwrap_or_default().elements.0;
        let to = elements.iter().find_map(|element| match element {
            Element::Forward4(forwarding) if forwarding.port == port => {
                Some((forwarding.to, forwarding.to_port))
            }
            _ => None,
        })?;
        let open = Element::Open4(link("kvb-lan"), to.0, Protocol::Tcp, to.1);
        assert!(elements.contains(&open), "{elements:?}");
        Some(to.0.to_string())
    }

    fn reflects(&self, tap: &str) -> bool {
        let host = self.kernel.picture();
        let by_flag = host.links[&link(tap)].port.unwrap().hairpin;
        let by_rule = host.tables.unwrap().elements.0.contains(&Element::ReflectedTap(link(tap)));
        assert_eq!(by_flag, by_rule);
        by_flag
    }

    fn records(&self) -> usize {
        self.run(self.netd().0.store.load::<Forward>(FORWARD)).unwrap().records.len()
    }
}

#[test]
fn a_forward_waits_for_its_port_and_follows_it() {
    let (_dir, kernel, process) = lan_fixture();
    let view = process.forward(&forward(8080, "web")).unwrap();
    assert_eq!((view.state, view.target.is_err()), (State::Pending, true));
    assert_eq!(process.leads_to(8080), None);
    kernel.heal();
    process.create_port(&with_ip("web", "10.0.0.7")).unwrap();
    let changes = |action: &&Action| matches!(action, Action::ChangeElements { .. });
    assert_eq!(kernel.applied().iter().filter(changes).count(), 1, "port and forward in one transaction");
    assert_eq!(process.leads_to(8080).unwrap(), "10.0.0.7");
    assert!(process.reflects("kvp-web"));
    let view = process.netd().forward(&at(8080)).unwrap();
    assert_eq!(view.state, State::Ready);
    let (port, addresses) = view.target.unwrap();
    assert_eq!((port, addresses.len()), (key("lan", "web"), 2), "one address of each family");
    process.assert_converged();
    process.delete_port("lan", "web").unwrap();
    assert_eq!(process.leads_to(8080), None);
    assert_eq!(process.netd().forward(&at(8080)).unwrap().state, State::Pending);
    process.create_port(&with_ip("web", "10.0.0.9")).unwrap();
    assert_eq!(process.leads_to(8080).unwrap(), "10.0.0.9");
    process.assert_converged();
    process.delete_forward(8080).unwrap();
    assert_eq!((process.leads_to(8080), process.reflects("kvp-web"), process.records()), (None, false, 0));
    process.assert_converged();
    assert_eq!(process.delete_forward(8080).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_host_name_and_a_ports_name_lead_to_one_guest() {
    let (_dir, kernel, process) = lan_fixture();
    process.create_port(&with_hostname("x", "web")).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    let first = process.leads_to(80).unwrap();
    kernel.heal();
    let rename = |to: &str| {
        let change = PortChange { hostname: Some(Some(name(to))), ..PortChange::default() };
        let renamed = process.run(process.netd().update_port(key("lan", "x"), change, 0));
        process.assert_converged();
        renamed
    };
    rename("elsewhere").unwrap();
    assert!(process.leads_to(80).is_none(), "nobody has that name now");
    let web = NewPort {
        spec: PortSpec { hostname: Some(name("old")), ..with_ip("web", "10.0.0.22").spec },
        ..port("lan", "web")
    };
    process.create_port(&web).unwrap();
    assert_eq!(process.leads_to(80).unwrap(), "10.0.0.22");
    assert_eq!(rename("web").unwrap_err().reason(), "HOSTNAME_TAKEN");
    process.delete_port("lan", "web").unwrap();
    rename("web").unwrap();
    assert_eq!(process.leads_to(80).unwrap(), first);
    process.assert_converged();
}

#[test]
fn two_forwards_to_one_place_do_not_take_it_from_each_other() {
    let (_dir, _kernel, process) = lan_fixture();
    process.create_port(&with_ip("web", "10.0.0.2")).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    process.forward(&forward(8080, "10.0.0.2")).unwrap();
    process.assert_converged();
    process.delete_forward(80).unwrap();
    assert_eq!(process.leads_to(8080).unwrap(), "10.0.0.2");
    assert!(process.reflects("kvp-web"));
    process.assert_converged();
    process.delete_forward(8080).unwrap();
    assert!(!process.reflects("kvp-web"));
    process.assert_converged();
}

#[test]
fn the_same_create_twice_is_one_forward_and_another_spec_is_refused() {
    let (_dir, kernel, process) = lan_fixture();
    let first = process.forward(&forward(80, "web")).unwrap();
    kernel.heal();
    assert_eq!(process.forward(&forward(80, "web")).unwrap().forward, first.forward);
    assert_eq!(kernel.applied(), []);
    let other = process.forward(&forward(80, "db")).unwrap_err();
    assert_eq!((other.kind(), other.reason()), (Kind::AlreadyExists, "FORWARD_EXISTS"));
    let elsewhere = NewForward { name: name("another"), ..forward(80, "db") };
    let taken = process.forward(&elsewhere).unwrap_err();
    assert!(taken.chain().contains("networks/lan/forwards/tcp-80"), "{}", taken.chain());
    kernel.listen(Protocol::Tcp, 22, "0.0.0.0".parse().unwrap());
    let taken = process.forward(&forward(22, "web")).unwrap_err();
    assert!(taken.chain().contains("`sshd` (process 7)"), "{}", taken.chain());
    assert_eq!(process.records(), 1);
}

#[test]
fn a_target_is_one_that_the_network_has_or_had() {
    let (_dir, _kernel, process) = lan_fixture();
    let asks = |target: &str| NewForward { allow_absent: false, ..forward(80, target) };
    for target in ["web", "api", "10.0.0.2"] {
        let fault = process.forward(&asks(target)).unwrap_err();
        assert_eq!((fault.kind(), fault.reason()), (Kind::NotFound, "TARGET_NOT_FOUND"), "{target}");
        assert!(!fault.hints().is_empty());
    }
    process.create_port(&with_hostname("web", "api")).unwrap();
    for _ in 0..2 {
        for target in ["web", "api", "10.0.0.2"] {
            process.forward(&asks(target)).expect(target);
            process.delete_forward(80).unwrap();
        }
        // The second time round it is gone, and remembered.
        let _ = process.delete_port("lan", "web");
    }
    assert_eq!(process.records(), 0);
}

#[test]
fn a_forward_leads_to_no_port_of_another_owner() {
    let (dir, kernel, mut process) = lan_fixture();
    process.create_port(&port("lan", "web")).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    // One that was made before anybody answered is of whoever is the first.
    process.forward(&forward(81, "db")).unwrap();
    process.create_port(&port("lan", "db")).unwrap();
    let before = (process.leads_to(80), process.leads_to(81));
    assert!(before.0.is_some() && before.1.is_some());
    for text in ["web", "db"] {
        process.delete_port("lan", text).unwrap();
        process.create_port(&NewPort { owner: owner(1001), ..port("lan", text) }).unwrap();
    }
    for restarted in [false, true] {
        if restarted {
            drop(process);
            process = Process::start(dir.path(), &kernel);
            process.converge();
        }
        for number in [80, 81] {
            assert_eq!(process.leads_to(number), None);
            let view = process.netd().forward(&at(number)).unwrap();
            let why = view.target.unwrap_err();
            assert_eq!(view.state, State::Pending);
            assert!(why.contains("is of uid 1001") && why.contains("for a port of uid 1000"), "{why}");
        }
        process.assert_converged();
    }
    for text in ["web", "db"] {
        process.run(process.netd().delete_port(key("lan", text), None, (0, Quota::default()))).unwrap();
        process.create_port(&port("lan", text)).unwrap();
    }
    assert_eq!((process.leads_to(80), process.leads_to(81)), before);
    process.assert_converged();
}

#[test]
fn a_host_name_that_another_takes_over_is_not_the_forwards() {
    let (_dir, _kernel, process) = lan_fixture();
    process.create_port(&with_hostname("a", "web")).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    assert!(process.leads_to(80).is_some());
    let change = PortChange { hostname: Some(None), ..PortChange::default() };
    process.run(process.netd().update_port(key("lan", "a"), change, 1000)).unwrap();
    process.create_port(&NewPort { owner: owner(1001), ..with_hostname("b", "web") }).unwrap();
    assert_eq!(process.leads_to(80), None);
    process.assert_converged();
}

#[test]
fn a_network_with_forwards_goes_by_force_only_and_takes_them_along() {
    let (_dir, kernel, process) = fixture();
    let before = kernel.picture();
    process.create(&lan()).unwrap();
    process.create(&network("other", spec(Mode::Nat))).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    let fault = process.delete("lan", false).unwrap_err();
    assert_eq!(fault.reason(), "NETWORK_IN_USE");
    assert!(fault.chain().contains("1 forward(s): `tcp-80`"), "{}", fault.chain());
    process.create_port(&port("lan", "web")).unwrap();
    let fault = process.delete("lan", false).unwrap_err();
    assert!(fault.chain().contains("1 port(s): `web` and 1 forward(s): `tcp-80`"), "{}", fault.chain());
    process.delete("lan", true).unwrap();
    assert_eq!(process.records(), 0);
    process.assert_converged();
    process.delete("other", false).unwrap();
    assert_eq!(kernel.picture(), before);
}

#[test]
fn a_subnet_that_a_network_gets_is_served_too() {
    let (_dir, _kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    process.create_port(&port("lan", "web")).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    let families = || process.netd().forward(&at(80)).unwrap().target.unwrap().1.len();
    assert_eq!(families(), 1);
    let ipv6 = Some(Some("fd00::1/64".parse().unwrap()));
    let change = NetworkChange { ipv6, ..NetworkChange::default() };
    process.run(process.netd().update_network(name("lan"), change)).unwrap();
    assert_eq!(families(), 2);
    process.assert_converged();
}

#[test]
fn an_unfiltered_port_gives_nothing_back() {
    let (_dir, _kernel, process) = lan_fixture();
    let new = NewPort { spec: PortSpec { filter: false, ..port("lan", "web").spec }, ..port("lan", "web") };
    process.create_port(&new).unwrap();
    process.forward(&forward(80, "web")).unwrap();
    assert!(process.leads_to(80).is_some() && !process.reflects("kvp-web"));
    let change = PortChange { filter: Some(true), ..PortChange::default() };
    process.run(process.netd().update_port(key("lan", "web"), change, 0)).unwrap();
    assert!(process.reflects("kvp-web"));
    process.assert_converged();
}

#[test]
fn a_port_costs_the_same_with_many_forwards() {
    let (_dir, kernel, process) = lan_fixture();
    let cost = |text: &str| {
        kernel.heal();
        process.create_port(&port("lan", text)).unwrap();
        kernel.steps()
    };
    process.forward(&forward(80, "first")).unwrap();
    let first = cost("first");
    for at in 0..50 {
        process.forward(&forward(1000 + at, &format!("web-{at}"))).unwrap();
        cost(&format!("web-{at}"));
    }
    process.forward(&forward(81, "last")).unwrap();
    assert_eq!(cost("last"), first);
    process.assert_converged();
}

#[test]
fn a_forward_that_fails_leaves_nothing_and_a_delete_is_finished_later() {
    let (_dir, kernel, process) = lan_fixture();
    process.create_port(&port("lan", "web")).unwrap();
    let before = kernel.picture();
    kernel.heal();
    process.forward(&forward(80, "web")).unwrap();
    let (most, whole) = (kernel.steps(), kernel.picture());
    process.delete_forward(80).unwrap();
    assert_eq!(kernel.picture(), before);
    let mut failed = 0;
    for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
        let when = format!("step {step}, effect {effect:?}");
        kernel.fail_at(step, effect);
        // A transaction of rules that fails is taken for tables that are gone: all is put right, and it goes on.
        if let Err(fault) = process.forward(&forward(80, "web")) {
            failed += 1;
            assert!(fault.chain().contains("cannot create forward `tcp-80`"), "{when}: {}", fault.chain());
            assert_eq!((kernel.picture(), process.records()), (before.clone(), 0), "{when}");
            process.assert_converged();
            process.forward(&forward(80, "web")).expect(&when);
        }
        assert_eq!(kernel.picture(), whole, "{when}");
        process.assert_converged();
        kernel.fail_at(step, effect);
        let deleted = process.delete_forward(80);
        kernel.heal();
        if deleted.is_err() {
            process.converge();
        }
        assert_eq!((kernel.picture(), process.records()), (before.clone(), 0), "{when}");
        process.assert_converged();
    }
    assert!(failed > 0);
}

#[test]
fn tables_that_are_gone_come_back_with_the_forward() {
    let (_dir, kernel, process) = lan_fixture();
    process.create_port(&port("lan", "web")).unwrap();
    kernel.meddle(|host| host.tables = None);
    process.forward(&forward(80, "web")).unwrap();
    process.assert_converged();
    let good = kernel.picture();
    kernel.meddle(|host| {
        host.tables
            .as_mut()
            .unwrap()
            .elements
            .0
            .retain(|e| !matches!(e, Element::Forward4(_) | Element::Open6(..)));
    });
    process.converge();
    assert_eq!(kernel.picture(), good);
    kernel.meddle(|host| host.link("kvp-web").port.as_mut().unwrap().hairpin = false);
    process.converge();
    assert_eq!(kernel.picture(), good);
    kernel.meddle(|host| host.tables = None);
    process.delete_forward(80).unwrap();
    process.assert_converged();
    assert_eq!(process.records(), 0);
}

#[test]
fn a_forward_that_was_recorded_is_finished_at_the_next_start() {
    for deletes in [false, true] {
        restart::kill_everywhere(
            |process| {
                process.create(&lan()).unwrap();
                process.create_port(&port("lan", "web")).unwrap();
                if deletes {
                    process.forward(&forward(80, "web")).unwrap();
                }
            },
            async |netd| {
                if deletes {
                    netd.delete_forward(at(80)).await
                } else {
                    netd.create_forward(forward(80, "web")).await.map(drop)
                }
            },
            |process, when| {
                process.assert_converged();
                if deletes {
                    assert_eq!((process.leads_to(80), process.records()), (None, 0), "{when}");
                } else {
                    let view = process.forward(&forward(80, "web")).expect(when);
                    assert_eq!(view.state, State::Ready, "{when}");
                    assert!(process.leads_to(80).is_some() && process.reflects("kvp-web"), "{when}");
                }
            },
        );
    }
}

/// Lets a flow of each forward begin, over IPv4 and IPv6.
fn begin_flows(kernel: &FakeKernel) {
    kernel.meddle(|host| {
        let elements = host.tables.iter().flat_map(|tables| &tables.elements.0);
        let forwards = elements.filter(|e| matches!(e, Element::Forward4(_) | Element::Forward6(_)));
        host.flows = forwards.cloned().collect();
        assert!(!host.flows.is_empty());
    });
}

#[test]
fn no_flow_outlives_its_forward_whenever_netd_dies() {
    let prepare = |process: &Process| {
        process.create(&lan()).unwrap();
        process.create_port(&with_hostname("x", "web")).unwrap();
        process.forward(&forward(8080, "web")).unwrap();
        process.forward(&forward(8081, "web")).unwrap();
        begin_flows(&process.kernel);
    };
    let judge = |process: &Process, at: &str| {
        process.assert_converged();
        let host = process.kernel.picture();
        let elements = host.tables.unwrap_or_default().elements.0;
        let left: Vec<_> = host.flows.iter().filter(|flow| !elements.contains(flow)).collect();
        assert!(left.is_empty(), "{at}: {left:?}");
        assert_eq!(process.run(process.netd().0.store.load::<Ending>(FLOWS)).unwrap().records, [], "{at}");
    };
    restart::kill_everywhere(prepare, async |netd| netd.delete_forward(at(8080)).await, judge);
    restart::kill_everywhere(
        prepare,
        async |netd| netd.delete_port(key("lan", "x"), None, (0, Quota::default())).await,
        judge,
    );
    restart::kill_everywhere(prepare, async |netd| netd.delete_network(name("lan"), true).await, judge);
    let rename = PortChange { hostname: Some(Some(name("other"))), ..PortChange::default() };
    let renamed =
        async |netd: &Reconciler<FakeKernel>| netd.update_port(key("lan", "x"), rename.clone(), 0).await;
    restart::kill_everywhere(prepare, renamed, judge);
}

#[test]
fn flows_of_a_forward_that_stays_go_on() {
    let (_dir, kernel, process) = lan_fixture();
    process.create_port(&with_ip("web", "10.0.0.7")).unwrap();
    process.forward(&forward(8080, "web")).unwrap();
    process.forward(&forward(8081, "web")).unwrap();
    begin_flows(&kernel);
    process.delete_forward(8081).unwrap();
    let ports = |host: &Host| -> BTreeSet<u16> {
        host.flows
            .iter()
            .filter_map(|flow| match flow {
                Element::Forward4(forwarding) => Some(forwarding.port),
                Element::Forward6(forwarding) => Some(forwarding.port),
                _ => None,
            })
            .collect()
    };
    assert_eq!(ports(&kernel.picture()), BTreeSet::from([8080]));
    // What could not be ended is, later, unless it is allowed again.
    begin_flows(&kernel);
    kernel.refuse(|action| matches!(action, Action::EndFlows(_)));
    process.delete_forward(8080).expect("the rules are as they should be");
    assert_eq!(ports(&kernel.picture()), BTreeSet::from([8080]));
    kernel.heal();
    process.forward(&forward(8080, "web")).unwrap();
    assert_eq!(ports(&kernel.picture()), BTreeSet::from([8080]), "it is allowed again");
    kernel.refuse(|action| matches!(action, Action::EndFlows(_)));
    process.delete_forward(8080).unwrap();
    kernel.heal();
    process.converge();
    assert_eq!(ports(&kernel.picture()), BTreeSet::new());
}
