//! Addresses of ports. Pure.

use crate::model::{Network, Owner, Port, PortSpec, Reservation, ReservationKey};
use ipnet::{IpNet, Ipv6Net};
use shared::{
    fault::{Fault, Kind},
    mac::Mac,
    name::Name,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Reservations kept for one network; when there are more, some are given up.
const MOST_RESERVATIONS: usize = 4096;

/// fe80::/64, which every interface has a part in.
pub const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64);

/// The bits that addresses of one /64 which are made of MACs have in common (RFC 4291, appendix A).
const EUI64_MASK: u128 = 0xffff_ffff_ffff_ffff_0000_00ff_ff00_0000;

/// The addresses of a port, decided once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// In the network's IPv4 subnet, or as asked where it has none.
    pub ipv4: Option<Ipv4Addr>,
    /// As `ipv4`.
    pub ipv6: Option<Ipv6Addr>,
    /// Reservations that these addresses use up.
    pub given_up: Vec<ReservationKey>,
}

/// The port that is to get addresses.
#[derive(Clone, Debug)]
pub struct Asker<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Its MAC.
    pub mac: Mac,
    /// Whose it is.
    pub owner: Owner,
    /// Whether it may have by name what is set aside for others.
    pub by_admin: bool,
    /// What it has already.
    pub has: BTreeSet<IpAddr>,
}

impl Asker<'_> {
    /// Whether something is set aside for this very port.
    #[must_use]
    pub fn had(&self, reservation: &Reservation) -> bool {
        let owned = match &reservation.owner {
            Some(owner) => owner.is(&self.owner),
            None => self.by_admin,
        };
        owned && reservation.name == *self.name
    }

    /// Whose reservations are given up first among equals: one's own, those of the same user, then all.
    fn distance(&self, reservation: &Reservation) -> u8 {
        match &reservation.owner {
            Some(owner) if owner.is(&self.owner) => 0,
            Some(owner) if owner.uid == self.owner.uid => 1,
            _ => 2,
        }
    }

    /// Which reservations are given up first: those of the user who has the most, of that user's those of the tenant
    /// who has the most, and of these the oldest; so whoever hoards pays for it.
    fn in_order<'r, T>(&self, mut all: Vec<(T, &'r Reservation)>) -> Vec<(T, &'r Reservation)> {
        let (mut of_uid, mut of_owner) = (BTreeMap::<_, usize>::new(), BTreeMap::<_, usize>::new());
        let uid = |r: &Reservation| r.owner.as_ref().map(|owner| owner.uid);
        for (_, reservation) in &all {
            *of_uid.entry(uid(reservation)).or_default() += 1;
            *of_owner.entry(&reservation.owner).or_default() += 1;
        }
        all.sort_by_key(|(_, r)| {
            (Reverse(of_uid[&uid(r)]), Reverse(of_owner[&r.owner]), self.distance(r), r.order)
        });
        all
    }
}

/// What the network's addresses are used for. `Ports` and `Reservations` are those of the network.
struct Uses<'a> {
    network: &'a Network,
    ports: BTreeMap<IpAddr, &'a Port>,
    reserved: BTreeMap<IpAddr, &'a Reservation>,
    /// As many of the first addresses of the IPv4 and IPv6 subnet are not free. While ports are only added, none of them
    /// gets free again.
    passed: (usize, usize),
}

impl<'a> Uses<'a> {
    fn new(
        network: &'a Network,
        others: impl Iterator<Item = &'a Port>,
        reservations: impl Iterator<Item = &'a Reservation>,
    ) -> Self {
        let ports = others.flat_map(|port| port.addresses().map(move |address| (address, port))).collect();
        let reserved = reservations.flat_map(|r| r.addresses().map(move |address| (address, r))).collect();
        Self { network, ports, reserved, passed: (0, 0) }
    }

    fn subnet(&self, address: IpAddr) -> Option<IpNet> {
        match address {
            IpAddr::V4(_) => self.network.ipv4.map(IpNet::V4),
            IpAddr::V6(_) => self.network.ipv6.map(IpNet::V6),
        }
    }

    /// Whether the port may have an address that its client asks for. What is set aside for somebody else it gets only
    /// if its subnet has nothing else left, and that is the next to be given up.
    fn check(&mut self, asker: &Asker<'_>, address: IpAddr) -> Result<(), Fault> {
        self.check_use(asker, address)?;
        let kept = self.reserved.get(&address).copied().filter(|r| r.is_kept_from(&asker.owner));
        let Some(kept) = kept.filter(|_| !asker.by_admin && !asker.has.contains(&address)) else {
            return Ok(());
        };
        let next = match self.subnet(address) {
            Some(net) => self.free(asker, net).ok(),
            None => None,
        };
        if next == Some(address) {
            return Ok(());
        }
        Err(Fault::new(
            Kind::AlreadyExists,
            "ADDRESS_TAKEN",
            format!("{address} is set aside for a port that another user had, `{}`", kept.name),
        )
        .meta("address", address)
        .hint("choose another one, or leave it out to get a free one; an admin may name it all the same"))
    }

    /// Whether a guest with the port's MAC may have an address that no other port has.
    fn check_use(&self, asker: &Asker<'_>, address: IpAddr) -> Result<(), Fault> {
        let refuse = |reason: &str, why: String| {
            Err(Fault::new(Kind::InvalidArgument, reason, format!("{address} cannot be the guest's: {why}"))
                .meta("address", address)
                .hint("choose another one, or leave it out to get a free one"))
        };
        if address.is_multicast() || address.is_loopback() || address.is_unspecified() {
            return refuse("INVALID_ADDRESS", "it is no address of one host".to_owned());
        }
        if let IpAddr::V6(v6) = address
            && (v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some())
        {
            return refuse("INVALID_ADDRESS", "guests choose their link-local address themselves".to_owned());
        }
        if let Some(net) = self.subnet(address) {
            if !net.contains(&address) {
                return refuse("ADDRESS_OUTSIDE", format!("it is outside the subnet {}", net.trunc()));
            }
            if net.addr() == address {
                return refuse("ADDRESS_TAKEN", "it is the network's own gateway address".to_owned());
            }
            let ends = address == net.network() || address.is_ipv4() && address == net.broadcast();
            if ends {
                return refuse("INVALID_ADDRESS", format!("it stands for the subnet {}", net.trunc()));
            }
        }
        if let (IpAddr::V6(v6), Some(own)) = (address, self.network.formed_by(asker.mac))
            && u128::from(v6) & EUI64_MASK == u128::from(own) & EUI64_MASK
            && v6 != own
        {
            return refuse("ADDRESS_TAKEN", "guests form addresses like it of their MACs".to_owned());
        }
        match self.ports.get(&address) {
            Some(port) => Err(Fault::new(
                Kind::AlreadyExists,
                "ADDRESS_TAKEN",
                format!("{address} belongs to `{}`", port.resource()),
            )
            .meta("port", port.resource())
            .hint("choose another one, or leave it out to get a free one")),
            None => Ok(()),
        }
    }

    /// An address that the port had before and may have again.
    fn again(&self, asker: &Asker<'_>, before: Option<IpAddr>) -> Option<IpAddr> {
        before.filter(|address| self.check_use(asker, *address).is_ok())
    }

    /// Whether an address is nobody's, and set aside for nobody else.
    fn is_unused(&self, asker: &Asker<'_>, address: IpAddr) -> bool {
        let kept = self.reserved.get(&address).is_some_and(|r| r.is_kept_from(&asker.owner));
        !kept && self.check_use(asker, address).is_ok()
    }

    fn ipv4(
        &mut self,
        asker: &Asker<'_>,
        asked: Option<Ipv4Addr>,
        own: Option<&Reservation>,
    ) -> Result<Option<Ipv4Addr>, Fault> {
        if let Some(asked) = asked {
            return self.check(asker, asked.into()).map(|()| Some(asked));
        }
        let Some(net) = self.network.ipv4 else { return Ok(None) };
        let address = match self.again(asker, own.and_then(|r| r.ipv4).map(IpAddr::V4)) {
            Some(before) => before,
            None => self.free(asker, net.into())?,
        };
        Ok(v4(address))
    }

    fn ipv6(
        &mut self,
        asker: &Asker<'_>,
        asked: Option<Ipv6Addr>,
        own: Option<&Reservation>,
    ) -> Result<Option<Ipv6Addr>, Fault> {
        if let Some(asked) = asked {
            return self.check(asker, asked.into()).map(|()| Some(asked));
        }
        let Some(net) = self.network.ipv6 else { return Ok(None) };
        let by_mac = IpAddr::V6(eui64(net, asker.mac));
        let address = match self.again(asker, own.and_then(|r| r.ipv6).map(IpAddr::V6)) {
            _ if net.prefix_len() <= 64 && self.is_unused(asker, by_mac) => by_mac,
            Some(before) => before,
            None => self.free(asker, net.into())?,
        };
        Ok(v6(address))
    }

    /// The first free one, else one that is set aside for a port which is gone: the next to be given up.
    fn free(&mut self, asker: &Asker<'_>, of: IpNet) -> Result<IpAddr, Fault> {
        let taken = |address: &IpAddr| {
            *address == of.addr() || self.ports.contains_key(address) || self.reserved.contains_key(address)
        };
        let (passed, found) = match of {
            IpNet::V4(net) => first(self.passed.0, net.hosts().skip(self.passed.0).map(IpAddr::V4), taken),
            // The subnet's own address is every router's (RFC 4291, 2.6.1).
            IpNet::V6(net) => {
                first(self.passed.1, net.hosts().skip(1 + self.passed.1).map(IpAddr::V6), taken)
            }
        };
        match of {
            IpNet::V4(_) => self.passed.0 = passed,
            IpNet::V6(_) => self.passed.1 = passed,
        }
        if let Some(free) = found {
            return Ok(free);
        }
        let unused = self
            .reserved
            .iter()
            .filter(|(address, _)| of.contains(*address) && !self.ports.contains_key(address))
            .filter(|(_, reservation)| !is_in_use(reservation))
            .map(|(address, reservation)| (*address, *reservation));
        let next = asker.in_order(unused.collect()).into_iter().next();
        next.map(|(address, _)| address).ok_or_else(|| {
            Fault::new(
                Kind::ResourceExhausted,
                "NO_ADDRESS",
                format!("no address is left in {} of network `{}`", of.trunc(), self.network.name),
            )
            .hint("delete ports that are not needed, or make a network with a larger subnet")
        })
    }
}

/// Decides the addresses of a port: as asked, as it had them before, or free ones.
///
/// # Errors
/// INVALID_ARGUMENT or ALREADY_EXISTS with what is wrong with an address that was asked for; RESOURCE_EXHAUSTED if a
/// subnet is full.
pub fn addresses<'a>(
    network: &'a Network,
    asker: &'a Asker<'a>,
    spec: &PortSpec,
    others: impl Iterator<Item = &'a Port>,
    reservations: impl Iterator<Item = &'a Reservation> + Clone,
) -> Result<Addresses, Fault> {
    let mut uses = Uses::new(network, others, reservations.clone());
    let (ipv4, ipv6) = choose(&mut uses, asker, spec, reservations.clone())?;
    let used = reservations.clone().filter(used_up(asker, spec, ipv4, ipv6));
    let mut given_up: Vec<_> = used.map(Reservation::key).collect();
    let many = reservations.clone().count().saturating_sub(MOST_RESERVATIONS);
    if many > 0 {
        let first = asker.in_order(reservations.filter(|r| !is_in_use(r)).map(|r| ((), r)).collect());
        given_up.extend(first.into_iter().take(many).map(|((), r)| r.key()));
    }
    Ok(Addresses { ipv4, ipv6, given_up })
}

/// Decides the addresses of all ports of a network that gets a subnet, in their order: what they have they keep. What
/// it costs grows with their number, not with its square.
///
/// # Errors
/// As `addresses`.
pub fn addresses_of_all<'a>(
    network: &'a Network,
    ports: impl Iterator<Item = &'a Port> + Clone,
    reservations: impl Iterator<Item = &'a Reservation> + Clone,
) -> Result<Vec<Addresses>, Fault> {
    let mut uses = Uses::new(network, ports.clone(), reservations.clone());
    let (mut of_name, mut of_mac) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
    for reservation in reservations {
        of_name.entry(&reservation.name).or_default().push(reservation);
        of_mac.entry(reservation.mac).or_default().push(reservation);
    }
    let mut decided = Vec::new();
    for port in ports {
        let asker = Asker {
            name: &port.name,
            mac: port.mac,
            owner: port.owner(),
            by_admin: false,
            has: port.addresses().collect(),
        };
        // As if it asked for what it has.
        let mut spec = port.spec.clone();
        (spec.ipv4, spec.ipv6) = (spec.ipv4.or(port.ipv4), spec.ipv6.or(port.ipv6));
        for own in port.addresses() {
            uses.ports.remove(&own);
        }
        let named = of_name.get(&port.name).into_iter().flatten().copied();
        let (ipv4, ipv6) = choose(&mut uses, &asker, &spec, named.clone())?;
        let chosen = [ipv4.map(IpAddr::V4), ipv6.map(IpAddr::V6)].into_iter().flatten();
        let all: BTreeSet<IpAddr> = chosen.chain(spec.extra.iter().copied()).collect();
        let with_mac = of_mac.get(&Some(port.mac)).into_iter().flatten().copied();
        let there = all.iter().filter_map(|address| uses.reserved.get(address).copied());
        let used = named.chain(with_mac).chain(there).filter(used_up(&asker, &spec, ipv4, ipv6));
        let given_up: BTreeSet<_> = used.map(Reservation::key).collect();
        uses.ports.extend(all.into_iter().map(|address| (address, port)));
        decided.push(Addresses { ipv4, ipv6, given_up: given_up.into_iter().collect() });
    }
    Ok(decided)
}

/// The addresses of a port, of which `reservations` has at least those of its name.
fn choose<'a>(
    uses: &mut Uses<'_>,
    asker: &Asker<'_>,
    spec: &PortSpec,
    reservations: impl Iterator<Item = &'a Reservation>,
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Fault> {
    let own = reservations.filter(|r| asker.had(r)).max_by_key(|r| r.order);
    let ipv4 = uses.ipv4(asker, spec.ipv4, own)?;
    let ipv6 = uses.ipv6(asker, spec.ipv6, own)?;
    for address in &spec.extra {
        uses.check(asker, *address)?;
    }
    Ok((ipv4, ipv6))
}

/// Whether a guest may use the addresses though they are nobody's: its port's record cannot be read.
fn is_in_use(reservation: &Reservation) -> bool {
    reservation.owner == Some(Owner::NOBODY)
}

/// Whether a reservation is used up by a port with these addresses.
fn used_up(
    asker: &Asker<'_>,
    spec: &PortSpec,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
) -> impl Fn(&&Reservation) -> bool {
    let own = [ipv4.map(IpAddr::V4), ipv6.map(IpAddr::V6)];
    let chosen = move |address: &IpAddr| own.contains(&Some(*address)) || spec.extra.contains(address);
    move |r| asker.had(r) || r.mac == Some(asker.mac) || r.addresses().any(|address| chosen(&address))
}

/// The first of `candidates` that is not taken, and how many are passed over with those before them.
fn first(
    passed: usize,
    mut candidates: impl Iterator<Item = IpAddr>,
    taken: impl Fn(&IpAddr) -> bool,
) -> (usize, Option<IpAddr>) {
    let mut looked = 0;
    let found = candidates.find(|address| {
        looked += 1;
        !taken(address)
    });
    // The one that is found may still be refused.
    (passed + looked - usize::from(found.is_some()), found)
}

/// Checks what is not an address: names that guests call each other by. In DNS a port has its host name and its own.
///
/// # Errors
/// ALREADY_EXISTS if another port of the network has one of these names.
pub fn check_names<'a>(
    port: &Name,
    spec: &PortSpec,
    mut others: impl Iterator<Item = &'a Port>,
) -> Result<(), Fault> {
    let hostname = spec.hostname.as_ref().unwrap_or(port);
    let taken = others.find_map(|other| {
        let names = [&other.name, other.hostname()];
        let name = [port, hostname].into_iter().find(|name| names.contains(name))?;
        (other.name != *port).then_some((name, other))
    });
    match taken {
        Some((name, other)) => Err(Fault::new(
            Kind::AlreadyExists,
            "HOSTNAME_TAKEN",
            format!("the host name `{name}` belongs to `{}`", other.resource()),
        )
        .meta("port", other.resource())
        .hint("choose another one with --hostname")),
        None => Ok(()),
    }
}

impl Network {
    /// The address that a guest with this MAC forms by itself, once it has heard the router; `None` where it forms none.
    #[must_use]
    pub fn formed_by(&self, mac: Mac) -> Option<Ipv6Addr> {
        let net = self.ipv6.filter(|net| net.prefix_len() <= 64 && self.services().is_some())?;
        Some(eui64(net, mac))
    }
}

/// The address that a guest forms of its prefix and MAC (RFC 4291, appendix A).
#[must_use]
pub fn eui64(net: Ipv6Net, mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let low = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(u128::from(net.addr()) >> 64 << 64 | u128::from(low))
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(v4) = address { Some(v4) } else { None }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(v6) = address { Some(v6) } else { None }
}

#[cfg(test)]
mod test;
