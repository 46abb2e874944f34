//! What the plan says of a step.

use crate::fault::Fault;
use rustix::process::{Signal, getpid, kill_process};
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Names the plan.
const VARIABLE: &str = "KVMCTL_STEPS";
/// As much of a name is written, characters.
const LONGEST_NAME: usize = 120;

tokio::task_local! {
    /// Set within a change.
    pub static CHANGE: ();
}

static SERVING: AtomicBool = AtomicBool::new(false);
static STEPS: LazyLock<Option<Steps>> =
    LazyLock::new(|| std::env::var_os(VARIABLE).map(|path| Steps::new(path.into())));

/// What is to happen once the step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The same step.
    Again,
    /// The end, without a chance to do anything.
    Death,
}

impl After {
    /// Ends the process if that is what comes after.
    pub fn die_if_told(self) {
        if self == Self::Death {
            die();
        }
    }
}

fn die() -> ! {
    // It cannot fail, and nothing of this process runs after it.
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// The start is over.
pub fn serving() {
    SERVING.store(true, Ordering::Relaxed);
}

/// Counts a step, and does what the plan says about its beginning.
///
/// # Errors
/// If it is to fail.
pub fn reach(name: impl FnOnce() -> String) -> Result<After, Fault> {
    let Some(steps) = STEPS.as_ref() else { return Ok(After::Nothing) };
    let phase = if !SERVING.load(Ordering::Relaxed) {
        "start"
    } else if CHANGE.try_with(|()| ()).is_ok() {
        "change"
    } else {
        "background"
    };
    match steps.reach(phase, name) {
        Verdict::Go(after) => Ok(after),
        Verdict::Die => die(),
        Verdict::Fail(fault) => Err(fault),
    }
}

#[derive(Debug)]
enum Verdict {
    Go(After),
    Die,
    Fail(Fault),
}

/// A plan, and how far it has come.
#[derive(Debug)]
struct Steps {
    plan: PathBuf,
    log: PathBuf,
    /// The present token, and how many steps there were.
    count: Mutex<(String, u64)>,
}

impl Steps {
    fn new(plan: PathBuf) -> Self {
        let mut log = plan.clone().into_os_string();
        log.push(".log");
        Self { plan, log: log.into(), count: Mutex::default() }
    }

    fn reach(&self, phase: &str, name: impl FnOnce() -> String) -> Verdict {
        let nothing = Verdict::Go(After::Nothing);
        let Ok(plan) = fs::read_to_string(&self.plan) else { return nothing };
        let words: Vec<&str> = plan.split_whitespace().collect();
        let [token, about, mode, number] = words[..] else { return nothing };
        if about != phase {
            return nothing;
        }
        let name: String =
            name().chars().map(|c| if c == '\n' { ' ' } else { c }).take(LONGEST_NAME).collect();
        let at = {
            let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            if count.0 != token {
                *count = (token.to_owned(), 0);
            }
            count.1 += 1;
            write(&self.log, &format!("{token} {} {name}\n", count.1));
            count.1
        };
        if number.parse() != Ok(at) {
            return nothing;
        }
        match mode {
            "kill-before" => Verdict::Die,
            "kill-after" => Verdict::Go(After::Death),
            "twice" => Verdict::Go(After::Again),
            "fail" => Verdict::Fail(Fault::internal(format!("step {at} was told to fail: {name}"))),
            _ => nothing,
        }
    }
}

fn write(log: &Path, line: &str) {
    let file = OpenOptions::new().create(true).append(true).open(log);
    // A test that reads the log finds the line missing.
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

#[cfg(test)]
mod test {
    use super::*;

    fn steps(dir: &Path, plan: &str) -> Steps {
        fs::write(dir.join("plan"), plan).unwrap();
        Steps::new(dir.join("plan"))
    }

    fn take(steps: &Steps, phase: &str) -> String {
        format!("{:?}", steps.reach(phase, || format!("{phase}\nstep")))
    }

    #[test]
    fn a_plan_is_about_one_step_of_one_phase() {
        let dir = tempfile::tempdir().unwrap();
        let steps = steps(dir.path(), "a change twice 2\n");
        assert_eq!(take(&steps, "start"), "Go(Nothing)");
        assert_eq!(take(&steps, "change"), "Go(Nothing)");
        assert_eq!(take(&steps, "change"), "Go(Again)");
        assert_eq!(take(&steps, "change"), "Go(Nothing)");
        fs::write(&steps.plan, "b change kill-after 1").unwrap();
        assert_eq!(take(&steps, "change"), "Go(Death)");
        fs::write(&steps.plan, "c change kill-before 1").unwrap();
        assert_eq!(take(&steps, "change"), "Die");
        fs::write(&steps.plan, "d background fail 1").unwrap();
        assert!(take(&steps, "background").contains("step 1 was told to fail: background step"));
        assert_eq!(
            fs::read_to_string(&steps.log).unwrap(),
            "a 1 change step\na 2 change step\na 3 change step\nb 1 change step\nc 1 change step\nd 1 background step\n"
        );
    }

    #[test]
    fn without_a_plan_nothing_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let steps = steps(dir.path(), "");
        assert_eq!(take(&steps, "change"), "Go(Nothing)");
        fs::remove_file(&steps.plan).unwrap();
        assert_eq!(take(&steps, "change"), "Go(Nothing)");
        assert!(!steps.log.exists());
    }
}
