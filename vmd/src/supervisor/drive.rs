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
use futures_util::{FutureExt as _, future::join_all};
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
            // A start that got as far as its ports, or as its group.
            if let Some(leaf) = self.0.context.jail.groups.leaf(&record.name) {
                leaf.end().await?;
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
                    let leaf = run.leaf();
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

    /// Ends what is in groups of machines that do not run, where the end of vmd came between.
    pub(super) async fn end_strays(&self, broken: &[Broken]) {
        let context = &self.0.context;
        // As of `forget_strangers`: it may be somebody's guest.
        if context.store.is_new() {
            return;
        }
        let vms: Vec<_> = self.vms().values().map(|handle| handle.watch.borrow().clone()).collect();
        let running = vms.iter().filter(|vm| vm.status.run.is_some()).map(|vm| vm.record.name.as_str());
        let known: BTreeSet<&str> = running.chain(broken.iter().map(|broken| broken.id.as_str())).collect();
        let strays = context.jail.groups.strays(&known);
        let ended = strays.iter().map(|leaf| async move {
            let ended = leaf.end().await.map_err(|fault| fault.chain());
            tracing::info!(group = %leaf.folder().display(), ?ended, "of a machine that does not run");
        });
        join_all(ended).await;
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
        let broken = broken.iter().map(|broken| broken.id.as_str());
        let known: BTreeSet<&str> =
            records.iter().map(|record| record.name.as_str()).chain(broken.clone()).collect();
        let running: BTreeSet<&str> = runs.keys().map(String::as_str).chain(broken).collect();
        for (folder, known) in [(&context.state_dir, known), (&context.run_dir, running)] {
            for entry in fs::read_dir(folder.join("vms")).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let stranger =
                    name.to_str().is_some_and(|name| name.parse::<Name>().is_ok() && !known.contains(name));
                if stranger {
                    let removed = fs::remove_dir_all(entry.path());
                    tracing::info!(folder = %entry.path().display(), ?removed, "of a machine that is gone");
                }
            }
        }
    }
}
