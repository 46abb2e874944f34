//! The process of one network, and what is to be done about it.

use super::{
    Status, confine,
    engine::Settings,
    files::Files,
    folder::{Entry, Folder, Record},
    launch,
    lease::Holder,
    release::{self, Next, Progress},
};
use crate::{
    kernel::{Action, CellSpec, Kernel as _, LinuxKernel, Scope},
    model::{IfName, LINK_GROUP, Network, Services},
    plan,
};
use ipnet::IpNet;
use rustix::{
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
    process::Signal,
};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    process::{Exit, Process, identity, state},
    steps,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long dnsmasq may take until it serves; it needs some ten milliseconds.
const START_LIMIT: Duration = Duration::from_secs(5);
const START_PAUSE: Duration = Duration::from_millis(2);
/// How long it may take to put its leases on disk and end.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Pauses between attempts grow from the first to the last; one that ran for long is started again at once.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(10);
/// As many leases are given back at a look: more would not fit into the server's socket.
const MOST_RELEASES: usize = 64;
/// What dnsmasq says when it has all its sockets.
const SERVING: &str = "started, version";

/// What should run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The network's record.
    pub network: Network,
    /// Its services.
    pub services: Services,
    /// The configuration file.
    pub config: String,
    /// Its ports whose records cannot be read: their files stay.
    pub broken: BTreeSet<Name>,
}

/// A process that serves.
#[derive(Debug)]
struct Running {
    process: Process,
    record: Record,
    since: Instant,
}

/// The service of one network.
#[derive(Debug)]
pub struct Unit {
    settings: Arc<Settings>,
    kernel: LinuxKernel,
    folder: Folder,
    files: Arc<Mutex<Files>>,
    status: Arc<RwLock<Status>>,
    /// Whether it is to be removed: then nobody waits for a start.
    leaving: watch::Receiver<bool>,
    wanted: Option<Wanted>,
    running: Option<Running>,
    /// Of leases that are being given back.
    progress: Progress,
    pause: Duration,
    next_start: Instant,
}

impl Unit {
    /// A service that is not wanted yet.
    pub fn new(
        settings: Arc<Settings>,
        kernel: LinuxKernel,
        folder: Folder,
        status: Arc<RwLock<Status>>,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        Self {
            settings,
            kernel,
            files: Arc::new(Mutex::new(Files::new(folder.clone()))),
            folder,
            status,
            leaving,
            wanted: None,
            running: None,
            progress: Progress::default(),
            pause: Duration::ZERO,
            next_start: Instant::now(),
        }
    }

    /// Its files, to whose ports nobody waits for the process.
    pub fn files(&self) -> Arc<Mutex<Files>> {
        Arc::clone(&self.files)
    }

    fn lock_files(&self) -> MutexGuard<'_, Files> {
        lock(&self.files)
    }

    /// Whether a start has failed, and it is too early for the next.
    pub fn rests(&self) -> bool {
        self.running.is_none() && Instant::now() < self.next_start
    }

    fn publish(&self, status: Status) {
        *self.status.write().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Makes it run as wanted, with these ports' files and no others.
    pub async fn bring(&mut self, wanted: Wanted, entries: BTreeMap<Name, Entry>) -> Result<(), Fault> {
        let result = self.try_bring(wanted, entries).await;
        if let Err(fault) = &result {
            self.failed(fault);
        }
        result
    }

    async fn try_bring(&mut self, wanted: Wanted, entries: BTreeMap<Name, Entry>) -> Result<(), Fault> {
        let other = self.lock_files().bring(&self.settings, wanted.clone(), entries)?;
        self.wanted = Some(wanted);
        if self.running.is_none() {
            self.running = self.take_over()?;
            if self.running.is_some() {
                self.lock_files().adopted();
            }
        }
        match self.trouble() {
            None if !other => Ok(()),
            None => self.restart("its configuration is another one").await,
            Some(why) => self.restart(&why).await,
        }
    }

    /// Looks after it, and carries out what has piled up.
    pub async fn tend(&mut self) {
        if self.wanted.is_none() {
            return;
        }
        let result = match self.trouble() {
            Some(_) if Instant::now() < self.next_start => return,
            Some(why) => self.restart(&why).await,
            None => self.tell().await,
        };
        match (result, &self.running) {
            (Err(fault), _) if fault.kind() == Kind::Aborted => {}
            (Err(fault), _) => self.failed(&fault),
            // Also where it could not be told something a moment ago.
            (Ok(()), Some(running)) => self.publish(Status::Running(running.record.pid)),
            (Ok(()), None) => {}
        }
        self.folder.trim_log();
    }

    /// Tells the process of removed and changed ports.
    async fn tell(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        let Some(mut changes) = self.lock_files().take_due(now) else { return Ok(()) };
        if let (true, Some(running)) = (changes.reload, &self.running) {
            let told = steps::effect(|| "tell dnsmasq".to_owned(), || running.process.signal(Signal::HUP));
            if let Err(fault) = told {
                self.lock_files().give_back(changes);
                return Err(fault);
            }
        }
        changes.reloaded();
        let (held, holders) = self.folder.holders(&changes.gone);
        let next = self.progress.next(self.folder.lease_stamp(), held, now);
        let wait = match next {
            Next::Done => return Ok(()),
            Next::Wait => true,
            Next::Give if self.release(&holders) => true,
            // It learns from its file that a lease is void, at its start.
            Next::Give | Next::GiveUp => !changes.urgent && self.is_young(),
        };
        self.lock_files().give_back(changes);
        if wait { Ok(()) } else { self.restart("a port with a lease is gone").await }
    }

    fn is_young(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.since.elapsed() < LONG)
    }

    /// Gives leases back; whether that is possible.
    fn release(&self, holders: &[Holder]) -> bool {
        let (Some(running), Some(Wanted { network, .. })) = (&self.running, &self.wanted) else {
            return false;
        };
        // A cell's server hears nobody in this namespace.
        network.cell.is_none()
            && holders.iter().take(MOST_RELEASES).all(|holder| {
                let give = || release::send(network, &network.bridge, running.record.link, holder);
                let given = steps::effect(|| "give a lease back".to_owned(), give);
                given.inspect_err(|e| tracing::warn!(error = e.chain(), "dnsmasq is replaced")).is_ok()
            })
    }

    fn failed(&mut self, fault: &Fault) {
        tracing::warn!(folder = %self.folder.path().display(), error = fault.chain(), "no DHCP and DNS");
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        self.next_start = Instant::now() + self.pause;
        self.publish(Status::Failed(fault.chain()));
    }

    /// What is wrong with the process; `None` if it serves.
    fn trouble(&self) -> Option<String> {
        let Some(running) = &self.running else { return Some("it does not run".to_owned()) };
        match state(running.record.pid) {
            Ok('T' | 't') => return Some("it was stopped".to_owned()),
            Ok('Z' | 'X') | Err(_) => return Some("it has ended".to_owned()),
            Ok(_) => {}
        }
        if self.link_index() != Some(running.record.link) {
            return Some("its link is another one".to_owned());
        }
        (!self.folder.has_leases()).then(|| "its lease file is gone".to_owned())
    }

    /// The link in this namespace that it serves by.
    fn link(&self) -> Option<&IfName> {
        let network = &self.wanted.as_ref()?.network;
        Some(network.cell.as_ref().map_or(&network.bridge, |cell| &cell.link))
    }

    fn link_index(&self) -> Option<u32> {
        let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
        name_to_index(socket, self.link()?.as_str()).ok()
    }

    /// The recorded process, if it is what it was, has answered once, and is confined as one that is started now.
    fn take_over(&self) -> Result<Option<Running>, Fault> {
        let Some((process, record)) = self.recorded()? else { return Ok(None) };
        if !record.ready {
            return Ok(None);
        }
        if record.confined < confine::VERSION {
            let folder = self.folder.path().display();
            tracing::info!(pid = record.pid, %folder, "dnsmasq of an earlier netd is less confined: it is replaced");
            return Ok(None);
        }
        tracing::info!(pid = record.pid, folder = %self.folder.path().display(), "adopted dnsmasq");
        self.publish(Status::Running(record.pid));
        Ok(Some(Running { process, record, since: Instant::now() }))
    }

    /// The recorded process, if it is there.
    fn recorded(&self) -> Result<Option<(Process, Record)>, Fault> {
        let Some(record) = self.folder.record() else { return Ok(None) };
        let Ok(process) = Process::open(record.pid) else { return Ok(None) };
        let argument = launch::config_argument(&self.folder.config());
        let words = fs::read(format!("/proc/{}/cmdline", record.pid)).unwrap_or_default();
        let same = identity(record.pid).is_ok_and(|identity| identity == record.identity)
            && words.split(|byte| *byte == 0).any(|word| word == argument.as_encoded_bytes());
        if same && record.instance != self.settings.instance {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "RUN_DIR_TAKEN",
                format!("`{}` is used by another netd", self.folder.path().display()),
            )
            .hint("give each netd its own --run-dir"));
        }
        Ok(same.then_some((process, record)))
    }

    /// Ends the process that runs or is recorded, if any.
    async fn end(&mut self) -> Result<(), Fault> {
        let running = match self.running.take() {
            Some(running) => Some((running.process, running.record)),
            None => self.recorded()?,
        };
        if let Some((process, record)) = running {
            steps::point(|| "before the end of dnsmasq".to_owned())?;
            // One that is stopped would hear SIGTERM only when it goes on.
            let ended = !matches!(state(record.pid), Ok('T' | 't'))
                && process.signal(Signal::TERM).is_ok()
                && timeout(END_LIMIT, process.exited()).await.is_ok();
            if !ended {
                process.kill()?;
                timeout(END_LIMIT, process.exited())
                    .await
                    .map_err(|_| Fault::internal(format!("process {} does not end", record.pid)))?;
            }
        }
        self.folder.remove_record();
        Ok(())
    }

    async fn restart(&mut self, why: &str) -> Result<(), Fault> {
        if let Some(running) = &self.running {
            tracing::warn!(pid = running.record.pid, why, "replacing dnsmasq");
            if running.since.elapsed() > LONG {
                self.pause = Duration::ZERO;
            }
        }
        self.publish(Status::Starting);
        self.end().await?;
        self.progress = Progress::default();
        let changes = self.lock_files().take(Instant::now());
        if let Err(fault) = self.folder.prune(&changes.gone) {
            self.lock_files().give_back(changes);
            return Err(fault);
        }
        self.start().await
    }

    async fn start(&mut self) -> Result<(), Fault> {
        let Some(Wanted { network, .. }) = self.wanted.clone() else { return Ok(()) };
        let binary = self.settings.binary()?;
        self.settings.check_way()?;
        self.settings.check_capabilities(network.cell.is_some())?;
        let nets: Vec<_> =
            [network.ipv4.map(IpNet::V4), network.ipv6.map(IpNet::V6)].into_iter().flatten().collect();
        let in_cell = network.cell.as_ref().map(|_| nets.as_slice());
        let spawned = launch::spawn(&binary, &self.folder.config(), in_cell, self.folder.new_log()?);
        let mut child = spawned.map_err(|e| {
            Fault::new(Kind::ResourceExhausted, "SPAWN", "cannot start a process for DHCP and DNS").cause(&e)
        })?;
        let gate = child.stdin.take();
        let mut ready = child.stdout.take();
        let pid = child.id();
        let process = match Process::open(pid) {
            Ok(process) => process,
            Err(error) => {
                // It waits at the gate, and nobody else would ask how it ended.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(Fault::internal("cannot hold on to dnsmasq").cause(&error));
            }
        };
        let started = async {
            steps::point(|| "after the spawn of dnsmasq".to_owned())?;
            if network.cell.is_some() {
                let told = tokio::task::spawn_blocking(move || ready.as_mut()?.read_exact(&mut [0]).ok());
                match timeout(START_LIMIT, told).await {
                    Ok(Ok(Some(()))) => self.lead_in(&network, pid).await?,
                    _ => return Err(self.refused("cannot make a network namespace", &process).await),
                }
            }
            let link = self.link_index().ok_or_else(|| {
                Fault::new(Kind::FailedPrecondition, "LINK_GONE", "the link to the guests is not there")
            })?;
            let identity =
                identity(pid).map_err(|e| Fault::internal("cannot tell who dnsmasq is").cause(&e))?;
            let instance = self.settings.instance.clone();
            let confined = confine::VERSION;
            let record = Record { instance, pid, identity, link, ready: false, confined };
            self.folder.write_record(&record)?;
            // If it is gone, its log says why.
            let _ = gate.map(|mut gate| gate.write_all(b"!"));
            steps::point(|| "after the gate of dnsmasq".to_owned())?;
            self.serving(&process).await?;
            let record = Record { ready: true, ..record };
            self.folder.write_record(&record)?;
            Ok(record)
        };
        let mut leaving = self.leaving.clone();
        let result = tokio::select! {
            result = started => result,
            _ = leaving.wait_for(|leaving| *leaving) => {
                Err(Fault::new(Kind::Aborted, "LEAVING", "the network is being deleted"))
            }
        };
        match result {
            Ok(record) => {
                self.publish(Status::Running(pid));
                self.running = Some(Running { process, record, since: Instant::now() });
                Ok(())
            }
            Err(fault) => {
                process.kill()?;
                // Reaped, or by the next start taken for gone.
                let _ = timeout(END_LIMIT, process.exited()).await;
                self.folder.remove_record();
                Err(fault)
            }
        }
    }

    /// Makes the veth between the bridge and the child's namespace.
    async fn lead_in(&self, network: &Network, pid: u32) -> Result<(), Fault> {
        let Some((outer, inner_mac)) = plan::cell(network, &self.settings.instance) else { return Ok(()) };
        self.kernel.apply(&Action::CreateCell(CellSpec { outer, inner_mac, pid })).await
    }

    /// Waits until it says that it serves.
    async fn serving(&self, process: &Process) -> Result<(), Fault> {
        let end = Instant::now() + START_LIMIT;
        while Instant::now() < end {
            if self.folder.read_log().contains(SERVING) && self.folder.has_leases() {
                return Ok(());
            }
            if timeout(START_PAUSE, process.exited()).await.is_ok() {
                return Err(self.refused("dnsmasq does not start", process).await);
            }
            sleep(START_PAUSE).await;
        }
        Err(self.refused("dnsmasq does not come up", process).await)
    }

    /// The fault of a start, with the program's own last words.
    async fn refused(&self, what: &str, process: &Process) -> Fault {
        let log = self.folder.read_log();
        let words = log.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let words: String = words.unwrap_or("it said nothing").chars().take(200).collect();
        let fault = Fault::new(Kind::FailedPrecondition, "SERVICE", what)
            .cause(&std::io::Error::other(words.escape_debug().to_string()));
        match timeout(Duration::ZERO, process.exited()).await {
            Ok(Exit::Signal(signal)) => fault.meta("signal", signal),
            Ok(Exit::Code(code)) => fault.meta("exit_code", code),
            _ => fault,
        }
        .hint(advice(&words))
    }

    /// Ends it and removes its files. `network` is the record as it is now; its cell may have gone from it.
    pub async fn remove(&mut self, network: &Network) -> Result<(), Fault> {
        let had = self.wanted.as_ref().map(|wanted| &wanted.network);
        let cells = had.into_iter().chain([network]).filter_map(|network| network.cell.as_ref());
        let links: Vec<_> = cells.map(|cell| cell.link.clone()).collect();
        // Before the process: when that has ended, the kernel removes the link too, at a time of its own.
        for link in &links {
            self.remove_link(link).await?;
        }
        self.end().await?;
        self.lock_files().unwant();
        self.wanted = None;
        self.folder.delete()
    }

    /// Removes a cell's link.
    async fn remove_link(&self, name: &IfName) -> Result<(), Fault> {
        let observed = self.kernel.observe(&Scope::Links(vec![name.clone()])).await?;
        if observed.links.get(name).is_some_and(|link| link.group == LINK_GROUP) {
            self.kernel.apply(&Action::DeleteLink(name.clone())).await?;
        }
        Ok(())
    }
}

/// Each change of the files is whole in itself.
pub fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do next, by dnsmasq's own last words.
fn advice(words: &str) -> &'static str {
    if words.contains("inotify") {
        return "raise `fs.inotify.max_user_instances` (sysctl): the dnsmasq of each network takes one of its user's; or create the network with --dhcp off";
    }
    "if another program serves DNS or DHCP on this host, let it listen on its own interfaces only; or create the network with --dhcp off"
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_advice_is_about_what_dnsmasq_said() {
        let full = advice("dnsmasq: failed to create inotify: Too many open files");
        assert!(full.contains("fs.inotify.max_user_instances") && !full.contains("another program"));
        assert!(advice("dnsmasq: failed to create listening socket: in use").contains("another program"));
    }
}
