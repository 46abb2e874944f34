//! A process: who it is, when it ends, how to end it. Everything goes by pidfd, so that no signal can hit a process
//! that took over the number.

use crate::fault::Fault;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By exit(2).
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It was not our child, so that the kernel told its parent and not us.
    Unknown,
}

/// What tells one process from all others that ever had its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the running kernel.
    pub boot_id: String,
    /// Clock ticks from boot to the start of the process.
    pub start_ticks: u64,
}

/// The id of this boot.
///
/// # Errors
/// If /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The identity of the process that has this number now.
///
/// # Errors
/// `NotFound` if there is none.
pub fn identity(pid: u32) -> io::Result<Identity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let start_ticks = start_ticks(&stat).ok_or_else(|| io::Error::other("cannot read /proc/PID/stat"))?;
    Ok(Identity { boot_id: boot_id()?, start_ticks })
}

/// The real user id of the process that has this number now.
///
/// # Errors
/// `NotFound` if there is none.
pub fn uid(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let real = ids.and_then(|ids| ids.split_whitespace().next()?.parse().ok());
    real.ok_or_else(|| io::Error::other("cannot read /proc/PID/status"))
}

/// Whether the error means that there is no such process.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// The letter that stands for what the process does (proc(5)): `T` is stopped, `Z` has ended.
///
/// # Errors
/// `NotFound` if there is none.
pub fn state(pid: u32) -> io::Result<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = stat.rsplit_once(')').and_then(|(_, after)| after.trim_start().chars().next());
    state.ok_or_else(|| io::Error::other("cannot read /proc/PID/stat"))
}

/// Field 22. The second field is the program's name in parentheses, and may contain both blanks and parentheses.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Waits for the end of a child that cannot be held, so that it does not stay a zombie.
pub async fn reap(pid: u32) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let wait = move || {
        let ended = waitid(WaitId::Pid(number), WaitIdOptions::EXITED);
        if let Err(error) = ended {
            tracing::warn!(pid, %error, "cannot wait for a child");
        }
    };
    let _ = tokio::task::spawn_blocking(wait).await;
}

/// A process held by its pidfd.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes hold of the process with this number. Check its identity after this, not before.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let fd = pidfd_open(number, PidfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives, and `fd` moves into the
        // `AsyncFd`.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pid, fd })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end, and reaps it if it is our child. May be asked again; a child's status is told only once.
    pub async fn exited(&self) -> Exit {
        // An error here means a broken runtime; the process is then taken for gone, which `waitid` may correct.
        let _ = self.fd.readable().await;
        match waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }

    /// Sends SIGKILL. A process that has ended is fine.
    ///
    /// # Errors
    /// INTERNAL if the kernel refuses.
    pub fn kill(&self) -> Result<(), Fault> {
        self.signal(Signal::KILL)
    }

    /// Sends a signal. A process that has ended is fine.
    ///
    /// # Errors
    /// INTERNAL if the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), Fault> {
        match pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(Fault::internal(format!("cannot signal process {}", self.pid)).cause(&error)),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::{Command, Stdio};

    fn sleeper() -> std::process::Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn names_cannot_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("123 (evil) S 1 (x) S {}", fields.join(" "));
        assert_eq!(start_ticks(&stat), Some(22));
        assert_eq!(start_ticks("123 (short) S 1 2"), None);
    }

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "`exited` reaps them")]
    async fn a_child_tells_how_it_ended() {
        let child = sleeper();
        let process = Process::open(child.id()).unwrap();
        process.kill().unwrap();
        assert_eq!(process.exited().await, Exit::Signal(9));
        // Reaped, and safe to be asked or killed again.
        assert_eq!(process.exited().await, Exit::Unknown);
        process.kill().unwrap();
        let mut child = sleeper();
        let process = Process::open(child.id()).unwrap();
        drop(child.stdin.take());
        assert_eq!(process.exited().await, Exit::Code(0));
    }

    #[test]
    fn a_process_is_the_same_until_it_is_not() {
        let own = std::process::id();
        assert_eq!(identity(own).unwrap(), identity(own).unwrap());
        assert_eq!(uid(own).unwrap(), rustix::process::getuid().as_raw());
        assert!(identity(u32::MAX).is_err() && uid(u32::MAX).is_err());
        assert!(matches!(state(own).unwrap(), 'R' | 'S' | 'D'));
    }
}
