//! The access file while the daemons run.

use crate::{ALICE, BOB, grants, host, kvmctl, ok, refused, write_access_file};
use integration_tests::wait;
use std::{fs, os::unix::fs::PermissionsExt as _};

#[test]
fn a_change_counts_at_the_next_call_and_a_broken_file_never() {
    let host = host();
    host.ok("network create lan --mode isolated");
    ok(&host, ALICE, "port create lan a");
    ok(&host, ALICE, "vm create a --memory 64M --network lan");
    let images = host.path("images");
    // The role is taken away.
    write_access_file(&host, &grants(&images).replace(&format!("[{ALICE}, {BOB}]"), &format!("[{BOB}]")));
    // A member of netd's group whom no grant names is an operator there, and vmd has no group here.
    ok(&host, ALICE, "port list lan");
    refused(&host, ALICE, "vm start a", "has no role here");
    write_access_file(
        &host,
        &format!("members = \"viewer\"\n{}", grants(&images).replace(&format!("{ALICE}, "), "")),
    );
    refused(&host, ALICE, "port delete lan a", "is a viewer");
    // A network is taken back: the machine that is on it does not start.
    write_access_file(&host, &grants(&images).replace("\"lan\"", "\"other\""));
    refused(&host, ALICE, "vm start a", "network `lan` is not granted");
    write_access_file(&host, &grants(&images));
    ok(&host, ALICE, "port update lan a --isolated on");
    // Whatever is wrong with the file leaves things as they were, and is said.
    let file = host.path("access.toml");
    let whole = fs::read_to_string(&file).expect("file");
    let mut faults = 0;
    for (text, mode) in
        [("role = ", 0o644), ("", 0o666), ("[[grant]]\nusers = [64103]\nrole = \"king\"", 0o644)]
    {
        fs::write(&file, text).expect("file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("mode");
        ok(&host, ALICE, "port update lan a --isolated off");
        let shown = host.ok("host show");
        assert!(shown.contains("the former access rules stay in force"), "{shown}");
        faults += 1;
    }
    fs::remove_file(&file).expect("remove");
    ok(&host, ALICE, "port update lan a --isolated on");
    println!("{} broken files and one that is gone: nothing changed", faults);
    write_access_file(&host, &whole);
    ok(&host, ALICE, "port update lan a --isolated off");
    assert!(!host.ok("host show").contains("the former access rules"));
    assert!(
        ok(&host, ALICE, "host show").contains("operator (a grant of the access file), uid 64103; on lan")
    );
    // SIGHUP does no harm, and ends nobody.
    for pid in [host.netd_pid(), host.vmd_pid()] {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signal");
    }
    wait::until("the file to be read again", || host.logs().contains("was read anew").then_some(()));
    ok(&host, ALICE, "host show");
}

#[test]
fn a_daemon_does_not_begin_with_a_file_that_is_not_safe() {
    let host = host();
    let run = |daemon: &str, file: &str| {
        let mut command = host.netns.command("env");
        let path = |name: &str| host.path(&format!("second-{daemon}-{name}"));
        command.arg(host.path(daemon)).args(["--access-file", file, "--socket", &path("sock")]);
        command.args(["--state-dir", &path("state"), "--run-dir", &path("run")]);
        if daemon == "vmd" {
            command.arg("--allow-root");
        }
        let output = integration_tests::netns::output(&mut command);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let file = host.path("bad.toml");
    let with = |text: &str, mode| {
        fs::write(&file, text).expect("file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("mode");
    };
    for daemon in ["netd", "vmd"] {
        assert!(run(daemon, &host.path("missing.toml")).contains("it is not there"));
        with("", 0o622);
        assert!(run(daemon, &file).contains("can be written by others"));
        with("users = 1", 0o644);
        assert!(run(daemon, &file).contains("line 1"));
        with("", 0o644);
        std::os::unix::fs::chown(&file, Some(ALICE), None).expect("chown");
        assert!(run(daemon, &file).contains("belongs to uid 64103"));
        std::os::unix::fs::chown(&file, Some(0), None).expect("chown");
    }
    assert_eq!(kvmctl(&host, ALICE, "network list").code, 0, "the daemons that run are not disturbed");
}
