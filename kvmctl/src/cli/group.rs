//! `kvmctl group`.

use crate::{complete, parse};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use shared::name::Name;

/// `kvmctl group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Creates a group; it has an effect on the ports that are put into it
    ///
    /// Creating it again with the same options is no error.
    #[command(after_help = "\
Examples:
  kvmctl group create web
  kvmctl group rule add web --direction in --protocol tcp --port 443
  kvmctl port create lan web-0 --group web")]
    Create(CreateGroup),
    /// Lists the groups
    #[command(visible_alias = "ls")]
    List,
    /// Shows one group with its rules
    Show(GroupName),
    /// Deletes a group that no port is in and no rule names
    #[command(visible_alias = "rm")]
    Delete(GroupName),
    /// What a group allows
    #[command(subcommand)]
    Rule(RuleCommand),
}

/// `kvmctl group rule`.
#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// Allows something, at once for running guests
    #[command(after_help = "\
Examples:
  kvmctl group rule add web --direction in --protocol tcp --port 8000-8099
  kvmctl group rule add db --direction in --protocol any --remote-group web
  kvmctl group rule add db --direction out --protocol udp --port 53")]
    Add(AddRule),
    /// Takes a rule away, at once for running guests
    #[command(visible_alias = "rm")]
    Delete {
        /// Which group.
        #[command(flatten)]
        group: GroupName,
        /// The rule's id, or its number in `group show`
        rule: String,
    },
}

/// Which group is meant.
#[derive(Args, Debug)]
pub struct GroupName {
    /// The group's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::groups))]
    pub name: Name,
}

/// `kvmctl group create`.
#[derive(Args, Debug)]
pub struct CreateGroup {
    /// 1 to 63 of a-z, 0-9 and -
    #[arg(value_parser = parse::name)]
    pub name: Name,
    /// What happens to what comes to a guest if no rule allows it
    #[arg(long, value_enum, default_value_t = Default::Deny)]
    pub default_in: Default,
    /// What happens to what a guest sends if no rule allows it
    #[arg(long, value_enum, default_value_t = Default::Allow)]
    pub default_out: Default,
}

/// What happens where no rule speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Default {
    /// It passes.
    #[value(help = None)]
    Allow,
    /// It is dropped.
    #[value(help = None)]
    Deny,
}

/// `kvmctl group rule add`.
#[derive(Args, Debug)]
pub struct AddRule {
    /// Which group.
    #[command(flatten)]
    pub group: GroupName,
    /// Which way a flow begins, as the guest sees it
    #[arg(long, value_enum, value_name = "WAY")]
    pub direction: Direction,
    /// The protocol; any is every one
    #[arg(long, value_enum, value_name = "P")]
    pub protocol: IpProtocol,
    /// The port at the receiver, or a range of them; all if not given
    #[arg(long = "port", value_name = "N[-M]", value_parser = parse::ports)]
    pub ports: Option<(u16, u16)>,
    /// Only with addresses of this prefix at the other end
    #[arg(long, value_name = "CIDR", conflicts_with = "remote_group")]
    pub remote: Option<String>,
    /// Only with the guests of this group at the other end
    #[arg(long, value_name = "GROUP", value_parser = parse::name, add = ArgValueCompleter::new(complete::groups))]
    pub remote_group: Option<Name>,
}

/// Which way a flow begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// To the guest.
    #[value(help = None)]
    In,
    /// From the guest.
    #[value(help = None)]
    Out,
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IpProtocol {
    /// TCP.
    #[value(help = None)]
    Tcp,
    /// UDP.
    #[value(help = None)]
    Udp,
    /// ICMP or ICMPv6.
    #[value(help = None)]
    Icmp,
    /// Every one.
    #[value(help = None)]
    Any,
}
