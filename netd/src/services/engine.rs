//! What should run, and that it does.

use super::{
    Lease, Stamp, Status, confine,
    files::Files,
    folder::{self, Entry, Folder},
    launch, render,
    unit::{Unit, Wanted, lock},
};
use crate::{
    kernel::LinuxKernel,
    model::{Network, Port},
};
use rustix::thread::{CapabilitySet, capabilities};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often every process is looked at. One that was stopped or killed is replaced in less than twice that.
const TICK: Duration = Duration::from_millis(500);
/// How long after a change to carry it out: ports go in bunches, and one signal is enough for all.
const SETTLE: Duration = Duration::from_millis(20);

/// What the services of all networks share.
#[derive(Debug)]
pub struct Settings {
    /// The program; without a slash it is looked for where system programs are.
    pub program: PathBuf,
    /// Folder of the folders of networks.
    pub run_dir: PathBuf,
    /// netd's instance id.
    pub instance: String,
    /// User and group that dnsmasq changes to, and the group's number; `None`: it runs as netd does.
    pub user: Option<(String, String, u32)>,
    /// Whether netd may make network namespaces as it is.
    pub namespaces: bool,
}

impl Settings {
    /// Looks at what this process may do, and makes the run folder.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if there is no user for dnsmasq, or the run folder cannot be used.
    pub fn new(program: PathBuf, run_dir: PathBuf, instance: String) -> Result<Self, Fault> {
        let text = run_dir.to_str().unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@=".contains(c);
        if !text.starts_with('/') || !text.chars().all(plain) {
            let message = format!("`{}` is not a folder that dnsmasq can be told of", run_dir.display());
            return Err(Fault::new(Kind::FailedPrecondition, "RUN_DIR", message)
                .hint("choose an absolute path of letters, digits and /._-+@= with --run-dir"));
        }
        let failed = |error: &dyn std::error::Error| {
            let message = format!("cannot make the folder `{}`", run_dir.display());
            Fault::new(Kind::FailedPrecondition, "RUN_DIR", message)
                .cause(error)
                .hint("choose another one with --run-dir")
        };
        // With its mode from the first moment: a generous umask is no reason to refuse it below.
        if fs::symlink_metadata(&run_dir).is_err() {
            run_dir.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| failed(&e))?;
            fs::DirBuilder::new().mode(0o711).create(&run_dir).map_err(|e| failed(&e))?;
        }
        folder::check_own(&run_dir)?;
        // dnsmasq has to get through, and need not see who else is there.
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o711)).map_err(|e| failed(&e))?;
        let held = capabilities(None).map_err(|e| Fault::internal("cannot read capabilities").cause(&e))?;
        let user = if rustix::process::geteuid().is_root() {
            Some(launch::user().ok_or_else(|| {
                Fault::new(
                    Kind::FailedPrecondition,
                    "NO_USER",
                    "there is neither a user `dnsmasq` nor `nobody`",
                )
                .hint("make a user `dnsmasq` with a group")
            })?)
        } else {
            None
        };
        let namespaces = held.permitted.contains(CapabilitySet::SYS_ADMIN);
        Ok(Self { program, run_dir, instance, user, namespaces })
    }

    /// Where the program is.
    pub(super) fn binary(&self) -> Result<PathBuf, Fault> {
        let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"].map(PathBuf::from);
        let found = if self.program.components().count() > 1 {
            Some(self.program.clone()).filter(|path| path.is_file())
        } else {
            places.into_iter().map(|place| place.join(&self.program)).find(|path| path.is_file())
        };
        found.ok_or_else(|| {
            Fault::new(
                Kind::FailedPrecondition,
                "NO_DNSMASQ",
                format!("`{}`, which serves DHCP and DNS, is not installed", self.program.display()),
            )
            .hint("install dnsmasq-base, or create the network with --dhcp off")
        })
    }

    /// Refuses a run folder that dnsmasq's user cannot get to: dnsmasq would say so in its log, and serve nobody.
    pub(super) fn check_way(&self) -> Result<(), Fault> {
        let Some((user, _, gid)) = &self.user else { return Ok(()) };
        let shut = |folder: &&Path| {
            fs::metadata(folder).is_ok_and(|meta| {
                let open = if meta.gid() == *gid { 0o010 } else { 0o001 };
                meta.mode() & open == 0
            })
        };
        match self.run_dir.ancestors().find(shut) {
            Some(folder) => Err(Fault::new(
                Kind::FailedPrecondition,
                "RUN_DIR",
                format!("`{}` does not let dnsmasq's user `{user}` through", folder.display()),
            )
            .hint(format!("`chmod o+x {}`, or choose another --run-dir", folder.display()))),
            None => Ok(()),
        }
    }

    /// Refuses what dnsmasq would die of.
    pub(super) fn check_capabilities(&self, in_cell: bool) -> Result<(), Fault> {
        // In a user namespace of its own it has all of them.
        if in_cell && !self.namespaces {
            return Ok(());
        }
        let held = capabilities(None).map_err(|e| Fault::internal("cannot read capabilities").cause(&e))?;
        match launch::NEEDED.iter().find(|(capability, _)| !held.permitted.contains(*capability)) {
            Some((_, name)) => Err(Fault::new(
                Kind::FailedPrecondition,
                "NO_CAPABILITY",
                format!("netd lacks {name}, which DHCP and DNS need"),
            )
            .hint("give netd CAP_NET_ADMIN, CAP_NET_RAW and CAP_NET_BIND_SERVICE, or create the network with --dhcp off")),
            None => Ok(()),
        }
    }

    /// Whom dnsmasq changes to.
    fn user_in(&self, cell: bool) -> Option<(&str, &str)> {
        let (user, group, _) = self.user.as_ref()?;
        // In a user namespace there is no other user than the one outside.
        if cell && !self.namespaces { Some(("root", "root")) } else { Some((user, group)) }
    }

    fn wanted(&self, network: &Network, folder: &Folder, broken: BTreeSet<Name>) -> Option<Wanted> {
        let services = network.services()?;
        let interface = match &network.cell {
            Some(_) => crate::kernel::cell::LINK,
            None => network.bridge.as_str(),
        };
        let folder = folder.path().to_str()?;
        let user = self.user_in(network.cell.is_some());
        let around = render::Surroundings { folder, interface, user };
        let config = render::config(network, &services, around);
        Some(Wanted { network: network.clone(), services, config, broken })
    }
}

/// One network's.
#[derive(Debug)]
struct Service {
    /// Locked while the process is being replaced, which takes some seconds at worst.
    unit: tokio::sync::Mutex<Unit>,
    /// Never locked for long.
    files: Arc<Mutex<Files>>,
    status: Arc<RwLock<Status>>,
    leaving: watch::Sender<bool>,
}

/// Runs the services of all networks.
#[derive(Debug)]
pub struct Engine {
    settings: Arc<Settings>,
    kernel: LinuxKernel,
    services: Mutex<BTreeMap<Name, Arc<Service>>>,
    woken: Notify,
    warnings: Vec<String>,
}

impl Engine {
    /// An engine in which nothing runs yet. Warns of what this kernel lacks to confine what will.
    #[must_use]
    pub fn new(settings: Settings, kernel: LinuxKernel) -> Self {
        let warnings = confine::lacking();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let settings = Arc::new(settings);
        Self { settings, kernel, services: Mutex::default(), woken: Notify::new(), warnings }
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Service>>> {
        // Each change of the map is one insert or remove.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, network: &Name) -> Option<Arc<Service>> {
        self.services().get(network).cloned()
    }

    fn find_or_add(&self, network: &Name) -> Arc<Service> {
        let add = || {
            let status = Arc::new(RwLock::new(Status::Starting));
            let folder = Folder::new(&self.settings.run_dir, network);
            let (leaving, left) = watch::channel(false);
            let settings = Arc::clone(&self.settings);
            let unit = Unit::new(settings, self.kernel.clone(), folder, Arc::clone(&status), left);
            Arc::new(Service { files: unit.files(), unit: tokio::sync::Mutex::new(unit), status, leaving })
        };
        Arc::clone(self.services().entry(network.clone()).or_insert_with(add))
    }

    pub(super) async fn bring<'a>(
        &self,
        network: &Network,
        ports: impl Iterator<Item = &'a Port>,
        broken: BTreeSet<Name>,
    ) -> Result<(), Fault> {
        let folder = Folder::new(&self.settings.run_dir, &network.name);
        let Some(wanted) = self.settings.wanted(network, &folder, broken) else {
            return self.remove(network).await;
        };
        let entries = ports.map(|port| (port.name.clone(), entry(&wanted, port))).collect();
        let service = self.find_or_add(&network.name);
        service.unit.lock().await.bring(wanted, entries).await
    }

    /// As `bring`, but leaves alone what cannot be brought now: what is being started, or has failed a moment ago. It is
    /// looked after anyway, and whoever waits for a change does not wait for it.
    pub(super) async fn settle<'a>(
        &self,
        network: &Network,
        ports: impl Iterator<Item = &'a Port>,
        broken: BTreeSet<Name>,
    ) -> Result<(), Fault> {
        if let Some(service) = self.find(&network.name)
            && service.unit.try_lock().map_or(true, |unit| unit.rests())
        {
            return Ok(());
        }
        self.bring(network, ports, broken).await
    }

    pub(super) async fn remove(&self, network: &Network) -> Result<(), Fault> {
        let known = self.find(&network.name).is_some();
        if !known && !Folder::new(&self.settings.run_dir, &network.name).path().exists() {
            return Ok(());
        }
        let service = self.find_or_add(&network.name);
        // Not after a start that is under way.
        service.leaving.send_replace(true);
        let removed = service.unit.lock().await.remove(network).await;
        service.leaving.send_replace(false);
        removed?;
        self.services().remove(&network.name);
        Ok(())
    }

    pub(super) fn put_port(&self, port: &Port) -> Result<(), Fault> {
        let Some(service) = self.find(&port.network) else { return Ok(()) };
        let mut files = lock(&service.files);
        let Some(entry) = files.wanted().map(|wanted| entry(wanted, port)) else { return Ok(()) };
        if files.put(&port.name, entry)? {
            self.woken.notify_one();
        }
        Ok(())
    }

    pub(super) fn remove_port(&self, port: &Port) -> Result<(), Fault> {
        let Some(service) = self.find(&port.network) else { return Ok(()) };
        lock(&service.files).take_back(&port.name, port.addresses())?;
        self.woken.notify_one();
        Ok(())
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    pub(super) fn status(&self, network: &Name) -> Status {
        self.find(network).map_or(Status::Starting, |service| {
            service.status.read().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    pub(super) fn lease_stamp(&self, network: &Name) -> Option<Stamp> {
        Folder::new(&self.settings.run_dir, network).lease_stamp()
    }

    pub(super) fn leases(&self, network: &Name) -> Vec<Lease> {
        Folder::new(&self.settings.run_dir, network).leases()
    }

    /// Looks after everything that runs, until `stop`; the processes go on.
    pub async fn run(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
                () = self.woken.notified() => tokio::time::sleep(SETTLE).await,
            }
            let all: Vec<_> = self.services().values().cloned().collect();
            // One that is slow to start does not keep the others waiting.
            futures_util::future::join_all(all.iter().map(|service| async {
                // Whoever has it locked is bringing it up or down.
                if let Ok(mut unit) = service.unit.try_lock() {
                    unit.tend().await;
                }
            }))
            .await;
        }
    }
}

fn entry(wanted: &Wanted, port: &Port) -> Entry {
    Entry {
        reservation: render::reservation(&wanted.network, port),
        names: render::names(&wanted.services, port),
        mac: port.mac,
        addresses: port.addresses().collect(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn settings(run_dir: &Path, gid: u32) -> Settings {
        Settings {
            program: "dnsmasq".into(),
            run_dir: run_dir.to_owned(),
            instance: "i".to_owned(),
            user: Some(("nobody".to_owned(), "nogroup".to_owned(), gid)),
            namespaces: true,
        }
    }

    #[test]
    fn a_run_folder_that_dnsmasq_cannot_get_to_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        open(&run_dir, 0o711);
        open(dir.path(), 0o700);
        let group = fs::metadata(dir.path()).unwrap().gid();
        let fault = settings(&run_dir, group + 1).check_way().unwrap_err();
        assert!(fault.to_string().contains(&format!("`{}`", dir.path().display())), "{fault}");
        open(dir.path(), 0o710);
        assert!(settings(&run_dir, group).check_way().is_ok(), "its group gets through");
        assert!(settings(&run_dir, group + 1).check_way().is_err());
        open(dir.path(), 0o711);
        assert!(settings(&run_dir, group + 1).check_way().is_ok());
        let alone = Settings { user: None, ..settings(&run_dir, group + 1) };
        open(dir.path(), 0o700);
        assert!(alone.check_way().is_ok(), "it runs as netd does");
    }

    #[test]
    fn a_run_folder_that_others_may_write_to_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let new = || Settings::new("dnsmasq".into(), run_dir.clone(), "i".to_owned());
        new().unwrap();
        let mode = || fs::metadata(&run_dir).unwrap().mode() & 0o7777;
        assert_eq!(mode(), 0o711);
        new().unwrap();
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o1777)).unwrap();
        let fault = new().unwrap_err();
        assert!(fault.to_string().contains("others may write to it, by its mode 1777"), "{fault}");
        assert_eq!(mode(), 0o1777);
    }

    #[test]
    fn folders_that_would_mean_something_else_to_dnsmasq_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a b", "a,b", "a#b", "a\nuser=root", "é"] {
            let path = dir.path().join(name);
            let fault = Settings::new("dnsmasq".into(), path.clone(), "i".to_owned()).unwrap_err();
            assert_eq!(fault.reason(), "RUN_DIR");
            assert!(!path.exists());
        }
        assert!(Settings::new("dnsmasq".into(), "run".into(), "i".to_owned()).is_err(), "not absolute");
    }
}
