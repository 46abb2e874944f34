//! Takes over the guests that an earlier vmd started, or records that they are gone.

use crate::{
    model::{Record, Run},
    ports::Ports,
    qemu::process::{self, Identity, Process},
    start::{self, Context, Live},
};
use shared::fault::{Fault, Kind};
use std::{fs, io};

/// What became of a run while there was no vmd.
#[derive(Debug)]
pub enum Found {
    /// It goes on.
    Alive(Box<Live>),
    /// It is over, for this reason.
    Gone(String),
}

/// Looks for the process of a run record.
///
/// # Errors
/// If it cannot be told whether it is there: to take it for gone would leave a guest that nobody knows of.
pub async fn find<P: Ports>(context: &Context<P>, record: &Record, run: Run) -> Result<Found, Fault> {
    let unclear = |error: io::Error| {
        let message =
            format!("cannot tell whether QEMU of machine `{}`, process {}, still runs", record.name, run.pid);
        Fault::new(Kind::FailedPrecondition, "ADOPTION", message)
            .cause(&error)
            .hint("check the limits of vmd's user (ulimit -n) and that /proc is mounted, and start vmd again")
    };
    // Held before it is looked at: what is then found cannot change any more.
    let process = Process::open(run.pid);
    let identity = who(run.pid);
    let boot_id = process::boot_id().map_err(unclear)?;
    if let Some(reason) = ended(&run, identity, &boot_id).map_err(unclear)? {
        return Ok(Found::Gone(reason));
    }
    let process = process.map_err(unclear)?;
    Ok(Found::Alive(Box::new(start::take_over(context, record, run, process).await)))
}

/// Whether the process of a run record is surely gone.
#[must_use]
pub fn is_over(run: &Run) -> bool {
    let ended = process::boot_id().and_then(|boot_id| ended(run, who(run.pid), &boot_id));
    matches!(ended, Ok(Some(_)))
}

/// Who has this number. A process that has ended is nobody, also while its parent has not asked for it; one whose first
/// thread has ended goes on with the others.
fn who(pid: u32) -> io::Result<(Identity, u32)> {
    let ended = matches!(process::state(pid), Ok('Z' | 'X'));
    if ended && fs::read_dir(format!("/proc/{pid}/task"))?.count() <= 1 {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((process::identity(pid)?, process::uid(pid)?))
}

/// How the run must have ended; `None` if what has the recorded number is what was recorded.
fn ended(run: &Run, found: io::Result<(Identity, u32)>, boot_id: &str) -> io::Result<Option<String>> {
    if boot_id != run.boot_id {
        return Ok(Some("exit code unknown: the host was restarted".into()));
    }
    match found {
        Ok((found, uid)) if found.start_ticks == run.start_ticks && uid == run.uid => return Ok(None),
        Ok(_) => {}
        Err(error) if process::is_gone(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(Some("exit code unknown: QEMU ended while vmd was not running".into()))
}

#[cfg(test)]
mod test {
    use super::*;

    fn run() -> Run {
        crate::model::test_run()
    }

    fn process(boot_id: &str, start_ticks: u64) -> io::Result<(Identity, u32)> {
        Ok((Identity { boot_id: boot_id.into(), start_ticks }, 5))
    }

    #[test]
    fn only_the_recorded_process_is_ours() {
        assert_eq!(ended(&run(), process("boot", 100), "boot").unwrap(), None);
        let gone = [io::ErrorKind::NotFound.into(), rustix::io::Errno::SRCH.into()].map(Err);
        let stranger = process("boot", 100).map(|(identity, _)| (identity, 6));
        for found in gone.into_iter().chain([process("boot", 101), stranger]) {
            let reason = ended(&run(), found, "boot").unwrap().unwrap();
            assert!(reason.contains("while vmd was not running"), "{reason}");
        }
        let reason = ended(&run(), process("next", 100), "next").unwrap().unwrap();
        assert!(reason.contains("restarted"), "{reason}");
    }

    #[test]
    fn a_process_that_has_ended_is_nobody_though_nobody_has_asked_for_it() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(who(child.id()).is_ok());
        drop(child.stdin.take());
        let pid = rustix::process::Pid::from_child(&child);
        // It has ended, and stays to be asked for.
        let wait = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), wait).unwrap();
        assert!(process::identity(child.id()).is_ok());
        assert!(process::is_gone(&who(child.id()).unwrap_err()));
        child.wait().unwrap();
        assert!(process::is_gone(&who(child.id()).unwrap_err()));
    }

    #[test]
    fn a_process_that_cannot_be_looked_at_is_not_taken_for_gone() {
        let blind = Err(rustix::io::Errno::MFILE.into());
        assert!(ended(&run(), blind, "boot").is_err());
    }
}
