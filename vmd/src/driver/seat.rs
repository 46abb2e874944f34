//! What a machine has while drivers come and go.

use super::{COMMANDS, Command, Driver, Handle, Health, Initial, REVISIONS, Taps};
use crate::{
    console::Console,
    machine::State,
    model::{LastExit, Record, Status, Vm},
    ports::Ports,
    start::Context,
};
use futures_util::stream::FuturesUnordered;
use std::sync::{Arc, atomic::AtomicBool};
use tokio::sync::{mpsc, watch};

/// A machine's ends of its handles. They outlive a driver that fails, so that the next one has the same clients.
#[derive(Debug)]
pub struct Seat {
    commands: mpsc::Receiver<Command>,
    show: watch::Sender<Arc<Vm>>,
    gone: Arc<AtomicBool>,
}

/// Handles on a machine that has no driver yet. `epoch` counts the lives of vmd, so that revisions grow over them.
#[must_use]
pub fn seat(record: &Record, console: Arc<Console>, epoch: i64) -> (Handle, Seat) {
    let status = Status { revision: epoch.saturating_mul(REVISIONS), ..Status::at_rest(LastExit::default()) };
    let (show, watch) = watch::channel(Arc::new(Vm { record: record.clone(), status }));
    let (sender, commands) = mpsc::channel(COMMANDS);
    let gone = Arc::new(AtomicBool::new(false));
    (Handle { commands: sender, watch, console, gone: Arc::clone(&gone) }, Seat { commands, show, gone })
}

impl Seat {
    /// Shows the machine as it begins.
    pub fn begin(&self, record: &Record, initial: &Initial) {
        let revision = self.show.borrow().status.revision;
        let status = match initial {
            Initial::AtRest(exit) => Status { revision, ..Status::at_rest(exit.clone()) },
            Initial::Alive(live) => Status {
                revision,
                state: if live.paused { State::Paused } else { State::Running },
                run: Some(live.run.clone()),
                vnc_address: live.vnc_address.clone(),
                adopted: live.adopted,
                ..Status::at_rest(LastExit::default())
            },
        };
        self.show.send_replace(Arc::new(Vm { record: record.clone(), status }));
    }

    /// Drives the machine until it is deleted or vmd ends.
    pub async fn drive<P: Ports>(
        &mut self,
        context: Arc<Context<P>>,
        record: Record,
        console: Arc<Console>,
        initial: Initial,
    ) {
        let Self { commands, show, gone } = self;
        let status = show.borrow().status.clone();
        let mut driver = Driver {
            context,
            record,
            console,
            state: State::Stopped,
            told: Status { revision: status.revision, ..Status::at_rest(LastExit::default()) },
            untold: None,
            gone: Arc::clone(gone),
            status,
            show,
            launch: None,
            held: None,
            monitor: None,
            reconnect: None,
            ops: FuturesUnordered::new(),
            probing: false,
            health: Health::default(),
            taps: Taps::default(),
            deadline: None,
            press: None,
            waiters: Vec::new(),
            shutdown: None,
            resets: 0,
            launch_fault: None,
            replaced: None,
        };
        match initial {
            Initial::AtRest(exit) => {
                driver.state = if exit.error.is_empty() { State::Stopped } else { State::Failed };
                driver.status = Status { revision: driver.status.revision, ..Status::at_rest(exit) };
                // That was told when it ended, or will be by whoever found it gone.
                driver.told = driver.status.clone();
            }
            Initial::Alive(live) => {
                driver.state = if live.paused { State::Paused } else { State::Running };
                driver.hold(*live);
            }
        }
        driver.publish();
        driver.run(commands).await;
    }
}
