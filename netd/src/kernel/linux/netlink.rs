//! The rtnetlink socket.

use rtnetlink::Handle;
use shared::fault::{Fault, Kind};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// A socket that is served on the present runtime; clones share it. One that has failed is replaced: the library gives it
/// up after the first message that the kernel has no room for, and answers nothing any more.
#[derive(Clone, Debug)]
pub struct Netlink {
    connection: Arc<Mutex<Connection>>,
    failures: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Connection {
    handle: Handle,
    ended: Arc<AtomicBool>,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the kernel gives none.
    pub fn new() -> Result<Self, Fault> {
        let failures = Arc::default();
        Ok(Self { connection: Arc::new(Mutex::new(Connection::new(&failures)?)), failures })
    }

    /// Does what asks the kernel. Where the socket failed meanwhile it has failed: to the library an answer that is cut off
    /// is one that is complete, so that links would seem to be gone and changes to be made.
    ///
    /// # Errors
    /// INTERNAL if the socket failed; else what `work` says.
    pub async fn whole<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let before = self.failures.load(Ordering::Acquire);
        let result = work.await;
        if result.is_ok() && self.failures.load(Ordering::Acquire) != before {
            return Err(Fault::new(Kind::Internal, "NETLINK", "the rtnetlink socket has failed"));
        }
        result
    }

    /// What requests are made by.
    pub fn handle(&self) -> Handle {
        // Each change of the connection is one assignment.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.ended.load(Ordering::Acquire) {
            match Connection::new(&self.failures) {
                Ok(new) => {
                    tracing::warn!("the rtnetlink socket has failed; opened another one");
                    *connection = new;
                }
                // The request will fail, and say so.
                Err(fault) => tracing::warn!(error = fault.chain(), "no rtnetlink socket"),
            }
        }
        connection.handle.clone()
    }
}

impl Connection {
    fn new(failures: &Arc<AtomicU64>) -> Result<Self, Fault> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(|e| {
            Fault::new(Kind::FailedPrecondition, "NETLINK", "cannot open an rtnetlink socket").cause(&e)
        })?;
        let ended = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let (ended, failures) = (Arc::clone(&ended), Arc::clone(failures));
            async move {
                (&mut connection).await;
                // Before whoever waits for an answer hears that there will be none.
                failures.fetch_add(1, Ordering::Release);
                ended.store(true, Ordering::Release);
                drop(connection);
            }
        });
        Ok(Self { handle, ended })
    }
}
