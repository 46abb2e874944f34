//! The user namespace, and which ids it has.

use super::ids::Ids;
use rustix::{
    process::{Pid, WaitOptions},
    thread::UnshareFlags,
};
use std::{
    fs,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    process::{Command, Stdio},
};

/// A process outside of the namespace that writes its maps: newuidmap is run by the user who has the ids.
pub struct Mapper {
    pid: Pid,
    go: PipeWriter,
    report: PipeReader,
}

impl Mapper {
    /// Starts it; it waits. Only in a process with a single thread.
    pub fn start(ids: Ids) -> io::Result<Self> {
        let (wait, go) = io::pipe()?;
        let (report, words) = io::pipe()?;
        let target = std::process::id();
        // SAFETY: this process has one thread, so that its copy finds all locks free and may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop((go, report));
                let code = i32::from(map(wait, words, target, ids).is_err());
                // SAFETY: ends the copy, without the exit handlers of the program that it is a copy of.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"))?;
                Ok(Self { pid, go, report })
            }
        }
    }

    /// Lets it write the maps of this process's new namespace, and waits for it.
    pub fn finish(mut self) -> Result<(), String> {
        let mut words = String::new();
        let talk = self.go.write_all(b"!").and_then(|()| self.report.read_to_string(&mut words));
        let status = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        talk.map_err(|e| format!("lost the process that writes the id maps: {e}"))?;
        match status {
            Ok(Some((_, status))) if status.exit_status() == Some(0) => Ok(()),
            _ => Err(words.trim().to_owned()),
        }
    }
}

/// The copy: runs newgidmap and newuidmap once told to, and writes down what they say.
fn map(mut wait: PipeReader, mut words: PipeWriter, target: u32, ids: Ids) -> Result<(), ()> {
    // The end of the pipe is the end of the other process.
    wait.read_exact(&mut [0]).map_err(drop)?;
    for (program, id) in [("newgidmap", ids.gid), ("newuidmap", ids.uid)] {
        let number = id.to_string();
        let output = Command::new(program)
            .args([&target.to_string(), &number, &number, "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        let failure = match output {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => format!("cannot run {program}: {error}"),
        };
        let _ = words.write_all(failure.as_bytes());
        return Err(());
    }
    Ok(())
}

/// Leaves the host's user namespace; this process then has ids there that mean nothing, until the maps are written.
pub fn leave() -> Result<(), String> {
    unshare(UnshareFlags::NEWUSER, "a user namespace")
}

/// Maps the ids only that this process had outside, `own`.
pub fn map_own(own: Ids) -> Result<(), String> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("cannot write {file}: {e}"))
    };
    let Ids { uid, gid } = own;
    write("setgroups", "deny".into())?;
    write("gid_map", format!("{gid} {gid} 1\n"))?;
    write("uid_map", format!("{uid} {uid} 1\n"))
}

/// Becomes the user and group that were mapped.
pub fn become_user(ids: Ids, keep_groups: bool) -> Result<(), String> {
    let failed = |error: rustix::io::Errno| format!("cannot become uid {}: {error}", ids.uid);
    let (uid, gid) = (rustix::process::Uid::from_raw(ids.uid), rustix::process::Gid::from_raw(ids.gid));
    if !keep_groups {
        rustix::thread::set_thread_groups(&[]).map_err(failed)?;
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)
}

/// A namespace of its own.
pub fn unshare(flags: UnshareFlags, what: &str) -> Result<(), String> {
    // SAFETY: this process has one thread, and no other shares its files or file system attributes.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|e| format!("cannot make {what}: {e}"))
}
