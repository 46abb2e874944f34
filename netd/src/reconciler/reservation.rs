//! What ports leave behind when they go: what is set aside for their owners, and whose the forwards are.

use super::Reconciler;
use crate::{
    kernel::Kernel,
    model::{Forward, Port, PortKey, Reservation, ReservationKey, reservation_id},
    plan::Desired,
};
use shared::{access::Quota, fault::Fault, name::Name, store::Op};
use std::cmp::Reverse;

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

    /// Gives up the oldest of what is set aside for a user on a network, so that it is no more than the ports that the
    /// user may have there.
    pub(super) async fn give_up_beyond(&self, quota: &Quota, uid: u32, network: &Name) -> Result<(), Fault> {
        let Some(most) = quota.ports.into_iter().chain(quota.ports_per_network).min() else { return Ok(()) };
        let given_up = beyond(self.read().desired.reservations_of(network), uid, most as usize);
        if given_up.is_empty() {
            return Ok(());
        }
        let ops = given_up.iter().map(|key| Op::delete(super::RESERVATION, reservation_id(key))).collect();
        self.0.store.commit(ops).await?;
        let reservations = &mut self.write().desired.reservations;
        given_up.iter().for_each(|key| drop(reservations.remove(key)));
        Ok(())
    }
}

/// A user's reservations but the newest, which count as their ports did: each extra address as one more.
fn beyond<'a>(all: impl Iterator<Item = &'a Reservation>, uid: u32, most: usize) -> Vec<ReservationKey> {
    let mut own: Vec<_> = all.filter(|r| r.owner.as_ref().is_some_and(|owner| owner.uid == uid)).collect();
    own.sort_by_key(|r| Reverse(r.order));
    let mut kept = 0;
    own.retain(|r| {
        kept += 1 + r.extra.len();
        kept > most
    });
    own.into_iter().map(Reservation::key).collect()
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
