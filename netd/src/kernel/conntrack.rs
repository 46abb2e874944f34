//! Ends flows that the kernel would go on translating as a forward said when they began (ctnetlink).
//!
//! An entry of the connection table decides for each packet of its flow. Without this, a client that sends UDP again
//! and again from one port would reach a guest's former address, or nobody, for as long as it does.

use super::{Element, Elements};
use crate::model::{Forwarding, Protocol};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use shared::fault::{Fault, Kind};
use std::{io, net::IpAddr, os::fd::OwnedFd, time::Duration};

/// include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: subsystem 1, its messages, attributes.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE: u16 = 2;
const PROTO_DESTINATION: u16 = 3;
/// include/uapi/linux/netlink.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// include/linux/err.h.
const MAX_ERRNO: i32 = 4095;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const NESTED: u16 = 1 << 15;
const TYPE: u16 = (1 << 14) - 1;
/// Bits of the status (nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
const SOURCE_NAT: u32 = 1 << 4;
const DESTINATION_NAT: u32 = 1 << 5;
/// Lengths of nlmsghdr and nfgenmsg.
const HEADER: usize = 16;
pub(super) const GENERIC: usize = 4;
/// The kernel answers at once; longer, and something is wrong with it.
const LIMIT: Duration = Duration::from_secs(5);

/// A forward as far as entries are compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    protocol: Protocol,
    listen: Option<IpAddr>,
    port: u16,
    to: IpAddr,
    to_port: u16,
}

impl Flow {
    fn of(element: &Element) -> Option<Self> {
        fn flow<A: Copy + Into<IpAddr>>(forwarding: &Forwarding<A>) -> Flow {
            Flow {
                protocol: forwarding.protocol,
                listen: forwarding.listen.map(Into::into),
                port: forwarding.port,
                to: forwarding.to.into(),
                to_port: forwarding.to_port,
            }
        }
        match element {
            Element::Forward4(forwarding) => Some(flow(forwarding)),
            Element::Forward6(forwarding) => Some(flow(forwarding)),
            _ => None,
        }
    }

    fn meets(&self, entry: &Entry) -> bool {
        entry.original.number == number(self.protocol)
            && entry.original.destination_port == self.port
            && entry.original.destination.is_ipv4() == self.to.is_ipv4()
            && self.listen.is_none_or(|listen| listen == entry.original.destination)
    }

    /// Whether this forward, which is no more, has sent that flow to the guest.
    fn sent(&self, entry: &Entry) -> bool {
        self.meets(entry)
            && entry.status & DESTINATION_NAT != 0
            && (entry.reply.source, entry.reply.source_port) == (self.to, self.to_port)
    }

    /// Whether the flow began before there was this forward, and nobody has answered: there was no program to do so.
    /// A client of TCP begins anew by itself.
    fn came_late_for(&self, entry: &Entry) -> bool {
        self.protocol == Protocol::Udp
            && self.meets(entry)
            && entry.status & (SEEN_REPLY | SOURCE_NAT | DESTINATION_NAT) == 0
    }
}

/// include/uapi/linux/in.h.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tuple {
    number: u8,
    source: IpAddr,
    destination: IpAddr,
    source_port: u16,
    destination_port: u16,
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    original: Tuple,
    reply: Tuple,
    status: u32,
    /// The attributes that name it, as they came.
    name: Vec<u8>,
}

#[cfg(any(test, fuzzing))]
impl Entry {
    /// Whether a request to delete it names it.
    pub(super) fn is_named(&self) -> bool {
        attribute(&self.name, TUPLE_ORIGINAL).is_some_and(|tuple| !tuple.is_empty())
    }
}

/// Ends the flows of forwards that are no more.
///
/// # Errors
/// INTERNAL if the connection table cannot be read or changed.
pub async fn end_flows(gone: &Elements) -> Result<(), Fault> {
    let gone: Vec<Flow> = gone.0.iter().filter_map(Flow::of).collect();
    if gone.is_empty() {
        return Ok(());
    }
    end(gone, Flow::sent).await.map_err(|e| {
        Fault::new(Kind::Internal, "CONNTRACK", "cannot end the flows of former forwards").cause(&e)
    })
}

/// Ends the flows that were under way before there was their forward. New ones follow the rules in any case: that these go
/// on is worth a warning, and no failure of the change.
pub async fn begin_anew(come: &Elements) {
    let flows = come.0.iter().filter_map(Flow::of);
    let come: Vec<Flow> = flows.filter(|flow| flow.protocol == Protocol::Udp).collect();
    if come.is_empty() {
        return;
    }
    if let Err(error) = end(come, Flow::came_late_for).await {
        tracing::warn!(%error, "flows go on that began before their forward");
    }
}

async fn end(flows: Vec<Flow>, over: fn(&Flow, &Entry) -> bool) -> io::Result<()> {
    // The socket belongs to the network namespace of this thread, whoever uses it.
    let socket = open()?;
    let work = move || {
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            let found = entries(&socket, family)?;
            let mut over = found.iter().filter(|entry| flows.iter().any(|flow| over(flow, entry)));
            over.try_for_each(|entry| delete(&socket, family, entry))?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await?
}

fn open() -> io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
    Ok(socket)
}

fn request(kind: u16, flags: u16, family: AddressFamily, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

/// Sends a request and gives each answer to `each`, up to the acknowledgement or the end of the dump.
fn exchange(socket: &OwnedFd, request: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
    send(socket, request, SendFlags::empty())?;
    // A dump comes in datagrams of at most 32 KiB (netlink_dump).
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        if let Some(end) = messages(&buffer[..length], &mut each) {
            return end;
        }
    }
}

/// Gives each message of a datagram to `each`, up to an acknowledgement or the end of a dump; `None` if more is to come.
pub(super) fn messages(mut rest: &[u8], each: &mut impl FnMut(&[u8])) -> Option<Result<(), Errno>> {
    while let Some((kind, message, after)) = next_message(rest) {
        rest = after;
        match kind {
            DONE => return Some(Ok(())),
            ERROR => {
                let code = message.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                return Some(match code.checked_neg() {
                    Some(0) => Ok(()),
                    // Errno can hold no other numbers.
                    Some(number @ 1..=MAX_ERRNO) => Err(Errno::from_raw_os_error(number)),
                    _ => Err(Errno::PROTO),
                });
            }
            _ => each(message),
        }
    }
    None
}

/// Type and content of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(HEADER..length)?, after))
}

fn entries(socket: &OwnedFd, family: AddressFamily) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut each = |message: &[u8]| found.extend(message.get(GENERIC..).and_then(parse));
    exchange(socket, &request(GET, DUMP, family, &[]), &mut each)?;
    Ok(found)
}

/// A request without a tuple would empty the whole table: an entry has one, or `parse` had made none of it.
fn delete(socket: &OwnedFd, family: AddressFamily, entry: &Entry) -> io::Result<()> {
    match exchange(socket, &request(DELETE, ACK, family, &entry.name), |_| {}) {
        // It ended by itself.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Attributes: type, content, and the whole with its padding.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], Vec<u8>)> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let content = bytes.get(4..length)?;
        let mut whole = bytes.get(..length)?.to_vec();
        whole.resize(length.next_multiple_of(4), 0);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, content, whole))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, ..)| *kind == wanted).map(|(_, content, _)| content)
}

/// An entry of TCP or UDP; `None` for what has no ports.
pub(super) fn parse(bytes: &[u8]) -> Option<Entry> {
    let mut name = Vec::new();
    for (kind, _, mut whole) in attributes(bytes) {
        match kind {
            TUPLE_ORIGINAL => {
                let nested = (kind | NESTED).to_ne_bytes();
                whole[2..4].copy_from_slice(&nested);
                name.extend(whole);
            }
            ID | ZONE => name.extend(whole),
            _ => {}
        }
    }
    Some(Entry {
        original: tuple(attribute(bytes, TUPLE_ORIGINAL)?)?,
        reply: tuple(attribute(bytes, TUPLE_REPLY)?)?,
        status: u32::from_be_bytes(attribute(bytes, STATUS)?.try_into().ok()?),
        name,
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (attribute(bytes, TUPLE_IP)?, attribute(bytes, TUPLE_PROTO)?);
    // Source and destination, of IPv4 types 1 and 2, of IPv6 3 and 4.
    let mut addresses = attributes(ip).filter_map(|(_, content, _)| address(content));
    let port = |kind| Some(u16::from_be_bytes(attribute(proto, kind)?.try_into().ok()?));
    Some(Tuple {
        number: *attribute(proto, PROTO_NUMBER)?.first()?,
        source: addresses.next()?,
        destination: addresses.next()?,
        source_port: port(PROTO_SOURCE)?,
        destination_port: port(PROTO_DESTINATION)?,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn nla(kind: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + content.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_of(kind: u16, from: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
        let ip = [nla(1, &from), nla(2, &to)].concat();
        let proto = [nla(1, &[17]), nla(2, &ports.0.to_be_bytes()), nla(3, &ports.1.to_be_bytes())].concat();
        nla(kind | NESTED, &[nla(1 | NESTED, &ip), nla(2 | NESTED, &proto)].concat())
    }

    /// A client's flow to port 53 of the host at 192.0.2.1, answered by `by`.
    fn entry(by: [u8; 4], status: u32) -> Entry {
        let (client, host) = ([198, 51, 100, 7], [192, 0, 2, 1]);
        let bytes = [
            tuple_of(TUPLE_ORIGINAL, client, host, (4000, 53)),
            tuple_of(TUPLE_REPLY, by, client, (5353, 4000)),
            nla(STATUS, &status.to_be_bytes()),
            nla(ID, &[1, 2, 3, 4]),
        ];
        parse(&bytes.concat()).unwrap()
    }

    fn flow(listen: &str, to: &str) -> Flow {
        let listen = (!listen.is_empty()).then(|| listen.parse().unwrap());
        Flow { protocol: Protocol::Udp, listen, port: 53, to: to.parse().unwrap(), to_port: 5353 }
    }

    #[test]
    fn a_flow_belongs_to_the_forward_that_sent_it() {
        let sent = entry([10, 0, 0, 2], DESTINATION_NAT | SEEN_REPLY);
        assert!(flow("", "10.0.0.2").sent(&sent) && flow("192.0.2.1", "10.0.0.2").sent(&sent));
        for other in [
            flow("", "10.0.0.3"),
            flow("192.0.2.2", "10.0.0.2"),
            flow("", "fd00::2"),
            Flow { port: 54, ..flow("", "10.0.0.2") },
            Flow { to_port: 53, ..flow("", "10.0.0.2") },
            Flow { protocol: Protocol::Tcp, ..flow("", "10.0.0.2") },
        ] {
            assert!(!other.sent(&sent), "{other:?}");
        }
        assert!(!flow("", "192.0.2.1").sent(&entry([192, 0, 2, 1], SEEN_REPLY)), "the host's own");
        assert!(sent.name.starts_with(&tuple_of(
            TUPLE_ORIGINAL,
            [198, 51, 100, 7],
            [192, 0, 2, 1],
            (4000, 53)
        )));
    }

    #[test]
    fn a_flow_that_nobody_answered_begins_anew() {
        let waits = entry([192, 0, 2, 1], 0);
        assert!(flow("", "10.0.0.2").came_late_for(&waits));
        assert!(!flow("192.0.2.2", "10.0.0.2").came_late_for(&waits));
        for status in [SEEN_REPLY, SOURCE_NAT, DESTINATION_NAT] {
            assert!(!flow("", "10.0.0.2").came_late_for(&entry([192, 0, 2, 1], status)), "{status}");
        }
    }

    #[test]
    fn a_message_that_is_cut_short_is_none() {
        let whole = [tuple_of(TUPLE_ORIGINAL, [1; 4], [2; 4], (1, 2)), nla(STATUS, &[0; 4])].concat();
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None);
        }
        assert!(next_message(&[20, 0, 0, 0, 1, 1]).is_none());
    }

    #[test]
    fn an_error_that_is_no_errno_is_one_all_the_same() {
        let answer = |code: i32| {
            let mut message = 20_u32.to_ne_bytes().to_vec();
            message.extend(ERROR.to_ne_bytes());
            message.resize(HEADER, 0);
            message.extend(code.to_ne_bytes());
            messages(&message, &mut |_: &[u8]| {})
        };
        assert_eq!(answer(0), Some(Ok(())));
        assert_eq!(answer(-2), Some(Err(Errno::NOENT)));
        for code in [i32::MIN, 1, -4096, i32::MAX] {
            assert_eq!(answer(code), Some(Err(Errno::PROTO)), "{code}");
        }
    }

    #[test]
    fn a_length_of_nothing_is_no_message() {
        assert!(next_message(&[0; 16]).is_none(), "a length of nothing would never end");
    }
}
