//! `kvmctl why`.

use crate::{
    complete,
    parse::{self, Peer},
};
use clap::{ArgGroup, Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use shared::name::Name;
use std::net::IpAddr;

/// Examples.
pub const WHY_HELP: &str = "\
Examples:
  kvmctl why web 192.0.2.1:443
  kvmctl why web db --protocol icmp
  kvmctl why web --from 192.0.2.1:22 --trace 10";

/// `kvmctl why`.
#[derive(Args, Debug)]
#[command(override_usage = "kvmctl why [OPTIONS] <VM> <DEST[:PORT]>
       kvmctl why [OPTIONS] <VM> --from <OUTSIDE[:PORT]>")]
#[command(group(ArgGroup::new("peer").required(true).args(["destination", "from"])))]
pub struct Why {
    /// The machine's name, or a port's
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Where the guest sends to: an address, or a machine whose address netd knows
    #[arg(value_name = "DEST[:PORT]", value_parser = parse::peer)]
    pub destination: Option<Peer>,
    /// Who sends to the guest; PORT is the guest's
    #[arg(long, value_name = "OUTSIDE[:PORT]", value_parser = parse::peer)]
    pub from: Option<Peer>,
    /// How; tcp if a port is given, else icmp
    #[arg(long, value_enum)]
    pub protocol: Option<WhyProtocol>,
    /// The network that is meant, if the machine has several ports
    #[arg(long, value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
    pub network: Option<Name>,
    /// The guest's address; else the one that netd knows, or one of its network
    #[arg(long, value_name = "ADDR")]
    pub source: Option<IpAddr>,
    /// Watch real packets of that flow for so long, 1 to 60; send some meanwhile
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=60))]
    pub trace: Option<u32>,
}

/// How a packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhyProtocol {
    /// TCP.
    #[value(help = None)]
    Tcp,
    /// UDP.
    #[value(help = None)]
    Udp,
    /// An echo request.
    #[value(help = None)]
    Icmp,
}
