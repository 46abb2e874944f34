//! What every call has: a place, a deadline, and an end that hurts nobody else.

use super::{
    body::{Terms, Watched},
    connection::Admitted,
    limits::Limits,
    methods::Streaming,
    request::Measured,
    words,
};
use crate::{
    fault::{Fault, Kind},
    slots::{Full, Slots},
};
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response};
use std::{
    any::Any,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::{BoxError, Layer, Service};

/// Debug builds panic where this header says, so that tests can see what it costs: `call` or `stream`.
#[cfg(debug_assertions)]
const PANIC: &str = "kvmctl-debug-panic";

/// The limits of calls, as a layer around all services.
#[derive(Clone)]
pub(super) struct Guard(Arc<Rules>);

/// What all calls share.
pub(super) struct Rules {
    limits: Limits,
    streaming: Streaming,
    calls: Slots,
    streams: Slots,
    /// The daemon was told to end: nothing new begins.
    stop: CancellationToken,
    /// What has not ended by itself ends now.
    ended: CancellationToken,
}

impl Guard {
    /// `admin` is privileged besides root; 0 if nobody is.
    pub fn new(
        limits: Limits,
        admin: u32,
        streaming: Streaming,
        stop: CancellationToken,
        ended: CancellationToken,
    ) -> Self {
        let (calls, streams) = (Slots::new(limits.calls, admin), Slots::new(limits.streams, admin));
        let rules = Rules { limits, streaming, calls, streams, stop, ended };
        Self(Arc::new(rules))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// All services, behind the limits.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let rules = Arc::clone(&self.guard.0);
        let (terms, uid) = match rules.admit(&mut request) {
            Ok(admitted) => admitted,
            Err(fault) => return Box::pin(std::future::ready(Ok(Status::from(fault).into_http()))),
        };
        let request = request.map(|body| Measured::around(body, rules.limits.message));
        // The one that is ready, not its copy.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            #[cfg(debug_assertions)]
            let panics = request.headers().get(PANIC).is_some_and(|at| at == "call");
            let work = AssertUnwindSafe(async move {
                #[cfg(debug_assertions)]
                assert!(!panics, "the request asked for it");
                inner.call(request).await
            })
            .catch_unwind();
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                () = tokio::time::sleep_until(terms.opening) => {
                    return Ok(Status::from(too_late(&path, terms.allowed)).into_http());
                }
                () = rules.ended.cancelled() => return Ok(Status::from(ending()).into_http()),
            };
            match answer {
                Ok(Ok(response)) => Ok(words::clearer(response).map(|body| Watched::around(body, terms))),
                Ok(Err(error)) => Err(error),
                Err(panic) => Ok(Status::from(defect(&path, uid, &*panic)).into_http()),
            }
        })
    }
}

impl Rules {
    /// Whether a call may begin, and on which terms.
    fn admit(&self, request: &mut Request<Body>) -> Result<(Terms, u32), Fault> {
        let admitted = request
            .extensions_mut()
            .remove::<Admitted>()
            .ok_or_else(|| Fault::internal("a call came without its connection"))?;
        // Where handlers look for it.
        request.extensions_mut().insert(admitted.info);
        if let Some(why) = admitted.refused {
            return Err(Fault::clone(&why));
        }
        if self.stop.is_cancelled() {
            return Err(ending());
        }
        let path = request.uri().path().to_owned();
        let streaming = self.streaming.contains(&path);
        let (slots, what) = if streaming { (&self.streams, "streams") } else { (&self.calls, "calls") };
        let slot = slots.take(admitted.account).map_err(|full| too_many(what, admitted.account, full))?;
        let asked = grpc_timeout(request.headers());
        let own = self.limits.call(&path);
        let now = Instant::now();
        let allowed = asked.map_or(own, |asked| asked.min(own));
        let terms = Terms {
            path,
            allowed,
            opening: now + allowed,
            // A stream goes on for as long as the client likes.
            end: if streaming { asked.map(|asked| now + asked) } else { None },
            stalled: streaming.then_some(self.limits.stalled),
            close: admitted.close,
            ended: self.ended.clone(),
            uid: admitted.uid,
            slot,
            #[cfg(debug_assertions)]
            panics: request.headers().get(PANIC).is_some_and(|at| at == "stream"),
        };
        Ok((terms, admitted.uid))
    }
}

/// `grpc-timeout`: up to eight digits and a unit. What is not of that form is no time-out, as in tonic.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

fn too_many(what: &str, uid: u32, full: Full) -> Fault {
    let (limit, value, message) = match full {
        Full::Each(most) => (
            format!("{what}_per_uid"),
            most,
            format!("{} {most} {what} open, which is the most for one user", words::have(uid)),
        ),
        Full::All(most) => {
            (what.to_owned(), most, format!("{most} {what} are open, which is the most for all users"))
        }
    };
    let hint = if what == "calls" { "wait for some to end, and try again" } else { "end some of them first" };
    Fault::new(Kind::ResourceExhausted, "BUSY", message).hint(hint).meta("limit", limit).meta("value", value)
}

/// What a call ends with that took too long.
pub(super) fn too_late(path: &str, allowed: Duration) -> Fault {
    Fault::new(
        Kind::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        format!("`{path}` was not done within {allowed:?}, which is what the client or the daemon allows"),
    )
    .hint("what was asked for may still happen: look again")
    .meta("limit", "call")
    .meta("value", format!("{allowed:?}"))
}

/// What calls and streams end with when the daemon does: UNAVAILABLE, ENDING.
#[must_use]
pub fn ending() -> Fault {
    Fault::new(Kind::Unavailable, "ENDING", "the daemon is ending; guests and networks go on")
        .hint("try again when it is back; what was asked for may have happened: look again")
}

/// What a call ends with whose handler panicked.
pub(super) fn defect(path: &str, uid: u32, panic: &(dyn Any + Send)) -> Fault {
    let why = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words");
    tracing::error!(path, uid, why, "a defect ended a call; the daemon goes on");
    Fault::new(Kind::Internal, "DEFECT", format!("`{path}` ended by a defect of the daemon"))
        .hint("the daemon goes on; its log says more, which is worth a report")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn time_outs_of_clients_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&headers)
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "1", "1x", "123456789S", "-1S", "+1S", "1 S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
