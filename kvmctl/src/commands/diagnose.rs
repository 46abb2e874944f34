//! `kvmctl doctor` and `kvmctl why`.

use crate::{
    cli::{Why, WhyProtocol},
    client::{Clients, DEADLINE, within},
    output::{
        Printer, Stop,
        diagnose::{Explanation, Finding},
    },
    parse::Peer,
    resource,
};
use proto::netd::v1::{self as wire, PacketProtocol};
use std::time::Duration;

/// Shows what is wrong on the host.
///
/// # Errors
/// What netd said; `Stop::Negative` if there is an error among it.
pub async fn doctor(clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let mut client = clients.diagnose()?;
    let call = client.diagnose(within(DEADLINE, wire::DiagnoseRequest {}));
    let answer = clients.netd.call(DEADLINE, call).await?;
    let findings: Vec<Finding> = answer.findings.into_iter().map(Finding::from).collect();
    printer.report(&findings, "nothing is in the way of guests' packets")?;
    if findings.iter().any(Finding::is_error) { Err(Stop::Negative) } else { Ok(()) }
}

/// Shows one packet's way.
///
/// # Errors
/// What netd said; `Stop::Negative` if the packet would be dropped.
pub async fn why(why: Why, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let (peer, from_peer) = match (why.destination, why.from) {
        (Some(peer), _) => (peer, false),
        (None, Some(peer)) => (peer, true),
        // clap asks for one of them.
        (None, None) => return Ok(()),
    };
    let Peer { host, port } = peer;
    let protocol = match (why.protocol, port) {
        (Some(WhyProtocol::Tcp), _) | (None, Some(_)) => PacketProtocol::Tcp,
        (Some(WhyProtocol::Udp), _) => PacketProtocol::Udp,
        (Some(WhyProtocol::Icmp), _) | (None, None) => PacketProtocol::Icmp,
    };
    let trace_seconds = why.trace.unwrap_or_default();
    let request = wire::ExplainRequest {
        vm: resource::vm(&why.vm),
        network: why.network.as_ref().map(resource::network).unwrap_or_default(),
        peer: host.map_or_else(|name| resource::vm(&name), |address| address.to_string()),
        from_peer,
        protocol: protocol.into(),
        port: port.map(u32::from).unwrap_or_default(),
        source: why.source.map(|source| source.to_string()).unwrap_or_default(),
        trace_seconds,
    };
    let deadline = DEADLINE + Duration::from_secs(trace_seconds.into());
    let mut client = clients.diagnose()?;
    let call = client.explain(within(deadline, request));
    let answer = clients.netd.call(deadline, call).await?;
    let explanation = Explanation::new(&why.vm, protocol, port, answer);
    printer.show(&explanation)?;
    if explanation.is_drop() { Err(Stop::Negative) } else { Ok(()) }
}
