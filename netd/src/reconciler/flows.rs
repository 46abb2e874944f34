//! Flows that former forwards translate: recorded before the rules change, since nobody could tell them afterwards, and
//! ended after it.

use super::Reconciler;
use crate::{
    kernel::{Action, Element, Elements, Kernel, Tables},
    model::Forwarding,
    plan::Desired,
};
use serde::{Deserialize, Serialize};
use shared::{fault::Fault, store::Op};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

pub(super) const FLOWS: &str = "flows";
/// The one record of that kind.
const ENDING: &str = "ending";

/// Former forwards whose flows may go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    ipv4: BTreeSet<Forwarding<Ipv4Addr>>,
    ipv6: BTreeSet<Forwarding<Ipv6Addr>>,
}

impl Ending {
    /// Those among these members.
    fn of<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Self {
        let mut ending = Self::default();
        for element in elements {
            match element {
                Element::Forward4(forwarding) => drop(ending.ipv4.insert(forwarding.clone())),
                Element::Forward6(forwarding) => drop(ending.ipv6.insert(forwarding.clone())),
                _ => {}
            }
        }
        ending
    }

    /// All of several records.
    pub(super) fn all(records: impl Iterator<Item = Self>) -> Self {
        records.fold(Self::default(), |mut all, one| {
            all.ipv4.extend(one.ipv4);
            all.ipv6.extend(one.ipv6);
            all
        })
    }

    fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// As members of the sets, without those that are there again.
    fn without(&self, there: &BTreeSet<Element>) -> Elements {
        let ipv4 = self.ipv4.iter().cloned().map(Element::Forward4);
        let ipv6 = self.ipv6.iter().cloned().map(Element::Forward6);
        Elements(ipv4.chain(ipv6).filter(|element| !there.contains(element)).collect())
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Records whose flows are to be ended once these members are gone. Costs nothing where no forward is among them.
    pub(super) async fn note_flows<'a>(
        &self,
        gone: impl IntoIterator<Item = &'a Element>,
    ) -> Result<(), Fault> {
        let gone = Ending::of(gone);
        if gone.is_empty() {
            return Ok(());
        }
        let all = Ending::all([self.read().ending.clone(), gone].into_iter());
        self.0.store.commit(vec![Op::put(FLOWS, ENDING, &all)?]).await?;
        self.write().ending = all;
        Ok(())
    }

    /// Ends the flows that were noted. New ones follow the rules in any case: that old ones go on is worth a warning, and
    /// no failure of the change; the next look at everything tries again.
    pub(super) async fn end_flows(&self) {
        let noted = {
            let records = self.read();
            (!records.ending.is_empty()).then(|| records.ending.without(&forwards(&records.desired)))
        };
        let Some(gone) = noted else { return };
        let ended = async {
            if !gone.0.is_empty() {
                self.0.kernel.apply(&Action::EndFlows(gone)).await?;
            }
            self.0.store.commit(vec![Op::delete(FLOWS, ENDING)]).await
        };
        match ended.await {
            Ok(()) => self.write().ending = Ending::default(),
            Err(fault) => {
                tracing::warn!(error = fault.chain(), "flows go on as a former forward said");
            }
        }
    }
}

/// The members of all forwards in force.
fn forwards(desired: &Desired) -> BTreeSet<Element> {
    desired.networks.keys().flat_map(|name| desired.forward_elements(name).0).collect()
}

/// The members that an action takes out of the sets, of those that are there.
pub(super) fn taken_out<'a>(
    action: &'a Action,
    tables: Option<&'a Tables>,
) -> Box<dyn Iterator<Item = &'a Element> + Send + 'a> {
    let there = tables.into_iter().flat_map(|tables| &tables.elements.0);
    match action {
        Action::ChangeElements { remove, .. } => Box::new(remove.0.iter()),
        Action::ReplaceTables { elements, .. } => {
            Box::new(there.filter(|element| !elements.0.contains(*element)))
        }
        Action::RemoveTables => Box::new(there),
        _ => Box::new(std::iter::empty()),
    }
}
