//! A dnsmasq that a guest's packet has taken over: it gets to its own network's files, and to nothing else.

use integration_tests::{
    guest::Guest,
    host::{TestHost, VMD_UID, program_path},
    netns,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Child, Command, Stdio},
};

/// Nobody's on any system.
const NETD_UID: u32 = 64_054;
/// What netd gives dnsmasq where it is not root.
const CAPABILITIES: &str = "+net_admin,+net_raw,+net_bind_service";

/// A process that may be attacked, until it is dropped.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Words of a command that becomes another user.
fn as_user(uid: u32) -> Vec<String> {
    let words = format!("setpriv --reuid {uid} --regid {uid} --clear-groups");
    words.split(' ').map(str::to_owned).collect()
}

/// What `kvmctl host show` warns of. There is no vmd, of which it complains.
fn warnings(host: &TestHost) -> serde_json::Value {
    let shown = host.kvmctl(&["host", "show", "-o", "json"]).stdout;
    serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")["netd"]["warnings"].take()
}

/// What the probe tells of each attempt, and of what dnsmasq needs.
fn told(text: &str, what: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(what)?.trim().split_once(' '));
    lines.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
}

/// Who netd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Netd {
    Root,
    /// By `--user`.
    BecomesUser,
    /// By what started it, as by netd.service.
    IsUser,
}

/// What a process of netd's user cannot do to netd, which has made itself no debugger's.
const NOT_TO_NETD: [&str; 7] = [
    "copy-memory-of-netd",
    "read-environ-of-netd",
    "read-maps-of-netd",
    "read-mem-of-netd",
    "score-of-netd",
    "trace-netd",
    // Nor to any file of root's.
    "write-passwd",
];

/// Has a probe in dnsmasq's place on a nat and on an isolated network.
fn steal(netd: Netd) {
    let mut host = TestHost::bare();
    let (user, beyond) = match netd {
        Netd::Root => (None, &[][..]),
        Netd::BecomesUser | Netd::IsUser => (Some(NETD_UID), &NOT_TO_NETD[..]),
    };
    let mut sleep = match user {
        Some(uid) => {
            let words = as_user(uid);
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).arg("sleep");
            command
        }
        None => Command::new("sleep"),
    };
    let victim = Victim(sleep.arg("600").stdout(Stdio::null()).spawn().expect("sleep"));
    let probe = host.path(&format!("stolen-{}", victim.0.id()));
    fs::copy(program_path("stolen-dnsmasq"), &probe).expect("copy");
    let open = host.path("open");
    fs::create_dir(&open).expect("folder");
    fs::write(format!("{open}/file"), "before").expect("file");
    for (path, mode) in [(probe.clone(), 0o755), (open.clone(), 0o777), (format!("{open}/file"), 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    }
    host.netd_arguments = vec!["--dnsmasq".into(), probe.clone()];
    host.netns.sh(&format!("mknod {open}/tun c 10 200 && chmod 666 {open}/tun"));
    match netd {
        Netd::Root => host.start_netd(),
        Netd::BecomesUser => {
            host.netd_arguments.extend(["--user".into(), NETD_UID.to_string()]);
            host.start_netd();
        }
        Netd::IsUser => {
            std::os::unix::fs::chown(host.dir.path(), Some(NETD_UID), None).expect("chown");
            // The socket's group is one of its own.
            let start = format!("setpriv --reuid {NETD_UID} --regid {NETD_UID} --groups {VMD_UID}");
            let capabilities =
                [format!("--inh-caps={CAPABILITIES}"), format!("--ambient-caps={CAPABILITIES}")];
            let start = start.split(' ').chain(capabilities.iter().map(String::as_str));
            host.start_netd_by(&start.collect::<Vec<_>>());
        }
    }
    host.ok("network create other --mode nat --ipv4 10.63.0.1/24");
    host.ok("network create nat --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create apart --mode isolated --ipv4 10.62.0.1/24 --dhcp on");
    let before = fs::metadata(host.path("netd-state")).expect("folder").mode();

    // The same program with the same user and capabilities, outside.
    let mut control = host.netns.command("env");
    if let Some(uid) = user {
        control.args(as_user(uid));
        control.args([format!("--inh-caps={CAPABILITIES}"), format!("--ambient-caps={CAPABILITIES}")]);
    }
    control.arg(&probe).arg(format!("--conf-file={}", host.path("netd-run/nat/dnsmasq.conf")));
    control.arg(format!("--netd={}", host.netd_pid()));
    let outside = String::from_utf8_lossy(&netns::output(&mut control).stderr).into_owned();
    let outside = told(&outside, "PROBE ");
    let could = |name: &str| outside.get(name).is_some_and(|outcome| outcome.starts_with("ESCAPED"));

    for network in ["nat", "apart"] {
        let log = fs::read_to_string(host.path(&format!("netd-run/{network}/dnsmasq.log"))).expect("log");
        let (inside, needed) = (told(&log, "PROBE "), told(&log, "NEEDED "));
        for (what, outcome) in &inside {
            assert!(outcome.starts_with("denied"), "{network}: {what}: {outcome}\n{log}");
        }
        // Else it would say nothing that they are denied inside.
        let never: Vec<&str> = inside.keys().map(String::as_str).filter(|what| !could(what)).collect();
        assert_eq!(never, beyond, "outside: {outside:#?}");
        assert!(inside.len() >= 60 && inside.len() == outside.len(), "{log}");
        assert_eq!(needed.len(), 4, "{log}");
        let limits =
            fs::read_to_string(format!("/proc/{}/limits", host.servers(network)[0])).expect("limits");
        let size = limits.lines().find(|line| line.starts_with("Max file size")).expect("a limit");
        let words: Vec<&str> = size.split_whitespace().collect();
        assert_eq!(words[3..5], ["16777216"; 2], "{size}");
        assert!(needed.values().all(|outcome| outcome == "there"), "{needed:?}");
        println!(
            "{netd:?}, {network}: {} attempts of a stolen dnsmasq, all denied; outside {} of them succeed",
            inside.len(),
            inside.keys().filter(|what| could(what)).count()
        );
    }
    assert_eq!(fs::metadata(host.path("netd-state")).expect("folder").mode(), before);
    assert_eq!(fs::read_to_string(format!("{open}/file")).expect("file"), "before");
    assert_eq!(fs::read_dir(&open).expect("folder").count(), 2);
    assert_eq!(warnings(&host), serde_json::json!([]));
    for network in ["other", "nat", "apart"] {
        host.ok(&format!("network delete {network}"));
    }
}

#[test]
fn a_stolen_dnsmasq_of_a_netd_that_is_root_gets_nowhere() {
    steal(Netd::Root);
}

#[test]
fn a_stolen_dnsmasq_with_netds_own_uid_gets_nowhere() {
    steal(Netd::BecomesUser);
}

#[test]
fn a_stolen_dnsmasq_of_a_netd_that_was_never_root_gets_nowhere() {
    steal(Netd::IsUser);
}

#[test]
fn netds_own_user_is_nobody_to_netd() {
    let mut host = TestHost::bare();
    host.netd_arguments = vec!["--user".into(), NETD_UID.to_string()];
    host.start_netd();
    // By owning the socket it connects, and by the group, in which others are operators.
    for group in [NETD_UID, VMD_UID] {
        for arguments in [&["network", "list"][..], &["network", "create", "n", "--mode", "nat"]] {
            let kvmctl = host.kvmctl_command(arguments);
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &NETD_UID.to_string(), "--regid", &group.to_string(), "--clear-groups"]);
            command.arg(kvmctl.get_program()).args(kvmctl.get_args());
            command.envs(kvmctl.get_envs().filter_map(|(key, value)| Some((key, value?))));
            let output = netns::output(&mut command);
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert!(words.contains(&format!("uid {NETD_UID}")), "{words}");
        }
    }
    assert_eq!(host.ok_json("network list"), serde_json::json!([]));
    let audit = fs::read_to_string(host.path("netd-state/audit.jsonl")).expect("audit log");
    let refused = audit.lines().filter(|line| line.contains(&format!("\"uid\":{NETD_UID}"))).count();
    assert_eq!(refused, 4, "{audit}");
    println!("netd's own uid towards netd: {refused} calls, all refused, all in the audit log");
}

#[test]
fn a_kernel_without_landlock_is_told_of_and_guests_are_served() {
    let mut host = TestHost::bare();
    let forbid = program_path("forbid").display().to_string();
    host.start_netd_by(&[&forbid, "landlock", "--"]);
    let shown = warnings(&host).to_string();
    assert!(shown.contains("no Landlock"), "{shown}");
    let log = fs::read_to_string(host.path("netd.log")).expect("log");
    assert!(log.contains("no Landlock"), "{log}");
    host.ok("network create nat --mode nat --ipv4 10.60.0.1/24");
    let (tap, mac) = host.port("nat", "a");
    let guest = Guest::plug(&host.netns, &tap, &mac);
    assert!(guest.dhcp4(&[]).is_some(), "no address by DHCP");
    println!("without Landlock: {shown}");
}
