//! What stands in our tables and no record explains, because the record cannot be read. Pure.
//!
//! It is kept as it is: a guest whose record is damaged goes on behind the rules that it had.

use super::Desired;
use crate::{
    kernel::{Element, Elements},
    model::{Network, Owner, Reservation},
};
use std::collections::BTreeSet;

impl Desired {
    /// The members of the sets that the records do not come to. What a profile allows is kept whole or not at all,
    /// since pieces of two decisions would overlap.
    #[must_use]
    pub fn unexplained(&self, elements: &Elements) -> Elements {
        let own = self.explained();
        let differ = |a: &Elements, b: &Elements| -> BTreeSet<u16> {
            a.0.difference(&b.0).filter_map(profile_of).collect()
        };
        let profiles = &differ(elements, &own) | &differ(&own, elements);
        let kept = |element: &&Element| {
            !own.0.contains(element) || profile_of(element).is_some_and(|profile| profiles.contains(&profile))
        };
        Elements(elements.0.iter().filter(kept).cloned().collect())
    }

    /// Members that the records come to, with those that are kept. Of what both know, the kept is in force.
    pub(super) fn all_elements(&self) -> Elements {
        let mut elements = self.explained();
        if !self.kept.0.is_empty() {
            let profiles: BTreeSet<u16> = self.kept.0.iter().filter_map(profile_of).collect();
            elements
                .0
                .retain(|element| profile_of(element).is_none_or(|profile| !profiles.contains(&profile)));
            elements.0.extend(self.kept.0.iter().cloned());
        }
        elements
    }

    /// Numbers of profiles that are in use without a record.
    pub(super) fn kept_profiles(&self) -> impl Iterator<Item = u16> {
        self.kept.0.iter().filter_map(|element| match element {
            Element::TapProfile(_, profile) | Element::AddressProfile(_, _, profile) => Some(*profile),
            other => profile_of(other),
        })
    }

    /// Addresses of a network's guests whose ports have no record: nobody else may get them.
    #[must_use]
    pub fn kept_addresses(&self, network: &Network) -> Vec<Reservation> {
        let mut kept = Vec::new();
        for element in &self.kept.0 {
            let (tap, ipv4, ipv6) = match element {
                Element::TapAddress4(tap, _, address) => (tap, Some(*address), None),
                Element::TapAddress6(tap, address) => (tap, None, Some(*address)),
                _ => continue,
            };
            // As a port's reservation, of a name that no port has.
            let Ok(name) = format!("kept-{}", tap.as_str()).parse() else { continue };
            let order = i64::MAX;
            kept.push(Reservation {
                network: network.name.clone(),
                name,
                owner: Some(Owner::NOBODY),
                mac: None,
                ipv4,
                ipv6,
                extra: BTreeSet::new(),
                hostname: None,
                order,
            });
        }
        kept
    }
}

fn profile_of(element: &Element) -> Option<u16> {
    match element {
        Element::Allow(_, allow) => Some(allow.profile),
        _ => None,
    }
}
