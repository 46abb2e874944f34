//! Tells which addresses were given out and came back, and which networks are not served.
//!
//! dnsmasq tells nobody but its lease file. That is looked at twice a second, and read where it is another one. What
//! was told is recorded along with the event, so that what changed while netd was away is told, too.

use super::Reconciler;
use crate::{
    kernel::Kernel,
    services::{Lease, Stamp, Status},
};
use serde::{Deserialize, Serialize};
use shared::{
    events::{EventKind, News},
    fault::Fault,
    mac::Mac,
    name::Name,
    store::Op,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const LEASE: &str = "lease";
/// How often to look.
const TICK: Duration = Duration::from_millis(500);
/// How long nothing more is told of an address: a guest that asks and gives back all the time must not fill the log.
const QUIET: Duration = Duration::from_secs(10);

type Key = (Name, IpAddr);

/// A lease as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    network: Name,
    address: IpAddr,
    mac: Option<Mac>,
    /// The port that it is reserved for, else the network.
    resource: String,
}

impl Told {
    fn key(&self) -> Key {
        (self.network.clone(), self.address)
    }

    fn id(&self) -> String {
        format!("networks/{}/leases/{}", self.network, self.address)
    }

    fn words(&self) -> String {
        self.mac.map_or_else(|| self.address.to_string(), |mac| format!("{} to {mac}", self.address))
    }
}

/// What was told, and what was seen last.
#[derive(Debug, Default)]
struct Ledger {
    leases: BTreeMap<Key, Told>,
    /// Until when nothing is told of an address.
    quiet: BTreeMap<Key, Instant>,
    /// Told, and not in the file at the last look: dnsmasq may just be writing it.
    missing: BTreeSet<Key>,
    stamps: BTreeMap<Name, Option<Stamp>>,
    failed: BTreeMap<Name, String>,
}

impl Ledger {
    /// What is to be told and recorded, now that these are the leases of a network, with the resource of each.
    fn see(
        &mut self,
        network: &Name,
        leases: &[(Lease, String)],
        now: Instant,
    ) -> Result<(Vec<Op>, Vec<News>), Fault> {
        self.quiet.retain(|_, until| *until > now);
        let there: BTreeMap<Key, Told> = leases
            .iter()
            .map(|(lease, resource)| Told {
                network: network.clone(),
                address: lease.address,
                mac: lease.mac,
                resource: resource.clone(),
            })
            .map(|told| (told.key(), told))
            .collect();
        let same = |told: &Told, other: Option<&Told>| other.is_some_and(|other| other.mac == told.mac);
        let ended: Vec<Told> = self
            .leases
            .values()
            .filter(|told| told.network == *network && !same(told, there.get(&told.key())))
            .cloned()
            .collect();
        let given = there.values().filter(|told| !same(told, self.leases.get(&told.key())));
        let before = std::mem::take(&mut self.missing);
        self.missing = before.iter().filter(|key| key.0 != *network).cloned().collect();
        self.missing.extend(ended.iter().map(Told::key));
        let ended = ended.into_iter().filter(|told| before.contains(&told.key()));
        let (mut ops, mut news, mut loud) = (Vec::new(), Vec::new(), Vec::new());
        for told in ended.filter(|told| !self.quiet.contains_key(&told.key())) {
            self.missing.remove(&told.key());
            ops.push(Op::delete(LEASE, told.id()));
            news.push(News::of(EventKind::LeaseEnded, told.resource.clone(), told.address.to_string()));
            loud.push((told.key(), None));
        }
        for told in given.filter(|told| !self.quiet.contains_key(&told.key())) {
            // The former holder's end is told along with it.
            self.missing.remove(&told.key());
            ops.push(Op::put(LEASE, told.id(), told)?);
            news.push(News::of(EventKind::Leased, told.resource.clone(), told.words()));
            loud.push((told.key(), Some(told.clone())));
        }
        for (key, told) in loud {
            self.quiet.insert(key.clone(), now + QUIET);
            match told {
                Some(told) => drop(self.leases.insert(key, told)),
                None => drop(self.leases.remove(&key)),
            }
        }
        Ok((ops, news))
    }

    /// Whether the leases of a network need no look.
    fn settled(&mut self, network: &Name, stamp: Option<Stamp>) -> bool {
        // What was not told because it was too soon, or not sure, may still be to be told.
        let open = self.quiet.keys().chain(&self.missing).any(|key| key.0 == *network);
        let known = self.stamps.insert(network.clone(), stamp) == Some(stamp);
        known && !open
    }

    /// What is to be told of a network's service.
    fn serve(&mut self, network: &Name, status: &Status) -> Option<News> {
        let resource = format!("networks/{network}");
        match (status, self.failed.get(network)) {
            (Status::Failed(why), before) if before != Some(why) => {
                let first = before.is_none();
                self.failed.insert(network.clone(), why.clone());
                first.then(|| News::of(EventKind::Degraded, resource, why.clone()))
            }
            (Status::Running(_), Some(_)) => {
                let why = self.failed.remove(network)?;
                Some(News::of(EventKind::Recovered, resource, format!("no longer so: {why}")))
            }
            _ => None,
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Tells what becomes of leases and services, until `stop`.
    pub async fn attend(&self, stop: CancellationToken) {
        let mut ledger = Ledger::default();
        match self.0.store.load::<Told>(LEASE).await {
            Ok(known) => {
                ledger.leases = known.records.into_iter().map(|(_, told)| (told.key(), told)).collect()
            }
            Err(fault) => tracing::warn!(error = fault.chain(), "cannot read which leases were told"),
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(fault) = self.look(&mut ledger, Instant::now()) {
                tracing::warn!(error = fault.chain(), "cannot tell of leases");
            }
        }
    }

    fn look(&self, ledger: &mut Ledger, now: Instant) -> Result<(), Fault> {
        let served: Vec<Name> = {
            let records = self.read();
            let networks = records.desired.networks.values().filter(|network| network.services().is_some());
            networks.map(|network| network.name.clone()).collect()
        };
        let mut names = served.clone();
        names.extend(ledger.leases.keys().map(|key| key.0.clone()));
        names.sort();
        names.dedup();
        ledger.stamps.retain(|name, _| names.binary_search(name).is_ok());
        ledger.failed.retain(|name, _| served.binary_search(name).is_ok());
        for name in names {
            if served.binary_search(&name).is_ok() {
                let news: Vec<_> = ledger.serve(&name, &self.0.services.status(&name)).into_iter().collect();
                if !news.is_empty() {
                    self.0.store.tell(Vec::new(), news);
                }
            }
            if ledger.settled(&name, self.0.services.lease_stamp(&name)) {
                continue;
            }
            let (ops, news) = ledger.see(&name, &self.held(&name), now)?;
            if !news.is_empty() {
                self.0.store.tell(ops, news);
            }
        }
        Ok(())
    }

    /// The leases of a network, and the resource that each is about.
    fn held(&self, network: &Name) -> Vec<(Lease, String)> {
        let leases = self.0.services.leases(network);
        let records = self.read();
        let ports: BTreeMap<IpAddr, String> = records
            .desired
            .ports_of(network)
            .flat_map(|port| port.addresses().map(move |address| (address, port.resource())))
            .collect();
        let of = |lease: &Lease| {
            ports.get(&lease.address).cloned().unwrap_or_else(|| format!("networks/{network}"))
        };
        leases.into_iter().map(|lease| (lease.clone(), of(&lease))).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn lease(address: &str, mac: &str, expires: i64) -> (Lease, String) {
        let lease = Lease { address: address.parse().unwrap(), mac: mac.parse().ok(), expires };
        (lease, "networks/lan/ports/web".to_owned())
    }

    fn kinds(told: Result<(Vec<Op>, Vec<News>), Fault>) -> Vec<EventKind> {
        let (ops, news) = told.unwrap();
        assert_eq!(ops.len(), news.len(), "what is told is recorded");
        news.into_iter().map(|news| news.kind).collect()
    }

    #[test]
    fn what_is_given_and_ended_is_told_once_and_renewals_are_not() {
        let (mut ledger, lan, mut now) = (Ledger::default(), "lan".parse().unwrap(), Instant::now());
        let first = [lease("10.0.0.2", "52:54:00:00:00:01", 100), lease("fd00::2", "", 100)];
        assert_eq!(kinds(ledger.see(&lan, &first, now)), [EventKind::Leased, EventKind::Leased]);
        now += QUIET;
        let renewed = [lease("10.0.0.2", "52:54:00:00:00:01", 900), lease("fd00::2", "", 900)];
        assert_eq!(kinds(ledger.see(&lan, &renewed, now)), []);
        assert_eq!(kinds(ledger.see(&lan, &[], now)), [], "the file is being written");
        assert_eq!(kinds(ledger.see(&lan, &renewed, now)), []);
        let fewer = &renewed[..1];
        assert_eq!(kinds(ledger.see(&lan, fewer, now)), []);
        assert!(!ledger.settled(&lan, None) && !ledger.settled(&lan, None), "one more look");
        assert_eq!(kinds(ledger.see(&lan, fewer, now)), [EventKind::LeaseEnded]);
        now += QUIET;
        let moved = [lease("10.0.0.2", "52:54:00:00:00:02", 900)];
        assert_eq!(kinds(ledger.see(&lan, &moved, now)), [EventKind::Leased]);
        let other = "other".parse().unwrap();
        assert_eq!(kinds(ledger.see(&other, &[], now)), [], "of another network nothing ended");
        assert_eq!(kinds(ledger.see(&lan, &[], now + QUIET)), []);
        assert_eq!(kinds(ledger.see(&lan, &[], now + QUIET)), [EventKind::LeaseEnded]);
        assert!(ledger.missing.is_empty());
        assert!(ledger.leases.is_empty());
    }

    #[test]
    fn a_guest_that_asks_and_gives_back_all_the_time_is_told_of_now_and_then() {
        let (mut ledger, lan, begin) = (Ledger::default(), "lan".parse().unwrap(), Instant::now());
        let held = [lease("10.0.0.2", "52:54:00:00:00:01", 100)];
        let mut told = 0;
        for tick in 0..1000 {
            let leases: &[_] = if tick % 4 < 2 { &held } else { &[] };
            told += kinds(ledger.see(&lan, leases, begin + TICK * tick)).len();
        }
        // 500 s: one thing each 10 s.
        assert!((2..=51).contains(&told), "{told}");
        let mut end = begin + TICK * 1000;
        for _ in 0..2 {
            end += QUIET;
            ledger.see(&lan, &[], end).unwrap();
        }
        assert!(ledger.leases.is_empty(), "and in the end it is as it is");
    }

    #[test]
    fn a_service_that_fails_and_runs_again_is_told_of_once() {
        let (mut ledger, lan): (_, Name) = (Ledger::default(), "lan".parse().unwrap());
        let mut serve = |status| ledger.serve(&lan, &status).map(|news| news.kind);
        assert_eq!(serve(Status::Running(7)), None);
        assert_eq!(serve(Status::Failed("a".into())), Some(EventKind::Degraded));
        assert_eq!(serve(Status::Failed("b".into())), None);
        assert_eq!(serve(Status::Starting), None);
        assert_eq!(serve(Status::Running(8)), Some(EventKind::Recovered));
        assert_eq!(serve(Status::Running(8)), None);
    }
}
