//! netd is killed at every step of every change, and started again.

use super::*;

/// Kills `work` at each of its steps on a host of its own, starts again, and lets `judge` look at the outcome.
pub fn kill_everywhere<T>(
    prepare: impl Fn(&Process),
    work: impl AsyncFn(&Reconciler<FakeKernel>) -> Result<T, Fault>,
    judge: impl Fn(&Process, &str),
) {
    for step in 0.. {
        for effect in EFFECTS {
            let (dir, kernel, process) = fixture();
            prepare(&process);
            kernel.hang_at(step, effect);
            if let Some(result) = process.until_killed(work(process.netd())) {
                assert!(result.is_ok() && step >= 3, "all {step} steps were tried");
                return;
            }
            drop(process);
            let process = Process::start(dir.path(), &kernel);
            judge(&process, &format!("killed at step {step}, effect {effect:?}"));
        }
    }
}

#[test]
fn a_create_that_was_recorded_is_finished_at_the_next_start() {
    for new in every_mode() {
        let bare = host().picture();
        kill_everywhere(
            |_| {},
            async |netd| netd.create_network(new.clone(), false).await,
            |process, at| {
                let at = format!("{}, {at}", new.name);
                process.assert_converged();
                if process.netd().counts().0 == 0 {
                    assert_eq!(process.kernel.picture(), bare, "{at}");
                    process.create(&new).expect(&at);
                }
                let again = process.create(&new).expect(&at);
                assert_eq!(again.state, State::Ready, "{at}");
                process.create_port(&port(new.name.as_str(), "web")).expect(&at);
                process.assert_converged();
                process.delete(new.name.as_str(), true).expect(&at);
                assert_eq!(process.kernel.picture(), bare, "{at}");
                assert_eq!(process.disk(), [vec![], vec![], vec![]], "{at}");
            },
        );
    }
}

#[test]
fn a_delete_that_was_recorded_is_finished_at_the_next_start() {
    for new in every_mode() {
        let bare = host().picture();
        kill_everywhere(
            |process| {
                process.create(&new).unwrap();
                process.create_port(&port(new.name.as_str(), "web")).unwrap();
            },
            async |netd| netd.delete_network(new.name.clone(), true).await,
            |process, at| {
                assert_eq!(process.netd().counts(), (0, 0), "{}, {at}", new.name);
                assert_eq!(process.kernel.picture(), bare, "{}, {at}", new.name);
                assert_eq!(process.disk(), [vec![], vec![], vec![]], "{}, {at}", new.name);
            },
        );
    }
}

#[test]
fn a_port_that_was_recorded_is_finished_at_the_next_start() {
    kill_everywhere(
        |process| drop(process.create(&network("lan", spec(Mode::Nat))).unwrap()),
        async |netd| netd.create_port(port("lan", "web")).await,
        |process, at| {
            process.assert_converged();
            let view = process.create_port(&port("lan", "web")).expect(at);
            assert_eq!(view.state, State::Ready, "{at}");
            process.assert_converged();
        },
    );
}

#[test]
fn a_port_whose_delete_was_recorded_is_gone_after_the_next_start() {
    kill_everywhere(
        |process| {
            process.create(&network("lan", spec(Mode::Nat))).unwrap();
            process.create_port(&port("lan", "web")).unwrap();
        },
        async |netd| netd.delete_port(key("lan", "web"), None, (0, Quota::default())).await,
        |process, at| {
            assert_eq!(process.netd().counts(), (1, 0), "{at}");
            process.assert_converged();
            assert!(!process.kernel.picture().links.contains_key(&link("kvp-web")), "{at}");
        },
    );
}

#[test]
fn a_start_on_a_healthy_host_writes_the_rules_and_nothing_else() {
    let (dir, kernel, process) = fixture();
    for new in every_mode().into_iter().filter(|new| new.name != name("wan")) {
        process.create(&new).unwrap();
        process.create_port(&port(new.name.as_str(), "web")).unwrap();
    }
    let before = kernel.picture();
    drop(process);
    let process = Process::start(dir.path(), &kernel);
    assert!(matches!(kernel.applied().as_slice(), [Action::ReplaceTables { .. }]));
    assert_eq!(kernel.picture(), before);
    process.assert_converged();
}

#[test]
fn a_host_that_was_rebooted_gets_everything_back() {
    let (dir, kernel, process) = fixture();
    for new in every_mode().into_iter().filter(|new| new.name != name("wan")) {
        process.create(&new).unwrap();
        process.create_port(&port(new.name.as_str(), "web")).unwrap();
    }
    let before = kernel.picture();
    drop(process);
    let fresh = host();
    let process = Process::start(dir.path(), &fresh);
    process.assert_converged();
    assert_eq!(fresh.picture(), before);
}

/// Shown under the name in it, it would be in the place of the other one, and its own record would outlive its delete.
#[test]
fn a_record_with_another_name_is_left_alone_and_named() {
    let (dir, kernel, process) = fixture();
    for at in ["lan", "dmz"] {
        process.create(&network(at, spec(Mode::Nat))).unwrap();
    }
    let store = &process.netd().0.store;
    let mut record = process.run(store.load::<serde_json::Value>(NETWORK)).unwrap().records.remove(0);
    assert_eq!(record.0, "dmz");
    record.1["name"] = "lan".into();
    process.run(store.commit(vec![Op::put(NETWORK, "dmz", &record.1).unwrap()])).unwrap();
    drop(process);
    let process = Process::start(dir.path(), &kernel);
    assert_eq!(process.netd().counts().0, 1);
    assert_eq!(process.netd().network(&name("lan")).unwrap().network.bridge, link("kvb-lan"));
    let warnings = process.netd().warnings();
    assert!(
        warnings.iter().any(|warning| warning.contains("`dmz`") && warning.contains("`lan`")),
        "{warnings:?}"
    );
    assert!(kernel.picture().links.contains_key(&link("kvb-dmz")), "its bridge is somebody's");
}
