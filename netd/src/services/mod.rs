//! DHCP, DNS and router advertisements: one dnsmasq a network, unprivileged, watched, and never parsed.
//!
//! `render` makes its configuration of records, `folder` keeps it on disk, `files` knows what the process has to be told
//! of it, `launch` starts the process, `engine` knows what should run and looks after it. netd's own end leaves the processes running; the next netd takes them over.
//!
//! A changed setting is another configuration file and another process; a new port is two new files, which dnsmasq
//! notices by itself.

pub mod confine;
mod engine;
mod files;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod launch;
mod lease;
mod release;
mod render;
mod unit;

pub use engine::{Engine, Settings};
pub use lease::Lease;

use crate::model::{Network, Port};
use folder::Folder;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shared::{fault::Fault, name::Name, process};
use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

/// Ends the servers of a run folder that belong to another user, as only root can: the next netd starts them anew.
pub fn end_those_of_others(run_dir: &Path, uid: u32) {
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(record) = name.and_then(|name| Folder::new(run_dir, &name).record()) else { continue };
        let Some(pid) = Pid::from_raw(record.pid.cast_signed()) else { continue };
        // Held before it is looked at, so that it cannot be another by then.
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let theirs = process::uid(record.pid).is_ok_and(|is| is != uid)
            && process::identity(record.pid).is_ok_and(|is| is == record.identity);
        if theirs {
            // One that is gone by now is as good.
            let _ = pidfd_send_signal(&held, Signal::TERM);
        }
    }
}

/// Whether guests of a network are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not yet.
    Starting,
    /// By the process of this number.
    Running(u32),
    /// No, and why.
    Failed(String),
}

/// Tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([i64; 4]);

/// A handle on the services of all networks; clones share it. Without an engine nothing runs, and everything succeeds.
#[derive(Clone, Debug, Default)]
pub struct Services(Option<Arc<Engine>>);

impl Services {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Those of an engine.
    #[must_use]
    pub fn of(engine: Arc<Engine>) -> Self {
        Self(Some(engine))
    }

    /// Makes a network's services be as recorded, and returns when they answer. Nothing happens if they do.
    /// What there is for its `broken` ports, whose records cannot be read, stays as it is.
    ///
    /// # Errors
    /// Why they cannot run; it is tried again.
    pub async fn bring<'a>(
        &self,
        network: &Network,
        ports: impl Iterator<Item = &'a Port>,
        broken: BTreeSet<Name>,
    ) -> Result<(), Fault> {
        match &self.0 {
            Some(engine) => engine.bring(network, ports, broken).await,
            None => Ok(()),
        }
    }

    /// As `bring`, where nobody waits for this network alone: one that is being started, or whose start has failed a moment
    /// ago, is left to those who look after it.
    ///
    /// # Errors
    /// As `bring`.
    pub async fn settle<'a>(
        &self,
        network: &Network,
        ports: impl Iterator<Item = &'a Port>,
        broken: BTreeSet<Name>,
    ) -> Result<(), Fault> {
        match &self.0 {
            Some(engine) => engine.settle(network, ports, broken).await,
            None => Ok(()),
        }
    }

    /// Ends a network's services and removes their files.
    ///
    /// # Errors
    /// If the process or a file cannot be removed.
    pub async fn remove(&self, network: &Network) -> Result<(), Fault> {
        match &self.0 {
            Some(engine) => engine.remove(network).await,
            None => Ok(()),
        }
    }

    /// Makes a port's addresses and names known, also to a process that is being started just now, which nobody waits
    /// for. What it costs does not depend on how many there are.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn put_port(&self, port: &Port) -> Result<(), Fault> {
        match &self.0 {
            Some(engine) => engine.put_port(port),
            None => Ok(()),
        }
    }

    /// Takes a port's addresses and names back, its leases too.
    ///
    /// # Errors
    /// If the files cannot be removed.
    pub fn remove_port(&self, port: &Port) -> Result<(), Fault> {
        match &self.0 {
            Some(engine) => engine.remove_port(port),
            None => Ok(()),
        }
    }

    /// What this host lacks to keep a dnsmasq in that was taken over.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.0.as_ref().map_or_else(Vec::new, |engine| engine.warnings())
    }

    /// How a network is served.
    #[must_use]
    pub fn status(&self, network: &Name) -> Status {
        self.0.as_ref().map_or(Status::Starting, |engine| engine.status(network))
    }

    /// Another one, if what a network's DHCP server has given out may be; `None`: nothing.
    #[must_use]
    pub fn lease_stamp(&self, network: &Name) -> Option<Stamp> {
        self.0.as_ref()?.lease_stamp(network)
    }

    /// What a network's DHCP server has given out, in the order of the addresses.
    #[must_use]
    pub fn leases(&self, network: &Name) -> Vec<Lease> {
        self.0.as_ref().map_or_else(Vec::new, |engine| engine.leases(network))
    }
}
