//! Records as a damaged disk, or another version, may give them back.

use super::*;
use crate::{
    convert,
    fuzz::{self, Outcome},
    model::KIND_EXIT,
    ports::KIND_PORT,
    start,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A store that is used again and again.
struct Session {
    runtime: Runtime,
    store: Store,
    _folder: TempDir,
}

thread_local! {
    static SESSION: Session = {
        let folder = fuzz::folder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = Store::open(&folder.path().join("state")).expect("a store");
        Session { runtime, store, _folder: folder }
    };
}

const KINDS: [&str; 4] = [KIND_VM, KIND_RUN, KIND_EXIT, KIND_PORT];

/// A JSON object with one record of each kind, by the kind's name.
///
/// # Errors
/// If no machine can be read.
pub fn vmd_records(data: &[u8]) -> Outcome {
    let document: Value = serde_json::from_slice(data).map_err(|_| "no JSON")?;
    SESSION.with(|Session { runtime, store, .. }| {
        let mut ops = Vec::new();
        let broken_run =
            document.get(KIND_RUN).is_some_and(|run| serde_json::from_value::<Run>(run.clone()).is_err());
        for kind in KINDS {
            let id = if kind == KIND_PORT { "networks/lan/ports/web-0" } else { "web" };
            // One of an earlier input that could not be read.
            let _ = runtime.block_on(store.forget(&format!("{kind} {id}")));
            ops.push(match document.get(kind) {
                Some(record) => Op::put(kind, id, record).map_err(|fault| fault.chain())?,
                None => Op::delete(kind, id),
            });
        }
        runtime.block_on(async {
            store.commit(ops).await.map_err(|fault| fault.chain())?;
            let stored = load(store).await.map_err(|fault| fault.chain())?;
            // What cannot be read is told. The guest of such a machine may run: it must not be started again.
            if broken_run || !stored.broken.is_empty() {
                assert!(!stored.broken.is_empty(), "a broken record is not told");
                assert!(stored.records.is_empty(), "a second guest could be started");
            } else if document.get(KIND_VM).is_some() {
                assert_eq!(stored.records.len(), 1, "a record is gone");
            }
            assert!(stored.records.iter().all(|record| record.name.as_str() == "web"));
            let record = stored.records.into_iter().next().ok_or("no machine")?;
            let run = stored.runs.get("web").cloned();
            let status = crate::model::Status {
                revision: 1,
                state: crate::machine::State::Stopped,
                exit: stored.exits.get("web").cloned().unwrap_or_default(),
                run,
                vnc_address: String::new(),
                silence: None,
                adopted: false,
                warnings: Vec::new(),
            };
            let _ = start::port_names(&record);
            let shown = convert::vm(&Vm { record, status });
            assert!(shown.name.starts_with("vms/"));
            Ok(())
        })
    })
}
