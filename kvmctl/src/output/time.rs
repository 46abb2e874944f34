//! Times as RFC 3339 text.

use prost_types::Timestamp;

/// `2026-11-24T21:44:50.123Z`; `None` for a time that is not set or is outside of the years 1 to 9999.
#[must_use]
pub fn rfc3339(time: Option<&Timestamp>) -> Option<String> {
    let time = time?;
    shared::time::Timestamp { seconds: time.seconds, nanos: time.nanos }.rfc3339()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_not_set_has_no_text() {
        assert_eq!(rfc3339(None), None);
        assert!(rfc3339(Some(&Timestamp::default())).is_some());
    }
}
