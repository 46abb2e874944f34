//! Every step of every change fails once, before and after its effect.

use super::*;

/// Steps that `work` takes when all goes well.
fn steps(kernel: &FakeKernel, work: impl FnOnce()) -> usize {
    kernel.heal();
    work();
    kernel.steps()
}

#[test]
fn a_create_that_fails_leaves_nothing_and_can_be_repeated() {
    for new in every_mode() {
        let (_dir, kernel, process) = fixture();
        // Another network, so that the rules change rather than come and go.
        process.create(&network("before", spec(Mode::Isolated))).unwrap();
        let (before, disk) = (kernel.picture(), process.disk());
        let most = steps(&kernel, || drop(process.create(&new).unwrap()));
        assert!(most >= 2, "a look before and a look back, at least");
        let whole = nameless(kernel.picture());
        process.delete(new.name.as_str(), false).unwrap();
        for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
            let at = format!("{}, step {step}, effect {effect:?}", new.name);
            kernel.fail_at(step, effect);
            let fault = process.create(&new).expect_err(&at);
            assert!(fault.chain().contains(&format!("step {step} fails")), "{at}: {}", fault.chain());
            assert_eq!(kernel.picture(), before, "{at}");
            assert_eq!(process.disk(), disk, "{at}");
            process.assert_converged();
            process.create(&new).expect(&at);
            assert_eq!(nameless(kernel.picture()), whole, "{at}");
            process.assert_converged();
            process.delete(new.name.as_str(), false).expect(&at);
            assert_eq!((kernel.picture(), process.disk()), (before.clone(), disk.clone()), "{at}");
        }
    }
}

#[test]
fn the_first_create_that_fails_leaves_nothing() {
    for new in every_mode() {
        let (_dir, kernel, process) = fixture();
        let before = kernel.picture();
        let most = steps(&kernel, || drop(process.create(&new).unwrap()));
        process.delete(new.name.as_str(), false).unwrap();
        for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
            kernel.fail_at(step, effect);
            process.create(&new).unwrap_err();
            assert_eq!(kernel.picture(), before, "{}, step {step}, effect {effect:?}", new.name);
            assert_eq!(process.disk(), [vec![], vec![], vec![]]);
        }
    }
}

#[test]
fn a_port_that_fails_leaves_nothing_and_can_be_repeated() {
    for mode in [Mode::Isolated, Mode::Nat] {
        let (_dir, kernel, process) = fixture();
        process.create(&network("lan", spec(mode))).unwrap();
        process.create_port(&port("lan", "first")).unwrap();
        let (before, disk) = (kernel.picture(), process.disk());
        let new = port("lan", "web");
        let most = steps(&kernel, || drop(process.create_port(&new).unwrap()));
        let whole = kernel.picture();
        process.delete_port("lan", "web").unwrap();
        let mut repaired = 0;
        for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
            let at = format!("{mode}, step {step}, effect {effect:?}");
            kernel.fail_at(step, effect);
            match process.create_port(&new) {
                // A transaction of rules that fails is taken for tables that are gone: all is put right, and it goes on.
                Ok(_) => repaired += 1,
                Err(fault) => {
                    assert!(fault.chain().contains("cannot create port `web`"), "{at}: {}", fault.chain());
                    assert_eq!((kernel.picture(), process.disk()), (before.clone(), disk.clone()), "{at}");
                    process.create_port(&new).expect(&at);
                }
            }
            assert_eq!(kernel.picture(), whole, "{at}");
            process.assert_converged();
            process.delete_port("lan", "web").expect(&at);
            assert_eq!((kernel.picture(), process.disk()), (before.clone(), disk.clone()), "{at}");
        }
        assert_eq!(repaired, 2, "the transaction alone, with and without effect");
    }
}

#[test]
fn a_create_finishes_the_delete_of_what_had_its_name() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let first = process.create_port(&port("lan", "web")).unwrap().port;
    kernel.refuse(|action| matches!(action, Action::DeleteLink(_)));
    process.delete_port("lan", "web").unwrap_err();
    // As long as it fails, it says why.
    let fault = process.create_port(&port("lan", "web")).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::Aborted, "DELETING"));
    assert!(fault.chain().contains("DeleteLink"), "{}", fault.chain());
    kernel.heal();
    let second = process.create_port(&port("lan", "web")).unwrap();
    assert!(second.port.uid != first.uid && second.state == State::Ready);
    process.assert_converged();

    kernel.refuse(|action| matches!(action, Action::DeleteLink(_)));
    process.delete("lan", true).unwrap_err();
    let again = process.create(&network("lan", spec(Mode::Nat))).unwrap_err();
    assert!(again.chain().contains("DeleteLink"), "{}", again.chain());
    kernel.heal();
    assert_eq!(process.create(&network("lan", spec(Mode::Nat))).unwrap().ports, 0);
    process.assert_converged();
}

#[test]
fn a_delete_that_fails_is_finished_later() {
    for new in every_mode() {
        let (_dir, kernel, process) = fixture();
        process.create(&network("before", spec(Mode::Isolated))).unwrap();
        let (before, disk) = (kernel.picture(), process.disk());
        let network_ = new.name.as_str();
        let raise = || {
            process.create(&new).unwrap();
            process.create_port(&port(network_, "web")).unwrap();
        };
        raise();
        let most = steps(&kernel, || process.delete(network_, true).unwrap());
        for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
            let at = format!("{network_}, step {step}, effect {effect:?}");
            raise();
            kernel.fail_at(step, effect);
            process.delete(network_, true).expect_err(&at);
            let view = process.netd().network(&new.name).expect(&at);
            assert!(view.network.deleting && matches!(view.state, State::Degraded(_)), "{at}: {view:?}");
            process.converge();
            assert_eq!((kernel.picture(), process.disk()), (before.clone(), disk.clone()), "{at}");
            process.assert_converged();
        }
    }
}

#[test]
fn a_port_whose_delete_fails_is_finished_later() {
    let (_dir, kernel, process) = fixture();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    let (before, disk) = (kernel.picture(), process.disk());
    let raise = || drop(process.create_port(&port("lan", "web")).unwrap());
    raise();
    let most = steps(&kernel, || process.delete_port("lan", "web").unwrap());
    for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
        raise();
        kernel.fail_at(step, effect);
        if process.delete_port("lan", "web").is_err() {
            let view = process.netd().port(&name("lan"), &name("web")).unwrap();
            assert!(view.port.deleting && matches!(view.state, State::Degraded(_)), "step {step}");
            process.converge();
        }
        assert_eq!((kernel.picture(), process.disk()), (before.clone(), disk.clone()), "step {step}");
        process.assert_converged();
    }
}

#[test]
fn a_link_that_cannot_be_removed_keeps_its_rules() {
    let (_dir, kernel, process) = fixture();
    let before = kernel.picture();
    process.create(&network("lab", spec(Mode::Isolated))).unwrap();
    process.create_port(&port("lab", "web")).unwrap();
    let guarded = kernel.picture().tables;
    kernel.refuse(|action| matches!(action, Action::DeleteLink(_)));
    process.delete("lab", true).unwrap_err();
    process.converge();
    assert_eq!(kernel.picture().tables, guarded, "guests that are still there are still checked");
    assert_eq!(process.netd().counts(), (1, 1));
    // The port alone cannot go: its network waits for it.
    kernel.refuse(|action| matches!(action, Action::DeleteLink(name) if name.as_str() == "kvp-web"));
    process.converge();
    assert_eq!(process.netd().counts(), (1, 1));
    kernel.heal();
    process.converge();
    assert_eq!((kernel.picture(), process.disk()), (before, [vec![], vec![], vec![]]));
}

#[test]
fn one_object_that_fails_does_not_stop_the_others() {
    let (_dir, kernel, process) = fixture();
    for network_ in ["a", "b"] {
        process.create(&network(network_, spec(Mode::Isolated))).unwrap();
        process.create_port(&port(network_, network_)).unwrap();
    }
    let good = kernel.picture();
    kernel.meddle(|host| {
        for gone in ["kvb-a", "kvp-a", "kvb-b", "kvp-b"] {
            host.delete_link(&link(gone));
        }
    });
    kernel.refuse(|action| matches!(action, Action::CreateBridge { name, .. } if name.as_str() == "kvb-a"));
    process.converge();
    assert!(matches!(process.netd().network(&name("a")).unwrap().state, State::Degraded(_)));
    assert!(matches!(process.netd().port(&name("a"), &name("a")).unwrap().state, State::Degraded(_)));
    assert_eq!(process.netd().network(&name("b")).unwrap().state, State::Ready);
    assert_eq!(process.netd().port(&name("b"), &name("b")).unwrap().state, State::Ready);
    kernel.heal();
    process.converge();
    process.assert_converged();
    assert_eq!(kernel.picture(), good);
}

#[test]
fn without_rules_no_link_comes_up() {
    let (dir, kernel, process) = fixture();
    process.create(&network("a", spec(Mode::Isolated))).unwrap();
    process.create_port(&port("a", "x")).unwrap();
    drop(process);
    // As after a reboot, on a host whose nft does not work.
    kernel.meddle(|host| {
        host.delete_link(&link("kvb-a"));
        host.delete_link(&link("kvp-x"));
        host.tables = None;
    });
    let process = Process { runtime: Runtime::new().unwrap(), reconciler: None, kernel: kernel.clone() };
    let reconciler =
        process.run(Reconciler::load(kernel.clone(), reopen(dir.path()), Services::none())).unwrap();
    kernel.refuse(|action| matches!(action, Action::ReplaceTables { .. }));
    process.run(reconciler.converge()).unwrap();
    assert_eq!(kernel.applied(), []);
    assert!(matches!(reconciler.network(&name("a")).unwrap().state, State::Degraded(_)));
    assert!(matches!(reconciler.port(&name("a"), &name("x")).unwrap().state, State::Degraded(_)));
}
