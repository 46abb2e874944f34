//! Limits of resources.

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Bytes that may be locked; QEMU locks nothing.
const LOCKED: u64 = 64 << 10;

/// Limits that depend on the machine. `None`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Threads; counted by user id, so that they are limited only for a user of its own.
    pub threads: Option<u64>,
    /// Bytes of the largest file that may be written.
    pub file_size: Option<u64>,
}

/// Sets them, soft and hard.
pub fn set(limits: Limits, own_user: bool) -> Result<(), String> {
    let fixed = [
        (Resource::Core, Some(0)),
        (Resource::Memlock, Some(LOCKED)),
        (Resource::Msgqueue, Some(0)),
        (Resource::Rtprio, Some(0)),
        (Resource::Nofile, limits.descriptors),
        (Resource::Nproc, limits.threads.filter(|_| own_user)),
        (Resource::Fsize, limits.file_size),
    ];
    for (resource, value) in fixed {
        let Some(value) = value else { continue };
        // Where the hard limit is lower than that already, it stays.
        let hard = rustix::process::getrlimit(resource).maximum;
        let value = hard.map_or(value, |hard| hard.min(value));
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
            .map_err(|e| format!("cannot set a limit ({resource:?} to {value}): {e}"))?;
    }
    Ok(())
}
