//! What a start has taken so far, and how to give it back.

use super::Context;
use crate::{
    jail::groups::leaf::Leaf,
    model::{KIND_RUN, LastExit, Record, Run},
    ports::Ports,
    qemu::{files::printable_path, process::Process, stderr::Stderr},
};
use shared::{
    events::{News, Pending},
    fault::{Fault, Kind},
    steps,
    store::Op,
};
use std::{path::Path, time::Duration};

/// SIGKILL takes effect at once, unless the process hangs in the kernel.
const DEATH: Duration = Duration::from_secs(5);

/// A start that came to nothing.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub fault: Fault,
    /// What was killed and does not end; its record, ports and folder are still there.
    pub left: Option<(Process, Run)>,
}

/// Filled in before each step, so that a step that is cut off half-way is taken back too.
#[derive(Debug, Default)]
pub(super) struct Undo {
    pub ports: Vec<String>,
    pub folder: bool,
    pub stderr: Option<Stderr>,
    pub process: Option<Process>,
    pub group: Option<Leaf>,
    /// On disk, or about to be.
    pub run: Option<Run>,
}

impl Undo {
    /// Takes everything back in reverse, and gives the failure with QEMU's last words and whatever else went wrong.
    pub async fn run<P: Ports>(self, context: &Context<P>, record: &Record, mut fault: Fault) -> Failed {
        let mut trouble = Vec::new();
        let mut stuck = false;
        if let Some(process) = &self.process {
            let killed = steps::effect(|| "kill QEMU".to_owned(), || kill(process, self.group.as_ref()));
            if let Err(error) = killed {
                trouble.push(error.chain());
            }
            stuck = tokio::time::timeout(DEATH, process.exited()).await.is_err();
            if stuck {
                trouble.push(format!("process {} does not end", process.pid()));
            }
        }
        if let Some(stderr) = self.stderr {
            let words = stderr.finish().await;
            if !words.is_empty() {
                let log = context.state_folder(&record.name).join(crate::qemu::stderr::FILE);
                fault = with_words(fault, &words, record)
                    .hint(format!("all that QEMU said is in {}.*", log.display()));
            }
        }
        let context_words = format!("cannot start machine `{}`", record.name);
        if stuck && let (Some(process), Some(run)) = (self.process, &self.run) {
            // It may still write to its disks: it stays recorded, and keeps what it has.
            let left = Some((process, run.clone()));
            return Failed { fault: hinted(fault, record, trouble).context(context_words), left };
        }
        let empty = match &self.group {
            Some(group) => end_group(group).await.map_err(|fault| trouble.push(fault.chain())).is_ok(),
            None => is_vacant(context, record),
        };
        if self.run.is_some()
            && let Err(error) = context.store.commit(vec![Op::delete(KIND_RUN, record.name.as_str())]).await
        {
            trouble.push(error.chain());
        }
        if fault.reason() == "CONTAINMENT" {
            context.jail.forget().await;
        }
        if empty {
            context.jail.give_back(&record.name);
        }
        if self.folder {
            remove_folder(&context.run_folder(&record.name));
        }
        if fault.kind() == Kind::Unavailable {
            context.releases.release_later(&self.ports).await;
        } else {
            context.releases.release(&self.ports).await;
        }
        Failed { fault: hinted(fault, record, trouble).context(context_words), left: None }
    }
}

fn hinted(mut fault: Fault, record: &Record, trouble: Vec<String>) -> Fault {
    for trouble in trouble {
        tracing::error!(vm = %record.name, trouble, "a failed start could not be taken back as a whole");
        fault = fault.hint(format!("taking the start back failed too: {trouble}"));
    }
    fault
}

/// Adds QEMU's words, in which disks have their paths again instead of the descriptors QEMU was given.
fn with_words(fault: Fault, words: &str, record: &Record) -> Fault {
    let mut words = words.to_owned();
    // From the last, since `/dev/fdset/1` begins `/dev/fdset/10`.
    for (index, disk) in record.spec.disks.iter().enumerate().rev() {
        words = words.replace(&format!("/dev/fdset/{}", index + 1), &printable_path(&disk.path));
    }
    let locked = words.contains("Failed to get") && words.contains("lock");
    let fault = fault.cause(&std::io::Error::other(words));
    if locked {
        return fault
            .hint("another machine or program has the disk open: stop that one, or set `read_only` in both");
    }
    fault
}

/// Removes a machine's folder and all in it. Best effort: the next start of vmd, or of the machine, does it again.
pub fn remove_folder(folder: &Path) {
    let removed = steps::effect(
        || "remove a folder".to_owned(),
        || match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Fault::internal("cannot remove a folder").cause(&error))
            }
            Ok(()) | Err(_) => Ok(()),
        },
    );
    if let Err(fault) = removed {
        tracing::warn!(folder = %folder.display(), error = fault.chain(), "a machine's folder stays");
    }
}

/// Kills QEMU, and whatever else is in its group.
///
/// # Errors
/// INTERNAL if the kernel refuses.
pub fn kill(process: &Process, group: Option<&Leaf>) -> Result<(), Fault> {
    process.kill()?;
    group.map_or(Ok(()), Leaf::kill)
}

/// Ends what is left in a run's group, and removes it.
async fn end_group(group: &Leaf) -> Result<(), Fault> {
    steps::step(|| "end the group".to_owned(), || group.end()).await
}

/// Whether nothing is in the machine's group, where a run has none of its own: what is in there is of another run, and
/// nobody else may have its user.
fn is_vacant<P>(context: &Context<P>, record: &Record) -> bool {
    context.jail.groups.leaf(&record.name).is_none_or(|leaf| leaf.remove().is_ok())
}

/// What is known of a run that ended while there was no vmd.
#[must_use]
pub fn end_unseen(group: Option<&Leaf>, reason: String) -> LastExit {
    match group.and_then(Leaf::out_of_memory) {
        Some(memory) => {
            let reason = format!("{}, while vmd was not running", memory.words());
            LastExit { error: reason.clone(), reason }
        }
        None => LastExit { reason, error: String::new() },
    }
}

/// Puts away what a run left when its process is gone, and records what is to be told of it; `None` if that failed.
pub async fn clean_up<P: Ports>(
    context: &Context<P>,
    record: &Record,
    group: Option<Leaf>,
    (ops, news): (Vec<Op>, Vec<News>),
) -> Option<Pending> {
    // First: what goes on in there has the run's user, ports and disks.
    let empty = match &group {
        Some(group) => {
            let ended = end_group(group).await.inspect_err(|fault| {
                tracing::error!(vm = %record.name, error = fault.chain(), "a machine's group stays");
            });
            ended.is_ok()
        }
        None => is_vacant(context, record),
    };
    let ops = std::iter::once(Op::delete(KIND_RUN, record.name.as_str())).chain(ops).collect();
    let told = context.store.commit_telling(ops, news).await;
    let told = told
        .inspect_err(|fault| {
            // The next start of vmd finds the process gone and records that.
            tracing::error!(vm = %record.name, error = fault.chain(), "cannot record the end of a run");
        })
        .ok();
    if empty {
        context.jail.give_back(&record.name);
    }
    remove_folder(&context.run_folder(&record.name));
    context.releases.release(&super::port_names(record)).await;
    told
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Disk, DiskBus, DiskCache, DiskFormat, DiskMedia, Spec, test_record, test_spec};

    #[test]
    fn an_end_that_vmd_did_not_see_is_told_by_the_group_that_it_left() {
        let folder = tempfile::tempdir().unwrap();
        let group = Leaf::at(folder.path().to_owned());
        let unseen = |group| end_unseen(group, "exit code unknown".into());
        let unknown = LastExit { reason: "exit code unknown".into(), error: String::new() };
        assert_eq!(unseen(None), unknown);
        assert_eq!(unseen(Some(&group)), unknown);
        std::fs::write(folder.path().join("memory.max"), "8388608\n").unwrap();
        std::fs::write(folder.path().join("memory.events"), "max 9\noom 1\noom_kill 2\n").unwrap();
        let end = unseen(Some(&group));
        assert_eq!(end.reason, "out of memory, by its limit of 8 MiB, while vmd was not running");
        assert_eq!(end.error, end.reason);
    }

    #[test]
    fn qemus_words_name_disks_as_the_client_did() {
        let disk = |index: usize| Disk {
            path: format!("/images/{index}"),
            format: DiskFormat::Raw,
            bus: DiskBus::Virtio,
            cache: DiskCache::Writeback,
            read_only: false,
            media: DiskMedia::Disk,
        };
        let record = test_record(Spec { disks: (0..11).map(disk).collect(), ..test_spec() });
        let words = "Failed to get \"write\" lock; Is another process using the image [/dev/fdset/10]?";
        let fault = with_words(Fault::new(Kind::FailedPrecondition, "X", "QEMU ended"), words, &record);
        assert!(fault.chain().ends_with("the image [/images/9]?"), "{}", fault.chain());
        assert!(fault.hints()[0].contains("another machine"));
    }
}
