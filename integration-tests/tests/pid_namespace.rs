//! A daemon in a container: its callers have no process ids there.

use integration_tests::{host::TestHost, wait};
use std::{
    os::unix::net::UnixStream,
    process::{Child, Stdio},
};

/// `unshare`, with its child in a PID namespace.
struct Unshared(Child);

impl Drop for Unshared {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn netd_knows_the_user_of_a_caller_from_another_pid_namespace() {
    let host = TestHost::bare();
    let mut command = host.netns.command("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", &host.path("netd"), "--socket", &host.path("netd.sock")])
        .args(["--state-dir", &host.path("netd-state"), "--run-dir", &host.path("netd-run")]);
    let _netd = Unshared(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("unshare"));
    wait::until("netd to serve", || UnixStream::connect(host.path("netd.sock")).ok());
    host.ok("network create lan --mode isolated");
    let port = host.ok_json("port create lan web");
    assert_eq!(port["status"]["owner_uid"], rustix::process::geteuid().as_raw());
}
