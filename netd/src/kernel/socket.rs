//! Sockets of the host's programs, out of /proc.

use crate::model::Protocol;
use shared::{
    fault::{Fault, Kind},
    name::printable,
};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStrExt as _,
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
const TCP_LISTEN: &str = "0A";
const UDP_OPEN: &str = "07";

/// The sockets that take new flows to a port, in the network namespace of the calling thread.
///
/// # Errors
/// INTERNAL if /proc cannot be read.
pub fn listeners(protocol: Protocol, port: u16) -> Result<Vec<Listener>, Fault> {
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
    Ok(found.into_iter().map(|(address, inode)| Listener { address, program: program(inode) }).collect())
}

/// Address and inode of a line about a socket in that state at that port.
fn parse(line: &str, port: u16, state: &str) -> Option<(IpAddr, u64)> {
    let mut fields = line.split_whitespace();
    let (address, at) = fields.nth(1)?.split_once(':')?;
    if u16::from_str_radix(at, 16).ok()? != port || fields.nth(1)? != state {
        return None;
    }
    Some((parse_address(address)?, fields.nth(5)?.parse().ok()?))
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

/// Name and id of a process that has the socket open; only root sees those of others.
fn program(inode: u64) -> Option<String> {
    let socket = format!("socket:[{inode}]");
    let holds = |process: &Path| {
        fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|to| to.as_os_str().as_bytes() == socket.as_bytes())
        })
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.into_iter().find_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        if !holds(&entry.path()) {
            return None;
        }
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(format!("`{}` (process {id})", printable(name.trim_end())))
    })
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
        let find = |protocol, at: SocketAddr| listeners(protocol, at.port()).unwrap();
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
    fn an_address_is_read_in_the_hosts_byte_order() {
        let v4 = format!("{:08X}", u32::from_ne_bytes([10, 99, 0, 2]));
        assert_eq!(parse_address(&v4), Some("10.99.0.2".parse().unwrap()));
        let mapped = format!("{:08X}{:08X}{:08X}{v4}", 0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]));
        assert_eq!(parse_address(&mapped), Some("10.99.0.2".parse().unwrap()));
        assert_eq!(parse_address("0100"), None);
    }
}
