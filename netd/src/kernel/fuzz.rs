//! What the kernel and nft answer.

use super::{
    LinkKind, conntrack as ct, link,
    route::{address_message, is_local_route, multipath_links, parse_address, parse_routes, route_message},
    ruleset, shape, socket,
};
use crate::fuzz::Outcome;
use rtnetlink::{
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};
use std::sync::LazyLock;

/// An answer of rtnetlink.
///
/// # Errors
/// What the crate says of one that is none.
pub fn netlink(data: &[u8]) -> Outcome {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(data).map_err(|_| "no message")?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
            let raw = link::parse(&message).ok_or("a link without a name")?;
            let _ = link::qdisc(&message);
            if matches!(raw.link.kind, LinkKind::Bridge) {
                super::inspect::own_netfilter(&message);
            }
            let name = raw.name.clone();
            // Its own lower link and master, as the kernel would never say.
            let lower = link::RawLink { lower: Some(raw.link.index), master: Some(raw.link.index), ..raw };
            let resolved = link::resolve(vec![lower]);
            assert_eq!(resolved.len(), 1);
            assert!(!resolved[&name].uppers.contains(&name), "a link stands on itself");
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(message)) => {
            let (index, address) = parse_address(&message).ok_or("an address that is none")?;
            assert_eq!(parse_address(&address_message(index, &address)), Some((index, address)));
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message)) => {
            let _ = multipath_links(&message);
            let routes = parse_routes(&message);
            if routes.is_empty() {
                return Err("a route that is nobody's".into());
            }
            for (index, route) in routes {
                is_local_route(&message, index, route.destination.addr());
                let again = parse_routes(&route_message(index, &route));
                assert!(again.len() <= 1, "{again:?}");
            }
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(message)) => {
            shape::bucket(&message).ok_or("a qdisc that is not ours")?;
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(message)) => {
            shape::target(&message).ok_or("a filter that is not ours")?;
        }
        NetlinkPayload::Error(_) => return Err("an error".into()),
        _ => return Err("of another sort".into()),
    }
    Ok(())
}

/// A datagram of the connection table.
///
/// # Errors
/// If there is no entry of TCP or UDP in it.
pub fn conntrack(data: &[u8]) -> Outcome {
    let mut found = 0;
    let ended = ct::messages(data, &mut |message: &[u8]| {
        if let Some(entry) = message.get(ct::GENERIC..).and_then(ct::parse) {
            assert!(entry.is_named(), "a request to delete it would empty the table");
            found += 1;
        }
    });
    match (found, ended) {
        (0, Some(Err(_))) => Err("an error".into()),
        (0, _) => Err("no entry".into()),
        _ => Ok(()),
    }
}

/// A file of sockets in /proc.
///
/// # Errors
/// If none listens.
pub fn sockets(data: &[u8]) -> Outcome {
    let text = std::str::from_utf8(data).map_err(|_| "no text")?;
    let states = [socket::TCP_LISTEN, socket::UDP_OPEN];
    let found =
        text.lines().flat_map(|line| states.map(|state| socket::parse_any(line, state))).flatten().count();
    if found == 0 { Err("nobody listens".into()) } else { Ok(()) }
}

/// A listing of one of our tables.
///
/// # Errors
/// If it is no JSON, or has nothing of ours.
pub fn nft_listing(data: &[u8]) -> Outcome {
    let listing = serde_json::from_slice(data).map_err(|_| "no JSON")?;
    let read = ruleset::read(&listing);
    let traffic = ruleset::traffic(&listing);
    static EMPTY: LazyLock<usize> =
        LazyLock::new(|| ruleset::replace("0", &Default::default(), &Default::default()).lines().count());
    if read.elements.0.is_empty() && traffic.taps.is_empty() {
        return Err("nothing of ours".into());
    }
    // What was read is written back as members of sets: one line a set or member, and never another command.
    let text = ruleset::replace("0", &read.elements, &traffic);
    let more = text.lines().filter(|line| line.starts_with("add element ")).count();
    assert_eq!(text.lines().count(), *EMPTY + more, "{text}");
    for line in text.lines().filter(|line| line.starts_with("add element ")) {
        // Names are in quotes, and have none in them.
        let bare: String = line.split('"').step_by(2).collect();
        assert_eq!(bare.matches(['{', '}', ';']).count(), 2, "{line}");
    }
    let _ = ruleset::describe(&read.elements);
    let _ = ruleset::change(&read.elements, &read.elements);
    Ok(())
}
