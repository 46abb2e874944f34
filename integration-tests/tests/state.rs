//! A state folder that is full, read-only, broken or gone: nothing is lost, nothing is changed, and all goes on when the
//! disk does.

use integration_tests::{
    census::Census,
    host::{TestHost, VMD_UID},
    wait,
};
use shared::store::Store;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// A file system of the test's own at a folder of the host's.
struct Small(String);

impl Small {
    fn mount(path: &str, options: &str) -> Self {
        fs::create_dir_all(path).expect("folder");
        sh(&format!("mount -t tmpfs -o {options} kvt {path}"));
        Self(path.to_owned())
    }

    fn remount(&self, options: &str) {
        sh(&format!("mount -o remount,{options} {}", self.0));
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let _ = fs::write(format!("{}/fill", self.0), vec![0; 8 << 20]);
    }

    /// Makes files until there is no inode left.
    fn fill_inodes(&self) {
        let mut names = 0..;
        while fs::File::create(format!("{}/fill-{}", self.0, names.next().unwrap_or(0))).is_ok() {}
    }

    fn make_room(&self) {
        sh(&format!("rm -f {}/fill*", self.0));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        sh(&format!("umount -l {}", self.0));
    }
}

fn sh(script: &str) {
    integration_tests::netns::run(Command::new("sh").args(["-euc", script]));
}

/// A host whose netd has its state on a file system of its own, with a network and two ports.
fn host_on(options: &str) -> (Small, TestHost) {
    let mut host = TestHost::bare();
    let small = Small::mount(&host.path("netd-state"), options);
    host.start_netd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --dhcp off");
    host.ok("group create web");
    host.port("n", "a");
    host.port("n", "b");
    (small, host)
}

const CHANGES: [&str; 8] = [
    "network create m --mode isolated --dhcp off",
    "network update n --mtu 1400",
    "network delete n --force",
    "port create n c",
    "port delete n a",
    "port update n a --filter off",
    "group create other",
    "forward add n --protocol tcp --listen 8080 --to b:80",
];

/// What a monitor hears of a daemon, as a whole or of a service.
fn health(address: &str, service: &str) -> ServingStatus {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let channel = shared::socket::channel(address).expect("an address");
        let request = HealthCheckRequest { service: service.to_owned() };
        HealthClient::new(channel).check(request).await.expect("an answer").into_inner().status()
    })
}

/// A daemon that cannot make changes says so by itself, before anybody tries; what only reads goes on.
fn becomes(address: &str, healthy: bool, (changing, reading): (&str, &str)) {
    let wanted = if healthy { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", changing] {
        wait::until(&format!("{service:?} of {address} to be {wanted:?}"), || {
            (health(address, service) == wanted).then_some(())
        });
    }
    assert_eq!(health(address, reading), ServingStatus::Serving);
}

/// Of netd: what makes changes, and what does not.
const NETD: (&str, &str) = ("netd.v1.PortService", "netd.v1.HostService");

/// Every sort of change is refused with these words, and changes nothing.
fn refuses_all(host: &TestHost, words: &[&str]) {
    let before = Census::of(&host.netns);
    let records = host.ok_json("port list");
    // A disk that fails only when it is written to is found by a write.
    if !words.contains(&"file system") {
        becomes(&host.netd_address(), false, NETD);
    }
    for change in CHANGES {
        let outcome = host.kvmctl(&change.split(' ').collect::<Vec<_>>());
        assert_ne!(outcome.code, 0, "{change}: {}", outcome.stdout);
        for word in words {
            assert!(outcome.stderr.contains(word), "{change}: no {word:?} in\n{}", outcome.stderr);
        }
    }
    before.assert_same(&Census::of(&host.netns));
    becomes(&host.netd_address(), false, NETD);
    assert_eq!(host.ok_json("port list"), records);
    assert!(host.kvmctl(&["network", "show", "m"]).code != 0);
    let shown = host.kvmctl(&["host", "show"]).stdout;
    assert!(shown.contains("degraded"), "{shown}");
    println!("{} changes refused with {words:?}, 0 changes of the kernel", CHANGES.len());
}

/// What others change is repaired all the same.
fn repairs(host: &TestHost) {
    host.netns.sh("ip link delete kvp-a; nft delete table inet kvmctl");
    wait::until("the repair", || {
        let there = "ip link show kvp-a && nft list table inet kvmctl";
        host.netns.succeeds(there).then_some(())
    });
}

/// By itself, with the netd that runs.
fn recovers(host: &TestHost, pid: u32) {
    wait::until("a change to be possible again", || {
        let outcome = host.kvmctl(&["network", "create", "again", "--mode", "isolated", "--dhcp", "off"]);
        (outcome.code == 0).then_some(())
    });
    assert_eq!(host.netd_pid(), pid, "by itself");
    host.ok("network delete again");
    becomes(&host.netd_address(), true, NETD);
    wait::until("no complaint", || {
        (!host.kvmctl(&["host", "show"]).stdout.contains("degraded")).then_some(())
    });
}

#[test]
fn a_full_disk_refuses_changes_and_nothing_else() {
    let (small, mut host) = host_on("size=1m");
    small.fill();
    let words = ["full", "make room on the file system"];
    refuses_all(&host, &words);
    repairs(&host);
    let before = Census::of(&host.netns);
    host.kill_netd();
    host.start_netd();
    before.assert_same(&Census::of(&host.netns));
    refuses_all(&host, &words);
    repairs(&host);
    let pid = host.netd_pid();
    small.make_room();
    recovers(&host, pid);
}

#[test]
fn a_disk_without_inodes_refuses_changes_and_nothing_else() {
    let (small, mut host) = host_on("size=4m,nr_inodes=24");
    host.kill_netd();
    // Closed in order, the store has to make a file before it can write again.
    drop(Store::open(Path::new(&small.0)).expect("store"));
    wait::until("the store to be closed", || Store::open(Path::new(&small.0)).ok().map(drop));
    wait::until("the log to be gone", || {
        (!Path::new(&small.0).join("state.sqlite-wal").exists()).then_some(())
    });
    small.fill_inodes();
    host.start_netd();
    refuses_all(&host, &["inode", "make room on the file system"]);
    repairs(&host);
    let pid = host.netd_pid();
    small.make_room();
    recovers(&host, pid);
}

#[test]
fn a_read_only_disk_refuses_changes_and_nothing_else() {
    let (small, mut host) = host_on("size=4m");
    let before = Census::of(&host.netns);
    host.kill_netd();
    small.remount("ro");
    host.start_netd();
    before.assert_same(&Census::of(&host.netns));
    refuses_all(&host, &["read-only", "remount,rw"]);
    repairs(&host);
    let pid = host.netd_pid();
    small.remount("rw");
    // netd sees it by a mount of its own.
    sh(&format!("nsenter -t {pid} -m mount -o remount,rw {}", small.0));
    recovers(&host, pid);
}

/// strace(1) that lets system calls of a daemon fail until it is dropped.
struct Failing(Child);

impl Failing {
    fn start(pid: u32, calls: &str, error: &str) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-o", "/dev/null"])
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}")])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace");
        let mut words = BufReader::new(child.stderr.take().expect("stderr")).lines();
        words
            .find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")))
            .expect("attached")
            .expect("line");
        std::thread::spawn(move || words.for_each(drop));
        Self(child)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // It lets the daemon go in order.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::INT,
        );
        let _ = self.0.wait();
    }
}

#[test]
fn a_disk_that_fails_to_write_or_sync_refuses_changes_and_nothing_else() {
    let (_small, host) = host_on("size=4m");
    let pid = host.netd_pid();
    for (calls, error, words) in [
        ("fdatasync,fsync", "EIO", "cannot be written"),
        ("fdatasync,fsync", "ENOSPC", "nothing was changed"),
        ("pwrite64", "ENOSPC", "full"),
        ("pwrite64", "EIO", "cannot be written"),
    ] {
        let failing = Failing::start(pid, calls, error);
        refuses_all(&host, &[words, "file system"]);
        drop(failing);
        recovers(&host, pid);
        println!("{calls} fail with {error}");
    }
}

/// A record's place in the database file.
fn place_of(database: &[u8], text: &str) -> std::ops::Range<usize> {
    let begins = |at: &usize| database[*at..].starts_with(text.as_bytes());
    let at = (0..database.len()).rev().find(begins).expect("the record is in the file");
    at..at + 300
}

#[test]
fn a_record_that_is_damaged_on_disk_costs_nothing_or_one_name() {
    let (small, mut host) = host_on("size=4m");
    host.ok("network create other --mode isolated --dhcp off");
    host.port("other", "c");
    host.kill_netd();
    let folder = Path::new(&small.0).to_owned();
    drop(Store::open(&folder).expect("store"));
    wait::until("the store to be closed", || {
        (!folder.join("state.sqlite-wal").exists()).then(|| Store::open(&folder).ok().map(drop)).flatten()
    });
    wait::until("the log to be gone", || (!folder.join("state.sqlite-wal").exists()).then_some(()));
    let (file, copy) = (folder.join("state.sqlite"), folder.join("state.sqlite.copy"));
    let (database, copied) = (fs::read(&file).expect("database"), fs::read(&copy).expect("copy"));
    let before = Census::of(&host.netns);
    let place = place_of(&database, "\"kind\":\"network\",\"id\":\"n\"");
    let step = if integration_tests::soak() { 3 } else { 60 };
    let (mut restored, mut broken) = (0, 0);
    for at in place.step_by(step) {
        for with_copy in [true, false] {
            let mut damaged = database.clone();
            damaged[at] ^= 0x15;
            sh(&format!("rm -f {}/*", folder.display()));
            fs::write(&file, &damaged).expect("write");
            if with_copy {
                fs::write(&copy, &copied).expect("write");
            }
            host.start_netd();
            before.assert_same(&Census::of(&host.netns));
            let networks = host.ok_json("network list");
            let names: Vec<_> = networks
                .as_array()
                .expect("list")
                .iter()
                .filter_map(|n| n["metadata"]["name"].as_str().or(n["name"].as_str()))
                .collect();
            let shown = host.kvmctl(&["host", "show"]).stdout;
            assert_eq!(names, ["n", "other"], "{networks}");
            let state = &networks[0]["status"]["state"];
            if with_copy {
                assert_eq!(state, "ready", "{networks}");
                assert!(shown.contains("restored from its copy"), "{shown}");
                restored += 1;
            } else {
                assert_eq!(state, "broken", "{networks}");
                assert!(shown.contains("the record network `n` cannot be read"), "{shown}");
                for refused in [
                    "network show n",
                    "network create n --mode isolated",
                    "network delete n --force",
                    "port create n z",
                ] {
                    let outcome = host.kvmctl(&refused.split(' ').collect::<Vec<_>>());
                    assert!(
                        outcome.code != 0 && outcome.stderr.contains("--forget 'network n'"),
                        "{}",
                        outcome.stderr
                    );
                }
                host.ok("port create other d");
                host.ok("port delete other d");
                before.assert_same(&Census::of(&host.netns));
                broken += 1;
            }
            host.kill_netd();
        }
    }
    // The way out.
    let mut forget = host.netns.command(&host.path("netd"));
    forget.args(["--state-dir", &small.0, "--run-dir", &host.path("netd-run"), "--forget", "network n"]);
    integration_tests::netns::run(&mut forget);
    host.start_netd();
    let shown = host.kvmctl(&["host", "show"]).stdout;
    assert!(host.netns.succeeds("ip link show kvp-a") && shown.contains("`kvb-n`"), "{shown}");
    host.netns.sh("ip link delete kvb-n");
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --dhcp off");
    println!(
        "{restored} damaged bytes restored from the copy, {broken} named without one; 0 changes of the kernel"
    );
}

#[test]
fn a_file_that_cannot_be_read_at_all_is_never_taken_for_an_empty_one() {
    let (small, mut host) = host_on("size=4m");
    host.kill_netd();
    let before = Census::of(&host.netns);
    for content in ["", "garbage, for the most part"] {
        sh(&format!("rm -f {}/*", small.0));
        fs::write(format!("{}/state.sqlite", small.0), content).expect("write");
        let mut netd = host.netns.command(&host.path("netd"));
        netd.args([
            "--socket",
            &host.path("netd.sock"),
            "--state-dir",
            &small.0,
            "--run-dir",
            &host.path("netd-run"),
        ]);
        let output = integration_tests::netns::output(&mut netd);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.contains("put a backup of the folder back"), "{words}");
        before.assert_same(&Census::of(&host.netns));
        assert_eq!(fs::read_to_string(format!("{}/state.sqlite", small.0)).expect("file"), content);
    }
}

#[test]
fn a_netd_that_cannot_manage_packet_rules_says_so_until_it_can() {
    let mut host = TestHost::bare();
    host.start_netd();
    host.ok("network create n --mode nat --dhcp off");
    let pid = host.netd_pid();
    let space = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).expect("a mount namespace");
    assert_ne!(space(&pid.to_string()), space("self"), "what follows must be seen by netd only");
    let inside = |script: &str| sh(&format!("nsenter -t {pid} -m sh -euc '{script}'"));
    inside("mount --make-rprivate /");
    becomes(&host.netd_address(), true, NETD);
    for _ in 0..2 {
        inside("mount --bind /dev/null $(readlink -f /usr/sbin/nft)");
        host.netns.sh("ip link set kvb-n down");
        becomes(&host.netd_address(), false, NETD);
        let shown = host.kvmctl(&["host", "show"]);
        assert!(shown.stdout.contains("packet rules and links cannot be managed"), "{shown:?}");
        inside("umount $(readlink -f /usr/sbin/nft)");
        host.netns.sh("ip link set kvb-n mtu 1400");
        becomes(&host.netd_address(), true, NETD);
        wait::until("the repair", || {
            host.netns.succeeds("ip -br link show up | grep -q kvb-n").then_some(())
        });
    }
}

#[test]
fn machines_run_on_with_a_full_disk_and_vmd_starts_with_it() {
    let mut host = TestHost::new();
    host.add_vmd();
    host.kill_vmd();
    let owned = format!("size=3m,uid={VMD_UID},gid={VMD_UID},mode=700");
    let small = Small::mount(&host.path("vmd-state"), &owned);
    host.start_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let create = |name: &str| {
        format!(
            "vm create {name} --kernel {} --initrd {} --memory 96M --network n",
            host.path("vmlinuz"),
            host.path("initrd.img")
        )
    };
    let (web, late) = (create("web"), create("late"));
    host.ok(&web);
    host.ok("vm start web");
    let pid = |host: &TestHost| host.ok_json("vm show web")["status"]["pid"].clone();
    let before = pid(&host);
    small.fill();
    for restart in [false, true] {
        if restart {
            host.kill_vmd();
            host.start_vmd();
        }
        let refused = host.kvmctl(&late.split(' ').collect::<Vec<_>>());
        assert!(refused.code != 0 && refused.stderr.contains("full"), "{}", refused.stderr);
        assert!(!Path::new(&host.path("vmd-state/vms/late")).exists());
        assert_eq!(pid(&host), before, "the same run");
        assert!(host.ok("vm list").contains("running"));
        assert!(host.kvmctl(&["host", "show"]).stdout.contains("degraded"));
        becomes(&host.vmd_address(), false, ("vmd.v1.VmService", "events.v1.EventService"));
        becomes(&host.netd_address(), true, NETD);
    }
    small.make_room();
    becomes(&host.vmd_address(), true, ("vmd.v1.VmService", "events.v1.EventService"));
    wait::until("a machine to be made again", || {
        (host.kvmctl(&late.split(' ').collect::<Vec<_>>()).code == 0).then_some(())
    });
    host.ok("vm stop web --force");
}
