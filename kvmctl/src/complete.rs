//! Names for the shell's completion, asked of the daemons. A shell must never wait or see an error: whatever fails
//! offers nothing.

use crate::{
    client::{Clients, DEFAULT_NETD, DEFAULT_VMD},
    listing,
};
use clap_complete::CompletionCandidate;
use shared::fault::Fault;
use std::{ffi::OsStr, time::Duration};

/// The longest pause at a press of Tab.
const PATIENCE: Duration = Duration::from_millis(500);

/// Names of networks.
#[must_use]
pub fn networks(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, async |clients| {
        Ok(listing::networks(clients).await?.into_iter().map(|network| network.name).collect())
    })
}

/// Names of groups.
#[must_use]
pub fn groups(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, async |clients| {
        Ok(listing::groups(clients).await?.into_iter().map(|group| group.name).collect())
    })
}

/// Names of machines.
#[must_use]
pub fn vms(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, async |clients| {
        Ok(listing::vms(clients).await?.into_iter().map(|vm| vm.name).collect())
    })
}

/// Names of ports: of the network that is on the line already.
#[must_use]
pub fn ports(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, async |clients| {
        let words: Vec<String> = std::env::args().collect();
        let ports = listing::ports(clients, None).await?;
        Ok(ports.into_iter().filter(|port| words.contains(&port.network)).map(|port| port.name).collect())
    })
}

/// Names of forwards: of the network that is on the line already.
#[must_use]
pub fn forwards(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, async |clients| {
        let words: Vec<String> = std::env::args().collect();
        let all = listing::forwards(clients, None).await?;
        Ok(all.into_iter().filter(|one| words.contains(&one.network)).map(|one| one.name).collect())
    })
}

fn candidates(
    current: &OsStr,
    names: impl AsyncFnOnce(&Clients) -> Result<Vec<String>, Fault>,
) -> Vec<CompletionCandidate> {
    let (Some(current), Ok(runtime)) =
        (current.to_str(), tokio::runtime::Builder::new_current_thread().enable_all().build())
    else {
        return Vec::new();
    };
    let found = runtime.block_on(async {
        let clients = clients();
        tokio::time::timeout(PATIENCE, names(&clients)).await
    });
    let Ok(Ok(found)) = found else { return Vec::new() };
    found.into_iter().filter(|name| name.starts_with(current)).map(CompletionCandidate::new).collect()
}

/// The daemons at the addresses that the line, the environment or the defaults have.
fn clients() -> Clients {
    let words: Vec<String> = std::env::args().collect();
    let address = |option: &str, variable: &str, default: &str| {
        words
            .windows(2)
            .find(|pair| pair[0] == option)
            .map(|pair| pair[1].clone())
            .or_else(|| {
                words.iter().find_map(|w| Some(w.strip_prefix(option)?.strip_prefix('=')?.to_owned()))
            })
            .or_else(|| std::env::var(variable).ok())
            .unwrap_or_else(|| default.to_owned())
    };
    let netd = address("--netd", "KVMCTL_NETD", DEFAULT_NETD);
    Clients::new(&netd, &address("--vmd", "KVMCTL_VMD", DEFAULT_VMD))
}
