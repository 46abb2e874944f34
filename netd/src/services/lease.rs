//! dnsmasq's lease file. It has text in it that guests chose, so it is read as bytes, and only what is an address, a
//! MAC or a time is taken. Pure.

use shared::mac::Mac;
use std::{collections::BTreeSet, net::IpAddr};

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
