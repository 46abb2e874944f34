//! Requests that are wrong, by the thousand, for each call of the API: each is refused, nothing breaks, nothing changes.

use integration_tests::{
    census::Census,
    host::{TestHost, program_path},
    malformed::{Api, FAULTS, Fault, Method},
    random::Random,
    raw::{self, Daemon},
    soak, wait,
};
use std::{collections::BTreeMap, fs};
use tonic::{Code, transport::Channel};

/// Requests of each service in the short version; the figure.
const REQUESTS: usize = 1000;
/// Calls at once.
const AT_ONCE: usize = 8;

fn host() -> TestHost {
    let mut host = TestHost::new();
    let fake = host.path("fake-qemu");
    fs::copy(program_path("fake-qemu"), &fake).expect("copy");
    host.qemu = Some(fake);
    host.add_vmd();
    host.ok("network create keep --mode nat");
    host.ok("port create keep keep");
    host.ok("group create keep");
    host.ok("vm create machine --network keep");
    host.ok("vm start machine");
    host
}

/// Everything that the daemons have, as they tell it, but for what changes by itself.
fn objects(host: &TestHost) -> Vec<String> {
    ["network list", "port list", "group list", "forward list", "vm list"]
        .iter()
        .map(|list| host.ok_json(list).to_string())
        .collect()
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Whether a refusal is one: the request's fault and not the daemon's.
fn is_refusal(code: Code, fault: Fault) -> bool {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Aborted
        | Code::OutOfRange => true,
        // gRPC's own answers to a frame that is none.
        Code::Internal | Code::Unimplemented => fault == Fault::WrongFrame,
        _ => false,
    }
}

#[test]
fn requests_that_are_wrong_are_refused_and_change_nothing() {
    let host = host();
    let seed = Random::seed();
    println!("KVMCTL_SEED={seed}");
    let api = Api::new();
    let pids = [host.netd_pid(), host.vmd_pid()];
    let before = (Census::of(&host.netns), objects(&host));
    let busiest = pids.map(threads);
    let mut services: BTreeMap<&str, Vec<&Method>> = BTreeMap::new();
    for method in &api.methods {
        services.entry(&method.service).or_default().push(method);
    }
    assert!(services.len() >= 10, "{:?}", services.keys());
    let requests = if soak() { 5 * REQUESTS } else { REQUESTS };
    let served = services.iter().flat_map(|(service, methods)| {
        Daemon::of(service).iter().map(move |daemon| (*daemon, service, methods))
    });
    for (number, (daemon, service, methods)) in served.enumerate() {
        let seen = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(ask(&host, daemon, &api, methods, (seed.wrapping_add(number as u64), requests)));
        println!("{service} of {daemon:?}: {requests} requests of {} calls: {seen:?}", methods.len());
    }
    let log = host.logs();
    assert!(!log.contains("panicked") && !log.contains("a defect"), "{log}");
    assert_eq!(objects(&host), before.1);
    before.0.assert_same(&Census::of(&host.netns));
    assert_eq!([host.netd_pid(), host.vmd_pid()], pids);
    for pid in pids {
        assert!(fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")));
    }
    // Threads that block for others end when they have had nothing to do for a while.
    wait::until("the threads that were", || {
        (0..2).all(|index| threads(pids[index]) <= busiest[index]).then_some(())
    });
    println!("{} services, {} calls, 0 panics, 0 changes", services.len(), api.methods.len());
}

/// Sends wrong requests to the methods in turn; how often each code came.
async fn ask(
    host: &TestHost,
    daemon: Daemon,
    api: &Api,
    methods: &[&Method],
    (seed, requests): (u64, usize),
) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    let mut random = Random::new(seed);
    let channel = daemon.channel(host);
    let mut sent = 0;
    while sent < requests {
        let calls: Vec<_> = (0..AT_ONCE.min(requests - sent))
            .map(|place| {
                let method = methods[(sent + place) % methods.len()];
                let fault = match *random.of(&FAULTS) {
                    // A few of them are enough: each is a megabyte.
                    _ if (sent + place) % 200 == 7 => Fault::Huge,
                    // Of a message without fields everything that can be decoded is right.
                    Fault::WrongValues | Fault::Noise if !api.has_fields(&method.input) => Fault::Truncated,
                    fault => fault,
                };
                let body = api.body(method, fault, &mut random);
                (method.path.clone(), method.stream, fault, body)
            })
            .collect();
        sent += calls.len();
        let answers = calls.into_iter().map(|(path, stream, fault, body)| {
            let mut channel: Channel = channel.clone();
            tokio::spawn(async move {
                let kept = body.clone();
                let answer = raw::call(&mut channel, &path, stream, body).await;
                (path, fault, kept, answer)
            })
        });
        for answer in answers.collect::<Vec<_>>() {
            let (path, fault, body, answer) = answer.await.expect("call");
            let shown = || format!("{path}, {fault:?}, {:02x?}", &body[..body.len().min(400)]);
            let status = answer.unwrap_or_else(|lost| panic!("{}: {lost:?}", shown()));
            // What is no refusal may be a request that is right by chance, of a call that changes nothing.
            let harmless = status.code() == Code::Ok && !changes(&path);
            assert!(harmless || is_refusal(status.code(), fault), "{}: {status:?}", shown());
            *seen.entry(format!("{:?}", status.code())).or_default() += 1;
        }
    }
    seen
}

/// Whether a call is there to change something.
fn changes(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    !["Get", "List", "Watch", "Explain", "Diagnose", "Read"].iter().any(|word| method.starts_with(word))
}

#[test]
fn calls_with_long_deadlines_are_calls_of_the_api() {
    let api = Api::new();
    for (path, _) in shared::serve::LONG_CALLS {
        assert!(api.methods.iter().any(|method| method.path == *path), "{path}");
    }
}
