//! Creating and deleting ports. What it costs does not depend on how many there are: only the port's own links
//! are looked at, and the rules change by its own members of the sets.

mod update;

pub use update::PortChange;

use super::{
    PortView, Reconciler, converge::ports_of, events, network::network_not_found, not_converged, still_there,
};
use crate::{
    alloc,
    kernel::{Element, Kernel, Observed, Scope},
    model::{
        IfName, Network, Owner, Port, PortKey, PortSpec, Reservation, ReservationKey, State, port_resource,
        reservation_id,
    },
    plan::{Desired, check_allows},
};
use shared::{
    access::Quota,
    fault::{Fault, Kind},
    name::Name,
    store::Op,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A port that a client asks for.
#[derive(Clone, Debug)]
pub struct NewPort {
    /// The network it is to be on.
    pub network: Name,
    /// Its name there.
    pub name: Name,
    /// What is asked of it.
    pub spec: PortSpec,
    /// The client's own.
    pub labels: BTreeMap<String, String>,
    /// The caller, who may open the tap, and whom it makes the port for.
    pub owner: Owner,
    /// Whether it may have by name what is set aside for others.
    pub by_admin: bool,
    /// What the caller may have.
    pub quota: Quota,
}

impl<K: Kernel> Reconciler<K> {
    /// One port.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub fn port(&self, network: &Name, name: &Name) -> Result<PortView, Fault> {
        let records = self.read();
        if !records.desired.networks.contains_key(network) {
            return Err(self.missing(super::NETWORK, network.as_str(), network_not_found(network)));
        }
        let port = records.desired.ports.get(&(network.clone(), name.clone())).ok_or_else(|| {
            self.missing(super::PORT, &port_resource(network, name), port_not_found(network, name))
        })?;
        Ok(view(&records, port))
    }

    /// Ports in the order of networks and names, at most `most`, after `after`; of one network or of all.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such network.
    pub fn ports(
        &self,
        network: Option<&Name>,
        after: Option<&PortKey>,
        most: usize,
    ) -> Result<Vec<PortView>, Fault> {
        let records = self.read();
        network.map_or(Ok(()), |network| self.must_have(&records, network))?;
        Ok(records
            .desired
            .ports
            .iter()
            .filter(|(key, _)| network.is_none_or(|name| key.0 == *name))
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .take(most)
            .map(|(_, port)| view(&records, port))
            .collect())
    }

    /// Creates a port, or returns the existing one of that spec and owner.
    ///
    /// # Errors
    /// Why it cannot be; nothing is left behind.
    pub async fn create_port(&self, new: NewPort) -> Result<PortView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot create port `{}` on network `{}`", new.name, new.network);
            this.create_port_locked(new).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn create_port_locked(&self, new: NewPort) -> Result<PortView, Fault> {
        let mut writer = self.lock().await;
        let network = self.network(&new.network)?.network;
        if network.deleting {
            return Err(Fault::new(Kind::Aborted, "DELETING", "the network is being deleted"));
        }
        let key = (new.network.clone(), new.name.clone());
        if let Ok(existing) = self.port(&new.network, &new.name) {
            if !existing.port.deleting {
                return same_or_taken(existing, &new);
            }
            let finished = self.lower_port(&existing.port, &mut writer).await;
            finished.map_err(|fault| still_there("a port", &fault))?;
        }
        self.check_quota(&new.quota, &new.spec, (&new.owner, &key), None)?;
        let (port, observed, given_up) = self.decide(new, &network).await?;
        let raised = async {
            self.0.services.put_port(&port)?;
            self.raise_port(&port, &network, &observed, &mut writer).await
        };
        if let Err(fault) = raised.await {
            let deleting = Port { deleting: true, ..port };
            // Even if it cannot be recorded: a failed create is not to come up later.
            self.write().desired.ports.insert(deleting.key(), deleting.clone());
            if let Err(undo) = self.lower_port(&deleting, &mut writer).await {
                tracing::error!(
                    port = deleting.resource(),
                    error = undo.chain(),
                    "cannot undo a failed create"
                );
                self.publish(deleting.resource(), Err(undo));
            } else {
                self.put_back(&deleting, given_up).await?;
            }
            return Err(fault);
        }
        self.ready(port.resource());
        self.port(&port.network, &port.name)
    }

    /// Whether the owner may have a port of that spec, in the place of `old`. Each extra address counts as one more.
    fn check_quota(
        &self,
        quota: &Quota,
        spec: &PortSpec,
        (owner, key): (&Owner, &PortKey),
        old: Option<&Port>,
    ) -> Result<(), Fault> {
        let more = !spec.extra.is_subset(&old.map(|old| old.spec.extra.clone()).unwrap_or_default());
        if quota.ports.is_none() && quota.ports_per_network.is_none() || old.is_some() && !more {
            return Ok(());
        }
        let records = self.read();
        let count = |spec: &PortSpec| 1 + spec.extra.len();
        let others =
            records.desired.ports.values().filter(|port| port.owner == owner.uid && port.key() != *key);
        let (mut all, mut here) = (0, 0);
        for port in others {
            all += count(&port.spec);
            here += if port.network == key.0 { count(&port.spec) } else { 0 };
        }
        for (has, most, place) in
            [(all, quota.ports, ""), (here, quota.ports_per_network, " on this network")]
        {
            if let Some(most) = most.filter(|most| has + count(spec) > *most as usize) {
                let asked = match spec.extra.len() {
                    0 => String::new(),
                    extra => format!("; this one counts as {}, with its {extra} extra addresses", 1 + extra),
                };
                return Err(Fault::new(
                    Kind::ResourceExhausted,
                    "PORT_QUOTA",
                    format!("uid {} has {has} ports{place}, and may have {most}{asked}", owner.uid),
                )
                .hint("delete ports that are not needed, or have root raise `quota` in the access file"));
            }
        }
        Ok(())
    }

    async fn raise_port(
        &self,
        port: &Port,
        network: &Network,
        observed: &Observed,
        writer: &mut super::Writer,
    ) -> Result<(), Fault> {
        let desired = self.around(&[port], network);
        let after = self.members(&desired, &[port], Some(port));
        let before = self.members(&desired, &[port], None);
        // Somebody may have removed our tables since the last look: put everything right, then go on.
        if self.change_members(&before, &after).await.is_err() {
            self.converge_locked(writer).await?;
            self.change_members(&before, &after).await?;
            return self.check_port(&desired, port, network).await;
        }
        self.apply(&desired.plan_port(port, observed)?, observed).await?;
        self.check_port(&desired, port, network).await
    }

    async fn check_port(&self, desired: &Desired, port: &Port, network: &Network) -> Result<(), Fault> {
        let after = self.0.kernel.observe(&scope(port, network)).await?;
        match desired.plan_port(port, &after)?.first() {
            Some(first) => Err(not_converged(&port.resource(), first)),
            None => Ok(()),
        }
    }

    /// As much of the records as the plan of a port reads, of which these are states.
    fn around(&self, ports: &[&Port], network: &Network) -> Desired {
        let records = self.read();
        let forwards = records.desired.forwards_of(&network.name);
        let forwards = forwards.filter(|forward| ports.iter().any(|port| forward.may_lead_to(port)));
        Desired {
            instance: records.desired.instance.clone(),
            groups: records.desired.groups.clone(),
            networks: BTreeMap::from([(network.name.clone(), network.clone())]),
            ports: ports.iter().map(|port| (port.key(), (*port).clone())).collect(),
            forwards: forwards.map(|forward| (forward.key(), forward.clone())).collect(),
            ..Desired::default()
        }
    }

    /// The members of the sets that a port brings if it is as `there` says, with those of forwards that may lead to
    /// one of its states, and if it is in groups, with those of all groups' rules: one may name a group that it is in,
    /// and nobody else may be in its own.
    fn members(&self, around: &Desired, states: &[&Port], there: Option<&Port>) -> BTreeSet<Element> {
        let desired = &self.read().desired;
        let mut members = desired.forwards_around(states, there);
        if let Some(port) = states.iter().find(|port| !port.spec.groups.is_empty()) {
            members.extend(desired.allows_with(&port.key(), there));
        }
        members.extend(there.into_iter().flat_map(|port| around.port_elements(port).0));
        members
    }

    /// Deletes a port; with `uid`, only if it is that very port.
    ///
    /// # Errors
    /// NOT_FOUND; PERMISSION_DENIED unless `caller` is root or owns it; what the kernel refused.
    pub async fn delete_port(
        &self,
        key: PortKey,
        uid: Option<Uuid>,
        caller: (u32, Quota),
    ) -> Result<(), Fault> {
        self.change(move |this| async move {
            let context = format!("cannot delete port `{}` of network `{}`", key.1, key.0);
            this.delete_port_locked(&key, uid, caller).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn delete_port_locked(
        &self,
        key: &PortKey,
        uid: Option<Uuid>,
        (caller, quota): (u32, Quota),
    ) -> Result<(), Fault> {
        let mut writer = self.lock().await;
        let port = self.port(&key.0, &key.1)?.port;
        if uid.is_some_and(|uid| uid != port.uid) {
            return Err(port_not_found(&key.0, &key.1));
        }
        may_change(&port, caller)?;
        let port = Port { deleting: true, updated: Timestamp::now(), ..port };
        let result = self.lower_port(&port, &mut writer).await;
        // One that could not be recorded has changed nothing.
        let begun = || self.read().desired.ports.get(key).is_some_and(|port| port.deleting);
        if let Err(fault) = &result
            && begun()
        {
            self.publish(port.resource(), Err(fault.clone()));
        }
        result?;
        // Else whoever makes and deletes ports could set a whole subnet aside. The port is gone, whatever comes of it.
        if caller == port.owner
            && let Err(fault) = self.give_up_beyond(&quota, caller, &port.network).await
        {
            tracing::warn!(error = fault.chain(), "cannot give up what is set aside beyond a quota");
        }
        Ok(())
    }

    /// Records the delete, removes the link, then its members of the sets, then the record.
    async fn lower_port(&self, port: &Port, writer: &mut super::Writer) -> Result<(), Fault> {
        self.put_port(port).await?;
        let network = self.network(&port.network)?.network;
        let desired = self.around(&[port], &network);
        let observed = self.0.kernel.observe(&scope(port, &network)).await?;
        self.apply(&desired.plan_port(port, &observed)?, &observed).await?;
        self.0.services.remove_port(port)?;
        let alive = Port { deleting: false, ..port.clone() };
        let before = self.members(&desired, &[port], Some(&alive));
        let after = self.members(&desired, &[port], None);
        if let Err(fault) = self.change_members(&before, &after).await {
            // Somebody may have removed our tables: put everything right, which finishes this delete as well.
            self.converge_locked(writer).await?;
            let unfinished = self.read().desired.ports.contains_key(&port.key());
            return if unfinished { Err(fault) } else { Ok(()) };
        }
        self.forget(&[], &[port.key()]).await
    }

    async fn decide(
        &self,
        new: NewPort,
        network: &Network,
    ) -> Result<(Port, Observed, Vec<Reservation>), Fault> {
        let key = (new.network.clone(), new.name.clone());
        let (mac, chosen, profile, mut taken) = {
            let records = self.read();
            let profile = records.desired.profile(&key, &new.spec)?;
            let others = || ports_of(&records.desired, &new.network);
            let reserved = || records.desired.reservations_of(&new.network);
            let asks = alloc::MacAsker {
                name: &new.name,
                owner: &new.owner,
                by_admin: new.by_admin,
                reservations: reserved().collect(),
            };
            let mac = alloc::port_mac(network, new.spec.mac, &asks, others())?;
            alloc::check_names(&new.name, &new.spec, others())?;
            let kept = records.desired.kept_addresses(network);
            let asker = alloc::Asker {
                name: &new.name,
                mac,
                owner: new.owner.clone(),
                by_admin: new.by_admin,
                has: BTreeSet::new(),
            };
            let chosen = alloc::addresses(network, &asker, &new.spec, others(), reserved().chain(&kept))?;
            let taken: BTreeSet<IfName> = records.desired.ports.values().map(|p| p.tap.clone()).collect();
            (mac, chosen, profile, taken)
        };
        let free =
            |taken: &BTreeSet<IfName>| alloc::tap_name(&new.network, &new.name, |name| taken.contains(name));
        let now = Timestamp::now();
        let mut port = Port {
            network: new.network.clone(),
            name: new.name.clone(),
            uid: Uuid::new_v4(),
            generation: 1,
            created: now,
            updated: now,
            labels: new.labels,
            spec: new.spec,
            mac,
            ipv4: chosen.ipv4,
            ipv6: chosen.ipv6,
            tap: free(&taken)?,
            owner: new.owner.uid,
            tenant: new.owner.tenant,
            profile,
            deleting: false,
        };
        if profile.is_some() {
            check_allows(&self.read().desired.allows_with(&key, Some(&port)))?;
        }
        loop {
            let observed = self.0.kernel.observe(&scope(&port, network)).await?;
            alloc::check_bridge(mac, network, &observed)?;
            if !observed.links.contains_key(&port.tap) && !observed.links.contains_key(&port.ifb()) {
                let given_up = self.record_port(&port, &chosen.given_up).await?;
                return Ok((port, observed, given_up));
            }
            // No record explains a link of that name: it is somebody else's, so take another name.
            taken.insert(port.tap.clone());
            port.tap = free(&taken)?;
        }
    }

    /// Records a new port, and that the reservations which it takes over are no more, in one commit.
    async fn record_port(&self, port: &Port, given_up: &[ReservationKey]) -> Result<Vec<Reservation>, Fault> {
        let gone = given_up.iter().map(|key| Op::delete(super::RESERVATION, reservation_id(key)));
        let ops = std::iter::once(Op::put(super::PORT, port.resource(), port)?).chain(gone).collect();
        let _told = self.0.store.commit_telling(ops, events::recorded(None, port)).await?;
        let mut records = self.write();
        records.desired.ports.insert(port.key(), port.clone());
        Ok(given_up.iter().filter_map(|key| records.desired.reservations.remove(key)).collect())
    }

    /// Leaves the reservations as they were before a create that failed.
    async fn put_back(&self, port: &Port, given_up: Vec<Reservation>) -> Result<(), Fault> {
        let key = (port.network.clone(), port.name.clone(), Some(port.owner()));
        let mut ops = vec![Op::delete(super::RESERVATION, reservation_id(&key))];
        for reservation in &given_up {
            ops.push(Op::put(super::RESERVATION, reservation_id(&reservation.key()), reservation)?);
        }
        self.0.store.commit(ops).await?;
        let reservations = &mut self.write().desired.reservations;
        reservations.remove(&key);
        reservations.extend(given_up.into_iter().map(|reservation| (reservation.key(), reservation)));
        Ok(())
    }
}

/// Only root and the owner change a port, or see what passes it.
pub(crate) fn may_change(port: &Port, caller: u32) -> Result<(), Fault> {
    if caller == 0 || caller == port.owner {
        return Ok(());
    }
    Err(Fault::new(
        Kind::PermissionDenied,
        "NOT_OWNER",
        format!("the port belongs to uid {}, and the caller is uid {caller}", port.owner),
    )
    .hint("ask its owner, or an admin"))
}

/// The links of a port.
pub(super) fn scope(port: &Port, network: &Network) -> Scope {
    Scope::Port(vec![network.bridge.clone(), port.tap.clone(), port.ifb()])
}

fn view(records: &super::Records, port: &Port) -> PortView {
    PortView {
        state: records.states.get(&port.resource()).cloned().unwrap_or(State::Pending),
        mtu: records.desired.networks.get(&port.network).map_or(0, |network| network.mtu),
        port: port.clone(),
    }
}

fn port_not_found(network: &Name, name: &Name) -> Fault {
    Fault::new(Kind::NotFound, "PORT_NOT_FOUND", format!("there is no port `{name}` on network `{network}`"))
        .hint(format!("`kvmctl port list {network}` shows its ports"))
}

fn same_or_taken(existing: PortView, new: &NewPort) -> Result<PortView, Fault> {
    let port = &existing.port;
    let same = port.spec == new.spec && port.labels == new.labels && port.owner().is(&new.owner);
    if same {
        return Ok(existing);
    }
    let fault = Fault::new(
        Kind::AlreadyExists,
        "PORT_EXISTS",
        "there is one of that name with another spec or owner",
    );
    Err(fault.hint(format!("look at it with `kvmctl port show {} {}`", new.network, new.name)))
}
