//! What is told of changes, and that whoever listens ends up with what there is, wherever netd died.

use super::{restart::kill_everywhere, *};
use crate::server::watch;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use proto::{events::v1::ChangeType, netd::v1 as wire};
use shared::{
    access::Caller,
    events::{Cursor, EventKind},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// All that was told, as kind and resource.
fn told(process: &Process) -> Vec<(EventKind, String)> {
    process.run(process.netd().0.store.commit(Vec::new())).unwrap();
    let events = process.netd().log().list(&Cursor::default(), usize::MAX).unwrap();
    events.iter().map(|event| (event.kind, event.resource.clone())).collect()
}

/// What a client of both watches knows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Mirror {
    networks: BTreeMap<String, wire::ObjectState>,
    ports: BTreeMap<String, (wire::ObjectState, String)>,
    positions: [Cursor; 2],
    /// Messages that came.
    heard: usize,
}

/// What is there without waiting for more.
fn ready<T>(mut stream: impl Stream<Item = Result<T, Status>> + Unpin) -> Vec<T> {
    std::iter::from_fn(|| stream.next().now_or_never().flatten()).map(|item| item.unwrap()).collect()
}

impl Mirror {
    /// Goes on from where it was, until nothing is new.
    fn follow(&mut self, process: &Process) -> Result<(), Fault> {
        // What is told in the background is told by then.
        process.run(process.netd().0.store.commit(Vec::new())).unwrap();
        let stop = CancellationToken::new();
        process.run(async {
            for message in
                ready(watch::networks(process.netd(), &self.positions[0], Caller::root(), stop.clone())?)
            {
                self.heard += 1;
                if message.revision > 0 {
                    self.positions[0] = Cursor { revision: message.revision, epoch: message.epoch.clone() };
                }
                let Some(network) = message.network.clone() else { continue };
                let state = network.status.unwrap_or_default().state();
                match message.change() {
                    ChangeType::Deleted => drop(self.networks.remove(&network.name)),
                    _ => drop(self.networks.insert(network.name, state)),
                }
            }
            for message in
                ready(watch::ports(process.netd(), &self.positions[1], (None, Caller::root()), stop)?)
            {
                self.heard += 1;
                if message.revision > 0 {
                    self.positions[1] = Cursor { revision: message.revision, epoch: message.epoch.clone() };
                }
                let Some(port) = message.port.clone() else { continue };
                let state = (port.status.unwrap_or_default().state(), port.uid);
                match message.change() {
                    ChangeType::Deleted => drop(self.ports.remove(&port.name)),
                    _ => drop(self.ports.insert(port.name, state)),
                }
            }
            Ok(())
        })
    }

    /// What a client knows that lists all.
    fn of(process: &Process) -> Self {
        let mut mirror = Self::default();
        mirror.follow(process).unwrap();
        mirror
    }

    fn assert_same(&self, process: &Process, at: &str) {
        let there = Self::of(process);
        assert_eq!((&self.networks, &self.ports), (&there.networks, &there.ports), "{at}");
    }
}

#[test]
fn each_change_of_a_record_is_told_once_and_in_order() {
    let (_dir, _kernel, process) = fixture();
    let before = told(&process).len();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    process.create(&network("lan", spec(Mode::Nat))).unwrap();
    process.create_port(&port("lan", "web")).unwrap();
    let change = PortChange { isolated: Some(true), ..PortChange::default() };
    process.run(process.netd().update_port(key("lan", "web"), change.clone(), 0)).unwrap();
    process.run(process.netd().update_port(key("lan", "web"), change, 0)).unwrap();
    process.create_port(&port("lan", "db")).unwrap();
    process.delete_port("lan", "db").unwrap();
    process.delete("lan", true).unwrap();
    let [lan, web, db] = ["networks/lan", "networks/lan/ports/web", "networks/lan/ports/db"];
    let expected = [
        (EventKind::Created, lan),
        (EventKind::Ready, lan),
        (EventKind::Created, web),
        (EventKind::Ready, web),
        (EventKind::Updated, web),
        (EventKind::Created, db),
        (EventKind::Ready, db),
        (EventKind::Deleted, db),
        (EventKind::Deleted, web),
        (EventKind::Deleted, lan),
    ];
    let told: Vec<_> = told(&process).split_off(before);
    assert_eq!(told.iter().map(|(kind, name)| (*kind, name.as_str())).collect::<Vec<_>>(), expected);
    let events = process.netd().log().list(&Cursor::default(), usize::MAX).unwrap();
    let updated = events.iter().find(|event| event.kind == EventKind::Updated).unwrap();
    assert_eq!(updated.message, "isolated");
}

#[test]
fn whoever_watches_ends_up_with_what_there_is() {
    let (_dir, kernel, process) = fixture();
    let mut mirror = Mirror::of(&process);
    let mut kept = vec![mirror.clone()];
    let mut step = |what: &str| {
        mirror.follow(&process).unwrap();
        mirror.assert_same(&process, what);
        kept.push(mirror.clone());
    };
    for new in every_mode().into_iter().filter(|new| !["wan", "nic"].contains(&new.name.as_str())) {
        process.create(&new).unwrap();
        step("create");
        process.create_port(&port(new.name.as_str(), "web")).unwrap();
        process.create_port(&port(new.name.as_str(), "db")).unwrap();
        step("ports");
        process.delete_port(new.name.as_str(), "web").unwrap();
        process.create_port(&port(new.name.as_str(), "web")).unwrap();
        step("again");
    }
    kernel.meddle(|host| drop(host.links.remove(&link("br-lan"))));
    process.converge();
    step("degraded");
    assert!(Mirror::of(&process).networks.values().any(|state| *state == wire::ObjectState::Degraded));
    process.delete("own", true).unwrap();
    process.delete("lan", true).unwrap();
    step("deleted");
    // From each of the positions on, the same.
    for (at, mut former) in kept.into_iter().enumerate() {
        former.follow(&process).unwrap();
        former.assert_same(&process, &format!("from position {at}"));
    }
}

#[test]
fn a_create_that_fails_is_told_as_created_and_deleted() {
    let (_dir, kernel, process) = fixture();
    let mut mirror = Mirror::of(&process);
    let before = told(&process).len();
    kernel.fail_at(2, Effect::None);
    process.create(&network("lan", spec(Mode::Nat))).unwrap_err();
    let name = "networks/lan".to_owned();
    let told = told(&process).split_off(before);
    assert_eq!(told, [(EventKind::Created, name.clone()), (EventKind::Deleted, name)]);
    mirror.follow(&process).unwrap();
    mirror.assert_same(&process, "after it");
}

#[test]
fn whoever_resumes_after_a_kill_at_any_step_ends_up_with_what_there_is() {
    let positions = std::cell::RefCell::new(Vec::new());
    let resumed = std::cell::Cell::new(0);
    let prepare = |process: &Process| {
        process.create(&network("lan", spec(Mode::Nat))).unwrap();
        process.create_port(&port("lan", "web")).unwrap();
        positions.borrow_mut().push(Mirror::of(process));
    };
    let judge = |process: &Process, at: &str| {
        let mut mirror = positions.borrow().last().unwrap().clone();
        mirror.follow(process).expect("nothing is lost by a kill");
        mirror.assert_same(process, at);
        resumed.set(resumed.get() + 1);
    };
    kill_everywhere(prepare, async |netd| netd.create_port(port("lan", "db")).await, judge);
    kill_everywhere(
        prepare,
        async |netd| netd.delete_port(key("lan", "web"), None, (0, Quota::default())).await,
        judge,
    );
    kill_everywhere(prepare, async |netd| netd.delete_network(name("lan"), true).await, judge);
    let new = network("lan6", spec(Mode::Routed));
    kill_everywhere(prepare, async |netd| netd.create_network(new.clone(), false).await, judge);
    println!("{} kills, each watch resumed without a gap", resumed.get());
}

#[test]
fn a_watcher_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let (_dir, _kernel, process) = fixture();
    let stop = CancellationToken::new();
    process.create(&network("lan", spec(Mode::Isolated))).unwrap();
    // What is still to be told of the create comes before the watches.
    process.run(process.netd().0.store.commit(Vec::new())).unwrap();
    let watch = || watch::networks(process.netd(), &Cursor::default(), Caller::root(), stop.clone()).unwrap();
    let (mut slow, mut brisk) = (watch(), watch());
    let mut heard = ready(&mut brisk).len();
    for number in 0..2000 {
        let change = NetworkChange {
            labels: Some(BTreeMap::from([("n".to_owned(), number.to_string())])),
            ..NetworkChange::default()
        };
        process.run(process.netd().update_network(name("lan"), change)).unwrap();
        if number % 100 == 0 {
            heard += process.run(async { ready(&mut brisk) }).len();
        }
    }
    heard += process.run(async { ready(&mut brisk) }).len();
    assert_eq!(heard, 2000 + 2, "the other hears of each");
    let mut last = None;
    while let Some(item) = process.run(async { slow.next().now_or_never() }) {
        last = item.or(last);
        if matches!(last, Some(Err(_))) {
            break;
        }
    }
    let fault = Fault::from(last.unwrap().unwrap_err());
    assert_eq!((fault.kind(), fault.reason()), (Kind::Aborted, "SLOW_READER"));
    assert!(process.run(slow.next()).is_none(), "it is over");
}
