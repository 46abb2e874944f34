//! Sockets of the host's programs, out of /proc.

use crate::model::Protocol;
use shared::{
    fault::{Fault, Kind},
    name::printable,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// A program of the host that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens; unspecified for every address of that family, of IPv6 for those of both.
    pub address: IpAddr,
    /// Its name and process id, where the kernel tells.
    pub program: Option<String>,
}

/// States of include/net/tcp_states.h: a TCP socket that listens, a UDP socket that is not connected.
pub(super) const TCP_LISTEN: &str = "0A";
pub(super) const UDP_OPEN: &str = "07";

/// The sockets that take new flows to a port, in the network namespace of the calling thread. Whoever opens many of
/// them, or many files, makes it slow: it is done apart from what answers requests.
///
/// # Errors
/// INTERNAL if /proc cannot be read.
pub async fn listeners(protocol: Protocol, port: u16) -> Result<Vec<Listener>, Fault> {
    tokio::task::spawn_blocking(move || find(protocol, port)).await.map_err(|error| {
        Fault::internal("the look for listening programs ended with a defect").cause(&error)
    })?
}

fn find(protocol: Protocol, port: u16) -> Result<Vec<Listener>, Fault> {
    let (files, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], TCP_LISTEN),
        Protocol::Udp => (["udp", "udp6"], UDP_OPEN),
    };
    let mut found = Vec::new();
    for file in files {
        let path = Path::new("/proc/thread-self/net").join(file);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Without IPv6 there is none of its own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let what = format!("cannot read {}", path.display());
                return Err(Fault::new(Kind::Internal, "PROC", what).cause(&error));
            }
        };
        found.extend(text.lines().filter_map(|line| parse(line, port, state)));
    }
    let programs = programs(found.iter().map(|(_, inode)| *inode).collect());
    let listener = |(address, inode)| Listener { address, program: programs.get(&inode).cloned() };
    Ok(found.into_iter().map(listener).collect())
}

/// Address and inode of a line about a socket in that state at that port.
fn parse(line: &str, port: u16, state: &str) -> Option<(IpAddr, u64)> {
    let (address, at, inode) = parse_any(line, state)?;
    (at == port).then_some((address, inode))
}

/// Address, port and inode of a line about a socket in that state.
pub(super) fn parse_any(line: &str, state: &str) -> Option<(IpAddr, u16, u64)> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if fields.nth(1)? != state {
        return None;
    }
    Some((parse_address(address)?, port, fields.nth(5)?.parse().ok()?))
}

/// Words of four bytes, each as a number of the host's byte order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
        }
        _ => None,
    }
}

/// Name and id of a process that has each socket open, by one walk over all; only root sees those of others.
fn programs(mut sockets: BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if sockets.is_empty() {
            break;
        }
        let Some(id) = entry.file_name().to_str().and_then(|id| id.parse::<u32>().ok()) else { continue };
        let process = entry.path();
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let inodes = descriptors.filter_map(|descriptor| inode(&fs::read_link(descriptor.path()).ok()?));
        let held: Vec<_> = inodes.filter(|inode| sockets.remove(inode)).collect();
        if held.is_empty() {
            continue;
        }
        // It may have ended since.
        let Ok(name) = fs::read_to_string(process.join("comm")) else { continue };
        let program = format!("`{}` (process {id})", printable(name.trim_end()));
        found.extend(held.into_iter().map(|inode| (inode, program.clone())));
    }
    found
}

/// The inode of what a descriptor leads to, if that is a socket.
fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::*;
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    #[test]
    fn sockets_are_found_with_their_address_and_program() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect("127.0.0.1:9").unwrap();
        let find = |protocol, at: SocketAddr| find(protocol, at.port()).unwrap();
        let own = format!("(process {})", std::process::id());
        for (protocol, at) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            let found = find(protocol, at);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].address, at.ip());
            assert!(found[0].program.as_ref().unwrap().contains(&own), "{found:?}");
        }
        assert_eq!(find(Protocol::Udp, connected.local_addr().unwrap()), [], "takes no new flows");
        let gone = tcp.local_addr().unwrap();
        drop(tcp);
        assert_eq!(find(Protocol::Tcp, gone), []);
    }

    #[test]
    fn all_sockets_of_a_port_are_found_with_their_program() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        // The port may be another program's at some of these.
        let more: Vec<_> = (2..40)
            .filter_map(|host| TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), port)).ok())
            .collect();
        let own = format!("(process {})", std::process::id());
        let found = find(Protocol::Tcp, port).unwrap();
        // Other tests of this process may listen at the same port of other addresses.
        for socket in more.iter().chain([&first]) {
            let address = socket.local_addr().unwrap().ip();
            let listed = found.iter().find(|listener| listener.address == address);
            let program = listed.and_then(|listener| listener.program.as_ref());
            assert!(program.is_some_and(|program| program.contains(&own)), "{address}: {found:?}");
        }
    }

    #[test]
    fn an_address_is_read_in_the_hosts_byte_order() {
        let v4 = format!("{:08X}", u32::from_ne_bytes([10, 99, 0, 2]));
        assert_eq!(parse_address(&v4), Some("10.99.0.2".parse().unwrap()));
        let mapped = format!("{:08X}{:08X}{:08X}{v4}", 0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]));
        assert_eq!(parse_address(&mapped), Some("10.99.0.2".parse().unwrap()));
        assert_eq!(parse_address("0100"), None);
    }
}
