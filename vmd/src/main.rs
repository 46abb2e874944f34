//! The program: reads the command line, opens the state, adopts what runs, serves until told to end.

use clap::Parser as _;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use shared::{
    access::Gate,
    audit::Audit,
    fault::{Fault, Kind},
    limits,
    serve::{self, Api, Health},
    shutdown,
    socket::Bound,
    steps, telemetry,
};
use std::{process::ExitCode, time::Duration};
use vmd::{config::Config, ports::NetdPorts, qemu::launch, server, supervisor, supervisor::Supervisor};

/// Enough for all that waits on others; guests run in processes of their own.
const WORKERS: usize = 2;
/// How long drivers may take to put their last words on disk.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // The gate in front of QEMU is this same program, before it has threads.
    if let Some(code) = launch::child_main(std::env::args_os()) {
        return code;
    }
    let config = Config::parse();
    if let Err(fault) = give_up_privileges(config.allow_root) {
        eprintln!("vmd: {}", fault.chain());
        for hint in fault.hints() {
            eprintln!("hint: {hint}");
        }
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("vmd")
        .thread_keep_alive(limits::IDLE_THREAD)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vmd: cannot start its threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(config));
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("vmd: {}", fault.chain());
            for hint in fault.hints() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// vmd needs no capability: it asks netd. Before there are threads, since each has its own.
fn give_up_privileges(allow_root: bool) -> Result<(), Fault> {
    if rustix::process::geteuid().is_root() {
        return if allow_root {
            Ok(())
        } else {
            Err(Fault::new(Kind::FailedPrecondition, "ROOT", "vmd does not run as root, which it has no need of")
                .hint("start it as a user of its own, as vmd.service does; --allow-root is for containers that have none"))
        };
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    // Those of the ambient set go with the inheritable ones.
    set_capabilities(None, sets).map_err(|e| Fault::internal("cannot give up capabilities").cause(&e))
}

async fn run(config: Config) -> Result<(), Fault> {
    let telemetry = telemetry::start("vmd", "info")?;
    limits::raise_descriptors();
    limits::spare_from_oom();
    let stop =
        shutdown::on_signal().map_err(|e| Fault::internal("cannot install signal handlers").cause(&e))?;
    if let Some(what) = &config.forget {
        return supervisor::forget(&config, what).await;
    }
    // Bound early, so that a second vmd fails before it looks at anything; served only once all is adopted.
    let bound = Bound::bind(&config.socket, config.group()?)?;
    let ports = NetdPorts::new(&config.netd)?;
    let supervisor = tokio::select! {
        supervisor = Supervisor::open(&config, ports, stop.clone()) => supervisor?,
        // A QEMU that is silent holds the adoption up, but not the end: the next vmd adopts it.
        () = stop.cancelled() => return Ok(()),
    };
    steps::serving();
    let routes = server::routes(supervisor.clone(), stop.clone());
    let audit = Audit::open(&config.state_dir);
    let methods = proto::METHODS.iter().map(|method| (method.path, method.role, method.audited));
    let gate = Gate::new(supervisor.access().clone(), audit.clone(), methods)?;
    supervisor.tell_of(&audit, stop.clone());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %config.socket.display(), "ready");
    let methods = proto::METHODS.iter().filter(|method| !method.path.starts_with("/netd."));
    let health = Health::new(methods.map(|method| (method.path, method.audited)), {
        let supervisor = supervisor.clone();
        move || supervisor.trouble()
    });
    let api = Api { routes, descriptors: proto::FILE_DESCRIPTOR_SET, health };
    let result = serve::serve(bound, api, &gate, stop.clone()).await;
    stop.cancel();
    let _ = tokio::time::timeout(LAST_WORDS, supervisor.join()).await;
    let _ = tokio::time::timeout(LAST_WORDS, supervisor.ended()).await;
    audit.finish().await;
    tracing::info!("ended; guests go on");
    telemetry.finish().await;
    result
}
