//! The program as a whole, without guests.

use std::{
    fs,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

#[test]
fn it_may_open_as_many_files_as_the_system_allows() {
    let dir = tempfile::tempdir().expect("folder");
    let path = |name: &str| dir.path().join(name);
    let mut vmd = Command::new("sh")
        .args(["-c", "ulimit -Sn 256; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_vmd"), "--socket"])
        .arg(path("s"))
        .arg("--state-dir")
        .arg(path("state"))
        .arg("--run-dir")
        .arg(path("run"))
        // Tests run as root.
        .arg("--allow-root")
        .stderr(Stdio::null())
        .spawn()
        .expect("vmd");
    // The limit is raised before the socket is there.
    while UnixStream::connect(path("s")).is_err() {
        assert_eq!(vmd.try_wait().expect("vmd"), None, "it ended");
        std::thread::yield_now();
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", vmd.id()));
    vmd.kill().expect("kill");
    vmd.wait().expect("wait");
    let limits = limits.expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("line");
    let [soft, hard] = [3, 4].map(|field| line.split_whitespace().nth(field));
    assert_eq!(soft, hard, "{line}");
}
