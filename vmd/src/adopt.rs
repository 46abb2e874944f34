//! Takes over the guests that an earlier vmd started, or records that they are gone.

use crate::{
    model::{Record, Run},
    ports::Ports,
    qemu::process::{self, Identity, Process},
    start::{self, Context, Live},
};
use std::io;

/// What became of a run while there was no vmd.
#[derive(Debug)]
pub enum Found {
    /// It goes on.
    Alive(Box<Live>),
    /// It is over, for this reason.
    Gone(String),
}

/// Looks for the process of a run record.
pub async fn find<P: Ports>(context: &Context<P>, record: &Record, run: Run) -> Found {
    // Held before it is looked at: what is then found cannot change any more.
    let process = Process::open(run.pid);
    let identity = process::identity(run.pid);
    if let Err(reason) = same(&run, &identity, process::boot_id().ok().as_deref()) {
        return Found::Gone(reason);
    }
    match process {
        Ok(process) => Found::Alive(Box::new(start::take_over(context, record, run, process).await)),
        Err(error) => Found::Gone(format!("exit code unknown: QEMU cannot be watched ({error})")),
    }
}

/// Whether what has the recorded number is what was recorded; if not, how the run must have ended.
fn same(run: &Run, found: &io::Result<Identity>, boot_id: Option<&str>) -> Result<(), String> {
    if boot_id.is_some_and(|boot_id| boot_id != run.boot_id) {
        return Err("exit code unknown: the host was restarted".into());
    }
    match found {
        Ok(found) if found.boot_id == run.boot_id && found.start_ticks == run.start_ticks => Ok(()),
        Ok(_) | Err(_) => Err("exit code unknown: QEMU ended while vmd was not running".into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::Accelerator;
    use shared::time::Timestamp;
    use uuid::Uuid;

    fn run() -> Run {
        Run {
            boot_id: "boot".into(),
            pid: 7,
            start_ticks: 100,
            uid: 0,
            qemu_binary: "/q".into(),
            qemu_version: "v".into(),
            nonce: Uuid::nil(),
            start_time: Timestamp { seconds: 0, nanos: 0 },
            accelerator: Accelerator::Tcg,
            cpu_model: "max".into(),
            interfaces: vec![],
            warnings: vec![],
        }
    }

    fn process(boot_id: &str, start_ticks: u64) -> io::Result<Identity> {
        Ok(Identity { boot_id: boot_id.into(), start_ticks })
    }

    #[test]
    fn only_the_recorded_process_is_ours() {
        assert!(same(&run(), &process("boot", 100), Some("boot")).is_ok());
        let gone = Err(io::ErrorKind::NotFound.into());
        for (found, boot_id) in
            [(process("boot", 101), "boot"), (gone, "boot"), (process("other", 100), "boot")]
        {
            let reason = same(&run(), &found, Some(boot_id)).unwrap_err();
            assert!(reason.contains("while vmd was not running"), "{reason}");
        }
        let reason = same(&run(), &process("next", 100), Some("next")).unwrap_err();
        assert!(reason.contains("restarted"), "{reason}");
    }
}
