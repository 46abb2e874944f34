//! `kvmctl forward`.

use crate::{
    complete,
    parse::{self, Listen, Target},
};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use shared::name::Name;

/// `kvmctl forward`.
#[derive(Debug, Subcommand)]
pub enum ForwardCommand {
    /// Makes a port of this host lead to a guest of a nat or routed network
    ///
    /// It works from outside, from this host by any of its addresses but 127.0.0.1 and ::1, and from guests of the
    /// same network; guests of other networks are not served. It follows the machine's address, and waits while the
    /// machine is stopped.
    #[command(
        visible_alias = "create",
        override_usage = "\
kvmctl forward add [OPTIONS] --protocol <PROTOCOL>
           --listen <[ADDR:]PORT> --to <VM[:PORT]> <NETWORK>",
        after_help = "\
Examples:
  kvmctl forward add lan --protocol tcp --listen 8080 --to web:80
  kvmctl forward add lan --protocol udp --listen 192.0.2.10:53 --to dns
  kvmctl forward add lan --protocol tcp --listen [2001:db8::1]:443 --to web"
    )]
    Add(AddForward),
    /// Lists the forwards of one network, or of all
    #[command(visible_alias = "ls")]
    List {
        /// Only this network's
        #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
        network: Option<Name>,
    },
    /// Shows one forward
    Show(ForwardName),
    /// Deletes a forward and ends its connections
    #[command(visible_alias = "rm")]
    Delete(ForwardName),
}

/// Which forward is meant.
#[derive(Args, Debug)]
pub struct ForwardName {
    /// The network's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
    pub network: Name,
    /// The forward's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::forwards))]
    pub name: Name,
}

/// `kvmctl forward add`.
#[derive(Args, Debug)]
pub struct AddForward {
    /// The network's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
    pub network: Name,
    /// Of both ports
    #[arg(long, value_enum)]
    pub protocol: Protocol,
    /// Port of this host, at one of its addresses or at all: 8080, 192.0.2.10:8080, [2001:db8::1]:8080
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = parse::listen)]
    pub listen: Listen,
    /// The machine, port or address that it leads to, and the port there; the same port if not given
    #[arg(long, value_name = "VM[:PORT]", value_parser = parse::target)]
    pub to: Target,
    /// 1 to 63 of a-z, 0-9 and -; tcp-8080, for example, if not given
    #[arg(long, value_parser = parse::name)]
    pub name: Option<Name>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP.
    #[value(help = None)]
    Tcp,
    /// UDP.
    #[value(help = None)]
    Udp,
}
