//! Which ports are ours, on disk before they are made and until they are surely gone.
//!
//! A stop never waits long for netd: what cannot be deleted now is deleted later, again and again, by one task. Nor does
//! a start wait for the ports of other machines: deletes wait for room in netd's rate of changes one at a time.

use super::{Port, PortRequest, Ports, netd::paced};
use serde::{Deserialize, Serialize};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    steps,
    store::{Op, Store},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;
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
    work: Mutex<Work>,
    wake: Notify,
    freed: Notify,
}

#[derive(Debug)]
struct Work {
    /// Ports to be deleted.
    pending: Pending,
    /// Names of ports that are being made or deleted: one that is made anew under the same name cannot be hit by an old
    /// delete.
    claimed: BTreeSet<String>,
}

/// Nobody else makes or deletes the port of this name.
struct Claim<'a, P: Ports> {
    releases: &'a Releases<P>,
    resource: &'a str,
}

impl<P: Ports> Drop for Claim<'_, P> {
    fn drop(&mut self) {
        self.releases.work().claimed.remove(self.resource);
        self.releases.freed.notify_waiters();
    }
}

impl<P: Ports> Releases<P> {
    /// With the ports whose machines do not run, `orphans`, to be deleted first.
    #[must_use]
    pub fn new(store: Store, ports: P, orphans: Pending) -> Self {
        let work = Work { pending: orphans, claimed: BTreeSet::new() };
        Self { store, ports, work: Mutex::new(work), wake: Notify::new(), freed: Notify::new() }
    }

    /// Never held while anything is waited for.
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_claim<'a>(&'a self, resource: &'a str) -> Option<Claim<'a, P>> {
        let free = self.work().claimed.insert(resource.to_owned());
        free.then(|| Claim { releases: self, resource })
    }

    async fn claim<'a>(&'a self, resource: &'a str) -> Claim<'a, P> {
        loop {
            // Before the look: what is freed right after it is noticed.
            let freed = self.freed.notified();
            if let Some(claim) = self.try_claim(resource) {
                return claim;
            }
            freed.await;
        }
    }

    /// Makes a port; its record is durable before netd hears of it. A port of that name which was to be deleted goes
    /// first: it may have been changed since it was made, and would not be the one that is asked for.
    ///
    /// # Errors
    /// What the store or netd say. The record stays: `release` it.
    pub async fn create(&self, request: &PortRequest) -> Result<Port, Fault> {
        // All of it in one deadline: a delete that waits for a hanging netd has the name.
        let made = tokio::time::timeout(CREATE, async {
            let _claim = self.claim(&request.resource).await;
            let pending = self.work().pending.get(&request.resource).cloned();
            if let Some(uid) = pending {
                paced(|| self.delete(&request.resource, uid.as_deref())).await?;
                self.work().pending.remove(&request.resource);
            }
            let record = PortRecord { vm: request.vm.clone(), uid: None };
            self.store.commit(vec![Op::put(KIND_PORT, &request.resource, &record)?]).await?;
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

    /// Deletes ports now if netd is there and has room for it, and later if not. Their uids are those recorded.
    pub async fn release(&self, resources: &[String]) {
        if !self.note(resources).await {
            return;
        }
        for resource in resources {
            if let Err(fault) = self.delete_noted(resource).await {
                tracing::warn!(error = fault.chain(), "a port could not be deleted; it is tried again");
                self.wake.notify_one();
                if stops_the_rest(&fault) {
                    return;
                }
            }
        }
    }

    /// Leaves the delete of ports to `run`, where netd is known not to answer.
    pub async fn release_later(&self, resources: &[String]) {
        if self.note(resources).await {
            self.wake.notify_one();
        }
    }

    /// Whether they can be deleted now.
    async fn note(&self, resources: &[String]) -> bool {
        if resources.is_empty() {
            return false;
        }
        let recorded: BTreeMap<String, PortRecord> = match self.store.load(KIND_PORT).await {
            Ok(loaded) => loaded.records.into_iter().collect(),
            Err(fault) => {
                // The next vmd finds them in the records.
                tracing::error!(error = fault.chain(), "cannot read which ports there are");
                return false;
            }
        };
        let mut work = self.work();
        for resource in resources {
            if let Some(record) = recorded.get(resource) {
                work.pending.insert(resource.clone(), record.uid.clone());
            }
        }
        true
    }

    /// Deletes what could not be deleted at once, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut pause = FIRST_RETRY;
        loop {
            let failed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                deleted = self.delete_all() => deleted.is_err(),
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
    async fn delete_all(&self) -> Result<(), Fault> {
        let mut result = Ok(());
        let resources: Vec<String> = self.work().pending.keys().cloned().collect();
        for resource in resources {
            match paced(|| self.delete_noted(&resource)).await {
                Ok(()) => {}
                Err(fault) if stops_the_rest(&fault) => return Err(fault),
                Err(fault) => result = Err(fault),
            }
        }
        result
    }

    /// Deletes a port if it is to be deleted. One that somebody else has in hand is left to them.
    async fn delete_noted(&self, resource: &str) -> Result<(), Fault> {
        let Some(_claim) = self.try_claim(resource) else { return Ok(()) };
        let Some(uid) = self.work().pending.get(resource).cloned() else { return Ok(()) };
        let deleted = tokio::time::timeout(PATIENCE, self.delete(resource, uid.as_deref()));
        deleted.await.unwrap_or_else(|_| {
            Err(Fault::new(Kind::Unavailable, "NETD_TIMEOUT", "netd did not answer in time"))
        })?;
        self.store.commit(vec![Op::delete(KIND_PORT, resource)]).await?;
        self.work().pending.remove(resource);
        Ok(())
    }
}

/// Whether the next port would fare no better.
fn stops_the_rest(fault: &Fault) -> bool {
    fault.kind() == Kind::Unavailable || fault.reason() == "TOO_MANY_CHANGES"
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
        releases.delete_all().await.unwrap();
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
    async fn a_delete_that_waits_for_netd_holds_up_no_start_of_another_machine() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        let releases = Releases::new(store.clone(), fake.clone(), BTreeMap::new());
        let old = PortRequest { resource: "networks/lan/ports/old-0".into(), ..request() };
        releases.create(&old).await.unwrap();
        fake.hang(&old.resource);
        let new = request();
        tokio::select! {
            biased;
            () = releases.release(std::slice::from_ref(&old.resource)) => panic!("a start waits for a delete"),
            made = releases.create(&new) => { made.unwrap(); }
        }
        // A start of that machine does wait: what it made could be hit.
        let claim = releases.try_claim(&old.resource).unwrap();
        assert!(futures_util::poll!(std::pin::pin!(releases.create(&old))).is_pending());
        drop(claim);
        assert_eq!(recorded(&store).await, 2);
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_room_in_netds_rate_of_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = FakePorts::default();
        let releases = Releases::new(store.clone(), fake.clone(), BTreeMap::new());
        let other = PortRequest { resource: "networks/lan/ports/web-1".into(), ..request() };
        for port in [&request(), &other] {
            releases.create(port).await.unwrap();
        }
        fake.crowd(4);
        releases.release(&[request().resource, other.resource]).await;
        assert_eq!((fake.ports().len(), fake.crowded()), (2, 3), "it has asked once");
        // The one task waits for as long as netd says, and deletes both.
        releases.delete_all().await.unwrap();
        assert_eq!((fake.ports().len(), fake.crowded(), recorded(&store).await), (0, 0, 0));
        // A start waits for room as well.
        releases.create(&request()).await.unwrap();
        fake.crowd(1);
        releases.release(&[request().resource]).await;
        fake.crowd(2);
        releases.create(&request()).await.unwrap();
        assert_eq!(fake.crowded(), 0);
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
