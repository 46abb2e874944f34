//! The life cycle of a machine: which event leads where, and what has to be done. Pure; the driver obeys.
//!
//! ```text
//!             Start            Launched           VcpusStopped
//! STOPPED ----------> STARTING --------> RUNNING <-----------> PAUSED
//! FAILED  ------------^   |                 |     VcpusResumed    |
//!    ^                    | Stop            | Stop                | Stop
//!    | LaunchFailed,      v                 v                     v
//!    | crash          STOPPING: Aborting | Asked -> Quitting -> Killed
//!    |                    |
//!    +--------------------+ Exited -> STOPPED
//! ```

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is no process.
    Stopped,
    /// Being started.
    Starting,
    /// The guest runs.
    Running,
    /// The process is there, its virtual CPUs stand still.
    Paused,
    /// On the way to Stopped.
    Stopping(Stage),
    /// There is no process, since its last start failed or its QEMU died.
    Failed,
    /// Gone; the driver ends.
    Deleted,
}

/// How hard the stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The start is being taken back.
    Aborting,
    /// The guest was asked by the power button.
    Asked,
    /// QEMU was told to quit.
    Quitting,
    /// QEMU was sent SIGKILL.
    Killed,
}

impl State {
    /// The name of the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped | Self::Deleted => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Stopping(_) => "STOPPING",
            Self::Failed => "FAILED",
        }
    }
}

/// What happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A client wants it running.
    Start,
    /// A client wants it stopped; `force`: at once.
    Stop {
        /// Kill at once.
        force: bool,
    },
    /// A client presses the reset button.
    Reset,
    /// A client wants its virtual CPUs to stand still.
    Pause,
    /// A client wants its virtual CPUs to go on.
    Resume,
    /// A client wants it gone.
    Delete,
    /// The start has come to its end: the guest runs.
    Launched,
    /// The start failed and was taken back.
    LaunchFailed,
    /// The start failed, and its process was killed and does not end.
    LaunchStuck,
    /// The QEMU process ended; `failed`: neither the guest nor we wanted that.
    Exited {
        /// Whether it is an error.
        failed: bool,
    },
    /// QEMU says the virtual CPUs stand still.
    VcpusStopped,
    /// QEMU says the virtual CPUs run.
    VcpusResumed,
    /// The time of the present stage of a stop is over.
    Expired,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Begin the start.
    Launch,
    /// Take the start back.
    AbortLaunch,
    /// Press the power button, again and again, until the time the client gave is over.
    Powerdown,
    /// Tell QEMU to quit, and give it a short time.
    Quit,
    /// Send SIGKILL.
    Kill,
    /// Press the reset button, then answer.
    Reset,
    /// Stop the virtual CPUs, then answer.
    Pause,
    /// Let the virtual CPUs go on, then answer.
    Resume,
    /// Let the virtual CPUs go on; nobody waits for it.
    Continue,
    /// Answer the client with the machine as it is.
    Answer,
    /// Answer the client when the machine has settled.
    Join,
    /// Answer the client that this cannot be done in this state.
    Refuse,
    /// Put away what the process left: records, ports, sockets.
    CleanUp,
    /// Answer all who wait.
    Settle,
    /// Tell all who wait that the process was killed and does not end.
    Stuck,
    /// Remove the machine's record and files.
    Forget,
}

/// Where `event` leads from `state`, and what has to be done, in that order.
#[must_use]
pub fn step(state: State, event: Event) -> (State, &'static [Effect]) {
    match state {
        State::Stopped | State::Failed => at_rest(state, event),
        State::Starting => starting(event),
        State::Running => running(event),
        State::Paused => paused(event),
        State::Stopping(stage) => stopping(stage, event),
        State::Deleted => (State::Deleted, if asks(event) { &[Effect::Refuse] } else { &[] }),
    }
}

/// Whether a client waits for an answer to the event.
fn asks(event: Event) -> bool {
    match event {
        Event::Start | Event::Stop { .. } | Event::Reset | Event::Pause | Event::Resume | Event::Delete => {
            true
        }
        Event::Launched
        | Event::LaunchFailed
        | Event::LaunchStuck
        | Event::Exited { .. }
        | Event::VcpusStopped
        | Event::VcpusResumed
        | Event::Expired => false,
    }
}

fn at_rest(state: State, event: Event) -> (State, &'static [Effect]) {
    match event {
        Event::Start => (State::Starting, &[Effect::Launch, Effect::Join]),
        Event::Stop { .. } => (state, &[Effect::Answer]),
        Event::Delete => (State::Deleted, &[Effect::Forget, Effect::Answer]),
        Event::Reset | Event::Pause | Event::Resume => (state, &[Effect::Refuse]),
        Event::Launched
        | Event::LaunchFailed
        | Event::LaunchStuck
        | Event::Exited { .. }
        | Event::VcpusStopped
        | Event::VcpusResumed
        | Event::Expired => (state, &[]),
    }
}

fn starting(event: Event) -> (State, &'static [Effect]) {
    match event {
        Event::Start => (State::Starting, &[Effect::Join]),
        Event::Stop { .. } => (State::Stopping(Stage::Aborting), &[Effect::Join, Effect::AbortLaunch]),
        Event::Reset | Event::Pause | Event::Resume | Event::Delete => (State::Starting, &[Effect::Refuse]),
        Event::Launched => (State::Running, &[Effect::Settle]),
        Event::LaunchFailed => (State::Failed, &[Effect::Settle]),
        Event::LaunchStuck => (State::Stopping(Stage::Killed), &[Effect::Stuck]),
        // The launch itself watches the process until it hands it over.
        Event::Exited { .. } | Event::VcpusStopped | Event::VcpusResumed | Event::Expired => {
            (State::Starting, &[])
        }
    }
}

fn running(event: Event) -> (State, &'static [Effect]) {
    match event {
        Event::Start | Event::Resume => (State::Running, &[Effect::Answer]),
        Event::Stop { force: false } => (State::Stopping(Stage::Asked), &[Effect::Join, Effect::Powerdown]),
        Event::Stop { force: true } => (State::Stopping(Stage::Killed), &[Effect::Join, Effect::Kill]),
        Event::Reset => (State::Running, &[Effect::Reset]),
        Event::Pause => (State::Running, &[Effect::Pause]),
        Event::Delete => (State::Running, &[Effect::Refuse]),
        Event::Exited { failed } => ended(failed),
        Event::VcpusStopped => (State::Paused, &[]),
        Event::Launched | Event::LaunchFailed | Event::LaunchStuck | Event::VcpusResumed | Event::Expired => {
            (State::Running, &[])
        }
    }
}

fn paused(event: Event) -> (State, &'static [Effect]) {
    match event {
        // Only a running guest can react to the button.
        Event::Stop { force: false } => {
            (State::Stopping(Stage::Asked), &[Effect::Join, Effect::Continue, Effect::Powerdown])
        }
        Event::Stop { force: true } => (State::Stopping(Stage::Killed), &[Effect::Join, Effect::Kill]),
        Event::Reset => (State::Paused, &[Effect::Reset]),
        Event::Pause => (State::Paused, &[Effect::Answer]),
        Event::Resume => (State::Paused, &[Effect::Resume]),
        Event::Start | Event::Delete => (State::Paused, &[Effect::Refuse]),
        Event::Exited { failed } => ended(failed),
        Event::VcpusResumed => (State::Running, &[]),
        Event::Launched | Event::LaunchFailed | Event::LaunchStuck | Event::VcpusStopped | Event::Expired => {
            (State::Paused, &[])
        }
    }
}

fn ended(failed: bool) -> (State, &'static [Effect]) {
    (if failed { State::Failed } else { State::Stopped }, &[Effect::CleanUp, Effect::Settle])
}

fn stopping(stage: Stage, event: Event) -> (State, &'static [Effect]) {
    let same = State::Stopping(stage);
    match event {
        Event::Start | Event::Reset | Event::Pause | Event::Resume | Event::Delete => {
            (same, &[Effect::Refuse])
        }
        Event::Stop { force } => match (force, stage) {
            // One that does not end is killed again, so that whoever asks is told.
            (true, Stage::Asked | Stage::Quitting) | (_, Stage::Killed) => {
                (State::Stopping(Stage::Killed), &[Effect::Join, Effect::Kill])
            }
            (false, Stage::Asked | Stage::Quitting) | (_, Stage::Aborting) => (same, &[Effect::Join]),
        },
        // The start was faster than its end.
        Event::Launched => (State::Stopping(Stage::Killed), &[Effect::Kill]),
        Event::LaunchFailed => (State::Stopped, &[Effect::Settle]),
        Event::LaunchStuck => (State::Stopping(Stage::Killed), &[Effect::Stuck]),
        Event::Exited { .. } => (State::Stopped, &[Effect::CleanUp, Effect::Settle]),
        Event::Expired => match stage {
            Stage::Asked => (State::Stopping(Stage::Quitting), &[Effect::Quit]),
            Stage::Quitting => (State::Stopping(Stage::Killed), &[Effect::Kill]),
            Stage::Killed => (same, &[Effect::Stuck]),
            Stage::Aborting => (same, &[]),
        },
        Event::VcpusStopped | Event::VcpusResumed => (same, &[]),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [Event; 15] = [
        Event::Start,
        Event::Stop { force: false },
        Event::Stop { force: true },
        Event::Reset,
        Event::Pause,
        Event::Resume,
        Event::Delete,
        Event::Launched,
        Event::LaunchFailed,
        Event::LaunchStuck,
        Event::Exited { failed: false },
        Event::Exited { failed: true },
        Event::VcpusStopped,
        Event::VcpusResumed,
        Event::Expired,
    ];
    const STATES: [State; 10] = [
        State::Stopped,
        State::Starting,
        State::Running,
        State::Paused,
        State::Stopping(Stage::Aborting),
        State::Stopping(Stage::Asked),
        State::Stopping(Stage::Quitting),
        State::Stopping(Stage::Killed),
        State::Failed,
        State::Deleted,
    ];

    fn has_process(state: State) -> bool {
        !matches!(state, State::Stopped | State::Failed | State::Deleted)
    }

    /// Effects after which the client of the event has, or will get, its answer.
    fn answers(effect: &Effect) -> bool {
        matches!(
            effect,
            Effect::Answer | Effect::Join | Effect::Refuse | Effect::Reset | Effect::Pause | Effect::Resume
        )
    }

    #[test]
    fn every_question_gets_exactly_one_answer_and_nothing_else_gets_any() {
        for state in STATES {
            for event in EVENTS {
                let (_, effects) = step(state, event);
                let count = effects.iter().filter(|e| answers(e)).count();
                assert_eq!(count, usize::from(asks(event)), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_refusal_changes_nothing() {
        for state in STATES {
            for event in EVENTS {
                let (next, effects) = step(state, event);
                if effects.contains(&Effect::Refuse) {
                    assert_eq!((next, effects), (state, &[Effect::Refuse][..]), "{event:?}");
                }
            }
        }
    }

    #[test]
    fn whoever_has_to_settle_does() {
        for state in STATES {
            for event in EVENTS {
                let (next, effects) = step(state, event);
                let settled = has_process(state) && !has_process(next)
                    || state == State::Starting && next == State::Running;
                assert_eq!(effects.contains(&Effect::Settle), settled, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn only_a_machine_at_rest_is_deleted() {
        for state in STATES {
            let (next, _) = step(state, Event::Delete);
            assert_eq!(next == State::Deleted, !has_process(state), "{state:?}");
        }
    }

    #[test]
    fn a_stop_that_times_out_gets_harder_until_the_kill() {
        let (mut state, _) = step(State::Running, Event::Stop { force: false });
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (next, effects) = step(state, Event::Expired);
            seen.extend_from_slice(effects);
            state = next;
        }
        // One that even that does not end is waited for, and whoever asks is told.
        assert_eq!(seen, [Effect::Quit, Effect::Kill, Effect::Stuck]);
        assert_eq!(step(state, Event::Stop { force: false }).1, [Effect::Join, Effect::Kill]);
        assert_eq!(step(state, Event::Exited { failed: true }).0, State::Stopped);
    }

    proptest! {
        /// Whatever happened before: a forced stop and the end of the process leave it at rest.
        #[test]
        fn a_forced_stop_always_leads_to_rest(events in prop::collection::vec(prop::sample::select(&EVENTS[..]), 0..40)) {
            let mut state = State::Stopped;
            for event in events {
                state = step(state, event).0;
            }
            state = step(state, Event::Stop { force: true }).0;
            state = match state {
                State::Stopping(Stage::Aborting) => step(state, Event::LaunchFailed).0,
                State::Stopping(_) => step(state, Event::Exited { failed: true }).0,
                other => other,
            };
            prop_assert!(!has_process(state), "{state:?}");
        }
    }
}
