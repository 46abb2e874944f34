//! An orderly end: one token that every stream and task watches.

use std::{future::Future, io, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT.
///
/// # Errors
/// If the process cannot install signal handlers.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

/// How long a task that ended by a defect rests before it begins again.
const REST: Duration = Duration::from_secs(1);

/// Keeps a task of the daemon's own up until `stop`: one that panics is begun again, since a daemon that serves on without
/// it would keep its promises no longer, and nobody would notice.
pub async fn keep_up<T>(what: &'static str, stop: CancellationToken, begin: impl Fn() -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut task = tokio::spawn(begin());
        let ended = tokio::select! {
            ended = &mut task => ended,
            () = stop.cancelled() => {
                task.abort();
                return;
            }
        };
        match ended {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(what, %error, "a defect ended a task of the daemon; it begins again")
            }
        }
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_task_that_panics_begins_again_and_one_that_ends_does_not() {
        static BEGUN: AtomicU32 = AtomicU32::new(0);
        keep_up("test", CancellationToken::new(), || async {
            assert_eq!(BEGUN.fetch_add(1, Ordering::SeqCst), 2, "the third time is the good one");
        })
        .await;
        assert_eq!(BEGUN.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn the_daemons_end_ends_it() {
        let stop = CancellationToken::new();
        let kept = tokio::spawn(keep_up("test", stop.clone(), std::future::pending));
        stop.cancel();
        kept.await.unwrap();
    }
}
