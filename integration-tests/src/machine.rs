//! A real machine's serial console, through `kvmctl vm console`.

use crate::{host::TestHost, wait::PATIENCE};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Instant,
};

/// Kernel command line that every test guest starts with.
pub const CMDLINE: &str =
    "console=ttyS0 quiet net.ifnames=0 panic=-1 no_timer_check tsc=reliable cryptomgr.notests lsm=capability";

/// An attached console whose lines come out as the guest prints them.
#[derive(Debug)]
pub struct Console {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

/// Numbers commands, so that one's end is not taken for another's, which the console's history may show again.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Console {
    /// Attaches to a machine that has come up.
    ///
    /// # Panics
    /// If kvmctl cannot be started.
    #[must_use]
    pub fn attach(host: &TestHost, vm: &str) -> Self {
        let mut command = host.kvmctl_command(&["vm", "console", vm]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("kvmctl vm console");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut console = Self { child, stdin, lines };
        // Past the history.
        console.ok("true");
        console
    }

    /// Runs a shell command in the guest; whether it succeeded, and what it printed.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn run(&mut self, command: &str) -> (bool, String) {
        let number = format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let token = format!("DONE:{number}:");
        // Written in two parts, so that an echoed command is not taken for its end.
        writeln!(self.stdin, "{command}; echo \"DO\"\"NE:{number}:$?\"").expect("console");
        let end = Instant::now() + PATIENCE;
        let mut seen = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("no end of `{command}`:\n{seen}") };
            if let Some((before, status)) = line.split_once(&token) {
                seen.push_str(before);
                return (status.trim() == "0", seen);
            }
            seen.push_str(&line);
            seen.push('\n');
        }
    }

    /// As `run`, for a command that has to succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn ok(&mut self, command: &str) -> String {
        let (succeeded, output) = self.run(command);
        assert!(succeeded, "`{command}` failed in the guest:\n{output}");
        output
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
