//! Takes over a QEMU that runs already.

use super::{Context, Live, MONITORS, Monitor, SERIAL, display};
use crate::{
    console::{Console, Pump},
    model::{Record, Run},
    ports::Ports,
    qemu::{
        process::Process,
        qmp::{self, Qmp},
        stderr::Stderr,
    },
};
use serde_json::Value;
use shared::fault::Fault;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// An adopted QEMU has long started.
const ADOPTION: Duration = Duration::from_secs(3);
/// How long the start of vmd waits for one QEMU; its driver has more patience.
const PROMPT: Duration = Duration::from_secs(1);

/// A running QEMU that answers again, and what it says of itself.
#[derive(Debug)]
pub struct Reunion {
    /// The new connection.
    pub monitor: Monitor,
    /// The virtual CPUs stand still.
    pub paused: bool,
    /// Where VNC is served; empty if it is not.
    pub vnc_address: String,
}

/// Connects to a QEMU that runs, by its first monitor, or by its second where somebody holds the first.
///
/// # Errors
/// UNAVAILABLE if it answers on neither, or not to what it is then asked.
pub async fn reconnect(record: &Record, folder: PathBuf) -> Result<Reunion, Fault> {
    let monitor = match Qmp::connect(&folder.join(MONITORS[0]), ADOPTION).await {
        Ok(monitor) => monitor,
        Err(_) => Qmp::connect(&folder.join(MONITORS[1]), qmp::DEADLINE).await?,
    };
    let (paused, vnc_address) = settle(record, &folder, &monitor.0).await?;
    Ok(Reunion { monitor, paused, vnc_address })
}

/// Takes over a process that was found to be the recorded one.
pub async fn take_over<P: Ports>(context: &Context<P>, record: &Record, run: Run, process: Process) -> Live {
    let folder = context.run_folder(&record.name);
    let mut live = Live {
        run,
        process,
        monitor: None,
        pump: None,
        stderr: Stderr::start(&folder, &context.state_folder(&record.name)).ok(),
        vnc_address: String::new(),
        paused: false,
        adopted: true,
    };
    match tokio::time::timeout(PROMPT, reconnect(record, folder)).await {
        Ok(Ok(Reunion { monitor, paused, vnc_address })) => {
            (live.monitor, live.paused, live.vnc_address) = (Some(monitor), paused, vnc_address);
        }
        Ok(Err(fault)) => tracing::warn!(vm = %record.name, error = fault.chain(), "QEMU does not answer"),
        Err(_) => tracing::warn!(vm = %record.name, "QEMU does not answer yet"),
    }
    live
}

/// Whether the guest stands still, and where its display is. A start that the earlier vmd left half-done is ended.
async fn settle(record: &Record, folder: &Path, qmp: &Qmp) -> Result<(bool, String), Fault> {
    let vnc = display::address(record, folder, qmp).await?;
    let status = qmp.execute("query-status", Value::Null).await?;
    if status["status"] == "prelaunch" {
        qmp.execute("cont", Value::Null).await?;
        return Ok((false, vnc));
    }
    Ok((status["running"] == false, vnc))
}

/// The console of an adopted guest.
pub async fn attach_console(folder: &Path, console: Arc<Console>) -> Option<Pump> {
    match Pump::start(&folder.join(SERIAL), console).await {
        Ok(pump) => Some(pump),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "the serial port cannot be reached");
            None
        }
    }
}
