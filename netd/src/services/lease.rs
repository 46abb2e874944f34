//! dnsmasq's lease file. It has text in it that guests chose, so it is read as bytes, and only what is an address, a
//! MAC, a time or the number of a client is taken. Pure.

use shared::mac::Mac;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A DUID is not longer, bytes (RFC 8415, 11.1).
const LONGEST_DUID: usize = 130;

/// An address that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Who has it; DHCPv6 does not say.
    pub mac: Option<Mac>,
    /// Seconds since 1970-01-01T00:00:00Z.
    pub expires: i64,
}

/// Reads the file: `EXPIRY MAC-OR-IAID ADDRESS NAME ID` a line. Other lines are passed over.
#[must_use]
pub fn leases(file: &[u8]) -> Vec<Lease> {
    let mut leases: Vec<_> = file.split(|byte| *byte == b'\n').filter_map(lease).collect();
    leases.sort_by_key(|lease| lease.address);
    leases
}

fn lease(line: &[u8]) -> Option<Lease> {
    let mut fields = line.split(|byte| *byte == b' ').map(|field| std::str::from_utf8(field).ok());
    let expires = fields.next()??.parse().ok()?;
    let holder = fields.next()??;
    let address: IpAddr = fields.next()??.parse().ok()?;
    Some(Lease { address, mac: holder.parse().ok().filter(|_| address.is_ipv4()), expires })
}

/// Who has a lease, as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A NIC.
    V4 {
        /// What it has.
        address: Ipv4Addr,
        /// Its own.
        mac: Mac,
    },
    /// An association of a client.
    V6(Holder6),
}

/// An association of a DHCPv6 client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder6 {
    /// What it has.
    pub address: Ipv6Addr,
    /// The client's number for it (IAID).
    pub association: u32,
    /// Whether it is one of temporary addresses.
    pub temporary: bool,
    /// The client's DUID.
    pub client: Vec<u8>,
    /// The server's own.
    pub server: Vec<u8>,
}

/// Leases of these addresses: how many there are, and the holders of those whose line says enough of them.
#[must_use]
pub fn holders(file: &[u8], addresses: &BTreeSet<IpAddr>) -> (usize, Vec<Holder>) {
    let lines = || file.split(|byte| *byte == b'\n');
    let server = lines().find_map(|line| duid(line.strip_prefix(b"duid ")?));
    let held: Vec<_> =
        lines().filter(|line| lease(line).is_some_and(|lease| addresses.contains(&lease.address))).collect();
    let holders = held.iter().filter_map(|line| holder(line, server.as_deref()));
    (held.len(), holders.collect())
}

fn holder(line: &[u8], server: Option<&[u8]>) -> Option<Holder> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let &[_, of, address, _, client] = fields.as_slice() else { return None };
    let of = std::str::from_utf8(of).ok()?;
    match std::str::from_utf8(address).ok()?.parse().ok()? {
        IpAddr::V4(address) => Some(Holder::V4 { address, mac: of.parse().ok()? }),
        IpAddr::V6(address) => {
            let temporary = of.starts_with('T');
            let association = of.strip_prefix('T').unwrap_or(of).parse().ok()?;
            let (client, server) = (duid(client)?, server?.to_vec());
            Some(Holder::V6(Holder6 { address, association, temporary, client, server }))
        }
    }
}

/// `00:01:...` as bytes.
fn duid(text: &[u8]) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = text.split(|byte| *byte == b':').map(byte).collect();
    bytes.filter(|bytes| bytes.len() <= LONGEST_DUID)
}

/// The file without the leases of these addresses, byte for byte.
#[must_use]
pub fn without(file: &[u8], addresses: &BTreeSet<IpAddr>) -> Vec<u8> {
    let keep = |line: &&[u8]| {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        !lease(bare).is_some_and(|lease| addresses.contains(&lease.address))
    };
    file.split_inclusive(|byte| *byte == b'\n').filter(keep).flatten().copied().collect()
}

#[cfg(test)]
mod test {
    use super::*;

    const FILE: &[u8] = b"1795627469 52:54:00:aa:bb:cc 10.61.0.11 web-0 01:52:54:00:aa:bb:cc\n\
        1795627470 52:54:00:aa:bb:cd 10.61.0.2 * *\n\
        garbage \xff\xfe\n\
        x 52:54:00:aa:bb:cc 10.61.0.13 a b\n\
        1795627471 52:54:00:aa:bb:ce 10.61.0.999 a b\n\
        duid 00:02:00:00:7e:d9:00:11\n\
        1795627507 11189196 fd00:61::77 web-0 \xff\x1b[31m\n";

    #[test]
    fn only_addresses_macs_and_times_are_taken() {
        let found = leases(FILE);
        let read: Vec<_> =
            found.iter().map(|l| (l.address.to_string(), l.mac.is_some(), l.expires)).collect();
        assert_eq!(
            read,
            [
                ("10.61.0.2".to_owned(), true, 1_795_627_470),
                ("10.61.0.11".to_owned(), true, 1_795_627_469),
                ("fd00:61::77".to_owned(), false, 1_795_627_507)
            ]
        );
        assert_eq!(leases(b""), []);
    }

    #[test]
    fn holders_are_known_by_macs_and_numbers() {
        let all: BTreeSet<IpAddr> = leases(FILE).iter().map(|lease| lease.address).collect();
        let (held, found) = holders(FILE, &all);
        assert_eq!(held, 3, "one says too little");
        let mac = |text: &str| text.parse().unwrap();
        let v4 = |address: &str, of: &str| Holder::V4 { address: address.parse().unwrap(), mac: mac(of) };
        assert_eq!(found, [v4("10.61.0.11", "52:54:00:aa:bb:cc"), v4("10.61.0.2", "52:54:00:aa:bb:cd")]);
        let six = b"duid 00:02\n1 T7 fd00::7 * 00:01:ff\n2 8 fd00::8 * 00:zz\n3 9 fd00::9 * 0:1\n";
        let v6 = |address: &str, association, temporary, client: &[u8]| {
            let (address, client) = (address.parse().unwrap(), client.to_vec());
            Holder::V6(Holder6 { address, association, temporary, client, server: vec![0, 2] })
        };
        let all = ["fd00::7", "fd00::8", "fd00::9"].map(|address| address.parse().unwrap()).into();
        let (held, found) = holders(six, &all);
        assert_eq!(held, 3);
        assert_eq!(found, [v6("fd00::7", 7, true, &[0, 1, 255]), v6("fd00::9", 9, false, &[0, 1])]);
        assert_eq!(holders(six, &BTreeSet::new()), (0, Vec::new()));
        let long = format!("duid 00\n1 7 fd00::7 * {}ff\n", "00:".repeat(LONGEST_DUID));
        assert_eq!(holders(long.as_bytes(), &all).1, []);
    }

    #[test]
    fn what_is_not_pruned_stays_as_it_is() {
        let gone = BTreeSet::from(["10.61.0.11".parse().unwrap(), "fd00:61::77".parse().unwrap()]);
        let rest = without(FILE, &gone);
        assert_eq!(leases(&rest).len(), 1);
        assert!(rest.windows(4).any(|bytes| bytes == b"duid"));
        assert_eq!(without(FILE, &BTreeSet::new()), FILE);
    }

    /// What `leases` reads, `without` finds: here the address is the last field.
    #[test]
    fn a_line_that_ends_with_its_address_is_pruned() {
        let line = b"1795627469 52:54:00:aa:bb:cc 10.61.0.11\n";
        assert_eq!(leases(line).len(), 1);
        assert_eq!(without(line, &BTreeSet::from(["10.61.0.11".parse().unwrap()])), b"");
    }
}
