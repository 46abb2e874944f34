//! From a record to a running guest, and back where a step fails.
//!
//! Open files → ports and taps → sockets → spawn at the gate → durable run record → release → monitor and console
//! answer → the virtual CPUs go on. `Undo` knows which of these were taken, and takes them back in reverse.

mod confine;
mod display;
mod group;
mod images;
mod nics;
mod reunion;
mod undo;

use crate::{
    console::{Console, Pump},
    jail::host::{Jail, user_of},
    model::{Accelerator, KIND_EXIT, KIND_RUN, Record, Run},
    ports::{Port, Ports, Releases},
    qemu::{
        args::{self, BackingWire, DiskWire, NicWire, Plan, Wiring},
        files::{self, Image, OpenDisk},
        host::Host,
        launch::{self, FIRST_FD, Launch},
        process::{self, Exit, Process},
        qmp::{Event, Qmp},
        reach::Reach,
        stderr::Stderr,
        tap,
    },
};
pub use nics::port_names;
pub use reunion::{Reunion, attach_console, reconnect, take_over};
use serde_json::Value;
use shared::{
    access::Access,
    fault::{Fault, Kind},
    name::Name,
    steps,
    store::{Op, Store},
    time::Timestamp,
};
use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use undo::Undo;
pub use undo::{Failed, clean_up, end_unseen, kill, remove_folder};

/// `sun_path` of <sys/un.h>, without the final zero.
const MAX_SOCKET_PATH: usize = 107;
const MONITORS: [&str; 2] = ["qmp0", "qmp1"];
const SERIAL: &str = "serial";
/// From the release to the greeting: QEMU allocates memory and reads firmware and kernel in this time.
const GREETING: Duration = Duration::from_secs(30);
/// How long the answer of a dying QEMU may precede its death.
const DYING: Duration = Duration::from_millis(500);
const SERIAL_TRIES: usize = 50;
const SERIAL_PAUSE: Duration = Duration::from_millis(10);

/// What every machine's driver works with.
#[derive(Debug)]
pub struct Context<P> {
    /// The records.
    pub store: Store,
    /// Whoever makes ports.
    pub ports: P,
    /// The record of ports.
    pub releases: Releases<P>,
    /// Who may do what.
    pub access: Access,
    /// This host's QEMU.
    pub host: Host,
    /// What keeps QEMU in on this host.
    pub jail: Jail,
    /// This program, which is the child's first program.
    pub launcher: PathBuf,
    /// Folder of the sockets.
    pub run_dir: PathBuf,
    /// Folder of the console logs.
    pub state_dir: PathBuf,
    /// vmd ends.
    pub stop: CancellationToken,
}

impl<P> Context<P> {
    /// A machine's folder of sockets.
    #[must_use]
    pub fn run_folder(&self, name: &Name) -> PathBuf {
        self.run_dir.join("vms").join(name.as_str())
    }

    /// A machine's folder of logs.
    #[must_use]
    pub fn state_folder(&self, name: &Name) -> PathBuf {
        self.state_dir.join("vms").join(name.as_str())
    }

    /// Which files of the host a machine may be given.
    #[must_use]
    pub fn reach(&self, confined: bool, owner: u32) -> Reach {
        if !confined {
            return Reach::Anywhere;
        }
        let socket_group = self.access.socket_group();
        Reach::Beneath { folders: self.access.images(), owner, socket_group }
    }

    /// Whether the machine's sockets have room in an address.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the path is too long.
    pub fn check_paths(&self, name: &Name) -> Result<(), Fault> {
        let longest = self.run_folder(name).join(args::VNC_SOCKET);
        let length = longest.as_os_str().as_bytes().len();
        if length <= MAX_SOCKET_PATH {
            return Ok(());
        }
        Err(Fault::new(
            Kind::FailedPrecondition,
            "PATH_TOO_LONG",
            format!(
                "the path of a socket of machine `{name}` would have {length} bytes, and {MAX_SOCKET_PATH} is the most"
            ),
        )
        .hint("start vmd with a shorter --run-dir, or give the machine a shorter name"))
    }
}

/// A monitor, and what it tells by itself.
pub type Monitor = (Qmp, mpsc::Receiver<Event>);

/// A running QEMU and all that holds on to it. Dropping this lets it go on.
#[derive(Debug)]
pub struct Live {
    /// Its record.
    pub run: Run,
    /// Its process.
    pub process: Process,
    /// `None`: it does not answer.
    pub monitor: Option<Monitor>,
    /// `None`: the serial port could not be reached.
    pub pump: Option<Pump>,
    /// `None`: its stderr could not be reached.
    pub stderr: Option<Stderr>,
    /// Where VNC is served; empty if it is not.
    pub vnc_address: String,
    /// The virtual CPUs stand still.
    pub paused: bool,
    /// An earlier vmd started it.
    pub adopted: bool,
}

/// Starts a machine. If that fails, or `cancel` comes first, nothing of it is left but a process that does not end.
///
/// # Errors
/// What failed, with QEMU's last words where it had any.
pub async fn launch<P: Ports>(
    context: Arc<Context<P>>,
    record: Record,
    console: Arc<Console>,
    cancel: CancellationToken,
) -> Result<Live, Box<Failed>> {
    let mut undo = Undo::default();
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Fault::new(Kind::Aborted, "STOPPED", "it was stopped while it was starting")),
        result = steps(&context, &record, console, &mut undo) => result,
    };
    match result {
        Ok(live) => Ok(live),
        Err(fault) => Err(Box::new(undo.run(&context, &record, fault).await)),
    }
}

async fn steps<P: Ports>(
    context: &Context<P>,
    record: &Record,
    console: Arc<Console>,
    undo: &mut Undo,
) -> Result<Live, Fault> {
    // Before anything of a run that nobody knows of is touched.
    group::vacate(context, record).await?;
    let choice = context.host.accelerator()?;
    let qemu_file = context.host.file().ok();
    let version = context.host.version().await?;
    let cpu_model = cpu_model(record, choice.accelerator)?;
    let disks = open_disks(record, context.reach(record.confined, record.owner)).await?;
    let images = images::images(&record.spec.disks, &disks)
        .map_err(|e| Fault::internal("cannot look at an open disk").cause(&e))?;
    images::check(context, record, &images).await?;
    let mut confined = confine::confine(context, record, choice.accelerator, &disks).await?;
    let ports = nics::make_ports(context, record, undo).await?;
    let taps = ports
        .iter()
        .map(|port| tap::open(&port.interface, port.owner_uid).map(OwnedFd::from))
        .collect::<Result<Vec<_>, _>>()?;

    context.check_paths(&record.name)?;
    let folder = context.run_folder(&record.name);
    undo.folder = true;
    let listeners = steps::effect(|| "make the run folder".to_owned(), || listen(&folder))?;
    let display = display::listen(context, record)?;
    let state = context.state_folder(&record.name);
    undo.stderr = Some(Stderr::start(&folder, &state).map_err(|e| folder_fault(&folder, &e))?);
    let stderr = Stderr::writer(&folder).map_err(|e| folder_fault(&folder, &e))?;

    group::make(context, record, &mut confined, undo)?;

    let args = args::argv(&Plan {
        name: &record.name,
        uuid: record.uid,
        spec: &confined.spec,
        accelerator: choice.accelerator,
        cpu_model: &cpu_model,
        wiring: wiring(record, &disks, &ports),
    });
    let (disks, behind): (Vec<OwnedFd>, Vec<Vec<Image>>) =
        disks.into_iter().map(|disk| (disk.image.file.into(), disk.backing)).unzip();
    let behind = behind.into_iter().flatten().map(|image| image.file.into());
    let fds = listeners.into_iter().chain(disks).chain(behind).chain(taps).collect();
    let binary = context.host.binary();
    let user = user_of(&confined.jail);
    let group = confined.jail.group.clone();
    let launch = Launch {
        launcher: &context.launcher,
        binary,
        args: &args,
        folder: &folder,
        stderr,
        jail: confined.jail,
        files: confined.files,
    };
    let (pid, mut gate) = launch::spawn(launch, fds)?;
    let lost =
        |error: &std::io::Error| Fault::internal("lost the process that was to become QEMU").cause(error);
    let process = match Process::open(pid) {
        Ok(process) => undo.process.insert(process),
        Err(error) => {
            // It ends at its gate, and would stay a zombie.
            drop(gate);
            process::reap(pid).await;
            return Err(lost(&error));
        }
    };
    let identity = process::identity(pid).map_err(|e| lost(&e))?;

    let run = Run {
        boot_id: identity.boot_id,
        machine: Some(record.uid),
        pid,
        start_ticks: identity.start_ticks,
        uid: user.uid,
        qemu_binary: binary.display().to_string(),
        qemu_version: version,
        nonce: uuid::Uuid::new_v4(),
        start_time: Timestamp::now(),
        accelerator: choice.accelerator,
        cpu_model,
        addresses: ports.iter().map(|port| port.addresses).collect(),
        indices: ports.iter().map(|port| tap::index(&port.interface)).collect(),
        interfaces: ports.into_iter().map(|port| port.interface).collect(),
        warnings: choice.warning.into_iter().collect(),
        containment: confined.findings,
        group,
        group_id: undo.group.as_ref().and_then(|group| group.id()),
        images,
        qemu_file,
    };
    let name = record.name.as_str();
    steps::point(|| "after the spawn".to_owned())?;
    undo.run = Some(run.clone());
    context.store.commit(vec![Op::put(KIND_RUN, name, &run)?, Op::delete(KIND_EXIT, name)]).await?;
    steps::point(|| "before the console".to_owned())?;
    // Connected before QEMU is there, so that the guest's first byte has a reader.
    let pump = Pump::start(&folder.join(SERIAL), console).await.map_err(|e| folder_fault(&folder, &e))?;
    gate.ready().await?;
    steps::point(|| "before the gate".to_owned())?;
    gate.release().map_err(|e| lost(&e))?;
    steps::point(|| "after the gate".to_owned())?;
    let (monitor, vnc_address) = bring_up(record, &folder, process, display).await?;
    steps::point(|| "after the guest runs".to_owned())?;
    let (process, stderr) = (undo.process.take(), undo.stderr.take());
    Ok(Live {
        run,
        process: process.ok_or_else(|| Fault::internal("the process is gone"))?,
        monitor: Some(monitor),
        pump: Some(pump),
        stderr,
        vnc_address,
        paused: false,
        adopted: false,
    })
}

fn cpu_model(record: &Record, accelerator: Accelerator) -> Result<String, Fault> {
    match (record.spec.cpu_model.as_deref(), accelerator) {
        (Some("host"), Accelerator::Tcg) => Err(Fault::new(
            Kind::FailedPrecondition,
            "CPU_MODEL",
            "CPU model `host` needs KVM, and this machine would run on TCG",
        )
        .hint("leave `cpu_model` empty: it is `host` on KVM and `max` on TCG")),
        (Some(model), _) => Ok(model.to_owned()),
        (None, Accelerator::Kvm) => Ok("host".into()),
        (None, Accelerator::Tcg) => Ok("max".into()),
    }
}

async fn open_disks(record: &Record, reach: Reach) -> Result<Vec<OpenDisk>, Fault> {
    let spec = record.spec.clone();
    // A dead network file system may block for long.
    tokio::task::spawn_blocking(move || {
        spec.disks.iter().map(|disk| files::open_disk(disk, &reach)).collect()
    })
    .await
    .map_err(|e| Fault::internal("the task that opens disks died").cause(&e))?
}

fn folder_fault(folder: &Path, error: &dyn std::error::Error) -> Fault {
    Fault::new(
        Kind::FailedPrecondition,
        "RUN_DIR",
        format!("cannot use the machine's run folder, `{}`", folder.display()),
    )
    .cause(error)
    .hint("vmd's user must be able to write there; see --run-dir")
}

/// Makes the folder anew and binds the sockets that QEMU is to listen on: two monitors and the serial port.
fn listen(folder: &Path) -> Result<Vec<OwnedFd>, Fault> {
    let failed = |error: std::io::Error| folder_fault(folder, &error);
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let bind = |name: &&str| UnixListener::bind(folder.join(name)).map(OwnedFd::from);
    MONITORS.iter().chain(&[SERIAL]).map(bind).collect::<Result<_, _>>().map_err(failed)
}

/// The numbers follow the order of `steps`: sockets, disks, what is behind them, taps.
fn wiring(record: &Record, disks: &[OpenDisk], ports: &[Port]) -> Wiring {
    let mut numbers = FIRST_FD + 3..;
    let fds: Vec<i32> = disks.iter().zip(&mut numbers).map(|(_, fd)| fd).collect();
    let mut behind = |disk: &OpenDisk| -> Vec<BackingWire> {
        let images = disk.backing.iter().zip(&mut numbers);
        let wire = |(image, fd): (&Image, i32)| {
            let &Image { block_device, format, .. } = image;
            BackingWire { fd, block_device, format }
        };
        images.map(wire).collect()
    };
    Wiring {
        monitors: [FIRST_FD, FIRST_FD + 1],
        serial: FIRST_FD + 2,
        disks: disks
            .iter()
            .zip(fds)
            .map(|(disk, fd)| DiskWire { fd, block_device: disk.image.block_device, backing: behind(disk) })
            .collect(),
        nics: ports
            .iter()
            .zip(&record.macs)
            .zip(numbers)
            .map(|((port, mac), fd)| NicWire { fd, mac: *mac, mtu: port.mtu })
            .collect(),
    }
}

/// From the release of the gate until the guest runs.
async fn bring_up(
    record: &Record,
    folder: &Path,
    process: &Process,
    display: Option<OwnedFd>,
) -> Result<(Monitor, String), Fault> {
    let speak = async {
        let (qmp, events) = Qmp::connect(&folder.join(MONITORS[0]), GREETING).await?;
        serial_connected(&qmp).await?;
        if let Some(listener) = display {
            display::give(&qmp, listener).await?;
        }
        let vnc = display::address(record, folder, &qmp).await?;
        qmp.execute("cont", Value::Null).await?;
        Ok(((qmp, events), vnc))
    };
    tokio::select! {
        biased;
        exit = process.exited() => Err(died(exit)),
        result = speak => match result {
            Ok(up) => Ok(up),
            // A dying QEMU closes its sockets first; its death says more.
            Err(fault) => Err(tokio::time::timeout(DYING, process.exited()).await.map_or(fault, died)),
        },
    }
}

fn died(exit: Exit) -> Fault {
    Fault::new(Kind::FailedPrecondition, "QEMU_DIED", exit_words(exit))
}

/// How QEMU ended, in words.
#[must_use]
pub fn exit_words(exit: Exit) -> String {
    match exit {
        Exit::Code(0) => "QEMU ended".into(),
        Exit::Code(code) => format!("QEMU ended with exit code {code}"),
        Exit::Signal(signal) => format!("QEMU died with signal {signal}"),
        Exit::Unknown => "QEMU ended, exit code unknown".into(),
    }
}

/// Waits until QEMU has taken our connection: what the guest says before that would be lost.
async fn serial_connected(qmp: &Qmp) -> Result<(), Fault> {
    for _ in 0..SERIAL_TRIES {
        let devices = qmp.execute("query-chardev", Value::Null).await?;
        let waiting = devices.as_array().into_iter().flatten().any(|device| {
            device["label"] == args::SERIAL
                && device["filename"].as_str().is_some_and(|name| name.starts_with("disconnected:"))
        });
        if !waiting {
            return Ok(());
        }
        tokio::time::sleep(SERIAL_PAUSE).await;
    }
    tracing::warn!("QEMU does not take the connection to its serial port; output may be lost");
    Ok(())
}

#[cfg(test)]
mod test;
