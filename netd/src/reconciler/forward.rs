//! Creating and deleting forwards, and what ports that come, change and go mean for them.

use super::{
    Reconciler, Writer, events, flows::taken_out, network::network_not_found, not_converged, port::scope,
    still_there,
};
use crate::{
    alloc,
    kernel::{Action, Element, Elements, Kernel, Scope},
    model::{Forward, ForwardKey, ForwardSpec, Network, Port, PortKey, State, forward_resource},
    plan::Desired,
};
use shared::{
    events::{EventKind, News},
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

/// A forward that a client asks for.
#[derive(Clone, Debug)]
pub struct NewForward {
    /// The network that its target is on.
    pub network: Name,
    /// Its name there.
    pub name: Name,
    /// What is asked of it.
    pub spec: ForwardSpec,
    /// The client's own.
    pub labels: BTreeMap<String, String>,
    /// Whether the target may be one that the network never had.
    pub allow_absent: bool,
}

/// A forward as clients see it.
#[derive(Clone, Debug)]
pub struct ForwardView {
    /// Its record.
    pub forward: Forward,
    /// What the kernel carries of it; pending while it leads nowhere.
    pub state: State,
    /// The port that it leads to, and the addresses there; or why there is none.
    pub target: Result<(PortKey, Vec<IpAddr>), String>,
}

impl<K: Kernel> Reconciler<K> {
    /// One forward.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub fn forward(&self, key: &ForwardKey) -> Result<ForwardView, Fault> {
        let records = self.read();
        if !records.desired.networks.contains_key(&key.0) {
            return Err(self.missing(super::NETWORK, key.0.as_str(), network_not_found(&key.0)));
        }
        let id = || forward_resource(&key.0, &key.1);
        let forward = records
            .desired
            .forwards
            .get(key)
            .ok_or_else(|| self.missing(super::FORWARD, &id(), forward_not_found(key)))?;
        Ok(view(&records, forward))
    }

    /// Forwards in the order of networks and names, at most `most`, after `after`; of one network or of all.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such network.
    pub fn forwards(
        &self,
        network: Option<&Name>,
        after: Option<&ForwardKey>,
        most: usize,
    ) -> Result<Vec<ForwardView>, Fault> {
        let records = self.read();
        network.map_or(Ok(()), |network| self.must_have(&records, network))?;
        Ok(records
            .desired
            .forwards
            .iter()
            .filter(|(key, _)| network.is_none_or(|name| key.0 == *name))
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .take(most)
            .map(|(_, forward)| view(&records, forward))
            .collect())
    }

    /// Creates a forward, or returns the existing one of that spec.
    ///
    /// # Errors
    /// Why it cannot be; nothing is left behind.
    pub async fn create_forward(&self, new: NewForward) -> Result<ForwardView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot create forward `{}` of network `{}`", new.name, new.network);
            this.create_forward_locked(new).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn create_forward_locked(&self, new: NewForward) -> Result<ForwardView, Fault> {
        let mut writer = self.lock().await;
        let network = self.network(&new.network)?.network;
        if network.deleting {
            return Err(Fault::new(Kind::Aborted, "DELETING", "the network is being deleted"));
        }
        let key = (new.network.clone(), new.name.clone());
        if let Ok(existing) = self.forward(&key) {
            if !existing.forward.deleting {
                return same_or_taken(existing, &new);
            }
            let finished = self.lower_forward(&existing.forward, &mut writer).await;
            finished.map_err(|fault| still_there("a forward", &fault))?;
        }
        self.check(&new, &network).await?;
        let now = Timestamp::now();
        let forward = Forward {
            network: new.network,
            name: new.name,
            uid: Uuid::new_v4(),
            generation: 1,
            created: now,
            updated: now,
            labels: new.labels,
            of: self.read().desired.target_owner(&key.0, &new.spec),
            spec: new.spec,
            deleting: false,
        };
        if let Err(fault) = self.turn_forward(&forward, &mut writer).await {
            let deleting = Forward { deleting: true, ..forward };
            if let Err(undo) = self.lower_forward(&deleting, &mut writer).await {
                let resource = deleting.resource();
                tracing::error!(forward = resource, error = undo.chain(), "cannot undo a failed create");
                self.publish(resource, Err(undo));
            }
            return Err(fault);
        }
        self.ready(forward.resource());
        self.forward(&key)
    }

    async fn check(&self, new: &NewForward, network: &Network) -> Result<(), Fault> {
        let spec = &new.spec;
        alloc::check_forward(network, spec)?;
        if !new.allow_absent && !self.read().desired.knows_target(&network.name, &spec.target) {
            return Err(Fault::new(
                Kind::NotFound,
                "TARGET_NOT_FOUND",
                format!(
                    "no port of network `{}` answers to `{}`, and none did before",
                    network.name, spec.target
                ),
            )
            .meta("target", &spec.target)
            .hint(format!(
                "`kvmctl port list {}` shows its ports; a machine has one once it was started",
                network.name
            )));
        }
        let observed = self.0.kernel.observe(&Scope::Host).await?;
        let listeners = self.0.kernel.listeners(spec.protocol, spec.listen_port.get()).await?;
        let records = self.read();
        let desired = &records.desired;
        let (forwards, networks) = (desired.forwards.values(), desired.networks.values());
        alloc::check_listen((network, spec), forwards, networks, &observed, &listeners)
    }

    /// Deletes a forward.
    ///
    /// # Errors
    /// NOT_FOUND; what the kernel refused.
    pub async fn delete_forward(&self, key: ForwardKey) -> Result<(), Fault> {
        self.change(move |this| async move {
            let context = format!("cannot delete forward `{}` of network `{}`", key.1, key.0);
            let mut writer = this.lock().await;
            let result = this.delete_forward_locked(&key, &mut writer).await;
            result.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn delete_forward_locked(&self, key: &ForwardKey, writer: &mut Writer) -> Result<(), Fault> {
        let forward = self.forward(key)?.forward;
        let forward = Forward { deleting: true, updated: Timestamp::now(), ..forward };
        let result = self.lower_forward(&forward, writer).await;
        // One that could not be recorded has changed nothing.
        let begun = || self.read().desired.forwards.get(key).is_some_and(|forward| forward.deleting);
        if let Err(fault) = &result
            && begun()
        {
            self.publish(forward.resource(), Err(fault.clone()));
        }
        result
    }

    /// Records the delete, takes its members out, then the record.
    async fn lower_forward(&self, forward: &Forward, writer: &mut Writer) -> Result<(), Fault> {
        self.turn_forward(forward, writer).await?;
        self.forget_forwards(&[forward.key()]).await
    }

    /// Records a forward as it is to be, and brings the kernel to it: the rules in one transaction, then the links of
    /// ports that it may lead to.
    async fn turn_forward(&self, forward: &Forward, writer: &mut Writer) -> Result<(), Fault> {
        let before = members(&self.read().desired, forward);
        self.put_forward(forward).await?;
        let desired = self.desired();
        let after = members(&desired, forward);
        if self.change_members(&before, &after).await.is_err() {
            // Somebody may have removed our tables: put everything right, this forward as well.
            self.converge_locked(writer).await?;
            if let Some(State::Degraded(why)) = self.read().states.get(&forward.resource()) {
                let why = std::io::Error::other(why.clone());
                return Err(Fault::internal("the packet rules are not in force").cause(&why));
            }
        }
        self.turn_ports(&desired, forward).await
    }

    /// Ports that a forward may lead to give a guest's frames back to it.
    async fn turn_ports(&self, desired: &Desired, forward: &Forward) -> Result<(), Fault> {
        let Some(network) = desired.networks.get(&forward.network) else { return Ok(()) };
        let ports = desired.ports_of(&forward.network);
        for port in ports.filter(|port| !port.deleting && forward.may_lead_to(port)) {
            let links = scope(port, network);
            let observed = self.0.kernel.observe(&links).await?;
            let plan = desired.plan_port(port, &observed)?;
            if plan.is_empty() {
                continue;
            }
            self.apply(&plan, &observed).await?;
            let after = self.0.kernel.observe(&links).await?;
            if let Some(first) = desired.plan_port(port, &after)?.first() {
                return Err(not_converged(&port.resource(), first));
            }
        }
        Ok(())
    }

    /// Removes and adds members in one transaction; none if there is no difference.
    pub(super) async fn change_members(
        &self,
        before: &BTreeSet<Element>,
        after: &BTreeSet<Element>,
    ) -> Result<(), Fault> {
        if before == after {
            return Ok(());
        }
        let change = Action::ChangeElements {
            remove: Elements(before.difference(after).cloned().collect()),
            add: Elements(after.difference(before).cloned().collect()),
        };
        self.note_flows(taken_out(&change, None)).await?;
        self.0.kernel.apply(&change).await?;
        self.end_flows().await;
        Ok(())
    }

    async fn put_forward(&self, forward: &Forward) -> Result<(), Fault> {
        let news = {
            let records = self.read();
            events::recorded(records.desired.forwards.get(&forward.key()), forward)
        };
        let op = Op::put(super::FORWARD, forward.resource(), forward)?;
        let _told = self.0.store.commit_telling(vec![op], news).await?;
        self.write().desired.forwards.insert(forward.key(), forward.clone());
        Ok(())
    }

    /// Removes the records of forwards that the rules have no more members of.
    pub(super) async fn forget_forwards(&self, keys: &[ForwardKey]) -> Result<(), Fault> {
        if keys.is_empty() {
            return Ok(());
        }
        let resources: Vec<_> = keys.iter().map(|key| forward_resource(&key.0, &key.1)).collect();
        let ops = resources.iter().map(|resource| Op::delete(super::FORWARD, resource.clone())).collect();
        let gone = |resource: &String| News::of(EventKind::Deleted, resource.clone(), "");
        let news = resources.iter().map(gone).collect();
        let _told = self.0.store.commit_telling(ops, news).await?;
        let mut records = self.write();
        for (key, resource) in keys.iter().zip(&resources) {
            records.desired.forwards.remove(key);
            records.states.remove(resource);
        }
        Ok(())
    }
}

/// The members that a change of one forward can touch: those of all forwards of its network, since two may lead to the
/// same place, and those of ports that it may lead to.
fn members(desired: &Desired, forward: &Forward) -> BTreeSet<Element> {
    let mut members = desired.forward_elements(&forward.network).0;
    let ports = desired.ports_of(&forward.network).filter(|port| forward.may_lead_to(port));
    members.extend(ports.flat_map(|port: &Port| desired.port_elements(port).0));
    members
}

fn view(records: &super::Records, forward: &Forward) -> ForwardView {
    let target = records.desired.in_force(forward);
    let carried = records.states.get(&forward.resource()).cloned().unwrap_or(State::Pending);
    let state = match (&target, carried) {
        (Err(_), State::Ready) if !forward.deleting => State::Pending,
        (_, carried) => carried,
    };
    let target = target.map(|target| (target.port.key(), target.addresses));
    ForwardView { forward: forward.clone(), state, target }
}

fn forward_not_found((network, name): &ForwardKey) -> Fault {
    let what = format!("there is no forward `{name}` of network `{network}`");
    Fault::new(Kind::NotFound, "FORWARD_NOT_FOUND", what)
        .hint(format!("`kvmctl forward list {network}` shows its forwards"))
}

fn same_or_taken(existing: ForwardView, new: &NewForward) -> Result<ForwardView, Fault> {
    let forward = &existing.forward;
    if forward.spec == new.spec && forward.labels == new.labels {
        return Ok(existing);
    }
    let what = "there is one of that name with another spec";
    Err(Fault::new(Kind::AlreadyExists, "FORWARD_EXISTS", what).hint(format!(
        "look at it with `kvmctl forward show {} {}`, or give another name with --name",
        new.network, new.name
    )))
}
