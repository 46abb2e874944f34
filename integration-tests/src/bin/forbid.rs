//! Becomes another program, for which the kernel refuses what it would refuse on a poorer host or in a container:
//! `forbid WHAT... -- PROGRAM ARGUMENT...`.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::{collections::BTreeMap, env, os::unix::process::CommandExt as _, process::Command};

fn main() {
    let mut words = env::args().skip(1);
    for what in words.by_ref().take_while(|word| word != "--") {
        let (calls, errno): (&[i64], i32) = match what.as_str() {
            "namespaces" => (&[libc::SYS_unshare], libc::EPERM),
            "mounts" => (&[libc::SYS_mount, libc::SYS_open_tree], libc::EPERM),
            "landlock" => (&[libc::SYS_landlock_create_ruleset], libc::ENOSYS),
            other => panic!("forbid {other}?"),
        };
        let rules: BTreeMap<_, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
        let refuse = SeccompAction::Errno(errno.cast_unsigned());
        let arch = env::consts::ARCH.try_into().expect("architecture");
        let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)
            .and_then(TryInto::try_into)
            .expect("filter");
        // This takes new privileges away, too: setuid programs are executed without their owner's.
        seccompiler::apply_filter(&filter).expect("seccomp");
    }
    let program = words.next().expect("a program");
    panic!("{}", Command::new(program).args(words).exec());
}
