//! Whether QEMU answers on its monitor, since when it does not, and when it is believed again.

use super::{DYING, Driver, PROBE, ops::Op};
use crate::{
    machine::State,
    model::Silence,
    ports::Ports,
    start::{self, Reunion},
};
use shared::{fault::Fault, time::Timestamp};
use std::time::Duration;
use tokio::time::Instant;

/// The first pause before QEMU is connected to again; it doubles each time.
const RECONNECT: Duration = Duration::from_secs(2);
/// The longest one.
const MAX_RECONNECT: Duration = Duration::from_secs(30);

/// What is thought of a monitor.
#[derive(Debug)]
pub(super) struct Health {
    /// A connection that broke a moment ago: QEMU may just be ending.
    pub(super) doubt: Option<(Instant, String)>,
    /// Since a broken connection there is a new one: believed once it has held for a while.
    probation: Option<Instant>,
    /// Before the next try to connect.
    pause: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self { doubt: None, probation: None, pause: RECONNECT }
    }
}

impl<P: Ports> Driver<'_, P> {
    /// QEMU does not do as it should.
    pub(super) fn silent(&mut self, why: String) {
        // A QEMU that is being stopped may close before it answers.
        if self.status.silence.is_none() && self.held.is_some() && !matches!(self.state, State::Stopping(_)) {
            tracing::warn!(vm = %self.record.name, why, "QEMU is unresponsive");
            self.status.silence = Some(Silence { since: Timestamp::now(), why });
        }
    }

    /// It answered. After a broken connection one answer is no proof: only a probe over a connection that has held.
    pub(super) fn answered(&mut self, op: Op) {
        let believed = match self.health.probation {
            None => true,
            Some(since) => op == Op::Probe && since.elapsed() >= PROBE / 2 && self.monitor.is_some(),
        };
        if believed {
            self.health = Health::default();
            if self.status.silence.take().is_some() {
                tracing::info!(vm = %self.record.name, "QEMU answers again");
            }
        }
    }

    /// The connection is over: either QEMU is about to end, which its pidfd tells, or it broke.
    pub(super) fn lost(&mut self, why: String) {
        self.monitor = None;
        self.health.doubt = Some((Instant::now() + DYING, format!("QEMU's monitor is not connected: {why}")));
        self.health.probation = Some(Instant::now());
        let pause = self.health.pause;
        self.health.pause = (pause * 2).min(MAX_RECONNECT);
        self.begin_reconnect(pause);
    }

    /// The process is still there.
    pub(super) fn doubted(&mut self) {
        if let Some((_, why)) = self.health.doubt.take() {
            self.silent(why);
        }
    }

    pub(super) fn begin_reconnect(&mut self, pause: Duration) {
        let folder = self.context.run_folder(&self.record.name);
        let record = self.record.clone();
        self.reconnect = Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            start::reconnect(&record, folder).await
        }));
    }

    pub(super) async fn reconnected(&mut self, result: Result<Reunion, Fault>) {
        self.reconnect = None;
        match result {
            Ok(Reunion { monitor, paused, vnc_address }) => {
                self.monitor = Some(monitor);
                self.status.vnc_address = vnc_address;
                self.health.probation = self.health.probation.map(|_| Instant::now());
                self.answered(Op::Resume);
                self.saw_vcpus(!paused).await;
            }
            Err(fault) => {
                let pause = self.health.pause;
                self.health.pause = (pause * 2).min(MAX_RECONNECT);
                self.silent(fault.chain());
                self.begin_reconnect(pause);
            }
        }
    }
}
