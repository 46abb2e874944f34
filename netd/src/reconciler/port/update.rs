//! Changing a port while a guest is on it.

use super::{PortView, may_change, scope};
use crate::{
    alloc,
    kernel::Kernel,
    model::{Network, Port, PortKey, PortSpec, Rate},
    plan::check_allows,
    reconciler::{Reconciler, Writer, check_generation, converge::ports_of},
};
use shared::{
    access::Caller,
    fault::{Fault, Kind},
    name::Name,
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What is to be changed of a port; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct PortChange {
    /// Only if this is the port's generation.
    pub generation: Option<i64>,
    /// The client's own.
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether the guest's frames are checked.
    pub filter: Option<bool>,
    /// More addresses that the guest may use.
    pub extra: Option<BTreeSet<IpAddr>>,
    /// The guest's name; inner `None`: the port's.
    pub hostname: Option<Option<Name>>,
    /// Kept apart from other isolated ports.
    pub isolated: Option<bool>,
    /// Toward the guest; inner `None`: not limited.
    pub rate_in: Option<Option<Rate>>,
    /// From the guest; inner `None`: not limited.
    pub rate_out: Option<Option<Rate>>,
    /// The groups it is in.
    pub groups: Option<BTreeSet<Name>>,
    /// Who asks; `None`: netd itself.
    pub by: Option<Caller>,
}

impl PortChange {
    fn spec(&self, old: &PortSpec) -> PortSpec {
        PortSpec {
            filter: self.filter.unwrap_or(old.filter),
            extra: self.extra.clone().unwrap_or_else(|| old.extra.clone()),
            hostname: self.hostname.clone().unwrap_or_else(|| old.hostname.clone()),
            isolated: self.isolated.unwrap_or(old.isolated),
            rate_in: self.rate_in.unwrap_or(old.rate_in),
            rate_out: self.rate_out.unwrap_or(old.rate_out),
            groups: self.groups.clone().unwrap_or_else(|| old.groups.clone()),
            ..old.clone()
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Changes a port.
    ///
    /// # Errors
    /// NOT_FOUND; PERMISSION_DENIED unless `caller` is root or owns it; ABORTED if the generation is another; why the
    /// change cannot be. The port is then as it was.
    pub async fn update_port(
        &self,
        key: PortKey,
        change: PortChange,
        caller: u32,
    ) -> Result<PortView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot change port `{}` of network `{}`", key.1, key.0);
            this.update_port_locked(&key, &change, caller).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn update_port_locked(
        &self,
        key: &PortKey,
        change: &PortChange,
        caller: u32,
    ) -> Result<PortView, Fault> {
        let mut writer = self.lock().await;
        let old = self.port(&key.0, &key.1)?.port;
        may_change(&old, caller)?;
        if old.deleting {
            return Err(Fault::new(Kind::Aborted, "DELETING", "the port is being deleted"));
        }
        check_generation("port", change.generation, old.generation)?;
        let spec = change.spec(&old.spec);
        let labels = change.labels.clone().unwrap_or_else(|| old.labels.clone());
        if spec == old.spec && labels == old.labels {
            return self.port(&key.0, &key.1);
        }
        let network = self.network(&key.0)?.network;
        self.check_change(&old, &spec, &network, caller == 0)?;
        if let Some(by) = &change.by {
            by.must_be_granted_groups(&old.spec.groups, &spec.groups)?;
            self.check_quota(&by.rights.quota, &spec, (&old.owner(), key), Some(&old))?;
        }
        let profile = self.read().desired.profile(key, &spec)?;
        let new = Port {
            spec,
            labels,
            profile,
            generation: old.generation + 1,
            updated: Timestamp::now(),
            ..old.clone()
        };
        if profile.is_some() {
            check_allows(&self.read().desired.allows_with(key, Some(&new)))?;
        }
        self.put_port(&new).await?;
        if let Err(fault) = self.turn_port(&old, &new, &network, &mut writer).await {
            self.put_port(&old).await?;
            if let Err(undo) = self.turn_port(&new, &old, &network, &mut writer).await {
                tracing::error!(port = old.resource(), error = undo.chain(), "cannot undo a failed change");
                self.publish(old.resource(), Err(undo));
            }
            return Err(fault);
        }
        self.publish(new.resource(), Ok(()));
        self.port(&key.0, &key.1)
    }

    /// Whether another spec can be, with the addresses that the port has.
    fn check_change(
        &self,
        old: &Port,
        spec: &PortSpec,
        network: &Network,
        by_admin: bool,
    ) -> Result<(), Fault> {
        let records = self.read();
        let others = || ports_of(&records.desired, &old.network).filter(|port| port.name != old.name);
        alloc::check_names(&old.name, spec, others())?;
        let asked = PortSpec { ipv4: old.ipv4, ipv6: old.ipv6, ..spec.clone() };
        let asker = alloc::Asker {
            name: &old.name,
            mac: old.mac,
            owner: old.owner(),
            by_admin,
            has: old.addresses().collect(),
        };
        let kept = records.desired.kept_addresses(network);
        let reserved = records.desired.reservations_of(&network.name).chain(&kept);
        alloc::addresses(network, &asker, &asked, others(), reserved).map(drop)
    }

    /// Brings the kernel from one record of a port to another: the rules in one transaction, then the link.
    async fn turn_port(
        &self,
        old: &Port,
        new: &Port,
        network: &Network,
        writer: &mut Writer,
    ) -> Result<(), Fault> {
        let desired = self.around(&[old, new], network);
        let states = [old, new];
        let before = self.members(&desired, &states, Some(old));
        let after = self.members(&desired, &states, Some(new));
        if let Err(refusal) = self.change_members(&before, &after).await {
            // Somebody may have removed our tables: put everything right, this port as well.
            self.converge_locked(writer).await?;
            self.rules_in_force(writer).await.map_err(|fault| fault.cause(&refusal))?;
        }
        let observed = self.0.kernel.observe(&scope(new, network)).await?;
        self.apply(&desired.plan_port(new, &observed)?, &observed).await?;
        self.0.services.put_port(new)?;
        self.check_port(&desired, new, network).await
    }
}
