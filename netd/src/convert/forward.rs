//! Forwards.

use super::{invalid, labels, missing, state, text, time};
use crate::{
    alloc,
    model::{ForwardKey, ForwardSpec, Protocol, State, Target, port_resource},
    reconciler::{ForwardView, NewForward},
};
use proto::netd::v1 as wire;
use shared::{
    fault::Fault,
    name::{Name, printable},
};
use std::{net::IpAddr, num::NonZeroU16};

/// Stands for the name that is made of the spec.
const DERIVED: &str = "-";

fn parts(resource: &str) -> Result<(Name, &str), Fault> {
    match resource.split('/').collect::<Vec<_>>().as_slice() {
        ["networks", network, "forwards", forward] => Ok((network.parse()?, forward)),
        _ => Err(invalid(
            "INVALID_RESOURCE_NAME",
            format!("`{}` is not the name of a forward", printable(resource)),
        )
        .hint("write networks/NETWORK/forwards/NAME")),
    }
}

/// Network and forward out of `networks/NETWORK/forwards/NAME`.
pub fn forward_key(resource: &str) -> Result<ForwardKey, Fault> {
    let (network, forward) = parts(resource)?;
    Ok((network, forward.parse()?))
}

/// Checks a request to create a forward.
pub fn new_forward(request: wire::CreateForwardRequest) -> Result<NewForward, Fault> {
    let forward = request.forward.ok_or_else(|| missing("forward"))?;
    let (network, name) = parts(&forward.name)?;
    let spec = spec(forward.spec.ok_or_else(|| missing("forward.spec"))?)
        .map_err(|fault| fault.context("the spec of the forward is not valid"))?;
    let name = if name == DERIVED { alloc::forward_name(&spec)? } else { name.parse()? };
    Ok(NewForward {
        network,
        name,
        spec,
        labels: labels(forward.labels)?,
        allow_absent: request.allow_absent,
    })
}

fn spec(spec: wire::ForwardSpec) -> Result<ForwardSpec, Fault> {
    let protocol = match spec.protocol() {
        wire::ForwardProtocol::Tcp => Protocol::Tcp,
        wire::ForwardProtocol::Udp => Protocol::Udp,
        wire::ForwardProtocol::Unspecified => {
            return Err(invalid("INVALID_PROTOCOL", "the protocol is missing").hint("one of tcp, udp"));
        }
    };
    let listen_address = listen_address(&spec.listen_address)?;
    let target = target(&spec.target)?;
    if let (Some(listen), Target::Address(target)) = (listen_address, &target)
        && listen.is_ipv4() != target.is_ipv4()
    {
        return Err(invalid("OTHER_FAMILY", format!("{listen} and {target} are of different families"))
            .hint("a forward does not translate between IPv4 and IPv6: listen at an address of the target's family"));
    }
    let listen_port = port(spec.listen_port)?
        .ok_or_else(|| invalid("INVALID_PORT", "the port to listen at is missing").hint("from 1 to 65535"))?;
    Ok(ForwardSpec { protocol, listen_address, listen_port, target, target_port: port(spec.target_port)? })
}

/// 0 is none.
fn port(port: u32) -> Result<Option<NonZeroU16>, Fault> {
    u16::try_from(port)
        .map(NonZeroU16::new)
        .map_err(|_| invalid("INVALID_PORT", format!("there is no port {port}")).hint("from 1 to 65535"))
}

fn listen_address(text: &str) -> Result<Option<IpAddr>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let refuse = |why: &str, hint: &str| {
        Err(invalid("INVALID_ADDRESS", format!("cannot listen at `{}`: {why}", printable(text))).hint(hint))
    };
    let address: IpAddr = match text.parse() {
        Ok(address) => address,
        Err(_) => {
            return refuse("it is not an address", "write it without port and prefix, such as 192.0.2.1");
        }
    };
    if address.is_unspecified() {
        return refuse(
            "it is no address of one host",
            "leave it out to listen at all addresses of this host",
        );
    }
    if address.is_loopback() {
        return refuse(
            "packets to loopback addresses never leave the host",
            "leave it out: programs of this host then reach the guest by any other address of the host",
        );
    }
    if alloc::is_unfit(address) {
        return refuse("no router passes on packets of link-local addresses", "choose a routable one");
    }
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if address.is_multicast() || mapped || address == IpAddr::from([255; 4]) {
        return refuse("it is no address of one host", "choose one that `ip address` shows");
    }
    Ok(Some(address))
}

fn target(text: &str) -> Result<Target, Fault> {
    if text.is_empty() {
        return Err(missing("target").hint("name a machine, a port of the network, or a guest's address"));
    }
    match text.parse() {
        Ok(address) => Ok(Target::Address(address)),
        Err(_) => text.parse().map(Target::Name),
    }
}

/// A forward for the wire.
pub fn forward(view: ForwardView) -> wire::Forward {
    let ForwardView { forward, state: now, target } = view;
    let (state, mut error) = state(&now, forward.deleting);
    let (port, addresses) = match target {
        Ok((port, addresses)) => (port_resource(&port.0, &port.1), addresses),
        Err(why) => {
            if now == State::Pending {
                error = why;
            }
            (String::new(), Vec::new())
        }
    };
    let protocol = match forward.spec.protocol {
        Protocol::Tcp => wire::ForwardProtocol::Tcp,
        Protocol::Udp => wire::ForwardProtocol::Udp,
    };
    wire::Forward {
        name: forward.resource(),
        uid: forward.uid.to_string(),
        generation: forward.generation,
        create_time: time(forward.created),
        update_time: time(forward.updated),
        spec: Some(wire::ForwardSpec {
            protocol: protocol.into(),
            listen_address: text(forward.spec.listen_address),
            listen_port: forward.spec.listen_port.get().into(),
            target: forward.spec.target.to_string(),
            target_port: forward.spec.target_port.map_or(0, |port| port.get().into()),
        }),
        status: Some(wire::ForwardStatus {
            observed_generation: if now == State::Pending { 0 } else { forward.generation },
            state: state.into(),
            error,
            target_port_resource: port,
            target_addresses: addresses.iter().map(ToString::to_string).collect(),
        }),
        labels: forward.labels.into_iter().collect(),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use shared::fault::Kind;

    fn asked() -> wire::ForwardSpec {
        wire::ForwardSpec {
            protocol: wire::ForwardProtocol::Tcp.into(),
            listen_port: 8080,
            target: "web".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_name_is_made_of_the_spec_where_none_is_given() {
        let name = |name: &str, listen: &str| {
            let forward = wire::Forward {
                name: name.into(),
                spec: Some(wire::ForwardSpec { listen_address: listen.into(), ..asked() }),
                ..Default::default()
            };
            let request = wire::CreateForwardRequest { forward: Some(forward), allow_absent: false };
            new_forward(request).map(|new| new.name.to_string())
        };
        assert_eq!(name("networks/lan/forwards/web", "").unwrap(), "web");
        assert_eq!(name("networks/lan/forwards/-", "").unwrap(), "tcp-8080");
        assert_eq!(name("networks/lan/forwards/-", "192.0.2.1").unwrap(), "tcp-8080-192-0-2-1");
        assert_eq!(name("networks/lan/forwards/-", "2001:db8::").unwrap(), "tcp-8080-2001-db8");
        for bad in
            ["", "networks/lan", "networks/lan/forwards/", "networks/-/forwards/x", "networks/lan/ports/x"]
        {
            assert_eq!(name(bad, "").unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_listened_at_is_refused_with_a_hint() {
        let with = |listen: &str, port, target: &str, target_port| {
            spec(wire::ForwardSpec {
                listen_address: listen.into(),
                listen_port: port,
                target: target.into(),
                target_port,
                ..asked()
            })
        };
        assert!(with("192.0.2.1", 1, "web", 65535).is_ok());
        assert!(with("2001:db8::1", 65535, "2001:db8:1::2", 0).is_ok());
        for (listen, port, target, target_port) in [
            ("", 0, "web", 0),
            ("", 65536, "web", 0),
            ("", 70000, "web", 0),
            ("", 80, "web", 65536),
            ("", 80, "", 0),
            ("", 80, "Web", 0),
            ("", 80, "10.0.0.300", 0),
            ("0.0.0.0", 80, "web", 0),
            ("::", 80, "web", 0),
            ("127.0.0.1", 80, "web", 0),
            ("127.1.2.3", 80, "web", 0),
            ("::1", 80, "web", 0),
            ("fe80::1", 80, "web", 0),
            ("::ffff:192.0.2.1", 80, "web", 0),
            ("224.0.0.1", 80, "web", 0),
            ("ff02::1", 80, "web", 0),
            ("255.255.255.255", 80, "web", 0),
            ("192.0.2.1/24", 80, "web", 0),
            ("eth0", 80, "web", 0),
            ("192.0.2.1", 80, "fd00::2", 0),
            ("2001:db8::1", 80, "10.0.0.2", 0),
        ] {
            let fault = with(listen, port, target, target_port).expect_err(listen);
            assert_eq!(fault.kind(), Kind::InvalidArgument, "{listen} {port} {target}");
            assert!(!fault.hints().is_empty(), "{listen} {port} {target}");
        }
        let unset = wire::ForwardSpec { protocol: 0, ..asked() };
        assert_eq!(spec(unset).unwrap_err().reason(), "INVALID_PROTOCOL");
    }
}
