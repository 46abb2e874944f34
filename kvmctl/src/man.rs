//! The manual pages, out of the same definition as the help.

use crate::cli::Cli;
use clap::CommandFactory as _;
use shared::fault::{Fault, Kind};
use std::path::Path;

/// Writes `kvmctl.1` and a page for each command into an existing folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write(dir: &Path) -> Result<(), Fault> {
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| {
        Fault::new(
            Kind::FailedPrecondition,
            "MANUAL",
            format!("cannot write the manual pages to `{}`", dir.display()),
        )
        .cause(&error)
        .hint("name an existing folder that you may write to")
    })
}
