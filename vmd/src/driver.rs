//! One task a machine: the only one that touches it. Follows `machine::step`, and shows the result on a watch.
//!
//! Nothing in here waits: a start, a monitor command and a lost monitor are futures that the task polls beside its
//! commands, so that a forced stop works while QEMU is silent.

mod exit;
mod health;
mod news;
mod ops;
mod records;
mod seat;
mod show;
mod taps;

use crate::{
    console::Console,
    machine::{self, Effect, Event, Stage, State},
    model::{FileId, LastExit, Record, Run, Status, Vm},
    ports::Ports,
    qemu::{
        process::{Exit, Process},
        qmp::{self, Qmp},
    },
    start::{self, Context, Failed, Live, Monitor, Reunion},
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use health::Health;
use ops::{Done, Op};
pub use seat::{Seat, seat};
use shared::{
    events,
    fault::{Fault, Kind},
    steps,
};
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use taps::Taps;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

/// Commands a machine may be behind; further callers wait.
const COMMANDS: usize = 16;
/// A guest may miss the first press of the button, while it boots.
const PRESS_AGAIN: Duration = Duration::from_secs(2);
/// How long `quit` may take.
const QUIT: Duration = Duration::from_secs(3);
/// SIGKILL takes effect at once, unless the process hangs in the kernel.
const DEATH: Duration = Duration::from_secs(5);
/// How often a silent QEMU is asked whether it is still there.
const PROBE: Duration = Duration::from_secs(5);
/// How long the end of a connection may precede QEMU's own.
const DYING: Duration = Duration::from_millis(500);
/// Room for the changes of one vmd's life in a revision.
const REVISIONS: i64 = 1 << 32;

/// What a client wants of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Run it.
    Start,
    /// Stop it, by force after this time; `None`: at once.
    Stop(Option<Duration>),
    /// Press its reset button.
    Reset,
    /// Let its virtual CPUs stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Remove it.
    Delete,
}

impl Verb {
    fn event(self) -> Event {
        match self {
            Self::Start => Event::Start,
            Self::Stop(timeout) => Event::Stop { force: timeout.is_none() },
            Self::Reset => Event::Reset,
            Self::Pause => Event::Pause,
            Self::Resume => Event::Resume,
            Self::Delete => Event::Delete,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop(_) => "stopped",
            Self::Reset => "reset",
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Delete => "deleted",
        }
    }
}

type Reply = oneshot::Sender<Result<Arc<Vm>, Fault>>;

#[derive(Debug)]
struct Command {
    verb: Verb,
    reply: Reply,
    span: Span,
}

/// Talks to a machine's driver.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    /// The machine as it is; closed when it is deleted or vmd ends.
    pub watch: watch::Receiver<Arc<Vm>>,
    /// Its console.
    pub console: Arc<Console>,
    gone: Arc<AtomicBool>,
}

impl Handle {
    /// The machine as it is; `None` once its record is deleted.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Vm>> {
        (!self.gone.load(Ordering::Acquire)).then(|| self.watch.borrow().clone())
    }

    /// Carries out a verb, and gives the machine as it is then.
    ///
    /// # Errors
    /// FAILED_PRECONDITION that names the state if it cannot be done in it, and whatever the doing says.
    pub async fn carry_out(&self, verb: Verb) -> Result<Arc<Vm>, Fault> {
        let gone = || {
            Fault::new(
                Kind::Unavailable,
                "ENDING",
                "vmd is ending, the machine is being deleted, or its task failed",
            )
            .hint("try again in a moment")
        };
        let (reply, answer) = oneshot::channel();
        let command = Command { verb, reply, span: Span::current() };
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What a driver begins with.
#[derive(Debug)]
pub enum Initial {
    /// No process.
    AtRest(LastExit),
    /// A process that was adopted.
    Alive(Box<Live>),
}

type Launch = BoxFuture<'static, Result<Live, Box<Failed>>>;

/// What a task holds of a running QEMU, apart from its record.
struct Held {
    process: Process,
    pump: Option<crate::console::Pump>,
    stderr: Option<crate::qemu::stderr::Stderr>,
    adopted: bool,
}

struct Driver<'a, P: Ports> {
    context: Arc<Context<P>>,
    record: Record,
    console: Arc<Console>,
    state: State,
    status: Status,
    show: &'a watch::Sender<Arc<Vm>>,
    /// The status that was told of last.
    told: Status,
    /// Told when the machine can be seen as it is.
    untold: Option<events::Pending>,
    gone: Arc<AtomicBool>,
    launch: Option<(Launch, CancellationToken)>,
    held: Option<Held>,
    monitor: Option<Monitor>,
    reconnect: Option<BoxFuture<'static, Result<Reunion, Fault>>>,
    ops: FuturesUnordered<BoxFuture<'static, Done>>,
    probing: bool,
    health: Health,
    taps: Taps,
    /// End of the present stage of a stop.
    deadline: Option<Instant>,
    press: Option<Instant>,
    waiters: Vec<(Verb, Reply)>,
    /// QEMU's word for why the guest shut down.
    shutdown: Option<String>,
    /// How often the guest of this run reset itself.
    resets: u32,
    launch_fault: Option<Fault>,
    /// Another QEMU than the one that runs, which the warnings tell of; within, `None`: there is no file.
    replaced: Option<Option<FileId>>,
}

impl<P: Ports> Driver<'_, P> {
    async fn run(mut self, queue: &mut mpsc::Receiver<Command>) {
        let mut probe = tokio::time::interval(PROBE);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.context.stop.clone();
        while self.state != State::Deleted {
            tokio::select! {
                // Guests go on; a start that is not through its gate ends with it.
                () = stop.cancelled() => return,
                Some(command) = queue.recv() => {
                    let span = command.span.clone();
                    self.command(command).instrument(span).await;
                }
                result = next_launch(&mut self.launch) => self.launched(result).await,
                exit = next_exit(self.held.as_ref()) => self.exited(exit).await,
                event = next_event(&mut self.monitor) => self.told(event).await,
                reunion = next_reunion(&mut self.reconnect) => self.reconnected(reunion).await,
                Some(done) = self.ops.next() => self.done(done).await,
                () = at(self.deadline) => {
                    self.deadline = None;
                    self.feed(Event::Expired, None).await;
                }
                () = at(self.press) => self.press_button(),
                () = at(self.health.doubt.as_ref().map(|(when, _)| *when)) => self.doubted(),
                _ = probe.tick() => {
                    self.look_at_taps();
                    self.probe();
                    self.compare();
                }
            }
            self.publish();
        }
    }

    async fn command(&mut self, command: Command) {
        if let Verb::Stop(Some(timeout)) = command.verb {
            self.deadline = stop_deadline(self.state, self.deadline, Instant::now() + timeout);
        }
        self.feed(command.verb.event(), Some((command.verb, command.reply))).await;
    }

    /// One step of the machine, with all that has to be done for it.
    async fn feed(&mut self, event: Event, mut asker: Option<(Verb, Reply)>) {
        let before = self.state;
        let (next, effects) = machine::step(before, event);
        if next != before {
            tracing::info!(vm = %self.record.name, from = before.name(), to = next.name(), ?event, "state");
        }
        self.state = next;
        for effect in effects {
            match effect {
                Effect::Launch => self.begin_launch(),
                Effect::AbortLaunch => {
                    if let Some((_, cancel)) = &self.launch {
                        cancel.cancel();
                    }
                }
                Effect::Powerdown => self.press_button(),
                Effect::Quit => {
                    self.press = None;
                    self.deadline = Some(Instant::now() + QUIT);
                    self.order(Op::Quit, None);
                }
                Effect::Kill => self.kill(),
                Effect::Reset => self.order(Op::Reset, asker.take()),
                Effect::Pause => self.order(Op::Pause, asker.take()),
                Effect::Resume => self.order(Op::Resume, asker.take()),
                Effect::Continue => self.order(Op::Resume, None),
                Effect::Answer => self.answer(asker.take()),
                Effect::Join => self.waiters.extend(asker.take()),
                Effect::Refuse => self.refuse(asker.take()),
                Effect::CleanUp => self.clean_up().await,
                Effect::Settle => self.settle(),
                Effect::Stuck => self.tell_stuck(),
                Effect::Forget => {
                    if let Err(fault) = self.forget().await {
                        self.state = before;
                        if let Some((_, reply)) = asker.take() {
                            let _ = reply.send(Err(fault));
                        }
                    }
                }
            }
        }
    }

    fn begin_launch(&mut self) {
        let cancel = CancellationToken::new();
        self.status.exit = LastExit::default();
        self.status.warnings.clear();
        self.launch_fault = None;
        let launch = start::launch(
            Arc::clone(&self.context),
            self.record.clone(),
            Arc::clone(&self.console),
            cancel.clone(),
        );
        self.launch = Some((Box::pin(launch.instrument(Span::current())), cancel));
    }

    async fn launched(&mut self, result: Result<Live, Box<Failed>>) {
        self.launch = None;
        match result {
            Ok(live) => {
                self.hold(live);
                self.feed(Event::Launched, None).await;
            }
            Err(failed) => {
                let Failed { fault, left } = *failed;
                let stopped = matches!(self.state, State::Stopping(_));
                if !stopped {
                    tracing::warn!(vm = %self.record.name, error = fault.chain(), "start failed");
                }
                self.status.exit = if stopped {
                    LastExit { reason: "stopped while it was starting".into(), error: String::new() }
                } else {
                    LastExit { reason: "it could not be started".into(), error: fault.chain() }
                };
                self.launch_fault = Some(fault);
                match left {
                    Some((process, run)) => {
                        self.status.run = Some(run);
                        self.held = Some(Held { process, pump: None, stderr: None, adopted: false });
                        self.feed(Event::LaunchStuck, None).await;
                    }
                    None => {
                        let state = machine::step(self.state, Event::LaunchFailed).0;
                        self.record_exit(state).await;
                        self.feed(Event::LaunchFailed, None).await;
                    }
                }
            }
        }
    }

    fn hold(&mut self, live: Live) {
        self.taps = Taps::of(&live.run);
        self.status.run = Some(live.run);
        self.status.vnc_address = live.vnc_address;
        self.status.adopted = live.adopted;
        self.status.silence = None;
        self.health = Health::default();
        (self.shutdown, self.resets) = (None, 0);
        self.monitor = live.monitor;
        self.held =
            Some(Held { process: live.process, pump: live.pump, stderr: live.stderr, adopted: live.adopted });
        if self.monitor.is_none() {
            self.silent("QEMU did not answer when it was adopted".into());
            self.begin_reconnect(Duration::ZERO);
        }
    }

    async fn told(&mut self, event: Option<qmp::Event>) {
        match event {
            Some(qmp::Event::Shutdown(reason)) => self.shutdown = Some(reason),
            Some(qmp::Event::Stop) => self.saw_vcpus(false).await,
            Some(qmp::Event::Resume) => self.saw_vcpus(true).await,
            Some(qmp::Event::Reset { guest }) => self.note_reset(guest),
            Some(qmp::Event::DiskError(text)) => {
                if !self.status.warnings.contains(&text) && self.status.warnings.len() < 16 {
                    self.status.warnings.push(text);
                }
            }
            Some(qmp::Event::Lost(why)) => self.lost(why),
            None => self.lost("it ended".into()),
        }
    }

    /// QEMU says whether the virtual CPUs run.
    async fn saw_vcpus(&mut self, running: bool) {
        self.feed(if running { Event::VcpusResumed } else { Event::VcpusStopped }, None).await;
    }

    fn press_button(&mut self) {
        self.press = None;
        if self.state == State::Stopping(Stage::Asked) {
            self.order(Op::Powerdown, None);
            self.press = Some(Instant::now() + PRESS_AGAIN);
        }
    }

    fn kill(&mut self) {
        self.press = None;
        self.deadline = Some(Instant::now() + DEATH);
        let group = self.run_record().and_then(Run::leaf);
        let killed = self.held.as_ref().map_or(Ok(()), |held| {
            steps::effect(|| "kill QEMU".to_owned(), || start::kill(&held.process, group.as_ref()))
        });
        if let Err(fault) = killed {
            tracing::error!(vm = %self.record.name, error = fault.chain(), "cannot kill");
        }
    }

    /// The monitor's command side.
    fn qmp(&self) -> Option<Qmp> {
        self.monitor.as_ref().map(|(qmp, _)| qmp.clone())
    }

    fn run_record(&self) -> Option<&Run> {
        self.status.run.as_ref()
    }
}

/// When a stop gets harder, after one more client wanted that at `wanted`: who has less patience than the first is
/// not made to wait for that one's hour.
fn stop_deadline(state: State, now: Option<Instant>, wanted: Instant) -> Option<Instant> {
    match state {
        State::Stopping(Stage::Asked) => Some(now.map_or(wanted, |now| now.min(wanted))),
        State::Stopping(_) => now,
        _ => Some(wanted),
    }
}

async fn next_launch(launch: &mut Option<(Launch, CancellationToken)>) -> Result<Live, Box<Failed>> {
    match launch {
        Some((launch, _)) => launch.await,
        None => pending().await,
    }
}

async fn next_exit(held: Option<&Held>) -> Exit {
    match held {
        Some(held) => held.process.exited().await,
        None => pending().await,
    }
}

async fn next_event(monitor: &mut Option<Monitor>) -> Option<qmp::Event> {
    match monitor {
        Some((_, events)) => events.recv().await,
        None => pending().await,
    }
}

async fn next_reunion(
    reconnect: &mut Option<BoxFuture<'static, Result<Reunion, Fault>>>,
) -> Result<Reunion, Fault> {
    match reconnect {
        Some(reconnect) => reconnect.await,
        None => pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_least_patient_client_decides_when_a_stop_gets_harder() {
        let soon = Instant::now();
        let late = soon + Duration::from_secs(3600);
        let asked = State::Stopping(Stage::Asked);
        assert_eq!(stop_deadline(State::Running, None, late), Some(late));
        assert_eq!(stop_deadline(asked, Some(late), soon), Some(soon));
        assert_eq!(stop_deadline(asked, Some(soon), late), Some(soon));
        // From `quit` on the times are vmd's own.
        assert_eq!(stop_deadline(State::Stopping(Stage::Quitting), Some(soon), late), Some(soon));
    }
}
