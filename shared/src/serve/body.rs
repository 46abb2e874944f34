//! An answer on its way: it has an end, is read in time, and a defect in it ends nothing else.

use super::guard::{defect, ending, too_late};
use crate::{fault::Fault, slots::Slot};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use std::{
    future::Future as _,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body, codegen::Bytes};

/// What a call was let in with.
pub(super) struct Terms {
    pub path: String,
    pub uid: u32,
    /// How long it may take, and until when it has to answer.
    pub allowed: Duration,
    pub opening: Instant,
    /// When a stream ends, if its client said so.
    pub end: Option<Instant>,
    /// How long a piece may wait for its reader; of streams only.
    pub stalled: Option<Duration>,
    /// Ends the connection.
    pub close: CancellationToken,
    /// The daemon's end.
    pub ended: CancellationToken,
    pub slot: Slot,
    #[cfg(debug_assertions)]
    pub panics: bool,
}

/// The body of an answer.
pub(super) struct Watched {
    inner: Body,
    path: String,
    uid: u32,
    allowed: Duration,
    end: Option<Pin<Box<Sleep>>>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    reader: Option<Reader>,
    done: bool,
    _slot: Slot,
    #[cfg(debug_assertions)]
    panics: bool,
}

impl Watched {
    /// A body on these terms.
    pub fn around(inner: Body, terms: Terms) -> Body {
        let reader = terms.stalled.map(|patience| Reader::new(patience, &terms));
        Body::new(Self {
            inner,
            reader,
            path: terms.path,
            uid: terms.uid,
            allowed: terms.allowed,
            end: terms.end.map(|end| Box::pin(sleep_until(end))),
            ended: Box::pin(terms.ended.cancelled_owned()),
            done: false,
            _slot: terms.slot,
            #[cfg(debug_assertions)]
            panics: terms.panics,
        })
    }

    fn inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        #[cfg(debug_assertions)]
        let panics = self.panics;
        let inner = Pin::new(&mut self.inner);
        catch_unwind(AssertUnwindSafe(|| {
            #[cfg(debug_assertions)]
            assert!(!panics, "the request asked for it");
            inner.poll_frame(cx)
        }))
        .unwrap_or_else(|panic| {
            Poll::Ready(Some(last(defect(&self.path, self.uid, &*panic), &mut self.done)))
        })
    }
}

/// The end of a stream, as gRPC writes it.
fn last(fault: Fault, done: &mut bool) -> Result<Frame<Bytes>, Status> {
    *done = true;
    let mut trailers = HeaderMap::new();
    Status::from(fault).add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        if let Some(reader) = &this.reader {
            reader.took();
        }
        // Before the next piece: there may always be one.
        if this.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(last(too_late(&this.path, this.allowed), &mut this.done)));
        }
        if this.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(last(ending(), &mut this.done)));
        }
        let frame = this.inner(cx);
        if let (Some(reader), Poll::Ready(Some(Ok(frame)))) = (&this.reader, &frame)
            && frame.is_data()
        {
            reader.waits();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.inner.is_end_stream()
    }
}

/// Watches the one who reads a stream. A piece is asked for only when the one before has found room at the client, so
/// who does not ask for so long does not read.
struct Reader {
    begin: Instant,
    /// Milliseconds since `begin` when the last piece was given out; 0 if it has been taken.
    since: Arc<AtomicU64>,
    _end: DropGuard,
}

impl Reader {
    fn new(patience: Duration, terms: &Terms) -> Self {
        let (begin, since, end) = (Instant::now(), Arc::<AtomicU64>::default(), CancellationToken::new());
        let (path, uid, close) = (terms.path.clone(), terms.uid, terms.close.clone());
        let watcher = {
            let (since, end) = (Arc::clone(&since), end.clone());
            async move {
                loop {
                    let waits = since.load(Ordering::Relaxed);
                    // The present piece was given out at `waits`; a later one cannot be late before this.
                    let late = if waits == 0 { Instant::now() } else { begin + Duration::from_millis(waits) };
                    tokio::select! {
                        () = end.cancelled() => return,
                        () = sleep_until(late + patience) => {}
                    }
                    if waits != 0 && since.load(Ordering::Relaxed) == waits {
                        tracing::warn!(path, uid, ?patience, "a client that does not read is cut off");
                        return close.cancel();
                    }
                }
            }
        };
        tokio::spawn(watcher);
        Self { begin, since, _end: end.drop_guard() }
    }

    fn took(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn waits(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now.max(1), Ordering::Relaxed);
    }
}
