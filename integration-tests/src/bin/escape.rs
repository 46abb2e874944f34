//! A program in QEMU's place that tries to get out, as a guest would that has taken QEMU over.
//!
//! It writes a line for each attempt to its stderr, `PROBE NAME denied|ESCAPED HOW`, then `DONE COUNT`, and ends. Whom to
//! attack comes as words `KEY=VALUE` of the kernel's command line: `vmd`, `other`: process ids; `netns`: a number;
//! `disk`, `state`, `run`, `socket`: paths; `abstract`: name of a socket that listens.

use std::{
    collections::BTreeMap,
    env,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    mem::zeroed,
    os::fd::AsRawFd as _,
    path::Path,
    process::ExitCode,
    ptr::null,
};

/// What came of an attempt: how it was denied, or what it got.
type Attempt = Result<String, String>;

struct Attacker {
    words: BTreeMap<String, String>,
    tap: i32,
    count: u32,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--version") {
        println!("QEMU emulator version 7.2.0 (escape)");
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "help") {
        return ExitCode::SUCCESS;
    }
    let value = |option: &str| args.windows(2).find(|pair| pair[0] == option).map(|pair| pair[1].clone());
    let words = value("-append").unwrap_or_default();
    let words = words.split_whitespace().filter_map(|word| word.split_once('='));
    let netdev: serde_json::Value =
        value("-netdev").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let mut attacker = Attacker {
        words: words.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        tap: netdev["fd"].as_str().and_then(|fd| fd.parse().ok()).unwrap_or(-1),
        count: 0,
    };
    attacker.descriptors();
    attacker.files();
    attacker.mounts();
    attacker.sockets();
    attacker.ioctls();
    attacker.processes();
    attacker.privileges();
    attacker.limits();
    attacker.programs();
    eprintln!("DONE {}", attacker.count);
    ExitCode::FAILURE
}

/// The result of a system call that returns -1 where it fails.
fn call(result: impl Into<i64>) -> Attempt {
    let result = result.into();
    if result == -1 { Ok(io::Error::last_os_error().to_string()) } else { Err(format!("returned {result}")) }
}

fn io<T>(result: io::Result<T>) -> Attempt {
    match result {
        Ok(_) => Err("succeeded".into()),
        Err(error) => Ok(error.to_string()),
    }
}

/// A raw system call. Pointers are null or live on; what it does to this process is of no matter.
fn raw(number: i64, arguments: [i64; 6]) -> Attempt {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: this program is made to try; no argument points to memory of this process that Rust relies on.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if number == libc::SYS_clone && result == 0 {
        // SAFETY: a child that should not be there; it ends at once.
        unsafe { libc::_exit(0) };
    }
    call(result)
}

/// A call whose arguments are rubbish: only a filter's word counts, EPERM.
fn refused(attempt: Attempt) -> Attempt {
    match attempt {
        Ok(how) if !how.contains("(os error 1)") => Err(format!("not refused: {how}")),
        attempt => attempt,
    }
}

fn numbers(arguments: &[i64]) -> [i64; 6] {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    all
}

fn text(words: &str) -> CString {
    CString::new(words).unwrap_or_default()
}

fn address(pointer: *const impl Sized) -> i64 {
    pointer.addr().cast_signed().try_into().unwrap_or_default()
}

impl Attacker {
    fn report(&mut self, name: &str, attempt: Attempt) {
        self.count += 1;
        match attempt {
            Ok(how) => eprintln!("PROBE {name} denied {how}"),
            Err(what) => eprintln!("PROBE {name} ESCAPED {what}"),
        }
    }

    fn word(&self, key: &str) -> String {
        self.words.get(key).cloned().unwrap_or_else(|| format!("no-{key}"))
    }

    fn number(&self, key: &str) -> i64 {
        self.word(key).parse().unwrap_or(-1)
    }

    /// Not an attempt: which there are, for the test to compare.
    fn descriptors(&self) {
        // SAFETY: F_GETFD only looks.
        let open = (0..8192).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1);
        let open: Vec<String> = open.map(|fd: i32| fd.to_string()).collect();
        eprintln!("DESCRIPTORS {}", open.join(" "));
    }

    fn files(&mut self) {
        let (disk, state, run) = (self.word("disk"), self.word("state"), self.word("run"));
        let paths = [
            ("passwd", "/etc/passwd"),
            ("shadow", "/etc/shadow"),
            ("passwd-by-dots", "/../../../../etc/passwd"),
            ("other-machines-disk", &disk),
            ("vmd-state", &state),
            ("process-memory", "/proc/1/mem"),
            ("own-maps", "/proc/self/maps"),
            ("kernel-log", "/dev/kmsg"),
            ("physical-memory", "/dev/mem"),
            ("tun-device", "/dev/net/tun"),
            ("sysrq", "/proc/sysrq-trigger"),
            ("core-pattern", "/proc/sys/kernel/core_pattern"),
        ];
        for (name, path) in paths {
            self.report(&format!("open-{name}"), io(File::open(path)));
        }
        for (name, path) in [
            ("run-folder", run.as_str()),
            ("proc", "/proc"),
            ("sys", "/sys"),
            ("etc", "/etc"),
            ("var", "/var"),
            ("home", "/home"),
        ] {
            self.report(&format!("list-{name}"), io(fs::read_dir(path)));
        }
        let program = env::args().next().unwrap_or_default();
        for (name, path) in
            [("kernel", "/kernel"), ("own-program", &program), ("library", "/lib64/ld-linux-x86-64.so.2")]
        {
            self.report(&format!("write-{name}"), io(OpenOptions::new().write(true).open(path)));
        }
        for path in ["/x", "/dev/x", "/usr/x", "/tmp/x", &format!("{run}/x")] {
            self.report(
                &format!("create-in-{}", Path::new(path).parent().unwrap_or(Path::new("/")).display()),
                io(File::create_new(path)),
            );
        }
        self.report("make-folder", io(fs::create_dir("/folder")));
        self.report("make-link", io(std::os::unix::fs::symlink("/etc/passwd", "/link")));
        self.report("remove-kernel", io(fs::remove_file("/kernel")));
        self.report("rename-folder", io(fs::rename("/usr", "/usr2")));
        let device = text("/dev/block");
        // SAFETY: the path lives over the call.
        self.report(
            "make-device",
            call(unsafe { libc::mknod(device.as_ptr(), libc::S_IFBLK | 0o600, 0x800) }),
        );
    }

    fn mounts(&mut self) {
        let (tmpfs, root, proc) = (text("tmpfs"), text("/"), text("proc"));
        let mount = |kind: &CString, flags: u64| {
            // SAFETY: strings live over the call.
            call(unsafe { libc::mount(kind.as_ptr(), root.as_ptr(), kind.as_ptr(), flags, null()) })
        };
        self.report("mount-tmpfs", mount(&tmpfs, 0));
        self.report("mount-proc", mount(&proc, 0));
        self.report("mount-writable", mount(&tmpfs, libc::MS_REMOUNT | libc::MS_BIND));
        // SAFETY: as above.
        self.report("unmount-root", call(unsafe { libc::umount2(root.as_ptr(), libc::MNT_DETACH) }));
        self.report("unmount-kernel", call(unsafe { libc::umount2(text("/kernel").as_ptr(), 0) }));
        self.report("chroot", call(unsafe { libc::chroot(root.as_ptr()) }));
        self.report("pivot-root", raw(libc::SYS_pivot_root, numbers(&[address(root.as_ptr()); 2])));
        self.report("fsopen", raw(libc::SYS_fsopen, numbers(&[address(tmpfs.as_ptr())])));
        self.report("open-tree", raw(libc::SYS_open_tree, numbers(&[-100, address(root.as_ptr()), 1])));
        self.report("open-by-handle", raw(libc::SYS_open_by_handle_at, numbers(&[-100, 0, 0])));
    }

    fn sockets(&mut self) {
        for (name, family, kind) in [
            ("tcp", libc::AF_INET, libc::SOCK_STREAM),
            ("tcp6", libc::AF_INET6, libc::SOCK_STREAM),
            ("udp", libc::AF_INET, libc::SOCK_DGRAM),
            ("raw", libc::AF_INET, libc::SOCK_RAW),
            ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
            ("packet", libc::AF_PACKET, libc::SOCK_RAW),
            ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
            ("kernel-crypto", libc::AF_ALG, libc::SOCK_SEQPACKET),
            ("unix", libc::AF_UNIX, libc::SOCK_STREAM),
        ] {
            // SAFETY: takes numbers only.
            self.report(&format!("socket-{name}"), call(unsafe { libc::socket(family, kind, 0) }));
        }
        // A pair is allowed, and a datagram socket of it can name others without connect(2).
        let mut pair = [0; 2];
        // SAFETY: `pair` has room for two.
        let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) };
        self.report("datagram-pair", call(made));
        if made != 0 {
            // Of streams, which is allowed; and which cannot be connected to another.
            // SAFETY: as above.
            unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) };
        }
        let abstract_name = format!("\0{}", self.word("abstract"));
        for (name, path) in [
            ("vmds-socket", self.word("socket")),
            ("netds-socket", self.word("netd")),
            ("system-log", "/dev/log".into()),
            ("hosts-abstract-socket", abstract_name),
        ] {
            // SAFETY: an address is plain bytes; zero is one.
            let mut to: libc::sockaddr_un = unsafe { zeroed() };
            to.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
            for (into, from) in to.sun_path.iter_mut().zip(path.bytes()) {
                *into = from.cast_signed();
            }
            let length = libc::socklen_t::try_from(2 + path.len()).unwrap_or_default();
            let to = (&raw const to).cast::<libc::sockaddr>();
            // SAFETY: address and bytes live over the calls.
            let (sent, connected, bound) = unsafe {
                let sent = call(i64::try_from(libc::sendto(pair[0], null(), 0, 0, to, length)).unwrap_or(-2));
                (sent, call(libc::connect(pair[0], to, length)), call(libc::bind(pair[1], to, length)))
            };
            self.report(&format!("send-to-{name}"), sent);
            self.report(&format!("connect-{name}"), connected);
            self.report(&format!("bind-{name}"), bound);
        }
    }

    fn ioctls(&mut self) {
        let one: libc::c_int = 1;
        let buffer = [0_u8; 64];
        let (one, buffer) = (&raw const one, buffer.as_ptr());
        let requests: [(&str, u64, i64); 22] = [
            ("TUNSETNOCSUM", 0x4004_54c8, 1),
            ("TUNSETDEBUG", 0x4004_54c9, 1),
            ("TUNSETIFF", 0x4004_54ca, address(buffer)),
            ("TUNSETPERSIST", 0x4004_54cb, 0),
            ("TUNSETOWNER", 0x4004_54cc, 0),
            ("TUNSETLINK", 0x4004_54cd, 1),
            ("TUNSETGROUP", 0x4004_54ce, 0),
            ("TUNSETTXFILTER", 0x4004_54d1, address(buffer)),
            ("TUNATTACHFILTER", 0x4010_54d5, address(buffer)),
            ("TUNDETACHFILTER", 0x4010_54d6, address(buffer)),
            ("TUNSETQUEUE", 0x4004_54d9, address(buffer)),
            ("TUNSETIFINDEX", 0x4004_54da, address(one)),
            ("TUNSETSTEERINGEBPF", 0x8004_54e0, address(one)),
            ("TUNSETFILTEREBPF", 0x8004_54e1, address(one)),
            ("TUNSETCARRIER", 0x4004_54e2, address(one)),
            ("TUNGETDEVNETNS", 0x54e3, 0),
            ("SIOCSIFHWADDR", 0x8924, address(buffer)),
            ("SIOCSIFFLAGS", 0x8914, address(buffer)),
            ("SIOCGSKNS", 0x894c, 0),
            ("TIOCSTI", 0x5412, address(buffer)),
            // The kernel reads half of a register's number.
            ("TUNSETPERSIST-with-high-bits", 0x1_4004_54cb, 0),
            ("TUNSETOWNER-with-high-bits", 0xffff_ffff_4004_54cc, 0),
        ];
        for (name, request, argument) in requests {
            let arguments = numbers(&[self.tap.into(), request.cast_signed(), argument]);
            self.report(&format!("ioctl-{name}"), refused(raw(libc::SYS_ioctl, arguments)));
        }
    }

    fn processes(&mut self) {
        for (name, pid) in [("vmd", self.number("vmd")), ("other-machine", self.number("other")), ("init", 1)]
        {
            let pid = i32::try_from(pid).unwrap_or(-1);
            // SAFETY: takes numbers only. The signal 0 asks for the right to send one.
            self.report(&format!("signal-{name}"), call(unsafe { libc::kill(pid, 0) }));
            self.report(
                &format!("ptrace-{name}"),
                raw(libc::SYS_ptrace, numbers(&[i64::from(libc::PTRACE_ATTACH), pid.into()])),
            );
            self.report(
                &format!("read-memory-of-{name}"),
                raw(libc::SYS_process_vm_readv, numbers(&[pid.into()])),
            );
            let mut old = [0_u64; 2];
            let arguments = [pid.into(), i64::from(libc::RLIMIT_NOFILE), 0, address(old.as_mut_ptr())];
            self.report(&format!("limits-of-{name}"), raw(libc::SYS_prlimit64, numbers(&arguments)));
        }
        let clone = |flags: i32| raw(libc::SYS_clone, numbers(&[i64::from(flags | libc::SIGCHLD)]));
        self.report("fork", clone(0));
        self.report("clone-user-namespace", clone(libc::CLONE_NEWUSER));
        self.report("clone3", raw(libc::SYS_clone3, numbers(&[0, 88])));
        self.report("set-namespace", raw(libc::SYS_setns, numbers(&[self.tap.into(), 0])));
        for (name, flag) in [
            ("user", libc::CLONE_NEWUSER),
            ("mount", libc::CLONE_NEWNS),
            ("network", libc::CLONE_NEWNET),
            ("pid", libc::CLONE_NEWPID),
        ] {
            self.report(&format!("unshare-{name}"), raw(libc::SYS_unshare, numbers(&[flag.into()])));
        }
    }

    /// Last, since a program that can be executed takes the place of this one.
    fn programs(&mut self) {
        // SAFETY: the memory file is named by a string that lives over the call.
        let memory = unsafe { libc::memfd_create(text("x").as_ptr(), 0) };
        let empty = text("");
        self.report(
            "execute-memory",
            raw(
                libc::SYS_execveat,
                numbers(&[memory.into(), address(empty.as_ptr()), 0, 0, i64::from(libc::AT_EMPTY_PATH)]),
            ),
        );
        for program in ["/bin/sh", "/usr/bin/newuidmap", "/usr/bin/ip", &format!("/proc/self/fd/{memory}")] {
            let path = text(program);
            let arguments = [path.as_ptr(), null()];
            // SAFETY: strings live over the call, the list ends with null.
            self.report(
                &format!("execute-{program}"),
                call(unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) }),
            );
        }
    }

    fn privileges(&mut self) {
        self.report("become-root", raw(libc::SYS_setuid, numbers(&[0])));
        self.report("become-vmd", raw(libc::SYS_setresuid, numbers(&[64_055; 3])));
        self.report("root-group", raw(libc::SYS_setresgid, numbers(&[0; 3])));
        self.report("drop-groups", raw(libc::SYS_setgroups, numbers(&[0, 0])));
        // struct __user_cap_header_struct, version 3, and all capabilities in its two sets of data.
        let (header, data) = ([0x2008_0522_u32, 0], [u32::MAX; 6]);
        self.report(
            "all-capabilities",
            raw(libc::SYS_capset, numbers(&[address(header.as_ptr()), address(data.as_ptr())])),
        );
        // SAFETY: takes numbers only.
        let bounded =
            unsafe { (0..64).filter(|cap| libc::prctl(libc::PR_CAPBSET_READ, *cap, 0, 0, 0) == 1).count() };
        let bounding =
            if bounded == 0 { Ok("empty".into()) } else { Err(format!("{bounded} in the bounding set")) };
        self.report("bounding-set", bounding);
        self.report(
            "new-privileges",
            raw(libc::SYS_prctl, numbers(&[i64::from(libc::PR_SET_NO_NEW_PRIVS), 0])),
        );
        for (name, number) in [
            ("keyctl", libc::SYS_keyctl),
            ("add-key", libc::SYS_add_key),
            ("bpf", libc::SYS_bpf),
            ("perf", libc::SYS_perf_event_open),
            ("io-uring", libc::SYS_io_uring_setup),
            ("userfaultfd", libc::SYS_userfaultfd),
            ("load-module", libc::SYS_finit_module),
            ("kexec", libc::SYS_kexec_load),
            ("reboot", libc::SYS_reboot),
            ("set-clock", libc::SYS_settimeofday),
            ("set-host-name", libc::SYS_sethostname),
            ("kernel-log-call", libc::SYS_syslog),
            ("shared-memory", libc::SYS_shmget),
            ("message-queue", libc::SYS_msgget),
            ("personality", libc::SYS_personality),
            ("landlock-again", libc::SYS_landlock_create_ruleset),
        ] {
            self.report(name, refused(raw(number, [0; 6])));
        }
        #[cfg(target_arch = "x86_64")]
        {
            self.report("io-ports", raw(libc::SYS_iopl, numbers(&[3])));
            // socket(2) by its number in the x32 ABI, which filters of x86-64's numbers do not know.
            self.report("x32-socket", raw(0x4000_0000 | libc::SYS_socket, numbers(&[1, 1])));
        }
    }

    fn limits(&mut self) {
        let raise = |resource| {
            let more = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            // SAFETY: the structure lives over the call.
            call(unsafe { libc::setrlimit(resource, &raw const more) })
        };
        for (name, resource) in [
            ("descriptors", libc::RLIMIT_NOFILE),
            ("processes", libc::RLIMIT_NPROC),
            ("core", libc::RLIMIT_CORE),
            ("realtime", libc::RLIMIT_RTPRIO),
            ("locked-memory", libc::RLIMIT_MEMLOCK),
        ] {
            self.report(&format!("raise-{name}"), raise(resource));
        }
        // SAFETY: the mapping is this program's own; nothing else is at address zero, which the kernel chooses from.
        let memory = unsafe {
            let all = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 1 << 24, all, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        // SAFETY: locks what was mapped.
        self.report("lock-memory", call(unsafe { libc::mlock(memory, 1 << 24) }));
        // SAFETY: takes numbers only.
        self.report("priority", call(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) }));
        let realtime = libc::sched_param { sched_priority: 50 };
        // SAFETY: the structure lives over the call.
        let scheduler = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const realtime) };
        self.report("realtime", call(scheduler));
        let null = File::open("/dev/null");
        let mut held = Vec::new();
        let end = loop {
            match null.as_ref().map_err(|e| io::Error::from(e.kind())).and_then(File::try_clone) {
                Ok(file) if held.len() < 10_000 => held.push(file),
                Ok(_) => break Err("10000 descriptors".into()),
                Err(error) => break Ok(format!("after {}: {error}", held.len())),
            }
        };
        let last = held.last().map(|file| file.as_raw_fd());
        drop(held);
        self.report("many-descriptors", end.map(|how| format!("{how}, the last {last:?}")));
    }
}
