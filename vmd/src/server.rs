//! `vmd.v1` over gRPC: conversions and streams, no decisions.

mod console;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod watch;

use crate::{
    convert,
    driver::{Handle, Verb},
    machine::State,
    model::{Record, Spec, Vm},
    ports::Ports,
    supervisor::{NewVm, Supervisor, not_found},
};
use futures_util::{StreamExt as _, stream};
use proto::{
    events::v1::event_service_server::EventServiceServer,
    vmd::v1::{
        self as wire, AttachConsoleRequest, ConsoleChunk, CreateVmRequest, DeleteVmRequest, DeleteVmResponse,
        GetHostRequest, GetVmRequest, ListVmsRequest, ListVmsResponse, PauseVmRequest, ReadConsoleLogRequest,
        ResetVmRequest, ResumeVmRequest, StartVmRequest, StopVmRequest, WatchVmRequest,
        host_service_server::{HostService, HostServiceServer},
        vm_service_server::{VmService, VmServiceServer},
    },
};
use shared::{
    access::Caller,
    fault::{Fault, Kind},
    name::Name,
    serve::{Messages, ending},
    wire::EventService,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

const PAGE: usize = 1000;

type Answer<T> = Result<Response<T>, Status>;
type Chunks = Messages<ConsoleChunk>;

#[derive(Clone, Debug)]
struct Server<P> {
    supervisor: Supervisor<P>,
    stop: CancellationToken,
}

/// All services, to be served behind a gate that knows the caller by the supervisor's access file.
pub fn routes<P: Ports>(supervisor: Supervisor<P>, stop: CancellationToken) -> Routes {
    let events = EventService::new(supervisor.log().clone(), stop.clone());
    let server = Arc::new(Server { supervisor, stop });
    Routes::new(VmServiceServer::from_arc(Arc::clone(&server)))
        .add_service(EventServiceServer::new(events))
        .add_service(HostServiceServer::from_arc(server))
}

impl<P: Ports> Server<P> {
    fn handle(&self, resource: &str) -> Result<(Name, Handle), Fault> {
        let name = convert::resource(resource)?;
        let handle = self.supervisor.get(&name)?;
        Ok((name, handle))
    }

    /// A machine that is the caller's to act on.
    fn own(&self, caller: &Caller, resource: &str) -> Result<(Name, Handle), Fault> {
        let (name, handle) = self.handle(resource)?;
        caller.must_own("machine", handle.watch.borrow().record.owner)?;
        Ok((name, handle))
    }

    async fn verb(&self, caller: &Caller, resource: &str, verb: Verb) -> Answer<wire::Vm> {
        caller.about(resource);
        let (_, handle) = self.own(caller, resource)?;
        carry_out(caller, &handle, verb).await
    }
}

async fn carry_out(caller: &Caller, handle: &Handle, verb: Verb) -> Answer<wire::Vm> {
    let vm = handle.carry_out(verb).await?;
    Ok(Response::new(shown(caller, &vm)))
}

/// Whether a machine's networks and groups are granted to the caller, and its NICs without a filter.
fn granted(caller: &Caller, spec: &Spec) -> Result<(), Fault> {
    spec.nics.iter().try_for_each(|nic| {
        caller.must_be_granted(&nic.network)?;
        caller.must_filter(nic.port.filter)?;
        caller.must_be_granted_groups(&BTreeSet::new(), &nic.port.groups)
    })
}

/// Whether the caller may start a machine with the reach that it was recorded with: one that an admin made opens
/// whatever vmd can, and its owner may be no admin any more.
fn still_reached(caller: &Caller, record: &Record) -> Result<(), Fault> {
    if caller.is_admin() || record.confined {
        return Ok(());
    }
    Err(Fault::new(
        Kind::PermissionDenied,
        "REACH_OF_ADMIN",
        format!(
            "machine `{}` was made by an admin, whose files may be anywhere, and uid {} is none now",
            record.name, caller.uid
        ),
    )
    .hint("ask an admin to start it, or delete it and make it again with files in a folder of `images`"))
}

/// A machine as the caller may see it.
fn shown(caller: &Caller, vm: &Vm) -> wire::Vm {
    let own = caller.is_admin() || caller.uid == vm.record.owner;
    if own { convert::vm(vm) } else { convert::vm_of_another(vm) }
}

#[tonic::async_trait]
impl<P: Ports> VmService for Server<P> {
    type WatchVmStream = Messages<wire::Vm>;
    type WatchVmsStream = Messages<wire::WatchVmsResponse>;
    type ReadConsoleLogStream = Chunks;
    type AttachConsoleStream = Chunks;

    async fn get_vm(&self, request: Request<GetVmRequest>) -> Answer<wire::Vm> {
        let caller = Caller::of(&request)?;
        let (_, handle) = self.handle(&request.into_inner().name)?;
        let vm = handle.watch.borrow().clone();
        Ok(Response::new(shown(&caller, &vm)))
    }

    async fn list_vms(&self, request: Request<ListVmsRequest>) -> Answer<ListVmsResponse> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let invalid = |what: &str| {
            Fault::new(Kind::InvalidArgument, "INVALID_PAGE", format!("the {what} is not valid"))
                .hint("use a size of 0 to 1000, and a token from the page before")
        };
        let most = match usize::try_from(request.page_size).map_err(|_| invalid("page size"))? {
            0 => PAGE,
            size => size.min(PAGE),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<Name>().map_err(|_| invalid("page token"))?),
        };
        let (vms, more) = self.supervisor.list(after.as_ref(), most);
        let mut vms: BTreeMap<Name, wire::Vm> =
            vms.iter().map(|vm| (vm.record.name.clone(), shown(&caller, vm))).collect();
        let broken = self.supervisor.broken().into_iter();
        let broken = broken.filter(|(name, _)| after.as_ref().is_none_or(|after| name > after));
        vms.extend(broken.map(|(name, why)| {
            let vm = convert::broken_vm(&name, caller.words(&why));
            (name, vm)
        }));
        let more = more || vms.len() > most;
        let next = vms.keys().take(most).next_back().filter(|_| more).map(ToString::to_string);
        Ok(Response::new(ListVmsResponse {
            vms: vms.into_values().take(most).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn create_vm(&self, request: Request<CreateVmRequest>) -> Answer<wire::Vm> {
        let missing = |field: &str| {
            Fault::new(Kind::InvalidArgument, "MISSING_FIELD", format!("`{field}` is missing"))
                .hint("send a machine with `name` and `spec`")
        };
        let caller = Caller::of(&request)?;
        let vm = request.into_inner().vm.ok_or_else(|| missing("vm"))?;
        caller.about(&vm.name);
        let name = convert::resource(&vm.name)?;
        let refused = |fault: Fault| fault.context(format!("cannot create machine `{name}`"));
        let spec = vm.spec.ok_or_else(|| missing("spec")).and_then(convert::spec).map_err(refused)?;
        let labels = convert::labels(vm.labels).map_err(refused)?;
        granted(&caller, &spec).map_err(refused)?;
        let made = self.supervisor.create(NewVm { name, labels, spec, owner: caller.clone() }).await?;
        Ok(Response::new(shown(&caller, &made)))
    }

    async fn delete_vm(&self, request: Request<DeleteVmRequest>) -> Answer<DeleteVmResponse> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(&request.name);
        let name = convert::resource(&request.name)?;
        self.supervisor.delete(&name, &caller).await?;
        Ok(Response::new(DeleteVmResponse {}))
    }

    async fn start_vm(&self, request: Request<StartVmRequest>) -> Answer<wire::Vm> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(&request.name);
        let (_, handle) = self.own(&caller, &request.name)?;
        // A grant may have been taken back since the create.
        granted(&caller, &handle.watch.borrow().record.spec)?;
        still_reached(&caller, &handle.watch.borrow().record)?;
        carry_out(&caller, &handle, Verb::Start).await
    }

    async fn stop_vm(&self, request: Request<StopVmRequest>) -> Answer<wire::Vm> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let timeout = convert::stop_timeout(request.timeout)?;
        self.verb(&caller, &request.name, Verb::Stop((!request.force).then_some(timeout))).await
    }

    async fn reset_vm(&self, request: Request<ResetVmRequest>) -> Answer<wire::Vm> {
        self.verb(&Caller::of(&request)?, &request.get_ref().name, Verb::Reset).await
    }

    async fn pause_vm(&self, request: Request<PauseVmRequest>) -> Answer<wire::Vm> {
        self.verb(&Caller::of(&request)?, &request.get_ref().name, Verb::Pause).await
    }

    async fn resume_vm(&self, request: Request<ResumeVmRequest>) -> Answer<wire::Vm> {
        self.verb(&Caller::of(&request)?, &request.get_ref().name, Verb::Resume).await
    }

    async fn watch_vm(&self, request: Request<WatchVmRequest>) -> Answer<Messages<wire::Vm>> {
        let caller = Caller::of(&request)?;
        let (name, handle) = self.handle(&request.into_inner().name)?;
        let mut watch = handle.watch;
        watch.mark_changed();
        let stop = self.stop.clone();
        // A slow client sees the latest state and not each one: a watch holds one value.
        let vms = stream::unfold(Some((watch, stop, name, caller)), |state| async move {
            let (mut watch, stop, name, caller) = state?;
            let changed = tokio::select! {
                biased;
                () = stop.cancelled() => return Some((Err(ending().into()), None)),
                changed = watch.changed() => changed,
            };
            let item = match changed {
                Ok(()) => Ok(shown(&caller, &watch.borrow_and_update().clone())),
                Err(_) if stop.is_cancelled() => Err(ending().into()),
                Err(_) => Err(not_found(&name).into()),
            };
            let rest = item.is_ok().then_some((watch, stop, name, caller));
            Some((item, rest))
        });
        Ok(Response::new(vms.boxed()))
    }

    async fn watch_vms(&self, request: Request<wire::WatchVmsRequest>) -> Answer<Self::WatchVmsStream> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(watch::vms(self, request.into_inner(), caller)?))
    }

    async fn read_console_log(&self, request: Request<ReadConsoleLogRequest>) -> Answer<Chunks> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(&request.name);
        let (name, handle) = self.own(&caller, &request.name)?;
        let view = console::View { name, handle, offset: request.offset, stop: self.stop.clone() };
        Ok(Response::new(console::log(view, request.follow)))
    }

    async fn attach_console(&self, request: Request<Streaming<AttachConsoleRequest>>) -> Answer<Chunks> {
        let caller = Caller::of(&request)?;
        let mut input = request.into_inner();
        let open = console::open_message(input.message().await?)?;
        caller.about(&open.name);
        let (name, handle) = self.own(&caller, &open.name)?;
        let writer = if open.read_only { None } else { Some(handle.console.writer()?) };
        let offset = open.offset.unwrap_or_else(|| *handle.console.follow().borrow());
        let view = console::View { name, handle, offset, stop: self.stop.clone() };
        Ok(Response::new(console::attach(view, input, writer)))
    }
}

#[tonic::async_trait]
impl<P: Ports> HostService for Server<P> {
    async fn get_host(&self, request: Request<GetHostRequest>) -> Answer<wire::Host> {
        let caller = Caller::of(&request)?;
        let host = self.supervisor.host();
        let mut warnings = self.supervisor.warnings();
        warnings.extend(self.supervisor.access().trouble());
        warnings.extend(self.supervisor.lost());
        warnings.extend(self.supervisor.strays().await);
        let (accelerator, accelerator_reason) = match host.accelerator() {
            Ok(choice) => {
                warnings.extend(choice.warning);
                (convert::accelerator(choice.accelerator), choice.reason)
            }
            Err(fault) => {
                warnings.push(format!("no machine can be started: {}", fault.chain()));
                (wire::Accelerator::Unspecified, fault.chain())
            }
        };
        let qemu_version = host.version().await.unwrap_or_else(|fault| {
            warnings.push(fault.chain());
            String::new()
        });
        let (vms, _) = self.supervisor.list(None, usize::MAX);
        let running = |vm: &&Arc<Vm>| matches!(vm.status.state, State::Running | State::Paused);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let memory = rustix::system::sysinfo();
        let mut containment = convert::containment(&self.supervisor.containment().await);
        containment.iter_mut().for_each(|layer| layer.reason = caller.words(&layer.reason));
        Ok(Response::new(wire::Host {
            version: env!("CARGO_PKG_VERSION").into(),
            qemu_binary: if caller.is_admin() { host.binary().display().to_string() } else { String::new() },
            qemu_version,
            accelerator: accelerator.into(),
            accelerator_reason: caller.words(&accelerator_reason),
            cpus: std::thread::available_parallelism().map_or(0, |number| count(number.get())),
            memory_bytes: memory.totalram * u64::from(memory.mem_unit),
            vm_count: count(vms.len()),
            running_vm_count: count(vms.iter().filter(running).count()),
            warnings: warnings.iter().map(|warning| caller.words(warning)).collect(),
            caller: Some(convert::caller(&caller)),
            containment,
        }))
    }
}

#[cfg(test)]
mod test;
