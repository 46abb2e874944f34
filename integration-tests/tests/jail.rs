//! What a QEMU that its guest has taken over can reach: nothing of the host.

use integration_tests::{
    host::{SUBORDINATE_IDS, TestHost, VMD_UID, program_path},
    machine::{CMDLINE, Console},
    netns, wait,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram, UnixStream},
        },
    },
};

/// Layers that hold on any Linux of today.
const LAYERS: [&str; 9] = [
    "user-namespace",
    "own-user",
    "network",
    "files",
    "capabilities",
    "landlock",
    "system-calls",
    "limits",
    "control-group",
];
/// Layers that hold where cgroup v2 has what they need (`cgroups.rs`).
const BY_CONTROLLER: [&str; 3] = ["memory", "cpu", "processes"];

fn start(host: &TestHost, name: &str) -> Value {
    start_with(host, name, &[])
}

fn start_with(host: &TestHost, name: &str, more: &[&str]) -> Value {
    let cmdline = format!("{CMDLINE} kv.name={name}");
    let (kernel, initrd) = (host.path("vmlinuz"), host.path("initrd.img"));
    let arguments = ["vm", "run", name, "--memory", "256M", "--kernel", &kernel, "--initrd", &initrd];
    let outcome = host.kvmctl(&[&arguments[..], &["--cmdline", &cmdline, "--network", "n"], more].concat());
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
    let of_any_linux = all.iter().filter(|layer| !BY_CONTROLLER.iter().any(|name| layer["layer"] == *name));
    let (holds, missing): (Vec<_>, Vec<_>) = of_any_linux.partition(|layer| layer["holds"] == true);
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

/// The words that tell a program that attacks whom to attack; sockets that any user of the host can send to, as long as
/// they are held.
fn targets(host: &TestHost, other: u64) -> (String, [UnixDatagram; 2]) {
    let letterbox = host.path("letterbox");
    let _ = fs::remove_file(&letterbox);
    let open = UnixDatagram::bind(&letterbox).expect("socket");
    fs::set_permissions(&letterbox, fs::Permissions::from_mode(0o777)).expect("mode");
    let name = format!("kvt-{}", letterbox.replace('/', "-"));
    let address = SocketAddr::from_abstract_name(&name).expect("address");
    let hidden = host.netns.enter(|| UnixDatagram::bind_addr(&address)).expect("socket");
    let words = format!(
        "other={other} disk={} state={} run={} socket={letterbox} netd={} abstract={name}",
        host.path("disk.img"),
        host.path("vmd-state/state.db"),
        host.path("vmd-run/vms"),
        host.path("netd.sock"),
    );
    (words, [open, hidden])
}

/// What a program writes that runs in QEMU's place and attacks `other`, a process, and all else.
fn attack(host: &TestHost, other: u64) -> String {
    let (words, _sockets) = targets(host, other);
    let words = format!("vmd={} {words}", host.vmd_pid());
    let kernel = host.path("vmlinuz");
    let create = ["vm", "create", "mallory", "--kernel", &kernel, "--network", "n", "--cmdline", &words];
    assert_eq!(host.kvmctl(&create).code, 0);
    let refused = host.kvmctl(&["vm", "start", "mallory"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    let log = fs::read_dir(host.path("vmd-state/vms/mallory")).expect("log").flatten();
    let log = log.filter(|entry| entry.file_name().to_string_lossy().starts_with("qemu"));
    log.map(|entry| fs::read_to_string(entry.path()).expect("log")).collect()
}

/// Without anything around it, the program gets far: what it says otherwise is not for want of trying. It is not told of
/// vmd, which has the same user here, and which it would stop.
fn attack_from_outside(host: &TestHost, other: u64) {
    let (words, _sockets) = targets(host, other);
    let id = VMD_UID.to_string();
    let mut command = host.netns.command("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", &host.path("escape"), "-append", &words]);
    let report = String::from_utf8_lossy(&netns::output(&mut command).stderr).into_owned();
    for possible in [
        "open-passwd",
        "list-proc",
        "socket-tcp",
        "fork",
        "send-to-vmds-socket",
        "send-to-hosts-abstract-socket",
    ] {
        assert!(report.contains(&format!("PROBE {possible} ESCAPED")), "{possible}\n{report}");
    }
}

/// How many attempts were denied, and those that were not.
fn count(report: &str) -> (usize, Vec<&str>) {
    let attempts = report.lines().filter(|line| line.starts_with("PROBE "));
    let (denied, escaped): (Vec<_>, Vec<_>) =
        attempts.partition(|line| line.split(' ').nth(2) == Some("denied"));
    assert!(report.contains(&format!("DONE {}\n", denied.len() + escaped.len())), "{report}");
    (denied.len(), escaped)
}

/// A host whose vmd starts the program that attacks; what was started before goes on.
fn with_attacker(host: &mut TestHost) {
    let escape = host.path("escape");
    fs::copy(program_path("escape"), &escape).expect("copy");
    host.qemu = Some(escape);
}

#[test]
fn attempts_to_escape_are_denied() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode isolated");
    fs::write(host.path("disk.img"), [0; 4096]).expect("disk");
    fs::set_permissions(host.path("disk.img"), fs::Permissions::from_mode(0o666)).expect("mode");
    let other = pid(&start(&host, "other"));
    host.kill_vmd();
    with_attacker(&mut host);
    host.start_vmd();
    attack_from_outside(&host, other);
    let report = attack(&host, other);
    let (denied, escaped) = count(&report);
    println!("{denied} attempts to escape denied, {} not", escaped.len());
    assert!(escaped.is_empty(), "{escaped:#?}\n{report}");
    assert!(denied >= 100, "{denied}");
    // Standard ones, two monitors, the serial port, the tap; 3 was the gate.
    let descriptors = report.lines().find_map(|line| line.strip_prefix("DESCRIPTORS ")).expect("descriptors");
    assert_eq!(descriptors, "0 1 2 4 5 6 7");
    assert_eq!(vm(&host, "other")["status"]["state"], "running");
    host.ok("vm stop other --force");
}

/// A monitor of a machine, as root may open it.
fn monitor(host: &TestHost, name: &str) -> impl FnMut(Value) -> Option<Value> + use<> {
    let socket = UnixStream::connect(host.path(&format!("vmd-run/vms/{name}/qmp1"))).expect("monitor");
    socket.set_read_timeout(Some(wait::PATIENCE)).expect("timeout");
    let mut lines = BufReader::new(socket.try_clone().expect("socket")).lines();
    let mut ask = move |command: Value| {
        writeln!(&socket, "{command}").ok()?;
        // The greeting and events are between answers.
        lines.by_ref().map_while(Result::ok).find_map(|line| {
            let answer: Value = serde_json::from_str(&line).expect("JSON");
            (answer.get("return").or(answer.get("error")).is_some()).then_some(answer)
        })
    };
    ask(json!({"execute": "qmp_capabilities"})).expect("answer");
    ask
}

/// A qcow2 image of 1 MiB without data, before a raw one whose first bytes are known.
fn images(host: &TestHost) -> String {
    let (base, middle, top) = (host.path("base"), host.path("middle"), host.path("top"));
    let mut bytes = vec![0; 1 << 20];
    bytes[..12].copy_from_slice(b"from-behind\n");
    fs::write(&base, bytes).expect("image");
    // QEMU's format: a cluster each of header, first table, refcount table, refcounts of these four.
    let image = |backing: &str, format: &str| {
        let mut image = vec![0; 4 << 16];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let long = |value: u64| value.to_be_bytes();
        let word = |value: u32| value.to_be_bytes();
        put(0, b"QFI\xfb");
        put(4, &word(3));
        put(8, &long(512));
        put(16, &word(u32::try_from(backing.len()).expect("length")));
        put(20, &word(16));
        put(24, &long(1 << 20));
        put(36, &word(1));
        put(40, &long(1 << 16));
        put(48, &long(2 << 16));
        put(56, &word(1));
        put(96, &word(4));
        put(100, &word(104));
        put(104, &word(0xe279_2aca));
        put(108, &word(u32::try_from(format.len()).expect("length")));
        put(112, format.as_bytes());
        put(512, backing.as_bytes());
        put(2 << 16, &long(3 << 16));
        for cluster in 0..4 {
            put((3 << 16) + 2 * cluster, &1_u16.to_be_bytes());
        }
        image
    };
    fs::write(&middle, image("base", "raw")).expect("image");
    fs::write(&top, image(&middle, "qcow2")).expect("image");
    for file in [&base, &middle, &top] {
        // Of vmd's user alone: QEMU's may open none of them.
        std::os::unix::fs::chown(file, Some(VMD_UID), None).expect("owner");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("mode");
    }
    top
}

/// What a VNC server says first.
fn greets(mut display: impl Read) -> bool {
    let mut greeting = [0; 4];
    display.read_exact(&mut greeting).is_ok() && &greeting == b"RFB "
}

#[test]
fn a_qemu_that_is_told_to_open_files_and_programs_of_the_host_does_not() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode isolated");
    let kernel = host.path("vmlinuz");
    // Only vmd's user may read it: QEMU, another user, still boots it. A copy: the file has other names.
    let copy = host.path("vmlinuz.copy");
    fs::copy(&kernel, &copy).expect("copy");
    fs::rename(&copy, &kernel).expect("rename");
    fs::set_permissions(&kernel, fs::Permissions::from_mode(0o600)).expect("mode");
    std::os::unix::fs::chown(&kernel, Some(VMD_UID), None).expect("owner");
    fs::write(host.path("disk.img"), [0; 4096]).expect("disk");
    fs::set_permissions(host.path("disk.img"), fs::Permissions::from_mode(0o666)).expect("mode");
    host.vmd_arguments.push("--require-containment".into());
    host.kill_vmd();
    host.start_vmd();
    let top = images(&host);
    let machine = start_with(&host, "a", &["--disk", &format!("{top},format=qcow2"), "--vnc=unix"]);
    let display = machine["status"]["vnc_address"].as_str().expect("display").to_owned();
    assert!(greets(UnixStream::connect(display.strip_prefix("unix:").expect("path")).expect("display")));
    let mut console = {
        wait::until("a to be up", || host.ok("vm log a").contains("GUEST READY a").then_some(()));
        Console::attach(&host, "a")
    };
    assert_eq!(console.ok("head -c 12 /dev/vda").trim(), "from-behind");
    let tcp = start_with(&host, "b", &["--vnc=tcp"]);
    let display = tcp["status"]["vnc_address"].as_str().expect("display").to_owned();
    assert!(display.starts_with("127.0.0.1:59"), "{display}");
    assert!(greets(host.netns.enter(|| TcpStream::connect(&display)).expect("display")));
    host.ok("vm stop b --force");
    let mut ask = monitor(&host, "a");
    let disk = host.path("disk.img");
    let sockets = host.path("netd.sock");
    let mut denied = 0;
    for (file, writable) in [
        ("/etc/passwd", false),
        ("/etc/hostname", false),
        (disk.as_str(), true),
        ("/proc/self/maps", false),
        ("/dev/mem", false),
        ("/kernel", true),
    ] {
        let node = json!({"driver": "file", "node-name": format!("n{denied}"), "filename": file,
                          "read-only": !writable, "auto-read-only": false});
        let answer = ask(json!({"execute": "blockdev-add", "arguments": node})).expect("answer");
        println!("blockdev-add of {file}: {}", answer["error"]["desc"]);
        assert!(answer["error"]["desc"].is_string(), "{file}: {answer}");
        denied += 1;
    }
    for (what, chardev) in [
        (
            "a socket of netd",
            json!({"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": sockets}},
                                    "server": false}}),
        ),
        (
            "a port of the host",
            json!({"type": "socket", "data": {"server": false,
                                      "addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "22"}}}}),
        ),
        ("a file of the host", json!({"type": "file", "data": {"out": "/tmp/x"}})),
        ("a terminal", json!({"type": "pty", "data": {}})),
    ] {
        let arguments = json!({"id": format!("c{denied}"), "backend": chardev});
        let answer = ask(json!({"execute": "chardev-add", "arguments": arguments})).expect("answer");
        println!("chardev-add of {what}: {}", answer["error"]["desc"]);
        assert!(answer["error"]["desc"].is_string(), "{what}: {answer}");
        denied += 1;
    }
    let tap = json!({"type": "tap", "id": "t", "ifname": "kvp-other", "script": "no", "downscript": "no"});
    let answer = ask(json!({"execute": "netdev_add", "arguments": tap})).expect("answer");
    println!("netdev_add of a tap by name: {}", answer["error"]["desc"]);
    assert!(answer["error"]["desc"].is_string(), "{answer}");
    denied += 1;
    // The guest has noticed nothing.
    console.ok("true");
    assert_eq!(pid(&vm(&host, "a")), pid(&machine));
    let uri = json!({"uri": "exec:touch /tmp/kvt-migrated"});
    let answer = ask(json!({"execute": "migrate", "arguments": uri}));
    println!("{denied} denied by QMP; migrate exec: {answer:?}");
    assert!(!std::path::Path::new("/tmp/kvt-migrated").exists());
    match answer {
        // Refused, and the guest goes on.
        Some(answer) => {
            assert!(answer["error"]["desc"].is_string(), "{answer}");
            console.ok("true");
            host.ok("vm stop a --force");
        }
        // QEMU's own filter kills it at the attempt, which the machine says.
        None => {
            let error = wait::until("the end to be noticed", || {
                let status = vm(&host, "a")["status"].clone();
                (status["state"] == "failed").then(|| status["error"].clone())
            });
            println!("after migrate exec: {error}");
            assert!(error.as_str().is_some_and(|error| error.contains("signal 31")), "{error}");
        }
    }
    assert_eq!(host.machines(), Vec::<u32>::new());
}

/// A process of another machine, where all machines have vmd's user.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(host: &TestHost) -> Self {
        let id = VMD_UID.to_string();
        Self(host.netns.spawn("setpriv", &["--reuid", &id, "--regid", &id, "--clear-groups", "sleep", "600"]))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a host lacks, what is then missing with which word in the reason, and which attempts may be denied by nothing any more:
/// the number of processes is the host's own limit then.
struct Poorer {
    what: &'static str,
    starter: &'static [&'static str],
    subordinate_ids: bool,
    missing: &'static [(&'static str, &'static str)],
    escaped: &'static [&'static str],
    hint: &'static str,
}

const POORER: [Poorer; 5] = [
    Poorer {
        what: "no subordinate ids",
        starter: &[],
        subordinate_ids: false,
        missing: &[("own-user", "/etc/subuid gives `kvt-vmd` no ids")],
        escaped: &["raise-processes"],
        hint: "usermod --add-subuids",
    },
    Poorer {
        what: "no new privileges, as in a container: newuidmap cannot do its work",
        starter: &["setpriv", "--no-new-privs"],
        subordinate_ids: true,
        missing: &[("own-user", "newgidmap")],
        escaped: &["raise-processes"],
        hint: "NoNewPrivileges",
    },
    Poorer {
        what: "no user namespaces, as a container's seccomp profile has it",
        starter: &["forbid", "namespaces", "--"],
        subordinate_ids: true,
        missing: &[
            ("user-namespace", "Operation not permitted"),
            ("own-user", "needs a user namespace"),
            ("network", "needs a user namespace"),
            ("files", "needs a user namespace"),
        ],
        // The bounding set is of no use to one that has no new privileges.
        escaped: &["bounding-set", "raise-processes"],
        hint: "user.max_user_namespaces",
    },
    Poorer {
        what: "no mounts in a user namespace",
        starter: &["forbid", "mounts", "--"],
        subordinate_ids: true,
        missing: &[("own-user", "newgidmap"), ("files", "Operation not permitted")],
        escaped: &["raise-processes"],
        hint: "NoNewPrivileges",
    },
    Poorer {
        what: "no Landlock",
        starter: &["forbid", "landlock", "--"],
        subordinate_ids: true,
        missing: &[("own-user", "newgidmap"), ("landlock", "no Landlock")],
        // Who has vmd's user may signal vmd.
        escaped: &["raise-processes", "signal-vmd", "signal-other-machine"],
        hint: "lsm=",
    },
];

#[test]
fn a_host_that_forbids_a_layer_is_named_and_the_others_hold() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode isolated");
    with_attacker(&mut host);
    let forbid = host.path("forbid");
    fs::copy(program_path("forbid"), &forbid).expect("copy");
    let ids = fs::read_to_string(host.path("etc/subuid")).expect("ids");
    let sleeper = Sleeper::start(&host);
    for poorer in &POORER {
        println!("{}", poorer.what);
        host.kill_vmd();
        fs::write(host.path("etc/subuid"), if poorer.subordinate_ids { ids.as_str() } else { "" })
            .expect("ids");
        host.vmd_starter = poorer
            .starter
            .iter()
            .map(|word| if *word == "forbid" { forbid.clone() } else { (*word).into() })
            .collect();
        host.vmd_arguments.clear();
        host.start_vmd();
        let shown = host.ok_json("host show")["vmd"].clone();
        let (holds, missing) = layers(&shown);
        let expected: BTreeSet<_> = poorer.missing.iter().map(|(layer, _)| (*layer).to_owned()).collect();
        let named: BTreeSet<_> = missing.iter().map(|(layer, _)| layer.clone()).collect();
        assert_eq!(named, expected, "{missing:?}");
        assert_eq!(holds.len() + named.len(), LAYERS.len(), "{holds:?}");
        for (layer, word) in poorer.missing {
            let (_, reason) = missing.iter().find(|(name, _)| name == layer).expect("layer");
            println!("  {layer}: {reason}");
            assert!(reason.contains(word), "{layer}: {reason}");
            assert!(host.ok("host show").contains(reason.as_str()));
        }
        let report = attack(&host, sleeper.0.id().into());
        let (denied, escaped) = count(&report);
        let escaped: Vec<&str> = escaped.iter().filter_map(|line| line.split(' ').nth(1)).collect();
        println!("  {denied} attempts to escape denied, not: {escaped:?}");
        assert!(escaped.iter().all(|name| poorer.escaped.contains(name)), "{escaped:?}\n{report}");
        host.ok("vm delete mallory");
        // A vmd that insists starts nothing here, and says why and what to do.
        host.kill_vmd();
        host.vmd_arguments.push("--require-containment".into());
        host.start_vmd();
        host.ok("vm create mallory --network n");
        let refused = host.kvmctl(&["vm", "start", "mallory"]);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        for word in [poorer.missing[0].1, poorer.hint, "--require-containment"] {
            assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
        }
        assert_eq!(host.machines(), Vec::<u32>::new());
        assert_eq!(host.ok_json("port list"), json!([]));
        host.ok("vm delete mallory");
    }
}
