//! `kvmctl network`.

use crate::{complete, parse};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use shared::name::Name;
use std::{net::IpAddr, time::Duration};

/// `kvmctl network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Creates a network and returns once the kernel carries it
    ///
    /// Creating it again with the same options is no error.
    #[command(after_help = "\
Examples:
  kvmctl network create lan --mode nat
  kvmctl network create lab --mode isolated --ipv4 10.9.0.1/24 --dhcp on
  kvmctl network create dmz --mode routed --ipv4 192.0.2.1/24 --uplink eth0
  kvmctl network create office --mode bridged --uplink eth1")]
    Create(CreateNetwork),
    /// Lists the networks
    #[command(visible_alias = "ls")]
    List {
        /// Go on with each change until Ctrl-C, over restarts of netd too
        #[arg(short, long)]
        watch: bool,
    },
    /// Shows one network
    Show {
        /// The network's name
        #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
        name: Name,
    },
    /// Changes a network under its running guests
    ///
    /// A subnet can be added where there is none of that family: the ports get addresses of it. What cannot change
    /// under running guests is refused with the reason.
    #[command(after_help = "\
Examples:
  kvmctl network update lan --ipv6 fd00:1::1/64
  kvmctl network update lan --mtu 1400 --dns 192.0.2.53
  kvmctl network update dmz --uplink eth2")]
    Update(UpdateNetwork),
    /// Lists the addresses that a network's DHCP server has given out
    Leases {
        /// The network's name
        #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
        name: Name,
    },
    /// Deletes a network and puts the host back as it was
    #[command(visible_alias = "rm")]
    Delete {
        /// The network's name
        #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
        name: Name,
        /// Delete its ports and forwards too
        #[arg(long)]
        force: bool,
    },
}

/// `kvmctl network create`.
#[derive(Args, Debug)]
pub struct CreateNetwork {
    /// 1 to 63 of a-z, 0-9 and -
    #[arg(value_parser = parse::name)]
    pub name: Name,
    /// What the network promises about packets
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// The host's IPv4 address and prefix there, 192.168.100.1/24 for example; nat and routed choose a free one
    #[arg(long, value_name = "CIDR")]
    pub ipv4: Option<String>,
    /// The host's IPv6 address and prefix there, fd00:1::1/64 for example; no IPv6 without it
    #[arg(long, value_name = "CIDR")]
    pub ipv6: Option<String>,
    /// bridged: an existing bridge to use; it is never changed
    #[arg(long, value_name = "IF")]
    pub bridge: Option<String>,
    /// bridged: the NIC that joins a new bridge; nat and routed: the only way out for guests
    #[arg(long, value_name = "IF")]
    pub uplink: Option<String>,
    /// Bytes, 68 to 65521; the uplink's, else 1500
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(68..=65521))]
    pub mtu: Option<u32>,
    /// DHCP, DNS and router advertisements for guests; on for nat and routed, off for isolated if not given
    #[arg(long, value_enum)]
    pub dhcp: Option<OnOff>,
    /// What guests' names in DNS end in; NETWORK.internal if not given
    #[arg(long)]
    pub domain: Option<String>,
    /// A DNS server to ask for other names, may be repeated; this host's own if not given
    #[arg(long = "dns", value_name = "ADDR")]
    pub upstreams: Vec<IpAddr>,
    /// How long DHCP gives an address for, 120s to a year; 1h if not given
    #[arg(long = "lease-time", value_name = "TIME", value_parser = parse::duration)]
    pub lease_time: Option<Duration>,
}

/// `kvmctl network update`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["ipv4", "ipv6", "mtu", "uplink", "any_uplink", "dhcp", "domain", "upstreams", "host_dns", "lease_time"])))]
pub struct UpdateNetwork {
    /// The network's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::networks))]
    pub name: Name,
    /// The host's IPv4 address and prefix there, if the network has none yet
    #[arg(long, value_name = "CIDR")]
    pub ipv4: Option<String>,
    /// The host's IPv6 address and prefix there, if the network has none yet
    #[arg(long, value_name = "CIDR")]
    pub ipv6: Option<String>,
    /// Bytes, 68 to 65521; guests learn it when they next ask
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(68..=65521))]
    pub mtu: Option<u32>,
    /// nat and routed: the only way out for guests
    #[arg(long, value_name = "IF", conflicts_with = "any_uplink")]
    pub uplink: Option<String>,
    /// nat and routed: any way out that is not a network of ours
    #[arg(long)]
    pub any_uplink: bool,
    /// DHCP, DNS and router advertisements for guests
    #[arg(long, value_enum)]
    pub dhcp: Option<OnOff>,
    /// What guests' names in DNS end in
    #[arg(long)]
    pub domain: Option<String>,
    /// A DNS server to ask for other names in place of the former ones, may be repeated
    #[arg(long = "dns", value_name = "ADDR", conflicts_with = "host_dns")]
    pub upstreams: Vec<IpAddr>,
    /// Ask the DNS servers of this host for other names
    #[arg(long = "host-dns")]
    pub host_dns: bool,
    /// How long DHCP gives an address for, 120s to a year
    #[arg(long = "lease-time", value_name = "TIME", value_parser = parse::duration)]
    pub lease_time: Option<Duration>,
}

/// What a network promises about packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Guests reach each other and nothing else, not even this host
    Isolated,
    /// Guests reach the outside with this host's address; nothing new comes in
    Nat,
    /// Guests reach the outside, and are reached, with their own addresses
    Routed,
    /// Guests are hosts of the LAN behind a NIC or an existing bridge
    Bridged,
}

/// A switch with both values spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Yes.
    #[value(help = None)]
    On,
    /// No.
    #[value(help = None)]
    Off,
}
