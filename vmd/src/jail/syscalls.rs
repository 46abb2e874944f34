//! seccomp: what QEMU never asks of the kernel, and a QEMU that was taken over would.
//!
//! A list of what is refused, since what QEMU's many features need is known to QEMU alone; its own `-sandbox` is
//! installed on top. Refused is EPERM, which QEMU takes for a feature that the kernel lacks.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use std::collections::BTreeMap;

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
const CALLS: [i64; 72] = [
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_execveat,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_fanotify_init,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_mq_open,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_shmget,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
];

/// As `CALLS`, of x86 only.
#[cfg(target_arch = "x86_64")]
const CALLS_HERE: [i64; 7] = [
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_mknod,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_HERE: [i64; 0] = [];

/// Numbers of the x32 ABI begin here. They would pass a list of x86-64's numbers.
const X32: u32 = 0x4000_0000;

/// Installs the filters. They cannot be taken back.
pub fn refuse() -> Result<(), String> {
    for filter in filters().map_err(|e| format!("cannot compile the filter of system calls: {e}"))? {
        seccompiler::apply_filter(&filter)
            .map_err(|e| format!("the kernel takes no filter of system calls: {e}"))?;
    }
    Ok(())
}

fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let is = |argument, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(&CALLS_HERE).map(|call| (*call, Vec::new())).collect();
    let ioctls = IOCTLS.iter().map(|request| is(1, SeccompCmpOp::Eq, u64::from(*request)));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    // A thread is no process; namespaces are asked for with processes only, which the kernel itself sees to.
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    rules.insert(libc::SYS_clone, vec![is(0, SeccompCmpOp::MaskedEq(thread), 0)?]);
    // Limits of other processes of the same user, where machines share one.
    rules.insert(libc::SYS_prlimit64, vec![is(0, SeccompCmpOp::Ne, 0)?]);
    // A datagram can be sent to any socket by name. The two types of datagrams differ from a stream's in these bits.
    let datagrams = [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].map(|kind| u64::from(kind.cast_unsigned()));
    let pairs = datagrams.map(|kind| is(1, SeccompCmpOp::MaskedEq(0xf), kind));
    rules.insert(libc::SYS_socketpair, pairs.into_iter().collect::<Result<_, _>>()?);
    let refused = compile(rules, libc::EPERM)?;
    // Its flags are in memory, where no filter can look. The C library then falls back to clone(2).
    let mut absent = compile([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?;
    let code = |bits: u32| u16::try_from(bits).unwrap_or_default();
    let x32 = [
        // The number of the call is the first word of `struct seccomp_data`.
        sock_filter { code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), jt: 0, jf: 0, k: 0 },
        sock_filter { code: code(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K), jt: 0, jf: 1, k: X32 },
        sock_filter {
            code: code(libc::BPF_RET | libc::BPF_K),
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        },
    ];
    absent.splice(0..0, x32);
    Ok([refused, absent])
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()), arch)?
        .try_into()
}
