//! Commands to QEMU, which the driver orders and hears of later.

use super::{Driver, Reply, Verb};
use crate::{
    ports::Ports,
    qemu::{
        args,
        qmp::{self, Qmp},
    },
};
use serde_json::{Value, json};
use shared::fault::{Fault, Kind};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

/// How much later than its deadline a command may end if vmd runs as it should.
const HELD_UP: Duration = Duration::from_secs(1);
/// How the warning begins that tells of another QEMU.
const REPLACED: &str = "QEMU's program was replaced";

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
    /// Not QEMU's: which version the next start would run.
    Version,
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
            Self::Version => "--version",
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
    asked: Instant,
}

impl<P: Ports> Driver<'_, P> {
    /// Sends a command; `done` hears of it.
    pub(super) fn order(&mut self, op: Op, asker: Option<(Verb, Reply)>) {
        let (qmp, asked) = (self.qmp(), Instant::now());
        let sent = async move {
            let result = match qmp {
                Some(qmp) => Qmp::execute(&qmp, op.command(), op.arguments()).await,
                None => {
                    Err(Fault::new(Kind::Unavailable, "QMP_CLOSED", "QEMU does not answer on its monitor")
                        .hint("`kvmctl vm stop --force` ends it in any case"))
                }
            };
            Done { op, asker, result, asked }
        };
        self.ops.push(Box::pin(sent.instrument(Span::current())));
    }

    /// Looks whether the next start would run another QEMU. What is replaced is read again only then.
    pub(super) fn compare(&mut self) {
        let Some(started) = self.run_record().and_then(|run| run.qemu_file) else { return };
        let now = self.context.host.file().ok();
        if now == Some(started) {
            self.replaced = None;
            self.status.warnings.retain(|warning| !warning.starts_with(REPLACED));
        } else if self.replaced != Some(now) {
            self.replaced = Some(now);
            let context = Arc::clone(&self.context);
            self.ops.push(Box::pin(async move {
                let result = context.host.version().await.map(Value::String);
                Done { op: Op::Version, asker: None, result, asked: Instant::now() }
            }));
        }
    }

    fn show_replaced(&mut self, version: Option<&str>) {
        let Some(run) = self.run_record() else { return };
        let next = version.unwrap_or("none that can be run");
        let warning =
            format!("{REPLACED} since the start: {} runs, and the next start takes {next}", run.qemu_version);
        self.status.warnings.retain(|warning| !warning.starts_with(REPLACED));
        self.status.warnings.push(warning);
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
        let Done { op, asker, result, asked } = done;
        if op == Op::Version {
            let version = result.ok().and_then(|value| value.as_str().map(str::to_owned));
            return self.show_replaced(version.as_deref());
        }
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
                    (Op::Reset | Op::Powerdown | Op::Quit | Op::Probe | Op::Unplug(_) | Op::Version, _) => {}
                }
                self.answer(asker);
            }
            Err(fault) => {
                // A connection that closed is a case of its own.
                if fault.reason() == "QMP_TIMEOUT" {
                    if asked.elapsed() < qmp::DEADLINE + HELD_UP {
                        self.silent(fault.chain());
                    } else {
                        // It was vmd that stood still, and its answer may be there already.
                        self.probe();
                    }
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
