//! A QEMU that hangs, dies, cannot be ended or is replaced, and a netd that does not answer.

use integration_tests::{
    host::{TestHost, VMD_UID},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Beyond the period of probes and the deadline of one.
const LONG: Duration = Duration::from_secs(12);

fn fake(manner: &str) -> TestHost {
    let mut host = TestHost::new();
    host.fake_qemu(manner);
    host.add_vmd();
    host
}

fn status(host: &TestHost, name: &str) -> Value {
    host.ok_json(&format!("vm show {name}"))["status"].clone()
}

fn pid(host: &TestHost, name: &str) -> u32 {
    u32::try_from(status(host, name)["pid"].as_u64().expect("pid")).expect("pid")
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("pid");
    kill_process(pid, signal).expect("signal");
}

fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn warnings(host: &TestHost, name: &str) -> String {
    status(host, name)["warnings"].to_string()
}

/// An empty image that vmd may write to.
fn image(host: &TestHost, name: &str, bytes: u64) -> String {
    let path = host.path(name);
    fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("image");
    chown(&path, Some(VMD_UID), Some(VMD_UID)).expect("chown");
    path
}

#[test]
fn a_stopped_qemu_is_unresponsive_others_are_not_and_it_comes_back() {
    let host = TestHost::with_vmd();
    for name in ["a", "b"] {
        host.ok(&format!("vm run {name} --memory 64M"));
    }
    let (a, b) = (pid(&host, "a"), pid(&host, "b"));
    signal(b, Signal::STOP);
    let begin = Instant::now();
    wait::until("b to be unresponsive", || (status(&host, "b")["unresponsive"] == true).then_some(()));
    println!("a stopped QEMU is unresponsive after {:?}", begin.elapsed());
    let shown = host.ok("vm show b");
    assert!(shown.contains("unresponsive since") && shown.contains("did not answer"), "{shown}");
    for request in ["vm pause a", "vm resume a"] {
        host.ok(request);
    }
    assert_eq!(status(&host, "a")["unresponsive"], false);
    signal(b, Signal::CONT);
    wait::until("b to be back", || (status(&host, "b")["unresponsive"] == false).then_some(()));
    host.ok("vm pause b");
    signal(b, Signal::STOP);
    host.ok("vm stop b --force");
    assert!(state_of(b).is_none_or(|state| state == 'Z'), "it lives");

    // As when the host is suspended: vmd and the machine stand still together, and go on together.
    let mentions = |host: &TestHost| host.logs().matches("is unresponsive").count();
    let before = mentions(&host);
    for pid in [host.vmd_pid(), a] {
        signal(pid, Signal::STOP);
    }
    let begin = Instant::now();
    wait::until("a long time", || (begin.elapsed() > LONG).then_some(()));
    for pid in [host.vmd_pid(), a] {
        signal(pid, Signal::CONT);
    }
    for request in ["vm pause a", "vm resume a"] {
        host.ok(request);
    }
    assert_eq!(status(&host, "a")["unresponsive"], false);
    assert_eq!(mentions(&host), before, "it was taken for unresponsive");
    assert_eq!(pid(&host, "a"), a);
    // Firmware does not listen to the power button.
    host.ok("vm stop a --timeout 3s");
    assert!(
        status(&host, "a")["exit_reason"]
            .as_str()
            .is_some_and(|why| why.contains("did not shut down in time"))
    );
}

#[test]
fn a_qemu_that_is_killed_is_failed_within_a_second() {
    let host = fake("ok");
    host.ok("vm run web");
    let qemu = pid(&host, "web");
    let begin = Instant::now();
    signal(qemu, Signal::KILL);
    wait::until("FAILED", || (status(&host, "web")["state"] == "failed").then_some(()));
    let taken = begin.elapsed();
    println!("a killed QEMU is seen after {taken:?}");
    assert!(taken < Duration::from_secs(1), "{taken:?}");
    assert!(status(&host, "web")["error"].as_str().is_some_and(|error| error.contains("signal 9")));
}

/// A control group in which processes stand still in the kernel and die only when they are let go.
struct Freezer(PathBuf);

impl Freezer {
    /// `None` where there is no freezer of version 1; one of version 2 lets SIGKILL through.
    fn with(pid: u32) -> Option<Self> {
        let path = Path::new("/sys/fs/cgroup/freezer").join(format!("kvt-{}-{pid}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let freezer = Self(path);
        fs::write(freezer.0.join("cgroup.procs"), pid.to_string()).ok()?;
        freezer.set("FROZEN");
        wait::until("it to freeze", || {
            let state = fs::read_to_string(freezer.0.join("freezer.state")).expect("freezer");
            (state.trim() == "FROZEN").then_some(())
        });
        Some(freezer)
    }

    fn set(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).expect("freezer");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        wait::until("the freezer to be empty", || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_qemu_that_does_not_die_stays_recorded_until_it_does() {
    let mut host = fake("ok");
    host.ok("network create n --mode isolated");
    host.ok("vm run web --network n");
    let qemu = pid(&host, "web");
    let Some(freezer) = Freezer::with(qemu) else {
        println!("SKIPPED: this host has no freezer of control groups version 1");
        return;
    };
    let refused = host.kvmctl(&["vm", "stop", "web", "--force"]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("does not end") && refused.stderr.contains("kernel"),
        "{}",
        refused.stderr
    );
    let shown = host.ok("vm show web");
    assert!(shown.contains("stopping") && shown.contains("does not end"), "{shown}");
    assert_eq!(pid(&host, "web"), qemu);
    assert_ne!(host.kvmctl(&["vm", "delete", "web"]).code, 0, "it was deleted under its process");
    assert_ne!(host.kvmctl(&["vm", "start", "web"]).code, 0, "it was started twice");
    assert_eq!(host.ok_json("port list").as_array().map(Vec::len), Some(1), "its port is in use");
    // It is still recorded.
    host.kill_vmd();
    host.start_vmd();
    assert_eq!(pid(&host, "web"), qemu);
    assert_ne!(host.kvmctl(&["vm", "stop", "web", "--force"]).code, 0);
    drop(freezer);
    wait::until("the end", || (status(&host, "web")["state"] == "stopped").then_some(()));
    assert!(!warnings(&host, "web").contains("does not end"));
    wait::until("its port to go", || (host.ok_json("port list") == serde_json::json!([])).then_some(()));
    host.ok("vm start web");
    host.ok("vm stop web --force");
}

#[test]
fn a_child_that_cannot_be_held_leaves_no_zombie() {
    let host = fake("ok");
    host.ok("vm create web");
    // So that vmd has asked QEMU and the host all that it wants to know.
    host.ok("vm start web");
    host.ok("vm stop web --force");
    let vmd = host.vmd_pid();
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=pidfd_open",
            "-e",
            "inject=pidfd_open:error=EMFILE",
        ])
        .args(["-p", &vmd.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .expect("strace");
    let traced = || {
        fs::read_dir(format!("/proc/{vmd}/task")).expect("threads").flatten().all(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
    };
    wait::until("strace", || traced().then_some(()));
    let refused = host.kvmctl(&["vm", "start", "web"]);
    let children = || {
        fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?.to_owned();
            (fields.next()? == vmd.to_string()).then_some(state)
        })
    };
    let left: Vec<String> = children().collect();
    signal(strace.id(), Signal::INT);
    let _ = strace.wait();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("lost the process"), "{}", refused.stderr);
    assert!(left.is_empty(), "children are left: {left:?}");
    host.ok("vm start web");
    host.ok("vm stop web --force");
}

#[test]
fn two_machines_do_not_write_to_one_image_and_a_running_one_keeps_its_own() {
    let host = fake("ok");
    let disk = image(&host, "disk.img", 1 << 20);
    host.ok(&format!("vm create a --disk {disk},format=raw"));
    host.ok(&format!("vm create b --disk {disk},format=raw"));
    host.ok("vm start a");
    let refused = host.kvmctl(&["vm", "start", "b"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("in use by machine `a`"), "{}", refused.stderr);
    // By another name it is the same.
    let other = host.path("other.img");
    fs::hard_link(&disk, &other).expect("link");
    host.ok(&format!("vm create c --disk {other},format=raw"));
    assert!(host.kvmctl(&["vm", "start", "c"]).stderr.contains("in use by machine `a`"));
    // A new file of the old name is another image, and the old one is still the machine's.
    fs::remove_file(&disk).expect("remove");
    assert!(host.kvmctl(&["vm", "start", "b"]).stderr.contains("disk.img"));
    assert_eq!(status(&host, "a")["state"], "running");
    image(&host, "disk.img", 1 << 20);
    host.ok("vm start b");
    host.ok("vm stop a --force");
    host.ok("vm start c");
    for name in ["b", "c"] {
        host.ok(&format!("vm stop {name} --force"));
    }
}

#[test]
fn a_qemu_that_is_replaced_under_a_running_machine_is_shown() {
    let host = fake("ok");
    host.ok("vm run web");
    assert!(!warnings(&host, "web").contains("replaced"));
    let script = host.path("new");
    fs::write(&script, "#!/bin/sh\necho QEMU emulator version 99.0\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    fs::rename(&script, host.path("fake-qemu")).expect("replace");
    let told = wait::until("both versions", || {
        let told = warnings(&host, "web");
        told.contains("99.0").then_some(told)
    });
    assert!(told.contains("7.2.0 (fake)"), "{told}");
    assert_eq!(status(&host, "web")["state"], "running");
    host.ok("vm stop web --force");
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended_when_its_time_is_over() {
    let host = fake("deaf");
    host.ok("vm run web");
    host.ok("vm stop web --timeout 1s");
    let reason = status(&host, "web")["exit_reason"].as_str().expect("reason").to_owned();
    assert!(reason.contains("did not shut down in time"), "{reason}");
}

#[test]
fn a_netd_that_hangs_fails_the_start_and_no_port_of_it_is_left() {
    let host = fake("ok");
    host.ok("network create n --mode isolated");
    for name in ["old", "new"] {
        host.ok(&format!("vm create {name} --network n"));
    }
    host.ok("vm start old");
    signal(host.netd_pid(), Signal::STOP);
    let begin = Instant::now();
    let refused = host.kvmctl(&["vm", "start", "new"]);
    println!("a start without netd failed after {:?}", begin.elapsed());
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("netd"), "{}", refused.stderr);
    // Those that run do not care, and stop.
    for request in ["vm pause old", "vm resume old"] {
        host.ok(request);
    }
    assert_eq!(status(&host, "new")["state"], "failed");
    assert!(status(&host, "new")["error"].as_str().is_some_and(|error| error.contains("netd")));
    host.ok("vm stop old --force");
    signal(host.netd_pid(), Signal::CONT);
    // What netd made after all, too late, is collected, as is what it was not asked to delete in time.
    wait::until("no port", || (host.ok_json("port list") == serde_json::json!([])).then_some(()));
    host.ok("vm start new");
    let ports = host.ok_json("port list");
    assert_eq!(ports.as_array().map(Vec::len), Some(1), "{ports}");
    host.ok("vm stop new --force");
    wait::until("no port", || (host.ok_json("port list") == serde_json::json!([])).then_some(()));
}
