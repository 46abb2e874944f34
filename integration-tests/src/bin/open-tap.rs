//! Opens the tap that its argument names: exit status 0 if it could.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).map(|name| integration_tests::tap::open_tap(&name)) {
        Some(Ok(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
