//! Who gets a connection.

use super::{
    connection::{Admitted, Connection, Place},
    limits::Limits,
    words,
};
use crate::{
    access::Subordinates,
    fault::{Fault, Kind},
    slots::{Full, Slots},
    socket::{Bound, PeerStream},
};
use rustix::io::Errno;
use std::{fs::File, io, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected as _;

/// Pause of the loop when descriptors have run out; without it the loop would spin.
const BACKOFF: Duration = Duration::from_millis(50);
/// How long who is told of that may take: nobody else is told meanwhile.
const SHORT_REFUSAL: Duration = Duration::from_millis(250);

/// The accept loop.
pub(super) struct Door {
    bound: Bound,
    limits: Limits,
    slots: Slots,
    admin: u32,
    subordinates: Subordinates,
    refusals: Arc<Semaphore>,
    /// Given up for a client that is to hear that there are no descriptors.
    spare: Option<File>,
    /// How often accept(2) has failed since it last worked.
    failures: u64,
}

impl Door {
    /// `admin` is privileged besides root; 0 if nobody is.
    pub fn new(bound: Bound, limits: Limits, admin: u32) -> Self {
        let slots = Slots::new(limits.connections, admin);
        let refusals = Arc::new(Semaphore::new(limits.refusals));
        Self {
            bound,
            limits,
            slots,
            admin,
            subordinates: Subordinates::default(),
            refusals,
            spare: spare(),
            failures: 0,
        }
    }

    /// The connections; never ends.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        futures_util::stream::unfold(self, |mut door| async move {
            let next = door.next().await;
            Some((Ok(next), door))
        })
    }

    async fn next(&mut self) -> Connection {
        loop {
            self.spare = self.spare.take().or_else(spare);
            match self.bound.accept().await {
                Ok(stream) => {
                    self.recovered();
                    if let Some(connection) = self.admit(stream) {
                        return connection;
                    }
                }
                Err(error) => {
                    self.failed(&error);
                    let exhausted = matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE));
                    // Its descriptor is the client's from here on.
                    if exhausted && self.spare.take().is_some() {
                        let accepted = tokio::time::timeout(BACKOFF, self.bound.accept()).await;
                        if let Ok(Ok(stream)) = accepted {
                            return self.refuse(stream, no_descriptors(), None);
                        }
                    }
                    tokio::time::sleep(BACKOFF).await;
                }
            }
        }
    }

    /// A connection for a client, or one that tells it why it has none; nothing, if too many are told that already.
    fn admit(&mut self, stream: PeerStream) -> Option<Connection> {
        let info = stream.connect_info();
        let uid = info.as_ref().map_or(u32::MAX, |peer| peer.uid);
        // One user has 65,536 of them, each of which would otherwise have what one user may.
        let subordinate = uid != 0 && uid != self.admin && self.subordinates.have(uid);
        let account = if subordinate { words::SUBORDINATES } else { uid };
        match self.slots.take(account) {
            Ok(slot) => {
                let admitted =
                    Admitted { info, uid, account, refused: None, close: CancellationToken::new() };
                let place = Place::Taken { _slot: slot };
                Some(Connection::new(stream, admitted, place, (self.limits.handshake, self.limits.unread())))
            }
            Err(full) => {
                let permit = Arc::clone(&self.refusals).try_acquire_owned().ok()?;
                tracing::debug!(uid, ?full, "a connection is refused");
                Some(self.refuse(stream, too_many(account, full), Some(permit)))
            }
        }
    }

    fn refuse(&self, stream: PeerStream, why: Fault, permit: Option<OwnedSemaphorePermit>) -> Connection {
        let info = stream.connect_info();
        let uid = info.as_ref().map_or(u32::MAX, |peer| peer.uid);
        let deadline = if permit.is_some() { self.limits.refusal } else { SHORT_REFUSAL };
        let admitted = Admitted {
            info,
            uid,
            account: uid,
            refused: Some(Arc::new(why)),
            close: CancellationToken::new(),
        };
        Connection::new(stream, admitted, Place::Refused { _permit: permit }, (deadline, deadline))
    }

    /// Says it once, however long it goes on.
    fn failed(&mut self, error: &io::Error) {
        if self.failures == 0 {
            tracing::warn!(%error, "cannot accept connections");
        }
        self.failures += 1;
    }

    fn recovered(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "connections are accepted again");
            self.failures = 0;
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn too_many(uid: u32, full: Full) -> Fault {
    let (limit, value, message) = match full {
        Full::Each(most) => (
            "connections_per_uid",
            most,
            format!("{} {most} connections to this daemon, which is the most for one user", words::have(uid)),
        ),
        Full::All(most) => {
            let whose = if uid == 0 { "" } else { " without root" };
            let open = format!("{most} connections to this daemon are open, which is the most{whose}");
            ("connections", most, open)
        }
    };
    let fault = Fault::new(Kind::ResourceExhausted, "TOO_MANY_CONNECTIONS", message).hint(
        "close some: `ss --unix --processes` shows who holds them; a program needs one for all its calls",
    );
    let fault = if uid == 0 { fault } else { fault.hint("some are always kept for root") };
    fault.meta("limit", limit).meta("value", value)
}

fn no_descriptors() -> Fault {
    Fault::new(
        Kind::ResourceExhausted,
        "NO_DESCRIPTORS",
        "this daemon may open no more files, and has none left for a connection",
    )
    .hint("try again later; if it stays so, start the daemon with more: LimitNOFILE= of its unit, or `ulimit -n`")
}
