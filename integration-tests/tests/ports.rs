//! Ports serve any program of their owner's.

use integration_tests::{guest::Guest, host::TestHost, netns, tap::open_tap};
use std::{fs, os::unix::fs::PermissionsExt as _};

#[test]
fn an_unprivileged_program_opens_its_own_port_and_nobody_elses() {
    let host = TestHost::new();
    host.ok("network create lan --mode isolated");
    let (roots, _) = host.port("lan", "roots");
    // Another user's kvmctl: the owner is read from the socket.
    let user = integration_tests::host::VMD_UID.to_string();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", &host.path("kvmctl")]).args([
        "port",
        "create",
        "lan",
        "mine",
        "-o",
        "json",
        "--netd",
        &host.netd_address(),
    ]);
    let output = netns::run(&mut command);
    let port: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(port["status"]["owner_uid"], integration_tests::host::VMD_UID);
    let mine = port["status"]["interface"].as_str().expect("tap");
    // The node's mode is the machine's business: here one that everybody may open.
    let script = |tap: &str| {
        format!(
            "mknod {0} c 10 200 2>/dev/null || true; chmod 666 {0}; mount --bind {0} /dev/net/tun
             exec setpriv --reuid {user} --regid {user} --clear-groups {1} {tap}",
            host.path("tun"),
            host.path("open-tap"),
        )
    };
    let opener = integration_tests::host::program_path("open-tap");
    fs::copy(opener, host.path("open-tap")).expect("copy");
    fs::set_permissions(host.path("open-tap"), fs::Permissions::from_mode(0o755)).expect("mode");
    assert!(host.netns.succeeds(&script(mine)), "the owner cannot open {mine}");
    assert!(!host.netns.succeeds(&script(&roots)), "somebody else opened {roots}");
}

#[test]
fn a_ports_mac_is_stable_and_its_tap_persists() {
    let host = TestHost::new();
    host.ok("network create lan --mode isolated");
    let (tap, mac) = host.port("lan", "web");
    drop(host.netns.enter(|| open_tap(&tap)).expect("open"));
    assert!(host.netns.succeeds(&format!("ip link show {tap}")));
    host.ok("port delete lan web");
    assert!(!host.netns.succeeds(&format!("ip link show {tap}")));
    assert_eq!(host.port("lan", "web").1, mac);
}

#[test]
fn a_port_shows_whether_a_program_has_it_open() {
    let host = TestHost::new();
    host.ok("network create lan --mode nat");
    let (tap, mac) = host.port("lan", "p");
    let attached = || host.ok_json("port show lan p")["status"]["attached"] == true;
    assert!(!attached());
    let guest = Guest::plug(&host.netns, &tap, &mac);
    assert!(attached());
    drop(guest);
    assert!(!attached());
}
