//! What dnsmasq of one network reads, and what it has to be told of it.
//!
//! Apart from the process, so that a port comes and goes at once while the process is being replaced: one that starts
//! reads what is there, and one that runs notices what comes.

use super::{
    engine::Settings,
    folder::{Entry, Folder},
    lease::{Former, Gone},
    unit::Wanted,
};
use shared::{fault::Fault, name::Name};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

/// Least time between two reloads that nobody waits for: each reads the files of all ports (23 ms for 1,000), and
/// nobody is answered meanwhile.
const LEAST_PAUSE: Duration = Duration::from_millis(250);

/// What a process that serves has to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// It has to read its files again.
    pub reload: bool,
    /// Leases that have to go.
    pub gone: Gone,
    /// Fields of reservations that it has read and that are gone: the first to have one of them has it.
    stale: BTreeSet<String>,
    /// A port that is there waits for it.
    pub urgent: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        !self.reload && self.gone.is_empty()
    }

    /// The process reads its files again.
    pub fn reloaded(&mut self) {
        self.reload = false;
        self.stale.clear();
    }
}

/// The files of one network.
#[derive(Debug)]
pub struct Files {
    folder: Folder,
    wanted: Option<Wanted>,
    entries: BTreeMap<Name, Entry>,
    changes: Changes,
    taken: Option<Instant>,
}

impl Files {
    /// Those of a folder, which is not looked at yet.
    pub fn new(folder: Folder) -> Self {
        Self { folder, wanted: None, entries: BTreeMap::new(), changes: Changes::default(), taken: None }
    }

    /// What should run; `None` before the first `bring`.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// Nothing should run any more.
    pub fn unwant(&mut self) {
        self.wanted = None;
    }

    /// Makes the files be as wanted, with these ports' and no others; whether the configuration was another one.
    pub fn bring(
        &mut self,
        settings: &Settings,
        wanted: Wanted,
        entries: BTreeMap<Name, Entry>,
    ) -> Result<bool, Fault> {
        self.folder.make(settings.user.as_ref().map(|(_, _, gid)| *gid))?;
        let other = self.folder.write_config(&wanted.config)?;
        self.changes.reload |= self.folder.sync(&self.entries, &entries, &wanted.broken)?;
        self.entries = entries;
        self.find_gone(&wanted.broken);
        self.wanted = Some(wanted);
        Ok(other)
    }

    /// Leases of addresses that no port has: the port went, and netd ended before the lease did.
    /// Not one of `broken`: its guest goes on.
    fn find_gone(&mut self, broken: &BTreeSet<Name>) {
        let kept: Vec<_> = broken.iter().flat_map(|port| self.folder.reserved(port)).collect();
        let known: BTreeSet<_> =
            self.entries.values().flat_map(|entry| &entry.addresses).chain(&kept).collect();
        for lease in self.folder.leases().iter().filter(|lease| !known.contains(&lease.address)) {
            self.changes.reload = true;
            self.changes.gone.insert(lease.address, Former::new(lease.mac, Some(lease.expires)));
        }
    }

    /// The process has to read everything again: it is another netd's, which may have ended before it said so.
    pub fn adopted(&mut self) {
        self.changes.reload = true;
    }

    /// Writes the files of a port; whether the process has to be told.
    pub fn put(&mut self, port: &Name, entry: Entry) -> Result<bool, Fault> {
        let before = self.entries.get(port);
        if before == Some(&entry) {
            return Ok(false);
        }
        // It reads new files by itself, and adds what is in a changed one to what was there.
        let told = before.is_some();
        self.changes.reload |= told;
        let stale = fields(&entry).any(|field| self.changes.stale.contains(field));
        let waits = entry.addresses.iter().any(|held| self.changes.gone.keeps_from(held, entry.mac));
        let urgent = told || stale || waits;
        self.changes.urgent |= urgent;
        self.folder.put(port, &entry)?;
        self.entries.insert(port.clone(), entry);
        Ok(urgent)
    }

    /// Removes the files of a port, and has its leases removed.
    pub fn take_back(&mut self, port: &Name, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Fault> {
        self.folder.remove(port.as_str())?;
        let entry = self.entries.remove(port);
        self.changes.stale.extend(entry.iter().flat_map(fields).map(str::to_owned));
        let mac = entry.map(|entry| entry.mac);
        let addresses: Vec<_> = addresses.collect();
        // Who has one of IPv4 is known by the MAC.
        let leases = if addresses.iter().any(IpAddr::is_ipv6) { self.folder.leases() } else { Vec::new() };
        for address in addresses {
            let lease = leases.iter().find(|lease| lease.address == address);
            self.changes.gone.insert(address, Former::new(mac, lease.map(|lease| lease.expires)));
        }
        self.changes.reload = true;
        Ok(())
    }

    /// What is to be told, once: to a process that reads everything after this.
    pub fn take(&mut self, now: Instant) -> Changes {
        self.taken = Some(now);
        let mut changes = std::mem::take(&mut self.changes);
        if !changes.gone.is_empty() {
            let entries = self.entries.values();
            changes.gone.inherit(entries.flat_map(|entry| entry.addresses.iter().map(|a| (a, entry.mac))));
        }
        changes
    }

    /// What is to be told now, once; `None`: nothing, or not yet.
    pub fn take_due(&mut self, now: Instant) -> Option<Changes> {
        let rests = self.taken.is_some_and(|taken| now < taken + LEAST_PAUSE);
        if self.changes.is_empty() || rests && !self.changes.urgent {
            return None;
        }
        Some(self.take(now))
    }

    /// What could not be told is told another time.
    pub fn give_back(&mut self, changes: Changes) {
        self.changes.reload |= changes.reload;
        self.changes.gone.add_earlier(changes.gone);
        self.changes.stale.extend(changes.stale);
        self.changes.urgent |= changes.urgent;
    }
}

/// What no two reservations have in common: MAC, addresses and name.
fn fields(entry: &Entry) -> impl Iterator<Item = &str> {
    entry.reservation.trim_end().split(',')
}

#[cfg(test)]
mod test {
    use super::{super::lease::Lease, *};

    fn files(dir: &std::path::Path) -> Files {
        let folder = Folder::new(dir, &"lan".parse().unwrap());
        folder.make(None).unwrap();
        Files::new(folder)
    }

    fn entry(address: &str) -> Entry {
        entry_of(address, "52:54:00:00:00:01")
    }

    fn entry_of(address: &str, mac: &str) -> Entry {
        Entry {
            mac: mac.parse().unwrap(),
            reservation: format!("{address}\n"),
            names: format!("{address} a\n"),
            addresses: vec![address.parse().unwrap()],
        }
    }

    #[test]
    fn many_that_go_are_told_together_and_one_that_waits_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path());
        let begin = Instant::now();
        let name = |n: u64| -> Name { format!("p{n}").parse().unwrap() };
        for n in 0..1000 {
            assert!(!files.put(&name(n), entry(&format!("10.0.{}.{}", n / 250, n % 250))).unwrap());
        }
        assert_eq!(files.take_due(begin), None, "it notices new ones by itself");
        // One after the other within two seconds, and a look after each of them.
        let mut told = Vec::new();
        for n in 0..1000 {
            files.take_back(&name(n), entry("10.0.0.1").addresses.into_iter()).unwrap();
            told.extend(files.take_due(begin + Duration::from_millis(2 * n)));
        }
        assert!(told.len() <= 8, "{}", told.len());
        let end = begin + Duration::from_secs(3);
        assert!(files.take_due(end).is_some_and(|changes| changes.reload && !changes.urgent));
        assert_eq!(files.take_due(end + LEAST_PAUSE), None);

        files.put(&name(1), entry("10.0.0.1")).unwrap();
        files.take_back(&name(1), entry("10.0.0.1").addresses.into_iter()).unwrap();
        assert!(!files.put(&name(3), entry("10.0.0.3")).unwrap());
        assert_eq!(files.take_due(end), None, "nobody waits for it");
        assert!(files.put(&name(2), entry("10.0.0.1")).unwrap());
        assert!(files.take_due(end).is_some_and(|changes| changes.urgent && !changes.gone.is_empty()));
    }

    #[test]
    fn a_port_that_comes_back_with_its_mac_waits_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path());
        let a = "a".parse().unwrap();
        let take_back = |files: &mut Files| {
            files.put(&a, entry("10.0.0.1")).unwrap();
            files.take_back(&a, entry("10.0.0.1").addresses.into_iter()).unwrap();
            // It has been told, and the lease is still there.
            let mut changes = files.take(Instant::now());
            changes.reloaded();
            files.give_back(changes);
        };
        let held = |files: &mut Files, mac: &str| {
            std::fs::write(dir.path().join("lan/leases"), format!("100 {mac} 10.0.0.1 * *\n")).unwrap();
            let gone = files.take(Instant::now()).gone;
            files.folder.holders(&gone).0.len()
        };
        let (same, other) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
        take_back(&mut files);
        assert!(!files.put(&a, entry("10.0.0.1")).unwrap());
        assert_eq!(held(&mut files, same), 0, "it may be a fresh one");
        take_back(&mut files);
        assert!(files.put(&a, entry_of("10.0.0.1", other)).unwrap());
        assert_eq!(held(&mut files, same), 1, "in the way of another NIC");
    }

    #[test]
    fn what_could_not_be_told_is_told_along_with_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path());
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        files.take_back(&a, ["10.0.0.1".parse().unwrap()].into_iter()).unwrap();
        let changes = files.take(Instant::now());
        files.take_back(&b, ["10.0.0.2".parse().unwrap()].into_iter()).unwrap();
        files.give_back(changes);
        let mut changes = files.take(Instant::now());
        assert!(changes.reload);
        let leases = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| Lease {
            address: address.parse().unwrap(),
            mac: None,
            expires: 1,
        });
        assert_eq!(leases.map(|lease| changes.gone.has(&lease)), [true, true, false]);
        changes.reloaded();
        files.give_back(changes);
        assert!(!files.put(&a, entry("10.0.0.3")).unwrap());
        assert!(files.put(&b, entry("10.0.0.2")).unwrap(), "its address is not free yet");
        assert!(!files.take(Instant::now()).reload);
    }
}
