//! What the kernel lets this process have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

/// How long a thread for work that blocks stays with nothing to do. Less than the time between two looks of the health
/// service: these would go round all threads that a burst of work has left, and none would ever end.
pub const IDLE_THREAD: Duration = Duration::from_millis(500);

/// Raises the number of descriptors this process may open to the most it may ask for. The usual 1024 is there for
/// programs that use select(2), and is too few for a daemon that holds several for each machine and client.
///
/// Best effort: a daemon with few works too.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// Of a daemon: guests do without it, but nobody manages them.
const SPARED: &str = "-500";
/// Of a guest: one of many.
const PREFERRED: &str = "300";

/// Asks the kernel, where it lets this process do so, to end others first when memory runs out. A user without
/// CAP_SYS_RESOURCE needs the unit's `OOMScoreAdjust=` for it.
pub fn spare_from_oom() {
    if let Err(error) = std::fs::write(OOM_SCORE, SPARED) {
        tracing::debug!(%error, "this daemon is not spared when memory runs out");
    }
}

/// Asks the kernel to end this process before the daemons when memory runs out. Anybody may.
pub fn prefer_for_oom() {
    let _ = std::fs::write(OOM_SCORE, PREFERRED);
}
