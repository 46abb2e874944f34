//! Names of forwards, and whether the host's port is free for one. Pure.

use crate::{
    kernel::{Listener, Observed},
    model::{Forward, ForwardSpec, Network, Protocol, Target},
};
use ipnet::IpNet;
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::net::IpAddr;

/// What guests find at their gateway's address.
const SERVICES: [(Protocol, u16, &str); 4] = [
    (Protocol::Tcp, 53, "DNS"),
    (Protocol::Udp, 53, "DNS"),
    (Protocol::Udp, 67, "DHCP"),
    (Protocol::Udp, 547, "DHCP"),
];

/// Name of a forward whose client gave none: `tcp-8080`, or `tcp-8080-192-0-2-1` at one address.
///
/// # Errors
/// Never for a valid spec.
pub fn forward_name(spec: &ForwardSpec) -> Result<Name, Fault> {
    let mut name = format!("{}-{}", spec.protocol, spec.listen_port);
    if let Some(address) = spec.listen_address {
        name += "-";
        name.extend(address.to_string().chars().map(|c| if matches!(c, '.' | ':') { '-' } else { c }));
    }
    name.trim_end_matches('-').parse()
}

/// Checks what does not change: that the network can have forwards, of that family and to that address.
///
/// # Errors
/// FAILED_PRECONDITION or INVALID_ARGUMENT with what is wrong.
pub fn check_forward(network: &Network, spec: &ForwardSpec) -> Result<(), Fault> {
    let mode = network.spec.mode;
    if !mode.has_gateway() {
        let hint = match mode {
            crate::model::Mode::Bridged => {
                "its guests are on the LAN: clients reach them by their own addresses"
            }
            _ => {
                "the host does not reach its guests; a nat network is closed to the outside but for forwards"
            }
        };
        return Err(Fault::new(
            Kind::FailedPrecondition,
            "NO_FORWARDS",
            format!("network `{}` is {mode}, and only nat and routed networks have forwards", network.name),
        )
        .hint(hint));
    }
    let subnet = |of: IpAddr| match of {
        IpAddr::V4(_) => network.ipv4.map(IpNet::V4),
        IpAddr::V6(_) => network.ipv6.map(IpNet::V6),
    };
    if let Some(listen) = spec.listen_address
        && subnet(listen).is_none()
    {
        return Err(Fault::new(
            Kind::FailedPrecondition,
            "NO_SUCH_FAMILY",
            format!("guests of network `{}` have no address of the family of {listen}", network.name),
        )
        .hint("listen at an address of the other family, or at any by leaving it out"));
    }
    if let Target::Address(target) = spec.target {
        let guests = subnet(target).is_some_and(|net| {
            let ends = target == net.network() || target.is_ipv4() && target == net.broadcast();
            net.contains(&target) && net.addr() != target && !ends
        });
        if !guests {
            return Err(Fault::new(
                Kind::InvalidArgument,
                "ADDRESS_OUTSIDE",
                format!("{target} cannot be a guest's address on network `{}`", network.name),
            )
            .hint("name the machine, or an address that `kvmctl port list` shows"));
        }
    }
    Ok(())
}

/// Checks that nobody else has the port: no forward, no service of ours, no program of the host; and that the host has
/// the address.
///
/// # Errors
/// ALREADY_EXISTS or FAILED_PRECONDITION with the name of what is in the way.
pub fn check_listen<'a>(
    (network, spec): (&Network, &ForwardSpec),
    forwards: impl Iterator<Item = &'a Forward>,
    networks: impl Iterator<Item = &'a Network> + Clone,
    observed: &Observed,
    listeners: &[Listener],
) -> Result<(), Fault> {
    let (protocol, port) = (spec.protocol, spec.listen_port);
    let taken = |by: String, hint: &str| {
        Err(Fault::new(Kind::AlreadyExists, "PORT_TAKEN", format!("{protocol} port {port} is taken by {by}"))
            .hint(hint))
    };
    for other in forwards {
        let same = (other.spec.protocol, other.spec.listen_port) == (protocol, port);
        let overlaps = match (other.spec.listen_address, spec.listen_address) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        if same && overlaps {
            let at = at(other.spec.listen_address);
            return taken(
                format!("`{}`, which listens at {at}", other.resource()),
                "choose another port, or delete that forward",
            );
        }
    }
    let service = SERVICES.iter().find(|(p, at, _)| (*p, *at) == (protocol, port.get()));
    if let Some((.., service)) = service {
        let gateways = |n: &Network| [n.ipv4.map(IpNet::V4), n.ipv6.map(IpNet::V6)];
        let at_gateway = |listen: IpAddr| {
            let networks = networks.clone().filter(|n| n.spec.mode.has_gateway());
            networks.flat_map(gateways).flatten().any(|net| net.addr() == listen)
        };
        if spec.listen_address.is_none_or(at_gateway) {
            return taken(
                format!("{service}, which guests find at the addresses of their gateways"),
                "listen at one address of the host that is no gateway's",
            );
        }
    }
    if let Some(listen) = spec.listen_address {
        has_address(listen, observed)?;
    }
    match listeners.iter().find(|listener| meets(listener, network, spec)) {
        Some(listener) => taken(
            format!(
                "{}, which listens at {}",
                listener.program.as_deref().unwrap_or("a program of this host"),
                at(Some(listener.address).filter(|address| !address.is_unspecified()))
            ),
            "choose another port, make that program listen elsewhere, or listen at another address",
        ),
        None => Ok(()),
    }
}

fn at(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "any address".to_owned(), |address| address.to_string())
}

fn has_address(listen: IpAddr, observed: &Observed) -> Result<(), Fault> {
    let own = || observed.links.values().flat_map(|link| &link.addresses).map(|address| address.net.addr());
    if own().any(|address| address == listen) {
        return Ok(());
    }
    let mut usable: Vec<_> = own().filter(|a| !is_unfit(*a) && a.is_ipv4() == listen.is_ipv4()).collect();
    usable.sort_unstable();
    let shown = usable.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let hint =
        if shown.is_empty() { "it has none of that family".to_owned() } else { format!("it has {shown}") };
    Err(Fault::new(
        Kind::FailedPrecondition,
        "NOT_AN_ADDRESS_OF_THE_HOST",
        format!("{listen} is no address of this host"),
    )
    .hint(hint)
    .hint("leave the address out to listen at all of them, those to come as well"))
}

/// Whether a forward can never listen there: packets to loopback do not leave the host, nor are those of link-local
/// addresses passed on.
#[must_use]
pub fn is_unfit(address: IpAddr) -> bool {
    address.is_loopback() || matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether a program would lose flows to the forward. One that listens at `::` takes IPv4 as well, unless it said
/// otherwise, which is not told.
fn meets(listener: &Listener, network: &Network, spec: &ForwardSpec) -> bool {
    let address = listener.address;
    if is_unfit(address) {
        return false;
    }
    let covers = |v4: bool| match spec.listen_address {
        Some(listen) => listen.is_ipv4() == v4,
        None if v4 => network.ipv4.is_some(),
        None => network.ipv6.is_some(),
    };
    match address {
        IpAddr::V6(v6) if v6.is_unspecified() => true,
        IpAddr::V4(v4) if v4.is_unspecified() => covers(true),
        _ => spec.listen_address.map_or_else(|| covers(address.is_ipv4()), |listen| listen == address),
    }
}

#[cfg(test)]
mod test;
