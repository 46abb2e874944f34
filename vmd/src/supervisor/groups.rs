//! Control groups of machines that do not run, as far as is known: nothing in them is killed.
//!
//! The record of a run may be lost, given up or out of a backup while its guest goes on. What a vmd that was killed had
//! begun has no guest yet, and ends by itself.

use super::Supervisor;
use crate::{
    jail::groups::{Groups, leaf::Leaf},
    machine::State,
    model::Run,
    ports::Ports,
};
use futures_util::future::join_all;
use shared::store::Broken;
use std::collections::BTreeMap;

/// Removes groups that are of none of these runs, where nothing is in them; whether any stays.
pub(super) async fn vacate(groups: &Groups, runs: &BTreeMap<String, Run>, broken: &[Broken]) -> bool {
    let known = |machine: &str, leaf: &Leaf| {
        let of = |run: &Run| run.group_id.is_none() || run.group_id == leaf.id();
        runs.get(machine).is_some_and(of) || broken.iter().any(|broken| broken.id == machine)
    };
    let leaves = groups.leaves().into_iter().filter(|(machine, leaf)| !known(machine, leaf));
    let stays = leaves.map(|(machine, leaf)| async move {
        let vacated = leaf.vacate().await;
        match &vacated {
            Ok(()) => tracing::info!(vm = machine, "the group of a machine that does not run is removed"),
            Err(fault) => tracing::warn!(vm = machine, error = fault.chain(), "{}", words(&machine, &leaf)),
        }
        vacated.is_err()
    });
    join_all(stays).await.contains(&true)
}

fn words(machine: &str, leaf: &Leaf) -> String {
    format!(
        "control group `{}` has processes {} of a run of machine `{machine}` that is not recorded: they are left alone, and no machine of that name starts; if nobody wants them, {}",
        leaf.folder().display(),
        leaf.members().join(", "),
        leaf.way_out()
    )
}

impl<P: Ports> Supervisor<P> {
    /// What an operator should know about guests that go on and of whose run there is no record.
    #[must_use]
    pub fn lost(&self) -> Vec<String> {
        let context = &self.0.context;
        // Before the states: the group of a machine that is started meanwhile is not among them.
        let leaves = context.jail.groups.leaves();
        let broken = self.broken();
        let at_rest = |machine: &str| {
            let handle =
                self.vms().iter().find(|(name, _)| name.as_str() == machine).map(|(_, vm)| vm.clone());
            handle.is_none_or(|handle| {
                let status = &handle.watch.borrow().status;
                status.run.is_none() && matches!(status.state, State::Stopped | State::Failed)
            })
        };
        leaves
            .into_iter()
            .filter(|(machine, leaf)| {
                broken.keys().all(|name| name.as_str() != machine)
                    && at_rest(machine)
                    && !leaf.members().is_empty()
            })
            .map(|(machine, leaf)| words(&machine, &leaf))
            .collect()
    }
}
