//! Watches real packets of one flow on their way through the rules, by nft's own tracing.
//!
//! The rule that marks the packets is in tables of its own, which carry the instance as ours do, and go away with the
//! trace, or at netd's next start.

use super::{nft, program};
use crate::model::IfName;
use shared::fault::{Fault, Kind};
use std::{fmt::Write as _, net::IpAddr, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    time::{Instant, timeout_at},
};

/// Name of the tables.
pub const TRACE_TABLE: &str = "kvmctl_trace";
/// Their families: frames on bridges, and IP packets.
const FAMILIES: [&str; 2] = ["bridge", "inet"];
/// Most lines that are read: a flood of packets ends the trace.
const MOST_LINES: usize = 5_000;

/// Packets to watch.
#[derive(Clone, Debug)]
pub struct TraceFlow {
    /// By which tap they come; `None`: from elsewhere.
    pub tap: Option<IfName>,
    /// Who sends them.
    pub source: IpAddr,
    /// Whom they are for; of the same version.
    pub destination: IpAddr,
    /// `tcp`, `udp`, `icmp` or `icmpv6`.
    pub protocol: &'static str,
    /// Destination port of TCP or UDP.
    pub port: Option<u16>,
}

/// Watches for `limit` and returns what `nft monitor trace` printed, by lines.
///
/// # Errors
/// FAILED_PRECONDITION if tables of that name are somebody else's; INTERNAL with nft's own words.
pub async fn watch(flow: &TraceFlow, instance: &str, limit: Duration) -> Result<Vec<String>, Fault> {
    sweep(instance).await?;
    for family in FAMILIES {
        if nft::list(family, TRACE_TABLE).await?.is_some() {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "FOREIGN_TABLE",
                format!("there is a table `{family} {TRACE_TABLE}` that is not netd's"),
            )
            .hint(format!("remove it with `nft delete table {family} {TRACE_TABLE}`")));
        }
    }
    let mut monitor = program::command("nft", &["monitor", "trace"]).spawn().map_err(|e| {
        Fault::new(Kind::FailedPrecondition, "PROGRAM", "cannot run nft").cause(&e).hint("install nftables")
    })?;
    let begun = match monitor.stdout.take() {
        Some(stdout) => {
            nft::apply_text(&tables(flow, instance)).await.map(|()| BufReader::new(stdout).lines())
        }
        None => Err(Fault::internal("nft has no output")),
    };
    let lines = match begun {
        Ok(lines) => collect(lines, Instant::now() + limit).await,
        Err(fault) => {
            end(&mut monitor).await;
            return Err(fault);
        }
    };
    end(&mut monitor).await;
    sweep(instance).await?;
    Ok(lines)
}

/// Removes tables of an earlier trace of this instance.
///
/// # Errors
/// INTERNAL with nft's own words.
pub async fn sweep(instance: &str) -> Result<(), Fault> {
    for family in FAMILIES {
        let listing = nft::list(family, TRACE_TABLE).await?;
        if listing.is_some_and(|listing| listing.to_string().contains(&format!("\"{}\"", mark(instance)))) {
            nft::apply_text(&format!("delete table {family} {TRACE_TABLE}\n")).await?;
        }
    }
    Ok(())
}

fn mark(instance: &str) -> String {
    format!("{}{instance}", super::ruleset::MARK)
}

async fn end(monitor: &mut Child) {
    // It may have ended by itself.
    let _ = monitor.start_kill();
    let _ = monitor.wait().await;
}

async fn collect(mut from: Lines<BufReader<ChildStdout>>, end: Instant) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < MOST_LINES {
        match timeout_at(end, from.next_line()).await {
            Ok(Ok(Some(line))) => lines.push(line),
            // It is over, or nft has ended.
            _ => break,
        }
    }
    lines
}

fn tables(flow: &TraceFlow, instance: &str) -> String {
    let ip = if flow.destination.is_ipv4() { "ip" } else { "ip6" };
    let TraceFlow { source, destination, protocol, .. } = flow;
    let mut script = String::new();
    for family in FAMILIES {
        let tap = match &flow.tap {
            Some(tap) if family == "bridge" => format!("iifname \"{tap}\" "),
            _ => String::new(),
        };
        let port = flow.port.map(|port| format!("{protocol} dport {port} ")).unwrap_or_default();
        // Writing into a String cannot fail.
        let _ = writeln!(
            script,
            "add table {family} {TRACE_TABLE}
             add chain {family} {TRACE_TABLE} {}
             add chain {family} {TRACE_TABLE} prerouting {{ type filter hook prerouting priority -500; }}
             add rule {family} {TRACE_TABLE} prerouting {tap}{ip} saddr {source} {ip} daddr {destination} \
             meta l4proto {protocol} {port}meta nftrace set 1",
            mark(instance)
        );
    }
    script
}
