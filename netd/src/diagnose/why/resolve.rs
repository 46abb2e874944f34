//! Which port and which addresses a question means. Pure.

use super::{IpAddr, Port, Protocol, Question};
use crate::{
    diagnose::facts::{Facts, guest_addresses},
    plan::Desired,
};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};

/// A question as it was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// A machine, or a port.
    pub vm: Name,
    /// The network that is meant.
    pub network: Option<Name>,
    /// The other end: an address, or another machine.
    pub other: Result<IpAddr, Name>,
    /// Whether the guest sends first.
    pub outward: bool,
    /// How.
    pub protocol: Protocol,
    /// The port that is sent to.
    pub port: Option<u16>,
    /// The guest's address.
    pub source: Option<IpAddr>,
}

/// The label that vmd puts on its ports.
const LABEL: &str = "vm";

/// All ports that a name means: those of a machine, else those of that name. Anyone may put the label on a port of
/// their own, so nothing is chosen between owners.
///
/// # Errors
/// INVALID_ARGUMENT if they are of several owners.
fn ports<'a>(desired: &'a Desired, vm: &Name, network: Option<&Name>) -> Result<Vec<&'a Port>, Fault> {
    let of_network = || {
        let ports = desired.ports.values().filter(|port| !port.deleting);
        ports.filter(|port| network.is_none_or(|network| port.network == *network))
    };
    let resource = format!("vms/{vm}");
    let is_labelled = |port: &Port| port.labels.get(LABEL) == Some(&resource);
    let all: Vec<_> = of_network().filter(|port| is_labelled(port) || port.name == *vm).collect();
    if all.iter().any(|port| port.owner != all[0].owner) {
        let names: Vec<_> =
            all.iter().map(|p| format!("{} on {} of uid {}", p.name, p.network, p.owner)).collect();
        return Err(ambiguous(format!("`{vm}` means ports of several owners"))
            .hint(format!("they are {}", names.join(", ")))
            .hint("name the port itself, choose the network, or write an address for the other end"));
    }
    let labelled: Vec<_> = all.iter().copied().filter(|port| is_labelled(port)).collect();
    Ok(if labelled.is_empty() { all } else { labelled })
}

fn ambiguous(message: String) -> Fault {
    Fault::new(Kind::InvalidArgument, "AMBIGUOUS_PORT", message)
}

/// Finds port, network and addresses.
///
/// # Errors
/// NOT_FOUND if there is no such port; INVALID_ARGUMENT if several are meant, or the addresses do not fit.
pub fn resolve(facts: &Facts, asked: &Asked) -> Result<Question, Fault> {
    let invalid = |reason: &str, message: String| Fault::new(Kind::InvalidArgument, reason, message);
    let desired = &facts.desired;
    let vm = &asked.vm;
    let found = ports(desired, vm, asked.network.as_ref())?;
    let port = match found.as_slice() {
        [] => {
            let on = asked.network.as_ref().map(|n| format!(" on network `{n}`")).unwrap_or_default();
            return Err(Fault::new(Kind::NotFound, "NOT_FOUND", format!("no port of `{vm}`{on}"))
                .hint("`kvmctl port list` lists the ports; name a machine or a port"));
        }
        [port] => *port,
        several => {
            let names: Vec<_> = several.iter().map(|p| format!("{} on {}", p.name, p.network)).collect();
            return Err(ambiguous(format!("`{vm}` has several ports: {}", names.join(", ")))
                .hint("choose one with --network, or name the port itself"));
        }
    };
    let network = desired
        .networks
        .get(&port.network)
        .ok_or_else(|| Fault::internal(format!("port `{}` has no network", port.resource())))?;
    let v4 = match (&asked.other, asked.source) {
        (Ok(address), _) => address.is_ipv4(),
        (Err(_), Some(source)) => source.is_ipv4(),
        (Err(_), None) => network.ipv4.is_some() || network.ipv6.is_none(),
    };
    let other = match &asked.other {
        Ok(address) => *address,
        Err(name) => address_of(facts, name, v4)?,
    };
    let guest = match asked.source {
        Some(source) if source.is_ipv4() != v4 => {
            return Err(invalid("ADDRESS_FAMILY", format!("{source} and {other} are not of one IP version")));
        }
        Some(source) => (source, "as given"),
        None => match (facts.address(port, v4), guest_addresses(network, &facts.observed, v4)) {
            (Some(known), _) => known,
            (None, Some([first, second])) => {
                let address = if first == other { second } else { first };
                (address, "assumed: none is known of this port")
            }
            (None, None) => {
                return Err(Fault::new(
                    Kind::FailedPrecondition,
                    "NO_ADDRESS",
                    format!("nobody knows which address `{vm}` has"),
                )
                .hint("give it with --source"));
            }
        },
    };
    Ok(Question {
        port: port.clone(),
        network: network.clone(),
        guest,
        other,
        outward: asked.outward,
        protocol: asked.protocol,
        to_port: asked.port,
    })
}

/// The address of another machine.
fn address_of(facts: &Facts, name: &Name, v4: bool) -> Result<IpAddr, Fault> {
    let ports = ports(&facts.desired, name, None)?;
    if ports.is_empty() {
        return Err(Fault::new(
            Kind::NotFound,
            "NOT_FOUND",
            format!("`{name}` is no address, and no machine or port has that name"),
        )
        .hint("write an address, such as 192.0.2.1:80"));
    }
    ports.iter().find_map(|port| facts.address(port, v4)).map(|(address, _)| address).ok_or_else(|| {
        Fault::new(Kind::FailedPrecondition, "NO_ADDRESS", format!("nobody knows which address `{name}` has"))
            .hint("write the address itself")
    })
}
