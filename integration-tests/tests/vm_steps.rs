//! Every step of what vmd does to a machine goes wrong once, in each way, and nothing is lost or left over.
//!
//! For each step and each way: the request with the fault there, a new vmd, a look at processes, ports, taps, folders
//! and control groups,
//! which have to be what the machine's state says, the same request again, and the machine's end.

use integration_tests::{
    census::left_in,
    group::Group,
    host::{Outcome, TestHost, VMD_UID},
    soak, wait,
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::chown, process::ExitStatusExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

const MODES: [&str; 4] = ["kill-before", "kill-after", "fail", "twice"];
/// A place between two effects: to die before or after it is the same, and there is nothing to do twice.
const POINT_MODES: [&str; 2] = ["kill-before", "fail"];
/// Far more than it takes; and one run of hundreds is not to take a minute when it fails.
const PATIENCE: Duration = Duration::from_secs(20);
const CREATE: &str = "vm create web --network n";
const SPARE: &str = "vm create spare --network n";

/// What is asked of a machine, and what comes before.
struct Operation {
    name: &'static str,
    before: &'static [&'static str],
    act: &'static str,
}

const OPERATIONS: [Operation; 5] = [
    Operation { name: "create", before: &[], act: CREATE },
    Operation { name: "start", before: &[CREATE], act: "vm start web" },
    Operation { name: "stop", before: &[CREATE, "vm start web"], act: "vm stop web --timeout 20s" },
    Operation { name: "kill", before: &[CREATE, "vm start web"], act: "vm stop web --force" },
    Operation {
        name: "delete",
        before: &[CREATE, "vm start web", "vm stop web --force"],
        act: "vm delete web",
    },
];

/// A host whose vmd takes its steps by a plan; netd does not.
struct Bench {
    host: TestHost,
    token: u32,
}

#[derive(Default)]
struct Tally {
    steps: usize,
    runs: usize,
    failures: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        let mut host = TestHost::new();
        host.ok("network create n --mode isolated");
        host.fake_qemu("ok");
        // vmd writes its steps beside the plan.
        let folder = host.path("steps");
        fs::create_dir(&folder).expect("folder");
        chown(&folder, Some(VMD_UID), Some(VMD_UID)).expect("chown");
        host.environment.push(("KVMCTL_STEPS".into(), format!("{folder}/plan")));
        host.add_vmd();
        Self { host, token: 0 }
    }

    fn plan(&mut self, phase: &str, mode: &str, step: usize) -> String {
        self.token += 1;
        let token = format!("t{}", self.token);
        self.set_plan(&format!("{token} {phase} {mode} {step}\n"));
        token
    }

    fn set_plan(&self, text: &str) {
        // vmd reads it at any time: whole or not at all.
        let new = self.host.path("steps/plan.new");
        fs::write(&new, text).expect("plan");
        fs::rename(new, self.host.path("steps/plan")).expect("plan");
    }

    /// Names of the steps that were taken by a plan.
    fn steps(&self, token: &str) -> Vec<String> {
        let log = fs::read_to_string(self.host.path("steps/plan.log")).unwrap_or_default();
        log.lines().filter_map(|line| line.strip_prefix(&format!("{token} "))).map(str::to_owned).collect()
    }

    fn ask(&self, request: &str) -> Outcome {
        self.host.kvmctl(&request.split(' ').collect::<Vec<_>>())
    }

    /// Waits until processes, ports, taps and folders are what the machines' states say.
    fn converged(&self) {
        let mut difference = (Picture::default(), Picture::default());
        let same = catch_unwind(AssertUnwindSafe(|| {
            wait::until_within("the host to be as its machines", PATIENCE, || {
                difference = (Picture::model(&self.host)?, Picture::of(&self.host));
                (difference.0 == difference.1).then_some(())
            });
        }));
        assert!(same.is_ok(), "should be {:?}\nand is {:?}", difference.0, difference.1);
    }

    /// Ends the machine, after which nothing is left of it.
    fn ended(&self) {
        for name in ["web", "spare"] {
            if self
                .host
                .ok_json("vm list")
                .as_array()
                .is_some_and(|vms| vms.iter().any(|vm| vm["name"] == name))
            {
                self.host.ok(&format!("vm stop {name} --force"));
                self.host.ok(&format!("vm delete {name}"));
            }
        }
        self.converged();
        assert_eq!(Picture::of(&self.host), Picture::default());
    }

    fn prepared(&self, operation: &Operation) {
        for request in operation.before {
            self.host.ok(request);
        }
    }

    fn run(&mut self, operation: &Operation, mode: &str, step: usize) {
        self.prepared(operation);
        let token = self.plan("change", mode, step);
        let outcome = self.ask(operation.act);
        let steps = self.steps(&token);
        assert!(steps.len() >= step, "the step was not reached: {outcome:?} {steps:?}");
        if mode.starts_with("kill") {
            let status = self.host.await_vmds_end();
            assert_eq!(status.signal(), Some(9), "{status}");
        } else {
            assert!(mode == "fail" || outcome.code == 0, "not the same twice: {outcome:?}");
            self.set_plan("");
            self.host.kill_vmd();
        }
        self.set_plan("");
        self.host.start_vmd();
        self.converged();
        let again = self.ask(operation.act);
        let gone = operation.name == "delete" && again.stderr.contains("there is no machine");
        assert!(again.code == 0 || gone, "the retry failed: {again:?}");
        self.converged();
        self.ended();
    }

    /// The start of a vmd that finds a machine which runs, and one whose QEMU has ended.
    fn adopt(&mut self, mode: &str, step: usize) -> Vec<String> {
        for request in [CREATE, SPARE, "vm start web", "vm start spare"] {
            self.host.ok(request);
        }
        self.host.kill_vmd();
        let qemus = self.host.qemus();
        let (web, spare) = (qemu(&qemus, "web"), qemu(&qemus, "spare"));
        end(spare);
        // Its zombie is still the recorded process.
        wait::until("the end of one", || {
            (!self.host.qemus().iter().any(|(pid, _)| *pid == spare)).then_some(())
        });
        wait::until("the end of its zombie", || {
            (!fs::exists(format!("/proc/{spare}")).expect("/proc")).then_some(())
        });
        let token = self.plan("start", mode, step);
        let started = catch_unwind(AssertUnwindSafe(|| self.host.start_vmd()));
        assert!(started.is_ok() || mode != "twice", "not the same twice");
        if started.is_ok() {
            // Its socket is there before it serves.
            if mode.starts_with("kill") {
                assert_eq!(self.host.await_vmds_end().signal(), Some(9));
            } else {
                let served = self.ask("vm list").code == 0;
                assert!(served || mode == "fail", "not the same twice");
                self.host.kill_vmd();
            }
        }
        let steps = self.steps(&token);
        assert!(steps.len() >= step, "the step was not reached: {steps:?}");
        self.set_plan("");
        self.host.start_vmd();
        self.converged();
        assert_eq!(self.host.qemus(), [(web, "web".to_owned())], "it was started anew, or was lost");
        self.host.ok("vm start spare");
        self.converged();
        self.ended();
        steps
    }
}

fn qemu(qemus: &[(u32, String)], name: &str) -> u32 {
    qemus.iter().find(|(_, machine)| machine == name).unwrap_or_else(|| panic!("no {name}: {qemus:?}")).0
}

fn end(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

/// What there is of machines on a host.
#[derive(Debug, Default, PartialEq)]
struct Picture {
    /// Process and machine.
    qemus: BTreeSet<(u32, String)>,
    ports: BTreeSet<String>,
    taps: usize,
    run_folders: BTreeSet<String>,
    state_folders: BTreeSet<String>,
    /// Control groups.
    groups: BTreeSet<String>,
}

impl Picture {
    /// As it is: by the kernel, netd and the file system.
    fn of(host: &TestHost) -> Self {
        let folders = |folder: &str| {
            let names = left_in(host, folder).into_iter().filter_map(|path| {
                let (_, name) = path.split_once(&format!("{folder}/"))?;
                name.split('/').next().map(str::to_owned)
            });
            names.collect()
        };
        let links = host.netns.json("ip -j link");
        let taps = links.as_array().expect("links").iter();
        let ports = host.ok_json("port list");
        Self {
            qemus: host.qemus().into_iter().collect(),
            ports: ports.as_array().expect("ports").iter().map(|port| text(&port["name"])).collect(),
            taps: taps.filter(|link| text(&link["ifname"]).starts_with("kvp-")).count(),
            run_folders: folders("vmd-run/vms"),
            state_folders: folders("vmd-state/vms"),
            groups: host.group.iter().flat_map(Group::machines).collect(),
        }
    }

    /// As the machines' states say; `None` while one is on its way.
    fn model(host: &TestHost) -> Option<Self> {
        let mut picture = Self::default();
        for vm in host.ok_json("vm list").as_array().expect("machines") {
            let name = text(&vm["name"]);
            picture.state_folders.insert(name.clone());
            match vm["status"]["state"].as_str() {
                Some("running") => {
                    let pid = vm["status"]["pid"].as_u64().expect("pid");
                    picture.qemus.insert((u32::try_from(pid).expect("pid"), name.clone()));
                    picture.ports.insert(format!("{name}-0"));
                    picture.taps += 1;
                    if host.group.is_some() {
                        picture.groups.insert(name.clone());
                    }
                    picture.run_folders.insert(name);
                }
                Some("stopped" | "failed") => {}
                _ => return None,
            }
        }
        Some(picture)
    }
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn modes(name: &str) -> &'static [&'static str] {
    if name.contains(" point ") { &POINT_MODES } else { &MODES }
}

/// Runs `work`, and keeps what was wrong with where.
fn tried(bench: &mut Bench, tally: &mut Tally, at: &str, work: impl FnOnce(&mut Bench)) {
    tally.runs += 1;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(bench))) {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        tally.failures.push(format!("{at}: {}", words.unwrap_or_default()));
        *bench = Bench::new();
    }
}

fn rounds() -> usize {
    if soak() { 3 } else { 1 }
}

fn conclude(what: &str, tally: &Tally) {
    println!("{what}: {} steps, {} runs, {} leaked or failed", tally.steps, tally.runs, tally.failures.len());
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
}

fn take_apart(names: &[&str]) {
    let mut tally = Tally::default();
    let mut bench = Bench::new();
    for operation in OPERATIONS.iter().filter(|operation| names.contains(&operation.name)) {
        bench.prepared(operation);
        let token = bench.plan("change", "count", 0);
        bench.host.ok(operation.act);
        bench.set_plan("");
        bench.converged();
        let steps = bench.steps(&token);
        bench.ended();
        assert!(!steps.is_empty(), "`{}` has no steps", operation.name);
        tally.steps += steps.len();
        println!("{}: {steps:?}", operation.name);
        for _ in 0..rounds() {
            for (index, step) in steps.iter().enumerate() {
                for mode in modes(step) {
                    let at = format!("{}, {mode} {step}", operation.name);
                    tried(&mut bench, &mut tally, &at, |bench| bench.run(operation, mode, index + 1));
                }
            }
        }
    }
    conclude(&names.join(", "), &tally);
}

#[test]
fn a_start_that_goes_wrong_at_any_step_leaves_nothing_and_can_be_repeated() {
    take_apart(&["start"]);
}

#[test]
fn every_other_request_that_goes_wrong_at_any_step_is_finished_and_can_be_repeated() {
    take_apart(&["create", "stop", "kill", "delete"]);
}

#[test]
fn a_start_of_vmd_that_goes_wrong_at_any_step_is_made_good_by_the_next() {
    let mut tally = Tally::default();
    let mut bench = Bench::new();
    let steps = bench.adopt("count", 0);
    assert!(!steps.is_empty(), "no steps");
    tally.steps = steps.len();
    println!("adopt: {steps:?}");
    for _ in 0..rounds() {
        for (index, step) in steps.iter().enumerate() {
            for mode in modes(step) {
                let at = format!("adopt, {mode} {step}");
                tried(&mut bench, &mut tally, &at, |bench| {
                    bench.adopt(mode, index + 1);
                });
            }
        }
    }
    conclude("adopt", &tally);
}
