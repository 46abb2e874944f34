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

/// How the groups of the machines of a vmd begin, by the one of a machine of that name.
fn mark(pid: u32, name: &str) -> String {
    let group = group_of(pid);
    let mark = group.strip_suffix(name).unwrap_or_default();
    let hex = mark.strip_prefix("vm-").and_then(|rest| rest.strip_suffix('-')).unwrap_or_default();
    assert!(hex.len() == 8 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{group}");
    mark.to_owned()
}

/// Waits until vmd's group has exactly these beneath it, with so many processes: a vmd that has just begun tries what it
/// can have by a process of its own.
fn await_tree<N: AsRef<str>>(host: &TestHost, expected: &[(N, usize)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(name, count)| (name.as_ref().to_owned(), *count)).collect();
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
    let mark = mark(a, "a");
    let (leaf_a, leaf_b) = (format!("{mark}a"), format!("{mark}b"));
    assert_eq!(group_of(b), leaf_b);
    assert_eq!(group_of(host.vmd_pid()), "vmd");
    assert_eq!(group(&host).members(&leaf_a), Some(vec![a]));
    await_tree(&host, &[("vmd", 1), (&leaf_a, 1), (&leaf_b, 1)]);
    assert_eq!(group(&host).members("vmd"), Some(vec![host.vmd_pid()]));
    // Of QEMU's user it is not.
    let owner = fs::metadata(group(&host).folder().join(&leaf_a).join("cgroup.procs")).expect("group").uid();
    assert_eq!(owner, VMD_UID);
    assert_ne!(status(&host, "a")["uid"], owner);
    let told = layers(&status(&host, "a"));
    assert!(told["control-group"].0, "{told:?}");
    assert!(host.ok("host show").contains("control-group"));
    let (mut of_a, mut of_b) = (Helper::in_group(&host, &leaf_a), Helper::in_group(&host, &leaf_b));
    host.ok("vm stop a --force");
    of_a.assert_killed("a forced stop");
    assert!(of_b.runs(), "another machine's");
    assert_eq!(host.qemus(), [(b, "b".to_owned())]);
    await_tree(&host, &[("vmd", 1), (&leaf_b, 2)]);
    // QEMU ends by itself, and what it started does not.
    end(b);
    of_b.assert_killed("the end of QEMU");
    wait::until("the end", || (status(&host, "b")["state"] == "failed").then_some(()));
    await_tree(&host, &[("vmd", 1)]);
    host.ok("vm start b");
    assert_eq!(group_of(pid(&host, "b")), leaf_b);
    println!("control groups: 2 machines, 2 processes of theirs ended with them, 0 groups left");
}

/// What `host show` warns of.
fn warnings(host: &TestHost) -> String {
    host.ok_json("host show")["vmd"]["warnings"].to_string()
}

/// A start that is refused since something is in the machine's group.
fn assert_in_use(host: &TestHost, name: &str, pid: u32) {
    let refused = host.kvmctl(&["vm", "start", name]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for word in [pid.to_string().as_str(), "cgroup.kill"] {
        assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
}

#[test]
fn the_next_vmd_finds_the_groups_and_kills_only_what_a_run_that_is_over_has_left() {
    let Some(mut host) = host() else { return };
    let (a, b) = (start(&host, "a"), start(&host, "b"));
    let mark = mark(a, "a");
    let leaf = |name: &str| format!("{mark}{name}");
    host.ok("vm create c --network n");
    host.kill_vmd();
    let mut of_a = Helper::in_group(&host, &leaf("a"));
    // QEMU has ended, what it started has not.
    let mut of_b = Helper::in_group(&host, &leaf("b"));
    end(b);
    wait::until("the end of a QEMU", || (!fs::exists(format!("/proc/{b}")).expect("/proc")).then_some(()));
    // One has no run on record, one no record at all; the others are of other states and of nobody.
    let not_ours = [leaf("c"), leaf("ghost"), "vm-ffffffff-b".into(), "vm-b".into(), "other".into()];
    let mut unknown = not_ours.each_ref().map(|group| Helper::in_group(&host, group));
    fs::create_dir(group(&host).folder().join(leaf("empty"))).expect("group");
    host.start_vmd();
    of_b.assert_killed("the start of vmd");
    assert!(of_a.runs());
    let mut tree = vec![("vmd".to_owned(), 1), (leaf("a"), 2)];
    tree.extend(not_ours.iter().map(|group| (group.clone(), 1)));
    await_tree(&host, &tree);
    assert!(unknown.iter_mut().all(Helper::runs));
    let told = warnings(&host);
    for (group, helper) in not_ours.iter().zip(&unknown) {
        let named = told.contains(&format!("{group}` has processes {} ", helper.0.id()));
        assert_eq!(named, group.starts_with(&mark), "{group}: {told}");
    }
    assert_in_use(&host, "c", unknown[0].0.id());
    assert_eq!((pid(&host, "a"), status(&host, "a")["adopted"].clone()), (a, true.into()));
    host.ok("vm start b");
    host.ok("vm stop a --force");
    of_a.assert_killed("the stop of an adopted machine");
    host.ok("vm delete c");
    assert!(unknown.iter_mut().all(Helper::runs), "a delete kills nothing either");
    println!("control groups: 1 found again, 1 of a run that was over ended, {} left alone", unknown.len());
}

/// Somebody starts vmd with a state that does not know what runs: a new one, twice, and one out of a backup.
#[test]
fn a_vmd_with_another_state_or_an_old_one_kills_no_guest() {
    let Some(mut host) = host() else { return };
    host.ok("vm create a --network n");
    let b = start(&host, "b");
    let state = host.path("vmd-state");
    let shell = |words: String| {
        let done = Command::new("sh").args(["-euc", &words]).status().expect("sh");
        assert!(done.success(), "{words}");
    };
    host.kill_vmd();
    shell(format!("cp -a {state} {state}.old"));
    host.start_vmd();
    host.ok("vm stop b --force");
    // Of a the old state has no run, of b one that is over.
    for name in ["a", "b"] {
        host.ok(&format!("vm start {name}"));
    }
    let pids = ["a", "b"].map(|name| pid(&host, name));
    assert_ne!(pids[1], b);
    let groups = pids.map(group_of);
    let mut tree = vec![("vmd".to_owned(), 1)];
    tree.extend(groups.iter().map(|group| (group.clone(), 1)));
    host.kill_vmd();
    shell(format!("mv {state} {state}.now; cp -a {state}.old {state}; rm -rf {state}/*"));
    for _ in 0..2 {
        host.start_vmd();
        await_tree(&host, &tree);
        assert!(!warnings(&host).contains("has processes"), "of another state");
        host.kill_vmd();
    }
    shell(format!("rm -rf {state}; cp -a {state}.old {state}"));
    host.start_vmd();
    await_tree(&host, &tree);
    // Of b once its run, which is over, has been cleared away.
    wait::until("both groups to be named", || {
        let told = warnings(&host);
        let named = |(pid, group): (&u32, &String)| told.contains(&format!("{group}` has processes {pid} "));
        pids.iter().zip(&groups).all(named).then_some(())
    });
    for (name, pid) in ["a", "b"].into_iter().zip(&pids) {
        assert_in_use(&host, name, *pid);
        assert_eq!(status(&host, name)["pid"], Value::Null, "{name}");
    }
    await_tree(&host, &tree);
    host.kill_vmd();
    shell(format!("rm -rf {state}; mv {state}.now {state}"));
    host.start_vmd();
    assert_eq!(["a", "b"].map(|name| pid(&host, name)), pids);
    println!("control groups: 2 guests, 3 starts of vmd with states that do not know them, 0 killed");
}

#[test]
fn a_group_with_processes_that_nobody_knows_is_not_taken_over() {
    let Some(host) = host() else { return };
    let leaf = group_of(start(&host, "a"));
    host.ok("vm stop a --force");
    let mut unknown = Helper::in_group(&host, &leaf);
    assert_in_use(&host, "a", unknown.0.id());
    assert!(unknown.runs());
    assert_eq!(host.machines(), Vec::<u32>::new());
    assert_eq!(host.ok_json("port list"), Value::Array(Vec::new()));
    assert!(warnings(&host).contains(&leaf));
    drop(unknown);
    host.ok("vm start a");
    assert_eq!((group_of(pid(&host, "a")), warnings(&host).contains(&leaf)), (leaf, false));
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
    let leaf = format!("{}a", mark(a, "a"));
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
    assert_eq!(group_of(pid(&host, "a")), leaf);
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
    let (a, b) = (start(&host, "a"), start(&host, "b"));
    let leaf = group_of(a);
    let limit = group(&host).folder().join(&leaf).join("memory.max");
    let given: u64 = fs::read_to_string(&limit).expect("limit").trim().parse().expect("bytes");
    println!("memory.max of a machine of 512 MiB: {given}");
    fs::write(&limit, (64 << 20).to_string()).expect("limit");
    let mut glutton = Command::new("sh");
    let glutton = glutton.args(["-c", "read go; head -c 200M /dev/zero | tail"]).stdin(Stdio::piped());
    let mut glutton = glutton.stdout(Stdio::null()).spawn().expect("sh");
    group(&host).put(&leaf, glutton.id());
    drop(glutton.stdin.take());
    let _ = glutton.wait();
    wait::until("the end", || (status(&host, "a")["state"] == "failed").then_some(()));
    let reason = status(&host, "a")["exit_reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!(reason, "out of memory, by its limit of 64 MiB");
    assert_eq!((pid(&host, "b"), status(&host, "b")["state"].clone()), (b, "running".into()));
}
