//! The command line as it is written: no behaviour. The doc comments are the help.

mod capture;
mod diagnose;
mod events;
mod forward;
mod group;
mod network;
mod port;
mod vm;

pub use capture::CapturePort;
pub use diagnose::{Why, WhyProtocol};
pub use events::Events;
pub use forward::{AddForward, ForwardCommand, ForwardName, Protocol};
pub use group::{AddRule, CreateGroup, Default, Direction, GroupCommand, GroupName, IpProtocol, RuleCommand};
pub use network::{CreateNetwork, Mode, NetworkCommand, OnOff, UpdateNetwork};
pub use port::{CreatePort, PortCommand, PortName, UpdatePort};
pub use vm::{CreateVm, Goal, VmCommand, VmName, VncChoice};

use crate::{
    client::{DEFAULT_NETD, DEFAULT_VMD},
    output::Format,
    parse,
};
use clap::{Args, Parser, Subcommand, ValueHint};
use std::path::PathBuf;

const TOP_HELP: &str = "\
Examples:
  kvmctl network create lan --mode nat
  kvmctl vm run web --memory 1G --disk web.qcow2,format=qcow2 --network lan
  kvmctl vm console web
  kvmctl vm list -o json | jq -r '.[].name'

Exit codes:
  0  done
  1  refused or failed
  2  wrong usage
  3  a daemon is not reachable
  4  timed out

Environment:
  KVMCTL_NETD, KVMCTL_VMD      addresses of the daemons, as --netd and --vmd
  KVMCTL_LOG                   log filter, such as debug; off if not set
  OTEL_EXPORTER_OTLP_ENDPOINT  send traces to this OpenTelemetry collector

Shell completion: source <(COMPLETE=bash kvmctl)   (or zsh, fish, elvish)";

/// Virtual networks and virtual machines of this host.
///
/// kvmctl speaks to two daemons: netd, which makes networks and ports, and vmd, which runs machines. Data goes to
/// standard output, everything else to standard error.
#[derive(Debug, Parser)]
#[command(name = "kvmctl", version, after_help = TOP_HELP, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// How results are printed: json and yaml have stable fields, name is one bare name a line
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// netd's socket, unix:///path
    #[arg(long, global = true, env = "KVMCTL_NETD", hide_env_values = true, default_value = DEFAULT_NETD,
          value_name = "ADDR", value_parser = parse::address)]
    pub netd: String,
    /// vmd's socket, unix:///path
    #[arg(long, global = true, env = "KVMCTL_VMD", hide_env_values = true, default_value = DEFAULT_VMD,
          value_name = "ADDR", value_parser = parse::address)]
    pub vmd: String,
    /// Show the trace id of a failure too
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The groups of commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Virtual networks: bridges with the packet rules their mode promises
    #[command(subcommand, visible_alias = "net")]
    Network(NetworkCommand),
    /// Ports: taps on a network, for programs other than vmd
    #[command(subcommand)]
    Port(PortCommand),
    /// Port forwards: ports of this host that lead to a guest
    #[command(subcommand, visible_alias = "fwd")]
    Forward(ForwardCommand),
    /// Groups: what the guests of ports may send and receive
    #[command(subcommand)]
    Group(GroupCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// What happened: changes, repairs, leases, what became of machines
    ///
    /// Both daemons keep their last 4096 events. Other programs change links and rules of ours; netd puts them back, and
    /// says here what was changed.
    #[command(after_help = events::EXAMPLES)]
    Events(Events),
    /// What the daemons can do on this host
    #[command(subcommand)]
    Host(HostCommand),
    /// Says what on this host keeps guests' packets from passing, who made it so, and what to do
    ///
    /// Reads everybody's packet rules, routes and switches, and changes nothing. Ends with 1 if something that a
    /// network promises does not work.
    Doctor,
    /// Walks one packet's way from or to a guest, and says where it would die
    ///
    /// Ends with 1 if it would.
    #[command(after_help = diagnose::WHY_HELP)]
    Why(Why),
    /// Writes the manual pages
    #[command(hide = true)]
    Man {
        /// An existing folder
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// `kvmctl host`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Shows versions, accelerator, forwarding and warnings of both daemons
    Show,
}

#[cfg(test)]
mod test {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_every_command_may_stand_anywhere() {
        for line in ["kvmctl -o json vm list", "kvmctl vm -o json list", "kvmctl vm list -o json"] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap().global.output, Format::Json, "{line}");
        }
    }

    #[test]
    fn vnc_takes_its_value_only_after_an_equals_sign() {
        let parse = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Vm(VmCommand::Create(create)) => (create.name.to_string(), create.vnc),
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("kvmctl vm create --vnc web"), ("web".into(), Some(VncChoice::Unix)));
        assert_eq!(parse("kvmctl vm create --vnc=tcp web"), ("web".into(), Some(VncChoice::Tcp)));
        assert_eq!(parse("kvmctl vm create web"), ("web".into(), None));
    }
}
