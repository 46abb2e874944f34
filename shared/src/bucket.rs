//! How often each user may do something: a burst, and then a steady rate.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Users that are told apart; the others share one bucket. A container's user can have 65,536 uids.
const USERS: usize = 512;

/// How often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// At once.
    pub burst: f64,
    /// After that, each second; more than zero.
    pub per_second: f64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    pace: Pace,
    left: f64,
    since: Instant,
}

impl Bucket {
    fn refilled(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        (self.left + passed * self.pace.per_second).min(self.pace.burst)
    }
}

/// A bucket for each user; `None`: of whoever has no name.
#[derive(Debug, Default)]
pub struct Buckets(HashMap<Option<u32>, Bucket>);

impl Buckets {
    /// Takes one out of a user's.
    ///
    /// # Errors
    /// How long it takes until there is one, where there is none.
    pub fn take(&mut self, uid: Option<u32>, pace: Pace, now: Instant) -> Result<(), Duration> {
        if self.0.len() >= USERS && !self.0.contains_key(&uid) {
            // Those that have been quiet need no memory.
            self.0.retain(|_, bucket| bucket.refilled(now) < bucket.pace.burst);
        }
        let room = self.0.len() < USERS || self.0.contains_key(&uid);
        let full = Bucket { pace, left: pace.burst, since: now };
        let bucket = self.0.entry(uid.filter(|_| room)).or_insert(full);
        *bucket = Bucket { pace, left: bucket.refilled(now).min(pace.burst), since: now };
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / pace.per_second));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const PACE: Pace = Pace { burst: 30.0, per_second: 1.0 };

    #[test]
    fn each_user_has_a_burst_and_a_rate_and_many_users_take_bounded_memory() {
        let mut buckets = Buckets::default();
        let begin = Instant::now();
        let mut burst = |uid, at| (0..100).filter(|_| buckets.take(Some(uid), PACE, at).is_ok()).count();
        assert_eq!(burst(1, begin), 30);
        assert_eq!(burst(2, begin), 30);
        assert_eq!(burst(1, begin + Duration::from_secs(5)), 5);
        for uid in 0..10_000 {
            let _ = buckets.take(Some(uid), PACE, begin);
        }
        assert!(buckets.0.len() <= USERS + 1, "{}", buckets.0.len());
    }

    #[test]
    fn who_has_none_left_is_told_how_long_to_wait() {
        let mut buckets = Buckets::default();
        let begin = Instant::now();
        let pace = Pace { burst: 1.0, per_second: 4.0 };
        assert_eq!(buckets.take(Some(1), pace, begin), Ok(()));
        let wait = buckets.take(Some(1), pace, begin).unwrap_err();
        assert_eq!(wait, Duration::from_millis(250));
        assert_eq!(buckets.take(Some(1), pace, begin + wait), Ok(()));
        // A user whose pace was lowered meanwhile has no more than that.
        let slow = Pace { burst: 2.0, per_second: 1.0 };
        let later = begin + Duration::from_secs(3600);
        let taken = (0..9).filter(|_| buckets.take(Some(1), slow, later).is_ok()).count();
        assert!(taken <= 2, "{taken}");
    }
}
