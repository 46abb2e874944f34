//! Both daemons as units of a real systemd, with a kernel whose cgroup v2 has all controllers: in a Debian machine.

use integration_tests::{
    debian,
    host::{TestHost, VMD_UID, program_path, workspace},
    machine::Console,
    netns, wait,
};
use serde_json::Value;
use std::{fs, path::Path, process::Command, time::Instant};

/// memory.max of a machine of 64 MiB and one virtual CPU, by README: with KVM, and what is added with TCG.
const LIMIT: u64 = (64 << 20) + (64 << 20) / 128 + (256 << 20) + (8 << 20);
const TCG: u64 = 1152 << 20;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("folder")).expect("folder");
    fs::copy(from, to).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
}

/// A disk with what is to be installed: programs without debugging symbols, nft with its libraries, units, users and
/// folders, in the places that README names.
fn disk(host: &TestHost) -> String {
    let root = host.dir.path().join("install");
    for (program, name) in
        [("netd", "netd"), ("vmd", "vmd"), ("kvmctl", "kvmctl"), ("fake-qemu", "qemu-system-x86_64")]
    {
        let to = root.join("usr/local/bin").join(name);
        copy(&program_path(program), &to);
        netns::run(Command::new("strip").arg(&to));
    }
    copy(Path::new("/usr/sbin/nft"), &root.join("usr/sbin/nft"));
    let libraries = netns::run(Command::new("ldd").arg("/usr/sbin/nft"));
    for library in
        String::from_utf8_lossy(&libraries.stdout).lines().filter_map(|line| line.split_once("=> "))
    {
        let path = Path::new(library.1.split(' ').next().expect("path"));
        copy(path, &root.join("usr/lib/x86_64-linux-gnu").join(path.file_name().expect("name")));
    }
    for daemon in ["netd", "vmd"] {
        let folder = workspace().join(daemon);
        let unit = format!("{daemon}.service");
        copy(&folder.join(&unit), &root.join("etc/systemd/system").join(unit));
        for sort in ["sysusers", "tmpfiles"] {
            let file = folder.join(format!("{daemon}.{sort}.conf"));
            copy(&file, &root.join(format!("etc/{sort}.d/{daemon}.conf")));
        }
    }
    copy(&workspace().join("vmd/vmd.before-254.conf"), &root.join("root/before-254.conf"));
    let image = host.path("install.img");
    netns::run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).args([&image, "256M"]));
    std::os::unix::fs::chown(&image, Some(VMD_UID), Some(VMD_UID)).expect("chown");
    image
}

fn json(console: &mut Console, command: &str) -> Value {
    let text = console.ok(&format!("{command} -o json"));
    // After the shell's prompt.
    let text = text.find('{').map_or("", |begin| &text[begin..]);
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{command}: {e}: {text:?}"))
}

/// What a command prints, without the shell's prompt.
fn word(console: &mut Console, command: &str) -> String {
    console.ok(command).trim().trim_start_matches("# ").to_owned()
}

fn status(console: &mut Console, machine: &str) -> Value {
    json(console, &format!("kvmctl vm show {machine}"))["status"].clone()
}

/// Whether a layer holds, and its reason.
fn layer(of: &Value, name: &str) -> (bool, String) {
    let layers = of["containment"].as_array().expect("containment");
    let layer =
        layers.iter().find(|layer| layer["layer"] == name).unwrap_or_else(|| panic!("no {name}: {of}"));
    (layer["holds"] == true, layer["reason"].as_str().unwrap_or_default().to_owned())
}

/// Waits until a daemon that was killed runs again.
fn kill(console: &mut Console, unit: &str) {
    let main = |console: &mut Console| word(console, &format!("systemctl show -p MainPID --value {unit}"));
    let before = main(console);
    console.ok(&format!("kill -KILL {before}"));
    wait::until(&format!("{unit} again"), || {
        let now = main(console);
        let again = now != before && now != "0";
        (again && console.run(&format!("systemctl is-active {unit}")).0).then_some(())
    });
    wait::until(&format!("an answer of {unit}"), || {
        console.run("kvmctl host show && kvmctl vm list").0.then_some(())
    });
}

#[test]
fn both_daemons_work_as_units_and_a_machine_out_of_memory_ends_alone() {
    if !integration_tests::soak() {
        println!("SKIPPED: it takes minutes; `make soak` does it");
        return;
    }
    let host = TestHost::with_vmd();
    let image = format!("{},format=raw,cache=unsafe", disk(&host));
    let begin = Instant::now();
    let console = &mut debian::boot(&host, "lsm=landlock,capability", &["--memory", "1G", "--disk", &image]);
    println!("Debian is up after {:?}", begin.elapsed());
    console.ok(
        "export SYSTEMD_COLORS=0 PATH=$PATH:/usr/local/bin; mount -o ro /dev/vdb /mnt; cp -rn /mnt/etc /mnt/usr /mnt/root /",
    );
    console.ok("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload");
    console.ok("systemctl start netd vmd || { journalctl -u netd -u vmd --no-pager | tail -40; false; }");
    for daemon in ["netd", "vmd"] {
        let up = wait::try_until(wait::PATIENCE, || {
            console.run(&format!("test -S /run/kvmctl/{daemon}.sock")).0.then_some(())
        });
        let log = console.run(&format!("journalctl -u {daemon} --no-pager | tail -30")).1;
        assert!(up.is_some(), "{daemon} does not serve: {log}");
    }
    let version = console.ok("systemctl --version");
    let number = version.split_whitespace().skip_while(|word| *word != "systemd").nth(1);
    let number = number.and_then(|text| text.parse::<u32>().ok());
    let version = number.unwrap_or_else(|| panic!("no version: {version:?}"));
    console.ok("kvmctl network create n --mode isolated");
    for machine in ["a", "b"] {
        console.ok(&format!("kvmctl vm create {machine} --memory 64M"));
    }
    console.ok("kvmctl vm start a");
    let a = status(console, "a");
    println!("systemd {version}: {}", a["containment"]);
    assert!(layer(&a, "control-group").0, "{a}");
    if version < 254 {
        let (holds, why) = layer(&a, "memory");
        assert!(!holds && why.contains("started in"), "{why}");
        // Nothing keeps systemd from starting it again.
        kill(console, "vmd");
        assert_eq!(status(console, "a")["pid"], a["pid"]);
        console.ok("kvmctl vm stop a --force");
        console.ok(
            "mkdir /etc/systemd/system/vmd.service.d; cp /root/before-254.conf /etc/systemd/system/vmd.service.d/
             systemctl daemon-reload; systemctl restart vmd",
        );
        wait::until("vmd", || console.run("kvmctl vm list").0.then_some(()));
        console.ok("kvmctl vm start a");
    }
    console.ok("kvmctl vm start b");
    let (a, b) = (status(console, "a"), status(console, "b"));
    for name in ["control-group", "memory", "cpu", "processes"] {
        let (holds, reason) = layer(&a, name);
        println!("{name}: {reason}");
        assert!(holds, "{name}: {reason}");
    }
    let group = word(console, &format!("sed -n 's/^0:://p' /proc/{}/cgroup", a["pid"]));
    let group = format!("/sys/fs/cgroup{group}");
    assert!(group.contains("/vm-") && group.ends_with("-a"), "{group}");
    let limit = if a["accelerator"] == "tcg" { LIMIT + TCG } else { LIMIT };
    for (file, expected) in [
        ("memory.max", limit.to_string()),
        ("memory.oom.group", "1".into()),
        ("cpu.max", "200000 100000".into()),
        ("cpu.weight", "20".into()),
        ("pids.max", "1025".into()),
    ] {
        assert_eq!(word(console, &format!("cat {group}/{file}")), expected, "{file}");
    }
    println!("memory.max of a machine of 64 MiB, {}: {limit}", a["accelerator"]);
    for unit in ["vmd", "netd"] {
        kill(console, unit);
    }
    let adopted = wait::until("adoption", || {
        let now = status(console, "a");
        (now["adopted"] == true).then_some(now)
    });
    assert_eq!(adopted["pid"], a["pid"]);
    // More than this machine has is its limit: another one makes it quick.
    console.ok(&format!("echo {} >{group}/memory.max", 64 << 20));
    let (_, words) = console.run(&format!(
        "sh -c 'echo $$ >{group}/cgroup.procs; head -c 300M /dev/zero | tail >/dev/null'; dmesg | grep -i 'memory cgroup' | tail -3"
    ));
    println!("{words}");
    let ended = wait::until("the end", || {
        let now = status(console, "a");
        (now["state"] == "failed").then_some(now)
    });
    assert_eq!(ended["exit_reason"], "out of memory, by its limit of 64 MiB");
    assert_eq!(status(console, "b")["pid"], b["pid"]);
    assert!(console.run(&format!("test ! -e {group}")).0, "the group stays");
    println!("{}; the other machine goes on", ended["exit_reason"]);
    console.ok("kvmctl vm stop b --force");
    for machine in ["a", "b"] {
        console.ok(&format!("kvmctl vm delete {machine}"));
    }
    console.ok("kvmctl network delete n");
    let left = console
        .ok("ip -br link; nft list tables; ls -d /sys/fs/cgroup/*/*/vm-* /sys/fs/cgroup/*/vm-* || true");
    assert!(!left.contains("kvb-") && !left.contains("kvp-") && !left.contains("/vm-"), "{left}");
    println!("the whole in {:?}", begin.elapsed());
}
