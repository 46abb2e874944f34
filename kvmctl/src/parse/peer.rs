//! The other end of a packet's way.

use super::Invalid;
use shared::name::Name;
use std::net::{IpAddr, SocketAddr};

/// The other end of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// An address, or the name of a machine.
    pub host: Result<IpAddr, Name>,
    /// The port that is sent to.
    pub port: Option<u16>,
}

/// The other end of a packet's way: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`, `web` or `web:80`.
///
/// # Errors
/// If it is none of these.
pub fn peer(text: &str) -> Result<Peer, Invalid> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bracketed.parse::<IpAddr>() {
        return Ok(Peer { host: Ok(address), port: None });
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(Peer { host: Ok(socket.ip()), port: Some(socket.port()) }).and_then(with_port);
    }
    let wrong = || {
        Invalid::new("not an address or the name of a machine")
            .hint("write 192.0.2.1:80, [2001:db8::1]:80 or web:80, with or without the port")
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    with_port(Peer { host: Err(host.parse().map_err(|_| wrong())?), port })
}

fn with_port(peer: Peer) -> Result<Peer, Invalid> {
    if peer.port == Some(0) { Err(Invalid::new("port 0: ports are 1 to 65535")) } else { Ok(peer) }
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(text: &str) -> Option<(String, Option<u16>)> {
        let Peer { host, port } = peer(text).ok()?;
        Some((host.map_or_else(|name| name.to_string(), |address| address.to_string()), port))
    }

    #[test]
    fn an_address_or_a_name_with_or_without_a_port() {
        for (text, host, port) in [
            ("192.0.2.1", "192.0.2.1", None),
            ("192.0.2.1:80", "192.0.2.1", Some(80)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("[2001:db8::1]:80", "2001:db8::1", Some(80)),
            ("web", "web", None),
            ("web:80", "web", Some(80)),
        ] {
            assert_eq!(read(text), Some((host.to_owned(), port)), "{text}");
        }
        for bad in [
            "",
            ":80",
            "192.0.2.1:0",
            "web:0",
            "web:http",
            "web:65536",
            "WEB",
            "a/b",
            "[::1",
            "192.0.2.1:99999",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
