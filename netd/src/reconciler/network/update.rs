//! Changing a network under its running guests.

use super::NetworkView;
use crate::{
    alloc,
    kernel::{Kernel, Observed, Scope},
    model::{Domain, IfName, Network, NetworkSpec, Port, Reservation, ServicesSpec, reservation_id},
    reconciler::{
        NETWORK, PORT, RESERVATION, Reconciler, Writer, check_generation, converge::ports_of, events,
        not_converged,
    },
};
use ipnet::{Ipv4Net, Ipv6Net};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    store::Op,
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What is to be changed of a network; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct NetworkChange {
    /// Only if this is the network's generation.
    pub generation: Option<i64>,
    /// The client's own.
    pub labels: Option<BTreeMap<String, String>>,
    /// Gateway address with prefix.
    pub ipv4: Option<Option<Ipv4Net>>,
    /// As `ipv4`.
    pub ipv6: Option<Option<Ipv6Net>>,
    /// Bytes; inner `None`: the uplink's, else 1500.
    pub mtu: Option<Option<u32>>,
    /// The only way out; inner `None`: any.
    pub uplink: Option<Option<IfName>>,
    /// Of what it does for its guests, in this order.
    pub services: Vec<ServicesChange>,
}

/// A change of what a network does for its guests; `None` and empty are the defaults.
#[derive(Clone, Debug)]
pub enum ServicesChange {
    /// Everything.
    All(ServicesSpec),
    /// Whether it does anything.
    Dhcp(Option<bool>),
    /// What guests' names end in.
    Domain(Option<Domain>),
    /// Whom to ask for other names.
    Upstreams(Vec<IpAddr>),
    /// How long an address is given for.
    LeaseSeconds(Option<u32>),
}

impl NetworkChange {
    fn spec(&self, old: &NetworkSpec) -> NetworkSpec {
        let mut services = old.services.clone();
        for change in self.services.iter().cloned() {
            match change {
                ServicesChange::All(all) => services = all,
                ServicesChange::Dhcp(dhcp) => services.dhcp = dhcp,
                ServicesChange::Domain(domain) => services.domain = domain,
                ServicesChange::Upstreams(upstreams) => services.upstreams = upstreams,
                ServicesChange::LeaseSeconds(seconds) => services.lease_seconds = seconds,
            }
        }
        NetworkSpec {
            services,
            ipv4: self.ipv4.unwrap_or(old.ipv4),
            ipv6: self.ipv6.unwrap_or(old.ipv6),
            mtu: self.mtu.unwrap_or(old.mtu),
            uplink: self.uplink.clone().unwrap_or_else(|| old.uplink.clone()),
            ..old.clone()
        }
    }
}

/// A network and its ports, as they are or are to be.
#[derive(Clone, Debug)]
struct Records {
    network: Network,
    ports: Vec<Port>,
    /// Reservations that the ports use up.
    given_up: Vec<Reservation>,
}

impl<K: Kernel> Reconciler<K> {
    /// Changes a network.
    ///
    /// # Errors
    /// NOT_FOUND; ABORTED if the generation is another; why the change cannot be. The network is then as it was.
    pub async fn update_network(&self, name: Name, change: NetworkChange) -> Result<NetworkView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot change network `{name}`");
            this.update_network_locked(&name, &change).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn update_network_locked(&self, name: &Name, change: &NetworkChange) -> Result<NetworkView, Fault> {
        let mut writer = self.lock().await;
        let network = self.network(name)?.network;
        if network.deleting {
            return Err(Fault::new(Kind::Aborted, "DELETING", "the network is being deleted"));
        }
        check_generation("network", change.generation, network.generation)?;
        let spec = change.spec(&network.spec);
        let labels = change.labels.clone().unwrap_or_else(|| network.labels.clone());
        if spec == network.spec && labels == network.labels {
            return self.network(name);
        }
        let ports = ports_of(&self.read().desired, name).cloned().collect();
        let old = Records { network, ports, given_up: Vec::new() };
        let observed = self.0.kernel.observe(&Scope::Host).await?;
        let mut new = self.decide_change(&old, spec, &observed)?;
        new.network.labels = labels;
        self.put_records(&new, &[]).await?;
        if let Err(fault) = self.turn_network(&new, &mut writer).await {
            self.put_records(&old, &new.given_up).await?;
            if let Err(undo) = self.turn_network(&old, &mut writer).await {
                tracing::error!(network = %name, error = undo.chain(), "cannot undo a failed change");
                self.publish(old.network.resource(), Err(undo));
            }
            return Err(fault);
        }
        self.publish(new.network.resource(), Ok(()));
        self.network(name)
    }

    /// What the records will be, with addresses for the ports where the network gets a subnet.
    fn decide_change(&self, old: &Records, spec: NetworkSpec, observed: &Observed) -> Result<Records, Fault> {
        alloc::check_spec(&spec)?;
        let network = &old.network;
        let (was, will) = (&network.spec, &spec);
        if was.ipv4 != will.ipv4 && network.ipv4.is_some() || was.ipv6 != will.ipv6 && network.ipv6.is_some()
        {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "SUBNET_IN_USE",
                "a subnet can be added to a network, and neither change nor go: guests have addresses in it",
            )
            .hint("make another network with the new subnet, and move the machines there"));
        }
        if was.uplink != will.uplink && network.takeover.is_some() {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "UPLINK_IN_USE",
                "the NIC of a bridged network carries the host's own addresses and cannot be exchanged under way",
            )
            .hint("make another network with --uplink, and move the machines there"));
        }
        let mut new = old.clone();
        let records = self.read();
        let others = || records.desired.networks.values().filter(|other| other.name != network.name);
        if spec.mode.has_gateway() {
            if network.ipv6.is_none() {
                new.network.ipv6 = alloc::subnet6(spec.ipv6, observed, others())?;
            }
        } else {
            (new.network.ipv4, new.network.ipv6) = (spec.ipv4, spec.ipv6);
        }
        if network.cell.is_none() || !spec.services.wanted(spec.mode) {
            new.network.cell = alloc::cell(&network.name, network.uid, &spec, observed)?;
        }
        // Another change has no business with the uplink, which may be away just now.
        if was.mtu != will.mtu || was.uplink != will.uplink {
            new.network.mtu = alloc::mtu_after(network, &spec, observed)?;
        }
        new.network.spec = spec;
        new.network.generation += 1;
        new.network.updated = Timestamp::now();
        if (new.network.ipv4, new.network.ipv6) == (network.ipv4, network.ipv6) {
            return Ok(new);
        }
        let reserved = || records.desired.reservations_of(&network.name);
        let decided = alloc::addresses_of_all(&new.network, old.ports.iter(), reserved())?;
        let given_up: BTreeSet<_> = decided.iter().flat_map(|chosen| &chosen.given_up).cloned().collect();
        for (port, chosen) in new.ports.iter_mut().zip(decided) {
            (port.ipv4, port.ipv6) = (chosen.ipv4, chosen.ipv6);
        }
        new.given_up = reserved().filter(|r| given_up.contains(&r.key())).cloned().collect();
        Ok(new)
    }

    /// Records a network and its ports in one commit, and that these reservations are there again.
    async fn put_records(&self, new: &Records, back: &[Reservation]) -> Result<(), Fault> {
        let network = &new.network;
        let mut ops = vec![Op::put(NETWORK, network.name.to_string(), network)?];
        for port in &new.ports {
            ops.push(Op::put(PORT, port.resource(), port)?);
        }
        for gone in &new.given_up {
            ops.push(Op::delete(RESERVATION, reservation_id(&gone.key())));
        }
        for reservation in back {
            ops.push(Op::put(RESERVATION, reservation_id(&reservation.key()), reservation)?);
        }
        let news = {
            let before = &self.read().desired;
            let ports =
                new.ports.iter().flat_map(|port| events::recorded(before.ports.get(&port.key()), port));
            events::recorded(before.networks.get(&network.name), network).into_iter().chain(ports).collect()
        };
        let _told = self.0.store.commit_telling(ops, news).await?;
        let mut records = self.write();
        records.desired.networks.insert(network.name.clone(), network.clone());
        for port in &new.ports {
            records.desired.ports.insert(port.key(), port.clone());
        }
        for gone in &new.given_up {
            records.desired.reservations.remove(&gone.key());
        }
        records.desired.reservations.extend(back.iter().map(|back| (back.key(), back.clone())));
        Ok(())
    }

    /// Brings the kernel to the records of a network: rules, the bridge, its taps, and a look whether all is there.
    async fn turn_network(&self, new: &Records, writer: &mut Writer) -> Result<(), Fault> {
        let desired = self.desired();
        let observed = self.0.kernel.observe(&Scope::All).await?;
        self.rules(&desired, &observed, writer).await?;
        self.bring_network(&desired, &new.network, &observed).await?;
        for port in &new.ports {
            self.apply(&desired.plan_port(port, &observed)?, &observed).await?;
        }
        let broken = self.broken_ports(&new.network.name);
        self.0.services.bring(&new.network, new.ports.iter(), broken).await?;
        let after = self.0.kernel.observe(&Scope::Host).await?;
        let mut left = desired.plan_network(&new.network, &after)?;
        for port in &new.ports {
            left.extend(desired.plan_port(port, &after)?);
        }
        left.first().map_or(Ok(()), |first| Err(not_converged(&new.network.resource(), first)))
    }
}
