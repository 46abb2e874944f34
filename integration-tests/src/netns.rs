//! Network namespaces with names, so that `ip netns exec` reaches them.

use crate::wait::PATIENCE;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::{
    fs::File,
    os::fd::AsFd as _,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace; clones share it, and it goes away with the last one.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up. `role` is for people who look at `ip netns`.
    ///
    /// # Panics
    /// Without root or iproute2.
    #[must_use]
    pub fn new(role: &str) -> Self {
        let name = format!("kvt-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self(Arc::new(Inner { name }));
        netns.sh("ip link set lo up");
        netns
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A command inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(), program]);
        command
    }

    /// Runs a shell script inside and returns what it printed.
    ///
    /// # Panics
    /// If it fails; with what it said.
    pub fn sh(&self, script: &str) -> String {
        let output = run(self.command("sh").args(["-euc", script]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether a shell script inside succeeds.
    #[must_use]
    pub fn succeeds(&self, script: &str) -> bool {
        let mut command = self.command("sh");
        command.args(["-euc", script]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Runs a command that prints JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    #[must_use]
    pub fn json(&self, script: &str) -> Value {
        let text = self.sh(script);
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("`{script}` printed no JSON ({e}): {text}"))
    }

    /// Starts a long-running command inside.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        self.command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip netns exec")
    }

    /// Runs `work` on a thread inside, and returns what it returns: sockets and descriptors keep working outside.
    ///
    /// # Panics
    /// If `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name());
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let namespace = File::open(&path).expect("namespace file");
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                        .expect("setns");
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Joins two namespaces by a veth pair, both ends up.
    pub fn join(&self, mine: &str, other: &Self, theirs: &str) {
        self.sh(&format!("ip link add {mine} type veth peer name {theirs} netns {}", other.name()));
        self.sh(&format!("ip link set {mine} up"));
        other.sh(&format!("ip link set {theirs} up"));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let processes = Command::new("ip").args(["netns", "pids", &self.name]).output();
        for pid in processes.iter().flat_map(|o| {
            String::from_utf8_lossy(&o.stdout).into_owned().lines().map(str::to_owned).collect::<Vec<_>>()
        }) {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Runs a command to its end, in bounded time.
///
/// # Panics
/// If it fails; with what it said.
pub fn run(command: &mut Command) -> Output {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// As `run`, whatever its exit status.
///
/// # Panics
/// If it cannot be started.
pub fn output(command: &mut Command) -> Output {
    let bounded = format!("{}", PATIENCE.as_secs() * 2);
    let mut timed = Command::new("timeout");
    timed.args(["--kill-after=5", &bounded]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(key, value),
            None => timed.env_remove(key),
        };
    }
    timed.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}
