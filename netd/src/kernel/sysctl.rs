//! Files under /proc/sys, in the network namespace of the calling thread.

use shared::fault::{Fault, Kind};
use std::{fs, io, path::PathBuf};

/// `net.ipv4.conf.IF.x` has dots in interface names; the kernel's own separator is the slash.
fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}

/// Value of `key`, such as `net/ipv4/ip_forward`; `None` if the kernel has no such key.
///
/// # Errors
/// INTERNAL with the reason if it cannot be read.
pub fn read(key: &str) -> Result<Option<String>, Fault> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Fault::new(Kind::Internal, "SYSCTL", format!("cannot read sysctl `{key}`")).cause(&error))
        }
    }
}

/// Writes `key`.
///
/// # Errors
/// FAILED_PRECONDITION with the reason.
pub fn write(key: &str, value: &str) -> Result<(), Fault> {
    fs::write(path(key), value).map_err(|error| {
        Fault::new(Kind::FailedPrecondition, "SYSCTL", format!("cannot set sysctl `{key}` to {value}"))
            .cause(&error)
            .hint("in a container, /proc/sys has to be writable for netd")
    })
}
