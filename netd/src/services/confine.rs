//! What keeps a dnsmasq in that a guest's packet has taken over. It has capabilities, and where netd is not root, netd's
//! own uid.
//!
//! By Landlock it reads programs, libraries, /etc and its network's folder, and writes to its lease file alone; it speaks
//! TCP to DNS servers only, and neither signals nor traces anybody. By seccomp it has sockets of IP and of rtnetlink:
//! none that reaches netd's or another program's, packets of others, or their rules. And it changes no file's owner or
//! mode, of which Landlock knows nothing.

use super::folder::LEASES_MODE;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use seccompiler::{BackendError, SeccompCmpOp as Is};
use shared::syscalls::{self, Refused, all};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Counted up with each change that forbids more: a process that runs under less is replaced.
pub const VERSION: u32 = 1;
/// What all of this needs; an older kernel gives what it has.
const WANTED: ABI = ABI::V6;
/// Programs and libraries; the last is of distributions that have nothing in the others.
const PROGRAMS: [&str; 8] = ["/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store"];
/// Settings; and where a link at /etc/resolv.conf may lead, which a network manager may set at any time.
const SETTINGS: [&str; 5] =
    ["/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/connman"];
const DNS: u16 = 53;
/// Any free one, to be bound to.
const ANY_PORT: u16 = 0;
/// Where netd has its lease file.
const LEASES: &str = "leases";

/// Refused altogether.
const CALLS: [i64; 20] = [
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // A user may steer all processes that are its own.
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_migrate_pages,
    // A datagram can be sent from one of a pair to any socket by name.
    libc::SYS_socketpair,
];

/// As `CALLS`, of x86 only.
#[cfg(target_arch = "x86_64")]
const CALLS_HERE: [i64; 6] = [
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_HERE: [i64; 0] = [];

/// New namespaces, by clone(2).
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// setsockopt(2) of IP, IPv6, and ARP and bridges beside them, that iptables and its like change rules by: numbers of
/// the headers <linux/netfilter*/*_tables.h>. From the last number on it is multicast routing.
const RULES: [u64; 6] = [64, 65, 96, 97, 128, 129];
const MULTICAST_ROUTING: u64 = 200;
/// Options by which a raw socket's packets have a header of the sender's, so that they are of whatever protocol and from
/// whomever: of <linux/in.h> and <linux/in6.h>. IPv6's is taken by the level of raw sockets too.
const OWN_HEADER: [(libc::c_int, libc::c_int); 3] =
    [(libc::IPPROTO_IP, libc::IP_HDRINCL), (libc::IPPROTO_IPV6, IPV6_HDRINCL), (SOL_RAW, IPV6_HDRINCL)];
const IPV6_HDRINCL: libc::c_int = 36;
const SOL_RAW: libc::c_int = 255;
/// socket(2) of packets by its old type.
const SOCK_PACKET: libc::c_int = 10;

/// What dnsmasq uses of the host's files.
struct Files<'a> {
    program: &'a Path,
    folder: &'a Path,
}

/// Confines this thread, and what it becomes, to what dnsmasq needs. Says in words what the kernel lacks for it. For a
/// process of one thread.
///
/// # Errors
/// If there can be no lease file, or the kernel refuses what it has.
pub fn confine(program: &Path, folder: &Path) -> io::Result<Vec<String>> {
    // dnsmasq itself makes no file.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat(CWD, folder.join(LEASES), flags, Mode::from_raw_mode(LEASES_MODE))?;
    apply(Some(&Files { program, folder })).map_err(io::Error::other)
}

/// What this kernel lacks for it, found out by a thread that confines itself and ends.
#[must_use]
pub fn lacking() -> Vec<String> {
    let tried = std::thread::spawn(|| apply(None)).join();
    let said = |why: &dyn std::fmt::Display| vec![format!("dnsmasq cannot be confined: {why}")];
    match tried {
        Ok(Ok(lacking)) => lacking,
        Ok(Err(error)) => said(&error),
        Err(_) => said(&"the attempt failed"),
    }
}

fn apply(files: Option<&Files>) -> Result<Vec<String>, RulesetError> {
    // Without it neither is to be had. Nothing in it can fail on a kernel that has either.
    let _ = rustix::thread::set_no_new_privs(true);
    let mut lacking = Vec::new();
    match restrict(files)? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => lacking.push(
            "this kernel's Landlock is older than Linux 6.12: a dnsmasq that was taken over may signal processes of \
             its user, or reach programs of this host by TCP"
                .to_owned(),
        ),
        RulesetStatus::NotEnforced => lacking.push(
            "this kernel has no Landlock, or it is switched off: a dnsmasq that was taken over can do to files and \
             processes whatever its user may, and its user is netd's where netd is not root"
                .to_owned(),
        ),
    }
    if let Err(reason) = syscalls::refuse(refused()) {
        lacking.push(format!("{reason}: a dnsmasq that was taken over can change packet rules"));
    }
    Ok(lacking)
}

fn restrict(files: Option<&Files>) -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rule(NetPort::new(DNS, AccessNet::BindTcp | AccessNet::ConnectTcp))?
        .add_rule(NetPort::new(ANY_PORT, AccessNet::BindTcp))?;
    // What is not there cannot be used.
    let beneath = files.into_iter().flat_map(reach).filter_map(|(path, access)| {
        PathFd::new(path).ok().map(|path| Ok::<_, RulesetError>(PathBeneath::new(path, access)))
    });
    Ok(rules.add_rules(beneath)?.restrict_self()?.ruleset)
}

/// What may be done to which files, and what is beneath them.
fn reach(files: &Files) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let file = |access: BitFlags<AccessFs>| access | AccessFs::ReadFile;
    let folder = |access: BitFlags<AccessFs>| file(access) | AccessFs::ReadDir;
    let none = BitFlags::EMPTY;
    let write = AccessFs::WriteFile | AccessFs::Truncate;
    let mut all = vec![
        (files.program.to_owned(), file(AccessFs::Execute.into())),
        (files.folder.to_owned(), folder(none)),
        (files.folder.join(LEASES), file(write)),
        ("/dev/null".into(), file(write)),
        ("/dev/urandom".into(), file(none)),
        // It closes what it has not opened itself.
        ("/proc/self/fd".into(), AccessFs::ReadDir.into()),
    ];
    all.extend(fs::canonicalize("/etc/resolv.conf").map(|path| (path, file(none))));
    all.extend(SETTINGS.map(|path| (path.into(), folder(none))));
    all.extend(PROGRAMS.map(|path| (path.into(), folder(AccessFs::Execute.into()))));
    all
}

fn refused() -> Result<Refused, BackendError> {
    let mut rules = syscalls::refused()?;
    rules.extend(CALLS.iter().chain(&CALLS_HERE).map(|call| (*call, Vec::new())));
    let number = |value: libc::c_int| u64::from(value.cast_unsigned());
    let (ip4, ip6) = (number(libc::AF_INET), number(libc::AF_INET6));
    let netlink = number(libc::AF_NETLINK);
    let icmp6 = number(libc::IPPROTO_ICMPV6);
    let (tcp, udp) = (number(libc::IPPROTO_TCP), number(libc::IPPROTO_UDP));
    let kind = |kind| (1, Is::MaskedEq(0xf), number(kind));
    rules.insert(
        libc::SYS_socket,
        vec![
            all(&[(0, Is::Ne, ip4), (0, Is::Ne, ip6), (0, Is::Ne, netlink)])?,
            // Of netlink: addresses and links, not packet rules.
            all(&[(0, Is::Eq, netlink), (2, Is::Ne, number(libc::NETLINK_ROUTE))])?,
            // Others than these carry TCP past Landlock.
            all(&[
                (0, Is::Ne, netlink),
                (2, Is::Ne, 0),
                (2, Is::Ne, tcp),
                (2, Is::Ne, udp),
                (2, Is::Ne, icmp6),
            ])?,
            // Router advertisements, no packets of whatever kind.
            all(&[(0, Is::Ne, netlink), kind(libc::SOCK_RAW), (2, Is::Ne, icmp6)])?,
            all(&[(0, Is::Eq, ip4), kind(libc::SOCK_RAW)])?,
            all(&[kind(SOCK_PACKET)])?,
        ],
    );
    // It connects, past Landlock; dnsmasq then does so by connect(2).
    let connects = number(libc::MSG_FASTOPEN);
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        rules.insert(call, vec![all(&[(flags, Is::MaskedEq(connects), connects)])?]);
    }
    let namespaces = NAMESPACES.map(number).map(|flag| all(&[(0, Is::MaskedEq(flag), flag)]));
    rules.insert(libc::SYS_clone, namespaces.into_iter().collect::<Result<_, _>>()?);
    let mut options = Vec::new();
    for level in [libc::IPPROTO_IP, libc::IPPROTO_IPV6].map(number) {
        for option in RULES {
            options.push(all(&[(1, Is::Eq, level), (2, Is::Eq, option)])?);
        }
        options.push(all(&[(1, Is::Eq, level), (2, Is::Ge, MULTICAST_ROUTING)])?);
    }
    for (level, option) in OWN_HEADER {
        options.push(all(&[(1, Is::Eq, number(level)), (2, Is::Eq, number(option))])?);
    }
    rules.insert(libc::SYS_setsockopt, options);
    Ok(rules)
}
