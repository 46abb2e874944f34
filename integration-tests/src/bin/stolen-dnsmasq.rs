//! A program in dnsmasq's place that tries to get out, as one would that a guest's packet has taken over.
//!
//! It writes a line for each attempt to its stderr, `PROBE NAME denied|ESCAPED HOW`, then what dnsmasq says when it serves,
//! and stays. Its own name ends in `-PID`, a process of its user's that it may attack; `--conf-file=PATH` tells it where
//! the host's folder is, and `--netd=PID` netd's process, if that is not its parent.

use std::{
    env,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    mem::size_of,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
};

/// A port of the loopback where nobody listens.
const CLOSED: u16 = 1;

fn main() {
    let mut words = env::args();
    let program = words.next().unwrap_or_default();
    let options: Vec<String> = words.collect();
    let option = |name: &str| options.iter().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
    let config = PathBuf::from(option("--conf-file=").unwrap_or_default());
    let own = config.parent().unwrap_or(Path::new("/")).to_owned();
    let parent = rustix::process::getppid().map_or(-1, rustix::process::Pid::as_raw_pid);
    let netd = option("--netd=").and_then(|pid| pid.parse().ok()).unwrap_or(parent);
    let victim = program.rsplit('-').next().and_then(|pid| pid.parse().ok()).unwrap_or(-1);
    files(&own);
    for (name, pid) in [("netd", netd), ("another", victim)] {
        processes(name, pid);
    }
    sockets(&own);
    privileges();
    if option("--netd=").is_some() {
        return;
    }
    eprintln!("started, version 0");
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Only these say that it was not allowed; another error says that it was, and came to nothing.
fn report(name: &str, result: io::Result<()>) {
    let denied = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
    match result {
        Err(error) if denied(&error) => eprintln!("PROBE {name} denied {error}"),
        Err(error) => eprintln!("PROBE {name} ESCAPED but {error}"),
        Ok(()) => eprintln!("PROBE {name} ESCAPED"),
    }
}

/// A raw system call. Pointers lead to memory that lives over the call.
fn raw(number: i64, arguments: &[i64]) -> io::Result<i64> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: this program is made to try; no argument points to memory that Rust relies on.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn call(number: i64, arguments: &[i64]) -> io::Result<()> {
    raw(number, arguments).map(drop)
}

fn address(pointer: *const impl Sized) -> i64 {
    pointer.addr().cast_signed().try_into().unwrap_or_default()
}

fn opened(path: &Path, write: bool) -> io::Result<()> {
    OpenOptions::new().read(!write).append(write).open(path).map(drop)
}

/// Makes a file and takes it away again.
fn made(path: &Path) -> io::Result<()> {
    File::create_new(path)?;
    let _ = fs::remove_file(path);
    Ok(())
}

fn files(own: &Path) {
    let run = own.parent().unwrap_or(own);
    let host = run.parent().unwrap_or(run);
    let other = if own.ends_with("other") { run.join("nat") } else { run.join("other") };
    let state = host.join("netd-state");
    for (name, path) in [
        ("state", state.join("state.sqlite")),
        ("audit-log", state.join("audit.jsonl")),
        ("log-of-another-network", other.join("dnsmasq.log")),
        ("file-of-all", host.join("open/file")),
    ] {
        report(&format!("read-{name}"), opened(&path, false));
        report(&format!("write-{name}"), opened(&path, true));
    }
    for (name, path) in [
        ("own-configuration", own.join("dnsmasq.conf")),
        ("own-process-record", own.join("process")),
        ("leases-of-another-network", other.join("leases")),
        ("sysctl", "/proc/sys/net/ipv4/conf/lo/forwarding".into()),
        ("tun-device", host.join("open/tun")),
        ("passwd", "/etc/passwd".into()),
    ] {
        report(&format!("write-{name}"), opened(&path, true));
    }
    for (name, folder) in [
        ("own-folder", own.to_owned()),
        ("own-hosts", own.join("hosts")),
        ("folder-of-another-network", other.clone()),
        ("run-folder", run.to_owned()),
        ("state-folder", state.clone()),
        ("folder-of-all", host.join("open")),
        ("tmp", "/tmp".into()),
        ("shm", "/dev/shm".into()),
    ] {
        report(&format!("make-file-in-{name}"), made(&folder.join(format!("kvt-{}", std::process::id()))));
    }
    report("list-state-folder", fs::read_dir(&state).map(drop));
    report("list-run-folder", fs::read_dir(run).map(drop));
    let same = |path: &Path| -> io::Result<()> {
        let mode = fs::metadata(path)?.permissions().mode();
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    report("change-mode-of-state-folder", same(&state));
    report("change-mode-of-socket", same(&host.join("netd.sock")));
    report("change-owner-of-state", std::os::unix::fs::lchown(state.join("state.sqlite"), None, None));
    let path = CString::new(state.as_os_str().as_bytes()).unwrap_or_default();
    report("change-times-of-state", call(libc::SYS_utimensat, &[-100, address(path.as_ptr()), 0, 0]));
    let moved = own.with_extension("moved");
    report("rename-own-folder", fs::rename(own, &moved).and_then(|()| fs::rename(&moved, own)));
}

fn processes(name: &str, pid: i32) {
    let number = i64::from(pid);
    report(&format!("signal-{name}"), call(libc::SYS_kill, &[number, 0]));
    for file in ["mem", "environ", "maps"] {
        report(&format!("read-{file}-of-{name}"), opened(Path::new(&format!("/proc/{pid}/{file}")), false));
    }
    let traced = call(libc::SYS_ptrace, &[i64::from(libc::PTRACE_SEIZE), number, 0, 0]);
    if traced.is_ok() {
        // What this process traces is let go when it ends, if not now.
        let _ = call(libc::SYS_ptrace, &[i64::from(libc::PTRACE_INTERRUPT), number, 0, 0]);
        // SAFETY: takes numbers only.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        let _ = call(libc::SYS_ptrace, &[i64::from(libc::PTRACE_DETACH), number, 0, 0]);
    }
    report(&format!("trace-{name}"), traced);
    let mut memory = [0_u8; 8];
    let vectors = [address(memory.as_mut_ptr()), 8];
    let pointer = address(vectors.as_ptr());
    report(
        &format!("copy-memory-of-{name}"),
        call(libc::SYS_process_vm_readv, &[number, pointer, 1, pointer, 1, 0]),
    );
    let mut limits = [0_u64; 2];
    report(
        &format!("limits-of-{name}"),
        call(libc::SYS_prlimit64, &[number, i64::from(libc::RLIMIT_NOFILE), 0, address(limits.as_mut_ptr())]),
    );
    report(&format!("priority-of-{name}"), call(libc::SYS_setpriority, &[0, number, 19]));
    let processors = [u64::MAX; 16];
    let size = i64::try_from(size_of::<[u64; 16]>()).unwrap_or_default();
    report(
        &format!("processors-of-{name}"),
        call(libc::SYS_sched_setaffinity, &[number, size, address(processors.as_ptr())]),
    );
    report(&format!("score-of-{name}"), opened(Path::new(&format!("/proc/{pid}/oom_score_adj")), true));
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<i64> {
    raw(libc::SYS_socket, &[family.into(), kind.into(), protocol.into()])
}

/// `struct sockaddr_in` of a port of the loopback.
fn loopback(port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    let family = u16::try_from(libc::AF_INET).unwrap_or_default();
    address[..2].copy_from_slice(&family.to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

fn sockets(own: &Path) {
    let host = own.ancestors().nth(2).unwrap_or(own);
    report("connect-to-netd", UnixStream::connect(host.join("netd.sock")).map(drop));
    for (name, family, kind, protocol) in [
        ("unix", libc::AF_UNIX, libc::SOCK_DGRAM, 0),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("old-packet", libc::AF_INET, 10, 0),
        ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        ("raw-icmp6-by-ip4", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        ("raw-udp", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_UDP),
        ("nftables", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ("generic-netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
        ("connection-tracking", libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_NETFILTER),
    ] {
        report(&format!("socket-{name}"), socket(family, kind, protocol).map(drop));
    }
    let mut pair = [0; 2];
    report(
        "socket-pair",
        call(
            libc::SYS_socketpair,
            &[libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0, address(pair.as_mut_ptr())],
        ),
    );
    let tcp = || socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let there = loopback(CLOSED);
    let to = address(there.as_ptr());
    report("connect-to-a-port", tcp().and_then(|fd| call(libc::SYS_connect, &[fd, to, 16])));
    let fast = i64::from(libc::MSG_FASTOPEN);
    report("connect-by-sending", tcp().and_then(|fd| call(libc::SYS_sendto, &[fd, to, 1, fast, to, 16])));
    let listening = loopback(8000);
    report("take-a-port", tcp().and_then(|fd| call(libc::SYS_bind, &[fd, address(listening.as_ptr()), 16])));
    // IPT_SO_SET_REPLACE, and the first option of multicast routing; rubbish, if anybody looks.
    for (name, option) in [("iptables", 64), ("multicast-routing", 200)] {
        let set = |fd| call(libc::SYS_setsockopt, &[fd, libc::IPPROTO_IP.into(), option, to, 1]);
        report(&format!("option-{name}"), tcp().and_then(set));
    }
    // IP_HDRINCL, and IPV6_HDRINCL by both levels that take it: packets with headers of one's own.
    for (name, family, level, option) in [
        ("4", libc::AF_INET, libc::IPPROTO_IP, libc::IP_HDRINCL),
        ("6", libc::AF_INET6, libc::IPPROTO_IPV6, 36),
        ("6-of-raw", libc::AF_INET6, 255, 36),
    ] {
        let raw = socket(family, libc::SOCK_RAW, libc::IPPROTO_ICMPV6);
        let set = |fd| call(libc::SYS_setsockopt, &[fd, level.into(), option.into(), to, 4]);
        report(&format!("option-own-header-{name}"), raw.and_then(set));
    }
    // What dnsmasq needs is there: else all the rest would say nothing.
    for (name, result) in [
        ("udp", socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
        ("router-advertisement", socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
        ("route", socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)),
    ] {
        eprintln!("NEEDED {name} {}", if result.is_ok() { "there" } else { "missing" });
    }
    let leases = opened(&own.join("leases"), true);
    eprintln!("NEEDED leases {}", if leases.is_ok() { "there" } else { "missing" });
}

fn privileges() {
    let child = raw(libc::SYS_clone, &[i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD)]);
    if matches!(child, Ok(0)) {
        // SAFETY: a child that has nothing to do.
        unsafe { libc::_exit(0) };
    }
    report("clone-user-namespace", child.map(drop));
    for (name, number, arguments) in [
        ("set-namespace", libc::SYS_setns, [-1, 0]),
        ("io-uring", libc::SYS_io_uring_setup, [1, 0]),
        ("key", libc::SYS_keyctl, [0, 0]),
        ("landlock", libc::SYS_landlock_create_ruleset, [0, 0]),
    ] {
        report(name, call(number, &arguments));
    }
    report("user-namespace", call(libc::SYS_unshare, &[i64::from(libc::CLONE_NEWUSER)]));
}
