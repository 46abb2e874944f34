//! The `kvmctl` program.

use std::{io::Write as _, process::ExitCode};

fn main() -> ExitCode {
    kvmctl::complete();
    let invocation = match kvmctl::parse_args() {
        Ok(invocation) => invocation,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: cannot start\n  caused by: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(kvmctl::run(invocation));
    // A write to a blocked standard output must not hold the end.
    runtime.shutdown_background();
    code
}
