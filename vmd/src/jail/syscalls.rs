//! seccomp: what QEMU never asks of the kernel, and a QEMU that was taken over would, beside what no program does
//! (`shared::syscalls`).
//!
//! A list of what is refused, since what QEMU's many features need is known to QEMU alone; its own `-sandbox` is
//! installed on top.

use seccompiler::{BackendError, SeccompCmpOp};
use shared::syscalls::{Refused, all};

/// ioctl(2): changes of a tap, of interfaces and bridges, ways to a namespace, and input for a terminal. Numbers of
/// <linux/if_tun.h>, <linux/sockios.h> and <asm/ioctls.h>; the second argument's low half, which is all that the
/// kernel reads.
const IOCTLS: [u32; 36] = [
    0x4004_54c8, // TUNSETNOCSUM
    0x4004_54c9, // TUNSETDEBUG
    0x4004_54ca, // TUNSETIFF
    0x4004_54cb, // TUNSETPERSIST
    0x4004_54cc, // TUNSETOWNER
    0x4004_54cd, // TUNSETLINK
    0x4004_54ce, // TUNSETGROUP
    0x4004_54d1, // TUNSETTXFILTER
    0x4010_54d5, // TUNATTACHFILTER
    0x4010_54d6, // TUNDETACHFILTER
    0x4004_54d9, // TUNSETQUEUE
    0x4004_54da, // TUNSETIFINDEX
    0x8010_54db, // TUNGETFILTER
    0x8004_54e0, // TUNSETSTEERINGEBPF
    0x8004_54e1, // TUNSETFILTEREBPF
    0x4004_54e2, // TUNSETCARRIER
    0x0000_54e3, // TUNGETDEVNETNS
    0x0000_5412, // TIOCSTI
    0x0000_541c, // TIOCLINUX
    0x0000_8914, // SIOCSIFFLAGS
    0x0000_8916, // SIOCSIFADDR
    0x0000_891a, // SIOCSIFBRDADDR
    0x0000_891c, // SIOCSIFNETMASK
    0x0000_8922, // SIOCSIFMTU
    0x0000_8923, // SIOCSIFNAME
    0x0000_8924, // SIOCSIFHWADDR
    0x0000_8931, // SIOCADDMULTI
    0x0000_8932, // SIOCDELMULTI
    0x0000_8943, // SIOCSIFTXQLEN
    0x0000_8946, // SIOCETHTOOL
    0x0000_894c, // SIOCGSKNS
    0x0000_89a0, // SIOCBRADDBR
    0x0000_89a1, // SIOCBRDELBR
    0x0000_89a2, // SIOCBRADDIF
    0x0000_89a3, // SIOCBRDELIF
    0x0000_89b0, // SIOCSHWTSTAMP
];

/// Refused altogether. QEMU inherits its sockets and makes none.
const CALLS: [i64; 8] = [
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
];

/// As `CALLS`, of x86 only.
#[cfg(target_arch = "x86_64")]
const CALLS_HERE: [i64; 2] = [libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_HERE: [i64; 0] = [];

/// Installs the filters. They cannot be taken back.
pub fn refuse() -> Result<(), String> {
    shared::syscalls::refuse(refused())
}

fn refused() -> Result<Refused, BackendError> {
    let is = |argument, operator, value| all(&[(argument, operator, value)]);
    let mut rules = shared::syscalls::refused()?;
    rules.extend(CALLS.iter().chain(&CALLS_HERE).map(|call| (*call, Vec::new())));
    let ioctls = IOCTLS.iter().map(|request| is(1, SeccompCmpOp::Eq, u64::from(*request)));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    // A thread is no process; namespaces are asked for with processes only, which the kernel itself sees to.
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    rules.insert(libc::SYS_clone, vec![is(0, SeccompCmpOp::MaskedEq(thread), 0)?]);
    // A datagram can be sent to any socket by name. The two types of datagrams differ from a stream's in these bits.
    let datagrams = [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].map(|kind| u64::from(kind.cast_unsigned()));
    let pairs = datagrams.map(|kind| is(1, SeccompCmpOp::MaskedEq(0xf), kind));
    rules.insert(libc::SYS_socketpair, pairs.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}
