//! Waiting for a level, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Bound of every wait: far more than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` gives something; panics with `what` when patience ends.
///
/// # Panics
/// After `PATIENCE`.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain for {what}");
        thread::park_timeout(PAUSE);
    }
}
