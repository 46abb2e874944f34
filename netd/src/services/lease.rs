//! dnsmasq's lease file. It has text in it that guests chose, so it is read as bytes, and only what is an address, a
//! MAC, a time or the number of a client is taken. Pure.

use shared::mac::Mac;
use std::{
    collections::{BTreeMap, BTreeSet},
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

/// Addresses of ports that are gone, and which leases of them have to go too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone(BTreeMap<IpAddr, Former>);

/// What is known of an address that a port had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Who had it, if that is known.
    pub mac: Option<Mac>,
    /// Of its lease when the port went. One that was given out later ends later.
    pub expires: Option<i64>,
    /// The port that has it now.
    heir: Option<Mac>,
}

impl Former {
    /// One whose address nobody has now.
    #[must_use]
    pub fn new(mac: Option<Mac>, expires: Option<i64>) -> Self {
        Self { mac, expires, heir: None }
    }
}

impl Gone {
    /// Whether no address is gone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an address; what is known of it replaces what was.
    pub fn insert(&mut self, address: IpAddr, former: Former) {
        self.0.insert(address, former);
    }

    /// Adds what was seen before.
    pub fn add_earlier(&mut self, earlier: Self) {
        for (address, former) in earlier.0 {
            self.0.entry(address).or_insert(former);
        }
    }

    /// Whether a port of this MAC has to wait for an address: somebody else may have a lease of it.
    #[must_use]
    pub fn keeps_from(&self, address: &IpAddr, mac: Mac) -> bool {
        self.0.get(address).is_some_and(|former| former.mac != Some(mac))
    }

    /// Learns which ports have the addresses now.
    pub fn inherit<'a>(&mut self, owners: impl Iterator<Item = (&'a IpAddr, Mac)>) {
        self.0.values_mut().for_each(|former| former.heir = None);
        for (address, mac) in owners {
            if let Some(former) = self.0.get_mut(address) {
                former.heir = Some(mac);
            }
        }
    }

    /// Whether a lease has to go: it is not one that the address's new port may have got meanwhile.
    #[must_use]
    pub fn has(&self, lease: &Lease) -> bool {
        self.0.get(&lease.address).is_some_and(|former| match former.heir {
            None => true,
            // Reserved for it by its MAC.
            Some(mac) if lease.address.is_ipv4() => lease.mac != Some(mac),
            // A client's, by a number of its own.
            Some(_) => former.expires == Some(lease.expires),
        })
    }
}

/// Addresses that no port has, of which nothing is known.
impl FromIterator<IpAddr> for Gone {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Self(addresses.into_iter().map(|address| (address, Former::default())).collect())
    }
}

/// Leases that have to go, and the holders of those whose line says enough of them.
#[must_use]
pub fn holders(file: &[u8], gone: &Gone) -> (BTreeSet<(IpAddr, i64)>, Vec<Holder>) {
    let lines = || file.split(|byte| *byte == b'\n');
    let server = lines().find_map(|line| duid(line.strip_prefix(b"duid ")?));
    let (mut held, mut holders) = (BTreeSet::new(), Vec::new());
    for line in lines() {
        if let Some(lease) = lease(line).filter(|lease| gone.has(lease)) {
            held.insert((lease.address, lease.expires));
            holders.extend(holder(line, server.as_deref()));
        }
    }
    (held, holders)
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

/// The file without the leases that have to go, byte for byte.
#[must_use]
pub fn without(file: &[u8], gone: &Gone) -> Vec<u8> {
    let keep = |line: &&[u8]| {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        !lease(bare).is_some_and(|lease| gone.has(&lease))
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
    fn a_lease_that_the_new_port_of_an_address_has_got_stays() {
        let macs = ["52:54:00:00:00:01", "52:54:00:00:00:02"].map(|mac| mac.parse::<Mac>().unwrap());
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap());
        let lease = |address, mac, expires| Lease { address, mac, expires };
        let mut gone = Gone::default();
        for address in [v4, v6] {
            gone.insert(address, Former::new(Some(macs[0]), Some(100)));
        }
        let has = |gone: &Gone| {
            [
                lease(v4, Some(macs[0]), 100),
                lease(v4, Some(macs[1]), 100),
                lease(v6, None, 100),
                lease(v6, None, 101),
            ]
            .map(|lease| gone.has(&lease))
        };
        assert_eq!(has(&gone), [true; 4], "nobody has them");
        gone.inherit([(&v4, macs[0]), (&v6, macs[0])].into_iter());
        assert_eq!(has(&gone), [false, true, true, false], "the same port again");
        assert!(!gone.keeps_from(&v4, macs[0]) && gone.keeps_from(&v4, macs[1]));
        gone.inherit([(&v4, macs[1]), (&v6, macs[1])].into_iter());
        assert_eq!(has(&gone), [true, false, true, false], "another port");
        // That one goes too, and what was known before does not count.
        let earlier = gone.clone();
        gone.insert(v6, Former::new(Some(macs[1]), Some(101)));
        gone.add_earlier(earlier);
        gone.inherit([(&v6, macs[0])].into_iter());
        assert_eq!(has(&gone), [true, true, false, true]);
    }

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
        let all = Gone::from_iter(leases(FILE).iter().map(|lease| lease.address));
        let (held, found) = holders(FILE, &all);
        assert_eq!(held.len(), 3, "one says too little");
        let mac = |text: &str| text.parse().unwrap();
        let v4 = |address: &str, of: &str| Holder::V4 { address: address.parse().unwrap(), mac: mac(of) };
        assert_eq!(found, [v4("10.61.0.11", "52:54:00:aa:bb:cc"), v4("10.61.0.2", "52:54:00:aa:bb:cd")]);
        let six = b"duid 00:02\n1 T7 fd00::7 * 00:01:ff\n2 8 fd00::8 * 00:zz\n3 9 fd00::9 * 0:1\n";
        let v6 = |address: &str, association, temporary, client: &[u8]| {
            let (address, client) = (address.parse().unwrap(), client.to_vec());
            Holder::V6(Holder6 { address, association, temporary, client, server: vec![0, 2] })
        };
        let all = Gone::from_iter(["fd00::7", "fd00::8", "fd00::9"].map(|address| address.parse().unwrap()));
        let (held, found) = holders(six, &all);
        assert_eq!(held.len(), 3);
        assert_eq!(found, [v6("fd00::7", 7, true, &[0, 1, 255]), v6("fd00::9", 9, false, &[0, 1])]);
        assert_eq!(holders(six, &Gone::default()), (BTreeSet::new(), Vec::new()));
        let long = format!("duid 00\n1 7 fd00::7 * {}ff\n", "00:".repeat(LONGEST_DUID));
        assert_eq!(holders(long.as_bytes(), &all).1, []);
    }

    #[test]
    fn what_is_not_pruned_stays_as_it_is() {
        let rest = without(
            FILE,
            &Gone::from_iter(["10.61.0.11", "fd00:61::77"].map(|address| address.parse().unwrap())),
        );
        assert_eq!(leases(&rest).len(), 1);
        assert!(rest.windows(4).any(|bytes| bytes == b"duid"));
        assert_eq!(without(FILE, &Gone::default()), FILE);
    }

    /// What `leases` reads, `without` finds: here the address is the last field.
    #[test]
    fn a_line_that_ends_with_its_address_is_pruned() {
        let line = b"1795627469 52:54:00:aa:bb:cc 10.61.0.11\n";
        assert_eq!(leases(line).len(), 1);
        assert_eq!(without(line, &Gone::from_iter(["10.61.0.11".parse().unwrap()])), b"");
    }
}
