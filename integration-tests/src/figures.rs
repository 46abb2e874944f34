//! What a process takes of the host, as the kernel counts it.

use std::fs;

/// One process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory now, KiB.
    pub resident: u64,
    /// Of it, memory of its own: without pages of its program and of files, KiB.
    pub anonymous: u64,
    /// The most that was resident since the start or `forget_peak`, KiB.
    pub peak: u64,
}

impl Figures {
    /// Of a running process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("process").count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("process");
        let size = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("field");
            line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("number")
        };
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            resident: size("VmRSS"),
            anonymous: size("RssAnon"),
            peak: size("VmHWM"),
        }
    }

    /// For a line that people read.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{} descriptors, {} threads, {} KiB", self.descriptors, self.threads, self.resident)
    }
}

/// Begins to measure the peak anew.
///
/// # Panics
/// If the process does not run.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("clear_refs");
}
