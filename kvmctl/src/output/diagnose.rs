//! What is wrong on the host, and one packet's way, as they are printed.

use super::{
    Object, last_part, set,
    text::{NOTHING_THERE, count, indented, or_dash},
    word,
};
use proto::netd::v1::{self as wire, PacketProtocol, PacketVerdict, Severity};
use serde::Serialize;
use shared::name::Name;
use std::fmt::Write as _;

/// A rule, or the policy of a chain.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// ip, ip6, inet, bridge or netdev.
    pub family: String,
    /// The table's name.
    pub table: String,
    /// The chain that the rule is in.
    pub chain: String,
    /// nft's number of it; null for a policy, and for old iptables.
    pub handle: Option<u64>,
    /// In the words of nft or iptables.
    pub text: String,
    /// Whether it is the policy of the chain.
    pub policy: bool,
    /// The chain by which packets come there.
    pub base_chain: String,
    /// forward, input, ...
    pub hook: String,
    /// Of the base chain.
    pub priority: i32,
    /// Whether it is the kernel's old iptables.
    pub legacy: bool,
}

impl From<wire::RulePlace> for Place {
    fn from(place: wire::RulePlace) -> Self {
        Self {
            family: place.family,
            table: place.table,
            chain: place.chain,
            handle: (place.handle != 0).then_some(place.handle),
            text: place.text,
            policy: place.policy,
            base_chain: place.base_chain,
            hook: place.hook,
            priority: place.priority,
            legacy: place.legacy,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// error or warning.
    pub severity: String,
    /// RULE_DROPS, NO_DEFAULT_ROUTE, ...
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Where it is.
    pub location: Option<String>,
    /// The rule or policy, if it is one.
    pub place: Option<Place>,
    /// Who most likely made it so.
    pub program: Option<String>,
    /// Lines for a root shell.
    pub fix: Option<String>,
    /// Bare names of the networks that it hits.
    pub networks: Vec<String>,
}

impl Finding {
    /// Whether something does not work.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == "error"
    }
}

impl From<wire::Finding> for Finding {
    fn from(finding: wire::Finding) -> Self {
        let severity = Severity::try_from(finding.severity).ok().map(|s| s.as_str_name());
        Self {
            severity: word(severity, "SEVERITY_", "unknown"),
            reason: finding.reason,
            message: finding.message,
            location: set(finding.location),
            place: finding.place.map(Place::from),
            program: set(finding.program),
            fix: set(finding.fix),
            networks: finding.networks.iter().map(|name| last_part(name)).collect(),
        }
    }
}

impl Object for Finding {
    const COLUMNS: &'static [&'static str] = &["SEVERITY", "REASON", "PROGRAM", "WHERE"];

    fn name(&self) -> &str {
        &self.reason
    }

    fn row(&self) -> Vec<String> {
        let (program, location) = (self.program.as_deref(), self.location.as_deref());
        vec![self.severity.clone(), self.reason.clone(), or_dash(program), or_dash(location)]
    }

    fn sheet(&self) -> String {
        let mut out = format!("{}: {}", self.severity, indented(&self.message, 2));
        let mut line = |head: &str, value: Option<&str>| {
            if let Some(value) = value {
                // Writing into a String cannot fail.
                let _ = write!(out, "\n  {head}  {}", indented(value, 9));
            }
        };
        line("where", self.location.as_deref());
        line("who  ", self.program.as_deref());
        line("fix  ", self.fix.as_deref());
        out
    }

    fn summary(&self) -> String {
        self.row().join(", ")
    }
}

/// One step of a packet's way.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// port filter, forward, route, ...
    pub stage: String,
    /// pass, drop or unknown.
    pub verdict: String,
    /// Why.
    pub detail: String,
    /// The rule or policy that decides.
    pub place: Option<Place>,
    /// Who most likely made it.
    pub program: Option<String>,
    /// Lines for a root shell.
    pub fix: Option<String>,
}

/// What became of real packets.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// How many were seen.
    pub packet_count: u32,
    /// How often one was dropped.
    pub drop_count: u32,
    /// What decided, in nft's words.
    pub lines: Vec<String>,
}

/// One packet's way.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The name that was asked about.
    pub name: String,
    /// Bare name of the port.
    pub port: String,
    /// Bare name of its network.
    pub network: String,
    /// tcp, udp or icmp.
    pub protocol: String,
    /// Who sends first.
    pub source: String,
    /// Who is sent to.
    pub destination: String,
    /// The port that is sent to.
    pub destination_port: Option<u16>,
    /// pass, drop or unknown.
    pub verdict: String,
    /// To the first that ends it.
    pub steps: Vec<Step>,
    /// What a trace saw.
    pub trace: Option<Trace>,
}

fn verdict(value: i32) -> String {
    let name = PacketVerdict::try_from(value).ok().map(|v| v.as_str_name());
    word(name, "PACKET_VERDICT_", "unknown")
}

impl Explanation {
    /// netd's answer to a question about `name`.
    #[must_use]
    pub fn new(
        name: &Name,
        protocol: PacketProtocol,
        port: Option<u16>,
        answer: wire::ExplainResponse,
    ) -> Self {
        let steps = answer.steps.into_iter().map(|step| Step {
            stage: step.stage,
            verdict: verdict(step.verdict),
            detail: step.detail,
            place: step.place.map(Place::from),
            program: set(step.program),
            fix: set(step.fix),
        });
        Self {
            name: name.to_string(),
            port: last_part(&answer.port),
            network: answer.port.split('/').nth(1).unwrap_or_default().to_owned(),
            protocol: word(Some(protocol.as_str_name()), "PACKET_PROTOCOL_", "tcp"),
            source: answer.source,
            destination: answer.destination,
            destination_port: port,
            verdict: verdict(answer.verdict),
            steps: steps.collect(),
            trace: answer.trace.map(|trace| Trace {
                packet_count: trace.packet_count,
                drop_count: trace.drop_count,
                lines: trace.lines,
            }),
        }
    }

    /// Whether the packet would be dropped.
    #[must_use]
    pub fn is_drop(&self) -> bool {
        self.verdict == "drop"
    }

    fn conclusion(&self) -> String {
        let step = self.steps.iter().rev().find(|step| step.verdict == self.verdict);
        let by = step.and_then(|step| step.program.as_ref()).map(|p| format!(", most likely made by {p}"));
        match (self.verdict.as_str(), step) {
            ("drop", Some(step)) => format!("it would die at: {}{}", step.stage, by.unwrap_or_default()),
            ("pass", _) => "it would arrive, and so would the answer".to_owned(),
            _ => "nobody can tell from here: try --trace".to_owned(),
        }
    }
}

impl Object for Explanation {
    const COLUMNS: &'static [&'static str] = &["NAME", "NETWORK", "PORT", "VERDICT"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        vec![self.name.clone(), self.network.clone(), self.port.clone(), self.verdict.clone()]
    }

    fn sheet(&self) -> String {
        let port = self.destination_port.map(|port| format!(" port {port}")).unwrap_or_default();
        let mut out = format!(
            "{} from {} to {}{port}, {} on network {}\n",
            self.protocol, self.source, self.destination, self.port, self.network
        );
        let width = self.steps.iter().map(|step| step.stage.len()).max().unwrap_or_default();
        for step in &self.steps {
            // Writing into a String cannot fail.
            let _ = write!(
                out,
                "\n{:7}  {:width$}  {}",
                step.verdict,
                step.stage,
                indented(&step.detail, width + 11)
            );
        }
        let _ = write!(out, "\n\n{}", self.conclusion());
        for fix in self.steps.iter().filter_map(|step| step.fix.as_ref()) {
            let _ = write!(out, "\nfix: {}", indented(fix, 5));
        }
        if let Some(trace) = &self.trace {
            let seen = match trace.packet_count {
                0 => "no packet of that flow was seen: send some while it runs".to_owned(),
                seen => format!("{} seen, {} dropped by rules", count(seen, "packet"), trace.drop_count),
            };
            let _ = write!(out, "\n\ntrace: {seen}");
            for line in &trace.lines {
                let _ = write!(out, "\n  {}", indented(line, 4));
            }
        }
        out
    }

    fn summary(&self) -> String {
        let step = self.steps.last().map_or(NOTHING_THERE, |step| step.stage.as_str());
        format!("{}, {step}", self.verdict)
    }
}
