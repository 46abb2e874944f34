//! Wall-clock times as they are recorded.

use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time with nanoseconds, for display only: no decision may depend on the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: i32,
}

impl Timestamp {
    /// The present time; the epoch if the clock stands before it.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// A time span as `google.protobuf.Duration` has it. `None` if it is negative, or its nanoseconds are a second or more.
/// prost's own conversion panics at the least number of seconds.
#[must_use]
pub fn span(seconds: i64, nanos: i32) -> Option<std::time::Duration> {
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(std::time::Duration::new(u64::try_from(seconds).ok()?, nanos))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn spans_are_those_of_the_api_and_no_number_breaks_them() {
        assert_eq!(span(1, 5), Some(std::time::Duration::new(1, 5)));
        assert_eq!(span(i64::MAX, 999_999_999).map(|span| span.subsec_nanos()), Some(999_999_999));
        for (seconds, nanos) in
            [(i64::MIN, 0), (-1, 0), (0, -1), (i64::MIN, i32::MIN), (0, 1_000_000_000), (0, i32::MAX)]
        {
            assert_eq!(span(seconds, nanos), None, "{seconds} s {nanos} ns");
        }
    }
}
