//! Where a forward listens and leads.

use super::{Invalid, name};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A port of the host, at one address or at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `None`: all.
    pub address: Option<IpAddr>,
    /// Not zero.
    pub port: u16,
}

/// A guest, and a port there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A machine's or port's name, or an address.
    pub guest: String,
    /// `None`: as the host's.
    pub port: Option<u16>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.guest.contains(':')) {
            (Some(port), true) => write!(f, "[{}]:{port}", self.guest),
            (Some(port), false) => write!(f, "{}:{port}", self.guest),
            (None, _) => f.write_str(&self.guest),
        }
    }
}

/// `[ADDR:]PORT`, an IPv6 address in brackets.
///
/// # Errors
/// If it is anything else.
pub fn listen(text: &str) -> Result<Listen, Invalid> {
    let example = "write 8080, 192.0.2.10:8080 or [2001:db8::1]:8080";
    let Some((host, at)) = text.rsplit_once(':') else {
        return Ok(Listen { address: None, port: port(text, example)? });
    };
    let address = match bracketed(host) {
        Some(v6) => v6.map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    };
    let address = address
        .ok_or_else(|| Invalid::new(format!("`{host}` is not an address with its port")).hint(example))?;
    Ok(Listen { address: Some(address), port: port(at, example)? })
}

/// `VM[:PORT]` or an address in VM's place; an IPv6 address with a port is in brackets.
///
/// # Errors
/// If it is anything else.
pub fn target(text: &str) -> Result<Target, Invalid> {
    let example = "write web, web:80, 192.168.100.10:80 or [fd00:1::10]:80";
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Target { guest: address.to_string(), port: None });
    }
    if let Some(v6) = bracketed(text).flatten() {
        return Ok(Target { guest: v6.to_string(), port: None });
    }
    let (host, at) = match text.rsplit_once(':') {
        Some((host, at)) => (host, Some(port(at, example)?)),
        None => (text, None),
    };
    let guest = match bracketed(host) {
        Some(v6) => v6.map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    };
    let guest = match guest {
        Some(address) => address.to_string(),
        None => {
            name(host).map_err(|_| Invalid::new("neither a name nor an address").hint(example))?.to_string()
        }
    };
    Ok(Target { guest, port: at })
}

/// What stands in brackets; inner `None` if it is no IPv6 address.
fn bracketed(text: &str) -> Option<Option<Ipv6Addr>> {
    Some(text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}

fn port(text: &str, example: &str) -> Result<u16, Invalid> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ if digits => Err(Invalid::new(format!("there is no port {text}")).hint("ports are 1 to 65535")),
        _ => Err(Invalid::new(format!("`{text}` is not a port")).hint(example)),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_to_listen_at_is_a_port_and_perhaps_an_address() {
        let of = |text: &str| listen(text).map(|l| (l.address.map(|a| a.to_string()), l.port));
        assert_eq!(of("8080"), Ok((None, 8080)));
        assert_eq!(of("192.0.2.10:80"), Ok((Some("192.0.2.10".into()), 80)));
        assert_eq!(of("[2001:db8::1]:443"), Ok((Some("2001:db8::1".into()), 443)));
        for bad in [
            "",
            "0",
            "70000",
            "65536",
            "-1",
            "+80",
            "http",
            ":80",
            "192.0.2.10",
            "192.0.2.10:",
            "192.0.2.10:0",
            "192.0.2.10:70000",
            "2001:db8::1",
            "2001:db8::1:80",
            "[2001:db8::1]",
            "[192.0.2.10]:80",
            "eth0:80",
            "*:80",
        ] {
            assert!(of(bad).unwrap_err().to_string().contains("hint:"), "{bad}");
        }
    }

    #[test]
    fn a_target_is_a_guest_and_perhaps_a_port() {
        let of = |text: &str| target(text).map(|t| (t.guest, t.port));
        assert_eq!(of("web"), Ok(("web".into(), None)));
        assert_eq!(of("web:80"), Ok(("web".into(), Some(80))));
        assert_eq!(of("10.0.0.2"), Ok(("10.0.0.2".into(), None)));
        assert_eq!(of("10.0.0.2:80"), Ok(("10.0.0.2".into(), Some(80))));
        assert_eq!(of("fd00::2"), Ok(("fd00::2".into(), None)));
        assert_eq!(of("[fd00::2]"), Ok(("fd00::2".into(), None)));
        assert_eq!(of("[fd00::2]:80"), Ok(("fd00::2".into(), Some(80))));
        for bad in
            ["", "Web", "web:", "web:0", "web:70000", "web:http", "10.0.0.300", "[web]:80", "a/b:80", ":80"]
        {
            assert!(of(bad).unwrap_err().to_string().contains("hint:"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_target_reads_back(guest in "[a-z][a-z0-9]{0,8}", v6 in any::<u128>(), v4 in any::<u32>(), port in prop::option::of(1..=u16::MAX)) {
            for guest in [guest, Ipv6Addr::from(v6).to_string(), std::net::Ipv4Addr::from(v4).to_string()] {
                let target_ = Target { guest, port };
                prop_assert_eq!(target(&target_.to_string()), Ok(target_));
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "[\\[\\]:0-9a-f.]{0,30}|\\PC{0,20}") {
            let _ = (listen(&text), target(&text));
        }
    }
}
