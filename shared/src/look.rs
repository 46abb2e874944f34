//! Looks that callers share, so that readers cannot load what is looked at without bound.

use crate::fault::Fault;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// What was seen last, and when: one looks at a time.
#[derive(Debug)]
pub struct Look<T> {
    /// How long what was seen is good for others.
    fresh: Duration,
    /// Held while somebody looks; whoever waits for it shares what is seen.
    last: Mutex<Option<Seen<T>>>,
    /// Grows when what was seen so far is of no more use.
    epoch: AtomicU64,
}

#[derive(Debug)]
struct Seen<T> {
    what: Arc<T>,
    at: Instant,
    epoch: u64,
}

impl<T> Look<T> {
    /// Nothing was seen yet. What is seen is good for so long.
    #[must_use]
    pub fn new(fresh: Duration) -> Self {
        Self { fresh, last: Mutex::default(), epoch: AtomicU64::default() }
    }

    /// What was seen a moment ago, or what `look` sees now; one looks at a time.
    ///
    /// # Errors
    /// As `look`; that is not kept.
    pub async fn share(&self, look: impl Future<Output = Result<T, Fault>>) -> Result<Arc<T>, Fault> {
        let mut last = self.last.lock().await;
        // Before the look: a change that begins meanwhile makes it of no use to the next.
        let epoch = self.epoch.load(Ordering::Acquire);
        if let Some(seen) = last.as_ref().filter(|seen| seen.epoch == epoch && seen.at.elapsed() < self.fresh)
        {
            return Ok(Arc::clone(&seen.what));
        }
        let what = Arc::new(look.await?);
        *last = Some(Seen { what: Arc::clone(&what), at: Instant::now(), epoch });
        Ok(what)
    }

    /// Something is changed: what was seen before is not shown any more.
    pub fn outdate(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use futures_util::future::join_all;

    const FRESH: Duration = Duration::from_millis(200);

    #[tokio::test(start_paused = true)]
    async fn callers_at_the_same_time_share_one_look_and_a_change_ends_it() {
        let (look, looks) = (Look::new(FRESH), AtomicU64::new(0));
        let ask = || {
            look.share(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(looks.fetch_add(1, Ordering::Relaxed) + 1)
            })
        };
        let all = join_all((0..100).map(|_| ask())).await;
        assert!(all.into_iter().all(|seen| *seen.unwrap() == 1));
        tokio::time::advance(FRESH).await;
        assert_eq!(*ask().await.unwrap(), 2);
        look.outdate();
        assert_eq!(*ask().await.unwrap(), 3);
        // One that began before a change is not good after it.
        let (during, ()) = tokio::join!(
            async {
                look.outdate();
                ask().await.unwrap()
            },
            async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                look.outdate();
            }
        );
        assert_eq!((*during, *ask().await.unwrap()), (4, 5));
    }

    #[tokio::test]
    async fn a_look_that_fails_or_is_given_up_is_made_again() {
        let look = Look::new(FRESH);
        look.share(async { Err(Fault::internal("no")) }).await.unwrap_err();
        assert!(
            tokio::time::timeout(Duration::from_millis(1), look.share(std::future::pending())).await.is_err()
        );
        assert_eq!(*look.share(async { Ok(7) }).await.unwrap(), 7);
    }
}
