//! `kvmctl vm`, except the console.

mod addresses;
mod wait;

use super::{console, watch};
use crate::{
    cli::{CreateVm, Goal, VmCommand, VmName, VncChoice},
    client::{Clients, DEADLINE, MARGIN, within},
    listing,
    output::{Printer, Stop, vm::Vm},
    resource,
};
use proto::vmd::v1::{self as wire, VncListen};
use shared::{fault::Fault, name::Name};
use std::time::Duration;

/// What a start may take: vmd's own limit is not told, so the default time-out of a stop stands for it.
const START: Duration = Duration::from_secs(60).saturating_add(MARGIN);
/// What a forced stop may take.
const FORCED_STOP: Duration = MARGIN;

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
        VmCommand::List { watch: true } => watch::vms(clients, printer).await,
        VmCommand::List { watch: false } => printer.list(&listing::vms(clients).await?),
        VmCommand::Show(VmName { name }) => {
            let request = within(DEADLINE, wire::GetVmRequest { name: resource::vm(&name) });
            let mut vm = clients.vmd.call(DEADLINE, clients.vms()?.get_vm(request)).await?.into();
            addresses::add(&mut vm, clients).await;
            printer.show(&vm)
        }
        VmCommand::Console(VmName { name }) => console::attach(&name, clients, printer).await,
        VmCommand::Log { vm, follow } => console::log(&vm.name, follow, clients, printer).await,
        VmCommand::Wait { vm, goal, timeout } => match goal {
            Goal::Running => {
                let found = wait::running(&vm.name, timeout, clients).await?;
                printer.changed("vm", "is running", &found)
            }
            Goal::Stopped => {
                let found = wait::stopped(&vm.name, timeout, clients).await?;
                printer.changed("vm", "is stopped", &found)
            }
            Goal::Ip => printer.list(&wait::addresses(&vm.name, timeout, clients).await?),
        },
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
