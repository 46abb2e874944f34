//! Records that cannot be read: what they stand for stays in the kernel, and everything else goes on.

use super::*;

/// Every sort of object: two networks with ports, a group and a forward.
fn peopled() -> (TempDir, FakeKernel, Process) {
    let (dir, kernel, process) = fixture();
    for net in ["lan", "other"] {
        process.create(&network(net, spec(Mode::Nat))).unwrap();
        for guest in ["a", "web"] {
            process.create_port(&port(net, guest)).unwrap();
        }
    }
    process.create(&network("lab", spec(Mode::Isolated))).unwrap();
    (dir, kernel, process)
}

/// Makes records unreadable, as a newer version would, and starts anew.
fn restart_without(
    (dir, kernel, process): (TempDir, FakeKernel, Process),
    broken: &[(&'static str, &str)],
) -> (TempDir, FakeKernel, Process) {
    let ops = broken.iter().map(|(kind, id)| Op::put(kind, *id, &"of a later version").unwrap()).collect();
    process.run(process.netd().0.store.commit(ops)).unwrap();
    drop(process);
    let process = Process::start(dir.path(), &kernel);
    (dir, kernel, process)
}

#[test]
fn what_a_record_that_cannot_be_read_stands_for_is_left_as_it_is() {
    let cases: [&[(&str, &str)]; 5] = [
        &[(NETWORK, "lan")],
        &[(NETWORK, "lan"), (NETWORK, "other"), (NETWORK, "lab")],
        &[(PORT, "networks/lan/ports/a")],
        &[(PORT, "networks/lan/ports/a"), (PORT, "networks/lan/ports/web"), (NETWORK, "lan")],
        &[(SYSCTL, FORWARD4), (NETWORK, "other")],
    ];
    for broken in cases {
        let before = peopled();
        let picture = before.1.picture();
        let (_dir, kernel, process) = restart_without(before, broken);
        assert_eq!(kernel.picture(), picture, "{broken:?}");
        process.converge();
        assert_eq!(kernel.picture(), picture, "{broken:?}: at the second look");
        let warnings = process.netd().warnings();
        for (kind, id) in broken {
            let about = format!("the record {kind} `{id}` cannot be read");
            let warning = warnings.iter().find(|warning| warning.contains(&about)).expect("a warning");
            assert!(warning.contains(&format!("--forget '{kind} {id}'")), "{warning}");
        }
    }
    println!("{} sets of broken records: 0 changes of the kernel", cases.len());
}

#[test]
fn the_other_objects_go_on_and_the_name_stays_taken() {
    let (_dir, kernel, process) =
        restart_without(peopled(), &[(NETWORK, "lan"), (PORT, "networks/other/ports/a")]);
    for refused in [
        process.create(&network("lan", spec(Mode::Isolated))).unwrap_err(),
        process.create_port(&port("other", "a")).unwrap_err(),
        process.create_port(&port("lan", "c")).unwrap_err(),
        process.delete("lan", true).unwrap_err(),
        process.delete_port("other", "a").unwrap_err(),
    ] {
        assert_eq!(refused.reason(), "BROKEN_RECORD", "{}", refused.chain());
        assert!(refused.hints()[0].contains("--forget"), "{:?}", refused.hints());
    }
    // Nobody gets the address of the guest whose record is damaged.
    let other = process.netd().network(&name("other")).unwrap().network;
    let held = process.netd().read().desired.kept_addresses(&other);
    let held: Vec<_> = held.iter().filter_map(|kept| kept.ipv4).collect();
    let new = process.create_port(&port("other", "c")).unwrap();
    assert!(held.len() == 1 && !held.contains(&new.port.ipv4.unwrap()), "{held:?}");
    let picture = kernel.picture();
    let third = process.create(&network("third", spec(Mode::Routed))).unwrap();
    assert_eq!(third.state, State::Ready);
    process.create_port(&port("third", "a")).unwrap();
    process.delete("third", true).unwrap();
    assert_eq!(kernel.picture(), picture);
    process.delete_port("other", "c").unwrap();
    process.delete_port("other", "web").unwrap();
    assert!(kernel.picture().links.contains_key(&link("kvp-a")), "{:?}", kernel.picture().links.keys());
}
