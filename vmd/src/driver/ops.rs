//! Commands to QEMU, which the driver orders and hears of later.

use super::{Driver, Reply, Verb};
use crate::{
    ports::Ports,
    qemu::{args, qmp::Qmp},
};
use serde_json::{Value, json};
use shared::fault::{Fault, Kind};
use tracing::{Instrument as _, Span};

/// A command to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Reset,
    Pause,
    Resume,
    Powerdown,
    Quit,
    Probe,
    /// Removes the other side of the NIC of that number.
    Unplug(usize),
}

impl Op {
    fn command(self) -> &'static str {
        match self {
            Self::Reset => "system_reset",
            Self::Pause => "stop",
            Self::Resume => "cont",
            Self::Powerdown => "system_powerdown",
            Self::Quit => "quit",
            Self::Probe => "query-status",
            Self::Unplug(_) => "netdev_del",
        }
    }

    fn arguments(self) -> Value {
        match self {
            Self::Unplug(nic) => json!({"id": args::netdev(nic)}),
            _ => Value::Null,
        }
    }
}

/// What became of a command.
pub(super) struct Done {
    op: Op,
    asker: Option<(Verb, Reply)>,
    result: Result<Value, Fault>,
}

impl<P: Ports> Driver<P> {
    /// Sends a command; `done` hears of it.
    pub(super) fn order(&mut self, op: Op, asker: Option<(Verb, Reply)>) {
        let qmp = self.qmp();
        let sent = async move {
            let result = match qmp {
                Some(qmp) => Qmp::execute(&qmp, op.command(), op.arguments()).await,
                None => {
                    Err(Fault::new(Kind::Unavailable, "QMP_CLOSED", "QEMU does not answer on its monitor")
                        .hint("`kvmctl vm stop --force` ends it in any case"))
                }
            };
            Done { op, asker, result }
        };
        self.ops.push(Box::pin(sent.instrument(Span::current())));
    }

    /// Asks whether QEMU is still there, unless that is being asked.
    pub(super) fn probe(&mut self) {
        if self.monitor.is_some() && !self.probing {
            self.probing = true;
            self.order(Op::Probe, None);
        }
    }

    /// A command was answered, or was not.
    pub(super) async fn done(&mut self, done: Done) {
        let Done { op, asker, result } = done;
        self.probing &= op != Op::Probe;
        if self.held.is_none() {
            // It ended meanwhile; its end says more than the command's.
            if let Some((verb, reply)) = asker {
                self.refuse(Some((verb, reply)));
            }
            return;
        }
        match result {
            Ok(value) => {
                self.answered(op);
                let running = value["running"].as_bool();
                match (op, running) {
                    (Op::Pause, _) | (Op::Probe, Some(false)) => self.saw_vcpus(false).await,
                    (Op::Resume, _) | (Op::Probe, Some(true)) => self.saw_vcpus(true).await,
                    (Op::Reset | Op::Powerdown | Op::Quit | Op::Probe | Op::Unplug(_), _) => {}
                }
                self.answer(asker);
            }
            Err(fault) => {
                // A connection that closed is a case of its own.
                if fault.reason() == "QMP_TIMEOUT" {
                    self.silent(fault.chain());
                }
                if let Some((_, reply)) = asker {
                    let context = format!("machine `{}` did not obey", self.record.name);
                    let _ = reply.send(Err(fault.context(context)));
                } else {
                    tracing::debug!(vm = %self.record.name, ?op, error = fault.chain(), "QEMU did not obey");
                }
            }
        }
    }
}
