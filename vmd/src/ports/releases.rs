//! Which ports are ours, on disk before they are made and until they are surely gone.
//!
//! A stop never waits long for netd: what cannot be deleted now is deleted later, again and again, by one task.

use super::{Port, PortRequest, Ports};
use serde::{Deserialize, Serialize};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    steps,
    store::{Op, Store},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio_util::sync::CancellationToken;

/// Store kind of `PortRecord`; the id is the port's resource name.
pub const KIND_PORT: &str = "port";
/// How long the end of a machine may wait for one port.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a start may wait for one port.
const CREATE: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Resource names and, where they are known, uids.
type Pending = BTreeMap<String, Option<String>>;

/// A port that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// The machine it is for.
    pub vm: Name,
    /// netd's uid; `None` if the answer to the create never came.
    pub uid: Option<String>,
}

/// Makes ports with a record, and sees to their end.
#[derive(Debug)]
pub struct Releases<P> {
    store: Store,
    ports: P,
    /// Ports to be deleted. Held across a delete, so that a port which is made anew under the same name cannot be
    /// hit by an old delete.
    pending: Mutex<Pending>,
    wake: Notify,
}

impl<P: Ports> Releases<P> {
    /// With the ports whose machines do not run, `orphans`, to be deleted first.
    #[must_use]
    pub fn new(store: Store, ports: P, orphans: Pending) -> Self {
        Self { store, ports, pending: Mutex::new(orphans), wake: Notify::new() }
    }

    /// Makes a port; its record is durable before netd hears of it. A port of that name which was to be deleted goes
    /// first: it may have been changed since it was made, and would not be the one that is asked for.
    ///
    /// # Errors
    /// What the store or netd say. The record stays: `release` it.
    pub async fn create(&self, request: &PortRequest) -> Result<Port, Fault> {
        // All of it in one deadline: a delete that waits for a hanging netd holds the lock.
        let made = tokio::time::timeout(CREATE, async {
            let mut pending = self.pending.lock().await;
            if let Some(uid) = pending.get(&request.resource) {
                self.delete(&request.resource, uid.as_deref()).await?;
                pending.remove(&request.resource);
            }
            let record = PortRecord { vm: request.vm.clone(), uid: None };
            self.store.commit(vec![Op::put(KIND_PORT, &request.resource, &record)?]).await?;
            drop(pending);
            match steps::step(|| "create the port".to_owned(), || self.ports.create(request)).await {
                // Somebody else made it.
                Err(fault) if fault.kind() == Kind::AlreadyExists => {
                    self.store.commit(vec![Op::delete(KIND_PORT, &request.resource)]).await?;
                    Err(fault)
                }
                result => result,
            }
        });
        let port = made.await.unwrap_or_else(|_| {
            let message =
                format!("netd did not make port `{}` within {} s", request.resource, CREATE.as_secs());
            Err(Fault::new(Kind::Unavailable, "NETD_TIMEOUT", message)
                .hint("netd runs but does not answer: look at its log, or restart it"))
        })?;
        let record = PortRecord { vm: request.vm.clone(), uid: Some(port.uid.clone()) };
        self.store.commit(vec![Op::put(KIND_PORT, &request.resource, &record)?]).await?;
        Ok(port)
    }

    async fn delete(&self, resource: &str, uid: Option<&str>) -> Result<(), Fault> {
        steps::step(|| "delete the port".to_owned(), || self.ports.delete(resource, uid)).await
    }

    /// Deletes ports now if netd is there, and later if it is not. Their uids are those recorded.
    pub async fn release(&self, resources: &[String]) {
        let Some(mut pending) = self.note(resources).await else { return };
        if let Err(fault) = self.delete_all(&mut pending).await {
            tracing::warn!(error = fault.chain(), "ports could not be deleted; it is tried again");
            self.wake.notify_one();
        }
    }

    /// Leaves the delete of ports to `run`, where netd is known not to answer.
    pub async fn release_later(&self, resources: &[String]) {
        if self.note(resources).await.is_some() {
            self.wake.notify_one();
        }
    }

    async fn note(&self, resources: &[String]) -> Option<MutexGuard<'_, Pending>> {
        if resources.is_empty() {
            return None;
        }
        let recorded: BTreeMap<String, PortRecord> = match self.store.load(KIND_PORT).await {
            Ok(loaded) => loaded.records.into_iter().collect(),
            Err(fault) => {
                // The next vmd finds them in the records.
                tracing::error!(error = fault.chain(), "cannot read which ports there are");
                return None;
            }
        };
        let mut pending = self.pending.lock().await;
        for resource in resources {
            if let Some(record) = recorded.get(resource) {
                pending.insert(resource.clone(), record.uid.clone());
            }
        }
        Some(pending)
    }

    /// Deletes what could not be deleted at once, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut pause = FIRST_RETRY;
        loop {
            let failed = {
                let mut pending = self.pending.lock().await;
                self.delete_all(&mut pending).await.is_err()
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause), if failed => {}
                () = self.wake.notified(), if !failed => {}
            }
            pause = if failed { (pause * 2).min(LAST_RETRY) } else { FIRST_RETRY };
        }
    }

    /// Stops at the first sign that netd is not there; one port that netd refuses to delete does not stop the rest.
    async fn delete_all(&self, pending: &mut Pending) -> Result<(), Fault> {
        let mut result = Ok(());
        for (resource, uid) in pending.clone() {
            let deleted =
                tokio::time::timeout(PATIENCE, self.delete(&resource, uid.as_deref())).await.unwrap_or_else(
                    |_| Err(Fault::new(Kind::Unavailable, "NETD_TIMEOUT", "netd did not answer in time")),
                );
            match deleted {
                Ok(()) => {
                    self.store.commit(vec![Op::delete(KIND_PORT, &resource)]).await?;
                    pending.remove(&resource);
                }
                Err(fault) if fault.kind() == Kind::Unavailable => return Err(fault),
                Err(fault) => result = Err(fault),
            }
        }
        result
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::ports::FakePorts;

    fn request() -> PortRequest {
        PortRequest {
            vm: "web".parse().unwrap(),
            tenant: 1000,
            resource: "networks/lan/ports/web-0".into(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            hostname: None,
            options: Default::default(),
        }
    }

    async fn recorded(store: &Store) -> usize {
        store.load::<PortRecord>(KIND_PORT).await.unwrap().records.len()
    }

    #[tokio::test]
    async fn a_port_that_cannot_be_deleted_is_deleted_when_netd_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        let releases = Releases::new(store.clone(), fake.clone(), BTreeMap::new());
        releases.create(&request()).await.unwrap();
        fake.set_down(true);
        releases.release(&[request().resource]).await;
        assert_eq!((fake.ports().len(), recorded(&store).await), (1, 1));
        fake.set_down(false);
        let stop = CancellationToken::new();
        let gone = async {
            while recorded(&store).await != 0 {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        tokio::join!(releases.run(stop.clone()), gone);
        assert!(fake.ports().is_empty());
    }

    #[tokio::test]
    async fn a_port_that_is_made_again_is_not_hit_by_the_old_delete() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        let releases = Releases::new(store.clone(), fake.clone(), BTreeMap::new());
        releases.create(&request()).await.unwrap();
        fake.set_down(true);
        releases.release(&[request().resource]).await;
        fake.set_down(false);
        releases.create(&request()).await.unwrap();
        releases.release(&[]).await;
        let mut pending = releases.pending.lock().await;
        releases.delete_all(&mut pending).await.unwrap();
        assert_eq!(fake.ports(), [request().resource]);
    }

    #[tokio::test]
    async fn a_port_that_somebody_else_made_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        fake.take(&request().resource);
        let releases = Releases::new(store.clone(), fake.clone(), BTreeMap::new());
        assert_eq!(releases.create(&request()).await.unwrap_err().kind(), Kind::AlreadyExists);
        releases.release(&[request().resource]).await;
        assert_eq!((fake.ports(), recorded(&store).await), (vec![request().resource], 0));
        // Nor where one of our own, of the same name, was to be deleted and is gone.
        let old = BTreeMap::from([(request().resource, Some("uid-1".to_owned()))]);
        let releases = Releases::new(store.clone(), fake.clone(), old);
        assert_eq!(releases.create(&request()).await.unwrap_err().kind(), Kind::AlreadyExists);
        releases.release(&[request().resource]).await;
        assert_eq!((fake.ports(), recorded(&store).await), (vec![request().resource], 0));
    }

    #[tokio::test]
    async fn a_port_that_was_changed_and_is_still_there_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        let releases = Releases::new(store.clone(), fake.clone(), BTreeMap::new());
        let before = releases.create(&request()).await.unwrap();
        fake.change(&request().resource);
        // netd is not there when the machine stops, nor at its next start; the port is not forgotten.
        fake.set_down(true);
        releases.release(&[request().resource]).await;
        assert_eq!(releases.create(&request()).await.unwrap_err().kind(), Kind::Unavailable);
        fake.set_down(false);
        let after = releases.create(&request()).await.unwrap();
        assert_ne!(before.uid, after.uid);
        releases.release(&[request().resource]).await;
        assert_eq!((fake.ports(), recorded(&store).await), (vec![], 0));
    }

    #[tokio::test]
    async fn the_record_is_there_before_netd_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        fake.set_down(true);
        let releases = Releases::new(store.clone(), fake, BTreeMap::new());
        assert_eq!(releases.create(&request()).await.unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(recorded(&store).await, 1);
    }
}
