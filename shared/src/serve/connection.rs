//! One client's connection: it has to begin in time, and can be ended from outside.

use crate::{fault::Fault, slots::Slot, socket::PeerStream};
use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Bytes that every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// What the stream below knows.
type Info = <PeerStream as Connected>::ConnectInfo;

/// What is known of a connection when one of its requests comes.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    /// Who is calling.
    pub info: Info,
    /// Of the caller; the number of nobody at all where the kernel did not say.
    pub uid: u32,
    /// Whose limits hold for it.
    pub account: u32,
    /// What every request is answered with, if the client got no connection.
    pub refused: Option<Arc<Fault>>,
    /// Ends the connection.
    pub close: CancellationToken,
}

/// What a connection occupies, and gives back at its end.
#[derive(Debug)]
pub(super) enum Place {
    /// One of its user's connections.
    Taken { _slot: Slot },
    /// One of those who hear why they get none.
    Refused { _permit: Option<OwnedSemaphorePermit> },
}

/// A stream with a bound on its begin.
pub(super) struct Connection {
    stream: PeerStream,
    admitted: Admitted,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Bytes of the preface that are still to come.
    missing: usize,
    /// How long the socket may be full, and until when, if it is.
    patience: Duration,
    full: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    /// Holds `stream`, which has `deadline` to begin; one that is refused has it for everything. Who leaves the socket full
    /// for `patience` is cut off: hyper's own keepalive ends such a connection only after a last frame that finds no room.
    pub fn new(
        stream: PeerStream,
        admitted: Admitted,
        place: Place,
        (deadline, patience): (Duration, Duration),
    ) -> Self {
        let closed = Box::pin(admitted.close.clone().cancelled_owned());
        let deadline = Some(Box::pin(sleep(deadline)));
        Self { stream, admitted, closed, deadline, missing: PREFACE, patience, full: None, _place: place }
    }

    /// Whether it may go on. Asked on each way in, as HTTP/2 reads nothing while it cannot write.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed by the daemon"));
        }
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not begin in time"));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Admitted;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.admitted.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.missing = self.missing.saturating_sub(buf.filled().len() - before);
        if self.missing == 0 && self.admitted.refused.is_none() {
            self.deadline = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if written.is_ready() {
            self.full = None;
            return written;
        }
        let patience = self.patience;
        let full = self.full.get_or_insert_with(|| Box::pin(sleep(patience)));
        if full.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")));
        }
        Poll::Pending
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
