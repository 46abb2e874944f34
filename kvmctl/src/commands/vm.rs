//! `kvmctl vm`, except the console.

use super::{console, resource};
use crate::{
    cli::{CreateVm, Goal, VmCommand, VmName, VncChoice},
    client::{Clients, DEADLINE, MARGIN, within},
    output::{Printer, Stop, vm::Vm},
};
use proto::vmd::v1::{self as wire, VmState, VncListen};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::time::Duration;
use tonic::Request;

/// What a start may take: vmd's own limit is not told, so the default time-out of a stop stands for it.
const START: Duration = Duration::from_secs(60).saturating_add(MARGIN);
/// What a forced stop may take.
const FORCED_STOP: Duration = MARGIN;
/// Pause before a lost watch is taken up again; vmd needs about this long to start.
const RECONNECT: Duration = Duration::from_millis(250);

/// Carries out a command on machines.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: VmCommand, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        VmCommand::Create(asked) => {
            let vm = create(*asked, clients).await?;
            printer.changed("vm", "created", &vm)
        }
        VmCommand::Run(asked) => {
            let name = create(*asked, clients).await?.name;
            let vm = start(&name, clients).await.map_err(|fault| {
                fault.context(format!("machine `{name}` is recorded, but was not started")).hint(format!(
                    "`kvmctl vm start {name}` tries again, `kvmctl vm delete {name}` takes it back"
                ))
            })?;
            printer.changed("vm", "started", &vm)
        }
        VmCommand::Start(VmName { name }) => {
            printer.changed("vm", "started", &start(name.as_str(), clients).await?)
        }
        VmCommand::Stop { vm, timeout, force } => {
            let vm = stop(&vm.name, timeout, force, clients).await?;
            printer.changed("vm", "stopped", &vm)
        }
        VmCommand::Reset(VmName { name }) => {
            let request = within(DEADLINE, wire::ResetVmRequest { name: resource::vm(&name) });
            let vm = clients.vmd.call(DEADLINE, clients.vms()?.reset_vm(request)).await?;
            printer.changed("vm", "reset", &Vm::from(vm))
        }
        VmCommand::Pause(VmName { name }) => {
            let request = within(DEADLINE, wire::PauseVmRequest { name: resource::vm(&name) });
            let vm = clients.vmd.call(DEADLINE, clients.vms()?.pause_vm(request)).await?;
            printer.changed("vm", "paused", &Vm::from(vm))
        }
        VmCommand::Resume(VmName { name }) => {
            let request = within(DEADLINE, wire::ResumeVmRequest { name: resource::vm(&name) });
            let vm = clients.vmd.call(DEADLINE, clients.vms()?.resume_vm(request)).await?;
            printer.changed("vm", "resumed", &Vm::from(vm))
        }
        VmCommand::Delete(VmName { name }) => {
            let request = within(DEADLINE, wire::DeleteVmRequest { name: resource::vm(&name) });
            clients.vmd.call(DEADLINE, clients.vms()?.delete_vm(request)).await?;
            printer.deleted("vm", name.as_str())
        }
        VmCommand::List => printer.list(&all(clients).await?),
        VmCommand::Show(VmName { name }) => {
            let request = within(DEADLINE, wire::GetVmRequest { name: resource::vm(&name) });
            let vm = clients.vmd.call(DEADLINE, clients.vms()?.get_vm(request)).await?;
            printer.show(&Vm::from(vm))
        }
        VmCommand::Console(VmName { name }) => console::attach(&name, clients, printer).await,
        VmCommand::Log { vm, follow } => console::log(&vm.name, follow, clients, printer).await,
        VmCommand::Wait { vm, goal, timeout } => {
            let (found, done) = wait(&vm.name, goal, timeout, clients).await?;
            printer.changed("vm", done, &found)
        }
    }
}

/// All machines, in the order of their names.
///
/// # Errors
/// What vmd said.
pub async fn all(clients: &Clients) -> Result<Vec<Vm>, Fault> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = within(DEADLINE, wire::ListVmsRequest { page_size: 0, page_token });
        let page = clients.vmd.call(DEADLINE, clients.vms()?.list_vms(request)).await?;
        found.extend(page.vms.into_iter().map(Vm::from));
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}

async fn create(asked: CreateVm, clients: &Clients) -> Result<Vm, Fault> {
    let vm = wire::Vm { name: resource::vm(&asked.name), spec: Some(spec(asked)), ..Default::default() };
    let request = within(DEADLINE, wire::CreateVmRequest { vm: Some(vm) });
    Ok(clients.vmd.call(DEADLINE, clients.vms()?.create_vm(request)).await?.into())
}

fn spec(asked: CreateVm) -> wire::VmSpec {
    wire::VmSpec {
        vcpus: asked.vcpus,
        memory_bytes: asked.memory,
        cpu_model: asked.cpu_model.unwrap_or_default(),
        disks: asked.disks,
        kernel_boot: asked.kernel.map(|kernel| wire::KernelBoot {
            kernel,
            initrd: asked.initrd.unwrap_or_default(),
            cmdline: asked.cmdline.unwrap_or_default(),
        }),
        nics: asked.nics,
        vnc: asked.vnc.map(|choice| {
            let listen = match choice {
                VncChoice::Unix => VncListen::Unix,
                VncChoice::Tcp => VncListen::Tcp,
            };
            wire::Vnc { listen: listen.into() }
        }),
    }
}

async fn start(name: &str, clients: &Clients) -> Result<Vm, Fault> {
    let request = within(START, wire::StartVmRequest { name: format!("vms/{name}") });
    Ok(clients.vmd.call(START, clients.vms()?.start_vm(request)).await?.into())
}

async fn stop(name: &Name, timeout: Duration, force: bool, clients: &Clients) -> Result<Vm, Fault> {
    let deadline = if force { FORCED_STOP } else { timeout + MARGIN };
    let timeout = prost_types::Duration {
        seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(timeout.subsec_nanos()).unwrap_or(0),
    };
    let request = wire::StopVmRequest { name: resource::vm(name), timeout: Some(timeout), force };
    let call = within(deadline, request);
    Ok(clients.vmd.call(deadline, clients.vms()?.stop_vm(call)).await?.into())
}

/// Whether a state ends the wait.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    Failed,
    NotYet,
}

/// FAILED ends both waits: it is not what was hoped for, and it does not change by itself.
fn verdict(goal: Goal, state: VmState) -> Verdict {
    match (goal, state) {
        (Goal::Running, VmState::Running) | (Goal::Stopped, VmState::Stopped) => Verdict::Reached,
        (_, VmState::Failed) => Verdict::Failed,
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

async fn wait(
    name: &Name,
    goal: Goal,
    timeout: Duration,
    clients: &Clients,
) -> Result<(Vm, &'static str), Fault> {
    let (word, done) = match goal {
        Goal::Running => ("running", "is running"),
        Goal::Stopped => ("stopped", "is stopped"),
    };
    let mut last = None;
    let vm = tokio::time::timeout(timeout, watch(name, goal, clients, &mut last)).await.map_err(|_| {
        let state = last.map_or_else(String::new, |state| format!(", it is {state}"));
        let text = format!("vm `{name}` was not {word} within {}{state}", seconds(timeout));
        Fault::new(Kind::DeadlineExceeded, "WAIT_TIMED_OUT", text)
            .hint(format!("`kvmctl vm show {name}` and `kvmctl vm log {name}` tell more"))
    })??;
    Ok((vm, done))
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

fn failed(name: &Name, vm: &Vm) -> Fault {
    let fault = Fault::new(Kind::FailedPrecondition, "VM_FAILED", format!("vm `{name}` failed"));
    [&vm.status.error, &vm.status.exit_reason]
        .into_iter()
        .flatten()
        .fold(fault, |fault, why| fault.cause(&std::io::Error::other(why.clone())))
        .hint(format!("`kvmctl vm log {name}` shows what the guest said last"))
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_the_goal_and_a_failure_end_a_wait() {
        assert_eq!(verdict(Goal::Running, VmState::Running), Verdict::Reached);
        assert_eq!(verdict(Goal::Stopped, VmState::Stopped), Verdict::Reached);
        for goal in [Goal::Running, Goal::Stopped] {
            assert_eq!(verdict(goal, VmState::Failed), Verdict::Failed);
            for state in [VmState::Starting, VmState::Paused, VmState::Stopping, VmState::Unspecified] {
                assert_eq!(verdict(goal, state), Verdict::NotYet, "{state:?}");
            }
        }
        assert_eq!(verdict(Goal::Running, VmState::Stopped), Verdict::NotYet);
    }
}
