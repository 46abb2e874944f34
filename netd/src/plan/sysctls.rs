//! Host-wide switches: forwarding, and what the kernel ties to it. Pure.

use super::Desired;
use crate::{
    kernel::{Action, Link, Observed},
    model::IfName,
};
use std::collections::BTreeMap;

/// net.ipv4.ip_forward.
pub const FORWARD4: &str = "net/ipv4/ip_forward";
/// net.ipv4.conf.all.accept_redirects: the kernel changes it with each change of `FORWARD4`
/// (net/ipv4/devinet.c, inet_forward_change).
pub const ACCEPT_REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";
/// net.ipv6.conf.all.forwarding.
pub const FORWARD6: &str = "net/ipv6/conf/all/forwarding";
/// Whether frames between two ports of a bridge pass the host's IP rules (br_netfilter).
pub const BRIDGE_NF: &str = "net/bridge/bridge-nf-call-iptables";
/// Route protocol of router advertisements (RTPROT_RA).
const RTPROT_RA: u8 = 9;

/// Key of a link's accept_ra.
#[must_use]
pub fn accept_ra(link: &IfName) -> String {
    format!("net/ipv6/conf/{link}/accept_ra")
}

fn is(action: &Action, key: &str) -> bool {
    matches!(action, Action::SetSysctl { key: set, .. } if set == key)
}

impl Desired {
    /// Whether a router may speak to the host by this link: any but our own networks', and the bridge of a NIC
    /// that was taken over.
    fn may_have_router(&self, name: &IfName, link: &Link) -> bool {
        !self.owns(link) || self.networks.values().any(|n| n.takeover.is_some() && n.bridge == *name)
    }

    /// Host-wide sysctls that the networks need, by key.
    #[must_use]
    pub fn wanted_sysctls(&self, observed: &Observed) -> BTreeMap<String, &'static str> {
        let gateways = || self.networks.values().filter(|n| n.spec.mode.has_gateway() && !n.deleting);
        let mut wanted = BTreeMap::new();
        if gateways().any(|n| n.ipv4.is_some()) {
            wanted.insert(FORWARD4.to_owned(), "1");
            wanted.insert(ACCEPT_REDIRECTS.to_owned(), "0");
        }
        if gateways().any(|n| n.ipv6.is_some()) {
            wanted.insert(FORWARD6.to_owned(), "1");
            // A forwarding host ignores router advertisements unless told otherwise: keep an uplink that lives on them.
            for (name, link) in &observed.links {
                let key = accept_ra(name);
                let listens = observed.sysctls.get(&key).is_some_and(|v| v == "1")
                    && link.routes.iter().any(|r| r.protocol == RTPROT_RA);
                // Once it was told, it stays so: a router that is away for a while is to be heard again.
                if self.may_have_router(name, link) && (listens || self.saved.contains_key(&key)) {
                    wanted.insert(key, "2");
                }
            }
        }
        wanted
    }

    /// Forwarding while a network needs it, and back to what it was afterwards, unless somebody else has changed
    /// it since.
    #[must_use]
    pub fn plan_sysctls(&self, observed: &Observed) -> Vec<Action> {
        let wanted = self.wanted_sysctls(observed);
        let is_now = |key: &String, value: &str| observed.sysctls.get(key).is_some_and(|now| now == value);
        let back = self
            .saved
            .iter()
            .filter(|(key, saved)| !self.unreadable && !wanted.contains_key(*key) && is_now(key, &saved.ours))
            .map(|(key, saved)| Action::SetSysctl { key: key.clone(), value: saved.before.clone() });
        let mut back: Vec<_> = back.collect();
        // Switching forwarding off makes the kernel switch redirects on: they are put back after it.
        back.sort_by_key(|action| is(action, ACCEPT_REDIRECTS));
        // An uplink has to keep its router before forwarding makes it deaf.
        let forwards = wanted.get(FORWARD4).is_some_and(|on| !is_now(&FORWARD4.to_owned(), on));
        let (forwarding, before): (Vec<_>, Vec<_>) = wanted
            .iter()
            .filter(|(key, _)| observed.sysctls.contains_key(*key))
            // Written even if it stands there, so that what it was is remembered.
            .filter(|(key, value)| !is_now(key, value) || forwards && *key == ACCEPT_REDIRECTS)
            .map(|(key, value)| Action::SetSysctl { key: key.clone(), value: (*value).to_owned() })
            .partition(|action| is(action, FORWARD4) || is(action, FORWARD6));
        back.into_iter().chain(before).chain(forwarding).collect()
    }
}
