//! Machines and their drivers: begun, replaced, and what deleted ones left.

use super::Supervisor;
use crate::{
    adopt::{self, Found},
    console::Console,
    driver::{self, Handle, Initial, Seat},
    model::{KIND_EXIT, KIND_RUN, LastExit, Record, Run},
    ports::Ports,
    start,
};
use futures_util::FutureExt as _;
use shared::{
    events::{EventKind, News},
    fault::Fault,
    name::Name,
    steps,
    store::{Broken, Op},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    panic::AssertUnwindSafe,
    path::Path,
    sync::Arc,
    time::Duration,
};

/// Before a driver that died is replaced: one that dies again and again is not to keep a processor busy.
const REST: Duration = Duration::from_secs(1);
impl<P: Ports> Supervisor<P> {
    pub(super) fn add(&self, record: Record, console: Arc<Console>, initial: Initial) -> Handle {
        let name = record.name.clone();
        let (handle, seat) = driver::seat(&record, Arc::clone(&console), self.0.epoch);
        seat.begin(&record, &initial);
        self.0.tasks.spawn(self.clone().drive(record, console, initial, seat));
        self.vms().insert(name, handle.clone());
        handle
    }

    /// Drives a machine. A driver that panics is replaced as vmd's own start would: what runs is adopted.
    async fn drive(self, record: Record, console: Arc<Console>, mut initial: Initial, mut seat: Seat) {
        let context = &self.0.context;
        loop {
            let driven = seat.drive(Arc::clone(context), record.clone(), Arc::clone(&console), initial);
            let driven = steps::change(driven);
            if AssertUnwindSafe(driven).catch_unwind().await.is_ok() {
                return;
            }
            tracing::error!(vm = %record.name, "the task of a machine died; another one takes its place");
            initial = loop {
                tokio::select! {
                    () = context.stop.cancelled() => return,
                    () = tokio::time::sleep(REST) => {}
                }
                match self.stored(&record, &console).await {
                    Ok(initial) => break initial,
                    Err(fault) => tracing::error!(vm = %record.name, error = fault.chain(), "not yet"),
                }
            };
        }
    }

    /// A machine as its records and the kernel have it.
    async fn stored(&self, record: &Record, console: &Arc<Console>) -> Result<Initial, Fault> {
        let name = record.name.as_str();
        let store = &self.0.context.store;
        let run = store.load::<Run>(KIND_RUN).await?.records.into_iter().find(|(id, _)| id == name);
        let exit = store.load::<LastExit>(KIND_EXIT).await?.records.into_iter().find(|(id, _)| id == name);
        if run.is_none() {
            // A start that got as far as its ports, or as its group, in which its child has ended at its gate.
            if let Some(leaf) = self.0.context.jail.groups.leaf(&record.name)
                && let Err(fault) = leaf.vacate().await
            {
                tracing::warn!(vm = %record.name, error = fault.chain(), "its group stays");
            }
            self.0.context.releases.release(&start::port_names(record)).await;
        }
        let exit = exit.map(|(_, exit)| exit).unwrap_or_default();
        self.initial(record, console, run.map(|(_, run)| run), exit).await
    }

    pub(super) async fn initial(
        &self,
        record: &Record,
        console: &Arc<Console>,
        run: Option<Run>,
        exit: LastExit,
    ) -> Result<Initial, Fault> {
        let context = &self.0.context;
        Ok(match run {
            None => Initial::AtRest(exit),
            Some(run) => match adopt::find(context, record, run.clone()).await? {
                Found::Alive(mut live) => {
                    context.jail.keep(&record.name, live.run.uid);
                    let folder = context.run_folder(&record.name);
                    live.pump = start::attach_console(&folder, Arc::clone(console)).await;
                    tracing::info!(vm = %record.name, pid = live.run.pid, "adopted");
                    Initial::Alive(live)
                }
                Found::Gone(reason) => {
                    let leaf = run.left();
                    // One that is not surely its own goes only if nothing is in it.
                    if leaf.is_none()
                        && let Some(leaf) = run.leaf()
                        && let Err(error) = leaf.remove()
                    {
                        let (group, processes) = (leaf.folder().display(), leaf.members());
                        tracing::warn!(%group, ?processes, %error, "of another run; it is left alone");
                    }
                    let exit = start::end_unseen(leaf.as_ref(), reason);
                    tracing::warn!(vm = %record.name, reason = exit.reason, "its run is over");
                    let op = Op::put(KIND_EXIT, record.name.as_str(), &exit)?;
                    let news = News::of(EventKind::Exited, record.resource(), exit.reason.clone());
                    let told = start::clean_up(context, record, leaf, (vec![op], vec![news.clone()])).await;
                    if told.is_none() {
                        context.store.tell(Vec::new(), vec![news]);
                    }
                    Initial::AtRest(exit)
                }
            },
        })
    }

    /// Removes folders of machines that were deleted, and run folders of those that do not run, where the end of vmd
    /// came between.
    pub(super) fn forget_strangers(
        &self,
        records: &[Record],
        runs: &BTreeMap<String, Run>,
        broken: &[Broken],
    ) {
        let context = &self.0.context;
        // With a state that was just made, what lies there is somebody's who may want it back.
        if context.store.is_new() {
            return;
        }
        // Nor what a QEMU has open that is of another state, or of a run that is not recorded.
        let bound = fs::read_to_string("/proc/net/unix").ok();
        let in_use = |folder: &Path| bound.as_ref().is_none_or(|bound| is_bound_beneath(bound, folder));
        let broken = broken.iter().map(|broken| broken.id.as_str());
        let known: BTreeSet<&str> =
            records.iter().map(|record| record.name.as_str()).chain(broken.clone()).collect();
        let running: BTreeSet<&str> = runs.keys().map(String::as_str).chain(broken).collect();
        for (folder, known) in [(&context.state_dir, known), (&context.run_dir, running)] {
            for entry in fs::read_dir(folder.join("vms")).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let stranger =
                    name.to_str().is_some_and(|name| name.parse::<Name>().is_ok() && !known.contains(name));
                if stranger && !in_use(&entry.path()) {
                    let removed = fs::remove_dir_all(entry.path());
                    tracing::info!(folder = %entry.path().display(), ?removed, "of a machine that is gone");
                }
            }
        }
    }
}

/// Whether a socket beneath this folder is there, by the text of /proc/net/unix (proc(5)).
fn is_bound_beneath(sockets: &str, folder: &Path) -> bool {
    let paths = sockets.lines().filter_map(|line| line.get(line.find('/')?..));
    paths.map(Path::new).any(|path| path.starts_with(folder))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sockets_of_a_guest_that_runs_are_seen() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                       0000000000000000: 00000002 00000000 00010000 0001 01 20158 /run/a b/vms/web/qmp0\n\
                       0000000000000000: 00000003 00000000 00000000 0001 03 20159\n\
                       0000000000000000: 00000002 00000000 00010000 0001 01 20160 @/run/abstract\n";
        for (folder, bound) in [("/run/a b/vms/web", true), ("/run/a b/vms/we", false), ("/run/x", false)] {
            assert_eq!(is_bound_beneath(sockets, Path::new(folder)), bound, "{folder}");
        }
    }
}
