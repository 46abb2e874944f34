//! Many clients at once: what each was answered is what some order of their calls gives, and nothing is left.

mod client;

use client::{Client, Key, Kind};
use integration_tests::{
    census::Census,
    history::{History, explain},
    host::{TestHost, program_path},
    objects::Object,
    random::Random,
    soak, wait,
};
use std::{
    collections::BTreeSet,
    fs,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};
use tonic::Code;

/// Clients of the storm.
const CLIENTS: u64 = 8;
/// The objects that they quarrel about.
const KEYS: [Key; 8] = [
    Key(Kind::Network, "s0"),
    Key(Kind::Network, "s1"),
    Key(Kind::Network, "s2"),
    Key(Kind::Port, "p0"),
    Key(Kind::Port, "p1"),
    Key(Kind::Port, "p2"),
    Key(Kind::Machine, "m0"),
    Key(Kind::Machine, "m1"),
];

/// A host whose machines are a program that speaks QMP, with a network for ports and machines.
fn host() -> TestHost {
    let mut host = TestHost::new();
    let fake = host.path("fake-qemu");
    fs::copy(program_path("fake-qemu"), &fake).expect("copy");
    host.qemu = Some(fake);
    host.add_vmd();
    host.ok("network create base --mode isolated");
    host
}

/// Waits until nothing is under way any more, and compares.
fn nothing_is_left(host: &TestHost, before: &Census) {
    wait::until("ports of machines to go", || {
        (host.ok_json("port list") == serde_json::json!([])).then_some(())
    });
    before.assert_same(&Census::of(&host.netns));
    for list in ["vm list", "port list"] {
        assert_eq!(host.ok_json(list), serde_json::json!([]), "{list}");
    }
    let names: Vec<_> = host.ok("network list -o name").lines().map(str::to_owned).collect();
    assert_eq!(names, ["base"]);
    let log = host.logs();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn of_64_creates_of_one_name_all_get_the_same_object_or_exactly_one_wins() {
    const CREATES: usize = 64;
    let host = host();
    let before = Census::of(&host.netns);
    let rounds = if soak() { 20 } else { 3 };
    let begin = Instant::now();
    for kind in [Kind::Network, Kind::Port, Kind::Machine] {
        for round in 0..rounds {
            for different in [false, true] {
                let key = Key(kind, "one");
                // Eight connections of eight calls each.
                let barrier = Barrier::new(8);
                let answers: Vec<Result<String, tonic::Status>> = thread::scope(|scope| {
                    let clients: Vec<_> = (0..8)
                        .map(|client| {
                            let (host, barrier) = (&host, &barrier);
                            scope.spawn(move || {
                                let mut own = Client::of(host);
                                own.connect();
                                barrier.wait();
                                let spec = |call: u64| if different { client * 8 + call } else { 0 };
                                own.create_at_once(key, (0..8).map(spec).collect())
                            })
                        })
                        .collect();
                    clients.into_iter().flat_map(|client| client.join().expect("client")).collect()
                });
                assert_eq!(answers.len(), CREATES);
                let uids: BTreeSet<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
                let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
                assert!(
                    refused.iter().all(|status| status.code() == Code::AlreadyExists),
                    "{key:?}, round {round}: {refused:?}"
                );
                assert_eq!(uids.len(), 1, "{key:?}, round {round}: {uids:?}");
                assert_eq!(refused.len(), if different { CREATES - 1 } else { 0 }, "{key:?}, round {round}");
                Client::of(&host).delete(key).expect("delete");
            }
        }
    }
    nothing_is_left(&host, &before);
    println!(
        "64 parallel creates of one name, {rounds} times for networks, ports and machines each: with one spec 64 OK and \
         one uid, with 64 specs 1 OK and 63 ALREADY_EXISTS; {:.1} s",
        begin.elapsed().as_secs_f64()
    );
}

#[test]
fn what_eight_clients_are_answered_in_a_storm_some_order_explains() {
    let host = host();
    let before = Census::of(&host.netns);
    let seed = Random::seed();
    println!("KVMCTL_SEED={seed}");
    // By count, so that a slow machine does the same; the long one by time.
    let (most, patience) =
        if soak() { (u64::MAX, Duration::from_secs(60)) } else { (30, wait::PATIENCE * 5) };
    let history = History::default();
    let begin = Instant::now();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (host, history) = (&host, &history);
            scope.spawn(move || {
                let mut random = Random::new(seed.wrapping_add(number));
                let mut client = Client::of(host);
                let mut count = 0;
                while count < most && begin.elapsed() < patience {
                    client.act(history, &KEYS, &mut random);
                    count += 1;
                }
            });
        }
    });
    let objects = history.by_object();
    let count: usize = objects.iter().map(|(_, events)| events.len()).sum();
    for (key, events) in objects {
        let shown = format!("{key:?}, {} operations", events.len());
        if let Err(why) = explain::<Object>(events) {
            panic!("no order explains what clients saw of {shown} (KVMCTL_SEED={seed}): {why}");
        }
    }
    println!(
        "storm of {CLIENTS} clients on {} names, seed {seed}: {count} answers in {:.1} s, each explained by a serial order",
        KEYS.len(),
        begin.elapsed().as_secs_f64()
    );
    let mut client = Client::of(&host);
    for key in KEYS {
        client.remove(key);
    }
    nothing_is_left(&host, &before);
}

#[test]
fn a_retry_that_asks_for_something_else_is_told_so() {
    let host = host();
    let mut client = Client::of(&host);
    for kind in [Kind::Network, Kind::Port, Kind::Machine] {
        let key = Key(kind, "again");
        let uid = client.create(key, 0).expect("create");
        assert_eq!(client.create(key, 0).expect("the same request again"), uid);
        assert_eq!(client.create(key, 1).expect_err("another request").code(), Code::AlreadyExists);
        client.delete(key).expect("delete");
    }
}
