//! `kvmctl port`.

use super::{CapturePort, OnOff};
use crate::{
    complete,
    parse::{self, Limit},
};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use shared::{mac::Mac, name::Name};
use std::net::IpAddr;

/// `kvmctl port`.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Creates a port, a tap that belongs to the calling user
    #[command(after_help = "\
Examples:
  kvmctl port create lan fc-0
  kvmctl port create lan db --ip 192.168.100.10 --isolated
  kvmctl port create lan router --filter off --mac 52:54:00:00:00:01 -o json | jq -r .status.interface")]
    Create(CreatePort),
    /// Lists the ports of one network, or of all
    #[command(visible_alias = "ls")]
    List {
        /// Only this network's
        #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
        network: Option<Name>,
        /// Go on with each change until Ctrl-C, over restarts of netd too
        #[arg(short, long)]
        watch: bool,
    },
    /// Shows one port
    Show(PortName),
    /// Changes a port while a guest is on it
    ///
    /// A machine's port is made anew whenever the machine starts, as its `--network` says: what is changed here holds
    /// until the machine stops.
    #[command(after_help = "\
Examples:
  kvmctl port update lan router --filter off
  kvmctl port update lan web-0 --extra-ip 192.168.100.80 --isolated on
  kvmctl port update lan web-0 --rate-in 100M --rate-out none
  kvmctl port update lan web-0 --group web --group admin")]
    Update(UpdatePort),
    /// Deletes a port
    #[command(visible_alias = "rm")]
    Delete(PortName),
    /// Records what passes a port, for Wireshark and tcpdump
    ///
    /// The file is pcapng. It has what the guest sends before the port's filter drops any of it. Ends at Ctrl-C, at
    /// one of the bounds, or when the port is deleted. For root and the port's owner.
    #[command(after_help = super::capture::EXAMPLES)]
    Capture(CapturePort),
}

/// Which port is meant.
#[derive(Args, Debug)]
pub struct PortName {
    /// The network's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
    pub network: Name,
    /// The port's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::ports))]
    pub name: Name,
}

/// `kvmctl port create`.
#[derive(Args, Debug)]
pub struct CreatePort {
    /// The network's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
    pub network: Name,
    /// 1 to 63 of a-z, 0-9 and -
    #[arg(value_parser = parse::name)]
    pub name: Name,
    /// The guest's MAC; derived from the names if not given, the same each time
    #[arg(long, value_parser = parse::mac)]
    pub mac: Option<Mac>,
    /// Whether frames from the guest are checked; off is for nested routers and bridges
    #[arg(long, value_enum)]
    pub filter: Option<OnOff>,
    /// The guest's address, IPv4 or IPv6, at most one of each; a free one if not given
    #[arg(long = "ip", value_name = "ADDR")]
    pub addresses: Vec<IpAddr>,
    /// One more address that the guest may use
    #[arg(long = "extra-ip", value_name = "ADDR")]
    pub extra: Vec<IpAddr>,
    /// The guest's name in DNS and DHCP; the port's name if not given
    #[arg(long, value_parser = parse::name)]
    pub hostname: Option<Name>,
    /// Keep the guest apart from other isolated ones of the network
    #[arg(long)]
    pub isolated: bool,
    /// Limit toward the guest, in bits per second, such as 100M or 100M,burst=64K
    #[arg(long, value_name = "RATE", value_parser = parse::limit)]
    pub rate_in: Option<Limit>,
    /// Limit from the guest, as --rate-in
    #[arg(long, value_name = "RATE", value_parser = parse::limit)]
    pub rate_out: Option<Limit>,
    /// A group whose rules say what the guest may send and receive; of an operator one that is granted
    #[arg(long = "group", value_name = "GROUP", value_parser = parse::name, add = ArgValueCompleter::new(complete::groups))]
    pub groups: Vec<Name>,
}

/// `kvmctl port update`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["filter", "extra", "no_extra", "hostname", "isolated", "rate_in", "rate_out", "groups", "no_group"])))]
pub struct UpdatePort {
    /// Which port.
    #[command(flatten)]
    pub port: PortName,
    /// Whether frames from the guest are checked
    #[arg(long, value_enum)]
    pub filter: Option<OnOff>,
    /// The addresses that the guest may use besides its own, in place of the former ones
    #[arg(long = "extra-ip", value_name = "ADDR", conflicts_with = "no_extra")]
    pub extra: Vec<IpAddr>,
    /// No address besides its own
    #[arg(long = "no-extra-ip")]
    pub no_extra: bool,
    /// The guest's name in DNS and DHCP
    #[arg(long, value_parser = parse::name)]
    pub hostname: Option<Name>,
    /// Keep the guest apart from other isolated ones of the network
    #[arg(long, value_enum)]
    pub isolated: Option<OnOff>,
    /// Limit toward the guest, in bits per second, such as 100M or 100M,burst=64K; or none
    #[arg(long, value_name = "RATE", value_parser = parse::limit)]
    pub rate_in: Option<Limit>,
    /// Limit from the guest, as --rate-in
    #[arg(long, value_name = "RATE", value_parser = parse::limit)]
    pub rate_out: Option<Limit>,
    /// The groups that the port is in, in place of the former ones; an operator changes those that are granted
    #[arg(long = "group", value_name = "GROUP", conflicts_with = "no_group", value_parser = parse::name,
          add = ArgValueCompleter::new(complete::groups))]
    pub groups: Vec<Name>,
    /// In no group
    #[arg(long)]
    pub no_group: bool,
}
