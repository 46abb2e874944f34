//! Gathers the facts: the only part of a diagnosis that looks at the host.

use super::{facts::Facts, iptables, nft, probe, rules::Family};
use crate::{
    kernel::{Inspect, Kernel, RouteQuery},
    reconciler::Reconciler,
};
use shared::fault::Fault;

/// Looks at everything that does not depend on the question.
///
/// # Errors
/// INTERNAL if links, sysctls or routes cannot be read. Rules that cannot be read are a finding.
pub async fn facts<K: Kernel + Inspect>(reconciler: &Reconciler<K>) -> Result<Facts, Fault> {
    let kernel = reconciler.kernel();
    let (observed, inspection, traffic) =
        tokio::join!(reconciler.observe(), kernel.inspect(), kernel.traffic());
    // What cannot be read of it is told by the other look at the rules.
    let seen =
        traffic.unwrap_or_default().taps.into_iter().map(|(tap, traffic)| (tap, traffic.seen)).collect();
    let (mut observed, inspection) = (observed?, inspection?);
    observed.sysctls.extend(inspection.sysctls);
    let (desired, states) = reconciler.records();
    let mut warnings = reconciler.warnings();
    let ruleset = match inspection.rules {
        Ok((json, text)) => {
            let mut ruleset = nft::ruleset(&json, &text);
            for save in &inspection.saves {
                let family = if save.v4 { Family::Ip } else { Family::Ip6 };
                match save.legacy {
                    true => iptables::add_legacy(&mut ruleset, family, &save.text),
                    false => iptables::fill(&mut ruleset, family, &save.text),
                }
            }
            Some(ruleset)
        }
        Err(fault) => {
            warnings.push(format!("the host's rules cannot be read: {}", fault.chain()));
            None
        }
    };
    Ok(Facts {
        desired,
        states,
        warnings,
        observed,
        ruleset,
        own_netfilter: inspection.netfilter.into_iter().filter(|(_, own)| own.contains(&true)).collect(),
        routes: Default::default(),
        missing: inspection.missing,
        seen,
    })
}

/// Asks the kernel for routes; what it was asked already it is not asked again.
///
/// # Errors
/// INTERNAL if it cannot be asked.
pub async fn ask<K: Inspect>(kernel: &K, facts: &mut Facts, queries: Vec<RouteQuery>) -> Result<(), Fault> {
    for query in queries {
        if facts.route(&query).is_some()
            || query.iif.as_ref().is_some_and(|iif| !facts.observed.links.contains_key(iif))
        {
            continue;
        }
        let answer = kernel.route(&query).await?;
        facts.routes.insert(query, answer);
    }
    Ok(())
}

/// All facts for `diagnose`.
///
/// # Errors
/// As `facts`.
pub async fn all<K: Kernel + Inspect>(reconciler: &Reconciler<K>) -> Result<Facts, Fault> {
    let mut facts = facts(reconciler).await?;
    // First the ways out, then the ways back.
    for _ in 0..2 {
        let queries = probe::queries(&facts);
        ask(reconciler.kernel(), &mut facts, queries).await?;
    }
    Ok(facts)
}
