//! What dnsmasq of one network reads and writes: `RUN-DIR/NETWORK/`.
//!
//! ```text
//!   dnsmasq.conf   hosts/PORT   names/PORT    written by netd, each file whole or not at all
//!   leases         dnsmasq.log                written by dnsmasq
//!   process        which process serves the network
//! ```
//!
//! It is in the run folder, since after a reboot guests ask anew, and get the same addresses because they are reserved.

use super::{
    Stamp,
    lease::{self, Gone, Holder, Lease},
};
use serde::{Deserialize, Serialize};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::Name,
    process::Identity,
    steps,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

/// The log is cut off when it is longer, bytes: guests can make dnsmasq write.
const LONGEST_LOG: u64 = 64 << 10;
/// Begins the name of a file that is being written.
const NEW: &str = ".new";
/// As much of the lease file is read, and no more is written to it or to the log, bytes: 100,000 leases.
pub const MOST_LEASES: u64 = 16 << 20;

/// Mode of the lease file.
pub const LEASES_MODE: u32 = 0o640;

/// Which process serves a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The netd that started it.
    pub instance: String,
    /// Its number.
    pub pid: u32,
    /// Tells it from others of that number.
    pub identity: Identity,
    /// Kernel's number of the link that it serves by; it is bound to that very one.
    pub link: u32,
    /// Whether it has answered.
    pub ready: bool,
    /// `confine::VERSION` of what it is confined by; 0 in records of before there was any.
    #[serde(default)]
    pub confined: u32,
}

/// The two files of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For the folder `hosts`.
    pub reservation: String,
    /// For the folder `names`.
    pub names: String,
    /// Whom it is reserved for.
    pub mac: Mac,
    /// What is reserved.
    pub addresses: Vec<IpAddr>,
}

/// The folder of one network.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder of a network in the run folder; nothing is made yet.
    #[must_use]
    pub fn new(run_dir: &Path, network: &Name) -> Self {
        Self(run_dir.join(network.as_str()))
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("dnsmasq.conf")
    }

    /// Makes the folders. Only root and the group that dnsmasq runs as get in.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the run folder cannot be written.
    pub fn make(&self, group: Option<u32>) -> Result<(), Fault> {
        for folder in [self.0.clone(), self.hosts(), self.names()] {
            if fs::symlink_metadata(&folder).is_err() {
                steps::effect(|| name("make", &folder), || make(&folder))?;
            }
            check_own(&folder)?;
            chown(&folder, None, group).map_err(|e| failed("give a group to", &folder, &e))?;
            let mode = fs::Permissions::from_mode(0o750);
            fs::set_permissions(&folder, mode).map_err(|e| failed("protect", &folder, &e))?;
        }
        // Of a netd that ended while it wrote.
        for name in ["", "-dnsmasq.conf", "-process", "-leases"] {
            remove(&self.0.join(format!("{NEW}{name}")))?;
        }
        Ok(())
    }

    /// Where a file is written before it is renamed. Not in the folders that dnsmasq watches, which would read half of
    /// it. What is written while the process is replaced has a name of its own: ports come and go meanwhile.
    fn temporary(&self, path: &Path) -> PathBuf {
        let own = path.parent().filter(|folder| *folder == self.0).and_then(|_| path.file_name()?.to_str());
        self.0.join(own.map_or_else(|| NEW.to_owned(), |own| format!("{NEW}-{own}")))
    }

    fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    fn names(&self) -> PathBuf {
        self.0.join("names")
    }

    /// Writes a file of these folders whole, if it is not so already. Whether it had to.
    fn write(&self, path: &Path, text: &str) -> Result<bool, Fault> {
        if fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
            return Ok(false);
        }
        let temporary = self.temporary(path);
        let write = || {
            let mut file = create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            fs::rename(&temporary, path)
        };
        let written =
            steps::effect(|| name("write", path), || write().map_err(|e| failed("write", path, &e)));
        if written.is_err() {
            // Half of it is of no use to anybody; what cannot be removed now is removed before the next.
            let _ = fs::remove_file(&temporary);
        }
        written.map(|()| true)
    }

    /// Writes the configuration; whether it was another one before.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it cannot be written.
    pub fn write_config(&self, text: &str) -> Result<bool, Fault> {
        self.write(&self.config(), text)
    }

    /// Writes the files of a port; whether one was not so already.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if they cannot be written.
    pub fn put(&self, port: &Name, entry: &Entry) -> Result<bool, Fault> {
        let reservation = self.write(&self.hosts().join(port.as_str()), &entry.reservation)?;
        Ok(self.write(&self.names().join(port.as_str()), &entry.names)? || reservation)
    }

    /// Removes the files of a port.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if they cannot be removed.
    pub fn remove(&self, port: &str) -> Result<(), Fault> {
        for path in [self.hosts().join(port), self.names().join(port)] {
            steps::effect(|| name("remove", &path), || remove(&path))?;
        }
        Ok(())
    }

    /// Names of ports that have both files, and of those that have one.
    #[must_use]
    pub fn ports(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let names = |folder: PathBuf| -> BTreeSet<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        let (hosts, names) = (names(self.hosts()), names(self.names()));
        (hosts.intersection(&names).cloned().collect(), hosts.symmetric_difference(&names).cloned().collect())
    }

    /// Makes the files be those of `entries` and no others, but for those of `broken` ports, which stay as they are;
    /// `known` are those that were written before. Whether one was removed or changed.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if they cannot be written.
    pub fn sync(
        &self,
        known: &BTreeMap<Name, Entry>,
        entries: &BTreeMap<Name, Entry>,
        broken: &BTreeSet<Name>,
    ) -> Result<bool, Fault> {
        let (whole, half) = self.ports();
        let wanted: BTreeSet<&str> = entries.keys().chain(broken).map(Name::as_str).collect();
        let mut changed = false;
        for port in whole.iter().chain(&half).filter(|port| !wanted.contains(port.as_str())) {
            self.remove(port)?;
            changed = true;
        }
        for (port, entry) in entries {
            let there = whole.contains(port.as_str());
            if !there || known.get(port) != Some(entry) {
                changed |= self.put(port, entry)? && there;
            }
        }
        Ok(changed)
    }

    /// What the file of a port reserves.
    #[must_use]
    pub fn reserved(&self, port: &Name) -> Vec<IpAddr> {
        let text = fs::read_to_string(self.hosts().join(port.as_str())).unwrap_or_default();
        text.trim_end().split(',').filter_map(|field| field.trim_matches(['[', ']']).parse().ok()).collect()
    }

    /// The process that was recorded.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.0.join("process")).ok()?).ok()
    }

    /// Records the process.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it cannot be written.
    pub fn write_record(&self, record: &Record) -> Result<(), Fault> {
        let text = serde_json::to_string(record)
            .map_err(|e| Fault::internal("cannot write a record as JSON").cause(&e))?;
        self.write(&self.0.join("process"), &text).map(drop)
    }

    /// Forgets the process.
    pub fn remove_record(&self) {
        let path = self.0.join("process");
        // Left behind, it names a process that is no more, and nobody else's.
        let _ = steps::effect(|| name("remove", &path), || remove(&path));
    }

    /// An empty log, to append to.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it cannot be written.
    pub fn new_log(&self) -> Result<File, Fault> {
        let path = self.log();
        let _ = fs::remove_file(&path);
        OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o640)
            .open(&path)
            .map_err(|e| failed("make", &path, &e))
    }

    fn log(&self) -> PathBuf {
        self.0.join("dnsmasq.log")
    }

    /// Beginning of the log.
    #[must_use]
    pub fn read_log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(self.log()) {
            // What could be read is good enough for a message.
            let _ = file.take(LONGEST_LOG).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Cuts the log off if it has become long.
    pub fn trim_log(&self) {
        let long = fs::metadata(self.log()).is_ok_and(|meta| meta.len() > LONGEST_LOG);
        if long && let Ok(file) = OpenOptions::new().write(true).open(self.log()) {
            // It is appended to, so that the writer goes on at the new end.
            let _ = file.set_len(0);
        }
    }

    fn lease_file(&self) -> PathBuf {
        self.0.join("leases")
    }

    /// Whether dnsmasq's leases have a file.
    #[must_use]
    pub fn has_leases(&self) -> bool {
        self.lease_file().exists()
    }

    /// Another one, if the file of leases may be.
    #[must_use]
    pub fn lease_stamp(&self) -> Option<Stamp> {
        let meta = fs::metadata(self.lease_file()).ok()?;
        Some(Stamp([meta.ino().cast_signed(), meta.len().cast_signed(), meta.mtime(), meta.mtime_nsec()]))
    }

    fn read_leases(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(self.lease_file()) {
            let _ = file.take(MOST_LEASES).read_to_end(&mut bytes);
        }
        bytes
    }

    /// What has been given out.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        lease::leases(&self.read_leases())
    }

    /// Leases that have to go, and the holders of those that can be given back.
    #[must_use]
    pub fn holders(&self, gone: &Gone) -> (BTreeSet<(IpAddr, i64)>, Vec<Holder>) {
        lease::holders(&self.read_leases(), gone)
    }

    /// Takes leases out of the file; only while dnsmasq does not run.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it cannot be written.
    pub fn prune(&self, gone: &Gone) -> Result<(), Fault> {
        if gone.is_empty() || !self.has_leases() {
            return Ok(());
        }
        let path = self.lease_file();
        let temporary = self.temporary(&path);
        let rest = lease::without(&self.read_leases(), gone);
        let write = || {
            let mut file = create(&temporary)?;
            file.write_all(&rest)?;
            // As the gate makes it.
            file.set_permissions(fs::Permissions::from_mode(LEASES_MODE))?;
            fs::rename(&temporary, &path)
        };
        steps::effect(|| name("prune", &path), || write().map_err(|e| failed("write", &path, &e)))
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it cannot be removed.
    pub fn delete(&self) -> Result<(), Fault> {
        let remove = || match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.0, &error)),
            _ => Ok(()),
        };
        steps::effect(|| name("remove", &self.0), remove)
    }
}

/// Name of a step.
fn name(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

/// Makes a folder, unless it is there.
fn make(folder: &Path) -> Result<(), Fault> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", folder, &error)),
        _ => Ok(()),
    }
}

/// A new file, to write: whatever has its name is removed, and no link is followed.
fn create(path: &Path) -> io::Result<File> {
    let new = || OpenOptions::new().write(true).create_new(true).open(path);
    match new() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            new()
        }
        result => result,
    }
}

/// Refuses a folder, or a link in its place, that another user made or may write to: they would choose what is read and
/// written in it.
///
/// # Errors
/// FAILED_PRECONDITION with what is wrong with it.
pub(super) fn check_own(folder: &Path) -> Result<(), Fault> {
    let own = rustix::process::geteuid().as_raw();
    let refuse = |why: String| {
        let message = format!("`{}` cannot be used: {why}", folder.display());
        Err(Fault::new(Kind::FailedPrecondition, "RUN_DIR", message)
            .hint("look at it and remove it, so that netd makes its own, or choose another --run-dir"))
    };
    let place = fs::symlink_metadata(folder).map_err(|e| failed("look at", folder, &e))?;
    let target = fs::metadata(folder).map_err(|e| failed("look at", folder, &e))?;
    if let Some(meta) = [&place, &target].into_iter().find(|meta| ![0, own].contains(&meta.uid())) {
        return refuse(format!("it belongs to uid {}, and netd is uid {own}", meta.uid()));
    }
    if !target.is_dir() {
        return refuse("it is not a folder".to_owned());
    }
    if target.mode() & 0o022 != 0 {
        return refuse(format!("others may write to it, by its mode {:o}", target.mode() & 0o7777));
    }
    Ok(())
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Fault {
    Fault::new(Kind::FailedPrecondition, "RUN_DIR", format!("cannot {what} `{}`", path.display()))
        .cause(error)
        .hint("make netd's --run-dir writable, or choose another one")
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::{lchown, symlink};

    fn folder(dir: &Path) -> Folder {
        let folder = Folder::new(dir, &"lan".parse().unwrap());
        folder.make(None).unwrap();
        folder
    }

    fn entries(ports: &[(&str, &str)]) -> BTreeMap<Name, Entry> {
        let entry = |text: &str| Entry {
            reservation: text.to_owned(),
            names: text.to_uppercase(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            addresses: Vec::new(),
        };
        ports.iter().map(|(name, text)| (name.parse().unwrap(), entry(text))).collect()
    }

    fn gone() -> Gone {
        Gone::from_iter(["10.0.0.2".parse().unwrap()])
    }

    #[test]
    fn files_of_ports_come_and_go_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let both = entries(&[("a", "one"), ("b", "two")]);
        let (none, sound) = (BTreeMap::new(), BTreeSet::new());
        assert!(!folder.sync(&none, &both, &sound).unwrap(), "what is new needs no word");
        assert_eq!(fs::read_to_string(folder.names().join("b")).unwrap(), "TWO");
        // Somebody else's, one that lost a part, and one that is another now.
        fs::write(folder.hosts().join("stranger"), "x").unwrap();
        fs::remove_file(folder.names().join("a")).unwrap();
        let other = entries(&[("a", "one"), ("b", "three")]);
        assert!(folder.sync(&both, &other, &sound).unwrap());
        assert_eq!(folder.ports(), (BTreeSet::from(["a".to_owned(), "b".to_owned()]), BTreeSet::new()));
        assert_eq!(fs::read_to_string(folder.hosts().join("b")).unwrap(), "three");
        assert!(!folder.sync(&other, &other, &sound).unwrap());
        folder.remove("a").unwrap();
        folder.remove("a").unwrap();
        assert!(!folder.sync(&entries(&[("b", "three")]), &entries(&[("b", "three")]), &sound).unwrap());
        folder.delete().unwrap();
        folder.delete().unwrap();
        assert!(!folder.path().exists());
    }

    #[test]
    fn files_of_a_broken_port_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let both = entries(&[("a", "52:54:00:00:00:01,10.0.0.2,[fd00::2],a\n"), ("b", "two")]);
        let (none, broken) = (BTreeMap::new(), BTreeSet::from(["a".parse().unwrap()]));
        folder.sync(&none, &both, &BTreeSet::new()).unwrap();
        assert!(folder.sync(&both, &none, &broken).unwrap(), "the other goes");
        assert_eq!(folder.ports(), (BTreeSet::from(["a".to_owned()]), BTreeSet::new()));
        let reserved: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(folder.reserved(&"a".parse().unwrap()), reserved);
        assert_eq!(folder.reserved(&"b".parse().unwrap()), Vec::<IpAddr>::new());
    }

    #[test]
    fn a_write_that_fails_or_was_cut_off_leaves_nothing_half() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let half = folder.temporary(&folder.hosts().join("a"));
        fs::remove_dir(folder.hosts()).unwrap();
        let entry = entries(&[("a", "one")]).remove(&"a".parse().unwrap()).unwrap();
        assert!(folder.put(&"a".parse().unwrap(), &entry).is_err());
        assert!(!half.exists());
        fs::write(&half, "of a netd that was killed").unwrap();
        folder.make(None).unwrap();
        assert!(!half.exists());
        assert!(folder.put(&"a".parse().unwrap(), &entry).unwrap());
    }

    #[test]
    fn a_file_that_is_written_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let leases = "1795627469 52:54:00:00:00:01 10.0.0.2 a *\n";
        fs::write(folder.lease_file(), leases).unwrap();
        let plant = |name: &str| symlink(&secret, folder.path().join(format!(".new-{name}"))).unwrap();
        plant("dnsmasq.conf");
        assert!(folder.write_config("new").unwrap());
        plant("leases");
        folder.prune(&gone()).unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        for path in [folder.config(), folder.lease_file()] {
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{}", path.display());
        }
        assert_eq!(
            (fs::read_to_string(folder.config()).unwrap().as_str(), folder.leases().len()),
            ("new", 0)
        );
    }

    #[test]
    fn a_folder_that_others_made_or_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let refused = |says: &str| {
            let fault = folder.make(None).unwrap_err();
            assert_eq!(fault.reason(), "RUN_DIR");
            assert!(fault.to_string().contains(says), "{fault}");
        };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for path in [folder.path().to_owned(), folder.hosts(), folder.names()] {
            for open in [0o770, 0o702, 0o1777] {
                mode(&path, open);
                refused("others may write");
            }
            mode(&path, 0o750);
            folder.make(None).unwrap();
        }
        fs::remove_dir(folder.names()).unwrap();
        fs::write(folder.names(), "").unwrap();
        refused("not a folder");
        fs::remove_file(folder.names()).unwrap();
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: only root can make folders of others");
            return;
        }
        const OTHER: Option<u32> = Some(3_999_000_004);
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, folder.names()).unwrap();
        lchown(folder.names(), OTHER, None).unwrap();
        refused("belongs to uid 3999000004");
        lchown(folder.names(), Some(0), None).unwrap();
        folder.make(None).unwrap();
        chown(&elsewhere, OTHER, None).unwrap();
        refused("belongs to uid 3999000004");
    }

    #[test]
    fn a_log_does_not_grow_and_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let mut log = folder.new_log().unwrap();
        log.write_all(b"started\n").unwrap();
        folder.trim_log();
        assert_eq!(folder.read_log(), "started\n");
        log.write_all(&vec![b'x'; 100_000]).unwrap();
        folder.trim_log();
        log.write_all(b"end\n").unwrap();
        assert_eq!(folder.read_log(), "end\n");
    }

    #[test]
    fn only_named_leases_are_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let gone = gone();
        folder.prune(&gone).unwrap();
        assert!(!folder.has_leases());
        let file = "1795627469 52:54:00:00:00:01 10.0.0.2 a *\n1795627469 52:54:00:00:00:02 10.0.0.3 b *\n";
        fs::write(folder.lease_file(), file).unwrap();
        folder.prune(&gone).unwrap();
        assert_eq!(folder.leases().len(), 1);
    }
}
