//! Creating, changing and deleting groups.

use super::{Reconciler, Writer, check_generation, events, not_converged};
use crate::{
    kernel::{Element, Kernel, Scope},
    model::{Group, GroupSpec, Port, Rule},
    plan::{Desired, check_allows, group_not_found},
};
use shared::{
    events::{EventKind, News},
    fault::{Fault, Kind},
    name::{Name, printable},
    store::Op,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A group that a client asks for.
#[derive(Clone, Debug)]
pub struct NewGroup {
    /// Its name.
    pub name: Name,
    /// What is asked of it.
    pub spec: GroupSpec,
    /// The client's own.
    pub labels: BTreeMap<String, String>,
}

/// What is to be changed of a group; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    /// Only if this is the group's generation.
    pub generation: Option<i64>,
    /// The client's own.
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether what no rule speaks of is kept from the guest.
    pub deny_in: Option<bool>,
    /// Whether the guest may not send what no rule speaks of.
    pub deny_out: Option<bool>,
    /// In place of all that there were.
    pub rules: Option<Vec<Rule>>,
}

/// A group as clients see it.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// Its record.
    pub group: Group,
    /// Number of ports that are in it.
    pub ports: usize,
    /// Other groups with a rule that names it.
    pub referring: Vec<Name>,
}

impl<K: Kernel> Reconciler<K> {
    /// One group.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub fn group(&self, name: &Name) -> Result<GroupView, Fault> {
        let records = self.read();
        let group = records
            .desired
            .groups
            .get(name)
            .ok_or_else(|| self.missing(super::GROUP, name.as_str(), group_not_found(name)))?;
        Ok(view(&records.desired, group))
    }

    /// Groups in the order of their names, at most `most`, after `after`.
    #[must_use]
    pub fn groups(&self, after: Option<&Name>, most: usize) -> Vec<GroupView> {
        let desired = &self.read().desired;
        let wanted = desired.groups.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        wanted.take(most).map(|(_, group)| view(desired, group)).collect()
    }

    /// Creates a group, or returns the existing one of that spec.
    ///
    /// # Errors
    /// Why it cannot be; nothing is left behind.
    pub async fn create_group(&self, new: NewGroup) -> Result<GroupView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot create group `{}`", new.name);
            this.create_group_locked(new).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    /// No port can be in a group that is not there yet, so the kernel has nothing to change.
    async fn create_group_locked(&self, new: NewGroup) -> Result<GroupView, Fault> {
        let _writer = self.lock().await;
        if let Ok(existing) = self.group(&new.name) {
            return same_or_taken(existing, &new);
        }
        let now = Timestamp::now();
        let group = Group {
            name: new.name,
            uid: Uuid::new_v4(),
            generation: 1,
            created: now,
            updated: now,
            labels: new.labels,
            deny_in: new.spec.deny_in,
            deny_out: new.spec.deny_out,
            rules: with_ids(new.spec.rules, &[])?,
        };
        check_remotes(&self.read().desired, &group)?;
        self.put_group(&group).await?;
        self.group(&group.name)
    }

    /// Changes a group, for all ports that are in it.
    ///
    /// # Errors
    /// NOT_FOUND; ABORTED if the generation is another; why the change cannot be. The group is then as it was.
    pub async fn update_group(&self, name: Name, change: GroupChange) -> Result<GroupView, Fault> {
        self.change(move |this| async move {
            let context = format!("cannot change group `{name}`");
            this.update_group_locked(&name, change).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    async fn update_group_locked(&self, name: &Name, change: GroupChange) -> Result<GroupView, Fault> {
        let mut writer = self.lock().await;
        let old = self.group(name)?.group;
        check_generation("group", change.generation, old.generation)?;
        let rules = match change.rules {
            Some(rules) => with_ids(rules, &old.rules)?,
            None => old.rules.clone(),
        };
        let mut new = Group {
            labels: change.labels.unwrap_or_else(|| old.labels.clone()),
            deny_in: change.deny_in.unwrap_or(old.deny_in),
            deny_out: change.deny_out.unwrap_or(old.deny_out),
            rules,
            ..old.clone()
        };
        if new == old {
            return self.group(name);
        }
        new.generation += 1;
        new.updated = Timestamp::now();
        let (before, after) = {
            let records = self.read();
            check_remotes(&records.desired, &new)?;
            let mut next = records.desired.clone();
            next.groups.insert(name.clone(), new.clone());
            let after = elements(&next, name);
            check_allows(&after)?;
            (elements(&records.desired, name), after)
        };
        self.put_group(&new).await?;
        if let Err(fault) = self.turn_group(&before, &after, &mut writer).await {
            self.put_group(&old).await?;
            if let Err(undo) = self.turn_group(&after, &before, &mut writer).await {
                tracing::error!(group = old.resource(), error = undo.chain(), "cannot undo a failed change");
            }
            return Err(fault);
        }
        self.group(name)
    }

    /// Brings the kernel from one record of a group to another, in one transaction.
    async fn turn_group(
        &self,
        before: &BTreeSet<Element>,
        after: &BTreeSet<Element>,
        writer: &mut Writer,
    ) -> Result<(), Fault> {
        let Err(refusal) = self.change_members(before, after).await else { return Ok(()) };
        // Somebody may have removed our tables: put everything right, this group as well.
        self.converge_locked(writer).await?;
        self.rules_in_force(writer).await.map_err(|fault| fault.cause(&refusal))
    }

    /// Whether the kernel has the rules as recorded: to converge is no error where one object fails.
    pub(super) async fn rules_in_force(&self, writer: &Writer) -> Result<(), Fault> {
        let observed = self.0.kernel.observe(&Scope::All).await?;
        match self.desired().plan_tables(&observed, writer.digest.as_deref())?.first() {
            None => Ok(()),
            Some(first) => Err(not_converged("the packet rules", first)),
        }
    }

    /// Deletes a group.
    ///
    /// # Errors
    /// NOT_FOUND; FAILED_PRECONDITION while a port is in it or a rule names it.
    pub async fn delete_group(&self, name: Name) -> Result<(), Fault> {
        self.change(move |this| async move {
            let context = format!("cannot delete group `{name}`");
            this.delete_group_locked(&name).await.map_err(|fault| fault.context(context))
        })
        .await
    }

    /// What nobody uses is nowhere in the kernel.
    async fn delete_group_locked(&self, name: &Name) -> Result<(), Fault> {
        let _writer = self.lock().await;
        let GroupView { referring, ports, .. } = self.group(name)?;
        let in_use = |message: String, hint: String| {
            Err(Fault::new(Kind::FailedPrecondition, "GROUP_IN_USE", message).hint(hint))
        };
        let user = self.read().desired.ports.values().find(|p| p.spec.groups.contains(name)).map(Port::key);
        if let Some((network, port)) = user {
            return in_use(
                format!("{ports} port(s) are in it, among them `{port}` of network `{network}`"),
                format!(
                    "take it out: `kvmctl port update {network} {port} --no-group`, or with its other groups as --group"
                ),
            );
        }
        if let Some(other) = referring.first() {
            return in_use(
                format!("a rule of group `{other}` names it"),
                format!("`kvmctl group show {other}` shows that rule"),
            );
        }
        let news = News::of(EventKind::Deleted, format!("groups/{name}"), "");
        let op = Op::delete(super::GROUP, name.to_string());
        let _told = self.0.store.commit_telling(vec![op], vec![news]).await?;
        self.write().desired.groups.remove(name);
        Ok(())
    }

    async fn put_group(&self, group: &Group) -> Result<(), Fault> {
        let news = {
            let records = self.read();
            events::recorded(records.desired.groups.get(&group.name), group)
        };
        let op = Op::put(super::GROUP, group.name.to_string(), group)?;
        let _told = self.0.store.commit_telling(vec![op], news).await?;
        self.write().desired.groups.insert(group.name.clone(), group.clone());
        Ok(())
    }
}

/// All members of the sets that a change of the group may touch.
fn elements(desired: &Desired, group: &Name) -> BTreeSet<Element> {
    let ports = desired.ports.values().filter(|port| port.spec.groups.contains(group));
    ports.flat_map(|port| desired.port_elements(port).0).chain(desired.allows()).collect()
}

fn view(desired: &Desired, group: &Group) -> GroupView {
    let others = desired.groups.values().filter(|other| other.name != group.name);
    let referring = others.filter(|other| other.remotes().any(|name| *name == group.name));
    GroupView {
        ports: desired.ports.values().filter(|port| port.spec.groups.contains(&group.name)).count(),
        referring: referring.map(|other| other.name.clone()).collect(),
        group: group.clone(),
    }
}

/// Every group that a rule names is there; it may be the group itself.
fn check_remotes(desired: &Desired, group: &Group) -> Result<(), Fault> {
    let missing = group.remotes().find(|name| **name != group.name && !desired.groups.contains_key(*name));
    missing
        .map_or(Ok(()), |name| Err(group_not_found(name).context("a rule names a group that is not there")))
}

/// The rules with an id each: that which the client gave, if the group has it, or a new one.
fn with_ids(rules: Vec<Rule>, old: &[Rule]) -> Result<Vec<Rule>, Fault> {
    let mut taken: BTreeSet<String> = old.iter().map(|rule| rule.id.clone()).collect();
    let mut given = BTreeSet::new();
    let mut result = Vec::new();
    for rule in rules {
        let id = if rule.id.is_empty() {
            let new = || format!("r-{:08x}", Uuid::new_v4().as_fields().0);
            let mut id = new();
            while taken.contains(&id) {
                id = new();
            }
            id
        } else {
            let known = old.iter().any(|old| old.id == rule.id);
            if !known || !given.insert(rule.id.clone()) {
                return Err(Fault::new(
                    Kind::InvalidArgument,
                    "INVALID_RULE_ID",
                    format!("the group has no rule `{}`, or it is given twice", printable(&rule.id)),
                )
                .hint("leave the id of a new rule empty: netd gives one"));
            }
            rule.id
        };
        taken.insert(id.clone());
        result.push(Rule { id, ..rule });
    }
    Ok(result)
}

fn same_or_taken(existing: GroupView, new: &NewGroup) -> Result<GroupView, Fault> {
    let group = &existing.group;
    let same = (group.deny_in, group.deny_out) == (new.spec.deny_in, new.spec.deny_out)
        && group.rules.iter().map(|rule| &rule.allows).eq(new.spec.rules.iter().map(|rule| &rule.allows))
        && group.labels == new.labels;
    if same {
        return Ok(existing);
    }
    Err(Fault::new(Kind::AlreadyExists, "GROUP_EXISTS", "there is one of that name with another spec")
        .hint(format!("look at it with `kvmctl group show {}`, or choose another name", new.name)))
}
