//! Ports that change while a guest is on them.

use super::*;
use crate::kernel::Element;

fn change() -> PortChange {
    PortChange {
        filter: Some(false),
        isolated: Some(true),
        extra: Some([[10, 1, 0, 77].into()].into()),
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
