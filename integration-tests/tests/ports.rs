//! Ports serve any program of their owner's, and pass only what a guest may send.

use integration_tests::{
    frames::{ethernet, mac, udp4},
    guest::Guest,
    host::TestHost,
    netns,
    tap::open_tap,
    wait,
};
use rustix::io::{Errno, read, write};
use std::{fs, os::fd::OwnedFd, os::unix::fs::PermissionsExt as _};

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

/// Writes frames into a port, and tells which came out of another one of the network.
struct Wire {
    from: OwnedFd,
    to: OwnedFd,
}

impl Wire {
    fn arrives(&self, frame: &[u8], marker: &[u8]) -> bool {
        let mut buffer = vec![0; 2000];
        write(&self.from, frame).expect("write");
        write(&self.from, marker).expect("write");
        let mut arrived = false;
        wait::until("the marker frame", || {
            loop {
                match read(&self.to, &mut buffer) {
                    Ok(length) if buffer[..length].starts_with(&marker[..40]) => return Some(()),
                    Ok(length) => {
                        arrived |= buffer[..length].starts_with(&frame[..frame.len().min(length).min(40)])
                    }
                    Err(Errno::AGAIN) => return None,
                    Err(error) => panic!("read: {error}"),
                }
            }
        });
        arrived
    }
}

#[test]
fn a_guest_sends_with_its_own_mac_and_three_ethertypes_only() {
    let host = TestHost::new();
    host.ok("network create lan --mode isolated");
    host.ok("port create lan a --mac 52:54:00:00:00:0a");
    host.ok("port create lan b --mac 52:54:00:00:00:0b");
    host.ok("port create lan free --mac 52:54:00:00:00:0c --filter off");
    let tap = |name: &str| {
        host.ok_json(&format!("port show lan {name}"))["status"]["interface"]
            .as_str()
            .expect("tap")
            .to_owned()
    };
    let open = |name: &str| host.netns.enter(|| open_tap(&tap(name))).expect("open");
    let wire = Wire { from: open("a"), to: open("b") };
    wait::until("carriers", || {
        let links = host.netns.json("ip -j link");
        let up = links
            .as_array()?
            .iter()
            .filter(|l| l["ifname"].as_str().is_some_and(|n| n.starts_with("kvp-")) && l["operstate"] == "UP")
            .count();
        (up == 2).then_some(())
    });
    let (a, b, c) = (mac("52:54:00:00:00:0a"), mac("52:54:00:00:00:0b"), mac("52:54:00:00:00:0c"));
    let payload = udp4([10, 0, 0, 1], [10, 0, 0, 2], 9, b"payload");
    let marker = ethernet(b, a, &udp4([10, 0, 0, 1], [10, 0, 0, 2], 10, b"marker"));
    let arp =
        [&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1][..], &a, &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat();

    for (what, frame) in [
        ("IPv4", ethernet(b, a, &payload)),
        ("broadcast IPv4", ethernet([0xff; 6], a, &payload)),
        ("ARP", ethernet([0xff; 6], a, &arp)),
        ("IPv6", ethernet(b, a, &[&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64][..], &[0xfe; 32]].concat())),
    ] {
        assert!(wire.arrives(&frame, &marker), "{what} is lost");
    }
    let tagged = |tag: [u8; 2]| [&tag[..], &[0, 5], &payload].concat();
    for (what, frame) in [
        ("the neighbour's MAC", ethernet(b, c, &payload)),
        ("the receiver's MAC", ethernet([0xff; 6], b, &payload)),
        ("a group address as source", ethernet(b, [0xff; 6], &payload)),
        ("a zero source", ethernet(b, [0; 6], &payload)),
        ("a VLAN tag", ethernet(b, a, &tagged([0x81, 0x00]))),
        ("a service tag", ethernet(b, a, &tagged([0x88, 0xa8]))),
        ("LLC", ethernet(b, a, &[0, 20, 0x42, 0x42, 3, 0, 0, 0])),
        ("a BPDU", ethernet([0x01, 0x80, 0xc2, 0, 0, 0], a, &[0, 38, 0x42, 0x42, 3, 0, 0, 0])),
        ("LLDP", ethernet([0x01, 0x80, 0xc2, 0, 0, 0x0e], a, &[0x88, 0xcc, 2, 7, 4])),
        ("PPPoE", ethernet(b, a, &[0x88, 0x64, 0x11, 0, 0, 1])),
        ("MPLS", ethernet(b, a, &[0x88, 0x47, 0, 0, 0x11, 0xff])),
        ("RARP", ethernet([0xff; 6], a, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3])),
        ("a loopback frame", ethernet(b, a, &[0x90, 0x00, 0, 0])),
    ] {
        assert!(!wire.arrives(&frame, &marker), "{what} gets through");
    }
    // Visibly off: a nested bridge may send what it likes.
    let free = Wire { from: open("free"), to: wire.to };
    wait::until("carrier", || {
        host.netns.succeeds(&format!("ip link show {} | grep -q LOWER_UP", tap("free"))).then_some(())
    });
    let marker = ethernet(b, c, &udp4([10, 0, 0, 1], [10, 0, 0, 2], 10, b"marker"));
    assert!(free.arrives(&ethernet(b, mac("52:54:00:00:00:77"), &payload), &marker));
    assert!(host.ok("port list lan").lines().any(|line| line.contains("free") && line.contains("off")));
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
