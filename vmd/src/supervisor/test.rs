use super::*;
use crate::{
    model::{KIND_EXIT, Nic, NicModel, test_spec},
    ports::{FakePorts, KIND_PORT, PortRecord},
    qemu::process::{self, Process},
    start,
};
use clap::Parser as _;
use futures_util::FutureExt as _;
use shared::events::{Cursor, Told};
use std::time::Duration;

fn spec(macs: &[Option<&str>]) -> Spec {
    let nic = |mac: &Option<&str>| Nic {
        network: "lan".parse().unwrap(),
        mac: mac.map(|text| text.parse().unwrap()),
        model: NicModel::Virtio,
        port: Default::default(),
    };
    Spec { nics: macs.iter().map(nic).collect(), ..test_spec() }
}

#[test]
fn derived_macs_are_stable_and_step_aside() {
    let name: Name = "web".parse().unwrap();
    let free = choose_macs((&name, 0), &spec(&[None, None]), &BTreeMap::new()).unwrap();
    assert_eq!(free, choose_macs((&name, 0), &spec(&[None, None]), &BTreeMap::new()).unwrap());
    assert_ne!(free[0], free[1]);
    // The next owner of a name does not get the MAC that is set aside for the last one.
    assert_ne!(free, choose_macs((&name, 1000), &spec(&[None, None]), &BTreeMap::new()).unwrap());
    let taken = BTreeMap::from([(free[0], "other".parse().unwrap())]);
    let salted = choose_macs((&name, 0), &spec(&[None, None]), &taken).unwrap();
    assert_eq!(salted, [Mac::derived("uids/0/vms/web/nics/0", 1), free[1]]);
    // A MAC that the spec names later is not given to an earlier NIC.
    let later =
        choose_macs((&name, 0), &spec(&[None, Some(&free[0].to_string())]), &BTreeMap::new()).unwrap();
    assert_eq!(later, [Mac::derived("uids/0/vms/web/nics/0", 1), free[0]]);
}

#[test]
fn a_mac_of_another_machine_is_refused_by_its_name() {
    let mac = "52:54:00:00:00:01";
    let taken = BTreeMap::from([(mac.parse().unwrap(), "other".parse().unwrap())]);
    let fault = choose_macs((&"web".parse().unwrap(), 0), &spec(&[Some(mac)]), &taken).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "MAC_TAKEN"));
    assert!(fault.to_string().contains("`other`"));
}

async fn open(dir: &Path, ports: FakePorts) -> Supervisor<FakePorts> {
    let (state, run) = (dir.join("state"), dir.join("run"));
    let config = Config::parse_from([
        Path::new("vmd"),
        Path::new("--state-dir"),
        &state,
        Path::new("--run-dir"),
        &run,
    ]);
    Supervisor::open(&config, ports, CancellationToken::new()).await.unwrap()
}

fn new(name: &str, spec: Spec) -> NewVm {
    NewVm { name: name.parse().unwrap(), labels: BTreeMap::new(), spec, owner: Caller::root() }
}

/// netd counts the ports of vmd's own user there, which may be any number.
/// A viewer who asks without end uses up none of vmd's calls at netd.
#[tokio::test]
async fn readers_of_the_hosts_status_share_one_look_at_netds_ports() {
    let dir = tempfile::tempdir().unwrap();
    let ports = FakePorts::default();
    let supervisor = open(dir.path(), ports.clone()).await;
    ports.take("networks/lan/ports/gone-0");
    ports.set_down(true);
    assert_eq!(supervisor.strays().await.len(), 0);
    ports.set_down(false);
    let look = || supervisor.0.strays.share(supervisor.look_for_strays());
    let told = futures_util::future::join_all((0..128).map(|_| look())).await;
    for strays in told {
        let strays = strays.unwrap();
        assert!(strays.len() == 1 && strays[0].contains("`networks/lan/ports/gone-0`"), "{strays:?}");
    }
    println!("128 readers at once: netd was asked {} times", ports.looks());
    assert_eq!(ports.looks(), 1);
}

#[tokio::test]
async fn nics_count_against_the_quotas_of_ports() {
    use shared::access::{Quota, Rights};
    let dir = tempfile::tempdir().unwrap();
    let ports = FakePorts::with_networks(["lan", "dmz"].map(|network| network.parse().unwrap()));
    let supervisor = open(dir.path(), ports).await;
    let on = |networks: &[&str]| {
        let mut spec = spec(&vec![None; networks.len()]);
        for (nic, network) in spec.nics.iter_mut().zip(networks) {
            nic.network = network.parse().unwrap();
        }
        spec
    };
    let caller = |uid, ports, ports_per_network| {
        let quota = Quota { ports, ports_per_network, ..Quota::default() };
        let rights = Rights { quota, ..Caller::root().rights };
        Caller::new(uid, None, rights, Path::new("/etc/kvmctl/access.toml").into())
    };
    let (alice, bob) = (caller(1000, Some(4), Some(2)), caller(1001, Some(1), None));
    for (name, owner, networks, refused) in [
        ("a", &alice, &["lan"][..], None),
        ("b", &alice, &["lan", "lan"], Some("3 NICs on network `lan`, and may have 2")),
        ("c", &alice, &["lan", "dmz"], None),
        ("d", &alice, &["lan"], Some("3 NICs on network `lan`, and may have 2")),
        ("e", &alice, &["dmz", "dmz"], Some("5 NICs, and may have 4")),
        ("f", &alice, &["dmz"], None),
        ("g", &alice, &["dmz"], Some("5 NICs, and may have 4")),
        ("h", &alice, &[], None),
        ("i", &bob, &["lan"], None),
        ("j", &caller(1001, Some(0), Some(0)), &[], None),
    ] {
        let made = supervisor.create(NewVm { owner: owner.clone(), ..new(name, on(networks)) }).await;
        match (made, refused) {
            (Ok(_), None) => {}
            (Err(fault), Some(says)) => {
                assert_eq!((fault.kind(), fault.reason()), (Kind::ResourceExhausted, "MACHINE_QUOTA"));
                assert!(fault.chain().contains(says), "{name}: {}", fault.chain());
            }
            (made, _) => panic!("{name}: {made:?}, not {refused:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_half_made_or_half_removed_machine() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = open(dir.path(), FakePorts::default()).await;
    let name: Name = "web".parse().unwrap();
    let settled = async |there: bool| {
        let seen = async {
            while supervisor.get(&name).is_ok() != there {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.expect("half done");
    };
    assert!(supervisor.create(new("web", spec(&[]))).now_or_never().is_none());
    settled(true).await;
    assert!(supervisor.delete(&name, &Caller::root()).now_or_never().is_none());
    settled(false).await;
    let records = supervisor.0.context.store.load::<Record>(KIND_VM).await.unwrap().records;
    assert!(records.is_empty(), "{records:?}");
}

/// What a vmd of a later version wrote may belong to a guest that runs.
#[tokio::test]
async fn a_machine_with_a_broken_record_is_left_alone_with_its_ports() {
    for kind in [KIND_VM, KIND_RUN] {
        let dir = tempfile::tempdir().unwrap();
        let lan = "lan".parse().unwrap();
        let ports = FakePorts::with_networks([lan]);
        let supervisor = open(dir.path(), ports.clone()).await;
        supervisor.create(new("web", spec(&[None]))).await.unwrap();
        let context = &supervisor.0.context;
        let port = "networks/lan/ports/web-0";
        ports.take(port);
        let record = PortRecord { vm: "web".parse().unwrap(), uid: Some("foreign".into()) };
        let ops = vec![
            Op::put(KIND_PORT, port, &record).unwrap(),
            Op::put(kind, "web", &"of a later version").unwrap(),
        ];
        context.store.commit(ops).await.unwrap();
        let runs = BTreeMap::new();
        let state = load(&context.store).await.unwrap();
        assert!(state.records.is_empty(), "{kind}: a second QEMU could be started");
        assert!(state.orphans.is_empty(), "{kind}: a running guest would lose its port");
        assert_eq!((context.store.has_broken(kind), state.runs), (true, runs));
        let refused = context.store.commit(vec![Op::put(kind, "web", &0).unwrap()]).await.unwrap_err();
        assert_eq!(refused.reason(), "BROKEN_RECORD");
    }
}

/// Its run record and its ports go by the id, so that they would be taken for another machine's.
#[tokio::test]
async fn a_machine_whose_record_has_another_name_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = open(dir.path(), FakePorts::default()).await;
    supervisor.create(new("web", spec(&[]))).await.unwrap();
    let store = &supervisor.0.context.store;
    let mut record = store.load::<serde_json::Value>(KIND_VM).await.unwrap().records.remove(0).1;
    record["name"] = "db".into();
    store.commit(vec![Op::put(KIND_VM, "web", &record).unwrap()]).await.unwrap();
    let state = load(store).await.unwrap();
    assert!(state.records.is_empty(), "{:?}", state.records);
    assert_eq!((state.broken.len(), state.broken[0].id.as_str()), (1, "web"));
    assert!(state.broken[0].why.contains("`db`"), "{:?}", state.broken);
}

/// What is told of `web` after `position`, up to the first of this kind.
async fn told_until(
    supervisor: &Supervisor<FakePorts>,
    position: &Cursor,
    kind: EventKind,
) -> Vec<EventKind> {
    let mut watch = supervisor.log().watch(position).unwrap();
    let mut told: Vec<_> = watch.kept.iter().map(|event| event.kind).collect();
    while !told.contains(&kind) {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.news.recv()).await;
        let Ok(Told::Event(event)) = next.unwrap_or_else(|_| panic!("only {told:?}")) else {
            panic!("lost after {told:?}")
        };
        assert_eq!(event.resource, "vms/web");
        told.push(event.kind);
    }
    told
}

/// Each end whose record is refused: of a start, of a process, and of one that went while there was no vmd.
#[tokio::test]
async fn an_end_that_cannot_be_recorded_is_told_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let ports = FakePorts::with_networks(["lan".parse().unwrap()]);
    let supervisor = open(dir.path(), ports.clone()).await;
    let record = supervisor.create(new("web", spec(&[None]))).await.unwrap().record.clone();
    let context = &supervisor.0.context;
    context.store.reject(KIND_EXIT, "web", "a test");

    ports.set_down(true);
    let position = supervisor.log().present();
    let handle = supervisor.get(&record.name).unwrap();
    handle.carry_out(Verb::Start).await.unwrap_err();
    let told = told_until(&supervisor, &position, EventKind::Crashed).await;
    assert_eq!(told, [EventKind::State, EventKind::Crashed]);

    let console = Arc::clone(&handle.console);
    let mut run = crate::model::test_run();
    let position = supervisor.log().present();
    supervisor.initial(&record, &console, Some(run.clone()), LastExit::default()).await.unwrap();
    assert_eq!(told_until(&supervisor, &position, EventKind::Exited).await, [EventKind::Exited]);

    let mut sleeper = Sleeper::new();
    run.pid = sleeper.0.id();
    let position = supervisor.log().present();
    let process = Process::open(run.pid).unwrap();
    let live = start::take_over(context, &record, run, process).await;
    supervisor.add(record, console, Initial::Alive(Box::new(live)));
    sleeper.0.kill().unwrap();
    let told = told_until(&supervisor, &position, EventKind::Crashed).await;
    let expected = [EventKind::Adopted, EventKind::Unresponsive, EventKind::Crashed];
    assert_eq!(told, expected);
}

/// A process that ends with its test, however that ends.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn new() -> Self {
        Self(std::process::Command::new("sleep").arg("1000").spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Of one that has ended neither does harm.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As `--forget 'vm web'` leaves a machine whose QEMU goes on: the next machine of that name is not to get its QEMU.
#[tokio::test]
async fn a_run_without_its_machine_keeps_name_and_ports_until_its_process_is_gone() {
    let port = "networks/lan/ports/web-0";
    for replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let ports = FakePorts::with_networks(["lan".parse().unwrap()]);
        let supervisor = open(dir.path(), ports).await;
        supervisor.create(new("web", spec(&[None]))).await.unwrap();
        let store = supervisor.0.context.store.clone();
        let mut sleeper = Sleeper::new();
        let identity = process::identity(sleeper.0.id()).unwrap();
        let run = Run {
            boot_id: identity.boot_id,
            machine: Some(Uuid::nil()),
            pid: sleeper.0.id(),
            start_ticks: identity.start_ticks,
            uid: process::uid(sleeper.0.id()).unwrap(),
            ..crate::model::test_run()
        };
        let record = PortRecord { vm: "web".parse().unwrap(), uid: None };
        let ops = vec![Op::put(KIND_PORT, port, &record).unwrap(), Op::put(KIND_RUN, "web", &run).unwrap()];
        store.commit(ops).await.unwrap();
        if !replaced {
            store.commit(vec![Op::delete(KIND_VM, "web")]).await.unwrap();
        }

        let state = load(&store).await.unwrap();
        assert!(state.records.is_empty(), "it would be adopted as another machine's");
        assert!(state.orphans.is_empty(), "a running guest would lose its port");
        assert!(state.runs.contains_key("web"), "its user would be another machine's too");
        assert_eq!((state.broken.len(), state.broken[0].id.as_str(), state.over.len()), (1, "web", 0));
        let warning = store.warnings().join(" ");
        assert!(warning.contains("run `web`") && warning.contains(&format!("process {},", run.pid)));
        supervisor.vms().remove(&record.vm);
        let refused = supervisor.create(new("web", spec(&[]))).await.unwrap_err();
        assert_eq!(refused.reason(), "BROKEN_RECORD");

        sleeper.0.kill().unwrap();
        sleeper.0.wait().unwrap();
        let state = load(&store).await.unwrap();
        assert_eq!((state.records.len(), state.runs.len()), (usize::from(replaced), 0));
        assert_eq!((state.orphans.len(), state.broken.len(), state.over.len()), (1, 0, 1));
        store.expend(&[KIND_RUN]);
        end_runs(&store, state.over).await;
        assert!(store.load::<Run>(KIND_RUN).await.unwrap().records.is_empty(), "it is deleted");
    }
}
