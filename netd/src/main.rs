//! The netd program: a checklist.

use clap::Parser as _;
use netd::{
    config::Config,
    kernel::{LinuxKernel, trace, watch},
    privilege::{self, Outcome},
    reconciler::Reconciler,
    server,
    services::{Engine, Services, Settings, launch},
};
use shared::{
    access::{Access, Gate, OwnUser},
    audit::{self, Audit},
    events::{EventKind, News},
    fault::{Fault, Kind},
    limits,
    serve::{Api, Health, serve},
    shutdown,
    socket::{Bound, group_id},
    steps,
    store::Store,
    telemetry,
};
use std::{io::Write as _, process::ExitCode, sync::Arc, time::Duration};
use tokio::sync::Notify;

fn main() -> ExitCode {
    // The gate in front of dnsmasq is this same program, before it has threads.
    if let Some(code) = launch::child_main(std::env::args_os()) {
        return code;
    }
    let config = Config::parse();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let mut stderr = std::io::stderr().lock();
            // Nobody is left to tell if this fails.
            let _ = writeln!(stderr, "error: {}", fault.chain());
            for hint in fault.hints() {
                let _ = writeln!(stderr, "hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn group(config: &Config) -> Result<Option<u32>, Fault> {
    let Some(group) = &config.socket_group else { return Ok(group_id("kvmctl")) };
    group_id(group).map(Some).ok_or_else(|| {
        Fault::new(Kind::InvalidArgument, "NO_SUCH_GROUP", format!("there is no group `{group}`"))
    })
}

fn start(config: Config) -> Result<(), Fault> {
    let group = group(&config)?;
    limits::spare_from_oom();
    // Before there are threads, since each has privileges of its own.
    let given_up = privilege::give_up(&config, group)?;
    limits::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(limits::IDLE_THREAD)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Fault::internal("cannot start the runtime").cause(&error))?;
    let result = runtime.block_on(run(config, group, given_up));
    // A thread that waits for the kernel or a disk holds up no end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn run(config: Config, group: Option<u32>, given_up: Outcome) -> Result<(), Fault> {
    let telemetry = telemetry::start("netd", "info")?;
    for warning in &given_up.warnings {
        tracing::warn!("{warning}");
    }
    let stop = shutdown::on_signal().map_err(|e| Fault::internal("cannot watch for signals").cause(&e))?;
    let access = Access::open(config.access_file.as_deref(), group, OwnUser::Nobody)?;
    access.reload_on_hangup().map_err(|e| Fault::internal("cannot watch for signals").cause(&e))?;
    let store = Store::open(&config.state_dir)?;
    let began = format!("netd {} began", env!("CARGO_PKG_VERSION"));
    store.tell(Vec::new(), vec![News::of(EventKind::Started, "", began)]);
    let audit = Audit::open(&config.state_dir);
    let methods = proto::METHODS.iter().map(|method| (method.path, method.role, method.audited));
    let gate = Gate::new(access.clone(), audit.clone(), methods)?;
    tokio::spawn(audit::feed(&audit, store.clone(), stop.clone()));
    let kernel = LinuxKernel::new()?;
    let settings = Settings::new(config.dnsmasq, config.run_dir, store.instance().simple().to_string())?;
    let engine = Arc::new(Engine::new(settings, kernel.clone()));
    let reconciler = Reconciler::load(kernel, store, Services::of(Arc::clone(&engine))).await?;
    if let Some(what) = &config.forget {
        return reconciler.forget_broken(what).await;
    }
    // A trace that an earlier netd did not end.
    trace::sweep(&reconciler.instance()).await?;
    let changed = Arc::new(Notify::new());
    watch::start(&changed)?;
    // Before anybody can ask for more: what was recorded is in force again.
    reconciler.converge().await?;
    steps::serving();
    let bound = match given_up.socket {
        Some(prepared) => prepared.listen()?,
        None => Bound::bind(&config.socket, group)?,
    };
    tracing::info!(socket = %config.socket.display(), instance = reconciler.instance(), "netd is ready");
    let repair = tokio::spawn(shutdown::keep_up("repair", stop.clone(), {
        let (reconciler, stop) = (reconciler.clone(), stop.clone());
        move || {
            let (reconciler, changed, stop) = (reconciler.clone(), Arc::clone(&changed), stop.clone());
            async move { reconciler.run(changed, stop).await }
        }
    }));
    let attended = tokio::spawn(shutdown::keep_up("leases", stop.clone(), {
        let (reconciler, stop) = (reconciler.clone(), stop.clone());
        move || {
            let (reconciler, stop) = (reconciler.clone(), stop.clone());
            async move { reconciler.attend(stop).await }
        }
    }));
    let looked_after = tokio::spawn(shutdown::keep_up("services", stop.clone(), {
        let stop = stop.clone();
        move || {
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.run(stop).await }
        }
    }));
    let routes = server::routes(reconciler.clone(), access, stop.clone());
    let methods = proto::METHODS.iter().filter(|method| !method.path.starts_with("/vmd."));
    let health = Health::new(methods.map(|method| (method.path, method.audited)), {
        let reconciler = reconciler.clone();
        move || reconciler.trouble()
    });
    let api = Api { routes, descriptors: proto::FILE_DESCRIPTOR_SET, health };
    let served = serve(bound, api, &gate, stop.clone()).await;
    stop.cancel();
    repair.abort();
    looked_after.abort();
    attended.abort();
    reconciler.ended().await;
    audit.finish().await;
    telemetry.finish().await;
    served
}
