//! What an operator may do with what is theirs, and what others may do with it.

use crate::{ADMIN, ALICE, BOB, VIEWER, audit, host, kvmctl, ok, refused};
use serde_json::Value;
use std::{fs, os::unix::fs::chown};

#[test]
fn operators_act_on_their_own_on_granted_networks_and_within_quotas() {
    let host = host();
    for network in ["lan", "dmz"] {
        host.ok(&format!("network create {network} --mode isolated"));
    }
    // Ports.
    ok(&host, ALICE, "port create lan a1");
    for (uid, words, says) in [
        (BOB, "port update lan a1 --isolated on", "belongs to uid 64103"),
        (BOB, "port delete lan a1", "belongs to uid 64103"),
        (BOB, "port capture lan a1 --count 1 --duration 1s -w -", "belongs to uid 64103"),
        (BOB, "port create lan a1", "another spec or owner"),
        (ALICE, "port create dmz a2", "network `dmz` is not granted"),
        (ALICE, "port create lan a2 --filter off", "without a filter"),
        (ALICE, "port update lan a1 --filter off", "without a filter"),
        (ALICE, "network create mine --mode isolated", "needs the role `admin`"),
        (ALICE, "network update lan --mtu 1400", "needs the role `admin`"),
        (ALICE, "network delete lan --force", "needs the role `admin`"),
        (ALICE, "group create g", "needs the role `admin`"),
        (VIEWER, "port create lan v", "needs the role `operator`"),
    ] {
        refused(&host, uid, words, says);
    }
    ok(&host, ALICE, "port create lan a2");
    ok(&host, ALICE, "port create lan a3");
    refused(&host, ALICE, "port create lan a4", "has 3 ports on this network, and may have 3");
    ok(&host, BOB, "port create lan b1");
    ok(&host, ALICE, "port delete lan a3");
    ok(&host, ADMIN, "port delete lan a2");
    // Machines.
    ok(&host, ALICE, "vm create alices --network lan --memory 1G");
    refused(&host, ALICE, "vm create second --network lan --memory 1025M", "bytes of memory");
    refused(&host, ALICE, "vm create second --vcpus 4 --memory 64M", "virtual CPUs");
    refused(&host, ALICE, "vm create second --network dmz", "network `dmz` is not granted");
    refused(&host, ALICE, "vm create second --network lan,filter=off", "without a filter");
    ok(&host, ALICE, "vm create second --memory 64M");
    refused(&host, ALICE, "vm create third --memory 64M", "would have 3 machines, and may have 2");
    ok(&host, ALICE, "vm start alices");
    for words in [
        "vm start alices",
        "vm stop alices --force",
        "vm reset alices",
        "vm pause alices",
        "vm resume alices",
        "vm delete second",
        "vm log alices",
        "vm console alices",
    ] {
        refused(&host, BOB, words, "belongs to uid 64103");
    }
    refused(&host, BOB, "vm create alices --network lan --memory 1G", "another spec or owner");
    let shown: Value = serde_json::from_str(&ok(&host, BOB, "vm show alices -o json")).expect("JSON");
    assert_eq!(
        (&shown["status"]["owner_uid"], &shown["status"]["state"]),
        (&ALICE.into(), &"running".into())
    );
    // netd knows vmd only: the machine's port is vmd's, and no operator's.
    refused(&host, ALICE, "port delete lan alices-0", "belongs to uid 64055");
    ok(&host, ALICE, "vm stop alices --force");
    ok(&host, ADMIN, "vm start alices");
    ok(&host, ADMIN, "vm stop alices --force");
    ok(&host, ALICE, "vm delete alices");
    let any = |lines: &[Value], uid: u32, rpc: &str, object: &str, code: &str| {
        lines.iter().any(|line| {
            line["uid"] == uid
                && line["rpc"].as_str().is_some_and(|path| path.ends_with(rpc))
                && line["object"] == object
                && line["code"] == code
        })
    };
    let lines = audit(&host, "vmd-state", |lines| any(lines, ALICE, "/DeleteVm", "vms/alices", "OK"));
    let found = |uid, rpc: &str, object: &str, code: &str| any(&lines, uid, rpc, object, code);
    assert!(found(ALICE, "/CreateVm", "vms/alices", "OK"));
    assert!(found(BOB, "/StopVm", "vms/alices", "PERMISSION_DENIED"));
    assert!(found(BOB, "/ReadConsoleLog", "vms/alices", "PERMISSION_DENIED"));
    assert!(found(ADMIN, "/StopVm", "vms/alices", "OK"));
    assert!(found(ALICE, "/CreateVm", "vms/third", "RESOURCE_EXHAUSTED"));
    let numbers: Vec<_> = lines.iter().filter_map(|line| line["sequence"].as_u64()).collect();
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "{numbers:?}");
    let netds = audit(&host, "netd-state", |lines| !lines.is_empty());
    println!("{} lines of vmd's audit log, {} of netd's", lines.len(), netds.len());
}

#[test]
fn operators_put_their_ports_into_granted_groups_only_and_do_not_leave_others() {
    let host = host();
    ok(&host, ADMIN, "network create lan --mode isolated");
    ok(&host, ADMIN, "group create web");
    ok(&host, ADMIN, "group create jail");
    ok(&host, ALICE, "port create lan a1 --group web");
    let groups = |port: &str| -> Value {
        let shown: Value =
            serde_json::from_str(&ok(&host, BOB, &format!("port show lan {port} -o json"))).expect("JSON");
        shown["spec"]["groups"].clone()
    };
    refused(&host, ALICE, "port create lan a2 --group jail", "may not put a port into group `jail`");
    refused(
        &host,
        ALICE,
        "port update lan a1 --group web --group jail",
        "may not put a port into group `jail`",
    );
    ok(&host, ADMIN, "port update lan a1 --group web --group jail");
    for words in ["port update lan a1 --no-group", "port update lan a1 --group web"] {
        refused(&host, ALICE, words, "may not take a port out of group `jail`");
    }
    assert_eq!(groups("a1"), serde_json::json!(["jail", "web"]));
    // Other changes are hers, and so is the group that is granted.
    ok(&host, ALICE, "port update lan a1 --isolated on");
    ok(&host, ALICE, "port update lan a1 --group jail");
    assert_eq!(groups("a1"), serde_json::json!(["jail"]));
    // The same for a machine's NICs, at its create and at each start.
    refused(&host, ALICE, "vm create m --network lan,group=jail --memory 64M", "into group `jail`");
    ok(&host, ALICE, "vm create m --network lan,group=web --memory 64M");
    ok(&host, ALICE, "vm start m");
    assert_eq!(groups("m-0"), serde_json::json!(["web"]));
    ok(&host, ALICE, "vm stop m --force");
    let grants = crate::grants(&host.path("images"));
    crate::write_access_file(&host, &grants.replacen("port_groups = [\"web\"]", "", 1));
    refused(&host, ALICE, "vm start m", "into group `web`");
    refused(&host, ALICE, "port create lan a3 --group web", "`port_groups`");
    ok(&host, ALICE, "port create lan a3");
    crate::write_access_file(&host, &grants.replacen("port_groups = [\"web\"]", "port_groups = [\"*\"]", 1));
    ok(&host, ALICE, "port update lan a1 --no-group");
    ok(&host, ALICE, "port update lan a3 --group jail --group web");
}

#[test]
fn operators_name_their_own_files_in_the_folders_for_images_only() {
    let host = host();
    let image = |name: &str, owner: u32, bytes: &[u8]| {
        let path = host.path(&format!("images/{name}"));
        fs::write(&path, bytes).expect("image");
        // vmd opens it by its group.
        chown(&path, Some(owner), Some(integration_tests::host::VMD_UID)).expect("chown");
        host.netns.sh(&format!("chmod 660 {path}"));
        path
    };
    let own = image("own.raw", ALICE, &[1; 4096]);
    let others = image("others.raw", BOB, &[1; 4096]);
    let backed = image("backed.qcow2", ALICE, &qcow2("/etc/passwd"));
    let beside = image("beside.qcow2", ALICE, &qcow2("others.raw"));
    let stacked = image("stacked.qcow2", ALICE, &qcow2("own.raw"));
    std::os::unix::fs::symlink("/etc/passwd", host.path("images/link")).expect("link");
    ok(&host, ALICE, &format!("vm create disk --memory 64M --disk {own},format=raw"));
    ok(&host, ALICE, "vm delete disk");
    ok(&host, ALICE, &format!("vm create stacked --memory 64M --disk {stacked},format=qcow2"));
    ok(&host, ALICE, "vm delete stacked");
    let kernel = host.path("vmlinuz");
    for (words, says) in [
        (format!("--disk {others},format=raw"), "belongs to uid 64104"),
        (format!("--disk {backed},format=qcow2"), "have to be in"),
        (format!("--disk {beside},format=qcow2"), "belongs to uid 64104"),
        (format!("--disk {},format=raw", host.path("images/link")), "symbolic link"),
        (format!("--disk {},format=raw", host.path("images/../access.toml")), "leads out"),
        ("--disk /etc/passwd,format=raw,readonly".into(), "have to be in"),
        ("--disk /proc/self/mem,format=raw".into(), "have to be in"),
        ("--disk /dev/null,format=raw".into(), "have to be in"),
        (format!("--disk {},format=raw", host.path("vmd-state/state.sqlite")), "have to be in"),
        (format!("--kernel {kernel}"), "have to be in"),
        (format!("--kernel {}", host.path("images/link")), "symbolic link"),
    ] {
        refused(&host, ALICE, &format!("vm create bad --memory 64M {words}"), says);
    }
    assert_eq!(kvmctl(&host, ALICE, "vm list -o name").stdout, "");
    // An admin names what vmd can open.
    ok(&host, ADMIN, &format!("vm create any --memory 64M --kernel {kernel}"));
}

/// A qcow2 header of version 3 with a raw backing file.
fn qcow2(backing: &str) -> Vec<u8> {
    let mut image = vec![0; 512];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(8, &256_u64.to_be_bytes());
    put(16, &u32::try_from(backing.len()).expect("short").to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 30).to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(104, &0xe279_2aca_u32.to_be_bytes());
    put(108, &3_u32.to_be_bytes());
    put(112, b"raw");
    put(256, backing.as_bytes());
    image
}
