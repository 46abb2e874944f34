//! Runs a program of the host: nothing of our environment, bounded time, all that it says.

use shared::fault::{Fault, Kind};
use std::{
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Longest run; a whole replacement of rules with thousands of members takes well under a second.
const LIMIT: Duration = Duration::from_secs(20);
/// Where programs are looked for.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A command of the host's.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Whether the host has a program.
pub fn exists(program: &str) -> bool {
    PATH.split(':').any(|folder| std::path::Path::new(folder).join(program).exists())
}

/// Runs a program to its end, whatever its exit code.
///
/// # Errors
/// FAILED_PRECONDITION if it cannot be run, INTERNAL if it does not end in time.
pub async fn run(program: &str, arguments: &[&str], input: &[u8]) -> Result<Output, Fault> {
    let failed = |what: String| Fault::new(Kind::Internal, "PROGRAM", what);
    let mut command = command(program, arguments);
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(|e| {
        let fault = failed(format!("cannot run {program}")).with_kind(Kind::FailedPrecondition).cause(&e);
        if program == "nft" { fault.hint("install nftables") } else { fault }
    })?;
    let mut stdin = child.stdin.take();
    let feed = async move {
        if let Some(stdin) = &mut stdin {
            // A failure shows in the program's own words.
            let _ = stdin.write_all(input).await;
        }
        drop(stdin);
    };
    let (output, ()) = timeout(LIMIT, async { tokio::join!(child.wait_with_output(), feed) })
        .await
        .map_err(|_| failed(format!("{program} did not end in time")))?;
    output.map_err(|e| failed(format!("cannot read the answer of {program}")).cause(&e))
}
