//! Spawns QEMU behind a gate.
//!
//! vmd runs itself as the child, which contains itself, waits at a pipe until vmd has the run record on disk, and then
//! becomes QEMU in the same process. If vmd dies first the pipe closes and the child ends: there is never a QEMU
//! without a record.

use crate::jail::{self, Layer, Spec, child};
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    fs::Mode,
    io::FdFlags,
    process::{Resource, Rlimit},
};
use shared::{
    fault::{Fault, Kind},
    limits,
};
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
    time::Duration,
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe};

/// First argument of the child; hidden, since it is of no use to people.
const COMMAND: &str = "__launch";
const GATE: RawFd = 3;
/// The first descriptor after the gate; `spawn` numbers its list from here.
pub const FIRST_FD: RawFd = 4;
/// As a shell reports a command that cannot be executed.
const CANNOT_EXECUTE: u8 = 127;

/// What the child says once it is contained.
const READY: &str = "ready";
/// Containment takes some 10 ms; newuidmap may have to ask a directory server for the user.
const CONTAINED: Duration = Duration::from_secs(30);

/// The open end of a gate. Dropping it ends the child.
#[derive(Debug)]
pub struct Gate {
    key: File,
    report: OwnedFd,
}

impl Gate {
    /// Waits until the child is contained and stands at the gate.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with the layer that it could not have.
    pub async fn ready(&mut self) -> Result<(), Fault> {
        let failed = |why: &str| {
            Fault::new(Kind::FailedPrecondition, "CONTAINMENT", format!("QEMU could not be contained: {why}"))
                .hint("`kvmctl host show` tells what this host allows; the next start looks anew")
        };
        let mut words = Vec::new();
        let read = async {
            let report = self.report.try_clone()?;
            pipe::Receiver::from_owned_fd(report)?.read_to_end(&mut words).await
        };
        match tokio::time::timeout(CONTAINED, read).await {
            Ok(Ok(_)) if words == READY.as_bytes() => Ok(()),
            Ok(Ok(0)) => Err(failed("the process that was to become QEMU ended")),
            Ok(Ok(_)) => Err(failed(&String::from_utf8_lossy(&words))),
            Ok(Err(error)) => Err(failed("its report cannot be read").cause(&error)),
            Err(_) => Err(failed("it takes too long")),
        }
    }

    /// Lets the child become QEMU.
    ///
    /// # Errors
    /// If the child is gone.
    pub fn release(mut self) -> io::Result<()> {
        self.key.write_all(b"!")
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
    /// What keeps QEMU in. The descriptors of its files are filled in.
    pub jail: Spec,
    /// The open files of `jail`, in its order.
    pub files: Vec<OwnedFd>,
}

/// Starts the child with `fds` as its descriptors from `FIRST_FD` on, and nothing else. Returns its process id.
///
/// # Errors
/// RESOURCE_EXHAUSTED if the kernel has no process or descriptor left.
pub fn spawn(mut launch: Launch<'_>, fds: Vec<OwnedFd>) -> Result<(u32, Gate), Fault> {
    let failed = |error: &dyn std::error::Error| {
        Fault::new(Kind::ResourceExhausted, "SPAWN", "cannot start a process for QEMU")
            .cause(error)
            .hint("check the limits of vmd's user (ulimit -u, ulimit -n) and the host's memory")
    };
    let (gate, key) = io::pipe().map_err(|e| failed(&e))?;
    let (report, words) = io::pipe().map_err(|e| failed(&e))?;
    let last = FIRST_FD + i32::try_from(fds.len()).unwrap_or(i32::MAX) - 1;
    // What the child itself needs comes after what QEMU gets: the report, then files.
    for (file, fd) in launch.jail.files.iter_mut().zip(last + 2..) {
        file.fd = fd;
    }
    let jail = serde_json::to_string(&launch.jail).map_err(|e| failed(&e))?;
    let mappings = std::iter::once(OwnedFd::from(gate))
        .chain(fds)
        .chain([OwnedFd::from(words)])
        .chain(launch.files)
        .zip(GATE..)
        .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd })
        .collect();
    let mut command = Command::new(launch.launcher);
    command
        .args([
            OsStr::new(COMMAND),
            OsStr::new(&last.to_string()),
            OsStr::new(&jail),
            launch.binary.as_os_str(),
        ])
        .args(launch.args)
        .current_dir(launch.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(launch.stderr);
    command.fd_mappings(mappings).map_err(|e| failed(&e))?;
    let child = command.spawn().map_err(|e| failed(&e))?;
    Ok((child.id(), Gate { key: File::from(OwnedFd::from(key)), report: report.into() }))
}

/// The child, or a probe of containment: `None` if this process is neither. A child returns only where it fails; its
/// stderr is the machine's log.
pub fn child_main(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    args.next()?;
    let command = args.next()?;
    if command == jail::host::PROBE {
        return Some(probe(args.next()));
    }
    if command != COMMAND {
        return None;
    }
    let result = prepare(args.next(), args.next()).and_then(|spec| {
        let binary = args.next().ok_or_else(|| io::Error::other("no program"))?;
        let mut command = Command::new(&binary);
        if spec.layers.contains(&Layer::Files) && !spec.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", std::env::join_paths(&spec.libraries).unwrap_or_default());
        }
        let error = command.args(args).exec();
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

/// Tries all layers, and prints which hold.
fn probe(spec: Option<OsString>) -> ExitCode {
    let findings = parse(spec).and_then(|spec| {
        let place = std::env::current_dir()?;
        serde_json::to_string(&child::confine(&spec, &place)).map_err(io::Error::from)
    });
    match findings {
        Ok(findings) => {
            println!("{findings}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(spec: Option<OsString>) -> io::Result<Spec> {
    let words = spec.ok_or_else(|| io::Error::other("no containment"))?;
    serde_json::from_slice(words.as_encoded_bytes()).map_err(io::Error::from)
}

/// Cuts the process off from vmd's session and descriptors, contains it, says so, and waits at the gate.
fn prepare(last: Option<OsString>, spec: Option<OsString>) -> io::Result<Spec> {
    let last = last
        .and_then(|text| text.to_str()?.parse::<RawFd>().ok())
        .ok_or_else(|| io::Error::other("no descriptor"))?;
    let spec = parse(spec)?;
    rustix::process::setsid()?;
    limits::prefer_for_oom();
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    close_others(last)?;
    let place = std::env::current_dir()?;
    let missing: Vec<String> = child::confine(&spec, &place)
        .into_iter()
        .filter(|finding| !finding.holds)
        .map(|finding| format!("{}: {}", finding.layer.name(), finding.reason))
        .collect();
    // SAFETY: `spawn` mapped the pipe for the report here, and nothing else in this process uses the number.
    let mut report = unsafe { File::from_raw_fd(last + 1) };
    if !missing.is_empty() {
        report.write_all(missing.join(", ").as_bytes())?;
        return Err(io::Error::other("not contained"));
    }
    report.write_all(READY.as_bytes())?;
    drop(report);
    // SAFETY: `spawn` mapped the gate's pipe here, and nothing else in this process uses the number.
    let mut gate = unsafe { File::from_raw_fd(GATE) };
    let mut byte = [0];
    gate.read_exact(&mut byte)?;
    Ok(spec)
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
