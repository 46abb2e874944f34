//! Limits of a port's bandwidth. Toward the guest the tap itself sends at a rate. From the guest all goes through an
//! ifb that sends at a rate: it is there before anything is led through it, and goes after that has ended.

use super::{Desired, in_the_way};
use crate::{
    kernel::{Action, Link, LinkKind, Observed},
    model::Port,
};
use shared::fault::Fault;

impl Desired {
    /// What the ifb needs before the tap is led through it.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if a link of somebody else has its name.
    pub(super) fn raise_ifb(&self, port: &Port, observed: &Observed) -> Result<Vec<Action>, Fault> {
        let Some(rate) = port.spec.rate_out else { return Ok(Vec::new()) };
        let name = port.ifb();
        let alias = self.alias(&port.resource());
        let create = Action::CreateIfb { name: name.clone(), alias: alias.clone(), rate };
        let Some(link) = observed.links.get(&name) else { return Ok(vec![create]) };
        if !self.owns(link) {
            return Err(in_the_way(&port.resource(), &name));
        }
        if !whole(link) {
            return Ok(vec![Action::DeleteLink(name), create]);
        }
        let mut actions = Vec::new();
        if link.alias != alias {
            actions.push(Action::SetAlias(name.clone(), alias));
        }
        if !link.bucket.is_some_and(|bucket| bucket.carries(rate)) {
            actions.push(Action::SetRate(name.clone(), rate));
        }
        if !link.up {
            actions.push(Action::SetUp(name, true));
        }
        Ok(actions)
    }

    /// What a tap that is there needs of limits.
    pub(super) fn shape_tap(&self, port: &Port, tap: &Link, observed: &Observed) -> Vec<Action> {
        let mut actions = Vec::new();
        match port.spec.rate_in {
            Some(rate) if !tap.bucket.is_some_and(|bucket| bucket.carries(rate)) => {
                actions.push(Action::SetRate(port.tap.clone(), rate));
            }
            None if tap.bucket.is_some() => actions.push(Action::ClearRate(port.tap.clone())),
            _ => {}
        }
        // One that is made anew has another number.
        let ifb = observed.links.get(&port.ifb()).filter(|link| whole(link));
        if port.spec.rate_out.is_none() {
            if tap.redirect.is_some() {
                actions.push(Action::Unredirect(port.tap.clone()));
            }
        } else if ifb.is_none() || tap.redirect != ifb.map(|link| link.index) {
            actions.push(Action::Redirect { tap: port.tap.clone(), ifb: port.ifb() });
        }
        actions
    }

    /// What is left of an ifb that nothing is led through any more.
    pub(super) fn lower_ifb(&self, port: &Port, observed: &Observed) -> Option<Action> {
        let wanted = port.spec.rate_out.is_some() && !port.deleting;
        let ours = observed.links.get(&port.ifb()).is_some_and(|link| self.owns(link));
        (ours && !wanted).then(|| Action::DeleteLink(port.ifb()))
    }
}

/// Whether it need not be made anew, as one that netd was making when it died.
fn whole(link: &Link) -> bool {
    link.kind == LinkKind::Ifb && (link.up || !link.alias.is_empty())
}
