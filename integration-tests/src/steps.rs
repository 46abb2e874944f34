//! Every step of an operation of netd goes wrong once, in each way, and nothing is lost or left over.
//!
//! For each step and each way: the operation with the fault there, a new netd if it died, the records, which say what the
//! host has to look like, the picture of the host, the same request again, and back to where it began.

mod operation;
mod records;
mod sweep;

pub use operation::{Operation, Request, all};
pub use records::Records;
pub use sweep::sweep;

use crate::{census::Census, figures::Figures, host::TestHost, wait};
use std::{
    fs, mem,
    os::unix::process::ExitStatusExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// What goes wrong at a step; the words are those of a plan (`shared::steps`).
pub const MODES: [&str; 4] = ["kill-before", "kill-after", "fail", "twice"];

/// Of a place between two effects.
const POINT_MODES: [&str; 2] = ["kill-before", "fail"];
/// How its name begins.
const POINT: &str = " point ";

/// Whether `make test` tries this: a death at each step that has an effect, and the other ways by turns.
fn in_short(step: usize, is_point: bool, mode: &str) -> bool {
    let even = step.is_multiple_of(2);
    match mode {
        "kill-before" => !is_point || even,
        "twice" => even,
        "fail" => !even,
        // What follows a step until the next one begins has no effect.
        _ => false,
    }
}

/// How long netd's idle threads may take to end: the runtime keeps them for 10 s.
const IDLE: Duration = Duration::from_secs(30);

/// Bound of what netd does by itself after its answer: what fails then is tried again with the next look at everything,
/// after 30 s.
const SOON: Duration = Duration::from_secs(45);

static TOKEN: AtomicU32 = AtomicU32::new(0);

/// What a run of everything came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Operations that were taken apart.
    pub operations: usize,
    /// Steps of all of them.
    pub steps: usize,
    /// Runs: one for each step and way.
    pub runs: usize,
    /// Requests that were repeated, and those of them that succeeded.
    pub retries: (usize, usize),
    /// What was wrong, with where.
    pub failures: Vec<String>,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.operations += other.operations;
        self.steps += other.steps;
        self.runs += other.runs;
        self.retries.0 += other.retries.0;
        self.retries.1 += other.retries.1;
        self.failures.extend(other.failures);
        self
    }

    /// The closing line.
    #[must_use]
    pub fn words(&self) -> String {
        let share = (self.retries.1 * 100).checked_div(self.retries.0).unwrap_or(100);
        format!(
            "steps: {} operations, {} steps, {} runs, {} leaked, {share} % of {} retries succeeded",
            self.operations,
            self.steps,
            self.runs,
            self.failures.len(),
            self.retries.0
        )
    }
}

/// A host whose netd takes its steps by a plan.
#[derive(Debug)]
pub struct Bench {
    /// The host.
    pub host: TestHost,
    bare: Census,
    held: Option<Figures>,
}

impl Bench {
    /// A fresh host with netd.
    #[must_use]
    pub fn new() -> Self {
        let mut host = TestHost::bare();
        let plan = host.path("plan");
        host.environment.push(("KVMCTL_STEPS".to_owned(), plan));
        // The same as on every other host of this sort.
        host.lan.sh("ip link set lan0 address 52:54:00:00:00:03");
        host.netns.sh("ip link add br-x address 52:54:00:00:00:01 type bridge; ip link set br-x up
             ip link set up0 address 52:54:00:00:00:02; ip -6 address flush dev up0 scope link
             ip address add fe80::2/64 dev up0 nodad");
        host.start_netd();
        let bare = Census::whole(&host);
        Self { host, bare, held: None }
    }

    /// Sets a new plan; returns its token.
    pub fn plan(&self, phase: &str, mode: &str, step: usize) -> String {
        let token = format!("t{}", TOKEN.fetch_add(1, Ordering::Relaxed));
        self.set_plan(&format!("{token} {phase} {mode} {step}\n"));
        token
    }

    /// Ends the plan.
    pub fn no_plan(&self) {
        self.set_plan("");
    }

    fn set_plan(&self, text: &str) {
        // netd reads it at any time: whole or not at all.
        let new = self.host.path("plan.new");
        fs::write(&new, text).expect("plan");
        fs::rename(new, self.host.path("plan")).expect("plan");
    }

    /// Names of the steps that were taken by a plan.
    #[must_use]
    pub fn steps(&self, token: &str) -> Vec<String> {
        let log = fs::read_to_string(self.host.path("plan.log")).unwrap_or_default();
        log.lines().filter_map(|line| line.strip_prefix(&format!("{token} "))).map(str::to_owned).collect()
    }

    /// Takes an operation apart, `rounds` times.
    pub fn take_apart(self, operation: &Operation, rounds: usize, tally: &mut Tally) -> Self {
        let mut bench = self;
        let Some((before, after, names)) = bench.learn(operation, tally) else { return Self::new() };
        tally.operations += 1;
        tally.steps += names.len();
        let faults = names.iter().zip(1..).flat_map(|(name, step)| {
            // A point between two effects has none itself: it comes to the same to die before or after it.
            let is_point = name.contains(POINT);
            let modes = if is_point { &POINT_MODES[..] } else { &MODES };
            let all = crate::soak() || step == names.len();
            modes
                .iter()
                .filter(move |mode| all || in_short(step, is_point, mode))
                .map(move |mode| (step, *mode))
        });
        for (step, mode) in faults.collect::<Vec<_>>().repeat(rounds) {
            tally.runs += 1;
            let run = catch_unwind(AssertUnwindSafe(|| {
                bench.run(operation, (&before, &after), (step, mode), &mut tally.retries);
            }));
            if let Err(panic) = run {
                let at = format!("{}, {mode} {}", operation.name, names[step - 1]);
                tally.failures.push(format!("{at}: {}", words(&panic)));
                // What one run has left must not be held against the next.
                bench = Self::new();
                for request in &operation.prepare {
                    request.ok(&bench.host);
                }
            }
        }
        let end = catch_unwind(AssertUnwindSafe(|| bench.clear(operation)));
        if let Err(panic) = end {
            tally.failures.push(format!("{}, at the end: {}", operation.name, words(&panic)));
            return Self::new();
        }
        bench
    }

    /// Prepares, and looks at the operation without faults: before, after, and its steps.
    fn learn(&mut self, operation: &Operation, tally: &mut Tally) -> Option<(Model, Model, Vec<String>)> {
        let learnt = catch_unwind(AssertUnwindSafe(|| {
            for request in &operation.prepare {
                request.ok(&self.host);
            }
            let before = Model::of(&self.host);
            operation.begin(&self.host);
            let token = self.plan("change", "count", 0);
            operation.act.ok(&self.host);
            self.no_plan();
            let after = Model::of(&self.host);
            operation.act.again(&self.host);
            self.back(operation, &before);
            if self.held.is_none() {
                self.held = Some(Figures::of(self.host.netd_pid()));
            }
            let names = self.steps(&token);
            assert!(!names.is_empty(), "no steps");
            (before, after, names)
        }));
        learnt.map_err(|panic| tally.failures.push(format!("{}: {}", operation.name, words(&panic)))).ok()
    }

    fn run(
        &mut self,
        operation: &Operation,
        (before, after): (&Model, &Model),
        (step, mode): (usize, &str),
        retries: &mut (usize, usize),
    ) {
        operation.begin(&self.host);
        let token = self.plan("change", mode, step);
        let outcome = operation.act.send(&self.host);
        assert!(self.steps(&token).len() >= step, "the step was not reached: {outcome:?}");
        if mode.starts_with("kill") {
            let status = self.host.await_netds_end();
            assert_eq!(status.signal(), Some(9), "{status}: {}", self.host.logs());
            self.no_plan();
            self.host.start_netd();
        }
        self.no_plan();
        if mode == "twice" {
            assert!(outcome.is_ok(), "not the same twice: {outcome:?}");
        }
        let may_wait = mode == "fail";
        self.settle(operation, (before, after), (outcome.is_ok(), may_wait), retries);
    }

    /// After a fault: the host is as the records say, the same request succeeds, and what it did is undone. `done`: the
    /// request said that all went well; `may_wait`: netd lives on, and may have put a delete off.
    fn settle(
        &self,
        operation: &Operation,
        (before, after): (&Model, &Model),
        (done, may_wait): (bool, bool),
        retries: &mut (usize, usize),
    ) {
        let known = |records: &Records| {
            let undone = *records == before.records || may_wait && records.is_deleting();
            *records == after.records || !done && undone
        };
        // What looks after dnsmasq may be at work.
        let soon = wait::try_until(SOON, || Some(Records::of(&self.host)).filter(known));
        let records = soon.unwrap_or_else(|| Records::of(&self.host));
        // Where the request said that all went well, it is so.
        if !done && records.is_deleting() {
            assert!(may_wait, "a start that leaves something to delete");
        } else if done || records == after.records {
            after.records.assert_same(&records);
            after.census.await_same(&self.host);
        } else {
            before.records.assert_same(&records);
            before.census.await_same(&self.host);
        }
        retries.0 += 1;
        if may_wait && records.is_deleting() {
            // What could not be put back now is later, and until then the answer is to try again.
            wait::until("what is left to be deleted", || {
                operation
                    .act
                    .send(&self.host)
                    .ok()
                    .or_else(|| (!Records::of(&self.host).is_deleting()).then_some(()))
            });
        }
        operation.act.again(&self.host);
        after.records.await_same(&self.host);
        retries.1 += 1;
        if crate::soak() {
            after.census.await_same(&self.host);
        }
        self.back(operation, before);
    }

    /// Undoes the operation.
    fn back(&self, operation: &Operation, before: &Model) {
        for request in &operation.undo {
            request.ok(&self.host);
        }
        before.records.await_same(&self.host);
        before.census.await_same(&self.host);
    }

    /// Deletes everything that the operation was about.
    fn clear(&self, operation: &Operation) {
        for request in &operation.clear {
            request.ok(&self.host);
        }
        assert!(Records::of(&self.host).is_empty(), "records are left");
        self.bare.await_same(&self.host);
    }

    /// What netd holds now is what it held after the first operation without faults.
    ///
    /// # Panics
    /// If it holds more.
    #[must_use]
    pub fn end(self) -> String {
        let pid = self.host.netd_pid();
        let Some(first) = self.held else { return String::new() };
        let mut now = Figures::of(pid);
        wait::try_until(IDLE, || {
            now = Figures::of(pid);
            (now.descriptors <= first.descriptors && now.threads <= first.threads).then_some(())
        });
        assert!(
            now.descriptors <= first.descriptors && now.threads <= first.threads,
            "netd held {} and holds {}",
            first.words(),
            now.words()
        );
        format!("netd held {} at first and {} at last", first.words(), now.words())
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// What is recorded, and what the host looks like then.
#[derive(Debug)]
pub struct Model {
    records: Records,
    census: Census,
}

impl Model {
    /// The present one, once two pictures are the same: what a daemon does after its answer, it does soon.
    #[must_use]
    pub fn of(host: &TestHost) -> Self {
        let mut before = Census::whole(host);
        wait::until("a host that stays as it is", || {
            let now = Census::whole(host);
            let same = now == before;
            before = now;
            same.then_some(())
        });
        Self { records: Records::of(host), census: before }
    }

    /// Waits until the host is so.
    ///
    /// # Panics
    /// If it is not.
    pub fn await_same(&self, host: &TestHost) {
        self.records.assert_same(&Records::of(host));
        self.census.await_same(host);
    }
}

fn words(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Takes all operations apart, on two hosts at a time.
///
/// # Panics
/// If netd holds more at the end than at the beginning.
#[must_use]
pub fn take_apart(operations: Vec<Operation>, rounds: usize) -> Tally {
    let queue = std::sync::Mutex::new(operations);
    let work = || {
        let mut tally = Tally::default();
        let mut bench = Bench::new();
        loop {
            let next = queue.lock().expect("queue").pop();
            let Some(operation) = next else { break };
            let (before, begin) = (tally.runs, std::time::Instant::now());
            bench = bench.take_apart(&operation, rounds, &mut tally);
            println!("{}: {} runs, {:?}", operation.name, tally.runs - before, begin.elapsed());
        }
        println!("{}", mem::take(&mut bench).end());
        tally
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let tally = work();
        tally.and(other.join().expect("the other host"))
    })
}
