//! Whether the taps that QEMU has open are still there.
//!
//! A tap that somebody deletes leaves its descriptor dead for good: netd makes another one of the name, and QEMU would
//! turn over the dead one for ever, with all of a processor.

use super::{Driver, ops::Op};
use crate::ports::Ports;
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

/// The taps of a run, in the order of its NICs, each with its number while that is QEMU's.
#[derive(Debug, Default)]
pub(super) struct Taps(Vec<(String, Option<u32>)>);

impl Taps {
    /// As they are now.
    pub(super) fn of(interfaces: &[String]) -> Self {
        Self(interfaces.iter().map(|name| (name.clone(), index(name))).collect())
    }
}

/// The kernel's number of an interface; `None` if there is none of that name.
fn index(name: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    name_to_index(socket, name).ok()
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
