//! Questions and answers of a diagnosis.

use super::invalid;
use crate::diagnose::{
    Finding, Severity,
    packet::Protocol,
    rules::Place,
    traced::Traced,
    why::{self, Asked, Question, Step, StepVerdict},
};
use proto::netd::v1 as wire;
use shared::{
    fault::Fault,
    name::{Name, printable},
};
use std::{net::IpAddr, time::Duration};

/// Longest trace, seconds.
const LONGEST_TRACE: u32 = 60;

/// Checks a question; with the time to watch real packets, if any.
pub fn asked(request: wire::ExplainRequest) -> Result<(Asked, Option<Duration>), Fault> {
    let vm = Name::from_resource(&request.vm, "vms")?;
    let network = match request.network.as_str() {
        "" => None,
        network => Some(Name::from_resource(network, "networks")?),
    };
    let other = match request.peer.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) if request.peer.starts_with("vms/") => Err(Name::from_resource(&request.peer, "vms")?),
        Err(_) => return Err(no_address("the other end", &request.peer)),
    };
    let source = match request.source.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| no_address("the source", text))?.to_canonical()),
    };
    let protocol = match request.protocol() {
        wire::PacketProtocol::Unspecified | wire::PacketProtocol::Tcp => Protocol::Tcp,
        wire::PacketProtocol::Udp => Protocol::Udp,
        wire::PacketProtocol::Icmp => Protocol::Icmp,
    };
    let port = u16::try_from(request.port)
        .map_err(|_| invalid("INVALID_PORT", format!("{} is no port: 1 to 65535", request.port)))?;
    if request.trace_seconds > LONGEST_TRACE {
        let message = format!("a trace of {} s, and {LONGEST_TRACE} is the most", request.trace_seconds);
        return Err(invalid("INVALID_TRACE", message));
    }
    let trace = (request.trace_seconds > 0).then(|| Duration::from_secs(u64::from(request.trace_seconds)));
    let port = (port != 0 && protocol != Protocol::Icmp).then_some(port);
    let outward = !request.from_peer;
    Ok((Asked { vm, network, other, outward, protocol, port, source }, trace))
}

fn no_address(what: &str, text: &str) -> Fault {
    invalid("INVALID_ADDRESS", format!("{what}, `{}`, is no IP address", printable(text)))
        .hint("write an address, such as 192.0.2.1 or 2001:db8::1")
}

fn place(place: Place) -> wire::RulePlace {
    wire::RulePlace {
        family: place.family.as_str().to_owned(),
        table: place.table,
        chain: place.chain,
        handle: place.handle.unwrap_or(0),
        text: place.text,
        policy: place.policy,
        base_chain: place.base,
        hook: place.hook.as_str().to_owned(),
        priority: place.priority,
        legacy: place.legacy,
    }
}

/// A finding for the wire.
pub fn finding(finding: Finding) -> wire::Finding {
    let severity = match finding.severity {
        Severity::Error => wire::Severity::Error,
        Severity::Warning => wire::Severity::Warning,
    };
    wire::Finding {
        severity: severity.into(),
        reason: finding.reason.to_owned(),
        message: finding.what,
        location: finding.location,
        place: finding.place.map(place),
        program: super::text(finding.program),
        fix: finding.fix,
        networks: finding.networks.iter().map(|name| format!("networks/{name}")).collect(),
    }
}

fn verdict(verdict: StepVerdict) -> i32 {
    match verdict {
        StepVerdict::Pass => wire::PacketVerdict::Pass,
        StepVerdict::Drop => wire::PacketVerdict::Drop,
        StepVerdict::Unknown => wire::PacketVerdict::Unknown,
    }
    .into()
}

/// An answer for the wire.
pub fn explanation(question: &Question, steps: Vec<Step>, traced: Option<Traced>) -> wire::ExplainResponse {
    let flow = question.flow();
    wire::ExplainResponse {
        verdict: verdict(why::verdict(&steps)),
        steps: steps
            .into_iter()
            .map(|step| wire::Step {
                stage: step.stage.to_owned(),
                verdict: verdict(step.verdict),
                detail: step.detail,
                place: step.place.map(place),
                program: super::text(step.program),
                fix: step.fix,
            })
            .collect(),
        port: question.port.resource(),
        source: flow.source.to_string(),
        destination: flow.destination.to_string(),
        trace: traced.map(|traced| wire::Trace {
            packet_count: traced.packets,
            drop_count: traced.dropped,
            lines: traced.lines,
        }),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn request(peer: &str) -> wire::ExplainRequest {
        wire::ExplainRequest { vm: "vms/web".into(), peer: peer.into(), ..Default::default() }
    }

    #[test]
    fn the_other_end_is_an_address_or_a_machine() {
        assert_eq!(asked(request("192.0.2.1")).unwrap().0.other, Ok("192.0.2.1".parse().unwrap()));
        assert_eq!(asked(request("::ffff:192.0.2.1")).unwrap().0.other, Ok("192.0.2.1".parse().unwrap()));
        assert_eq!(asked(request("vms/db")).unwrap().0.other, Err("db".parse().unwrap()));
        for bad in ["", "example.com", "300.1.1.1", "vms/", "vms/../x", "networks/lan"] {
            assert!(asked(request(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_traces_and_sources_are_bounded() {
        let with = |change: fn(&mut wire::ExplainRequest)| {
            let mut request = request("192.0.2.1");
            change(&mut request);
            asked(request)
        };
        assert_eq!(with(|r| r.port = 80).unwrap().0.port, Some(80));
        assert_eq!(with(|r| r.trace_seconds = 60).unwrap().1, Some(Duration::from_secs(60)));
        assert_eq!(with(|_| ()).unwrap().1, None);
        let mapped = with(|r| r.source = "::ffff:192.0.2.9".into()).unwrap().0;
        assert_eq!(mapped.source, Some("192.0.2.9".parse().unwrap()));
        assert!(with(|r| r.port = 65_536).is_err());
        assert!(with(|r| r.trace_seconds = 61).is_err());
        assert!(with(|r| r.source = "web".into()).is_err());
        assert!(with(|r| r.vm = "web".into()).is_err());
        assert!(with(|r| r.network = "lan".into()).is_err());
    }

    #[test]
    fn icmp_has_no_port() {
        let mut request = request("192.0.2.1");
        request.port = 80;
        request.protocol = wire::PacketProtocol::Icmp.into();
        assert_eq!(asked(request).unwrap().0.port, None);
    }
}
