//! Whether the taps that QEMU has open are still there.
//!
//! A tap that somebody deletes leaves its descriptor dead for good: netd makes another one of the name, and QEMU would
//! turn over the dead one for ever, with all of a processor.

use super::{Driver, ops::Op};
use crate::{model::Run, ports::Ports, qemu::tap::index};

/// The taps of a run, in the order of its NICs, each with its number while that is QEMU's.
#[derive(Debug, Default)]
pub(super) struct Taps(Vec<(String, Option<u32>)>);

impl Taps {
    /// As QEMU got them: one may have been deleted while there was no vmd. Of a run that an earlier vmd recorded that
    /// is not known, and they count from now on.
    pub(super) fn of(run: &Run) -> Self {
        let recorded = |nic: usize| run.indices.get(nic).copied();
        let taps = run.interfaces.iter().enumerate();
        Self(taps.map(|(nic, name)| (name.clone(), recorded(nic).unwrap_or_else(|| index(name)))).collect())
    }
}

impl<P: Ports> Driver<'_, P> {
    /// Takes the NICs of those that are gone off QEMU's hands, and says so.
    pub(super) fn look_at_taps(&mut self) {
        if self.held.is_none() || self.monitor.is_none() {
            return;
        }
        let mut lost = Vec::new();
        for (nic, (name, known)) in self.taps.0.iter_mut().enumerate() {
            if known.is_some() && index(name) != *known {
                *known = None;
                lost.push((nic, name.clone()));
            }
        }
        for (nic, name) in lost {
            tracing::warn!(vm = %self.record.name, tap = name, "it was deleted under the guest");
            self.status.warnings.push(format!(
                "tap `{name}` was deleted under the guest, which has no network by it: stop and start the machine"
            ));
            self.order(Op::Unplug(nic), None);
        }
    }
}
