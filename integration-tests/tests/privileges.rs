//! netd as an ordinary user: all of its work, and nothing beyond it. vmd without a capability.

use integration_tests::{
    census::Census,
    guest::Guest,
    host::{TestHost, VMD_UID, workspace},
    wait,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

/// Nobody's on any system.
const NETD_UID: u32 = 64_054;
/// CAP_NET_BIND_SERVICE, CAP_NET_ADMIN and CAP_NET_RAW.
const KEPT: &str = "0000000000003400";
const NONE: &str = "0000000000000000";

/// Starts netd as root with `--user`. Where udev runs /dev/net/tun is 0666; here netd sees a node that is.
fn start(host: &mut TestHost) {
    let node = host.path("tun");
    let script = format!(
        "[ -e {node} ] || {{ mknod {node} c 10 200; chmod 666 {node}; }}
         mount --bind {node} /dev/net/tun
         exec \"$@\""
    );
    host.netd_arguments = vec!["--user".into(), NETD_UID.to_string()];
    host.start_netd_by(&["sh", "-euc", &script, "sh"]);
}

/// Fields of /proc/PID/status.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(key, value)| (key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn assert_sets(pid: u32, who: &str, uid: u32, sets: [(&str, &str); 5]) {
    let status = status(pid);
    for ids in ["Uid", "Gid"] {
        assert_eq!(status[ids], [uid.to_string().as_str(); 4].join(" "), "{who}: {ids}");
    }
    for (set, expected) in sets {
        assert_eq!(status[set], expected, "{who}: {set}");
    }
    println!(
        "{who}: uid {uid}, {sets:?}, no_new_privs {}, groups `{}`",
        status["NoNewPrivs"], status["Groups"]
    );
}

const ALL_KEPT: [(&str, &str); 5] =
    [("CapInh", KEPT), ("CapPrm", KEPT), ("CapEff", KEPT), ("CapBnd", KEPT), ("CapAmb", KEPT)];

/// Mode and owner of everything in a folder of the host's, by path in it.
fn files(host: &TestHost, folder: &str) -> BTreeMap<String, (u32, u32)> {
    fn walk(path: &Path, root: &Path, found: &mut BTreeMap<String, (u32, u32)>) {
        let meta = fs::symlink_metadata(path).expect("file");
        let name = path.strip_prefix(root).expect("inside").display().to_string();
        found.insert(name, (meta.permissions().mode() & 0o7777, meta.uid()));
        if meta.is_dir() {
            for entry in fs::read_dir(path).expect("folder").flatten() {
                walk(&entry.path(), root, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(Path::new(&host.path(folder)), Path::new(&host.path(folder)), &mut found);
    found
}

#[test]
fn netd_does_all_of_its_work_as_an_ordinary_user() {
    let mut host = TestHost::bare();
    start(&mut host);
    assert_sets(host.netd_pid(), "netd", NETD_UID, ALL_KEPT);
    let netd = status(host.netd_pid());
    assert_eq!((netd["NoNewPrivs"].as_str(), netd["Groups"].as_str()), ("1", ""));
    let bare = Census::of(&host.netns);
    host.ok("network create nat --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create routed --mode routed --ipv4 10.61.0.1/24");
    host.ok("network create apart --mode isolated --ipv4 10.62.0.1/24 --dhcp on");
    host.ok("network create lan --mode bridged --uplink up0");
    assert!(host.netns.succeeds("ping -c 1 -W 5 10.99.0.1"), "the host lost its LAN");
    for network in ["nat", "routed", "apart", "lan"] {
        assert_eq!(host.ok_json(&format!("network show {network}"))["status"]["state"], "ready", "{network}");
    }
    let mut guests = Vec::new();
    for network in ["nat", "routed", "apart"] {
        let (tap, mac) = host.port(network, "a");
        let guest = Guest::plug(&host.netns, &tap, &mac);
        let told = guest.dhcp4(&[]);
        let log =
            fs::read_to_string(host.path(&format!("netd-run/{network}/dnsmasq.log"))).unwrap_or_default();
        assert!(told.is_some(), "{network}: no address by DHCP: {log}");
        let servers = host.servers(network);
        assert_eq!(servers.len(), 1, "{network}");
        // A cell's is in a user namespace of its own, in which it has all sets; outside it is netd's user.
        if network == "apart" {
            assert_eq!(status(servers[0])["Uid"], [NETD_UID.to_string().as_str(); 4].join(" "));
        } else {
            assert_sets(servers[0], "dnsmasq", NETD_UID, ALL_KEPT);
        }
        guests.push(guest);
    }
    host.port("lan", "a");
    host.ok("forward add nat --protocol tcp --listen 8080 --to a:80");
    host.ok("group create web --default-in deny");
    host.ok("port update nat a --filter off");
    let capture = host.path("capture.pcapng");
    let mut capturing =
        host.kvmctl_command(&["port", "capture", "nat", "a", "-w", &capture, "--duration", "3s", "arp"]);
    let mut capturing = capturing.spawn().expect("capture");
    wait::until("a captured frame", || {
        let _ = guests[0].netns.succeeds("ip neigh flush dev eth0; ping -c 1 -W 1 10.60.0.1");
        capturing.try_wait().expect("capture").map(|status| assert!(status.success()))
    });
    assert!(fs::metadata(&capture).expect("file").len() > 200, "nothing was captured");
    host.ok("doctor");
    // The next netd takes all of it over.
    let links = |host: &TestHost| host.netns.sh("ip -o link | sed 's/ state [A-Z]*//'");
    let (servers, before) = (host.servers("nat"), links(&host));
    host.kill_netd();
    start(&mut host);
    assert_eq!(links(&host), before);
    assert_eq!(host.servers("nat"), servers);
    modes(&host);
    drop(guests);
    for network in ["nat", "routed", "apart", "lan"] {
        host.ok(&format!("network delete {network} --force"));
    }
    bare.assert_same(&Census::of(&host.netns));
}

/// Everything that netd made has exactly these modes, and is its user's.
fn modes(host: &TestHost) {
    let mut seen = 0;
    for folder in ["netd-state", "netd-run"] {
        for (name, (mode, uid)) in files(host, folder) {
            let file = name.rsplit('/').next().unwrap_or_default();
            let expected = match (folder, name.as_str()) {
                ("netd-state", "") => 0o700,
                ("netd-state", _) => 0o600,
                ("netd-run", "") => 0o711,
                _ if ["hosts", "names"].contains(&file) || !name.contains('/') => 0o750,
                _ if ["dnsmasq.log", "leases"].contains(&file) => 0o640,
                _ => 0o644,
            };
            assert_eq!((mode, uid), (expected, NETD_UID), "{folder}/{name}: {mode:o}");
            seen += 1;
        }
    }
    let socket = fs::symlink_metadata(host.path("netd.sock")).expect("socket");
    assert_eq!((socket.mode() & 0o7777, socket.uid(), socket.gid()), (0o660, NETD_UID, VMD_UID));
    println!("{seen} files with exactly the mode and owner that they are to have");
}

#[test]
fn what_a_netd_that_was_root_left_is_taken_over() {
    let mut host = TestHost::new();
    host.ok("network create nat --mode nat --ipv4 10.60.0.1/24");
    host.port("nat", "a");
    let old = host.servers("nat");
    assert_ne!(status(old[0])["Uid"], [NETD_UID.to_string().as_str(); 4].join(" "));
    let before = Census::of(&host.netns);
    host.kill_netd();
    start(&mut host);
    before.assert_same(&Census::of(&host.netns));
    wait::until("a server of netd's own user", || {
        let now = host.servers("nat");
        (now.len() == 1 && now != old).then(|| assert_sets(now[0], "dnsmasq", NETD_UID, ALL_KEPT))
    });
    assert_eq!(host.ok_json("network show nat")["status"]["state"], "ready");
    modes(&host);
}

/// A program in nft's place has all that netd has. It tries once.
const PROBE: &str = r#"#!/bin/sh
dir=DIR
run=$dir/netd-run
try() { # NAME COMMAND...
    name=$1; shift
    if "$@" >/dev/null 2>&1; then echo "$name done"; else echo "$name refused"; fi
}
if (set -C; : >$run/probing) 2>/dev/null; then
{
try own-folder sh -c "echo x >$run/x"
try sysctl sh -c 'echo 1 >/proc/sys/net/ipv4/conf/lo/forwarding'
try open-folder sh -c "echo x >$dir/open/x"
try open-file sh -c "echo x >>$dir/open/file"
try truncate sh -c ": >$dir/open/file"
try remove rm $dir/open/file
try rename mv $dir/open/file $dir/open/other
try hard-link ln $dir/open/file $run/linked
try symlink ln -s /etc/passwd $dir/open/link
try device mknod $dir/open/null c 1 3
try folder mkdir $dir/open/folder
try tmp sh -c "echo x >/tmp/kvt-probe-$$"
try shm sh -c "echo x >/dev/shm/kvt-probe-$$"
try kernel sh -c 'echo x >/proc/sys/kernel/domainname'
try core-pattern sh -c 'echo x >/proc/sys/kernel/core_pattern'
try vmds-state ls $dir/vmd-state
try mount mount -t tmpfs x $run
try setuid setpriv --reuid 0 true
try chown chown 0 $run/x
try module modprobe dummy
try raw-disk dd if=/dev/vda of=/dev/null count=1
try kill-others kill -0 1
try ptrace-others cat /proc/1/environ
} >$run/probe.new
mv $run/probe.new $run/probe
fi
exec $dir/real-nft "$@"
"#;

#[test]
fn a_stolen_netd_writes_nowhere_but_to_its_own_folders() {
    let mut host = TestHost::bare();
    let (open, probe) = (host.path("open"), host.path("probe"));
    fs::create_dir(&open).expect("folder");
    fs::create_dir(host.path("vmd-state")).expect("folder");
    fs::write(format!("{open}/file"), "before").expect("file");
    fs::write(&probe, PROBE.replace("DIR", &host.dir.path().display().to_string())).expect("probe");
    let nft = host.netns.sh("readlink -f $(command -v nft)").trim().to_owned();
    fs::copy(&nft, host.path("real-nft")).expect("copy");
    for (path, mode) in [
        (open.clone(), 0o777),
        (format!("{open}/file"), 0o666),
        (probe.clone(), 0o755),
        (host.path("vmd-state"), 0o700),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    }
    host.netd_arguments = vec!["--user".into(), NETD_UID.to_string()];
    host.start_netd_by(&["sh", "-euc", &format!("mount --bind {probe} {nft}; exec \"$@\""), "sh"]);
    let said = wait::until("the probe", || fs::read_to_string(host.path("netd-run/probe")).ok());
    let told: BTreeMap<_, _> = said.lines().filter_map(|line| line.split_once(' ')).collect();
    for (what, outcome) in &told {
        let expected = if ["own-folder", "sysctl"].contains(what) { "done" } else { "refused" };
        assert_eq!(*outcome, expected, "{what}\n{said}");
    }
    assert!(told.len() >= 23, "{said}");
    assert_eq!(fs::read_to_string(format!("{open}/file")).expect("file"), "before");
    assert_eq!(fs::read_dir(&open).expect("folder").count(), 1);
    // The same user without netd's confinement can: the probe does find out.
    let control = Command::new("setpriv")
        .args(["--reuid", &NETD_UID.to_string(), "--regid", &NETD_UID.to_string(), "--clear-groups"])
        .args(["sh", "-c", &format!("echo x >>{open}/file && mkdir {open}/folder && rmdir {open}/folder")])
        .status();
    assert!(control.expect("setpriv").success());
    println!(
        "{} attempts of a stolen netd: {} refused, its own folder and sysctls of the network allowed",
        told.len(),
        told.len() - 2
    );
}

#[test]
fn vmd_has_no_capability_and_does_not_run_as_root() {
    let host = TestHost::with_vmd();
    let status = status(host.vmd_pid());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], NONE, "{set}");
    }
    let mut root = Command::new(host.path("vmd"));
    root.args([
        "--socket",
        &host.path("other.sock"),
        "--state-dir",
        &host.path("other"),
        "--run-dir",
        &host.path("other-run"),
    ]);
    let refused = integration_tests::netns::output(&mut root);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("does not run as root"), "{words}");
    assert!(!Path::new(&host.path("other")).exists());
    // What it was given it gives up.
    let mut given = Command::new("setpriv");
    given
        .args(["--reuid", &VMD_UID.to_string(), "--regid", &VMD_UID.to_string(), "--clear-groups"])
        .args(["--inh-caps=+net_admin,+sys_admin", "--ambient-caps=+net_admin,+sys_admin"])
        .arg(host.path("vmd"))
        .args(["--socket", &host.path("vmd-run/second.sock"), "--netd", &host.netd_address()])
        .args(["--state-dir", &host.path("vmd-state/second"), "--run-dir", &host.path("vmd-run/second")]);
    let mut second = given.stderr(std::process::Stdio::null()).spawn().expect("vmd");
    wait::until("the second vmd", || Path::new(&host.path("vmd-run/second.sock")).exists().then_some(()));
    let sets = crate::status(second.id());
    let _ = second.kill();
    let _ = second.wait();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(sets[set], NONE, "{set} of one that was given some");
    }
    println!("vmd: {:?}", ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| &status[set]));
}

#[test]
fn the_units_are_what_systemd_understands() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        println!("SKIPPED: systemd-analyze is not installed");
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    for daemon in ["netd", "vmd"] {
        let unit =
            fs::read_to_string(workspace().join(daemon).join(format!("{daemon}.service"))).expect("unit");
        // The programs need not be installed here.
        let unit = unit
            .replace(&format!("/usr/local/bin/{daemon}"), "/bin/true")
            .replace(" vmd.service", "")
            .replace("netd.service ", "");
        let unit = unit
            .replace("Wants=netd.service\n", "")
            .replace("Before=\n", "")
            .replace("Before=vmd.service\n", "");
        let path = dir.path().join(format!("{daemon}.service"));
        fs::write(&path, unit).expect("unit");
        let output =
            Command::new("systemd-analyze").arg("verify").arg(&path).output().expect("systemd-analyze");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        // systemd before 254 passes over what it does not know.
        let known = words.lines().filter(|line| !line.contains("'DelegateSubgroup'"));
        let wrong: Vec<_> = known.filter(|line| line.contains(daemon)).collect();
        assert!(output.status.success() && wrong.is_empty(), "{words}");
    }
}
