//! The log as the services of both daemons give it out.

use super::{Cursor, Event, EventLog, Told, lost, slow_reader};
use crate::{
    fault::{Fault, Kind},
    watch::until_error,
};
use futures_util::{Stream, StreamExt as _, stream};
use std::sync::Arc;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Most events of one page, and how many where the client does not say.
const PAGE: usize = 1000;
/// Longest epoch that a client may send, bytes; ours have 8.
const LONGEST_EPOCH: usize = 64;

/// A page of events.
#[derive(Debug)]
pub struct Page {
    /// The oldest first.
    pub events: Vec<Arc<Event>>,
    /// Asks for the next page; empty if this is the last.
    pub next: String,
    /// The position behind the newest event that there was.
    pub position: Cursor,
}

impl Cursor {
    /// A position as a client sends it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it can be nobody's.
    pub fn new(revision: i64, epoch: String) -> Result<Self, Fault> {
        let plain = epoch.len() <= LONGEST_EPOCH && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if revision < 0 || !plain {
            let message = "the position is of no log: its revision is negative, or its epoch has other signs than letters and digits";
            return Err(Fault::new(Kind::InvalidArgument, "INVALID_REVISION", message)
                .hint("send revision and epoch of an event as they came, or 0 and nothing"));
        }
        Ok(Self { epoch, revision })
    }
}

impl EventLog {
    /// A page of events; `size` 0 is 1000, and more counts as 1000.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if token or size cannot be; EVENTS_GONE as `list`.
    pub fn page(&self, since: &Cursor, token: &str, size: i32) -> Result<Page, Fault> {
        let invalid = |reason: &str, message: &str| Fault::new(Kind::InvalidArgument, reason, message);
        let size = match usize::try_from(size) {
            Ok(0) => PAGE,
            Ok(size) => size.min(PAGE),
            Err(_) => return Err(invalid("INVALID_PAGE_SIZE", "the page size is negative")),
        };
        let position = self.present();
        let events = match token {
            "" => self.list(since, size)?,
            token => {
                let last = token.parse().map_err(|e| {
                    invalid("INVALID_PAGE_TOKEN", "the page token was never given out").cause(&e)
                })?;
                self.list_on(last, size)?
            }
        };
        let last = events.last().filter(|_| events.len() == size);
        let next = last.map_or_else(String::new, |last| last.revision.to_string());
        Ok(Page { events, next, position })
    }

    /// The events after a position, for revision 0 only those that are still to come, and all that come.
    ///
    /// # Errors
    /// As `watch`; SLOW_READER and EVENTS_GONE also end the stream.
    pub fn follow(
        &self,
        since: &Cursor,
    ) -> Result<impl Stream<Item = Result<Arc<Event>, Fault>> + Send + use<>, Fault> {
        let watch = self.watch(since)?;
        let news = BroadcastStream::new(watch.news).map(|told| match told {
            Ok(Told::Event(event)) => Ok(event),
            Ok(Told::Lost) => Err(lost()),
            Err(BroadcastStreamRecvError::Lagged(_)) => Err(slow_reader()),
        });
        Ok(until_error(stream::iter(watch.kept.into_iter().map(Ok)).chain(news)))
    }
}
