//! seccomp: what no program that a daemon contains ever asks of the kernel, and one that was taken over would.
//!
//! A list of what is refused, since what large programs need is known to themselves alone. Refused is EPERM, which they
//! take for a feature that the kernel lacks.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use std::collections::BTreeMap;

/// What is refused: a call's number, and any of these of its arguments; without one always.
pub type Refused = BTreeMap<i64, Vec<SeccompRule>>;

/// Refused altogether.
const CALLS: [i64; 64] = [
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
];

/// As `CALLS`, of x86 only.
#[cfg(target_arch = "x86_64")]
const CALLS_HERE: [i64; 5] =
    [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_mknod, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_HERE: [i64; 0] = [];

/// Numbers of the x32 ABI begin here. They would pass a list of x86-64's numbers.
const X32: u32 = 0x4000_0000;

/// What every contained program is refused, for more to be added.
///
/// # Errors
/// Never, for what is in here.
pub fn refused() -> Result<Refused, BackendError> {
    let calls = CALLS.iter().chain(&CALLS_HERE);
    let mut rules: Refused = calls.map(|call| (*call, Vec::new())).collect();
    // Limits of other processes of the same user.
    rules.insert(libc::SYS_prlimit64, vec![all(&[(0, SeccompCmpOp::Ne, 0)])?]);
    Ok(rules)
}

/// Holds where all of these do: the number of an argument, and what the low half of it is compared with, which is all
/// that the kernel reads of an `int`.
///
/// # Errors
/// If there is no such argument.
pub fn all(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.iter().map(|(argument, operator, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Refuses these calls to this thread, to what it starts, and to what it becomes. That cannot be taken back.
///
/// # Errors
/// In words, what the kernel lacks.
pub fn refuse(rules: Result<Refused, BackendError>) -> Result<(), String> {
    let filters = rules.and_then(filters);
    for filter in filters.map_err(|e| format!("cannot compile the filter of system calls: {e}"))? {
        seccompiler::apply_filter(&filter)
            .map_err(|e| format!("the kernel takes no filter of system calls: {e}"))?;
    }
    Ok(())
}

fn filters(rules: Refused) -> Result<[BpfProgram; 2], BackendError> {
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

fn compile(rules: Refused, errno: i32) -> Result<BpfProgram, BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()), arch)?
        .try_into()
}
