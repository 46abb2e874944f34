//! Bringing the whole kernel to the records: at the start, when somebody else changed something of ours, and as a
//! slow resync.

use super::{Reconciler, flows::taken_out, not_converged};
use crate::{
    kernel::{Action, Elements, Kernel, Observed, Scope},
    model::{Forward, Network, Port, PortKey, State},
    plan::Desired,
};
use shared::{events::EventKind, fault::Fault, name::Name};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Pause between two resyncs, for what nobody tells of (a sysctl) and for objects that could not be repaired.
const RESYNC: Duration = Duration::from_secs(30);
/// How long after a notification to look: changes come in bunches.
const SETTLE: Duration = Duration::from_millis(20);
/// Looks cost at most one part in this many of the time, however many notifications there are.
const SHARE: u32 = 3;
/// Changes that are told of one by one at a time.
const MOST_CHANGES: usize = 20;
/// How often rules are written at once while somebody else goes on changing them.
const TRIES: u32 = 3;

/// Records whose loss would change packet rules.
const BROKEN: [&str; 4] = [super::NETWORK, super::PORT, super::FORWARD, super::GROUP];

impl<K: Kernel> Reconciler<K> {
    /// Repairs what others change, until `stop`; `changed` says that something, somewhere, may have been.
    pub async fn run(&self, changed: Arc<Notify>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(RESYNC);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            let resync = tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => true,
                () = changed.notified() => false,
            };
            tokio::time::sleep(SETTLE).await;
            let begin = Instant::now();
            let result = if resync { self.converge().await } else { self.repair(&changed).await };
            if let Err(fault) = result {
                tracing::warn!(error = fault.chain(), "cannot repair");
                self.note_kernel(Some(&fault));
            }
            tokio::time::sleep(begin.elapsed() * SHARE).await;
        }
    }

    /// Looks, without holding up anybody, whether the kernel has drifted from the records, and converges if so.
    async fn repair(&self, changed: &Notify) -> Result<(), Fault> {
        let before = self.peek();
        let observed = self.0.kernel.observe(&Scope::All).await?;
        let after = self.peek();
        let Some((_, digest)) = after.as_ref().filter(|_| before == after) else {
            // A change of our own was under way: what was seen may be half of it. Look again.
            changed.notify_one();
            return Ok(());
        };
        let drift = self.drift(&observed, digest.as_deref());
        if drift.is_empty() {
            return Ok(());
        }
        for (resource, change) in &drift {
            tracing::warn!(resource, change, "changed by somebody else; repairing it");
        }
        let repaired = self.converge().await;
        for (resource, change) in drift {
            // The state of one that could not be repaired says why.
            let degraded = matches!(self.read().states.get(&resource), Some(State::Degraded(_)));
            let kind = if repaired.is_ok() && !degraded { EventKind::Repaired } else { EventKind::Drifted };
            self.tell(kind, &resource, change);
        }
        repaired
    }

    /// Number of changes and digest of the rules; `None` while a change is under way.
    fn peek(&self) -> Option<(u64, Option<String>)> {
        let writer = self.0.writer.try_lock().ok()?;
        Some((writer.changes, writer.digest.clone()))
    }

    /// Resource and words for what others changed. An object that is degraded already waits for the resync.
    fn drift(&self, observed: &Observed, digest: Option<&str>) -> Vec<(String, String)> {
        let records = self.read();
        let desired = &records.desired;
        let ready = |resource: &String| records.states.get(resource) == Some(&State::Ready);
        let networks = desired.networks.values().map(|n| (n.resource(), desired.plan_network(n, observed)));
        let ports = desired.ports.values().map(|p| (p.resource(), desired.plan_port(p, observed)));
        let rules = desired.plan_tables(observed, digest);
        let plans = networks
            .chain(ports)
            .filter(|(resource, _)| ready(resource))
            .chain(std::iter::once((String::new(), rules)));
        let mut drift: Vec<_> = plans
            .flat_map(|(resource, plan)| {
                let words = match plan {
                    Ok(actions) => actions.iter().map(Action::what).collect(),
                    Err(fault) => vec![fault.chain()],
                };
                words.into_iter().map(move |change| (resource.clone(), change))
            })
            .collect();
        if let Some(more) = drift.len().checked_sub(MOST_CHANGES).filter(|more| *more > 0) {
            drift.truncate(MOST_CHANGES);
            drift.push((String::new(), format!("and {more} more changes of that moment")));
        }
        drift
    }

    /// Brings the kernel to the records. One object's failure is in its state and does not stop the others.
    ///
    /// # Errors
    /// If the kernel cannot be read at all.
    pub async fn converge(&self) -> Result<(), Fault> {
        self.change(|this| async move {
            let mut writer = this.lock().await;
            this.converge_locked(&mut writer).await
        })
        .await
    }

    /// Remembers whether the kernel as a whole can be brought to the records: where it cannot, no change can be made.
    fn note_kernel(&self, fault: Option<&Fault>) {
        // Of a disk the store itself says whether it is at work again.
        let fault = fault.filter(|fault| fault.reason() != "STATE_STORE");
        self.write().kernel = fault.map(|fault| {
            format!(
                "degraded: changes are refused: packet rules and links cannot be managed: {}",
                fault.chain()
            )
        });
    }

    pub(super) async fn converge_locked(&self, writer: &mut super::Writer) -> Result<(), Fault> {
        let result = self.converge_all(writer).await;
        if let Err(fault) = &result {
            self.note_kernel(Some(fault));
        }
        result
    }

    #[tracing::instrument(level = "info", name = "converge", skip_all)]
    async fn converge_all(&self, writer: &mut super::Writer) -> Result<(), Fault> {
        let observed = self.0.kernel.observe(&Scope::All).await?;
        let desired = self.read().desired.clone();
        self.warn_of_strays(&desired, &observed);
        self.keep_unexplained(&observed, writer);
        let desired = self.desired();
        // A disk that is full must not stop the rest: they are gone from the kernel, and are forgotten later.
        if let Err(fault) = self.remove_deleted(&desired, &observed).await {
            tracing::warn!(error = fault.chain(), "cannot forget what was deleted");
        }
        // Without its rules in force no link may come up.
        let desired = self.desired();
        let rules = self.rules(&desired, &observed, writer).await;
        self.note_kernel(rules.as_ref().err());
        if let Err(fault) = self.settle_forwards(&desired, &rules).await {
            tracing::warn!(error = fault.chain(), "cannot forget forwards that were deleted");
        }
        let observed = self.0.kernel.observe(&Scope::Host).await?;
        for network in desired.networks.values().filter(|n| !n.deleting) {
            let result = match &rules {
                Ok(()) => self.bring_network(&desired, network, &observed).await,
                Err(fault) => Err(fault.clone()),
            };
            self.publish(network.resource(), result);
        }
        let observed = self.0.kernel.observe(&Scope::Host).await?;
        for port in desired.ports.values().filter(|p| !p.deleting) {
            let result = match &rules {
                Ok(()) => self.bring_port(&desired, port, &observed).await,
                Err(fault) => Err(fault.clone()),
            };
            self.publish(port.resource(), result);
        }
        if rules.is_ok() {
            // After a reboot all of them start. A failure is in the service's own status, until it runs.
            let networks = desired.networks.values().filter(|n| !n.deleting);
            let brought = networks.map(|network| {
                let ports = ports_of(&desired, &network.name).filter(|port| !port.deleting);
                self.0.services.settle(network, ports, self.broken_ports(&network.name))
            });
            futures_util::future::join_all(brought).await;
        }
        self.read_back().await
    }

    /// Looks once more at everything: what is ready must be so in the kernel's own words.
    async fn read_back(&self) -> Result<(), Fault> {
        let observed = self.0.kernel.observe(&Scope::Host).await?;
        let desired = self.read().desired.clone();
        for network in desired.networks.values().filter(|n| !n.deleting) {
            self.verify(network.resource(), desired.plan_network(network, &observed));
        }
        for port in desired.ports.values().filter(|p| !p.deleting) {
            self.verify(port.resource(), desired.plan_port(port, &observed));
        }
        Ok(())
    }

    fn verify(&self, resource: String, plan: Result<Vec<Action>, Fault>) {
        let ready = self.read().states.get(&resource) == Some(&State::Ready);
        let result = match plan {
            Ok(actions) => actions.first().map_or(Ok(()), |first| Err(not_converged(&resource, first))),
            Err(fault) => Err(fault),
        };
        if ready {
            self.publish(resource, result);
        }
    }

    /// Sets the state of an object, and tells of it where it gets worse or better.
    pub(super) fn publish(&self, resource: String, result: Result<(), Fault>) {
        let before = self.read().states.get(&resource).cloned();
        let state = match result {
            Ok(()) => State::Ready,
            Err(fault) => {
                tracing::warn!(resource, error = fault.chain(), "degraded");
                State::Degraded(fault.chain())
            }
        };
        match (&before, &state) {
            (Some(before), after) if before == after => {}
            (_, State::Degraded(error)) => self.tell(EventKind::Degraded, &resource, error.clone()),
            (Some(State::Degraded(error)), State::Ready) => {
                self.tell(EventKind::Recovered, &resource, format!("no longer so: {error}"));
            }
            _ => {}
        }
        self.set_state(resource, state);
    }

    fn warn_of_strays(&self, desired: &Desired, observed: &Observed) {
        let strays = desired.strays(observed);
        const ABOUT: &str = "netd's mark and no record";
        let mut records = self.write();
        let known: Vec<_> = records.warnings.extract_if(.., |warning| warning.contains(ABOUT)).collect();
        let recover = match self.any_broken() {
            true => "its record may be one that cannot be read, see there",
            false => "start netd with the --state-dir that made it, or put the backup of that folder back",
        };
        for name in strays {
            let warning = format!(
                "link `{name}` has {ABOUT}, and is left alone: {recover}; or remove it with `ip link delete {name}`"
            );
            if !known.contains(&warning) {
                tracing::error!(warning, "not ours to touch");
            }
            records.warnings.push(warning);
        }
    }

    fn any_broken(&self) -> bool {
        BROKEN.iter().any(|kind| self.0.store.has_broken(kind))
    }

    /// What the tables have at the start and no record explains belongs to records that cannot be read. Without such
    /// records, and links without any, it is nobody's.
    fn keep_unexplained(&self, observed: &Observed, writer: &super::Writer) {
        let broken = self.any_broken();
        let mut records = self.write();
        if !broken && records.desired.strays(observed).is_empty() {
            records.desired.kept = Elements::default();
        } else if writer.digest.is_none()
            && let Some(tables) = &observed.tables
            && tables.instance.as_ref() == Some(&records.desired.instance)
        {
            records.desired.kept = Elements::default();
            records.desired.kept = records.desired.unexplained(&tables.elements);
        }
    }

    async fn remove_deleted(&self, desired: &Desired, observed: &Observed) -> Result<(), Fault> {
        let mut networks = Vec::new();
        let mut ports = Vec::new();
        for port in desired.ports.values().filter(|p| p.deleting) {
            match self.remove_port_link(desired, port, observed).await {
                Ok(()) => ports.push(port.key()),
                Err(fault) => self.publish(port.resource(), Err(fault)),
            }
        }
        // A network outlasts its ports, or nobody could name them any more.
        let emptied =
            |network: &&Network| ports_of(desired, &network.name).all(|port| ports.contains(&port.key()));
        for network in desired.networks.values().filter(|n| n.deleting).filter(emptied) {
            let removed = async {
                self.0.services.remove(network).await?;
                self.bring_network(desired, network, observed).await
            };
            match removed.await {
                Ok(()) => networks.push(network.name.clone()),
                Err(fault) => self.publish(network.resource(), Err(fault)),
            }
        }
        self.forget(&networks, &ports).await
    }

    /// A forward is nothing but members of the sets: it is as the rules are.
    async fn settle_forwards(&self, desired: &Desired, rules: &Result<(), Fault>) -> Result<(), Fault> {
        for forward in desired.forwards.values().filter(|f| !f.deleting || rules.is_err()) {
            self.publish(forward.resource(), rules.clone());
        }
        let gone = desired.forwards.values().filter(|f| f.deleting && rules.is_ok());
        self.forget_forwards(&gone.map(Forward::key).collect::<Vec<_>>()).await
    }

    async fn remove_port_link(
        &self,
        desired: &Desired,
        port: &Port,
        observed: &Observed,
    ) -> Result<(), Fault> {
        self.apply(&desired.plan_port(port, observed)?, observed).await?;
        self.0.services.remove_port(port)
    }

    /// Writes tables and sysctls for `desired`.
    pub(super) async fn rules(
        &self,
        desired: &Desired,
        observed: &Observed,
        writer: &mut super::Writer,
    ) -> Result<(), Fault> {
        let mut plan = desired.plan_tables(observed, writer.digest.as_deref())?;
        let mut seen = None;
        for _ in 0..TRIES {
            if plan.is_empty() {
                break;
            }
            let tables = seen.as_ref().or(observed.tables.as_ref());
            self.note_flows(plan.iter().flat_map(|action| taken_out(action, tables))).await?;
            self.apply(&plan, observed).await?;
            let after = self.0.kernel.observe(&Scope::All).await?;
            self.learn_digest(&plan, &after, writer).await?;
            plan = desired.plan_tables(&after, writer.digest.as_deref())?;
            seen = after.tables;
        }
        if let Some(first) = plan.first() {
            return Err(not_converged("the packet rules", first));
        }
        self.end_flows().await;
        self.apply(&desired.plan_sysctls(observed), observed).await?;
        self.forget_sysctls(observed).await
    }

    /// What stands there right after our own tables were written for the first time is what our rules look like in
    /// the words of the nft that there is. What stands there after a later transaction may be somebody else's change,
    /// made in between, and must not be taken for ours.
    async fn learn_digest(
        &self,
        plan: &[Action],
        after: &Observed,
        writer: &mut super::Writer,
    ) -> Result<(), Fault> {
        if !plan.iter().any(|action| matches!(action, Action::ReplaceTables { .. })) {
            return Ok(());
        }
        let nft = self.0.kernel.nft_version().await?;
        if writer.digest.is_none() || writer.nft != nft {
            writer.digest = after.tables.as_ref().and_then(|tables| tables.digest.clone());
            writer.nft = nft;
        }
        Ok(())
    }

    pub(super) async fn bring_network(
        &self,
        desired: &Desired,
        network: &Network,
        observed: &Observed,
    ) -> Result<(), Fault> {
        self.apply(&desired.plan_network(network, observed)?, observed).await
    }

    async fn bring_port(&self, desired: &Desired, port: &Port, observed: &Observed) -> Result<(), Fault> {
        self.apply(&desired.plan_port(port, observed)?, observed).await
    }

    /// The records as they are now.
    pub(super) fn desired(&self) -> Desired {
        self.read().desired.clone()
    }

    pub(super) fn port_keys_of(&self, network: &Name) -> Vec<PortKey> {
        ports_of(&self.read().desired, network).map(Port::key).collect()
    }
}

/// The ports of one network, at a cost that does not grow with those of others.
pub(super) fn ports_of<'a>(
    desired: &'a Desired,
    network: &'a Name,
) -> impl Iterator<Item = &'a Port> + Clone {
    desired.ports_of(network)
}
