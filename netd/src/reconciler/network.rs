//! Creating and deleting networks.

mod update;

pub use update::{NetworkChange, ServicesChange};

use super::{NetworkView, Reconciler, converge::ports_of, not_converged, still_there};
use crate::{
    alloc,
    kernel::{Kernel, Observed, Scope},
    model::{Forward, Network, NetworkSpec, Port, PortKey, State},
    plan::Desired,
    services::{Lease, Status},
};
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
use uuid::Uuid;

/// A network that a client asks for.
#[derive(Clone, Debug)]
pub struct NewNetwork {
    /// Its name.
    pub name: Name,
    /// What is asked of it.
    pub spec: NetworkSpec,
    /// The client's own.
    pub labels: BTreeMap<String, String>,
}

impl<K: Kernel> Reconciler<K> {
    /// One network.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub fn network(&self, name: &Name) -> Result<NetworkView, Fault> {
        let records = self.read();
        let network = records
            .desired
            .networks
            .get(name)
            .ok_or_else(|| self.missing(super::NETWORK, name.as_str(), network_not_found(name)))?;
        Ok(self.view(&records, network))
    }

    /// Networks in the order of their names, at most `most`, after `after`.
    #[must_use]
    pub fn networks(&self, after: Option<&Name>, most: usize) -> Vec<NetworkView> {
        let records = self.read();
        let wanted =
            records.desired.networks.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        wanted.take(most).map(|(_, network)| self.view(&records, network)).collect()
    }

    fn view(&self, records: &super::Records, network: &Network) -> NetworkView {
        let state = records.states.get(&network.resource()).cloned().unwrap_or(State::Pending);
        let service = self.0.services.status(&network.name);
        let state = match (&service, state) {
            (Status::Failed(why), State::Ready) if network.services().is_some() => {
                State::Degraded(why.clone())
            }
            (_, state) => state,
        };
        NetworkView {
            state,
            ports: ports_of(&records.desired, &network.name).count(),
            network: network.clone(),
            service,
        }
    }

    /// What a network's DHCP server has given out, in the order of the addresses, and to which port.
    ///
    /// # Errors
    /// NOT_FOUND; FAILED_PRECONDITION if the network has no DHCP server.
    pub fn leases(&self, name: &Name) -> Result<Vec<(Lease, Option<Port>)>, Fault> {
        let network = self.network(name)?.network;
        if network.services().is_none() {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "NO_DHCP",
                format!("network `{name}` has no DHCP server"),
            )
            .hint(
                "its guests take their addresses elsewhere; `kvmctl port list` shows those that were seen",
            ));
        }
        let leases = self.0.services.leases(name);
        let records = self.read();
        let ports: BTreeMap<_, _> = ports_of(&records.desired, name)
            .flat_map(|port| port.addresses().map(move |address| (address, port)))
            .collect();
        let holder = |lease: &Lease| {
            let port = ports.get(&lease.address)?;
            lease.mac.is_none_or(|mac| mac == port.mac).then(|| Port::clone(port))
        };
        Ok(leases.into_iter().map(|lease| (lease.clone(), holder(&lease))).collect())
    }

    /// The addresses that a network's DHCP server has given to the MACs of its ports.
    #[must_use]
    pub fn leased(&self, name: &Name) -> BTreeSet<IpAddr> {
        let leases = self.leases(name).unwrap_or_default();
        leases.into_iter().filter(|(_, port)| port.is_some()).map(|(lease, _)| lease.address).collect()
    }

    /// Creates a network, or returns the existing one of that spec. With `validate_only` nothing is changed.
    ///
    /// # Errors
    /// Why it cannot be; nothing is left behind.
    pub async fn create_network(&self, new: NewNetwork, validate_only: bool) -> Result<NetworkView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot create network `{}`", new.name);
            this.create_network_locked(new, validate_only).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn create_network_locked(
        &self,
        new: NewNetwork,
        validate_only: bool,
    ) -> Result<NetworkView, Fault> {
        let mut writer = self.lock().await;
        if let Ok(existing) = self.network(&new.name) {
            if !existing.network.deleting {
                return same_or_taken(existing, &new);
            }
            if validate_only {
                let message = "a network of that name is being deleted";
                return Err(Fault::new(Kind::Aborted, "DELETING", message).hint("try again"));
            }
            let keys = self.port_keys_of(&new.name);
            let finished = self.lower(std::slice::from_ref(&new.name), &keys, &mut writer).await;
            finished.map_err(|fault| still_there("a network", &fault))?;
        }
        self.0.store.check_broken(super::NETWORK, new.name.as_str())?;
        let observed = self.0.kernel.observe(&Scope::All).await?;
        let network = decide(new, &self.read().desired, &observed)?;
        if validate_only {
            return Ok(NetworkView { network, state: State::Pending, ports: 0, service: Status::Starting });
        }
        let name = network.name.clone();
        self.put_network(&network).await?;
        if let Err(fault) = self.raise(&network, &observed, &mut writer).await {
            self.take_back(network, &mut writer).await;
            return Err(fault);
        }
        self.ready(network.resource());
        self.network(&name)
    }

    /// Rules, then links, then a look whether all is there.
    async fn raise(
        &self,
        network: &Network,
        observed: &Observed,
        writer: &mut super::Writer,
    ) -> Result<(), Fault> {
        let desired = self.desired();
        self.rules(&desired, observed, writer).await?;
        self.bring_network(&desired, network, observed).await?;
        let after = self.0.kernel.observe(&Scope::Host).await?;
        if let Some(first) = desired.plan_network(network, &after)?.first() {
            return Err(not_converged(&network.resource(), first));
        }
        self.0.services.bring(network, std::iter::empty(), self.broken_ports(&network.name)).await
    }

    /// Undoes a create that failed. What cannot be undone now stays recorded as being deleted, and is tried again.
    async fn take_back(&self, network: Network, writer: &mut super::Writer) {
        let name = network.name.clone();
        let deleting = Network { deleting: true, ..network };
        // Even if it cannot be recorded: a failed create is not to come up later.
        self.write().desired.networks.insert(name.clone(), deleting.clone());
        let undone = async {
            self.put_network(&deleting).await?;
            self.lower(&[name], &[], writer).await
        };
        if let Err(fault) = undone.await {
            tracing::error!(network = %deleting.name, error = fault.chain(), "cannot undo a failed create");
            self.publish(deleting.resource(), Err(fault));
        }
    }

    /// Deletes a network, with its ports if `force`.
    ///
    /// # Errors
    /// NOT_FOUND; FAILED_PRECONDITION while it has ports; what the kernel refused.
    pub async fn delete_network(&self, name: Name, force: bool) -> Result<(), Fault> {
        self.change(move |this| async move {
            let context = format!("cannot delete network `{name}`");
            this.delete_network_locked(&name, force).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn delete_network_locked(&self, name: &Name, force: bool) -> Result<(), Fault> {
        let mut writer = self.lock().await;
        let network = self.network(name)?.network;
        let keys = self.port_keys_of(name);
        if !force {
            self.refuse_use(name, &keys)?;
        }
        let network = Network { deleting: true, updated: Timestamp::now(), ..network };
        let ports: Vec<Port> = {
            let records = self.read();
            keys.iter().filter_map(|key| records.desired.ports.get(key)).cloned().collect()
        };
        let ports: Vec<Port> = ports.into_iter().map(|port| Port { deleting: true, ..port }).collect();
        let mut ops = vec![Op::put(super::NETWORK, name.to_string(), &network)?];
        for port in &ports {
            ops.push(Op::put(super::PORT, port.resource(), port)?);
        }
        self.0.store.commit(ops).await?;
        {
            let mut records = self.write();
            records.desired.networks.insert(name.clone(), network);
            for port in &ports {
                records.desired.ports.insert(port.key(), port.clone());
            }
        }
        let result = self.lower(std::slice::from_ref(name), &keys, &mut writer).await;
        if let Err(fault) = &result {
            self.publish(format!("networks/{name}"), Err(fault.clone()));
        }
        result
    }

    /// Nobody but who says so loses ports or forwards with a network.
    fn refuse_use(&self, name: &Name, ports: &[PortKey]) -> Result<(), Fault> {
        let forwards: Vec<_> = self.read().desired.forwards_of(name).map(Forward::key).collect();
        let named = |keys: &[(Name, Name)], what: &str| {
            let names: Vec<_> = keys.iter().take(5).map(|key| format!("`{}`", key.1)).collect();
            let more = if keys.len() > names.len() { ", …" } else { "" };
            (!keys.is_empty()).then(|| format!("{} {what}(s): {}{more}", keys.len(), names.join(", ")))
        };
        let used: Vec<_> =
            [named(ports, "port"), named(&forwards, "forward")].into_iter().flatten().collect();
        if used.is_empty() {
            return Ok(());
        }
        let message = format!("it has {}", used.join(" and "));
        Err(Fault::new(Kind::FailedPrecondition, "NETWORK_IN_USE", message)
            .meta("ports", ports.len())
            .meta("forwards", forwards.len())
            .hint("stop the machines on it, or delete it with its ports and forwards by --force"))
    }

    /// Removes links of objects that are being deleted, takes their rules out, and forgets them: last, so that
    /// whatever fails before is tried again.
    async fn lower(
        &self,
        networks: &[Name],
        ports: &[PortKey],
        writer: &mut super::Writer,
    ) -> Result<(), Fault> {
        let observed = self.0.kernel.observe(&Scope::Host).await?;
        let desired = self.desired();
        for port in ports.iter().filter_map(|key| desired.ports.get(key)) {
            self.apply(&desired.plan_port(port, &observed)?, &observed).await?;
        }
        for network in networks.iter().filter_map(|name| desired.networks.get(name)) {
            self.0.services.remove(network).await?;
            self.bring_network(&desired, network, &observed).await?;
        }
        let after = self.0.kernel.observe(&Scope::All).await?;
        for network in networks.iter().filter_map(|name| desired.networks.get(name)) {
            if let Some(first) = desired.plan_network(network, &after)?.first() {
                return Err(not_converged(&network.resource(), first));
            }
        }
        let mut rest = desired;
        rest.networks.retain(|name, _| !networks.contains(name));
        rest.ports.retain(|key, _| !ports.contains(key));
        rest.forwards.retain(|key, _| !networks.contains(&key.0));
        self.rules(&rest, &after, writer).await?;
        self.forget(networks, ports).await
    }
}

/// The fault of a name that no network has.
pub fn network_not_found(name: &Name) -> Fault {
    Fault::new(Kind::NotFound, "NETWORK_NOT_FOUND", format!("there is no network `{name}`"))
        .meta("network", name)
        .hint("`kvmctl network list` shows the networks")
}

fn same_or_taken(existing: NetworkView, new: &NewNetwork) -> Result<NetworkView, Fault> {
    if existing.network.spec == new.spec && existing.network.labels == new.labels {
        return Ok(existing);
    }
    Err(Fault::new(Kind::AlreadyExists, "NETWORK_EXISTS", "there is one of that name with another spec")
        .hint(format!("look at it with `kvmctl network show {}`, or choose another name", new.name)))
}

fn decide(new: NewNetwork, desired: &Desired, observed: &Observed) -> Result<Network, Fault> {
    let uid = Uuid::new_v4();
    let footing = alloc::footing(&new.name, uid, &new.spec, observed)?;
    let others = desired.networks.values();
    let (ipv4, ipv6) = if new.spec.mode.has_gateway() {
        (
            Some(alloc::subnet4(new.spec.ipv4, observed, others.clone())?),
            alloc::subnet6(new.spec.ipv6, observed, others)?,
        )
    } else {
        (new.spec.ipv4, new.spec.ipv6)
    };
    let cell = alloc::cell(&new.name, uid, &new.spec, observed)?;
    let now = Timestamp::now();
    Ok(Network {
        name: new.name,
        uid,
        generation: 1,
        created: now,
        updated: now,
        labels: new.labels,
        spec: new.spec,
        bridge: footing.bridge,
        bridge_mac: footing.mac,
        ipv4,
        ipv6,
        mtu: footing.mtu,
        takeover: footing.takeover,
        cell,
        deleting: false,
    })
}
