//! Streams of messages that end with the daemon.

use super::ending;
use crate::{fault::Fault, watch::until_error};
use futures_util::{Stream, StreamExt as _, stream};
use std::pin::Pin;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// A stream of a service.
pub type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream that ends with its first error, or with UNAVAILABLE when the daemon does.
pub fn until_end<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Fault>> + Send + 'static,
    stop: CancellationToken,
) -> Messages<T> {
    let end = stream::once(stop.clone().cancelled_owned()).map(|()| Err(ending().into()));
    let stream = stream.map(|item| item.map_err(Status::from)).take_until(stop.cancelled_owned());
    until_error(stream.chain(end)).boxed()
}
