//! What networks, ports and machines are to their clients: the model that histories are checked against.

use crate::history::Model;

/// An object that can be made, looked at, changed, run and deleted.
#[derive(Debug)]
pub struct Object;

/// What is known of one that is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct There {
    /// Given by the daemon, never twice.
    pub uid: String,
    /// Which of the specs that the test uses.
    pub spec: u64,
    /// The label that updates change; empty: none.
    pub label: String,
    /// Of machines: whether it runs.
    pub runs: bool,
}

/// What a client asked for, and what it was answered.
#[derive(Debug)]
pub enum Operation {
    /// A create of this spec that was answered with this uid.
    Created(u64, String),
    /// A create of this spec that was answered ALREADY_EXISTS.
    Exists(u64),
    /// Looked at. `runs` is `None` where the answer was neither.
    Seen {
        /// As in the answer.
        uid: String,
        /// As in the answer.
        spec: u64,
        /// As in the answer.
        label: String,
        /// As in the answer.
        runs: Option<bool>,
    },
    /// Looked for, changed, run or deleted, and NOT_FOUND; or not in a list.
    Missing,
    /// The label was set.
    Labelled(String),
    /// Deleted.
    Deleted,
    /// Started, or ran already.
    Started,
    /// Stopped, or did not run.
    Stopped,
    /// Refused since it runs.
    Running,
    /// Refused since something else is under way: "try again".
    Busy,
}

impl Model for Object {
    type State = Option<There>;
    type Operation = Operation;

    fn initial() -> Self::State {
        None
    }

    fn step(state: &Self::State, operation: &Operation, alone: bool) -> Option<Self::State> {
        let same = |possible: bool| possible.then(|| state.clone());
        match (operation, state) {
            (Operation::Created(spec, uid), None) => {
                Some(Some(There { uid: uid.clone(), spec: *spec, label: String::new(), runs: false }))
            }
            (Operation::Created(spec, uid), Some(there)) => {
                same(there.uid == *uid && there.spec == *spec && there.label.is_empty())
            }
            (Operation::Exists(spec), Some(there)) => same(there.spec != *spec || !there.label.is_empty()),
            (Operation::Seen { uid, spec, label, runs }, Some(there)) => same(
                there.uid == *uid
                    && there.spec == *spec
                    && there.label == *label
                    && runs.map_or(!alone, |runs| runs == there.runs),
            ),
            (Operation::Missing, there) => same(there.is_none()),
            (Operation::Labelled(label), Some(there)) => {
                Some(Some(There { label: label.clone(), ..there.clone() }))
            }
            (Operation::Deleted, Some(there)) => (!there.runs).then_some(None),
            (Operation::Started, Some(there)) => Some(Some(There { runs: true, ..there.clone() })),
            (Operation::Stopped, Some(there)) => Some(Some(There { runs: false, ..there.clone() })),
            (Operation::Running, Some(there)) => same(there.runs || !alone),
            (Operation::Busy, _) => same(!alone),
            (
                Operation::Exists(_)
                | Operation::Seen { .. }
                | Operation::Labelled(_)
                | Operation::Deleted
                | Operation::Started
                | Operation::Stopped
                | Operation::Running,
                None,
            ) => None,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_answer_that_no_order_gives_is_found() {
        let made = Object::step(&None, &Operation::Created(1, "a".into()), true).expect("a create");
        // A create of another spec that is answered OK, or with another uid; a delete of what is not there.
        for lie in [Operation::Created(2, "a".into()), Operation::Created(1, "b".into()), Operation::Missing]
        {
            assert!(Object::step(&made, &lie, true).is_none(), "{lie:?}");
        }
        assert!(Object::step(&None, &Operation::Deleted, true).is_none());
        // Nobody is busy alone.
        assert!(Object::step(&made, &Operation::Busy, true).is_none());
        assert!(Object::step(&made, &Operation::Busy, false).is_some());
    }
}
