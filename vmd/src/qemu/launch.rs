//! Spawns QEMU behind a gate.
//!
//! vmd runs itself as the child, which waits at a pipe until vmd has the run record on disk, and then becomes QEMU in
//! the same process. If vmd dies first the pipe closes and the child ends: there is never a QEMU without a record.

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    fs::Mode,
    io::FdFlags,
    process::{Resource, Rlimit},
};
use shared::fault::{Fault, Kind};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
};

/// First argument of the child; hidden, since it is of no use to people.
const COMMAND: &str = "__launch";
const GATE: RawFd = 3;
/// The first descriptor after the gate; `spawn` numbers its list from here.
pub const FIRST_FD: RawFd = 4;
/// As a shell reports a command that cannot be executed.
const CANNOT_EXECUTE: u8 = 127;

/// The open end of a gate. Dropping it ends the child.
#[derive(Debug)]
pub struct Gate(File);

impl Gate {
    /// Lets the child become QEMU.
    ///
    /// # Errors
    /// If the child is gone.
    pub fn release(mut self) -> io::Result<()> {
        self.0.write_all(b"!")
    }
}

/// What is to be run.
#[derive(Debug)]
pub struct Launch<'a> {
    /// This program.
    pub launcher: &'a Path,
    /// QEMU.
    pub binary: &'a Path,
    /// QEMU's arguments.
    pub args: &'a [String],
    /// The folder QEMU runs in.
    pub folder: &'a Path,
    /// QEMU's stderr.
    pub stderr: OwnedFd,
}

/// Starts the child with `fds` as its descriptors from `FIRST_FD` on, and nothing else. Returns its process id.
///
/// # Errors
/// RESOURCE_EXHAUSTED if the kernel has no process or descriptor left.
pub fn spawn(launch: Launch<'_>, fds: Vec<OwnedFd>) -> Result<(u32, Gate), Fault> {
    let failed = |error: &dyn std::error::Error| {
        Fault::new(Kind::ResourceExhausted, "SPAWN", "cannot start a process for QEMU")
            .cause(error)
            .hint("check the limits of vmd's user (ulimit -u, ulimit -n) and the host's memory")
    };
    let (gate, key) = io::pipe().map_err(|e| failed(&e))?;
    let last = FIRST_FD + i32::try_from(fds.len()).unwrap_or(i32::MAX) - 1;
    let mappings = std::iter::once(OwnedFd::from(gate))
        .chain(fds)
        .zip(GATE..)
        .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd })
        .collect();
    let mut command = Command::new(launch.launcher);
    command
        .args([OsStr::new(COMMAND), OsStr::new(&last.to_string()), launch.binary.as_os_str()])
        .args(launch.args)
        .current_dir(launch.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(launch.stderr);
    command.fd_mappings(mappings).map_err(|e| failed(&e))?;
    let child = command.spawn().map_err(|e| failed(&e))?;
    Ok((child.id(), Gate(File::from(OwnedFd::from(key)))))
}

/// The child: `None` if this process is not one. It returns only where it fails; its stderr is the machine's log.
pub fn child_main(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    args.next()?;
    if args.next()? != COMMAND {
        return None;
    }
    let result = prepare(args.next()).and_then(|()| {
        let binary = args.next().ok_or_else(|| io::Error::other("no program"))?;
        let error = Command::new(&binary).args(args).exec();
        Err(io::Error::new(error.kind(), format!("cannot execute `{}`: {error}", binary.to_string_lossy())))
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            eprintln!("vmd went away before the machine was recorded");
        }
        Err(error) => eprintln!("{error}"),
        Ok(()) => {}
    }
    Some(ExitCode::from(CANNOT_EXECUTE))
}

/// Cuts the process off from vmd's session, privileges and descriptors, and waits at the gate.
fn prepare(last: Option<OsString>) -> io::Result<()> {
    let last = last
        .and_then(|text| text.to_str()?.parse::<RawFd>().ok())
        .ok_or_else(|| io::Error::other("no descriptor"))?;
    rustix::process::setsid()?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    close_others(last)?;
    // SAFETY: `spawn` mapped the gate's pipe here, and nothing else in this process uses the number.
    let mut gate = unsafe { File::from_raw_fd(GATE) };
    let mut byte = [0];
    gate.read_exact(&mut byte)
}

/// Marks all descriptors that QEMU must not have. vmd opens everything close-on-exec; this holds even if it forgot.
fn close_others(last: RawFd) -> io::Result<()> {
    let folder = File::open("/proc/self/fd")?;
    let open: Vec<RawFd> = rustix::fs::Dir::read_from(&folder)?
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
        .collect();
    for fd in open {
        if fd == GATE || fd > last && fd != folder.as_raw_fd() {
            // SAFETY: the flag is set on descriptors of this single-threaded process; one that was closed since it
            // was listed (the listing's own) only gives EBADF.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
    Ok(())
}
