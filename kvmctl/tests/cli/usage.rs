//! The command line itself: help, usage errors, and daemons that are not there.

use crate::fake::{Ran, kvmctl};
use insta::assert_snapshot;
use std::os::unix::net::UnixListener;

fn run(arguments: &str) -> Ran {
    Ran::from(kvmctl(arguments).output().unwrap())
}

#[test]
fn wrong_usage_is_code_2_and_says_why() {
    for (arguments, reason) in [
        ("", "Usage: kvmctl"),
        ("netwrok list", "similar subcommand"),
        ("network create lan", "--mode"),
        ("network create lan --mode bridge", "bridged"),
        ("network create LAN --mode nat", "not a valid name"),
        ("network create lan --mode nat --mtu 5", "68..=65521"),
        ("network list -o xml", "json"),
        ("network list --netd /run/x", "hint: write unix:///path/to/socket"),
        ("port create lan web --mac 01:00:00:00:00:00", "group address"),
        ("port capture lan web --snaplen 262145", "1..=262144"),
        ("port create lan web --rate-in 0", "hint: leave it out for no limit"),
        ("port update lan web --rate-out fast", "not a rate"),
        ("port capture lan web --count 0", "1.."),
        ("forward add lan --listen 8080 --to web", "--protocol"),
        ("forward add lan --protocol sctp --listen 80 --to web", "tcp, udp"),
        ("forward add lan --protocol tcp --listen 70000 --to web", "ports are 1 to 65535"),
        ("forward add lan --protocol tcp --listen 8080 --to Web", "neither a name nor an address"),
        ("group create WEB", "not a valid name"),
        ("group create web --default-in maybe", "allow, deny"),
        ("group rule add web --direction in", "--protocol"),
        ("group rule add web --direction up --protocol tcp", "in, out"),
        ("group rule add web --direction in --protocol tcp --port 0", "1 to 65535"),
        ("group rule add web --direction in --protocol tcp --port +22", "1 to 65535"),
        ("group rule add web --direction in --protocol tcp --port 9-1", "hint: write 1-9"),
        ("port update lan web", "--filter"),
        ("vm create web --memory 0", "a size of zero"),
        ("vm create web --vcpus 0", "1..=255"),
        ("vm create web --disk a.img", "hint: add format=qcow2 or format=raw"),
        ("vm create web --disk a.img,format=raw,speed=9", "unknown key `speed`"),
        ("vm create web --network lan,mac=x,mac=y", "`mac` is given twice"),
        ("vm create web --initrd i", "--kernel"),
        ("vm create web --vnc=sdl", "unix, tcp"),
        ("vm stop web --timeout 30", "write 30s"),
        ("vm wait web", "--for"),
        ("vm wait web --for paused", "running, stopped, ip"),
        ("vm create web --network lan,ip=10.0.0.2/24", "without a prefix length"),
        ("vm create web --network lan,rate-in=0", "a rate of zero"),
        ("why web", "<DEST[:PORT]|--from"),
        ("why web 192.0.2.1 --from 192.0.2.2", "cannot be used with"),
        ("why web 192.0.2.1:http", "hint: write 192.0.2.1:80"),
        ("why web 192.0.2.1 --trace 61", "1..=60"),
    ] {
        let ran = run(arguments);
        assert_eq!(ran.code, Some(2), "{arguments}: {}", ran.err);
        assert!(ran.err.contains(reason), "{arguments}: {}", ran.err);
        assert_eq!(ran.out, "", "{arguments}");
    }
}

#[test]
fn help_of_every_command_fits_80_columns() {
    for command in [
        "",
        "network",
        "network create",
        "network list",
        "network show",
        "network delete",
        "port",
        "port create",
        "port list",
        "port show",
        "port delete",
        "forward",
        "forward add",
        "forward list",
        "forward show",
        "forward delete",
        "port capture",
        "group",
        "group create",
        "group list",
        "group show",
        "group delete",
        "group rule",
        "group rule add",
        "group rule delete",
        "vm",
        "vm create",
        "vm run",
        "vm start",
        "vm stop",
        "vm reset",
        "vm pause",
        "vm resume",
        "vm delete",
        "vm list",
        "vm show",
        "vm console",
        "vm log",
        "vm wait",
        "host",
        "host show",
        "doctor",
        "why",
    ] {
        let ran = run(&format!("{command} --help"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{command}");
        let longest = ran.out.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(80), "{command}: {}", ran.out);
    }
}

#[test]
fn help_texts() {
    assert_snapshot!("kvmctl", run("-h").out);
    assert_snapshot!("network-create", run("network create -h").out);
    assert_snapshot!("vm-create", run("vm create -h").out);
    assert_snapshot!("vm-wait", run("vm wait -h").out);
    assert_snapshot!("why", run("why -h").out);
}

#[test]
fn a_daemon_that_is_not_there_is_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/netd.sock", dir.path().display());
    let missing = run(&format!("network list --netd {address}"));
    assert_eq!(missing.code, Some(3));
    assert_eq!(
        missing.err,
        format!(
            "error: cannot reach netd at {address}\n  caused by: No such file or directory (os error 2)\n\n\
             hint: start netd, or name its socket with --netd\n"
        )
    );
    // What a killed daemon leaves.
    drop(UnixListener::bind(dir.path().join("netd.sock")).unwrap());
    let left = run(&format!("network list --netd {address}"));
    assert_eq!(left.code, Some(3));
    assert!(left.err.contains("Connection refused"), "{}", left.err);
    assert!(
        left.err.contains("hint: start netd: its socket is there, but nobody listens on it"),
        "{}",
        left.err
    );
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&format!("man {}", dir.path().display())).code, Some(0));
    for page in
        ["kvmctl.1", "kvmctl-network-create.1", "kvmctl-vm-console.1", "kvmctl-host-show.1", "kvmctl-why.1"]
    {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
}
