//! `kvmctl vm wait`.

use super::addresses;
use crate::{
    client::{Clients, DEADLINE},
    output::{address::GuestAddress, vm::Vm},
    resource,
};
use proto::vmd::v1::{self as wire, VmState};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::time::Duration;
use tonic::Request;

/// Pause before a lost watch is taken up again; vmd needs about this long to start.
const RECONNECT: Duration = Duration::from_millis(250);
/// Pause after a question to netd, for each of the machine's ports: at most three questions a second.
const PAUSE: Duration = Duration::from_millis(340);

/// States that a machine can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Running,
    Stopped,
    /// Any but RUNNING.
    AtRest,
}

/// Whether a state ends the wait.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    Failed,
    NotYet,
}

/// FAILED ends all waits, as BROKEN does, which only a daemon in disorder would send here: it is not what was hoped for, and it does not change by itself.
fn verdict(goal: Goal, state: VmState) -> Verdict {
    match (goal, state) {
        (_, VmState::Failed | VmState::Broken) => Verdict::Failed,
        (Goal::Running, VmState::Running) | (Goal::Stopped, VmState::Stopped) => Verdict::Reached,
        (
            Goal::AtRest,
            VmState::Unspecified | VmState::Stopped | VmState::Starting | VmState::Paused | VmState::Stopping,
        ) => Verdict::Reached,
        (
            _,
            VmState::Unspecified
            | VmState::Stopped
            | VmState::Starting
            | VmState::Running
            | VmState::Paused
            | VmState::Stopping,
        ) => Verdict::NotYet,
    }
}

/// Waits until a machine is running.
///
/// # Errors
/// DEADLINE_EXCEEDED after `timeout`; FAILED_PRECONDITION if the machine failed; what vmd said.
pub(super) async fn running(name: &Name, timeout: Duration, clients: &Clients) -> Result<Vm, Fault> {
    state(name, Goal::Running, timeout, clients).await
}

/// Waits until a machine is stopped.
///
/// # Errors
/// As `running`.
pub(super) async fn stopped(name: &Name, timeout: Duration, clients: &Clients) -> Result<Vm, Fault> {
    state(name, Goal::Stopped, timeout, clients).await
}

async fn state(name: &Name, goal: Goal, timeout: Duration, clients: &Clients) -> Result<Vm, Fault> {
    let word = if goal == Goal::Stopped { "stopped" } else { "running" };
    let mut last = None;
    tokio::time::timeout(timeout, watch(name, goal, clients, &mut last))
        .await
        .map_err(|_| too_late(name, &format!("was not {word}"), timeout, last.as_deref()))?
}

/// Waits until a machine runs and netd has seen or given an address of it that others can reach.
///
/// # Errors
/// As `running`; FAILED_PRECONDITION if it has no network card; what netd said.
pub(super) async fn addresses(
    name: &Name,
    timeout: Duration,
    clients: &Clients,
) -> Result<Vec<GuestAddress>, Fault> {
    let mut last = None;
    tokio::time::timeout(timeout, in_use(name, clients, &mut last)).await.map_err(|_| {
        too_late(name, "used no address", timeout, last.as_deref()).hint(
            "an address is seen when the guest announces it, asks for a neighbour, or has it from the network's \
             DHCP server",
        )
    })?
}

async fn in_use(
    name: &Name,
    clients: &Clients,
    last: &mut Option<String>,
) -> Result<Vec<GuestAddress>, Fault> {
    loop {
        let vm = watch(name, Goal::Running, clients, last).await?;
        *last = Some(vm.status.state.clone());
        // What a machine used before it was stopped is of no use: it is waited for anew.
        tokio::select! {
            left = watch(name, Goal::AtRest, clients, last) => {
                let vm = left?;
                *last = Some(vm.status.state);
            }
            found = look(name, &vm, clients) => return found,
        }
    }
}

/// Asks netd again and again. Only a netd that is not there in the beginning ends it.
async fn look(name: &Name, vm: &Vm, clients: &Clients) -> Result<Vec<GuestAddress>, Fault> {
    let ports = u32::try_from(vm.status.nics.len()).unwrap_or(u32::MAX);
    if ports == 0 {
        return Err(Fault::new(
            Kind::FailedPrecondition,
            "NO_NIC",
            format!("vm `{name}` has no network card, and will never have an address"),
        )
        .hint("create it with --network"));
    }
    let mut answered = false;
    loop {
        match addresses::ports(vm, clients).await {
            Ok(ports) => {
                let found: Vec<_> = ports.into_iter().flatten().flat_map(GuestAddress::in_use).collect();
                if !found.is_empty() {
                    return Ok(found);
                }
                answered = true;
            }
            Err(fault) if fault.kind() == Kind::Unavailable && answered => {}
            Err(fault) => return Err(fault),
        }
        tokio::time::sleep(PAUSE * ports).await;
    }
}

/// Watches until the goal is reached. A watch that vmd's restart cuts is taken up again: what counts is the state,
/// not the change. Only a vmd that is not there in the beginning ends it.
async fn watch(name: &Name, goal: Goal, clients: &Clients, last: &mut Option<String>) -> Result<Vm, Fault> {
    loop {
        let lost = match watch_once(name, goal, clients, last).await {
            Ok(Some(vm)) => return Ok(vm),
            Ok(None) => None,
            Err(fault) if fault.kind() == Kind::Unavailable => Some(fault),
            Err(fault) => return Err(fault),
        };
        if let (Some(fault), None) = (lost, &last) {
            return Err(fault);
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// One stream's worth of watching; `None` if it ended before the goal.
async fn watch_once(
    name: &Name,
    goal: Goal,
    clients: &Clients,
    last: &mut Option<String>,
) -> Result<Option<Vm>, Fault> {
    let request = Request::new(wire::WatchVmRequest { name: resource::vm(name) });
    let mut stream = clients.vmd.call(DEADLINE, clients.vms()?.watch_vm(request)).await?;
    while let Some(vm) = stream.message().await.map_err(|status| clients.vmd.fault(status))? {
        let state = vm.status.as_ref().map_or(VmState::Unspecified, wire::VmStatus::state);
        let vm = Vm::from(vm);
        match verdict(goal, state) {
            Verdict::Reached => return Ok(Some(vm)),
            Verdict::Failed => return Err(failed(name, &vm)),
            Verdict::NotYet => *last = Some(vm.status.state),
        }
    }
    Ok(None)
}

fn too_late(name: &Name, what: &str, timeout: Duration, state: Option<&str>) -> Fault {
    let seconds = timeout.as_secs_f64();
    let state = state.map_or_else(String::new, |state| format!(", it is {state}"));
    let text = format!("vm `{name}` {what} within {seconds} s{state}");
    Fault::new(Kind::DeadlineExceeded, "WAIT_TIMED_OUT", text)
        .hint(format!("`kvmctl vm show {name}` and `kvmctl vm log {name}` tell more"))
}

fn failed(name: &Name, vm: &Vm) -> Fault {
    let fault = Fault::new(Kind::FailedPrecondition, "VM_FAILED", format!("vm `{name}` failed"));
    [&vm.status.error, &vm.status.exit_reason]
        .into_iter()
        .flatten()
        .fold(fault, |fault, why| fault.cause(&std::io::Error::other(why.clone())))
        .hint(format!("`kvmctl vm log {name}` shows what the guest said last"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_the_goal_and_a_failure_end_a_wait() {
        assert_eq!(verdict(Goal::Running, VmState::Running), Verdict::Reached);
        assert_eq!(verdict(Goal::Stopped, VmState::Stopped), Verdict::Reached);
        assert_eq!(verdict(Goal::AtRest, VmState::Running), Verdict::NotYet);
        for goal in [Goal::Running, Goal::Stopped, Goal::AtRest] {
            assert_eq!(verdict(goal, VmState::Failed), Verdict::Failed);
        }
        for state in [VmState::Starting, VmState::Paused, VmState::Stopping, VmState::Unspecified] {
            assert_eq!(verdict(Goal::Running, state), Verdict::NotYet, "{state:?}");
            assert_eq!(verdict(Goal::Stopped, state), Verdict::NotYet, "{state:?}");
            assert_eq!(verdict(Goal::AtRest, state), Verdict::Reached, "{state:?}");
        }
        assert_eq!(verdict(Goal::Running, VmState::Stopped), Verdict::NotYet);
    }
}
