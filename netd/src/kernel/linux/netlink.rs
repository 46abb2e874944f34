//! The rtnetlink socket.

use rtnetlink::Handle;
use shared::fault::{Fault, Kind};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// A socket that is served on the present runtime; clones share it. One that has failed is replaced: the library gives it
/// up after the first message that the kernel has no room for, and answers nothing any more.
#[derive(Clone, Debug)]
pub struct Netlink(Arc<Mutex<Connection>>);

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
        Ok(Self(Arc::new(Mutex::new(Connection::new()?))))
    }

    /// What requests are made by.
    pub fn handle(&self) -> Handle {
        // Each change of the connection is one assignment.
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.ended.load(Ordering::Acquire) {
            match Connection::new() {
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
    fn new() -> Result<Self, Fault> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(|e| {
            Fault::new(Kind::FailedPrecondition, "NETLINK", "cannot open an rtnetlink socket").cause(&e)
        })?;
        let ended = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let ended = Arc::clone(&ended);
            async move {
                (&mut connection).await;
                // Before whoever waits for an answer hears that there will be none.
                ended.store(true, Ordering::Release);
                drop(connection);
            }
        });
        Ok(Self { handle, ended })
    }
}
