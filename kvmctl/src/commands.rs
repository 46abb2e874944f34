//! What each command does.

mod capture;
pub mod console;
mod diagnose;
pub mod events;
pub mod forward;
pub mod group;
pub mod host;
pub mod network;
pub mod port;
pub mod vm;
mod watch;

use crate::{
    cli::{Command, HostCommand},
    client::Clients,
    output::{Printer, Stop},
};

/// Carries out a command.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: Command, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        Command::Network(command) => network::run(command, clients, printer).await,
        Command::Port(command) => port::run(command, clients, printer).await,
        Command::Forward(command) => forward::run(command, clients, printer).await,
        Command::Group(command) => group::run(command, clients, printer).await,
        Command::Vm(command) => vm::run(command, clients, printer).await,
        Command::Events(asked) => events::run(asked, clients, printer).await,
        Command::Host(HostCommand::Show) => host::show(clients, printer).await,
        Command::Doctor => diagnose::doctor(clients, printer).await,
        Command::Why(why) => diagnose::why(why, clients, printer).await,
        Command::Man { dir } => Ok(crate::man::write(&dir)?),
    }
}
