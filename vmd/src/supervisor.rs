//! Which machines there are: records and drivers, made and removed together.

mod drive;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod groups;
mod quota;
mod stored;

pub use stored::forget;
use stored::{Stored, end_runs, load, next_epoch};

use crate::{
    config::Config,
    console::Console,
    driver::{Handle, Initial, Verb},
    jail::{Finding, groups::Groups, host::Jail},
    model::{Accelerator, KIND_RUN, KIND_VM, LastExit, Record, Run, Spec, Vm},
    ports::{KIND_PORT, PortRecord, Ports, Releases},
    qemu::{files, host::Host},
    start::Context,
};
use futures_util::future::join_all;
use shared::{
    access::{Access, Caller, OwnUser},
    audit::{self, Audit},
    events::{EventKind, EventLog, News},
    fault::{Fault, Kind},
    look::Look,
    mac::Mac,
    name::Name,
    steps,
    store::{Broken, Op, Store},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

/// All machines. Clones share them.
#[derive(Debug)]
pub struct Supervisor<P>(Arc<Inner<P>>);

impl<P> Clone for Supervisor<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<P> {
    context: Arc<Context<P>>,
    vms: Mutex<BTreeMap<Name, Handle>>,
    /// Held by whoever makes or removes a machine, so that names and MACs stay unique.
    changing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    epoch: i64,
    /// What `strays` tells.
    strays: Look<Vec<String>>,
}

/// How long the host's status waits for netd.
const NETDS_PATIENCE: Duration = Duration::from_secs(1);
/// How long it shows the same of netd's ports: it takes many calls to look, which machines' starts need too.
const NETDS_PORTS: Duration = Duration::from_secs(3);

/// What a client asks to be recorded.
#[derive(Clone, Debug)]
pub struct NewVm {
    /// Its name.
    pub name: Name,
    /// The client's own notes.
    pub labels: BTreeMap<String, String>,
    /// What it is to be.
    pub spec: Spec,
    /// Who it will belong to.
    pub owner: Caller,
}

impl<P: Ports> Supervisor<P> {
    /// Opens the records, adopts what runs, and starts the drivers.
    ///
    /// # Errors
    /// If the folders or the store cannot be used.
    pub async fn open(config: &Config, ports: P, stop: CancellationToken) -> Result<Self, Fault> {
        let state_dir = private_folder(&config.state_dir, "--state-dir")?;
        let run_dir = private_folder(&config.run_dir, "--run-dir")?;
        let access = Access::open(config.access_file.as_deref(), config.group()?, OwnUser::Admin)?;
        access.reload_on_hangup().map_err(|e| Fault::internal("cannot watch for signals").cause(&e))?;
        let store = Store::open(&state_dir)?;
        let began = format!("vmd {} began", env!("CARGO_PKG_VERSION"));
        store.tell(Vec::new(), vec![News::of(EventKind::Started, "", began)]);
        let epoch = next_epoch(&store).await?;
        let Stored { records, mut runs, exits, orphans, broken, over } = load(&store).await?;
        end_runs(&store, over).await;
        for one in &broken {
            tracing::error!(vm = one.id, why = one.why, "a record is of no use; it is left as it is");
        }
        let launcher = std::env::current_exe()
            .map_err(|e| Fault::internal("cannot find this program's own file").cause(&e))?;
        let instance = store.instance();
        let context = Arc::new(Context {
            access,
            releases: Releases::new(store.clone(), ports.clone(), orphans),
            store,
            ports,
            host: Host::new(&config.qemu, config.accel),
            jail: Jail::new(own_program(launcher.clone()), run_dir.clone(), config.require_containment)
                .with_groups(Groups::open(config.cgroup.as_deref(), instance)),
            launcher: own_program(launcher),
            run_dir,
            state_dir,
            stop: stop.clone(),
        });
        let lost = groups::vacate(&context.jail.groups, &runs, &broken).await;
        context.jail.reserve(&runs, lost || context.store.has_broken(KIND_RUN));
        let supervisor = Self(Arc::new(Inner {
            context: Arc::clone(&context),
            vms: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            epoch,
            strays: Look::new(NETDS_PORTS),
        }));
        supervisor.forget_strangers(&records, &runs, &broken);
        let adopting = records.into_iter().map(|record| {
            let run = runs.remove(record.name.as_str());
            let exit = exits.get(record.name.as_str()).cloned().unwrap_or_default();
            supervisor.bring_back(record, run, exit)
        });
        for result in join_all(adopting).await {
            result?;
        }
        let looking = Arc::clone(&context);
        tokio::spawn(async move { looking.jail.findings().await });
        let releasing = Arc::clone(&context);
        supervisor.0.tasks.spawn(async move { releasing.releases.run(stop).await });
        Ok(supervisor)
    }

    /// A machine of an earlier vmd: adopted, or at rest.
    async fn bring_back(&self, record: Record, run: Option<Run>, exit: LastExit) -> Result<(), Fault> {
        let console = self.console(&record.name)?;
        let initial = self.initial(&record, &console, run, exit).await?;
        self.add(record, console, initial);
        Ok(())
    }

    fn console(&self, name: &Name) -> Result<Arc<Console>, Fault> {
        let folder = self.0.context.state_folder(name);
        Console::open(&folder).map_err(|error| {
            Fault::new(
                Kind::FailedPrecondition,
                "STATE_DIR",
                format!("cannot open the console log of machine `{name}` in `{}`", folder.display()),
            )
            .cause(&error)
            .hint("vmd's user must be able to write there; see --state-dir")
        })
    }

    /// A machine's handle.
    ///
    /// # Errors
    /// NOT_FOUND if there is none of that name; FAILED_PRECONDITION if its record cannot be read.
    pub fn get(&self, name: &Name) -> Result<Handle, Fault> {
        let found = self.vms().get(name).cloned();
        found.ok_or_else(|| self.check_broken(name).err().unwrap_or_else(|| not_found(name)))
    }

    /// At most `most` machines after `after`, in the order of their names, and whether there are more.
    #[must_use]
    pub fn list(&self, after: Option<&Name>, most: usize) -> (Vec<Arc<Vm>>, bool) {
        let vms = self.vms();
        let mut rest = vms.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        let page = rest.by_ref().take(most).map(|(_, handle)| handle.watch.borrow().clone()).collect();
        (page, rest.next().is_some())
    }

    /// Machines that cannot be shown, since a record of theirs cannot be read, and why; in the order of their names.
    #[must_use]
    pub fn broken(&self) -> BTreeMap<Name, String> {
        let store = &self.0.context.store;
        // Of a machine whose own record is one of them, that is what is told.
        let all = [KIND_RUN, KIND_VM].into_iter().flat_map(|kind| store.broken(kind));
        all.filter_map(|Broken { id, why }| Some((id.parse().ok()?, why))).collect()
    }

    /// Records a machine; one with the same spec is found again.
    ///
    /// # Errors
    /// ALREADY_EXISTS if the name or a MAC is taken; FAILED_PRECONDITION if the host lacks what the spec names.
    pub async fn create(&self, new: NewVm) -> Result<Arc<Vm>, Fault> {
        let this = self.clone();
        self.to_the_end(async move { this.make(new).await }).await
    }

    async fn make(&self, new: NewVm) -> Result<Arc<Vm>, Fault> {
        if let Some(vm) = self.made(&new)? {
            return Ok(vm);
        }
        // Before the lock: a file system or a netd that hangs must hold up nobody else.
        self.check(&new).await.map_err(|e| e.context(format!("cannot create machine `{}`", new.name)))?;
        let _changing = self.0.changing.lock().await;
        if let Some(vm) = self.made(&new)? {
            return Ok(vm);
        }
        quota::check(self.vms().values(), &new)?;
        let NewVm { name, labels, spec, owner } = new;
        let macs = self.macs(&name, owner.uid, &spec)?;
        let now = Timestamp::now();
        let record = Record {
            name,
            uid: Uuid::new_v4(),
            generation: 1,
            create_time: now,
            update_time: now,
            labels,
            spec,
            macs,
            owner: owner.uid,
            confined: !owner.is_admin(),
        };
        let console = steps::effect(|| "make the console".to_owned(), || self.console(&record.name))?;
        let op = Op::put(KIND_VM, record.name.as_str(), &record)?;
        let news = News::of(EventKind::Created, record.resource(), "");
        let _told = match self.0.context.store.commit_telling(vec![op], vec![news]).await {
            Ok(told) => told,
            Err(fault) => {
                // It may have been there before; one with something in it stays.
                let _ = fs::remove_dir(self.0.context.state_folder(&record.name));
                return Err(fault.context(format!("cannot create machine `{}`", record.name)));
            }
        };
        let handle = self.add(record, console, Initial::AtRest(LastExit::default()));
        Ok(handle.watch.borrow().clone())
    }

    /// The machine that a create asks for, if it is there already.
    fn made(&self, new: &NewVm) -> Result<Option<Arc<Vm>>, Fault> {
        let NewVm { name, spec, owner, .. } = new;
        if let Ok(existing) = self.get(name) {
            let vm = existing.watch.borrow().clone();
            let own = owner.must_own("machine", vm.record.owner).is_ok();
            if own && vm.record.spec == *spec {
                return Ok(Some(vm));
            }
            return Err(Fault::new(
                Kind::AlreadyExists,
                "VM_EXISTS",
                format!("there is a machine `{name}` with another spec or owner"),
            )
            .hint("choose another name, or delete that machine first"));
        }
        self.check_broken(name)?;
        Ok(None)
    }

    fn check_broken(&self, name: &Name) -> Result<(), Fault> {
        let store = &self.0.context.store;
        [KIND_VM, KIND_RUN].iter().try_for_each(|kind| store.check_broken(kind, name.as_str()))
    }

    /// Carries out `work` even if whoever asked for it goes away: half of it would leave disk and memory apart.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        self.0
            .tasks
            .spawn(steps::change(work).instrument(Span::current()))
            .await
            .map_err(|e| Fault::internal("the task that makes and removes machines died").cause(&e))?
    }

    /// All that can be known before a start.
    async fn check(&self, new: &NewVm) -> Result<(), Fault> {
        let NewVm { name, spec, owner, .. } = new;
        let context = &self.0.context;
        context.check_paths(name)?;
        let (files, reach) = (spec.clone(), context.reach(!owner.is_admin(), owner.uid));
        tokio::task::spawn_blocking(move || files::check(&files, &reach))
            .await
            .map_err(|e| Fault::internal("the task that looks at files died").cause(&e))??;
        let networks: BTreeSet<&Name> = spec.nics.iter().map(|nic| &nic.network).collect();
        for network in networks {
            match context.ports.check_network(network).await {
                Ok(()) => {}
                Err(fault) if fault.kind() == Kind::NotFound => {
                    return Err(Fault::new(
                        Kind::FailedPrecondition,
                        "NETWORK_NOT_FOUND",
                        format!("there is no network `{network}`"),
                    )
                    .meta("network", network)
                    .hint(format!("make it first: kvmctl network create {network}")));
                }
                Err(fault) => return Err(fault.context(format!("cannot look up network `{network}`"))),
            }
        }
        Ok(())
    }

    /// An address for each NIC that no other machine has.
    fn macs(&self, name: &Name, owner: u32, spec: &Spec) -> Result<Vec<Mac>, Fault> {
        let mut taken = BTreeMap::new();
        for (other, handle) in self.vms().iter() {
            taken.extend(handle.watch.borrow().record.macs.iter().map(|mac| (*mac, other.clone())));
        }
        choose_macs((name, owner), spec, &taken)
    }

    /// Deletes a machine that does not run.
    ///
    /// # Errors
    /// NOT_FOUND if there is none, PERMISSION_DENIED if it is another's, FAILED_PRECONDITION if it runs.
    pub async fn delete(&self, name: &Name, by: &Caller) -> Result<(), Fault> {
        let (this, name, by) = (self.clone(), name.clone(), by.clone());
        let work = async move {
            let _changing = this.0.changing.lock().await;
            let handle = this.get(&name)?;
            // Looked at here: another's may have taken the name a moment ago.
            by.must_own("machine", handle.watch.borrow().record.owner)?;
            handle.carry_out(Verb::Delete).await?;
            this.vms().remove(&name);
            Ok(())
        };
        self.to_the_end(work).await
    }

    /// What happened.
    #[must_use]
    pub fn log(&self) -> &EventLog {
        self.0.context.store.events()
    }

    /// Tells each line of the audit log as an event, until `stop`.
    pub fn tell_of(&self, audit: &Audit, stop: CancellationToken) {
        self.0.tasks.spawn(audit::feed(audit, self.0.context.store.clone(), stop));
    }

    /// Tells that vmd ends, as the last thing. What was told before is then safe from the host's end too.
    pub async fn ended(&self) {
        let news = News::of(EventKind::Stopped, "", "vmd ended; guests go on");
        if let Err(fault) = self.0.context.store.commit_telling(Vec::new(), vec![news]).await {
            tracing::warn!(error = fault.chain(), "cannot keep the last event");
        }
    }

    /// Who may do what.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.0.context.access
    }

    /// This host's QEMU.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.0.context.host
    }

    /// Which layers of containment this host allows its machines.
    pub async fn containment(&self) -> Vec<Finding> {
        let accelerator =
            self.0.context.host.accelerator().map_or(Accelerator::Tcg, |choice| choice.accelerator);
        self.0.context.jail.findings_for(accelerator).await
    }

    /// What an operator should know about ports that a vmd of this user made and this one has no record of. Nobody
    /// deletes them: a vmd with another state may have. Nothing if netd does not answer. Callers share one look.
    pub async fn strays(&self) -> Vec<String> {
        let look = self.0.strays.share(self.look_for_strays());
        // A netd that hangs is no reason for this host's status to; whoever waits for another's look has no more patience.
        match tokio::time::timeout(NETDS_PATIENCE, look).await {
            Ok(Ok(strays)) => Vec::clone(&strays),
            _ => Vec::new(),
        }
    }

    async fn look_for_strays(&self) -> Result<Vec<String>, Fault> {
        let context = &self.0.context;
        let own = context.ports.own().await?;
        // After netd's answer: what it has was recorded before it was made.
        let known = context.store.load::<PortRecord>(KIND_PORT).await?;
        let recorded = known.records.into_iter().map(|(resource, _)| resource);
        let known: BTreeSet<_> = recorded.chain(known.broken.into_iter().map(|broken| broken.id)).collect();
        let strays = own.into_iter().filter(|resource| !known.contains(resource));
        let told = strays.map(|resource| {
            let words: Vec<_> = resource.split('/').collect();
            let (network, name) = (words.get(1).unwrap_or(&""), words.get(3).unwrap_or(&""));
            format!(
                "netd's port `{resource}` was made for a machine that this vmd has no record of: start vmd with the --state-dir that has, or, if its QEMU is gone, `kvmctl port delete {network} {name}`"
            )
        });
        Ok(told.collect())
    }

    /// Why changes cannot be made, if they cannot. It may wait for the file system.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.0.context.store.degraded()
    }

    /// What an operator should know about the records.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.0.context.store.warnings()
    }

    /// Waits until all drivers have ended, after `stop`.
    pub async fn join(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn vms(&self) -> MutexGuard<'_, BTreeMap<Name, Handle>> {
        self.0.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is no machine of that name.
#[must_use]
pub fn not_found(name: &Name) -> Fault {
    Fault::new(Kind::NotFound, "VM_NOT_FOUND", format!("there is no machine `{name}`"))
        .hint("`kvmctl vm list` shows those that are there")
}

/// Made of the owner too: what is set aside for another's machine of that name is not to be had.
fn choose_macs(
    (name, owner): (&Name, u32),
    spec: &Spec,
    taken: &BTreeMap<Mac, Name>,
) -> Result<Vec<Mac>, Fault> {
    let mut own: BTreeSet<Mac> = spec.nics.iter().filter_map(|nic| nic.mac).collect();
    let mut macs = Vec::new();
    for (index, nic) in spec.nics.iter().enumerate() {
        let mac = match nic.mac {
            Some(mac) => {
                if let Some(other) = taken.get(&mac) {
                    return Err(Fault::new(
                        Kind::AlreadyExists,
                        "MAC_TAKEN",
                        format!("machine `{other}` has a NIC with the MAC {mac}"),
                    )
                    .meta("mac", mac)
                    .meta("vm", other)
                    .hint("leave `mac` empty to get a unique one"));
                }
                mac
            }
            None => (0..)
                .map(|salt| Mac::derived(&format!("uids/{owner}/vms/{name}/nics/{index}"), salt))
                .find(|mac| !taken.contains_key(mac) && !own.contains(mac))
                .ok_or_else(|| Fault::internal("no MAC is free"))?,
        };
        own.insert(mac);
        macs.push(mac);
    }
    Ok(macs)
}

/// The file may be replaced while vmd runs; the running program may not.
fn own_program(found: PathBuf) -> PathBuf {
    let proc = PathBuf::from("/proc/self/exe");
    if proc.exists() { proc } else { found }
}

/// Makes a folder that only this user may look into.
fn private_folder(path: &Path, option: &str) -> Result<PathBuf, Fault> {
    let failed = |error: &std::io::Error| {
        Fault::new(Kind::FailedPrecondition, "FOLDER", format!("cannot use the folder `{}`", path.display()))
            .cause(error)
            .hint(format!("make it vmd's user's own, or choose another one with {option}"))
    };
    let path = std::path::absolute(path).map_err(|e| failed(&e))?;
    // Those above it are other daemons' way to theirs.
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| failed(&e))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| failed(&e))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(|e| failed(&e))?;
    Ok(path)
}

#[cfg(test)]
mod test;
