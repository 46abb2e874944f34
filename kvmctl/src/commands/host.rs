//! `kvmctl host`.

use crate::{
    client::{Clients, DEADLINE, within},
    diagnose,
    output::{Printer, Stop, host::Host},
};
use proto::{netd::v1 as netd, vmd::v1 as vmd};
use shared::fault::Fault;

/// Shows what both daemons say. Where one cannot be reached the other's answer is printed all the same, and the
/// command fails.
///
/// # Errors
/// The first daemon's failure.
pub async fn show(clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let (netd, vmd) = tokio::join!(ask_netd(clients), ask_vmd(clients));
    let (netd, vmd) = match (netd, vmd) {
        (Err(first), Err(second)) => {
            printer.verbatim(&diagnose::render(&second, None));
            return Err(first.into());
        }
        answers => answers,
    };
    let (netd, first) = split(netd);
    let (vmd, second) = split(vmd);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    printer.show(&Host::new(name, netd, vmd))?;
    first.or(second).map_or(Ok(()), |fault| Err(fault.into()))
}

async fn ask_netd(clients: &Clients) -> Result<netd::Host, Fault> {
    let mut host = clients.netd_host()?;
    clients.netd.call(DEADLINE, host.get_host(within(DEADLINE, netd::GetHostRequest {}))).await
}

async fn ask_vmd(clients: &Clients) -> Result<vmd::Host, Fault> {
    let mut host = clients.vmd_host()?;
    clients.vmd.call(DEADLINE, host.get_host(within(DEADLINE, vmd::GetHostRequest {}))).await
}

fn split<T>(answer: Result<T, Fault>) -> (Option<T>, Option<Fault>) {
    match answer {
        Ok(host) => (Some(host), None),
        Err(fault) => (None, Some(fault)),
    }
}
