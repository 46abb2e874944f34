//! The gate in front of QEMU, with a shell in QEMU's place.

use std::{fs, os::fd::OwnedFd, path::Path};
use vmd::jail::Spec;
use vmd::qemu::{
    launch::{self, Gate, Launch},
    process::{Exit, Process},
};

/// A child that will write down what it is in `report`.
fn spawn(folder: &Path, report: &Path) -> (Process, Gate) {
    // `exec`, since a shell keeps a copy of what it redirects for less than good.
    let script =
        "exec >\"$0\"; echo /proc/self/fd/*; grep NoNewPrivs /proc/self/status; ulimit -c; umask; pwd";
    let args = ["-c".to_owned(), script.to_owned(), report.to_str().expect("UTF-8").to_owned()];
    let open = || OwnedFd::from(fs::File::open("/dev/null").expect("/dev/null"));
    let launch = Launch {
        launcher: Path::new(env!("CARGO_BIN_EXE_vmd")),
        binary: Path::new("/bin/sh"),
        args: &args,
        folder,
        stderr: open(),
        jail: Spec::default(),
        files: Vec::new(),
    };
    let (pid, gate) = launch::spawn(launch, vec![open(), open()]).expect("spawn");
    (Process::open(pid).expect("pidfd"), gate)
}

#[tokio::test]
async fn a_child_whose_vmd_dies_never_becomes_qemu() {
    let dir = tempfile::tempdir().expect("folder");
    let report = dir.path().join("report");
    let (process, gate) = spawn(dir.path(), &report);
    drop(gate);
    assert_eq!(process.exited().await, Exit::Code(127));
    assert!(!report.exists());
}

#[tokio::test]
async fn a_child_that_is_let_go_has_what_it_was_given_and_nothing_else() {
    let dir = tempfile::tempdir().expect("folder");
    let report = dir.path().join("report");
    // Not close-on-exec, as a careless library might leave it.
    let leak = fs::File::open("/dev/null").expect("/dev/null");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("flag");
    let (process, mut gate) = spawn(dir.path(), &report);
    gate.ready().await.expect("at the gate");
    gate.release().expect("release");
    assert_eq!(process.exited().await, Exit::Code(0));
    let report = fs::read_to_string(report).expect("report");
    let lines: Vec<&str> = report.lines().collect();
    // Descriptor 3 was the gate; the shell's own listing opens it again.
    assert_eq!(
        lines[0].replace(" /proc/self/fd/3", ""),
        "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/4 /proc/self/fd/5"
    );
    assert_eq!(lines[1].split_whitespace().last(), Some("1"), "{report}");
    assert_eq!(lines[2], "0", "core limit");
    assert_eq!(lines[3], "0077", "umask");
    assert_eq!(Path::new(lines[4]), dir.path().canonicalize().expect("path"));
}
