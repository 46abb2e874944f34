//! One machine's group.

use super::{limits::mebibytes, write};
use rustix::io::Errno;
use shared::fault::{Fault, Kind};
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Lists processes, and takes those that are to enter.
pub const MEMBERS: &str = "cgroup.procs";
/// SIGKILL takes effect at once, unless a process hangs in the kernel.
const DEATH: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// A child that waits at its gate ends at once when the vmd behind it has ended.
const GATE: Duration = Duration::from_secs(1);

/// A group of one machine, there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf(PathBuf);

/// Why the kernel ended a machine that needed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfMemory {
    /// It needed more than its limit, in bytes.
    Limit(u64),
    /// The host, or what vmd itself was given, had none left.
    Host,
}

impl OutOfMemory {
    /// For people.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Limit(bytes) => format!("out of memory, by its limit of {}", mebibytes(bytes)),
            Self::Host => "out of memory: the host had none left".into(),
        }
    }
}

impl Leaf {
    /// The group of this folder.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The kernel's number of it, which no other group has had since the host started; `None` if it is not there.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        fs::metadata(&self.0).ok().map(|meta| meta.ino())
    }

    /// Its processes; none of one that is not there.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join(MEMBERS)).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// How to end what is in it, for people.
    #[must_use]
    pub fn way_out(&self) -> String {
        format!("`echo 1 >{}/cgroup.kill` ends them", self.0.display())
    }

    /// Makes it, with limits. An empty one that is there already is replaced.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if one is there and has processes, or if the kernel refuses the group or a limit.
    pub fn make(&self, limits: &[(&str, String)]) -> Result<(), Fault> {
        let folder = self.0.display();
        self.remove().map_err(|error| self.in_use(&error))?;
        let refused = |what: String, error: &io::Error| {
            Fault::new(Kind::FailedPrecondition, "CONTAINMENT", what)
                .cause(error)
                .hint("`kvmctl host show` tells what this host allows; the next start looks anew")
        };
        fs::create_dir(&self.0).map_err(|e| refused(format!("cannot make control group `{folder}`"), &e))?;
        for (file, text) in limits {
            match write(&self.0.join(file), text) {
                // A kernel may be without accounts of swap.
                Err(error) if *file == "memory.swap.max" && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = self.remove();
                    return Err(refused(format!("cannot set {file} of control group `{folder}`"), &error));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn in_use(&self, error: &io::Error) -> Fault {
        let members = self.members().join(", ");
        let what = format!("the machine's control group, `{}`, has processes: {members}", self.0.display());
        let hint = format!("they are of a run that nobody knows of; {}", self.way_out());
        Fault::new(Kind::FailedPrecondition, "GROUP_IN_USE", what).cause(error).hint(hint)
    }

    /// Removes it if it has no processes; one that is not there is fine.
    ///
    /// # Errors
    /// What the kernel says, EBUSY of one that has some.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Has the kernel kill all that is in it, also what a process of it starts meanwhile.
    ///
    /// # Errors
    /// INTERNAL if the kernel refuses. One that is not there is fine, and so is a kernel before 5.14, which has no such
    /// file: what QEMU started is then not killed, and the group stays.
    pub fn kill(&self) -> Result<(), Fault> {
        match write(&self.0.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound && self.0.exists() => {
                Err(Fault::internal(format!("cannot kill what is in `{}`", self.0.display())).cause(&error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Kills what is in it, and removes it.
    ///
    /// # Errors
    /// UNAVAILABLE if a process of it does not end.
    pub async fn end(&self) -> Result<(), Fault> {
        self.kill()?;
        self.empty(DEATH).await.map_err(|error| {
            let what = format!("a process in control group `{}` does not end", self.0.display());
            Fault::new(Kind::Unavailable, "GROUP_IN_USE", what).cause(&error)
        })
    }

    /// Removes it if nothing is in it, and kills nothing: what is in there may be a guest.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with its processes, if they do not end by themselves within a second.
    pub async fn vacate(&self) -> Result<(), Fault> {
        self.empty(GATE).await.map_err(|error| self.in_use(&error))
    }

    /// Removes it as soon as it has no processes.
    async fn empty(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.remove() {
                Err(error)
                    if Errno::from_io_error(&error) == Some(Errno::BUSY) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// Whether the kernel killed something in it for want of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        let text = |file: &str| fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let limit = text("memory.max").trim().parse().ok();
        out_of_memory(&text("memory.events"), limit)
    }
}

/// By the counters of memory.events: `oom` counts how often the group's own limit left no way out, `oom_kill` processes
/// killed whosever limit it was.
fn out_of_memory(events: &str, limit: Option<u64>) -> Option<OutOfMemory> {
    let count = |key: &str| {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.parse::<u64>().ok();
        events.lines().find_map(value).unwrap_or(0)
    };
    (count("oom_kill") > 0)
        .then(|| limit.filter(|_| count("oom") > 0).map_or(OutOfMemory::Host, OutOfMemory::Limit))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn whose_limit_it_was_is_told() {
        let events = |oom: u8, kill: u8| {
            format!("low 0\nhigh 0\nmax 70\noom {oom}\noom_kill {kill}\noom_group_kill {kill}\n")
        };
        assert_eq!(out_of_memory(&events(0, 0), Some(5 << 20)), None);
        // Swap or the page cache gave way.
        assert_eq!(out_of_memory(&events(3, 0), Some(5 << 20)), None);
        assert_eq!(out_of_memory(&events(1, 1), Some(5 << 20)), Some(OutOfMemory::Limit(5 << 20)));
        assert_eq!(out_of_memory(&events(0, 1), Some(5 << 20)), Some(OutOfMemory::Host));
        assert_eq!(out_of_memory("", None), None);
        assert_eq!(OutOfMemory::Limit(5 << 20).words(), "out of memory, by its limit of 5 MiB");
    }

    #[tokio::test]
    async fn one_that_is_not_there_needs_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = Leaf::at(folder.path().join("vm-a"));
        leaf.kill().unwrap();
        leaf.end().await.unwrap();
        leaf.vacate().await.unwrap();
        assert_eq!((leaf.out_of_memory(), leaf.id()), (None, None));
    }

    #[tokio::test]
    async fn a_kernel_that_cannot_kill_a_group_still_removes_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = Leaf::at(folder.path().join("vm-a"));
        leaf.make(&[]).unwrap();
        leaf.kill().unwrap();
        leaf.end().await.unwrap();
        assert!(!leaf.folder().exists());
    }

    #[tokio::test]
    async fn what_is_in_a_group_that_is_to_be_vacated_is_named_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = Leaf::at(folder.path().join("vm-a"));
        leaf.make(&[]).unwrap();
        fs::write(leaf.folder().join(MEMBERS), "7\n8\n").unwrap();
        fs::write(leaf.folder().join("cgroup.kill"), "").unwrap();
        let fault = leaf.vacate().await.unwrap_err();
        assert_eq!(fault.reason(), "GROUP_IN_USE");
        assert!(fault.to_string().contains("7, 8") && fault.hints()[0].contains("cgroup.kill"), "{fault}");
        assert_eq!(fs::read(leaf.folder().join("cgroup.kill")).unwrap(), b"");
    }

    #[test]
    fn a_limit_that_is_refused_leaves_no_group() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = Leaf::at(folder.path().join("vm-a"));
        // A plain folder has no such file.
        let fault = leaf.make(&[("memory.swap.max", "1".into()), ("pids.max", "1".into())]).unwrap_err();
        assert!(fault.to_string().contains("pids.max"), "{fault}");
        assert!(!leaf.folder().exists());
        leaf.make(&[]).unwrap();
        leaf.make(&[]).unwrap();
        fs::write(leaf.folder().join(MEMBERS), "7\n8\n").unwrap();
        let fault = leaf.make(&[]).unwrap_err();
        assert_eq!(fault.reason(), "GROUP_IN_USE");
        assert!(fault.to_string().contains("7, 8"), "{fault}");
    }
}
