//! Watching objects: a list of them, then what becomes of them, from the log of events.
//!
//! An event says which object changed. What is sent is that object as it is now, so a watcher may miss a state that
//! lasted for a moment only, and never ends up with another one than the daemon has.

use crate::{
    events::{self, Cursor, Event, EventKind, EventLog, Told, Watch},
    fault::Fault,
};
use futures_util::{Stream, StreamExt as _, future, stream};
use std::{collections::BTreeSet, sync::Arc};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Where the objects of a watch are looked up.
pub trait Source: Send + Sync + 'static {
    /// An object as it is sent.
    type Object: Send;

    /// The resource names of all objects, in the order of a list.
    fn all(&self) -> Vec<String>;
    /// Whether the name is of this sort of object.
    fn covers(&self, resource: &str) -> bool;
    /// The object; `None` if there is none of that name.
    fn get(&self, resource: &str) -> Option<Self::Object>;
}

/// What a watcher hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// An object that is there at the beginning.
    Present(T),
    /// An object that was made or changed.
    Changed(T),
    /// The resource name of one that is gone.
    Deleted(String),
    /// All that there was before has been sent.
    Synced,
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<T> {
    /// What is told.
    pub change: Change<T>,
    /// Where to go on after it; `None` before `Synced`.
    pub position: Option<Cursor>,
}

/// Watches objects: from the beginning, which all are sent, for revision 0; else from a position on, what has changed
/// since.
///
/// # Errors
/// EVENTS_GONE, also in the stream, where a new watch has to begin with revision 0; SLOW_READER in the stream.
pub fn objects<S: Source>(
    log: &EventLog,
    since: &Cursor,
    source: S,
) -> Result<impl Stream<Item = Result<Message<S::Object>, Fault>> + Send + use<S>, Fault> {
    let Watch { kept, position, news } = log.watch(since)?;
    let source = Arc::new(source);
    let begin = match since.revision {
        0 => Begin { names: source.all(), all: true },
        _ => Begin::after(&kept, &*source),
    };
    let Begin { names, all } = begin;
    let first = stream::iter(names).filter_map({
        let source = Arc::clone(&source);
        move |name| {
            let change = match source.get(&name) {
                Some(object) if all => Some(Change::Present(object)),
                Some(object) => Some(Change::Changed(object)),
                // The next event tells.
                None if all => None,
                None => Some(Change::Deleted(name)),
            };
            future::ready(change.map(|change| Ok(Message { change, position: None })))
        }
    });
    let synced = stream::iter([Ok(Message { change: Change::Synced, position: Some(position) })]);
    let rest = BroadcastStream::new(news).filter_map(move |told| {
        future::ready(match told {
            Ok(Told::Event(event)) => changed(&*source, &event).map(Ok),
            Ok(Told::Lost) => Some(Err(events::lost())),
            Err(BroadcastStreamRecvError::Lagged(_)) => Some(Err(events::slow_reader())),
        })
    });
    Ok(until_error(first.chain(synced).chain(rest)))
}

/// What is sent first.
struct Begin {
    names: Vec<String>,
    /// Whether these are all that there are, and no news.
    all: bool,
}

impl Begin {
    /// Objects that events tell of, each once.
    fn after<S: Source>(events: &[Arc<Event>], source: &S) -> Self {
        let mut names: BTreeSet<String> = events
            .iter()
            .filter(|event| changes(event))
            .map(|event| &event.resource)
            .filter(|name| source.covers(name))
            .cloned()
            .collect();
        // What a daemon finds at its start is told of no object.
        if events.iter().any(|event| event.kind == EventKind::Started) {
            names.extend(source.all());
        }
        Self { names: names.into_iter().collect(), all: false }
    }
}

/// Whether an event tells of the object itself, and not of who asked for what.
fn changes(event: &Event) -> bool {
    !matches!(event.kind, EventKind::Audit | EventKind::Refused)
}

fn changed<S: Source>(source: &S, event: &Event) -> Option<Message<S::Object>> {
    if !changes(event) || !source.covers(&event.resource) {
        return None;
    }
    let change = match event.kind {
        EventKind::Deleted => Change::Deleted(event.resource.clone()),
        // If it is gone, that is told next.
        _ => Change::Changed(source.get(&event.resource)?),
    };
    let position = Some(Cursor { epoch: event.epoch.clone(), revision: event.revision });
    Some(Message { change, position })
}

/// Ends a stream with its first error: what comes after it is not waited for.
pub fn until_error<T: Send, E: Send>(
    stream: impl Stream<Item = Result<T, E>> + Send,
) -> impl Stream<Item = Result<T, E>> + Send {
    stream::unfold(Some(Box::pin(stream)), |rest| async move {
        let mut rest = rest?;
        let item = rest.next().await?;
        let rest = item.is_ok().then_some(rest);
        Some((item, rest))
    })
}
