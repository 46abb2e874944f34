//! What happened is told in order, once, and goes on where a client left off, whatever becomes of the daemons.

use integration_tests::{
    guest::Guest,
    host::{TestHost, program_path},
    wait,
};
use proto::{events::v1 as wire, netd::v1 as netd};
use serde_json::Value;
use shared::{
    fault::{Fault, Kind},
    socket,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};
use tokio::runtime::Runtime;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

/// A kvmctl that follows something, with what it has printed so far in a file.
struct Follower {
    child: Child,
    file: String,
}

impl Follower {
    fn start(host: &TestHost, file: &str, arguments: &[&str]) -> Self {
        let file = host.path(file);
        let out = fs::File::create(&file).expect("file");
        let mut command = host.kvmctl_command(arguments);
        let child = command.stdout(out).stderr(Stdio::null()).spawn().expect("kvmctl");
        Self { child, file }
    }

    /// The JSON lines that are whole.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).expect("file");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Waits until a line is as wanted, and returns it.
    fn hears(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait::until(what, || self.lines().into_iter().find(&wanted))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls without kvmctl.
struct Rpc {
    runtime: Runtime,
    netd: Channel,
}

impl Rpc {
    fn of(host: &TestHost) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let netd = {
            let _inside = runtime.enter();
            socket::channel(&host.netd_address()).expect("address")
        };
        Self { runtime, netd }
    }

    fn events(&self) -> wire::event_service_client::EventServiceClient<Channel> {
        wire::event_service_client::EventServiceClient::new(self.netd.clone())
    }

    /// All events after a position.
    fn list(&self, since: (i64, &str)) -> Result<Vec<wire::Event>, Fault> {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let (since_revision, since_epoch) = (since.0, since.1.to_owned());
            let request = wire::ListEventsRequest { since_revision, since_epoch, page_size: 0, page_token };
            let page = self.runtime.block_on(self.events().list_events(request))?.into_inner();
            found.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Changes the labels of a group, which is a record and nothing in the kernel.
    fn label(&self, group: &str, value: usize) {
        let group = netd::Group {
            name: format!("groups/{group}"),
            labels: [("n".to_owned(), value.to_string())].into(),
            ..Default::default()
        };
        let mask = prost_types::FieldMask { paths: vec!["labels".into()] };
        let request =
            netd::UpdateGroupRequest { group: Some(group), update_mask: Some(mask), expected_generation: 0 };
        let mut groups = netd::group_service_client::GroupServiceClient::new(self.netd.clone());
        self.runtime.block_on(groups.update_group(request)).expect("update");
    }
}

fn place(event: &Value) -> (i64, String) {
    (event["revision"].as_i64().expect("revision"), event["epoch"].as_str().expect("epoch").to_owned())
}

#[test]
fn followers_miss_nothing_and_hear_nothing_twice_while_netd_is_killed_in_a_storm() {
    const KILLS: usize = 3;
    let mut host = TestHost::new();
    host.ok("network create n --mode isolated --dhcp off");
    let followers = ["one", "two"]
        .map(|name| Follower::start(&host, name, &["events", "--follow", "--from", "netd", "-o", "json"]));
    let ports = Follower::start(&host, "ports", &["port", "list", "--watch", "-o", "json"]);
    for follower in &followers {
        follower.hears("the network", |event| event["resource"] == "networks/n" && event["kind"] == "ready");
    }
    ports.hears("the end of the list", |message| message["change"] == "synced");
    let over = AtomicBool::new(false);
    let kvmctl = host.path("kvmctl");
    let address = host.netd_address();
    thread::scope(|scope| {
        for client in 0..2 {
            let (over, kvmctl, address) = (&over, &kvmctl, &address);
            scope.spawn(move || {
                let run = |arguments: &[&str]| {
                    let mut command = std::process::Command::new(kvmctl);
                    // netd may just be away.
                    let _ = command.args(arguments).env("KVMCTL_NETD", address).output();
                };
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("p{client}-{}", number % 7);
                    run(&["port", "create", "n", &name]);
                    if number % 3 != 0 {
                        run(&["port", "delete", "n", &name]);
                    }
                }
            });
        }
        for _ in 0..KILLS {
            let before = followers[0].lines().len();
            wait::until("a storm", || (followers[0].lines().len() > before + 25).then_some(()));
            host.kill_netd();
            host.start_netd();
        }
        let starts = || followers[0].lines().iter().filter(|event| event["kind"] == "started").count();
        wait::until("the last start to be told", || (starts() == KILLS + 1).then_some(()));
        over.store(true, Ordering::Relaxed);
    });
    let whole = host.ok_json("events --from netd");
    let whole = whole.as_array().expect("events");
    let last = place(whole.last().expect("an event"));
    for follower in &followers {
        follower.hears("the last event", |event| place(event) == last);
        let heard = follower.lines();
        let (heard, told): (Vec<_>, Vec<_>) =
            (heard.iter().map(place).collect(), whole.iter().map(place).collect());
        assert_eq!(heard, told[..heard.len()], "each once, in order, none left out");
        assert_eq!(heard.len(), told.len());
    }
    assert!(whole.windows(2).all(|pair| place(&pair[0]).0 < place(&pair[1]).0), "no revision is used again");

    // What the watch of ports came to, against the list.
    let there = |value: &Value| -> BTreeSet<String> {
        let ports = value.as_array().expect("ports").iter();
        ports.map(|port| format!("networks/n/ports/{}", port["name"].as_str().expect("name"))).collect()
    };
    let listed = there(&host.ok_json("port list"));
    wait::until("the watch of ports to be level", || {
        let mut known = BTreeSet::new();
        for message in ports.lines() {
            let Some(resource) = message["resource"].as_str() else {
                assert_ne!(message["change"], "gone", "a kill loses nothing");
                continue;
            };
            match message["change"].as_str().expect("change") {
                "deleted" => known.remove(resource),
                _ => known.insert(resource.to_owned()),
            };
        }
        (known == listed).then_some(())
    });

    let rpc = Rpc::of(&host);
    for (at, event) in whole.iter().enumerate() {
        let (revision, epoch) = place(event);
        let rest: Vec<_> =
            rpc.list((revision, &epoch)).expect("kept").into_iter().map(|e| (e.revision, e.epoch)).collect();
        let expected: Vec<_> = whole[at + 1..].iter().map(place).collect();
        assert_eq!(rest, expected, "from {revision}");
    }
    println!(
        "{KILLS} kills in a storm of {} events: 2 followers heard each once; resumed at each of {} revisions",
        whole.len(),
        whole.len()
    );
}

#[test]
fn two_thousand_changes_are_kept_a_slow_reader_is_dropped_and_the_bound_holds() {
    const CHANGES: usize = 2000;
    let host = TestHost::new();
    host.ok("group create g");
    let rpc = Rpc::of(&host);
    let begin = rpc.list((0, "")).expect("events").pop().expect("an event");
    let watch = || {
        let request =
            wire::WatchEventsRequest { since_revision: begin.revision, since_epoch: begin.epoch.clone() };
        rpc.runtime.block_on(rpc.events().watch_events(request)).expect("watch").into_inner()
    };
    // One that does not read, and for which the connection buffers little.
    let mut lazy = Rpc::of(&host);
    // It has a thread, so that the connection itself is alive.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    lazy.runtime = runtime.expect("runtime");
    lazy.netd = {
        let _inside = lazy.runtime.enter();
        let endpoint = Endpoint::from_shared(host.netd_address()).expect("address");
        endpoint.initial_stream_window_size(16 << 10).connect_lazy()
    };
    let request =
        wire::WatchEventsRequest { since_revision: begin.revision, since_epoch: begin.epoch.clone() };
    let mut slow = lazy.runtime.block_on(lazy.events().watch_events(request)).expect("watch").into_inner();
    let mut brisk = watch();
    let mut heard = Vec::new();
    for number in 0..CHANGES {
        rpc.label("g", number);
        loop {
            let event =
                rpc.runtime.block_on(brisk.message()).expect("the other is not held up").expect("an event");
            if event.kind() == wire::EventKind::Updated {
                heard.push(event.revision);
                break;
            }
        }
    }
    assert_eq!(heard.len(), CHANGES);
    let kept = rpc.list((begin.revision, &begin.epoch)).expect("kept");
    let changes = kept.iter().filter(|event| event.kind() == wire::EventKind::Updated);
    assert_eq!(
        changes.map(|event| event.revision).collect::<Vec<_>>(),
        heard,
        "2,000 changes are within the bound"
    );
    let asked = kept.iter().filter(|event| event.kind() == wire::EventKind::Audit);
    let by = format!("uid {}: UpdateGroup: OK", rustix::process::getuid().as_raw());
    assert!(
        asked.clone().count() >= CHANGES - 1 && asked.clone().all(|event| event.message == by),
        "who asked"
    );
    let (mut read, mut end) = (0, None);
    while end.is_none() {
        match lazy.runtime.block_on(slow.message()) {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("it ended without a word"),
            Err(status) => end = Some(Fault::from(status)),
        }
    }
    let end = end.expect("an error");
    assert_eq!((end.kind(), end.reason()), (Kind::Aborted, "SLOW_READER"));
    println!(
        "a reader that slept during {CHANGES} changes got {read} of them and ABORTED; the other got all"
    );

    // A place that no log of this daemon ever was at.
    for (revision, epoch) in
        [(begin.revision, "00000000"), (i64::MAX, ""), (begin.revision + 100_000, &begin.epoch)]
    {
        let request = wire::WatchEventsRequest { since_revision: revision, since_epoch: epoch.to_owned() };
        let status = rpc.runtime.block_on(rpc.events().watch_events(request)).expect_err("gone");
        assert_eq!((status.code(), Fault::from(status).reason()), (Code::FailedPrecondition, "EVENTS_GONE"));
    }
    for (revision, epoch, token) in [(-1, "", ""), (1, "ä", ""), (1, "a.b", ""), (0, "", "x"), (0, "", "-")]
    {
        let request = wire::ListEventsRequest {
            since_revision: revision,
            since_epoch: epoch.to_owned(),
            page_size: 0,
            page_token: token.to_owned(),
        };
        let status = rpc.runtime.block_on(rpc.events().list_events(request)).expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{revision} {epoch} {token}");
    }
}

#[test]
fn leases_are_told_when_they_are_given_and_when_they_end_also_while_netd_was_away() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let follower = Follower::start(
        &host,
        "leases",
        &["events", "--follow", "--kind", "leased,lease_ended", "--from", "netd", "-o", "json"],
    );
    let plug = |name: &str| {
        let port = host.ok_json(&format!("port create n {name}"));
        let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
        (Guest::plug(&host.netns, &field("interface"), &field("mac")), field("ipv4_address"), field("mac"))
    };
    let (first, address, mac) = plug("first");
    let (second, other, _) = plug("second");
    let told = first.dhcp4(&[]).expect("a lease");
    assert_eq!(told["ip"], address);
    let leased = follower.hears("the lease", |event| event["kind"] == "leased");
    assert_eq!(leased["resource"], "networks/n/ports/first");
    assert_eq!(leased["message"], format!("{address} to {mac}"));
    // Renewed: nothing is told.
    first.dhcp4(&[]).expect("a lease");
    host.kill_netd();
    second.dhcp4(&[]).expect("a lease, without netd");
    host.start_netd();
    let leased =
        follower.hears("the lease given meanwhile", |event| event["resource"] == "networks/n/ports/second");
    assert!(leased["message"].as_str().is_some_and(|message| message.starts_with(&format!("{other} to "))));
    host.ok("port delete n first");
    let ended = follower.hears("the end of the lease", |event| event["kind"] == "lease_ended");
    assert_eq!((&ended["resource"], &ended["message"]), (&"networks/n/ports/first".into(), &address.into()));
    host.ok("network delete n --force");
    follower.hears("the end of the other", |event| {
        event["kind"] == "lease_ended" && event["resource"] == "networks/n/ports/second"
    });
    assert_eq!(follower.lines().len(), 4, "each once: {:?}", follower.lines());
}

#[test]
fn a_network_that_is_not_served_is_told_as_degraded_and_recovered() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let arguments = ["events", "--follow", "--resource", "networks/n", "-o", "json"];
    let follower = Follower::start(&host, "told", &arguments);
    follower.hears("the network", |event| event["kind"] == "ready");
    host.kill_netd();
    for server in host.servers("n") {
        host.netns.sh(&format!("kill -KILL {server}"));
    }
    let everywhere =
        host.netns.enter(|| wait::until("port 53", || std::net::UdpSocket::bind("0.0.0.0:53").ok()));
    host.start_netd();
    let degraded = follower.hears("the trouble", |event| event["kind"] == "degraded");
    assert!(
        degraded["message"].as_str().is_some_and(|text| text.contains("Address already in use")),
        "{degraded}"
    );
    drop(everywhere);
    follower.hears("its end", |event| event["kind"] == "recovered");
}

/// A host whose machines' QEMUs behave as the machines' names say.
fn host_with_machines() -> TestHost {
    let mut host = TestHost::new();
    let fake = host.path("fake-qemu");
    fs::copy(program_path("fake-qemu"), &fake).expect("copy");
    host.qemu = Some(fake);
    host.environment.push(("FAKE_QEMU".into(), "by-name".into()));
    host.add_vmd();
    host.ok("network create n --mode isolated --dhcp off");
    host
}

#[test]
fn what_becomes_of_machines_is_told_with_its_reason() {
    let mut host = host_with_machines();
    let follower = Follower::start(&host, "machines", &["events", "--follow", "--from", "vmd", "-o", "json"]);
    let watch = Follower::start(&host, "vms", &["vm", "list", "--watch", "-o", "json"]);
    watch.hears("the end of the list", |message| message["change"] == "synced");
    for name in ["ok", "ok-2", "crash", "hang"] {
        host.ok(&format!("vm create {name} --network n"));
    }
    host.ok("vm start ok");
    host.ok("vm start ok-2");
    host.ok("vm pause ok");
    host.ok("vm resume ok");
    host.kvmctl(&["vm", "start", "crash"]);
    host.ok("vm start hang");
    let hears = |what: &str, name: &str, kind: &str, message: &str| {
        follower.hears(what, |event| {
            event["resource"] == format!("vms/{name}")
                && event["kind"] == kind
                && event["message"].as_str().is_some_and(|text| text.contains(message))
        })
    };
    // It dies when the guest begins to run: before its start was answered, or after.
    follower.hears("the crash", |event| {
        let ways = ["signal 11", "it could not be started"];
        event["resource"] == "vms/crash"
            && event["kind"] == "crashed"
            && event["message"].as_str().is_some_and(|text| ways.iter().any(|way| text.contains(way)))
    });
    hears("the silence", "hang", "unresponsive", "did not answer");
    host.ok("vm stop ok-2 --force");
    hears("the end", "ok-2", "exited", "killed");

    // vmd dies, and a machine with it; the other is found again.
    let pid = host.ok_json("vm show ok")["status"]["pid"].as_u64().expect("pid");
    host.ok("vm start ok-2");
    let dying = host.ok_json("vm show ok-2")["status"]["pid"].as_u64().expect("pid");
    host.kill_vmd();
    host.netns.sh(&format!("kill -KILL {dying}"));
    wait::until("its end", || (!fs::exists(format!("/proc/{dying}")).unwrap_or(true)).then_some(()));
    host.start_vmd();
    hears("the adoption", "ok", "adopted", "running");
    wait::until("the end while vmd was away", || {
        let events = follower.lines();
        let start = events.iter().rposition(|event| event["kind"] == "started")?;
        events[start..].iter().any(|e| e["resource"] == "vms/ok-2" && e["kind"] == "exited").then_some(())
    });
    assert_eq!(host.ok_json("vm show ok")["status"]["pid"].as_u64(), Some(pid));
    for name in ["ok", "hang"] {
        host.ok(&format!("vm stop {name} --force"));
    }
    for name in ["ok", "ok-2", "crash", "hang"] {
        host.ok(&format!("vm delete {name}"));
        hears("the delete", name, "deleted", "");
    }
    let told: Vec<_> = follower
        .lines()
        .iter()
        .filter(|event| event["resource"] == "vms/ok" && event["kind"] != "audit")
        .map(|event| {
            format!("{} {}", event["kind"].as_str().expect("kind"), event["message"].as_str().expect("text"))
        })
        .collect();
    let expected = [
        "created ",
        "state starting",
        "state running",
        "state paused",
        "state running",
        "adopted running",
        "state stopping: QEMU is killed",
        "exited killed",
        "deleted ",
    ];
    assert_eq!(told, expected);
    let whole = host.ok_json("events --from vmd");
    let (heard, whole): (Vec<_>, Vec<_>) = (
        follower.lines().iter().map(place).collect(),
        whole.as_array().expect("events").iter().map(place).collect(),
    );
    assert_eq!(heard, whole, "each once, over the restart");

    // The watch of machines came to the same as the list.
    wait::until("the watch of machines to be level", || {
        let mut known = BTreeMap::new();
        for message in watch.lines() {
            let Some(resource) = message["resource"].as_str() else { continue };
            match message["change"].as_str().expect("change") {
                "deleted" => drop(known.remove(resource)),
                _ => drop(known.insert(resource.to_owned(), message["object"]["status"]["state"].clone())),
            }
        }
        known.is_empty().then_some(())
    });
    let kinds: BTreeSet<_> = follower.lines().iter().map(|event| event["kind"].to_string()).collect();
    println!("{} events of machines, of the kinds {kinds:?}", whole.len());
}

#[test]
fn both_daemons_events_are_one_list_in_the_order_of_time_and_go_on_at_its_cursors() {
    let host = host_with_machines();
    for name in ["ok", "ok-2"] {
        host.ok(&format!("vm run {name} --network n"));
        host.ok("port create n p");
        host.ok("port delete n p");
        host.ok(&format!("vm stop {name} --force"));
    }
    let whole = host.ok_json("events");
    let whole = whole.as_array().expect("events");
    let times: Vec<_> = whole.iter().map(|event| event["time"].as_str().expect("time").to_owned()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let daemons: BTreeSet<_> = whole.iter().map(|event| event["daemon"].to_string()).collect();
    assert_eq!(daemons.len(), 2);
    // What is behind each cursor is exactly what had not been printed: at all of them, as a file of one line each.
    for (at, event) in whole.iter().enumerate() {
        let cursor = event["cursor"].as_str().expect("cursor");
        let rest = host.ok_json(&format!("events --since {cursor}"));
        assert_eq!(rest.as_array().expect("events").len(), whole.len() - at - 1, "{cursor}");
        assert!(
            rest.as_array().expect("events").iter().zip(&whole[at + 1..]).all(|(a, b)| place(a) == place(b))
        );
    }
    let end = host.kvmctl(&["events"]);
    let cursor = end.stderr.split_whitespace().last().expect("a cursor").to_owned();
    assert_eq!(host.ok_json(&format!("events --since {cursor}")), Value::Array(vec![]));
    let names = host.ok("events -o name");
    assert_eq!(names.lines().last(), Some(cursor.as_str()));
    let states = host.ok_json("events --kind state,exited --resource vms/ok*");
    let states = states.as_array().expect("events");
    assert!(states.len() >= 8 && states.iter().all(|event| event["daemon"] == "vmd"), "{states:?}");

    // Of another log.
    let other = cursor.replace('n', "n0");
    let refused = host.kvmctl(&["events", "--since", &other]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: list again"), "{}", refused.stderr);
    assert_eq!(host.kvmctl(&["events", "--since", "yesterday"]).code, 2);
    println!("{} events of both daemons, resumed at each cursor", whole.len());
}

#[test]
fn one_daemons_events_are_shown_while_the_other_is_away() {
    let mut host = host_with_machines();
    host.kill_vmd();
    let outcome = host.kvmctl(&["events", "-o", "json"]);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("vmd"), "{}", outcome.stderr);
    let printed: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert!(printed.as_array().expect("events").iter().all(|event| event["daemon"] == "netd"));
    let follower = Follower::start(&host, "both", &["events", "--follow", "-o", "json"]);
    follower.hears("netd's", |event| event["daemon"] == "netd");
    host.start_vmd();
    let starts =
        |events: &[Value]| events.iter().filter(|e| e["daemon"] == "vmd" && e["kind"] == "started").count();
    wait::until("vmd's new life", || (starts(&follower.lines()) >= 1).then_some(()));
}
