//! What is kept of a machine on disk.

use super::Driver;
use crate::{
    model::{KIND_EXIT, KIND_RUN, KIND_VM},
    ports::Ports,
    start,
};
use shared::{fault::Fault, store};

impl<P: Ports> Driver<P> {
    pub(super) async fn forget(&mut self) -> Result<(), Fault> {
        let name = self.record.name.as_str();
        let ops = [KIND_VM, KIND_RUN, KIND_EXIT].map(|kind| store::Op::delete(kind, name)).to_vec();
        self.context
            .store
            .commit(ops)
            .await
            .map_err(|e| e.context(format!("cannot delete machine `{name}`")))?;
        self.context.releases.release(&start::port_names(&self.record)).await;
        let folder = self.context.state_folder(&self.record.name);
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove the log of a deleted machine");
        }
        Ok(())
    }

    pub(super) async fn record_exit(&mut self) {
        let put = store::Op::put(KIND_EXIT, self.record.name.as_str(), &self.status.exit);
        let result = match put {
            Ok(op) => self.context.store.commit(vec![op]).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = result {
            tracing::error!(vm = %self.record.name, error = fault.chain(), "cannot record how a run ended");
        }
    }
}
