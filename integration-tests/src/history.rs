//! Whether what clients saw of an object can have happened in some serial order (Herlihy and Wing's linearizability,
//! by Wing and Gong's search).

use std::{
    collections::HashSet,
    fmt::Debug,
    hash::Hash,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// What an object does with one operation.
pub trait Model {
    /// The object.
    type State: Clone + Debug + Eq + Hash;
    /// An operation with what it answered.
    type Operation: Debug;

    /// The object before everything.
    fn initial() -> Self::State;

    /// The object after the operation; `None` if it cannot have answered that. `alone`: no other operation of the object
    /// was under way.
    fn step(state: &Self::State, operation: &Self::Operation, alone: bool) -> Option<Self::State>;
}

/// One operation, from its call to its answer.
#[derive(Debug)]
pub struct Event<O> {
    begin: u64,
    end: u64,
    operation: O,
}

/// What happened, of all objects. Clients share one.
#[derive(Debug)]
pub struct History<K, O> {
    clock: AtomicU64,
    events: Mutex<Vec<(K, Event<O>)>>,
}

impl<K, O> Default for History<K, O> {
    fn default() -> Self {
        Self { clock: AtomicU64::new(0), events: Mutex::default() }
    }
}

impl<K: Clone + Eq, O> History<K, O> {
    /// The time before a call.
    pub fn begin(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Notes what a call that began at `begin` showed of an object.
    ///
    /// # Panics
    /// If another client did.
    pub fn note(&self, key: K, begin: u64, operation: O) {
        let end = self.clock.fetch_add(1, Ordering::SeqCst);
        self.events.lock().expect("history").push((key, Event { begin, end, operation }));
    }

    /// All events by object.
    ///
    /// # Panics
    /// If a client did.
    #[must_use]
    pub fn by_object(self) -> Vec<(K, Vec<Event<O>>)> {
        let mut objects: Vec<(K, Vec<Event<O>>)> = Vec::new();
        for (key, event) in self.events.into_inner().expect("history") {
            match objects.iter_mut().find(|(other, _)| *other == key) {
                Some((_, events)) => events.push(event),
                None => objects.push((key, vec![event])),
            }
        }
        objects
    }
}

/// Looks for a serial order of the events that keeps to the times and to the model.
///
/// # Errors
/// Where it ends, if there is none.
pub fn explain<M: Model>(mut events: Vec<Event<M::Operation>>) -> Result<(), String> {
    events.sort_by_key(|event| event.begin);
    let alone: Vec<bool> = events
        .iter()
        .map(|one| {
            let overlapping = events.iter().filter(|other| other.begin < one.end && one.begin < other.end);
            overlapping.count() == 1
        })
        .collect();
    // What is done, by index, and the object then. All candidates of one length at a time.
    let mut candidates = HashSet::from([(vec![false; events.len()], M::initial())]);
    for length in 0..events.len() {
        let mut longer = HashSet::new();
        for (done, state) in &candidates {
            for next in possible(&events, done) {
                if let Some(after) = M::step(state, &events[next].operation, alone[next]) {
                    let mut done = done.clone();
                    done[next] = true;
                    longer.insert((done, after));
                }
            }
        }
        if longer.is_empty() {
            let (done, state) = candidates.iter().next().ok_or("no candidate")?;
            let next: Vec<_> = possible(&events, done).map(|next| &events[next]).collect();
            let last: Vec<_> =
                events.iter().zip(done).filter(|(_, done)| **done).map(|(event, _)| event).collect();
            let last = &last[last.len().saturating_sub(6)..];
            return Err(format!(
                "after {length} of {} operations none can be next.\nthe object: {state:#?}\nbefore: {last:#?}\nnext: {next:#?}",
                events.len()
            ));
        }
        candidates = longer;
    }
    Ok(())
}

/// Events that may be next: those that began before any other that is not done ended.
fn possible<'a, O>(events: &'a [Event<O>], done: &'a [bool]) -> impl Iterator<Item = usize> + 'a {
    let undone = move || (0..events.len()).filter(|index| !done[*index]);
    let horizon = undone().map(|index| events[index].end).min().unwrap_or(u64::MAX);
    undone().take_while(move |index| events[*index].begin < horizon)
}

#[cfg(test)]
mod test {
    use super::*;

    /// A register of one number.
    struct Register;

    #[derive(Debug)]
    enum Operation {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;
        type Operation = Operation;

        fn initial() -> u8 {
            0
        }

        fn step(state: &u8, operation: &Operation, _: bool) -> Option<u8> {
            match operation {
                Operation::Write(value) => Some(*value),
                Operation::Read(value) => (value == state).then_some(*state),
            }
        }
    }

    fn event(begin: u64, end: u64, operation: Operation) -> Event<Operation> {
        Event { begin, end, operation }
    }

    #[test]
    fn what_overlaps_may_be_either_way_round_and_what_does_not_may_not() {
        use Operation::{Read, Write};
        // Both reads overlap the write: old, then new.
        let possible = vec![event(0, 9, Write(1)), event(1, 2, Read(0)), event(3, 4, Read(1))];
        assert!(explain::<Register>(possible).is_ok());
        // New, then old.
        let torn = vec![event(0, 9, Write(1)), event(1, 2, Read(1)), event(3, 4, Read(0))];
        assert!(explain::<Register>(torn).unwrap_err().contains("after 2 of 3"));
        // A write that was answered is seen.
        let lost = vec![event(0, 1, Write(1)), event(2, 3, Read(0))];
        assert!(explain::<Register>(lost).is_err());
    }
}
