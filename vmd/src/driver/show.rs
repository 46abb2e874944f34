//! What others get to see: the machine on its watch, and answers to those who asked.

use super::{Driver, Reply, Verb};
use crate::{machine::State, model::Vm, ports::Ports};
use shared::fault::{Fault, Kind};
use std::sync::Arc;

/// How the warning of a process that does not end begins.
pub(super) const STUCK: &str = "QEMU, ";

impl<P: Ports> Driver<'_, P> {
    pub(super) fn vm(&self) -> Arc<Vm> {
        self.show.borrow().clone()
    }

    pub(super) fn answer(&mut self, asker: Option<(Verb, Reply)>) {
        self.publish();
        if let Some((_, reply)) = asker {
            let _ = reply.send(Ok(self.vm()));
        }
    }

    pub(super) fn refuse(&self, asker: Option<(Verb, Reply)>) {
        let Some((verb, reply)) = asker else { return };
        let hint = match (self.state, verb) {
            (State::Paused, Verb::Start) => "resume it instead",
            (State::Stopped | State::Failed, _) => "start it first",
            (_, Verb::Delete) => "stop it first",
            (State::Starting | State::Stopping(_), _) => "wait until it has settled, and try again",
            (State::Running | State::Paused | State::Deleted, _) => "look at its state, and try again",
        };
        let fault = Fault::new(
            Kind::FailedPrecondition,
            "WRONG_STATE",
            format!(
                "machine `{}` is {} and cannot be {} in this state",
                self.record.name,
                self.state.name(),
                verb.word()
            ),
        )
        .meta("state", self.state.name())
        .hint(hint);
        let _ = reply.send(Err(fault));
    }

    /// A guest that resets itself again and again is running, and of no use to anybody.
    pub(super) fn note_reset(&mut self, guest: bool) {
        const WORDS: &str = "the guest has reset itself ";
        if guest {
            self.resets += 1;
            self.status.warnings.retain(|warning| !warning.starts_with(WORDS));
            let times = if self.resets == 1 { "once".into() } else { format!("{} times", self.resets) };
            self.status.warnings.push(format!("{WORDS}{times} in this run"));
        }
    }

    /// SIGKILL was sent, and the process is still there.
    pub(super) fn tell_stuck(&mut self) {
        let Some(run) = &self.status.run else { return };
        let message =
            format!("{STUCK}process {}, was killed and does not end: it hangs in the kernel", run.pid);
        tracing::error!(vm = %self.record.name, pid = run.pid, "QEMU was killed and does not end");
        if !self.status.warnings.contains(&message) {
            self.status.warnings.push(message.clone());
        }
        self.publish();
        for (verb, reply) in std::mem::take(&mut self.waiters) {
            let stuck = Fault::new(Kind::Unavailable, "STUCK", message.clone())
                .hint("look at what it waits for (its stack in /proc): a disk or network file system that hangs")
                .hint("its disks and ports stay taken until it ends");
            let fault = match (verb, &self.launch_fault) {
                (Verb::Start, Some(fault)) => fault.clone(),
                _ => stuck,
            };
            let _ = reply.send(Err(fault));
        }
    }

    /// Answers all who wait for the machine to run or to stand still.
    pub(super) fn settle(&mut self) {
        self.publish();
        let vm = self.vm();
        for (verb, reply) in std::mem::take(&mut self.waiters) {
            let answer = match (verb, self.state) {
                (Verb::Start, State::Running | State::Paused) => Ok(Arc::clone(&vm)),
                (Verb::Start, _) => Err(self.launch_fault.clone().unwrap_or_else(|| {
                    Fault::new(Kind::Aborted, "STOPPED", "the machine was stopped while it was starting")
                })),
                _ => Ok(Arc::clone(&vm)),
            };
            let _ = reply.send(answer);
        }
    }

    pub(super) fn publish(&mut self) {
        // Watchers hear of that by the end of the watch.
        if self.state == State::Deleted {
            return;
        }
        self.status.state = self.state;
        let before = self.show.borrow().status.clone();
        self.status.revision = before.revision;
        if self.status != before {
            self.status.revision += 1;
            let vm = Vm { record: self.record.clone(), status: self.status.clone() };
            self.show.send_replace(Arc::new(vm));
        }
        self.tell();
    }
}
