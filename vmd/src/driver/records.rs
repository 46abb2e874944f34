//! What is kept of a machine on disk.

use super::Driver;
use crate::{
    machine::State,
    model::{KIND_EXIT, KIND_RUN, KIND_VM, Status},
    ports::Ports,
    start,
};
use shared::{
    events::{EventKind, News},
    fault::Fault,
    store,
};
use std::sync::atomic::Ordering;

impl<P: Ports> Driver<'_, P> {
    pub(super) async fn forget(&mut self) -> Result<(), Fault> {
        let name = self.record.name.as_str();
        let ops = [KIND_VM, KIND_RUN, KIND_EXIT].map(|kind| store::Op::delete(kind, name)).to_vec();
        let news = vec![News::of(EventKind::Deleted, self.record.resource(), "")];
        let told = self.context.store.commit_telling(ops, news).await;
        let told = told.map_err(|e| e.context(format!("cannot delete machine `{name}`")))?;
        self.gone.store(true, Ordering::Release);
        drop(told);
        // Of a run whose group could not be removed when it ended. What is still in there may be a guest.
        if let Some(leaf) = self.context.jail.groups.leaf(&self.record.name)
            && let Err(error) = leaf.remove()
        {
            tracing::warn!(vm = %self.record.name, %error, processes = ?leaf.members(), "its group stays");
        }
        self.context.releases.release(&start::port_names(&self.record)).await;
        let folder = self.context.state_folder(&self.record.name);
        // The next start of vmd removes what could not be removed now.
        start::remove_folder(&folder);
        Ok(())
    }

    /// Records how a run ended, after which the machine is in `state`.
    pub(super) async fn record_exit(&mut self, state: State) {
        let before = self.told.clone();
        let news = self.news(Status { state, ..self.status.clone() });
        let put = store::Op::put(KIND_EXIT, self.record.name.as_str(), &self.status.exit);
        let result = match put {
            Ok(op) => self.context.store.commit_telling(vec![op], news).await,
            Err(fault) => Err(fault),
        };
        match result {
            Ok(told) => self.untold = Some(told),
            Err(fault) => {
                tracing::error!(vm = %self.record.name, error = fault.chain(), "cannot record how a run ended");
                // It is told all the same, or known to be missing.
                self.told = before;
            }
        }
    }
}
