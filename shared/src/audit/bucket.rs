//! How many refusals of one user are written.

use std::{collections::HashMap, time::Instant};

/// Refusals that are written at once, and one more each so many seconds.
const BURST: f64 = 30.0;
const SECONDS: f64 = 1.0;
/// Users that are told apart; the others share one bucket. A container's user can have 65,536 uids.
const USERS: usize = 512;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    since: Instant,
}

/// A bucket for each user; `None`: of whoever has no name.
#[derive(Debug, Default)]
pub struct Buckets(HashMap<Option<u32>, Bucket>);

impl Buckets {
    /// Whether one more is written.
    pub fn take(&mut self, uid: Option<u32>, now: Instant) -> bool {
        let refilled = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.since).as_secs_f64();
            (bucket.left + passed / SECONDS).min(BURST)
        };
        if self.0.len() >= USERS && !self.0.contains_key(&uid) {
            // Those that have been quiet need no memory.
            self.0.retain(|_, bucket| refilled(bucket) < BURST);
        }
        let room = self.0.len() < USERS || self.0.contains_key(&uid);
        let bucket = self.0.entry(uid.filter(|_| room)).or_insert(Bucket { left: BURST, since: now });
        *bucket = Bucket { left: refilled(bucket), since: now };
        let taken = bucket.left >= 1.0;
        if taken {
            bucket.left -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_user_has_a_burst_and_a_rate_and_many_users_take_bounded_memory() {
        let mut buckets = Buckets::default();
        let begin = Instant::now();
        let mut burst = |uid, at| (0..100).filter(|_| buckets.take(Some(uid), at)).count();
        assert_eq!(burst(1, begin), 30);
        assert_eq!(burst(2, begin), 30);
        assert_eq!(burst(1, begin + Duration::from_secs(5)), 5);
        for uid in 0..10_000 {
            buckets.take(Some(uid), begin);
        }
        assert!(buckets.0.len() <= USERS + 1, "{}", buckets.0.len());
    }
}
