//! The changes that a plan is made of.

use super::{BridgeProfile, CellSpec, Elements, TapSpec, ruleset};
use crate::model::{Address, IfName, Rate, Route};
use shared::mac::Mac;

/// Members that are named one by one in the words for a change.
const MOST_MEMBERS: usize = 5;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes a bridge: down, STP off, marked, MAC pinned, sysctls set, MTU set.
    CreateBridge {
        /// Its name.
        name: IfName,
        /// Its own MAC.
        mac: Mac,
        /// Bytes.
        mtu: u32,
        /// Alias, which is the mark.
        alias: String,
        /// How the host behaves on it.
        profile: BridgeProfile,
    },
    /// Makes the host behave so on a bridge.
    SetProfile(IfName, BridgeProfile),
    /// Makes a tap, from created to up, with its flags and its static FDB entry. One action, because the tap goes
    /// away by itself if netd dies before it is persistent.
    CreateTap(TapSpec),
    /// Sets flags and FDB entry of an existing tap, or of a cell's link, again.
    RepairTap(TapSpec),
    /// Makes an ifb, from created to up, with its rate.
    CreateIfb {
        /// Its name.
        name: IfName,
        /// Alias, which is the mark.
        alias: String,
        /// What it lets through.
        rate: Rate,
    },
    /// Limits what a link sends, or changes its limit.
    SetRate(IfName, Rate),
    /// Ends the limit.
    ClearRate(IfName),
    /// Leads all that a tap receives through an ifb.
    Redirect {
        /// The tap.
        tap: IfName,
        /// The ifb.
        ifb: IfName,
    },
    /// Ends that.
    Unredirect(IfName),
    /// Makes a veth from a bridge into a process's network namespace; one of that name is removed first.
    CreateCell(CellSpec),
    /// Removes a link.
    DeleteLink(IfName),
    /// Sets the alias.
    SetAlias(IfName, String),
    /// Sets the MTU, bytes.
    SetMtu(IfName, u32),
    /// Sets the hardware address.
    SetMac(IfName, Mac),
    /// Administratively up or down.
    SetUp(IfName, bool),
    /// Makes the link a port of a bridge, or of none.
    SetMaster(IfName, Option<IfName>),
    /// Adds an address.
    AddAddress(IfName, Address),
    /// Removes an address.
    DeleteAddress(IfName, Address),
    /// Makes the neighbours that are known on one link known on another, so that the first packet there need not
    /// wait for an answer that still arrives on the old link.
    CopyNeighbours {
        /// Where they are known.
        from: IfName,
        /// Where they will be.
        to: IfName,
    },
    /// Adds a route beside those that are there. Never in place of another: the kernel would pick by destination and
    /// metric alone, and may hit a route of another link, or another gateway's.
    AddRoute(IfName, Route),
    /// Removes a route.
    DeleteRoute(IfName, Route),
    /// Replaces both tables, rules and data, in one transaction.
    ReplaceTables {
        /// Instance for the mark.
        instance: String,
        /// All members of all sets.
        elements: Elements,
    },
    /// Removes and adds members of sets in one transaction.
    ChangeElements {
        /// Members to remove; missing ones are passed over.
        remove: Elements,
        /// Members to add; present ones are passed over.
        add: Elements,
    },
    /// Removes both tables.
    RemoveTables,
    /// Ends flows that began as these members, which are no more, said. Others are passed over.
    EndFlows(Elements),
    /// Writes a sysctl.
    SetSysctl {
        /// Such as `net/ipv4/ip_forward`.
        key: String,
        /// What to write.
        value: String,
    },
}

impl Action {
    /// The change in a few words, for a log line.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::CreateBridge { name, .. } => format!("bridge `{name}` is missing"),
            Self::SetProfile(name, _) => format!("sysctls of `{name}` have other values"),
            Self::CreateTap(spec) => format!("tap `{}` is missing", spec.name),
            Self::RepairTap(spec) => {
                format!("tap `{}` is not a guarded port of `{}`", spec.name, spec.bridge)
            }
            Self::CreateIfb { name, .. } => format!("ifb `{name}` is missing"),
            Self::SetRate(name, _) => format!("link `{name}` has another rate, or none"),
            Self::ClearRate(name) => format!("link `{name}` has a rate"),
            Self::Redirect { tap, ifb } => format!("what `{tap}` receives does not go through `{ifb}`"),
            Self::Unredirect(tap) => format!("what `{tap}` receives goes through another link"),
            Self::CreateCell(spec) => format!("link `{}` is missing", spec.outer.name),
            Self::DeleteLink(name) => format!("link `{name}` is not as it was made"),
            Self::SetAlias(name, _) => format!("link `{name}` has lost its mark"),
            Self::SetMtu(name, _) => format!("link `{name}` has another MTU"),
            Self::SetMac(name, _) => format!("link `{name}` has another MAC"),
            Self::SetUp(name, _) => format!("link `{name}` is down"),
            Self::SetMaster(name, _) => format!("link `{name}` is on another bridge"),
            Self::AddAddress(name, address) => format!("`{name}` has no address {}", address.net),
            Self::DeleteAddress(name, address) => format!("`{name}` has address {}", address.net),
            Self::CopyNeighbours { to, .. } => format!("`{to}` knows no neighbours"),
            Self::AddRoute(name, route) => format!("`{name}` has no route to {}", route.destination),
            Self::DeleteRoute(name, route) => format!("`{name}` has a route to {}", route.destination),
            Self::ReplaceTables { .. } => "the rules are missing or were changed".to_owned(),
            Self::ChangeElements { remove, add } => {
                let words = [("has", remove), ("lacks", add)].map(|(verb, elements)| {
                    let mut members = ruleset::describe(elements);
                    let more = members.len().saturating_sub(MOST_MEMBERS);
                    members.truncate(MOST_MEMBERS);
                    let more = (more > 0).then(|| format!("and {more} more"));
                    (!members.is_empty()).then(|| {
                        format!("{verb} {}", members.into_iter().chain(more).collect::<Vec<_>>().join(", "))
                    })
                });
                words.into_iter().flatten().collect::<Vec<_>>().join("; ")
            }
            Self::RemoveTables => "the tables are there without need".to_owned(),
            Self::EndFlows(_) => "flows go on as a former forward said".to_owned(),
            Self::SetSysctl { key, .. } => format!("sysctl `{key}` has another value"),
        }
    }
}
