//! Wire types that both daemons have, made of what both know, and the service that both have.

mod caller;
mod event;
pub mod port;

pub use caller::caller;
pub use event::{EventService, change};

use crate::time::Timestamp;

/// A point in time.
#[must_use]
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos }
}
