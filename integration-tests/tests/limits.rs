//! What clients may have, and that nobody who takes all of it keeps the others out.

use integration_tests::{
    census::Census,
    figures::Figures,
    host::{TestHost, VMD_UID, program_path},
    raw::{self, Daemon, PREFACE},
    soak,
    user::as_user,
    wait,
};
use proto::{
    netd::v1::{
        CreatePortRequest, DeletePortRequest, GetHostRequest as GetNetdRequest, ListNetworksRequest, Port,
        host_service_client::HostServiceClient as NetdHost, network_service_client::NetworkServiceClient,
        port_service_client::PortServiceClient,
    },
    vmd::v1::{
        GetHostRequest, ReadConsoleLogRequest, StartVmRequest, StopVmRequest, WatchVmRequest,
        host_service_client::HostServiceClient as VmdHost, vm_service_client::VmServiceClient,
    },
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use shared::{fault::Fault, process, serve::Limits};
use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};

/// A user without any privilege, in the group of the sockets.
const USER: u32 = 64_057;
/// Connections of the idle.
const IDLE: usize = 1000;

fn host() -> TestHost {
    host_of("ok")
}

/// A host whose machines behave as told (`fake-qemu`).
fn host_of(manner: &str) -> TestHost {
    let mut host = TestHost::new();
    let fake = host.path("fake-qemu");
    fs::copy(program_path("fake-qemu"), &fake).expect("copy");
    host.qemu = Some(fake);
    host.environment.push(("FAKE_QEMU".into(), manner.into()));
    host.add_vmd();
    host.ok("network create n --mode isolated");
    host
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// How long a call of each daemon's host takes, each by a connection of its own, sorted.
fn status_calls(host: &TestHost, count: usize) -> Vec<Duration> {
    let mut times: Vec<_> = runtime().block_on(async {
        let mut times = Vec::new();
        for _ in 0..count {
            let begin = Instant::now();
            let mut netd = NetdHost::new(Daemon::Netd.channel(host));
            netd.get_host(GetNetdRequest {}).await.expect("netd's host");
            times.push(begin.elapsed());
            let begin = Instant::now();
            let mut vmd = VmdHost::new(Daemon::Vmd.channel(host));
            vmd.get_host(GetHostRequest {}).await.expect("vmd's host");
            times.push(begin.elapsed());
        }
        times
    });
    times.sort();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

/// Whether the other side has ended the connection, without waiting; takes what has come.
fn has_ended(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).expect("nonblocking");
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn a_thousand_idle_connections_of_one_user_or_of_root_keep_nobody_out() {
    let host = host();
    let alone = p99(&status_calls(&host, 100));
    println!("p99 of a status call with no other connection: {alone:?}");
    let of_user = Limits::default().connections.each;
    // vmd's folder is its own user's, who has no limit but that of root.
    let cases = [
        (Daemon::Netd, host.netd_pid(), USER, of_user),
        (Daemon::Netd, host.netd_pid(), 0, IDLE),
        (Daemon::Vmd, host.vmd_pid(), 0, IDLE),
    ];
    for (daemon, pid, uid, most) in cases {
        let before = Figures::of(pid);
        let socket = daemon.socket(&host);
        let mut idle: Vec<UnixStream> = as_user(uid, VMD_UID, || {
            let all = (0..IDLE).map(|_| raw::connect(&socket, PREFACE).expect("connect"));
            all.collect()
        });
        // Those who are over the limit are told so, if they ask, and lose the connection.
        wait::until("as many connections as may be", || {
            idle.retain_mut(|stream| !has_ended(stream));
            (idle.len() <= most).then_some(())
        });
        let times = status_calls(&host, 100);
        idle.retain_mut(|stream| !has_ended(stream));
        assert_eq!(idle.len(), most, "{daemon:?}, uid {uid}");
        let grown = Figures::of(pid).resident.saturating_sub(before.resident);
        println!(
            "{IDLE} idle connections of uid {uid} to {daemon:?}, of which {most} stay: p99 of a status call of root {:?} \
                 (goal: under 100 ms), {grown} KiB more memory",
            p99(&times)
        );
        assert!(grown < 64 << 10, "{daemon:?} has grown by {grown} KiB");
        // Only a daemon that hangs is so slow: how fast it is, is printed.
        assert!(p99(&times) < Duration::from_secs(5), "{:?}", p99(&times));
        drop(idle);
        wait::until("the connections to be given up", || {
            (Figures::of(pid).descriptors <= before.descriptors + 2).then_some(())
        });
    }
}

#[test]
fn who_is_over_the_limit_is_told_which_and_what_to_do_and_others_are_served() {
    let host = host();
    let most = Limits::default().connections.each;
    let socket = Daemon::Netd.socket(&host);
    let held: Vec<_> = as_user(USER, VMD_UID, || {
        (0..most).map(|_| raw::connect(&socket, PREFACE).expect("connect")).collect()
    });
    let refused = wait::until("a refusal", || {
        let outcome = as_user(USER, VMD_UID, || host.kvmctl(&["network", "list"]));
        outcome.stderr.contains("connections to this daemon").then_some(outcome)
    });
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("uid {USER} has {most} connections")), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: close some"), "{}", refused.stderr);
    println!("kvmctl of a user with {most} connections: {}", refused.stderr.trim());
    // Another user, and root.
    let other = as_user(USER + 1, VMD_UID, || host.kvmctl(&["network", "list"]));
    assert!(!other.stderr.contains("connections"), "{}", other.stderr);
    host.ok("network list");
    drop(held);
    wait::until("the user to be let in again", || {
        let outcome = as_user(USER, VMD_UID, || host.kvmctl(&["network", "list"]));
        (!outcome.stderr.contains("connections")).then_some(())
    });
}

/// One user has 65,536 of them, and each keeps the socket's group in a user namespace.
#[test]
fn all_subordinate_uids_have_what_one_user_has() {
    let mut host = TestHost::new();
    host.add_vmd();
    // It sets the mode of its folder after it has the socket, and before it answers.
    host.ok("vm list");
    fs::set_permissions(host.path("vmd-run"), fs::Permissions::from_mode(0o711)).expect("mode");
    let most = Limits::default().connections.each;
    let socket = Daemon::Vmd.socket(&host);
    let first = host.first_subordinate();
    let mut held: Vec<UnixStream> = (first..first + 4)
        .flat_map(|uid| {
            as_user(uid, VMD_UID, || {
                (0..most).map(|_| raw::connect(&socket, PREFACE).expect("connect")).collect::<Vec<_>>()
            })
        })
        .collect();
    let list = |uid| as_user(uid, VMD_UID, || host.kvmctl(&["vm", "list"]));
    let refused = wait::until("a refusal", || {
        let outcome = list(first + 4);
        outcome.stderr.contains("connections to this daemon").then_some(outcome)
    });
    let words = format!("the subordinate uids of /etc/subuid together have {most} connections");
    assert!(refused.stderr.contains(&words), "{}", refused.stderr);
    let other = list(USER);
    assert!(!other.stderr.contains("connections"), "{}", other.stderr);
    wait::until("as many connections as may be", || {
        held.retain_mut(|stream| !has_ended(stream));
        (held.len() <= most).then_some(())
    });
    println!("{} of {} connections of 4 subordinate uids stay", held.len(), 4 * most);
    assert_eq!(held.len(), most);
}

#[test]
fn who_does_not_begin_is_cut_off() {
    let host = host();
    let begin = Instant::now();
    let mut silent: Vec<_> = [Daemon::Netd, Daemon::Vmd]
        .iter()
        .flat_map(|daemon| {
            let socket = daemon.socket(&host);
            // Nothing, a part of the preface, another protocol.
            [&b""[..], &PREFACE[..10], b"GET / HTTP/1.1\r\n\r\n"]
                .map(|bytes| raw::connect(&socket, bytes).expect("connect"))
        })
        .collect();
    // Half a frame; who sends it answers no ping either.
    let mut halves: Vec<_> = [Daemon::Netd, Daemon::Vmd]
        .iter()
        .map(|daemon| {
            raw::connect(&daemon.socket(&host), &[PREFACE, &[0, 0, 9, 0]].concat()).expect("connect")
        })
        .collect();
    wait::until("those who say nothing to be cut off", || {
        silent.retain_mut(|stream| !has_ended(stream));
        silent.is_empty().then_some(())
    });
    println!("connections without a preface were closed after {:.1} s", begin.elapsed().as_secs_f64());
    if soak() {
        wait::until("those who stop in the middle to be cut off", || {
            halves.retain_mut(|stream| !has_ended(stream));
            halves.is_empty().then_some(())
        });
        println!("connections with half a frame were closed after {:.1} s", begin.elapsed().as_secs_f64());
    }
    host.ok("host show");
}

#[test]
fn a_daemon_without_descriptors_says_so_and_serves_on_when_they_are_back() {
    let host = host();
    for (daemon, pid) in [(Daemon::Netd, host.netd_pid()), (Daemon::Vmd, host.vmd_pid())] {
        let socket = daemon.socket(&host);
        let raw_pid = Pid::from_raw(pid.cast_signed()).expect("pid");
        let limits = rustix::process::getrlimit(Resource::Nofile);
        // Room for a few more.
        let room = u64::try_from(Figures::of(pid).descriptors + 8).expect("a number");
        let few = Rlimit { current: Some(room), maximum: limits.maximum };
        // Who may change it is the process's own user.
        let own = if daemon == Daemon::Netd { 0 } else { VMD_UID };
        let set =
            |to: Rlimit| as_user(own, own, || prlimit(Some(raw_pid), Resource::Nofile, to).expect("prlimit"));
        let before = set(few);
        let held: Vec<_> = (0..64).map(|_| raw::connect(&socket, PREFACE).expect("connect")).collect();
        let list = || {
            let arguments = if daemon == Daemon::Netd { ["network", "list"] } else { ["vm", "list"] };
            host.kvmctl(&arguments)
        };
        let refused = list();
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("may open no more files"), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
        println!("kvmctl to {daemon:?} without descriptors: {}", refused.stderr.trim());
        // They come back, though there may be no more of them than before.
        drop(held);
        wait::until("a connection", || (list().code == 0).then_some(()));
        set(before);
        let log = host.logs();
        let lines = log.matches("cannot accept connections").count();
        assert!((1..=20).contains(&lines), "{lines} lines: {log}");
    }
}

#[test]
fn a_defect_in_one_call_is_that_calls_only() {
    let host = host();
    let pids = [host.netd_pid(), host.vmd_pid()];
    runtime().block_on(async {
        let mut netd = NetworkServiceClient::new(Daemon::Netd.channel(&host));
        let mut vmd = VmdHost::new(Daemon::Vmd.channel(&host));
        // A stream of the same connection.
        let mut watch =
            proto::events::v1::event_service_client::EventServiceClient::new(Daemon::Netd.channel(&host));
        let stream =
            watch.watch_events(proto::events::v1::WatchEventsRequest::default()).await.expect("watch");
        fn broken<T>(message: T) -> Request<T> {
            let mut request = Request::new(message);
            request.metadata_mut().insert("kvmctl-debug-panic", "call".parse().expect("text"));
            request
        }
        for _ in 0..3 {
            let failed =
                netd.list_networks(broken(ListNetworksRequest::default())).await.expect_err("a defect");
            assert_eq!(Fault::from(failed).reason(), "DEFECT");
            netd.list_networks(ListNetworksRequest::default()).await.expect("the same connection");
            let failed = vmd.get_host(broken(GetHostRequest {})).await.expect_err("a defect");
            assert_eq!(Fault::from(failed).reason(), "DEFECT");
            vmd.get_host(GetHostRequest {}).await.expect("the same connection");
        }
        drop(stream);
    });
    assert_eq!([host.netd_pid(), host.vmd_pid()], pids);
    assert_eq!(host.logs().matches("a defect ended a call").count(), 6);
}

#[test]
fn readers_that_stall_cost_little_and_hold_up_nobody() {
    const READERS: usize = 16;
    let host = host_of("flood");
    host.ok("vm create loud");
    host.kvmctl(&["vm", "start", "loud"]);
    let alone = p99(&status_calls(&host, 50));
    let before = Figures::of(host.vmd_pid()).resident;
    let stalled = runtime();
    let streams = stalled.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..READERS {
            let mut client = VmServiceClient::new(Daemon::Vmd.channel(&host));
            let name = || "vms/loud".to_owned();
            let request = ReadConsoleLogRequest { name: name(), offset: 0, follow: true };
            let log = client.read_console_log(request).await.expect("log").into_inner();
            let watch = client.watch_vm(WatchVmRequest { name: name() }).await.expect("watch").into_inner();
            streams.push((log, watch));
        }
        streams
    });
    // Nobody runs their runtime from here on: they answer nothing, not even pings.
    let times = status_calls(&host, 50);
    let grown = Figures::of(host.vmd_pid()).resident.saturating_sub(before);
    println!(
        "{READERS} viewers of a console that floods who read nothing: p99 of a status call {:?}, {alone:?} without them; vmd \
         has grown by {grown} KiB",
        p99(&times)
    );
    assert!(grown < 64 << 10, "vmd has grown by {grown} KiB");
    assert!(p99(&times) < Duration::from_secs(5), "{:?}", p99(&times));
    if soak() {
        // The other ends of their connections have the socket's path.
        let path = Daemon::Vmd.socket(&host).display().to_string();
        let open = || {
            let sockets = fs::read_to_string("/proc/self/net/unix").expect("sockets");
            sockets.lines().filter(|line| line.ends_with(&path) && line.contains(" 03 ")).count()
        };
        assert!(open() >= READERS, "{} connections", open());
        // They are asked whether they live, and do not answer; nor do they read.
        wait::until("the readers to be cut off", || (open() < READERS / 2).then_some(()));
        println!("of {READERS} connections of such viewers {} are open after 30 s", open());
    }
    drop(streams);
    host.ok("vm stop loud --force");
}

#[test]
fn a_client_that_goes_away_at_any_byte_leaves_all_or_nothing() {
    use prost::Message as _;
    let host = host();
    let before = Census::of(&host.netns);
    let pid = host.netd_pid();
    let idle = Figures::of(pid).descriptors;
    let socket = Daemon::Netd.socket(&host);
    let name = "networks/n/ports/gone".to_owned();
    let create = CreatePortRequest { port: Some(Port { name: name.clone(), ..Port::default() }) };
    let delete = DeletePortRequest { name: name.clone(), uid: String::new() };
    let calls = [
        raw::conversation("/netd.v1.PortService/CreatePort", &create.encode_to_vec()),
        raw::conversation("/netd.v1.PortService/DeletePort", &delete.encode_to_vec()),
    ];
    let mut cuts = 0;
    for length in 0..=calls[0].len().max(calls[1].len()) {
        for call in &calls {
            // The end comes right behind the last byte: the call is cut at whichever point it has got to.
            drop(raw::connect(&socket, &call[..length.min(call.len())]).expect("connect"));
            cuts += 1;
        }
    }
    // The same ones, let to the end: the daemon is where it would be without those who went away.
    runtime().block_on(async {
        let mut client = PortServiceClient::new(Daemon::Netd.channel(&host));
        let port = client.create_port(create.clone()).await.expect("create").into_inner();
        assert_eq!(client.create_port(create.clone()).await.expect("again").into_inner().uid, port.uid);
        client.delete_port(delete.clone()).await.expect("delete");
    });
    before.assert_same(&Census::of(&host.netns));
    wait::until("no connection to be left", || (Figures::of(pid).descriptors <= idle).then_some(()));
    let log = host.logs();
    assert!(!log.contains("panicked"), "{log}");
    println!("{cuts} connections cut at each byte of a create and a delete: nothing is left");
}

/// What calls of one thread were answered, until the daemon was gone.
fn hammer(
    stop: &AtomicBool,
    calls: &AtomicUsize,
    mut call: impl FnMut(&Runtime) -> Result<(), Status>,
) -> BTreeMap<String, usize> {
    let runtime = runtime();
    let mut answers = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = call(&runtime);
        calls.fetch_add(1, Ordering::Relaxed);
        let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
        *answers.entry(format!("{code:?}")).or_default() += 1;
        if let Err(status) = answer {
            let ending = matches!(code, Code::Unavailable);
            assert!(ending, "an answer that a client cannot tell from a failure: {status:?}");
            break;
        }
    }
    answers
}

#[test]
fn sigterm_under_load_ends_both_daemons_within_five_seconds_and_no_machine() {
    const MACHINES: usize = 4;
    let mut host = host();
    let before = Census::of(&host.netns);
    for number in 0..MACHINES {
        host.ok(&format!("vm create run{number} --network n"));
        host.ok(&format!("vm start run{number}"));
        host.ok(&format!("vm create flip{number}"));
    }
    let guests = |host: &TestHost| {
        let states = host.ok_json("vm list");
        let running = states.as_array().into_iter().flatten().filter(|vm| {
            vm["name"].as_str().is_some_and(|name| name.starts_with("run"))
                && vm["status"]["state"] == "running"
        });
        running.map(|vm| vm["status"]["pid"].as_u64().expect("pid")).collect::<Vec<_>>()
    };
    let running = guests(&host);
    assert_eq!(running.len(), MACHINES);
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    // They say nothing, or wait for what never comes.
    let _idle: Vec<_> = [Daemon::Netd, Daemon::Vmd]
        .iter()
        .map(|daemon| raw::connect(&daemon.socket(&host), PREFACE).expect("connect"))
        .collect();
    let (times, answers) = thread::scope(|scope| {
        let host = &host;
        let (stop, calls) = (&stop, &calls);
        let mut clients = Vec::new();
        for number in 0..6 {
            clients.push(scope.spawn(move || {
                let name = format!("networks/n/ports/load{number}");
                let mut channel = None;
                hammer(stop, calls, move |runtime| {
                    runtime.block_on(async {
                        let client =
                            channel.get_or_insert_with(|| PortServiceClient::new(Daemon::Netd.channel(host)));
                        let port = Port { name: name.clone(), ..Port::default() };
                        client.create_port(CreatePortRequest { port: Some(port) }).await?;
                        client
                            .delete_port(DeletePortRequest { name: name.clone(), uid: String::new() })
                            .await?;
                        Ok(())
                    })
                })
            }));
        }
        for number in 0..MACHINES {
            clients.push(scope.spawn(move || {
                let name = format!("vms/flip{number}");
                let mut channel = None;
                hammer(stop, calls, move |runtime| {
                    runtime.block_on(async {
                        let client =
                            channel.get_or_insert_with(|| VmServiceClient::new(Daemon::Vmd.channel(host)));
                        client.start_vm(StartVmRequest { name: name.clone() }).await?;
                        let request = StopVmRequest { name: name.clone(), timeout: None, force: true };
                        client.stop_vm(request).await?;
                        Ok(())
                    })
                })
            }));
        }
        wait::until("load", || (calls.load(Ordering::Relaxed) > 100).then_some(()));
        let mut times = Vec::new();
        for pid in [host.vmd_pid(), host.netd_pid()] {
            let begin = Instant::now();
            kill_process(Pid::from_raw(pid.cast_signed()).expect("pid"), Signal::TERM).expect("kill");
            wait::until("the daemon's end", || {
                process::state(pid).map_or(true, |state| state == 'Z').then_some(())
            });
            times.push(begin.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for client in clients {
            for (code, count) in client.join().expect("client") {
                *answers.entry(code).or_default() += count;
            }
        }
        (times, answers)
    });
    println!(
        "SIGTERM under load: vmd ended after {:?}, netd after {:?} (at most 5 s); answers {answers:?}",
        times[0], times[1]
    );
    assert!(times.iter().all(|time| *time < Duration::from_secs(5)), "{times:?}");
    for pid in &running {
        assert!(
            fs::metadata(format!("/proc/{pid}")).is_ok(),
            "machine of process {pid} ended with the daemons"
        );
    }
    host.kill_vmd();
    host.kill_netd();
    host.start_netd();
    host.start_vmd();
    assert_eq!(guests(&host), running, "all machines are adopted");
    for number in 0..MACHINES {
        for name in [format!("run{number}"), format!("flip{number}")] {
            host.ok(&format!("vm stop {name} --force"));
            host.ok(&format!("vm delete {name}"));
        }
        // The load may have been cut between a create and its delete.
    }
    for name in host.ok("port list -o name").lines().filter(|name| name.contains("load")) {
        host.kvmctl(&["port", "delete", "n", name.rsplit('/').next().unwrap_or_default()]);
    }
    wait::until("all ports to go", || (host.ok_json("port list") == serde_json::json!([])).then_some(()));
    before.assert_same(&Census::of(&host.netns));
}
