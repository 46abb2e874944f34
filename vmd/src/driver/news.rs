//! What is told of a machine when its status changes. Pure, but for the telling.

use super::Driver;
use crate::{
    machine::{Stage, State},
    model::Status,
    ports::Ports,
};
use shared::events::{EventKind, News};

impl<P: Ports> Driver<'_, P> {
    /// What is to be told once the machine is as `after` says; it is not told again. Who could not have it recorded
    /// puts `told` back.
    pub(super) fn news(&mut self, after: Status) -> Vec<News> {
        let news = changes(&self.told, &after);
        self.told = after;
        news.into_iter().map(|(kind, message)| News::of(kind, self.record.resource(), message)).collect()
    }

    pub(super) fn tell(&mut self) {
        let news = self.news(self.status.clone());
        if !news.is_empty() {
            self.context.store.tell(Vec::new(), news);
        }
        // The machine can be seen as these say.
        self.untold = None;
    }
}

fn changes(before: &Status, after: &Status) -> Vec<(EventKind, String)> {
    let at_rest = matches!(after.state, State::Stopped | State::Failed);
    let mut news = Vec::new();
    if after.adopted && !before.adopted {
        news.push((EventKind::Adopted, words(after.state).to_owned()));
    } else if after.state != before.state {
        news.push(match after.state {
            State::Stopped => (EventKind::Exited, after.exit.reason.clone()),
            State::Failed => (EventKind::Crashed, after.exit.reason.clone()),
            other => (EventKind::State, words(other).to_owned()),
        });
    }
    if after.silence.is_some() != before.silence.is_some() && !at_rest {
        news.push(match &after.silence {
            Some(silence) => (EventKind::Unresponsive, silence.why.clone()),
            None => (EventKind::Responsive, "QEMU answers again".to_owned()),
        });
    }
    let rest = |status: &Status| Status {
        revision: 0,
        state: State::Stopped,
        exit: Default::default(),
        silence: None,
        adopted: false,
        warnings: status.warnings.iter().map(|warning| without_numbers(warning)).collect(),
        ..status.clone()
    };
    if news.is_empty() && rest(before) != rest(after) {
        // The words themselves may name files of the host, which not everybody is to see.
        let what = if before.warnings == after.warnings { "its addresses" } else { "its warnings" };
        news.push((EventKind::Updated, what.to_owned()));
    }
    news
}

/// A warning that counts what the guest does is the same one: else a guest could fill the log.
fn without_numbers(warning: &str) -> String {
    warning.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn words(state: State) -> &'static str {
    match state {
        State::Stopped | State::Deleted => "stopped",
        State::Failed => "failed",
        State::Starting => "starting",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopping(Stage::Aborting) => "stopping: the start is taken back",
        State::Stopping(Stage::Asked) => "stopping: the guest is asked to shut down",
        State::Stopping(Stage::Quitting) => {
            "stopping: the guest did not shut down in time, QEMU is told to quit"
        }
        State::Stopping(Stage::Killed) => "stopping: QEMU is killed",
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{LastExit, Silence};
    use shared::time::Timestamp;

    fn status(state: State) -> Status {
        Status {
            revision: 7,
            state,
            exit: LastExit::default(),
            run: None,
            vnc_address: String::new(),
            silence: None,
            adopted: false,
            warnings: vec![],
        }
    }

    fn told(before: &Status, after: &Status) -> Vec<EventKind> {
        changes(before, after).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn each_change_is_told_once_and_nothing_else_is() {
        let running = status(State::Running);
        assert_eq!(told(&running, &Status { revision: 8, ..running.clone() }), []);
        assert_eq!(told(&status(State::Starting), &running), [EventKind::State]);
        let silence = Some(Silence { since: Timestamp::now(), why: "it hangs".into() });
        let silent = Status { silence: silence.clone(), ..running.clone() };
        assert_eq!(told(&running, &silent), [EventKind::Unresponsive]);
        assert_eq!(told(&silent, &running), [EventKind::Responsive]);
        assert_eq!(told(&silent, &status(State::Stopped)), [EventKind::Exited], "not: it answers again");
        let crash = LastExit { reason: "QEMU died with signal 11".into(), error: "x: /images/secret".into() };
        let crashed = changes(&silent, &Status { exit: crash, ..status(State::Failed) });
        assert_eq!(crashed, [(EventKind::Crashed, "QEMU died with signal 11".to_owned())]);
        let adopted = Status { adopted: true, silence, ..running.clone() };
        assert_eq!(told(&status(State::Stopped), &adopted), [EventKind::Adopted, EventKind::Unresponsive]);
        let warned = Status { warnings: vec!["w".into()], ..running.clone() };
        assert_eq!(told(&running, &warned), [EventKind::Updated]);
        let times = |times: u32| Status { warnings: vec![format!("reset {times} times")], ..running.clone() };
        assert_eq!(told(&times(2), &times(3)), [], "what a guest does a thousand times is told once");
        let stages =
            [Stage::Asked, Stage::Quitting, Stage::Killed].map(|stage| status(State::Stopping(stage)));
        for pair in stages.windows(2) {
            assert_eq!(told(&pair[0], &pair[1]), [EventKind::State]);
        }
    }
}
