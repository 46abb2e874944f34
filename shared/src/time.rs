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

    /// `2026-11-24T21:44:50.123Z`; `None` outside of the years 1 to 9999.
    #[must_use]
    pub fn rfc3339(self) -> Option<String> {
        const DAY: i64 = 86_400;
        let (days, second) = (self.seconds.div_euclid(DAY), self.seconds.rem_euclid(DAY));
        let (year, month, day) = civil(days)?;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let milli = self.nanos.clamp(0, 999_999_999) / 1_000_000;
        Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"))
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: i64) -> Option<(i64, i64, i64)> {
    // Days from 0000-03-01: with the leap day last, months and leap years are plain division. A cycle of the
    // calendar is 400 years, 146,097 days.
    let days = days.checked_add(719_468)?;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = cycle * 400 + year + i64::from(month <= 2);
    (1..=9999).contains(&year).then_some((year, month, day))
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
    use proptest::prelude::*;

    fn text(seconds: i64) -> Option<String> {
        Timestamp { seconds, nanos: 1_999_999 }.rfc3339()
    }

    #[test]
    fn known_days() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.001Z"),
            (-1, "1969-12-31T23:59:59.001Z"),
            (951_782_400, "2000-02-29T00:00:00.001Z"),
            (4_107_542_399, "2100-02-28T23:59:59.001Z"),
            (4_107_542_400, "2100-03-01T00:00:00.001Z"),
            (1_795_556_690, "2026-11-24T21:44:50.001Z"),
            (253_402_300_799, "9999-12-31T23:59:59.001Z"),
        ] {
            assert_eq!(text(seconds).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_absurd_has_no_text() {
        for seconds in [i64::MIN, i64::MAX, 253_402_300_800] {
            assert_eq!(text(seconds), None);
        }
    }

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

    proptest! {
        #[test]
        fn days_follow_each_other(day in -700_000..2_900_000_i64) {
            let (Some((year, month, date)), Some(next)) = (civil(day), civil(day + 1)) else { return Ok(()) };
            let expected = [(year, month, date + 1), (year, month + 1, 1), (year + 1, 1, 1)];
            prop_assert!(expected.contains(&next));
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&date));
        }
    }
}
