//! Feeds a fuzz target with mutated seeds, where there is no cargo-fuzz: on a stable toolchain, in `cargo test`.
//!
//! A target takes bytes and says whether it took them for something or refused them, and why. What it must never do is
//! panic, not come back, or use memory out of proportion; what else must hold, it asserts itself. There is no coverage
//! to steer by. What is accepted, and the first input of each new reason, becomes a seed, which leads deeper than
//! chance.

mod form;
mod json;
mod memory;
mod protobuf;
mod random;

pub use form::Form;
pub use random::Random;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Inputs of one target in `make test`.
pub const INPUTS: usize = 20_000;
/// Inputs of one target in `make soak`.
const SOAK_INPUTS: usize = 400_000;
/// Where the random numbers begin in `make test`, so that a run can be repeated.
const SEED: u64 = 0x6b76_6d63_746c_0001;
/// Only what never comes back takes as long.
const HANG: Duration = Duration::from_secs(120);
/// Most inputs that are kept as seeds beside those on disk, and most bytes of one.
const MOST_KEPT: usize = 512;
const MOST_BYTES: usize = 64 << 10;
/// Most bytes that a target may have allocated at once, beside `PER_BYTE` for each byte of its input.
const MOST_MEMORY: usize = 16 << 20;
const PER_BYTE: usize = 4 << 10;

/// What a target says of an input: taken for something, or refused, with a reason of few words.
pub type Outcome = Result<(), String>;

/// A run of one target.
#[derive(Debug)]
pub struct Campaign {
    name: &'static str,
    form: Form,
    tokens: Vec<Vec<u8>>,
    seeds: Vec<Vec<u8>>,
}

/// The folder with the seeds of a target.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name)
}

impl Campaign {
    /// Inputs of a form for the target `name`, from the seeds in its folder.
    #[must_use]
    pub fn new(name: &'static str, form: Form) -> Self {
        let mut paths: Vec<_> =
            fs::read_dir(folder(name)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let seeds = paths.iter().filter_map(|path| fs::read(path).ok()).collect();
        Self { name, form, tokens: Vec::new(), seeds }
    }

    /// Words that mean something to the target.
    #[must_use]
    pub fn tokens(mut self, tokens: &[&str]) -> Self {
        self.tokens.extend(tokens.iter().map(|token| token.as_bytes().to_vec()));
        self
    }

    /// A seed that is not on disk.
    #[must_use]
    pub fn seed(mut self, seed: impl Into<Vec<u8>>) -> Self {
        self.seeds.push(seed.into());
        self
    }

    /// Feeds the target, and prints how many inputs there were and what became of them.
    ///
    /// # Panics
    /// If the target does, or uses more memory than it may, or there are no seeds. The input is printed and kept.
    pub fn run(mut self, target: impl Fn(&[u8]) -> Outcome) {
        assert!(!self.seeds.is_empty(), "`{}` has no seeds", self.name);
        let soak = env::var_os("KVMCTL_SOAK").is_some();
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let inputs = number("KVMCTL_FUZZ_INPUTS").and_then(|inputs| inputs.try_into().ok());
        let inputs = inputs.unwrap_or(if soak { SOAK_INPUTS } else { INPUTS });
        let fresh = || u64::from(process::id()) ^ SEED.rotate_left(17);
        let start = number("KVMCTL_FUZZ_SEED").unwrap_or(if soak { fresh() } else { SEED });
        let mut random = Random::new(start);
        let begun = Instant::now();
        let watchdog = Watchdog::start(self.name);
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        let (mut accepted, mut most_memory) = (0_usize, 0);
        let mut seen = BTreeSet::new();
        let original = self.seeds.len();
        for count in 0..inputs {
            // The seeds themselves come first.
            let input = match self.seeds.get(count).filter(|_| count < original) {
                Some(seed) => seed.clone(),
                None => self.form.mutate(&mut random, &self.seeds, &self.tokens, MOST_BYTES),
            };
            watchdog.feed(&input);
            memory::reset();
            let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
            let used = memory::peak();
            let outcome = outcome.unwrap_or_else(|panic| {
                report(self.name, &input, "panics", start);
                resume_unwind(panic)
            });
            let bound = MOST_MEMORY + PER_BYTE * input.len();
            if used > bound {
                report(self.name, &input, "uses too much memory", start);
                panic!("{used} bytes were allocated at once, {bound} is the most");
            }
            most_memory = most_memory.max(used);
            let kept = match outcome {
                Ok(()) => {
                    accepted += 1;
                    seen.insert(hash(&input)) && random.one_in(4)
                }
                Err(reason) => {
                    let times = refused.entry(reason).or_default();
                    *times += 1;
                    *times == 1
                }
            };
            if kept && count >= original {
                self.keep(input, original, &mut random);
            }
        }
        watchdog.end();
        println!(
            "fuzz {}: {inputs} inputs, {accepted} accepted, {} refused for {} reasons, {:.1} s, at most {} KiB, seed {start:#x}",
            self.name,
            inputs - accepted,
            refused.len(),
            begun.elapsed().as_secs_f64(),
            most_memory >> 10,
        );
        assert!(accepted > 0, "`{}` accepted nothing: {refused:?}", self.name);
    }

    fn keep(&mut self, input: Vec<u8>, original: usize, random: &mut Random) {
        if self.seeds.len() < original + MOST_KEPT {
            self.seeds.push(input);
        } else {
            let place = original + random.below(MOST_KEPT);
            self.seeds[place] = input;
        }
    }
}

fn hash(input: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    hasher.finish()
}

/// Says which input it was, and writes it where it can be made a seed or a regression test of.
fn report(name: &str, input: &[u8], what: &str, start: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    let path = folder.join(format!("{name}-{:016x}", hash(input)));
    let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, input));
    eprintln!("`{name}` {what}, seed {start:#x}; the input is in {} ({kept:?}):", path.display());
    eprintln!("{}", input.escape_ascii());
}

/// Ends the process, with the input, if a target does not come back.
struct Watchdog {
    state: Arc<Mutex<(Instant, Vec<u8>)>>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(name: &'static str) -> Self {
        let state = Arc::new(Mutex::new((Instant::now(), Vec::new())));
        let over = Arc::new(AtomicBool::new(false));
        let (watched, end) = (Arc::clone(&state), Arc::clone(&over));
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                thread::park_timeout(Duration::from_secs(1));
                let (fed, input) = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if fed.elapsed() > HANG && !end.load(Ordering::Relaxed) {
                    report(name, &input, "does not come back", 0);
                    process::abort();
                }
            }
        });
        Self { state, over }
    }

    fn feed(&self, input: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = Instant::now();
        state.1.clear();
        state.1.extend_from_slice(input);
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn campaign() -> Campaign {
        Campaign::new("none", Form::Bytes).seed(*b"seed")
    }

    #[test]
    fn a_panic_is_passed_on() {
        let found = catch_unwind(|| {
            campaign().run(|input| {
                assert!(!input.windows(2).any(|pair| pair == b"ss"), "found");
                Ok(())
            });
        });
        assert!(found.is_err(), "20,000 inputs do not double a letter");
    }

    #[test]
    fn memory_out_of_proportion_is_found() {
        let found = catch_unwind(|| {
            campaign().run(|_| {
                drop(std::hint::black_box(vec![0_u8; 64 << 20]));
                Ok(())
            });
        });
        assert!(found.is_err());
    }

    #[test]
    fn what_accepts_nothing_is_no_target() {
        assert!(catch_unwind(|| campaign().run(|_| Err("no".to_owned()))).is_err());
    }
}
