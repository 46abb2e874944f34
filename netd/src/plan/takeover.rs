//! A NIC onto a bridge and back. Pure.

use super::{gone, has_address, has_route, is_link_local};
use crate::{
    kernel::{Action, Link, Observed},
    model::{Address, Network, Route},
};
use shared::fault::{Fault, Kind};

/// Moves a NIC's addresses and routes to the bridge: addresses and the running bridge first, then the NIC, then
/// the routes, and the NIC's own routes and addresses last, so that at no moment a packet finds no way.
pub(super) fn take_over(
    network: &Network,
    observed: &Observed,
    bridge: Option<&Link>,
    actions: &mut Vec<Action>,
) -> Result<(), Fault> {
    let (Some(state), Some(uplink)) = (&network.takeover, &network.spec.uplink) else { return Ok(()) };
    let nic = observed.links.get(uplink).ok_or_else(|| gone(network, uplink, "uplink"))?;
    let name = &network.bridge;
    for address in &state.addresses {
        if !has_address(bridge, address) {
            let moved = Address { no_prefix_route: !is_link_local(&address.net), ..address.clone() };
            actions.push(Action::AddAddress(name.clone(), moved));
        }
    }
    match &nic.master {
        Some(master) if master == name => {}
        Some(other) => {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "UPLINK_IN_USE",
                format!("`{uplink}` is a port of `{other}`"),
            )
            .hint(format!("take it out with `ip link set {uplink} nomaster`")));
        }
        None => {
            actions.push(Action::SetMaster(uplink.clone(), Some(name.clone())));
            actions.push(Action::CopyNeighbours { from: uplink.clone(), to: name.clone() });
        }
    }
    if !nic.up {
        actions.push(Action::SetUp(uplink.clone(), true));
    }
    for route in state.routes.iter().filter(|route| !has_route(bridge, route)) {
        actions.push(Action::AddRoute(name.clone(), route.clone()));
    }
    for route in state.routes.iter().rev().filter(|route| has_route(Some(nic), route)) {
        actions.push(Action::DeleteRoute(uplink.clone(), route.clone()));
    }
    for address in &state.addresses {
        if has_address(Some(nic), address) {
            actions.push(Action::DeleteAddress(uplink.clone(), address.clone()));
        }
    }
    Ok(())
}

/// The mirror of `take_over`.
pub(super) fn give_back(
    network: &Network,
    observed: &Observed,
    bridge: Option<&Link>,
    actions: &mut Vec<Action>,
) {
    let (Some(state), Some(uplink)) = (&network.takeover, &network.spec.uplink) else { return };
    // A NIC that was pulled out has nothing to get back.
    let Some(nic) = observed.links.get(uplink) else { return };
    if !nic.up && state.was_up {
        actions.push(Action::SetUp(uplink.clone(), true));
    }
    if nic.master.as_ref() == Some(&network.bridge) {
        // While the NIC is a port, answers to its own questions arrive at the bridge.
        actions.push(Action::CopyNeighbours { from: network.bridge.clone(), to: uplink.clone() });
    }
    let missing: Vec<_> = state.addresses.iter().filter(|a| !has_address(Some(nic), a)).collect();
    for address in &missing {
        actions.push(Action::AddAddress(uplink.clone(), (*address).clone()));
    }
    for route in state.routes.iter().filter(|route| !has_route(Some(nic), route)) {
        if !missing.iter().any(|address| comes_with(route, address)) {
            actions.push(Action::AddRoute(uplink.clone(), route.clone()));
        }
    }
    // Before the NIC leaves the bridge: a bridge without it leads nowhere.
    for route in state.routes.iter().rev().filter(|route| has_route(bridge, route)) {
        actions.push(Action::DeleteRoute(network.bridge.clone(), route.clone()));
    }
    if nic.master.as_ref() == Some(&network.bridge) {
        actions.push(Action::SetMaster(uplink.clone(), None));
    }
    if nic.up && !state.was_up {
        actions.push(Action::SetUp(uplink.clone(), false));
    }
}

/// Whether the kernel makes this route by itself when it is given the address.
fn comes_with(route: &Route, address: &Address) -> bool {
    const RTPROT_KERNEL: u8 = 2;
    let metric = if address.net.addr().is_ipv6() { Some(256) } else { None };
    !address.no_prefix_route
        && route.protocol == RTPROT_KERNEL
        && route.gateway.is_none()
        && route.destination == address.net.trunc()
        && route.metric == metric
}
