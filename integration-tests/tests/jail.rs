//! What a QEMU that its guest has taken over can reach: nothing of the host.

use integration_tests::{
    host::{SUBORDINATE_IDS, TestHost, VMD_UID},
    machine::CMDLINE,
    wait,
};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// Layers that hold on any Linux of today; a cgroup needs more than a kernel.
const LAYERS: [&str; 8] =
    ["user-namespace", "own-user", "network", "files", "capabilities", "landlock", "system-calls", "limits"];

fn start(host: &TestHost, name: &str) -> Value {
    let cmdline = format!("{CMDLINE} kv.name={name}");
    let (kernel, initrd) = (host.path("vmlinuz"), host.path("initrd.img"));
    let arguments = ["vm", "run", name, "--memory", "256M", "--kernel", &kernel, "--initrd", &initrd];
    let outcome = host.kvmctl(&[&arguments[..], &["--cmdline", &cmdline, "--network", "n"]].concat());
    assert_eq!(outcome.code, 0, "{}\n{}", outcome.stderr, host.logs());
    vm(host, name)
}

fn vm(host: &TestHost, name: &str) -> Value {
    host.ok_json(&format!("vm show {name}"))
}

fn pid(vm: &Value) -> u64 {
    vm["status"]["pid"].as_u64().expect("pid")
}

/// Names of the layers that hold, and those that do not with the reason.
fn layers(of: &Value) -> (BTreeSet<String>, Vec<(String, String)>) {
    let text = |layer: &Value, key: &str| layer[key].as_str().unwrap_or_default().to_owned();
    let all = of["containment"].as_array().expect("containment");
    let (holds, missing): (Vec<_>, Vec<_>) = all.iter().partition(|layer| layer["holds"] == true);
    (
        holds.iter().map(|layer| text(layer, "layer")).collect(),
        missing.iter().map(|layer| (text(layer, "layer"), text(layer, "reason"))).collect(),
    )
}

/// A line of /proc/PID/status.
fn status(pid: u64, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:"))).expect(key);
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn two_machines_have_nothing_of_the_host_and_nothing_of_each_other() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode isolated");
    let machines = [start(&host, "a"), start(&host, "b")];
    let own = fs::read_link("/proc/self/ns/user").expect("namespace");
    let mut uids = BTreeSet::new();
    for machine in &machines {
        let (holds, missing) = layers(&machine["status"]);
        println!("holds: {holds:?}; missing: {missing:?}");
        for layer in LAYERS {
            assert!(holds.contains(layer), "{layer}: {missing:?}");
        }
        let pid = pid(machine);
        let uid = status(pid, "Uid");
        let first: u32 = uid.split(' ').next().expect("uid").parse().expect("number");
        assert_eq!(uid, [first; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(machine["status"]["uid"], first);
        let range = host.first_subordinate()..host.first_subordinate() + SUBORDINATE_IDS;
        assert!(range.contains(&first) && uids.insert(first), "{first}");
        assert_eq!(status(pid, "Gid"), uid);
        assert_eq!(status(pid, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(pid, set), "0000000000000000", "{set}");
        }
        assert_eq!((status(pid, "NoNewPrivs").as_str(), status(pid, "Seccomp").as_str()), ("1", "2"));
        // Two of ours, and QEMU's.
        assert!(status(pid, "Seccomp_filters").parse::<u32>().expect("number") >= 3);
        for (namespace, vmds) in [("net", true), ("mnt", true), ("ipc", true), ("uts", true), ("user", true)]
        {
            let of = |pid: u64| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("namespace");
            assert_eq!(of(pid) != of(u64::from(host.vmd_pid())), vmds, "{namespace}");
        }
        assert_ne!(fs::read_link(format!("/proc/{pid}/ns/user")).expect("namespace"), own);
        let root = format!("/proc/{pid}/root");
        let there: BTreeSet<String> = fs::read_dir(&root)
            .expect("root folder")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        println!("root folder: {there:?}");
        for foreign in ["proc", "sys", "etc", "home", "root", "tmp", "run", "var"] {
            assert!(!there.contains(foreign), "{foreign}");
        }
        for mount in fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mounts").lines() {
            let options = mount.split(' ').nth(5).expect("options");
            assert!(options.starts_with("ro,nosuid"), "{mount}");
        }
    }
    // The same users' processes for the next vmd, which has them go on, and ends them.
    host.kill_vmd();
    host.start_vmd();
    for (name, before) in ["a", "b"].into_iter().zip(&machines) {
        let now = wait::until("adoption", || {
            let now = vm(&host, name);
            (now["status"]["state"] == "running").then_some(now)
        });
        assert_eq!((pid(&now), &now["status"]["uid"]), (pid(before), &before["status"]["uid"]));
        assert_eq!(layers(&now["status"]), layers(&before["status"]));
        assert_eq!(now["status"]["adopted"], true);
    }
    let third = start(&host, "c");
    assert_eq!(host.machines().len(), 3);
    assert!(uids.insert(third["status"]["uid"].as_u64().expect("uid").try_into().expect("uid")));
    for (name, machine) in ["a", "b", "c"].into_iter().zip(machines.iter().chain([&third])) {
        host.ok(&format!("vm stop {name} --force"));
        assert!(!host.machines().iter().any(|left| u64::from(*left) == pid(machine)));
    }
    assert_eq!(host.machines(), Vec::<u32>::new());
    assert!(uids.iter().all(|uid| *uid != VMD_UID));
}
