//! kvmctl: the command line of netd and vmd. A library so that tests can use its parts; `main` is a checklist.

pub mod cli;
mod client;
mod commands;
mod complete;
pub mod diagnose;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod listing;
mod man;
pub mod output;
pub mod parse;
mod resource;
mod terminal;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use cli::{Cli, Global};
use client::Clients;
use output::{Printer, Stop};
use shared::{fault::Fault, telemetry};
use std::{io, process::ExitCode};
use tracing::Instrument as _;

/// A command line that was understood.
#[derive(Debug)]
pub struct Invocation {
    cli: Cli,
    /// The words of the command, `kvmctl vm start`, for the trace.
    words: String,
}

/// Answers the shell's completion request and ends the process, if this is one.
pub fn complete() {
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
}

/// Reads this process's command line.
///
/// # Errors
/// The exit code, after a usage error or the help was printed.
pub fn parse_args() -> Result<Invocation, ExitCode> {
    let invocation = Cli::command().try_get_matches().and_then(|matches| {
        let words = words(&matches);
        Ok(Invocation { cli: Cli::from_arg_matches(&matches)?, words })
    });
    invocation.map_err(|error| {
        // A closed pipe is not worth a word.
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(diagnose::USAGE) } else { ExitCode::SUCCESS }
    })
}

fn words(matches: &ArgMatches) -> String {
    let mut words = String::from("kvmctl");
    let mut next = matches.subcommand();
    while let Some((word, matches)) = next {
        words.push(' ');
        words.push_str(word);
        next = matches.subcommand();
    }
    words
}

/// Carries a command out: telemetry, the command in its span, the error, the last spans.
pub async fn run(invocation: Invocation) -> ExitCode {
    let Invocation { cli, words } = invocation;
    let telemetry = match telemetry::start("kvmctl", "off") {
        Ok(telemetry) => telemetry,
        Err(fault) => return report(&fault, None),
    };
    let span = tracing::info_span!("kvmctl", otel.name = words);
    let verbose = cli.global.verbose;
    let work = async {
        let result = command(cli).await;
        (result, verbose.then(telemetry::trace_id).flatten())
    };
    let (result, trace_id) = work.instrument(span).await;
    let code = match result {
        Ok(()) | Err(Stop::PipeClosed) => ExitCode::SUCCESS,
        Err(Stop::Negative) => ExitCode::from(diagnose::FAILED),
        Err(Stop::Fault(fault)) => report(&fault, trace_id.as_deref()),
    };
    telemetry.finish().await;
    code
}

async fn command(cli: Cli) -> Result<(), Stop> {
    let Cli { global, command } = cli;
    let clients = Clients::new(&global.netd, &global.vmd);
    let Global { output, .. } = global;
    // Locked for each write only: the console writes through tokio's handle.
    let (mut out, mut remarks) = (io::stdout(), io::stderr());
    let mut printer = Printer::new(output, &mut out, &mut remarks);
    let done = commands::run(command, &clients, &mut printer).await;
    printer.finish()?;
    done
}

fn report(fault: &Fault, trace_id: Option<&str>) -> ExitCode {
    eprint_all(&diagnose::render(fault, trace_id));
    ExitCode::from(diagnose::exit_code(fault.kind()))
}

/// `eprint!` panics where standard error is closed.
fn eprint_all(text: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), text.as_bytes());
}
