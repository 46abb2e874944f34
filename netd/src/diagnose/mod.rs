//! Why packets of guests do not arrive: `kvmctl doctor` for all networks, `kvmctl why` for one packet.
//!
//! `survey` looks, all the rest is pure: `nft` and `iptables` read everybody's rules, `eval` walks them with packets
//! that are thought of, three-valued, `probe` and `health` are the doctor's, `why` tells one packet's way.

pub mod eval;
pub mod facts;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod health;
pub mod iptables;
pub mod nft;
pub mod packet;
pub mod probe;
pub mod program;
pub mod rules;
pub mod survey;
#[cfg(test)]
mod test;
pub mod traced;
pub mod why;

use program::Program;
use rules::Place;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Traffic that a network promises does not flow.
    Error,
    /// Something may be in the way, or is not as it should be.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// For programs, UPPER_SNAKE_CASE.
    pub reason: &'static str,
    /// What is wrong.
    pub what: String,
    /// Where it is: a rule, a sysctl, an interface, a network.
    pub location: String,
    /// Who most likely made it so, where that can be told.
    pub program: Option<Program>,
    /// Lines to paste into a root shell; empty if there are none.
    pub fix: String,
    /// Names of the networks that it hits.
    pub networks: Vec<String>,
    /// The rule or policy, if it is one.
    pub place: Option<Place>,
}

/// All findings, errors first.
#[must_use]
pub fn diagnose(facts: &facts::Facts) -> Vec<Finding> {
    let mut findings = health::findings(facts);
    findings.extend(probe::obstacles(facts));
    findings.sort_by_key(|finding| finding.severity);
    findings
}
