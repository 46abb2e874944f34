//! The end of a run: why, and what is left to be put away.

use super::{Driver, Held, health::Health, show::STUCK};
use crate::{
    jail::groups::leaf::OutOfMemory,
    machine::{Event, Stage, State},
    model::{KIND_EXIT, LastExit, Run, Status},
    ports::Ports,
    qemu::{process::Exit, qmp},
    start,
};
use shared::store::Op;
use std::time::Duration;

/// How long the last words of a dead QEMU may take to arrive; they are in the kernel already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All that is known about an end.
struct Known<'a> {
    exit: Exit,
    /// QEMU's word.
    shutdown: Option<&'a str>,
    state: State,
    adopted: bool,
    stderr: &'a str,
    /// The kernel's word for an end by want of memory.
    memory: Option<OutOfMemory>,
}

impl<P: Ports> Driver<'_, P> {
    pub(super) async fn exited(&mut self, exit: Exit) {
        let Some(mut held) = self.held.take() else { return };
        if let Some((_, mut events)) = self.monitor.take() {
            // What QEMU said before it ended may still be on the way.
            let rest = async {
                while let Some(event) = events.recv().await {
                    if let qmp::Event::Shutdown(reason) = event {
                        self.shutdown = Some(reason);
                    }
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        }
        let stderr = last_words(&mut held).await;
        self.status.exit = explain(&Known {
            exit,
            shutdown: self.shutdown.as_deref(),
            state: self.state,
            adopted: held.adopted,
            stderr: &stderr,
            memory: self.run_record().and_then(Run::leaf).and_then(|leaf| leaf.out_of_memory()),
        });
        if let Some(fault) = self.launch_fault.take() {
            // It never ran: why not says more than how it was ended.
            self.status.exit = LastExit { reason: "it could not be started".into(), error: fault.chain() };
        }
        (self.deadline, self.press, self.reconnect) = (None, None, None);
        self.health = Health::default();
        tracing::info!(
            vm = %self.record.name,
            pid = self.run_record().map(|run| run.pid),
            reason = self.status.exit.reason,
            stderr,
            "QEMU ended"
        );
        let failed = !self.status.exit.error.is_empty();
        self.feed(Event::Exited { failed }, None).await;
    }

    pub(super) async fn clean_up(&mut self) {
        let ops = Op::put(KIND_EXIT, self.record.name.as_str(), &self.status.exit).into_iter().collect();
        let leaf = self.status.run.take().as_ref().and_then(Run::leaf);
        self.status.warnings.retain(|warning| !warning.starts_with(STUCK));
        self.status.vnc_address.clear();
        self.status.silence = None;
        self.status.adopted = false;
        let told = self.told.clone();
        let news = self.news(Status { state: self.state, ..self.status.clone() });
        self.untold = start::clean_up(&self.context, &self.record, leaf, (ops, news)).await;
        if self.untold.is_none() {
            // Not recorded, it is told all the same, or known to be missing.
            self.told = told;
        }
    }
}

async fn last_words(held: &mut Held) -> String {
    if let Some(pump) = &mut held.pump {
        let _ = tokio::time::timeout(LAST_WORDS, pump.drained()).await;
    }
    held.pump = None;
    match held.stderr.take() {
        Some(stderr) => tokio::time::timeout(LAST_WORDS, stderr.finish()).await.unwrap_or_default(),
        None => String::new(),
    }
}

/// Why a run ended. An error only where nobody wanted the end.
fn explain(known: &Known<'_>) -> LastExit {
    let wanted = |reason: &str| LastExit { reason: reason.to_owned(), error: String::new() };
    let failure = |reason: String| {
        let error =
            if known.stderr.is_empty() { reason.clone() } else { format!("{reason}: {}", known.stderr) };
        LastExit { reason, error }
    };
    match (known.shutdown, known.state) {
        (Some("guest-shutdown"), _) => wanted("guest shut down"),
        (Some("guest-panic"), State::Stopping(_)) => wanted("guest panicked"),
        (Some("guest-panic"), _) => failure("guest panicked".into()),
        (_, State::Stopping(Stage::Killed)) => wanted("killed"),
        (_, State::Stopping(Stage::Quitting)) => wanted("killed: the guest did not shut down in time"),
        (Some("host-signal"), State::Stopping(_)) => wanted("QEMU was ended by a signal"),
        (Some("host-signal"), _) => failure("QEMU was ended by a signal from another program".into()),
        (Some("host-qmp-quit"), _) => wanted("QEMU was told to quit"),
        (Some(other), _) => wanted(&format!("shut down ({})", other.escape_debug())),
        (None, State::Stopping(_)) => wanted(&start::exit_words(known.exit)),
        (None, _) if known.memory.is_some() => {
            failure(known.memory.map(OutOfMemory::words).unwrap_or_default())
        }
        (None, _) if known.exit == Exit::Unknown && known.adopted => {
            failure("exit code unknown: an earlier vmd had started QEMU".into())
        }
        (None, _) => failure(start::exit_words(known.exit)),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn known(exit: Exit, shutdown: Option<&'static str>, state: State) -> LastExit {
        explain(&Known { exit, shutdown, state, adopted: false, stderr: "oh no", memory: None })
    }

    #[test]
    fn only_what_nobody_wanted_is_an_error() {
        let off = known(Exit::Code(0), Some("guest-shutdown"), State::Running);
        assert_eq!((off.reason.as_str(), off.error.as_str()), ("guest shut down", ""));
        let asked = known(Exit::Code(0), Some("guest-shutdown"), State::Stopping(Stage::Asked));
        assert_eq!(asked.error, "");
        let killed = known(Exit::Signal(9), None, State::Stopping(Stage::Killed));
        assert_eq!((killed.reason.as_str(), killed.error.as_str()), ("killed", ""));
        let late = known(Exit::Code(0), Some("host-qmp-quit"), State::Stopping(Stage::Quitting));
        assert!(late.reason.contains("in time"));
        let crash = known(Exit::Signal(11), None, State::Running);
        assert_eq!(crash.reason, "QEMU died with signal 11");
        assert_eq!(crash.error, "QEMU died with signal 11: oh no");
        assert!(!known(Exit::Code(0), Some("guest-panic"), State::Running).error.is_empty());
    }

    #[test]
    fn an_end_for_want_of_memory_says_whose_limit_it_was() {
        let end = |state, memory| {
            let (exit, shutdown, stderr) = (Exit::Signal(9), None, "");
            explain(&Known { exit, shutdown, state, adopted: false, stderr, memory })
        };
        let ended = end(State::Running, Some(OutOfMemory::Limit(7 << 20)));
        assert_eq!(ended.reason, "out of memory, by its limit of 7 MiB");
        assert_eq!(ended.error, ended.reason);
        assert!(end(State::Paused, Some(OutOfMemory::Host)).error.contains("the host"));
        // Somebody wanted that end.
        let stopped = end(State::Stopping(Stage::Killed), Some(OutOfMemory::Host));
        assert_eq!((stopped.reason.as_str(), stopped.error.as_str()), ("killed", ""));
    }

    #[test]
    fn the_end_of_an_adopted_process_is_not_made_up() {
        let end = explain(&Known {
            exit: Exit::Unknown,
            shutdown: None,
            state: State::Running,
            adopted: true,
            stderr: "",
            memory: None,
        });
        assert!(end.reason.starts_with("exit code unknown"));
        assert_eq!(end.error, end.reason);
    }
}
