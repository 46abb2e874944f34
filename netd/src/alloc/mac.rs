//! MACs of ports. Pure.

use crate::{
    kernel::Observed,
    model::{Network, Owner, Port, Reservation, port_resource},
};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::Name,
};

/// Who asks for a MAC, and what is set aside on its network.
#[derive(Clone, Debug)]
pub struct MacAsker<'a> {
    /// The port's name.
    pub name: &'a Name,
    /// Whose it is.
    pub owner: &'a Owner,
    /// Whether it may have by name what is set aside for others.
    pub by_admin: bool,
    /// What is set aside.
    pub reservations: Vec<&'a Reservation>,
}

impl MacAsker<'_> {
    fn kept_from_it(&self, mac: Mac) -> Option<&Reservation> {
        let mut held = self.reservations.iter().filter(|r| r.mac == Some(mac));
        held.find(|r| r.is_kept_from(self.owner)).copied()
    }

    fn before(&self) -> Option<Mac> {
        let own = self
            .reservations
            .iter()
            .filter(|r| r.name == *self.name && r.owner.as_ref().is_some_and(|owner| owner.is(self.owner)));
        own.max_by_key(|r| r.order)?.mac
    }
}

/// MAC of a port: as asked, as it was, or made from its name.
///
/// # Errors
/// ALREADY_EXISTS if another port of the network has the asked one, somebody else's had it, or the host itself has it on
/// that network.
pub fn port_mac<'a>(
    network: &Network,
    asked: Option<Mac>,
    asker: &MacAsker,
    others: impl Iterator<Item = &'a Port> + Clone,
) -> Result<Mac, Fault> {
    let hosts =
        |mac: Mac| mac == network.bridge_mac || network.cell.as_ref().is_some_and(|cell| cell.mac == mac);
    if let Some(mac) = asked {
        if hosts(mac) {
            return Err(mac_of_host(mac, network));
        }
        return match others.clone().find(|other| other.mac == mac) {
            Some(other) => Err(Fault::new(
                Kind::AlreadyExists,
                "MAC_TAKEN",
                format!("MAC {mac} belongs to `{}`", other.resource()),
            )
            .meta("port", other.resource())
            .hint("leave the MAC out to get a unique one")),
            None => match asker.kept_from_it(mac).filter(|_| !asker.by_admin) {
                Some(kept) => Err(Fault::new(
                    Kind::AlreadyExists,
                    "MAC_TAKEN",
                    format!("MAC {mac} is set aside for a port that another user had, `{}`", kept.name),
                )
                .hint("leave the MAC out to get a unique one; an admin may name it all the same")),
                None => Ok(mac),
            },
        };
    }
    let resource = port_resource(&network.name, asker.name);
    let made = (0..u32::MAX).map(|salt| Mac::derived(&resource, salt));
    let free = |mac: &Mac| !hosts(*mac) && asker.kept_from_it(*mac).is_none();
    asker
        .before()
        .into_iter()
        .chain(made)
        .find(|mac| free(mac) && !others.clone().any(|other| other.mac == *mac))
        .ok_or_else(|| Fault::new(Kind::ResourceExhausted, "NO_MAC", "no MAC is free"))
}

/// Refuses the MAC that the network's bridge really has: one that was there before netd keeps its own.
///
/// # Errors
/// ALREADY_EXISTS if it is the port's.
pub fn check_bridge(mac: Mac, network: &Network, observed: &Observed) -> Result<(), Fault> {
    match observed.links.get(&network.bridge) {
        Some(bridge) if bridge.mac == Some(mac) => Err(mac_of_host(mac, network)),
        _ => Ok(()),
    }
}

fn mac_of_host(mac: Mac, network: &Network) -> Fault {
    Fault::new(
        Kind::AlreadyExists,
        "MAC_TAKEN",
        format!("MAC {mac} belongs to this host on network `{}`", network.name),
    )
    .meta("link", &network.bridge)
    .hint("leave the MAC out to get a unique one")
}
