//! What is measured: kvmctl, a bare QEMU with the same arguments, and libvirt.

use integration_tests::{machine::CMDLINE, wait};
use serde_json::Value;
use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What `bench.sh` made.
#[derive(Debug)]
pub struct World {
    /// Programs, images, sockets.
    pub dir: PathBuf,
    /// vmd's user.
    pub uid: u32,
    /// How often each thing is measured.
    pub repetitions: usize,
    /// The upper number of ports.
    pub ports: usize,
    /// How many networks with DHCP there are at a time.
    pub networks: usize,
    /// Names and process ids, ours first.
    pub daemons: Vec<(String, u32)>,
    libvirt: Option<String>,
}

impl World {
    /// # Panics
    /// If `bench.sh` did not start this.
    pub fn from_environment() -> Self {
        let text = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run bench.sh"));
        let number = |name: &str| text(name).parse::<u32>().unwrap_or_else(|_| panic!("{name} is no number"));
        let count = |name: &str| usize::try_from(number(name)).expect("a count");
        let mut daemons =
            vec![("netd".to_owned(), number("KVBENCH_NETD")), ("vmd".to_owned(), number("KVBENCH_VMD"))];
        let pids = text("KVBENCH_LIBVIRT_PIDS");
        daemons.extend(
            ["libvirtd", "virtlogd"]
                .into_iter()
                .zip(pids.split(','))
                .filter_map(|(name, pid)| Some((name.to_owned(), pid.trim().parse().ok()?))),
        );
        Self {
            dir: text("KVBENCH_DIR").into(),
            uid: number("KVBENCH_UID"),
            repetitions: count("KVBENCH_REPETITIONS"),
            ports: count("KVBENCH_PORTS"),
            networks: count("KVBENCH_NETWORKS"),
            daemons,
            libvirt: Some(text("KVBENCH_LIBVIRT")).filter(|uri| !uri.is_empty()),
        }
    }

    /// netd's address.
    pub fn netd_address(&self) -> String {
        format!("unix://{}", self.dir.join("netd.sock").display())
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Runs a program to its end.
fn time(command: &mut Command) -> Duration {
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let time = begin.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    time
}

/// kvmctl with our daemons.
#[derive(Debug)]
pub struct Kvmctl<'a>(&'a World);

impl<'a> Kvmctl<'a> {
    pub fn new(world: &'a World) -> Self {
        Self(world)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0.dir.join("bin/kvmctl"));
        command
            .args(arguments)
            .env("KVMCTL_NETD", self.0.netd_address())
            .env("KVMCTL_VMD", format!("unix://{}", self.0.path("vmd-run/vmd.sock")));
        command
    }

    /// From the start of kvmctl to its end.
    pub fn time(&self, arguments: &[&str]) -> Duration {
        time(&mut self.command(arguments))
    }

    /// A NAT network, with DHCP and DNS or without.
    pub fn create_network(&self, name: &str, number: usize, dhcp: bool) -> Duration {
        let address = format!("10.61.{number}.1/24");
        let dhcp = if dhcp { "on" } else { "off" };
        self.time(&["network", "create", name, "--mode", "nat", "--ipv4", &address, "--dhcp", dhcp])
    }

    /// One NIC, a kernel and an initrd, no disk.
    pub fn create_machine(&self) {
        let (kernel, initrd) = (self.0.path("vmlinuz"), self.0.path("initrd.img"));
        let words = ["vm", "create", "web", "--memory", "128M", "--network", "lan", "--cmdline", CMDLINE];
        self.time(&[&words[..], &["--kernel", &kernel, "--initrd", &initrd]].concat());
    }

    /// What a command printed.
    pub fn value(&self, arguments: &[&str]) -> Value {
        self.json(&mut self.command(arguments))
    }

    fn json(&self, command: &mut Command) -> Value {
        let output = command.args(["-o", "json"]).output().expect("kvmctl");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// QEMU as vmd starts it, by hand.
#[derive(Debug)]
pub struct Bare<'a> {
    world: &'a World,
    dir: PathBuf,
    program: String,
    arguments: Vec<String>,
}

impl<'a> Bare<'a> {
    /// Takes the arguments of the running machine. What differs:
    ///
    /// - The listening sockets of monitors and serial port, and the tap, were inherited from vmd by their
    ///   descriptors. Here QEMU makes such sockets by `path=` and opens a tap of netd by `ifname=`, made beforehand.
    /// - `-S` is left out: the guest runs at once, where vmd says `cont` when it has the monitor.
    /// - `-daemonize -pidfile`: QEMU returns when the machine is built. It forks and makes a session after it has
    ///   locked itself in, so that `-sandbox` allows that here.
    pub fn like_the_machine(world: &'a World, kvmctl: &Kvmctl<'_>) -> Self {
        let dir = world.dir.join("bare");
        fs::create_dir(&dir).expect("folder");
        std::os::unix::fs::chown(&dir, Some(world.uid), Some(world.uid)).expect("chown");
        let machine = kvmctl.json(&mut kvmctl.command(&["vm", "show", "web"]));
        let pid = &machine["status"]["pid"];
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("QEMU's command line");
        // The tap has to belong to the user who opens it.
        let mut create = kvmctl.command(&["port", "create", "lan", "bare"]);
        let port = kvmctl.json(create.uid(world.uid).gid(world.uid));
        let tap = port["status"]["interface"].as_str().expect("a tap");
        let mut words = line.split_terminator('\0').map(str::to_owned);
        let program = words.next().expect("a program");
        let mut arguments = vec!["-daemonize".to_owned(), "-pidfile".to_owned(), "pid".to_owned()];
        arguments.extend(words.filter(|word| word != "-S").map(|word| adapted(&word, tap)));
        Self { world, dir, program, arguments }
    }

    /// From the start of QEMU until it has gone to the background.
    pub fn time_start(&self) -> Duration {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.dir).uid(self.world.uid).gid(self.world.uid);
        // A pipe would stay open in the background.
        let log = fs::File::create(self.dir.join("log")).expect("log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let begin = Instant::now();
        let status = command.status().expect("QEMU starts");
        let time = begin.elapsed();
        assert!(status.success(), "{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        time
    }

    /// Ends it and waits until it is gone.
    pub fn stop(&self) {
        let pid = fs::read_to_string(self.dir.join("pid")).expect("pid file");
        let number: i32 = pid.trim().parse().expect("a pid");
        let pid = rustix::process::Pid::from_raw(number).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("QEMU runs");
        wait::until("QEMU to be gone", || gone(number).then_some(()));
        fs::remove_file(self.dir.join("pid")).expect("pid file");
    }
}

fn gone(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// An argument that names an inherited descriptor becomes one that does not.
fn adapted(word: &str, tap: &str) -> String {
    if let Some(socket) = word.strip_prefix("socket,id=") {
        let id = socket.split(',').next().unwrap_or_default();
        return format!("socket,id={id},path={id}.sock,server=on,wait=off");
    }
    if word.contains(",spawn=deny") {
        return word
            .replace("spawn=deny", "spawn=allow")
            .replace("elevateprivileges=deny", "elevateprivileges=allow");
    }
    match serde_json::from_str::<Value>(word) {
        Ok(mut netdev) if netdev["type"] == "tap" => {
            let fields = netdev.as_object_mut().expect("an object");
            fields.remove("fd");
            fields.insert("ifname".into(), tap.into());
            fields.insert("script".into(), "no".into());
            fields.insert("downscript".into(), "no".into());
            netdev.to_string()
        }
        _ => word.to_owned(),
    }
}

/// virsh with its libvirtd.
#[derive(Debug)]
pub struct Virsh<'a> {
    world: &'a World,
    uri: &'a str,
}

impl<'a> Virsh<'a> {
    /// `None` without libvirt.
    pub fn new(world: &'a World) -> Option<Self> {
        Some(Self { world, uri: world.libvirt.as_deref()? })
    }

    /// From the start of virsh to its end.
    pub fn time(&self, arguments: &[&str]) -> Duration {
        time(Command::new("virsh").args(["-q", "-c", self.uri]).args(arguments))
    }

    fn write(&self, name: &str, xml: &str) -> String {
        let path = self.world.path(name);
        fs::write(Path::new(&path), xml).expect("XML file");
        path
    }

    /// A NAT network; without DHCP and DNS no dnsmasq is started for it.
    pub fn network_file(&self, name: &str, number: usize, dhcp: bool) -> String {
        let range = format!("<dhcp><range start='10.61.{number}.2' end='10.61.{number}.254'/></dhcp>");
        let (dns, dhcp) = if dhcp { ("", range.as_str()) } else { ("<dns enable='no'/>", "") };
        self.write(
            "network.xml",
            &format!(
                "<network><name>{name}</name><forward mode='nat'/><bridge name='lv{number}' stp='off' delay='0'/>\
                 {dns}<ip address='10.61.{number}.1' netmask='255.255.255.0'>{dhcp}</ip></network>"
            ),
        )
    }

    /// The same machine, on a network of libvirt; without what libvirt would add by itself.
    pub fn define_machine(&self) {
        let network = self.network_file("lan", 250, false);
        self.time(&["net-create", &network]);
        let (kernel, initrd) = (self.world.path("vmlinuz"), self.world.path("initrd.img"));
        let machine = self.write(
            "machine.xml",
            &format!(
                "<domain type='qemu'><name>web</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
                 <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
                 <cmdline>{CMDLINE}</cmdline></os><features><acpi/></features><cpu mode='maximum'/>\
                 <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>\
                 <memballoon model='none'/><interface type='network'><source network='lan'/>\
                 <model type='virtio'/><rom enabled='no'/></interface><serial type='pty'/></devices></domain>"
            ),
        );
        self.time(&["define", &machine]);
    }
}
