//! Groups: their changes are whole or not at all, and their records are what the kernel is brought to.

use super::*;
use crate::model::{Allowance, Direction, Group, GroupSpec, IpProtocol, Remote, Rule};

fn rule(port: u16, remote: Remote) -> Rule {
    let allows =
        Allowance { direction: Direction::In, protocol: IpProtocol::Tcp, ports: Some((port, port)), remote };
    Rule { id: String::new(), allows }
}

fn group(text: &str, rules: Vec<Rule>) -> NewGroup {
    NewGroup {
        name: name(text),
        spec: GroupSpec { deny_in: true, deny_out: false, rules },
        labels: BTreeMap::new(),
    }
}

fn in_groups(text: &str, groups: &[&str]) -> NewPort {
    let plain = port("lan", text);
    let groups = groups.iter().map(|text| name(text)).collect();
    NewPort { spec: PortSpec { groups, ..plain.spec }, ..plain }
}

/// A nat network with a port in a group, whose rule names another group.
fn prepare(process: &Process) {
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    process.run(process.netd().create_group(group("web", vec![]))).unwrap();
    let rules = vec![rule(22, Remote::Any), rule(80, Remote::Group(name("web")))];
    process.run(process.netd().create_group(group("db", rules))).unwrap();
    process.create_port(&in_groups("db", &["db"])).unwrap();
}

fn groups_on_disk(process: &Process) -> Vec<(String, Group)> {
    process.run(process.netd().0.store.load(GROUP)).unwrap().records
}

/// What the tests change of a group: a rule goes, another comes, and the other default.
fn change(process: &Process) -> GroupChange {
    let kept = process.netd().group(&name("db")).unwrap().group.rules[1].clone();
    let rules = Some(vec![kept, rule(443, Remote::Any)]);
    GroupChange { rules, deny_out: Some(true), ..GroupChange::default() }
}

fn update(process: &Process) -> Result<GroupView, Fault> {
    process.run(process.netd().update_group(name("db"), change(process)))
}

#[test]
fn a_change_that_is_refused_changes_nothing_and_can_be_repeated() {
    let (_dir, kernel, process) = fixture();
    prepare(&process);
    let before = (kernel.picture(), groups_on_disk(&process));
    // In a small transaction and in a large one, so that putting everything right does not help.
    kernel.refuse(|action| match action {
        Action::ChangeElements { add: elements, .. } | Action::ReplaceTables { elements, .. } => {
            elements.0.iter().any(|element| format!("{element:?}").contains("443"))
        }
        _ => false,
    });
    let fault = update(&process).expect_err("refused");
    assert!(fault.chain().contains("cannot change group `db`"), "{}", fault.chain());
    kernel.heal();
    process.converge();
    assert_eq!((kernel.picture(), groups_on_disk(&process)), before);
    let again = update(&process).unwrap().group;
    assert_eq!((again.generation, again.deny_out, again.rules.len()), (2, true, 2));
    assert_eq!(again.rules[0].id, before.1[0].1.rules[1].id, "a rule that stays keeps its id");
    assert_ne!(kernel.picture(), before.0);
    process.assert_converged();
}

#[test]
fn a_step_of_a_change_that_fails_is_made_good_or_taken_back() {
    let elements = |kernel: &FakeKernel| nameless(kernel.picture()).tables.expect("our tables").elements;
    let (_dir, kernel, process) = fixture();
    prepare(&process);
    let before = elements(&kernel);
    kernel.heal();
    update(&process).unwrap();
    let (most, whole) = (kernel.steps(), elements(&kernel));
    assert!(most >= 1 && before != whole);
    for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
        let (_dir, kernel, process) = fixture();
        prepare(&process);
        kernel.fail_at(step, effect);
        let wanted = if update(&process).is_ok() { &whole } else { &before };
        assert_eq!(elements(&kernel), *wanted, "step {step}, effect {effect:?}");
        kernel.heal();
        process.assert_converged();
    }
}

#[test]
fn a_change_that_was_recorded_is_finished_at_the_next_start() {
    for step in 0.. {
        for effect in EFFECTS {
            let (dir, kernel, process) = fixture();
            prepare(&process);
            kernel.hang_at(step, effect);
            let work = process.netd().update_group(name("db"), change(&process));
            if process.until_killed(work).is_some() {
                assert!(step >= 1, "no step was tried");
                return;
            }
            drop(process);
            let process = Process::start(dir.path(), &kernel);
            process.assert_converged();
            assert_eq!(process.netd().group(&name("db")).unwrap().group.generation, 2);
        }
    }
}

#[test]
fn a_port_in_a_group_that_fails_leaves_nothing_and_changes_no_other_port() {
    let (_dir, kernel, process) = fixture();
    prepare(&process);
    let before = kernel.picture();
    kernel.heal();
    // It is a member of a group that a rule of another port's group names.
    let new = in_groups("web", &["web"]);
    process.create_port(&new).unwrap();
    let (most, whole) = (kernel.steps(), kernel.picture());
    process.delete_port("lan", "web").unwrap();
    assert_eq!(kernel.picture(), before, "its address is out of the other port's rule again");
    for (step, effect) in (0..most).flat_map(|step| EFFECTS.map(|effect| (step, effect))) {
        let at = format!("step {step}, effect {effect:?}");
        kernel.fail_at(step, effect);
        if process.create_port(&new).is_err() {
            assert_eq!(kernel.picture(), before, "{at}");
            process.create_port(&new).expect(&at);
        }
        assert_eq!(kernel.picture(), whole, "{at}");
        process.assert_converged();
        process.delete_port("lan", "web").expect(&at);
    }
}

#[test]
fn a_port_moves_from_group_to_group_with_one_transaction() {
    let (_dir, kernel, process) = fixture();
    prepare(&process);
    process.create_port(&in_groups("a", &["web"])).unwrap();
    let move_to = |groups: &[&str]| {
        let groups = Some(groups.iter().map(|text| name(text)).collect());
        let change = PortChange { groups, ..PortChange::default() };
        process.run(process.netd().update_port(key("lan", "a"), change, 0))
    };
    let before = kernel.picture();
    let applied = kernel.applied().len();
    move_to(&["web", "db"]).unwrap();
    assert_eq!(kernel.applied().len(), applied + 1);
    process.assert_converged();
    assert_eq!(move_to(&["nobody"]).unwrap_err().reason(), "GROUP_NOT_FOUND");
    move_to(&["web"]).unwrap();
    assert_eq!(kernel.picture(), before);
    move_to(&[]).unwrap();
    process.assert_converged();
    process.delete_port("lan", "db").unwrap();
    for group in ["db", "web"] {
        process.run(process.netd().delete_group(name(group))).unwrap();
    }
    assert_eq!(groups_on_disk(&process), []);
}

#[test]
fn a_group_in_use_stays() {
    let (_dir, _kernel, process) = fixture();
    prepare(&process);
    let delete = |text| process.run(process.netd().delete_group(name(text)));
    let in_use = delete("db").unwrap_err();
    assert_eq!((in_use.kind(), in_use.reason()), (Kind::FailedPrecondition, "GROUP_IN_USE"));
    assert!(in_use.chain().contains("`db` of network `lan`"), "{}", in_use.chain());
    assert!(delete("web").unwrap_err().chain().contains("group `db`"));
    let stale = GroupChange { generation: Some(7), ..change(&process) };
    let fault = process.run(process.netd().update_group(name("db"), stale)).unwrap_err();
    assert_eq!(fault.kind(), Kind::Aborted);
    let foreign = Rule { id: "r-00000001".into(), ..rule(1, Remote::Any) };
    let change = GroupChange { rules: Some(vec![foreign]), ..GroupChange::default() };
    let fault = process.run(process.netd().update_group(name("db"), change)).unwrap_err();
    assert_eq!(fault.reason(), "INVALID_RULE_ID");
    process.assert_converged();
}

#[test]
fn a_port_whose_new_groups_nft_refuses_is_as_before() {
    let (_dir, kernel, process) = fixture();
    prepare(&process);
    process.create_port(&in_groups("a", &["web"])).unwrap();
    let before = kernel.picture();
    kernel.refuse(|action| match action {
        Action::ChangeElements { add: elements, .. } | Action::ReplaceTables { elements, .. } => {
            elements.0.iter().any(|element| format!("{element:?}") == r#"TapProfile("kvp-a", 1)"#)
        }
        _ => false,
    });
    let change = PortChange { groups: Some([name("db")].into()), ..PortChange::default() };
    process.run(process.netd().update_port(key("lan", "a"), change, 0)).expect_err("refused");
    kernel.heal();
    process.converge();
    assert_eq!(kernel.picture(), before);
    process.assert_converged();
}
