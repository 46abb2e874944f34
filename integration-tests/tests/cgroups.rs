//! Each machine has a control group of its own: what is in it ends with the machine, also over the end of vmd.

use integration_tests::{
    group::Group,
    host::{TestHost, VMD_UID},
    wait,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    process::{Child, Command, Stdio},
};

/// A host whose vmd was given a control group, with a network and a QEMU that is quick; `None` on a machine that has no
/// cgroup v2.
fn host() -> Option<TestHost> {
    let mut host = TestHost::new();
    host.ok("network create n --mode isolated");
    host.fake_qemu("ok");
    host.add_vmd();
    if host.group.is_none() {
        println!("SKIPPED: this machine has no cgroup v2 that root may write to");
        return None;
    }
    Some(host)
}

fn group(host: &TestHost) -> &Group {
    host.group.as_ref().expect("a group")
}

/// A process that does nothing, as one would be that QEMU had started.
struct Helper(Child);

impl Helper {
    fn in_group(host: &TestHost, name: &str) -> Self {
        let mut cat = Command::new("cat");
        let helper = Self(cat.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat"));
        group(host).put(name, helper.0.id());
        helper
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("cat").is_none()
    }

    /// Waits until it was killed.
    fn assert_killed(&mut self, why: &str) {
        let status = wait::until(why, || self.0.try_wait().expect("cat"));
        assert_eq!(status.signal(), Some(9), "{why}");
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(host: &TestHost, name: &str) -> u32 {
    host.ok(&format!("vm create {name} --network n"));
    host.ok(&format!("vm start {name}"));
    pid(host, name)
}

fn status(host: &TestHost, name: &str) -> Value {
    host.ok_json(&format!("vm show {name}"))["status"].clone()
}

fn pid(host: &TestHost, name: &str) -> u32 {
    status(host, name)["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("pid")
}

/// The group of a process, by the kernel.
fn group_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("process");
    let line = text.lines().find_map(|line| line.strip_prefix("0::")).expect("cgroup v2");
    line.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Waits until vmd's group has exactly these beneath it, with so many processes: a vmd that has just begun tries what it
/// can have by a process of its own.
fn await_tree(host: &TestHost, expected: &[(&str, usize)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let mut tree = BTreeMap::new();
    let same = wait::try_until(wait::PATIENCE, || {
        tree = group(host).tree();
        (tree == expected).then_some(())
    });
    assert!(same.is_some(), "{tree:?} is not {expected:?}");
}

/// Each layer with whether it holds, and why not.
fn layers(of: &Value) -> BTreeMap<String, (bool, String)> {
    let text = |layer: &Value, key: &str| layer[key].as_str().unwrap_or_default().to_owned();
    let layers = of["containment"].as_array().expect("containment").iter();
    layers.map(|layer| (text(layer, "layer"), (layer["holds"] == true, text(layer, "reason")))).collect()
}

fn end(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

#[test]
fn all_that_is_in_a_machines_group_ends_with_it() {
    let Some(host) = host() else { return };
    let (a, b) = (start(&host, "a"), start(&host, "b"));
    assert_eq!((group_of(a), group_of(b)), ("vm-a".into(), "vm-b".into()));
    assert_eq!(group_of(host.vmd_pid()), "vmd");
    assert_eq!(group(&host).members("vm-a"), Some(vec![a]));
    await_tree(&host, &[("vmd", 1), ("vm-a", 1), ("vm-b", 1)]);
    assert_eq!(group(&host).members("vmd"), Some(vec![host.vmd_pid()]));
    // Of QEMU's user it is not.
    let owner = fs::metadata(group(&host).folder().join("vm-a/cgroup.procs")).expect("group").uid();
    assert_eq!(owner, VMD_UID);
    assert_ne!(status(&host, "a")["uid"], owner);
    let told = layers(&status(&host, "a"));
    assert!(told["control-group"].0, "{told:?}");
    assert!(host.ok("host show").contains("control-group"));
    let (mut of_a, mut of_b) = (Helper::in_group(&host, "vm-a"), Helper::in_group(&host, "vm-b"));
    host.ok("vm stop a --force");
    of_a.assert_killed("a forced stop");
    assert!(of_b.runs(), "another machine's");
    assert_eq!(host.qemus(), [(b, "b".to_owned())]);
    await_tree(&host, &[("vmd", 1), ("vm-b", 2)]);
    // QEMU ends by itself, and what it started does not.
    end(b);
    of_b.assert_killed("the end of QEMU");
    wait::until("the end", || (status(&host, "b")["state"] == "failed").then_some(()));
    await_tree(&host, &[("vmd", 1)]);
    host.ok("vm start b");
    assert_eq!(group_of(pid(&host, "b")), "vm-b");
    println!("control groups: 2 machines, 2 processes of theirs ended with them, 0 groups left");
}

#[test]
fn the_next_vmd_finds_the_groups_and_ends_those_of_no_machine() {
    let Some(mut host) = host() else { return };
    let (a, b) = (start(&host, "a"), start(&host, "b"));
    host.ok("vm create c --network n");
    host.kill_vmd();
    let mut of_a = Helper::in_group(&host, "vm-a");
    // QEMU has ended, what it started has not; one was never started, one is not recorded, one is not ours.
    let mut over = ["vm-b", "vm-c", "vm-ghost"].map(|name| Helper::in_group(&host, name));
    let mut other = Helper::in_group(&host, "other");
    end(b);
    wait::until("the end of a QEMU", || (!fs::exists(format!("/proc/{b}")).expect("/proc")).then_some(()));
    host.start_vmd();
    for helper in &mut over {
        helper.assert_killed("the start of vmd");
    }
    assert!(of_a.runs() && other.runs());
    await_tree(&host, &[("vmd", 1), ("vm-a", 2), ("other", 1)]);
    assert_eq!((pid(&host, "a"), status(&host, "a")["adopted"].clone()), (a, true.into()));
    host.ok("vm stop a --force");
    of_a.assert_killed("the stop of an adopted machine");
    assert_eq!(group(&host).machines().len(), 0);
    println!("control groups: 1 found again, {} of no machine ended, 1 of others left alone", over.len());
}

#[test]
fn a_group_with_processes_that_nobody_knows_is_not_taken_over() {
    let Some(host) = host() else { return };
    let mut unknown = Helper::in_group(&host, "vm-a");
    host.ok("vm create a --network n");
    let refused = host.kvmctl(&["vm", "start", "a"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for word in [unknown.0.id().to_string().as_str(), "cgroup.kill"] {
        assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
    assert!(unknown.runs());
    assert_eq!(host.machines(), Vec::<u32>::new());
    assert_eq!(host.ok_json("port list"), Value::Array(Vec::new()));
    drop(unknown);
    host.ok("vm start a");
    assert_eq!(group_of(pid(&host, "a")), "vm-a");
}

#[test]
fn a_vmd_that_was_given_no_group_says_so_and_may_insist() {
    let Some(mut host) = host() else { return };
    host.kill_vmd();
    host.vmd_starts_in = None;
    host.vmd_arguments = vec!["--require-containment".into()];
    host.start_vmd();
    host.ok("vm create a --network n");
    let refused = host.kvmctl(&["vm", "start", "a"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for word in ["control group", "--require-containment", "Delegate="] {
        assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
    assert_eq!(group(&host).machines().len(), 0);
    // What it does not insist on it does without.
    host.kill_vmd();
    host.vmd_arguments.clear();
    host.start_vmd();
    host.ok("vm start a");
    let (holds, why) = layers(&status(&host, "a"))["control-group"].clone();
    assert!(!holds && !why.is_empty(), "{why}");
    host.ok("vm stop a --force");
    // With a group it starts, also where the kernel has nothing to limit memory with.
    host.kill_vmd();
    host.vmd_starts_in = Some("vmd");
    host.vmd_arguments = vec!["--require-containment".into()];
    host.start_vmd();
    host.ok("vm start a");
    let told = layers(&status(&host, "a"));
    for (layer, controller) in [("memory", "memory"), ("cpu", "cpu"), ("processes", "pids")] {
        let (holds, why) = &told[layer];
        assert_eq!(*holds, group(&host).controls(controller), "{layer}: {why}");
        assert!(*holds || why.contains(controller), "{layer}: {why}");
        println!("{layer}: {}, {why}", if *holds { "holds" } else { "does not" });
    }
}

#[test]
fn a_vmd_that_was_started_in_the_group_itself_gives_no_limits_unless_told_to() {
    let Some(mut host) = host() else { return };
    host.kill_vmd();
    host.vmd_starts_in = Some("");
    host.start_vmd();
    let a = start(&host, "a");
    assert_eq!(group_of(a), "vm-a");
    let control = || fs::read_to_string(group(&host).folder().join("cgroup.subtree_control")).expect("group");
    assert_eq!(control(), "");
    assert_eq!(group(&host).members("vmd"), Some(Vec::new()));
    let memory = layers(&host.ok_json("host show")["vmd"])["memory"].clone();
    let why = if group(&host).controls("memory") { "started in" } else { "no memory controller" };
    assert!(!memory.0 && memory.1.contains(why), "{memory:?}");
    host.kill_vmd();
    host.vmd_arguments = vec!["--cgroup".into(), group(&host).seen()];
    host.start_vmd();
    assert_eq!(pid(&host, "a"), a);
    assert_eq!(group_of(host.vmd_pid()), "vmd");
    host.ok("vm stop a --force");
    host.ok("vm start a");
    assert_eq!(group_of(pid(&host, "a")), "vm-a");
    // A name that is of no use costs the layer, and nothing else.
    host.kill_vmd();
    host.vmd_arguments = vec!["--cgroup".into(), "/nowhere".into()];
    host.start_vmd();
    let (holds, why) = layers(&host.ok_json("host show")["vmd"])["control-group"].clone();
    assert!(!holds && why.contains("/nowhere"), "{why}");
    host.ok("vm stop a --force");
    assert_eq!(group(&host).machines().len(), 0);
}

#[test]
fn a_machine_that_needs_more_memory_than_its_limit_ends_alone() {
    let Some(host) = host() else { return };
    if !group(&host).controls("memory") {
        println!("SKIPPED: cgroup v2 of this machine has no memory controller");
        return;
    }
    let (_, b) = (start(&host, "a"), start(&host, "b"));
    let limit = group(&host).folder().join("vm-a/memory.max");
    let given: u64 = fs::read_to_string(&limit).expect("limit").trim().parse().expect("bytes");
    println!("memory.max of a machine of 512 MiB: {given}");
    fs::write(&limit, (64 << 20).to_string()).expect("limit");
    let mut glutton = Command::new("sh");
    let glutton = glutton.args(["-c", "read go; head -c 200M /dev/zero | tail"]).stdin(Stdio::piped());
    let mut glutton = glutton.stdout(Stdio::null()).spawn().expect("sh");
    group(&host).put("vm-a", glutton.id());
    drop(glutton.stdin.take());
    let _ = glutton.wait();
    wait::until("the end", || (status(&host, "a")["state"] == "failed").then_some(()));
    let reason = status(&host, "a")["exit_reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!(reason, "out of memory, by its limit of 64 MiB");
    assert_eq!((pid(&host, "b"), status(&host, "b")["state"].clone()), (b, "running".into()));
}
