//! `kvmctl network` and `kvmctl port`.

use super::CapturePort;
use crate::{
    complete,
    parse::{self, Limit},
};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use shared::{mac::Mac, name::Name};
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
