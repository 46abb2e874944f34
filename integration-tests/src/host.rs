//! A host under test: a namespace with the daemons in it, and the LAN it is on.

use crate::{
    group::{self, Group},
    netns::{self, Netns},
    wait,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
};
use tempfile::TempDir;

/// The uid and gid that vmd runs as: nobody's on any system.
pub const VMD_UID: u32 = 64_055;

/// How many ids vmd's user may give machines.
pub const SUBORDINATE_IDS: u32 = 64;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Names the host's folder to all that its daemons start.
const MARK: &str = "KVT_HOST";

/// There where the kernel has bridge netfilter.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A host with netd, and vmd where a test wants it.
#[derive(Debug)]
pub struct TestHost {
    /// The host's namespace. `up0` leads to the LAN: 10.99.0.2/24 and 2001:db8:99::2/64.
    pub netns: Netns,
    /// Another host of that LAN: 10.99.0.1 and 2001:db8:99::1, the host's default gateway.
    pub lan: Netns,
    /// Everything the daemons keep.
    pub dir: TempDir,
    /// Another program in QEMU's place.
    pub qemu: Option<String>,
    /// More environment for daemons and clients.
    pub environment: Vec<(String, String)>,
    /// A program, with arguments, that root runs in vmd's own mount namespace and that becomes vmd.
    pub vmd_starter: Vec<String>,
    /// More arguments for vmd.
    pub vmd_arguments: Vec<String>,
    /// Where beneath `group` vmd is started: `vmd`, or nothing for the group itself. `None`: not in it.
    pub vmd_starts_in: Option<&'static str>,
    /// The control group that is vmd's to divide, since `add_vmd`; `None` where this machine has no cgroup v2.
    pub group: Option<Group>,
    number: u32,
    /// More arguments for netd.
    pub netd_arguments: Vec<String>,
    netd: Option<Child>,
    vmd: Option<Child>,
}

/// What a command of kvmctl did.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// The output as JSON.
    ///
    /// # Panics
    /// If the command failed or printed none.
    #[must_use]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

impl TestHost {
    /// A host on a LAN, without daemons.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    pub fn bare() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let netns = Netns::new("host");
        let lan = Netns::new("lan");
        netns.join("up0", &lan, "lan0");
        netns.sh("ip address add 10.99.0.2/24 dev up0; ip address add 2001:db8:99::2/64 dev up0 nodad
                  ip route add default via 10.99.0.1; ip -6 route add default via 2001:db8:99::1");
        lan.sh("ip address add 10.99.0.1/24 dev lan0; ip address add 2001:db8:99::1/64 dev lan0 nodad");
        let dir = tempfile::Builder::new().prefix("kvt-").tempdir().expect("folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        // vmd runs as a user who may not be able to reach the build folder.
        for program in ["netd", "kvmctl"] {
            link_or_copy(&program_path(program), &dir.path().join(program));
        }
        Self {
            netns,
            lan,
            dir,
            qemu: None,
            environment: Vec::new(),
            vmd_starter: Vec::new(),
            vmd_arguments: Vec::new(),
            vmd_starts_in: Some("vmd"),
            group: None,
            number: NEXT.fetch_add(1, Ordering::Relaxed) % (1024 / SUBORDINATE_IDS),
            netd_arguments: Vec::new(),
            netd: None,
            vmd: None,
        }
    }

    /// A host with netd running.
    #[must_use]
    pub fn new() -> Self {
        let mut host = Self::bare();
        host.start_netd();
        host
    }

    /// A host with netd and vmd running, and the test guest's files in its folder.
    ///
    /// # Panics
    /// If the guest was not built.
    #[must_use]
    pub fn with_vmd() -> Self {
        let mut host = Self::new();
        host.add_vmd();
        host
    }

    /// Adds vmd to a host.
    ///
    /// # Panics
    /// If the guest was not built.
    pub fn add_vmd(&mut self) {
        let host = self;
        link_or_copy(&program_path("vmd"), &host.dir.path().join("vmd"));
        let guest = workspace().join("target/guest");
        for file in ["vmlinuz", "initrd.img"] {
            assert!(guest.join(file).exists(), "no test guest: run `make guest` first");
            link_or_copy(&guest.join(file), &host.dir.path().join(file));
        }
        host.write_users();
        let name = host.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        host.group = Group::new(&name);
        let state = host.dir.path().join("vmd-state");
        let run = host.dir.path().join("vmd-run");
        for folder in [&state, &run] {
            fs::create_dir(folder).expect("folder");
            std::os::unix::fs::chown(folder, Some(VMD_UID), Some(VMD_UID)).expect("chown");
        }
        host.start_vmd();
    }

    /// Files that vmd sees in /etc, in its own mount namespace: it has a user there, who has subordinate ids.
    fn write_users(&self) {
        let etc = self.dir.path().join("etc");
        fs::create_dir(&etc).expect("folder");
        let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        // First: the id may have another name on this machine.
        let user = format!("kvt-vmd:x:{VMD_UID}:{VMD_UID}::/nonexistent:/usr/sbin/nologin\n");
        fs::write(etc.join("passwd"), user + &passwd).expect("passwd");
        // Another range than other tests' that run meanwhile.
        let range = format!("kvt-vmd:{}:{SUBORDINATE_IDS}\n", self.first_subordinate());
        for file in ["subuid", "subgid"] {
            fs::write(etc.join(file), &range).expect("subordinate ids");
        }
    }

    /// The first of the `SUBORDINATE_IDS` ids that vmd may give machines.
    #[must_use]
    pub fn first_subordinate(&self) -> u32 {
        0x4000_0000 + (std::process::id() % 0x10_0000) * 1024 + self.number * SUBORDINATE_IDS
    }

    /// A path in the host's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Starts netd and waits until it serves.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_netd(&mut self) {
        self.start_netd_by(&[]);
    }

    /// As `start_netd`, by a program that becomes the one that its last arguments name, such as setpriv(1).
    ///
    /// # Panics
    /// If netd does not serve.
    pub fn start_netd_by(&mut self, starter: &[&str]) {
        let socket = self.dir.path().join("netd.sock");
        let command = self.netd_command(starter);
        self.netd = Some(self.start(command, "netd.log", &socket));
    }

    /// Starts netd, and waits until it serves, or has ended: then how.
    pub fn try_start_netd(&mut self) -> Option<ExitStatus> {
        let mut child = self.spawn(self.netd_command(&[]), "netd.log");
        let socket = self.dir.path().join("netd.sock");
        let ended = wait::until("netd to serve or to end", || match child.try_wait().expect("netd") {
            Some(status) => Some(Some(status)),
            None => UnixStream::connect(&socket).ok().map(|_| None),
        });
        self.netd = ended.is_none().then_some(child);
        ended
    }

    fn netd_command(&self, starter: &[&str]) -> Command {
        let mut command = self.netns.command("env");
        command
            .args(starter)
            .arg(self.path("netd"))
            .args(["--socket", &self.path("netd.sock"), "--state-dir", &self.path("netd-state")])
            .args(["--run-dir", &self.path("netd-run"), "--socket-group", &VMD_UID.to_string()]);
        command.args(&self.netd_arguments);
        command
    }

    /// Starts vmd as an unprivileged user and waits until it serves.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_vmd(&mut self) {
        let socket = self.dir.path().join("vmd-run/vmd.sock");
        // Where udev runs /dev/net/tun is 0666. Here it may not be: the daemon sees a node that is.
        let script = format!(
            "node={}; [ -e $node ] || {{ mknod $node c 10 200; chmod 666 $node; }}
             mount --bind $node /dev/net/tun
             for file in passwd subuid subgid; do
               [ ! -e {etc}/$file ] || mount --bind {etc}/$file /etc/$file
             done
             {enter}
             exec {starter} setpriv --reuid {VMD_UID} --regid {VMD_UID} --clear-groups \"$@\"",
            self.path("tun"),
            etc = self.path("etc"),
            enter = self.enter_group(),
            starter = self.vmd_starter.join(" "),
        );
        let mut command = self.netns.command("sh");
        command
            .args(["-euc", &script, "sh", &self.path("vmd"), "--socket", &socket.display().to_string()])
            .args([
                "--netd",
                &self.netd_address(),
                "--state-dir",
                &self.path("vmd-state"),
                "--run-dir",
                &self.path("vmd-run"),
                "--accel",
                "tcg",
            ]);
        command.args(&self.vmd_arguments);
        if let Some(qemu) = &self.qemu {
            command.args(["--qemu", qemu]);
        }
        self.vmd = Some(self.start(command, "vmd.log", &socket));
    }

    /// A line of shell that enters the control group as systemd has vmd do.
    fn enter_group(&self) -> String {
        let Some(group) = &self.group else { return String::new() };
        let enter = self.vmd_starts_in.map(|place| format!("echo $$ >{}/{place}/cgroup.procs", group.seen()));
        format!("mount -t cgroup2 none {}; {}", group::SEEN_AT, enter.unwrap_or_default())
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = self.dir.path().join(log);
        let file = fs::OpenOptions::new().create(true).append(true).open(log).expect("log");
        command.env(MARK, self.dir.path()).envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.stdout(file.try_clone().expect("log")).stderr(file).spawn().expect("daemon")
    }

    fn start(&self, command: Command, log: &str, socket: &Path) -> Child {
        let mut child = self.spawn(command, log);
        let log_path = self.dir.path().join(log);
        wait::until(&format!("{} to be there", socket.display()), || {
            if let Some(status) = child.try_wait().expect("daemon") {
                panic!("the daemon ended ({status}): {}", fs::read_to_string(&log_path).unwrap_or_default());
            }
            UnixStream::connect(socket).ok()
        });
        child
    }

    /// netd's address.
    #[must_use]
    pub fn netd_address(&self) -> String {
        format!("unix://{}", self.path("netd.sock"))
    }

    /// vmd's address.
    #[must_use]
    pub fn vmd_address(&self) -> String {
        format!("unix://{}", self.path("vmd-run/vmd.sock"))
    }

    /// netd's process id.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn netd_pid(&self) -> u32 {
        self.netd.as_ref().expect("netd runs").id()
    }

    /// netd's process id, if it was started and not ended by this host.
    #[must_use]
    pub fn netd_id(&self) -> Option<u32> {
        self.netd.as_ref().map(Child::id)
    }

    /// Waits until netd ends by itself, and returns how.
    ///
    /// # Panics
    /// If it was not started, or does not end.
    pub fn await_netds_end(&mut self) -> ExitStatus {
        let mut child = self.netd.take().expect("netd runs");
        wait::until("netd to end", || child.try_wait().expect("netd"))
    }

    /// vmd's process id.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn vmd_pid(&self) -> u32 {
        self.vmd.as_ref().expect("vmd runs").id()
    }

    /// Ends netd by SIGKILL.
    pub fn kill_netd(&mut self) {
        kill(self.netd.take());
    }

    /// Ends vmd by SIGKILL.
    pub fn kill_vmd(&mut self) {
        kill(self.vmd.take());
    }

    /// Waits until vmd ends by itself, and returns how.
    ///
    /// # Panics
    /// If it was not started, or does not end.
    pub fn await_vmds_end(&mut self) -> std::process::ExitStatus {
        let mut child = self.vmd.take().expect("vmd runs");
        wait::until("vmd to end", || child.try_wait().expect("vmd"))
    }

    /// Puts the fake QEMU in QEMU's place, with a manner (see `fake-qemu`). Before `add_vmd`.
    ///
    /// # Panics
    /// If it was not built.
    pub fn fake_qemu(&mut self, manner: &str) {
        let fake = self.path("fake-qemu");
        fs::copy(program_path("fake-qemu"), &fake).expect("copy");
        self.qemu = Some(fake);
        self.environment.push(("FAKE_QEMU".into(), manner.into()));
    }

    /// Processes that run as QEMU for this host, fake or real, with the names of their machines.
    #[must_use]
    pub fn qemus(&self) -> Vec<(u32, String)> {
        // In a jail QEMU is in another namespace, folder and uid; what it was told stays.
        let mark = format!("{MARK}={}", self.dir.path().display());
        let ours = |pid: &u32| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|words| words.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()))
        };
        processes()
            .filter_map(|(pid, words)| {
                let name = words.split('\0').find_map(|word| word.strip_prefix("guest="))?;
                Some((pid, name.to_owned()))
            })
            .filter(|(pid, _)| ours(pid))
            .collect()
    }

    /// A command of kvmctl, not yet run.
    #[must_use]
    pub fn kvmctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("kvmctl"));
        command
            .args(arguments)
            .env("KVMCTL_NETD", self.netd_address())
            .env("KVMCTL_VMD", self.vmd_address())
            .envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs kvmctl as root.
    pub fn kvmctl(&self, arguments: &[&str]) -> Outcome {
        let output = netns::output(&mut self.kvmctl_command(arguments));
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs kvmctl, which has to succeed; arguments are split at blanks.
    ///
    /// # Panics
    /// If it does not; with what it and the daemons said.
    pub fn ok(&self, arguments: &str) -> String {
        let outcome = self.kvmctl(&arguments.split_whitespace().collect::<Vec<_>>());
        assert_eq!(
            outcome.code,
            0,
            "kvmctl {arguments}\n{}{}\n{}",
            outcome.stdout,
            outcome.stderr,
            self.logs()
        );
        outcome.stdout
    }

    /// As `ok`, with `-o json`.
    pub fn ok_json(&self, arguments: &str) -> Value {
        let text = self.ok(&format!("{arguments} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Creates a port and returns its tap and MAC.
    ///
    /// # Panics
    /// If that fails.
    pub fn port(&self, network: &str, name: &str) -> (String, String) {
        self.port_with(network, name, &[])
    }

    /// As `port`, for a guest with these addresses; prefix lengths are passed over.
    ///
    /// # Panics
    /// If that fails.
    pub fn port_with(&self, network: &str, name: &str, addresses: &[&str]) -> (String, String) {
        let options: String = addresses
            .iter()
            .map(|address| format!(" --ip {}", address.split('/').next().unwrap_or_default()))
            .collect();
        let port = self.ok_json(&format!("port create {network} {name}{options}"));
        let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
        (field("interface"), field("mac"))
    }

    /// The settings of bridge netfilter that tests have to hold with: off and, where the kernel has it, on.
    #[must_use]
    pub fn bridge_netfilter_settings(&self) -> Vec<bool> {
        if Path::new(BRIDGE_NETFILTER).exists() {
            return vec![false, true];
        }
        println!("SKIPPED: this kernel has no br_netfilter; the test runs without it only");
        vec![false]
    }

    /// Switches bridge netfilter of the host, for IPv4, IPv6 and ARP, where the kernel has it.
    pub fn set_bridge_netfilter(&self, on: bool) {
        if Path::new(BRIDGE_NETFILTER).exists() {
            for protocol in ["ip", "ip6", "arp"] {
                let value = u8::from(on);
                self.netns.sh(&format!("sysctl -qw net.bridge.bridge-nf-call-{protocol}tables={value}"));
            }
        }
    }

    /// Processes of a network's DHCP and DNS server, in whichever namespace; one that has ended does not count.
    #[must_use]
    pub fn servers(&self, network: &str) -> Vec<u32> {
        let config = self.path(&format!("netd-run/{network}/dnsmasq.conf"));
        processes().filter(|(_, words)| words.contains(&config)).map(|(pid, _)| pid).collect()
    }

    /// Processes of machines, and of those that are to become one: they are in namespaces of their own. One that has
    /// ended does not count.
    ///
    /// # Panics
    /// Without /proc.
    #[must_use]
    pub fn machines(&self) -> Vec<u32> {
        self.processes_of("")
    }

    /// As `machines`, of one machine.
    ///
    /// # Panics
    /// Without /proc.
    #[must_use]
    pub fn processes_of(&self, machine: &str) -> Vec<u32> {
        let folder = self.dir.path().join("vmd-run/vms").join(machine);
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        entries
            .filter(|entry| {
                fs::read_link(entry.path().join("fd/2")).is_ok_and(|log| log.starts_with(&folder))
            })
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// What the daemons logged.
    #[must_use]
    pub fn logs(&self) -> String {
        ["netd.log", "vmd.log"]
            .map(|log| fs::read_to_string(self.dir.path().join(log)).unwrap_or_default())
            .concat()
    }
}

impl Default for TestHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        kill(self.vmd.take());
        kill(self.netd.take());
        // Those of cells are in no namespace that has a name.
        let folder = self.path("netd-run/");
        let servers = processes().filter(|(_, words)| words.contains(&folder)).map(|(pid, _)| pid);
        for pid in servers.chain(self.machines()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("--- daemons' logs\n{}", self.logs());
        }
    }
}

/// All processes with their command lines.
fn processes() -> impl Iterator<Item = (u32, String)> {
    fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&words).into_owned()))
    })
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The workspace's root.
///
/// # Panics
/// Never in a checkout.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").to_owned()
}

/// A program of the workspace, from the same build as this test.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn program_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let path = test.ancestors().nth(2).expect("build folder").join(name);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace` first", path.display());
    path
}

fn link_or_copy(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
    }
}
