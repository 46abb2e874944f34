//! What an earlier vmd left on disk, and what cannot be read of it.

use crate::{
    adopt,
    config::Config,
    model::{KIND_EXIT, KIND_RUN, KIND_VM, LastExit, Record, Run},
    ports::{KIND_PORT, PortRecord},
    start,
};
use shared::{
    fault::Fault,
    name::Name,
    store::{Broken, Op, Store},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Store kind of the number of vmd's lives; it has one record.
const KIND_EPOCH: &str = "epoch";
/// Pause until its number is written again.
const EPOCH_RETRY: Duration = Duration::from_secs(2);

/// What an earlier vmd left on disk.
pub(super) struct Stored {
    pub(super) records: Vec<Record>,
    pub(super) runs: BTreeMap<String, Run>,
    pub(super) exits: BTreeMap<String, LastExit>,
    /// Ports whose machines do not run, and their uids: whatever was meant to delete them did not get to it.
    pub(super) orphans: BTreeMap<String, Option<String>>,
    /// Those that cannot be read, and runs that go on without a machine.
    pub(super) broken: Vec<Broken>,
    /// Runs that are over, and whose machines are gone: to be deleted.
    pub(super) over: BTreeMap<String, Run>,
}

/// Reads it. The guest of a machine with a broken record may run: such a machine is neither shown, nor started again,
/// nor do its ports count as orphans.
pub(super) async fn load(store: &Store) -> Result<Stored, Fault> {
    let records = store.load::<Record>(KIND_VM).await?;
    let runs = store.load::<Run>(KIND_RUN).await?;
    let mut broken = records.broken;
    broken.extend(runs.broken);
    broken.extend(records.records.iter().filter(|(id, record)| *id != record.name.as_str()).map(
        |(id, record)| {
            let why = format!("it is the record of `{}`", record.name);
            store.reject(KIND_VM, id, &why);
            Broken { id: id.clone(), why }
        },
    ));
    let runs: BTreeMap<_, _> = runs.records.into_iter().collect();
    let (over, strays) = strays(&records.records, &runs, &broken);
    for stray in &strays {
        store.reject(KIND_RUN, &stray.id, &stray.why);
    }
    broken.extend(strays);
    let (over, runs) = runs.into_iter().partition::<BTreeMap<_, _>, _>(|(id, _)| over.contains(id));
    let whole = |name: &Name| broken.iter().all(|broken| broken.id != name.as_str());
    let records: Vec<Record> = records
        .records
        .into_iter()
        .filter(|(id, record)| whole(&record.name) && *id == record.name.as_str())
        .map(|(_, record)| record)
        .collect();
    let used: BTreeSet<String> = records
        .iter()
        .filter(|record| runs.contains_key(record.name.as_str()))
        .flat_map(start::port_names)
        .collect();
    let orphans = store
        .load::<PortRecord>(KIND_PORT)
        .await?
        .records
        .into_iter()
        .filter(|(resource, port)| whole(&port.vm) && !used.contains(resource))
        .map(|(resource, port)| (resource, port.uid))
        .collect();
    let exits = store.load::<LastExit>(KIND_EXIT).await?.records.into_iter().collect();
    store.expend(&[KIND_EXIT, KIND_EPOCH]);
    Ok(Stored { records, runs, exits, orphans, broken, over })
}

/// Runs of no machine that there is: those that are over, and those that may go on, which nobody may adopt, and whose
/// names and ports stay taken. The record of such a machine was given up, or is another's by now.
fn strays(
    records: &[(String, Record)],
    runs: &BTreeMap<String, Run>,
    broken: &[Broken],
) -> (BTreeSet<String>, Vec<Broken>) {
    let (mut over, mut strays) = (BTreeSet::new(), Vec::new());
    for (id, run) in runs.iter().filter(|(id, _)| broken.iter().all(|broken| broken.id != **id)) {
        let of = |record: &Record| run.machine.is_none_or(|uid| uid == record.uid);
        if records.iter().any(|(name, record)| name == id && of(record)) {
            continue;
        }
        if adopt::is_over(run) {
            over.insert(id.clone());
            continue;
        }
        let pid = run.pid;
        let why = format!(
            "its machine has no record, and its QEMU, process {pid}, still runs: end that, and start vmd again"
        );
        strays.push(Broken { id: id.clone(), why });
    }
    (over, strays)
}

/// Ends what runs have left that are over and whose machines are gone, and deletes their records, which do no harm where
/// the disk is full.
pub(super) async fn end_runs(store: &Store, over: BTreeMap<String, Run>) {
    if over.is_empty() {
        return;
    }
    tracing::info!(over = ?over.keys(), "runs of machines that are gone");
    for leaf in over.values().filter_map(Run::left) {
        if let Err(fault) = leaf.end().await {
            tracing::warn!(error = fault.chain(), "a group stays");
        }
    }
    let ops = over.into_keys().map(|id| Op::delete(KIND_RUN, id)).collect();
    if let Err(fault) = store.commit(ops).await {
        tracing::warn!(error = fault.chain(), "they stay recorded");
    }
}

/// Counts this life of vmd. A disk that is full must not keep vmd from its machines: the number is then written later.
pub(super) async fn next_epoch(store: &Store) -> Result<i64, Fault> {
    let last = store.load::<i64>(KIND_EPOCH).await?.records.first().map_or(0, |(_, epoch)| *epoch);
    store.expend(&[KIND_EPOCH]);
    let op = Op::put(KIND_EPOCH, "", &(last + 1))?;
    if let Err(fault) = store.commit(vec![op.clone()]).await {
        tracing::error!(error = fault.chain(), "cannot count this start");
        let store = store.clone();
        tokio::spawn(async move {
            while store.commit(vec![op.clone()]).await.is_err() {
                tokio::time::sleep(EPOCH_RETRY).await;
            }
        });
    }
    Ok(last + 1)
}

/// Gives up the record of `KIND ID`, which cannot be read.
///
/// # Errors
/// As `Store::forget`, and if another vmd has the store.
pub async fn forget(config: &Config, what: &str) -> Result<(), Fault> {
    let store = Store::open(&config.state_dir)?;
    load(&store).await?;
    store.forget(what).await
}
