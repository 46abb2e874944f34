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
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(what, PATIENCE, look)
}

/// As `until`, with more patience.
///
/// # Panics
/// After `patience`.
pub fn until_within<T>(what: &str, patience: Duration, look: impl FnMut() -> Option<T>) -> T {
    try_until(patience, look).unwrap_or_else(|| panic!("waited {patience:?} in vain for {what}"))
}

/// As `until_within`, for who says more about what did not come; `None` when patience ends.
pub fn try_until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::park_timeout(PAUSE);
    }
}
