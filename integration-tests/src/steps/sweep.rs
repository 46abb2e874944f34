//! The same by system calls, without a word of netd's: strace kills it at a call, or lets the call fail.

use super::{Bench, Operation, Tally, words};
use crate::wait;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::process::ExitStatusExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Child, Command, Stdio},
};

/// Calls that change something outside of the process.
const CALLS: &str = "sendto,sendmsg,ioctl,openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,mkdir,rmdir,\
    unlink,unlinkat,chown,fchown,chmod,fchmod,clone,clone3,vfork,pidfd_open,pidfd_send_signal,kill,socket,bind";

/// Of those, what does not fail for want of room: they wake netd's own threads and answer its clients.
const NEVER_FULL: [&str; 3] = ["write", "sendmsg", "kill"];

/// As many of an operation's calls are looked at.
const FIRST: usize = 200;

/// A place: which call, and the how many-th of its sort in its thread.
type Place = (String, usize);

/// strace on the threads that a process has now.
struct Strace(Child);

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Strace {
    fn attach(pid: u32, log: &str, inject: Option<&str>) -> Self {
        let threads = tasks(pid);
        let mut command = Command::new("strace");
        command.args(["-q", "-o", log, "-e", &format!("trace={CALLS}"), "-e", "signal=none"]);
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        for thread in &threads {
            command.args(["-p", &thread.to_string()]);
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
        let tracer = format!("TracerPid:\t{}", child.id());
        wait::until("strace to be attached", || {
            let attached = |thread: &u32| {
                let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
                // A thread that has ended meanwhile needs no tracer.
                status.map_or(true, |status| status.contains(&tracer))
            };
            threads.iter().all(attached).then_some(())
        });
        Self(child)
    }

    /// Lets go of the process, and has its log written out.
    fn detach(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        wait::until("strace to end", || self.0.try_wait().expect("strace"));
    }

    /// Lets go of a process that may have died of what was injected: strace waits for all its threads, in vain.
    fn end(self) {}
}

fn tasks(pid: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The places of the first calls in a log, each once.
fn places(log: &str) -> Vec<Place> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut places = Vec::new();
    let calls = log.lines().filter_map(|line| {
        let (thread, rest) = line.trim_start().split_once(' ')?;
        let (call, _) = rest.trim_start().split_once('(')?;
        call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some((thread, call))
    });
    for (thread, call) in calls.take(FIRST) {
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        let place = (call.to_owned(), *count);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

impl Bench {
    /// Lets netd die, then fail, at every `stride`-th place of an operation, and returns how many calls and places it has.
    fn sweep(self, operation: &Operation, stride: usize, tally: &mut Tally) -> (Self, usize, usize) {
        let mut bench = self;
        let Some((before, after, _)) = bench.learn(operation, tally) else { return (Self::new(), 0, 0) };
        let log = bench.host.path("strace.log");
        operation.begin(&bench.host);
        let strace = Strace::attach(bench.host.netd_pid(), &log, None);
        operation.act.ok(&bench.host);
        strace.detach();
        bench.back(operation, &before);
        let log = fs::read_to_string(&log).expect("strace's log");
        let places = places(&log);
        tally.operations += 1;
        let faults = places.iter().step_by(stride).flat_map(|(call, at)| {
            let dies = Some(format!("{call}:signal=SIGKILL:when={at}"));
            let fails =
                (!NEVER_FULL.contains(&call.as_str())).then(|| format!("{call}:error=ENOSPC:when={at}"));
            dies.into_iter().chain(fails)
        });
        for fault in faults {
            tally.runs += 1;
            let run = catch_unwind(AssertUnwindSafe(|| {
                let dead = bench.inject(operation, &fault);
                tally.steps += usize::from(dead.0);
                bench.settle(operation, (&before, &after), (dead.1, !dead.0), &mut tally.retries);
            }));
            if let Err(panic) = run {
                tally.failures.push(format!("{}, {fault}: {}", operation.name, words(&panic)));
                bench = Self::new();
                for request in &operation.prepare {
                    request.ok(&bench.host);
                }
            }
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| bench.clear(operation))) {
            tally.failures.push(format!("{}, at the end: {}", operation.name, words(&panic)));
            bench = Self::new();
        }
        (bench, log.lines().count().min(FIRST), places.len())
    }

    /// Does the operation with a fault. Whether netd died of it, and whether it said that all went well.
    fn inject(&mut self, operation: &Operation, fault: &str) -> (bool, bool) {
        operation.begin(&self.host);
        let log = self.host.path("strace.log");
        let strace = Strace::attach(self.host.netd_pid(), &log, Some(fault));
        let outcome = operation.act.send(&self.host);
        strace.end();
        // A process that was killed answers nobody, even if it is not quite gone.
        let dead = self.host.kvmctl(&["group", "list"]).code != 0;
        if dead {
            let status = self.host.await_netds_end();
            assert_eq!(status.signal(), Some(9), "{status}: {}", self.host.logs());
            self.host.start_netd();
        }
        let logs = self.host.logs();
        assert!(!logs.contains("panicked"), "netd panicked: {logs}");
        (dead, outcome.is_ok())
    }
}

/// Sweeps operations; `tally.steps` are netd's deaths. Calls and places are those of all operations together.
#[must_use]
pub fn sweep(operations: &[Operation], stride: usize) -> (Tally, usize, usize) {
    let mut tally = Tally::default();
    let mut bench = Bench::new();
    let (mut calls, mut places) = (0, 0);
    for operation in operations {
        let (next, of_it, where_of_it) = bench.sweep(operation, stride, &mut tally);
        println!("{}: {of_it} calls, {where_of_it} places", operation.name);
        bench = next;
        calls += of_it;
        places += where_of_it;
    }
    (tally, calls, places)
}
