//! What ports leave behind when they go: what is set aside for their owners, and whose the forwards are.

use super::Reconciler;
use crate::{
    kernel::Kernel,
    model::{Forward, Port, PortKey, Reservation, ReservationKey},
    plan::Desired,
};
use shared::name::Name;

impl<K: Kernel> Reconciler<K> {
    /// Which addresses are set aside when these objects go, and whose are no longer.
    pub(super) fn reservations_after(
        &self,
        networks: &[Name],
        ports: &[PortKey],
    ) -> (Vec<Reservation>, Vec<ReservationKey>) {
        let records = self.read();
        let desired = &records.desired;
        let newest = desired.reservations.values().map(|r| r.order).max().unwrap_or(0);
        let kept = ports
            .iter()
            .filter(|key| !networks.contains(&key.0))
            .filter_map(|key| desired.ports.get(key))
            .zip(newest + 1..)
            .map(|(port, order)| Reservation {
                network: port.network.clone(),
                name: port.name.clone(),
                owner: Some(port.owner()),
                mac: Some(port.mac),
                ipv4: port.ipv4,
                ipv6: port.ipv6,
                extra: port.spec.extra.clone(),
                hostname: port.spec.hostname.clone(),
                order,
            })
            .collect();
        let freed = desired.reservations.keys().filter(|key| networks.contains(&key.0)).cloned().collect();
        (kept, freed)
    }
}

/// Forwards that lead to a port, and are to remember whose it was.
pub(super) fn bound_to(desired: &Desired, port: &Port) -> Vec<Forward> {
    if port.deleting {
        return Vec::new();
    }
    let forwards = desired.forwards_of(&port.network);
    forwards
        .filter_map(|forward| {
            let of = Some(forward.learns_of(port)?);
            Some(Forward { of, ..forward.clone() })
        })
        .collect()
}
