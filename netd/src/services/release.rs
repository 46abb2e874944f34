//! Leases given back in the place of guests that are gone.
//!
//! dnsmasq has no command that voids a lease. It does as the client that has it says: DHCPRELEASE (RFC 2131) and
//! Release (RFC 8415). Neither leaves this host.

use super::{
    Stamp,
    lease::{Holder, Holder6},
};
use crate::model::{IfName, Network};
use shared::fault::Fault;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::{Duration, Instant},
};

const SERVER4: u16 = 67;
const SERVER6: u16 = 547;
/// All DHCP relay agents and servers of a link (RFC 8415, 7.1): a server takes a release sent to it alone for a mistake.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// How long none of them may go before nothing more is hoped for: a server writes its file, and waits for the disk, at
/// each one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do about leases that have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// None is there.
    Done,
    /// Look again.
    Wait,
    /// Give them back, and look again.
    Give,
    /// The server does not take them back.
    GiveUp,
}

/// What was seen of them before.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    stamp: Option<Option<Stamp>>,
    held: Option<(BTreeSet<(IpAddr, i64)>, Instant)>,
}

impl Progress {
    /// What to do, now that these are in the file of leases.
    pub fn next(&mut self, stamp: Option<Stamp>, held: BTreeSet<(IpAddr, i64)>, now: Instant) -> Next {
        // The server empties the file before it writes it anew: that none is there counts once it stays so.
        let settled = self.stamp.replace(stamp) == Some(stamp);
        if held.is_empty() {
            self.held = None;
            return if settled { Next::Done } else { Next::Wait };
        }
        // Others may have come in the place of those that went.
        let before = self.held.take().filter(|(before, _)| before.is_subset(&held));
        let since = before.map_or(now, |(_, since)| since);
        self.held = Some((held, since));
        if now < since + PATIENCE { Next::Give } else { Next::GiveUp }
    }
}

/// Says to the server at `link`, which is `index` to the kernel, that the holder of a lease gives it back.
///
/// # Errors
/// INTERNAL if it cannot be sent. Whether the server has heard it, its lease file says.
pub fn send(network: &Network, link: &IfName, index: u32, holder: &Holder) -> Result<(), Fault> {
    let failed = |error: std::io::Error| Fault::internal("cannot give a lease back").cause(&error);
    match holder {
        Holder::V4 { address, mac } => {
            let Some(net) = network.ipv4 else { return Ok(()) };
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
            // The server looks at which link it came by.
            socket.bind_device(Some(link.as_str().as_bytes())).map_err(failed)?;
            let to = SocketAddr::new(IpAddr::V4(net.addr()), SERVER4);
            socket.send_to(&message4(net.addr(), *address, mac.bytes()), &to.into()).map_err(failed)?;
        }
        Holder::V6(holder) => {
            let Some(net) = network.ipv6 else { return Ok(()) };
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
            // An answer to an address of this host would come to the server itself, which would ask for its MAC in vain.
            socket.set_freebind_v6(true).map_err(failed)?;
            socket.bind(&SocketAddrV6::new(holder.address, 0, 0, 0).into()).map_err(failed)?;
            // This host's programs hear it, and no guest does.
            socket.set_multicast_hops_v6(0).map_err(failed)?;
            let to = SocketAddrV6::new(SERVERS, SERVER6, 0, index);
            socket.send_to(&message6(net.addr(), holder), &to.into()).map_err(failed)?;
        }
    }
    Ok(())
}

/// DHCPRELEASE of an address by the NIC that has it.
fn message4(server: Ipv4Addr, address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    // BOOTREQUEST, Ethernet, six bytes of address; a transaction that nobody answers.
    let mut message = vec![1, 1, 6, 0];
    message.extend([0; 8]);
    message.extend(address.octets());
    message.extend([0; 12]);
    message.extend(mac);
    // The rest of the hardware address, server name and boot file.
    message.extend([0; 10 + 64 + 128]);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend([53, 1, 7, 54, 4]);
    message.extend(server.octets());
    message.push(255);
    message
}

/// Release of an address by the client that has it, as if by a relay: of a client on its own link dnsmasq wants to
/// know the MAC, and answers nobody for half a second while it asks in vain.
fn message6(gateway: Ipv6Addr, holder: &Holder6) -> Vec<u8> {
    let mut lease = holder.association.to_be_bytes().to_vec();
    let kind = if holder.temporary {
        4
    } else {
        lease.extend([0; 8]);
        3
    };
    // Its lifetimes do not count.
    option(&mut lease, 5, &[&holder.address.octets()[..], &[0; 8]].concat());
    let mut message = vec![8, 0, 0, 0];
    option(&mut message, 1, &holder.client);
    option(&mut message, 2, &holder.server);
    option(&mut message, kind, &lease);
    // Relay-forward, by no relay before this one: the link's address, and the client's.
    let mut relayed = vec![12, 0];
    relayed.extend(gateway.octets());
    relayed.extend(holder.address.octets());
    option(&mut relayed, 9, &message);
    relayed
}

fn option(message: &mut Vec<u8>, code: u16, content: &[u8]) {
    message.extend(code.to_be_bytes());
    // Made of a line of dnsmasq's, whose options are no longer than that.
    message.extend(u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend(content);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_not_believed_and_a_deaf_server_is_given_up() {
        let (mut progress, begin) = (Progress::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let stamp = |n| Some(Stamp([0, 0, 0, n]));
        let mut next = |stamp, held: &[u8], ms| {
            let address = |n: &u8| (IpAddr::from([10, 0, 0, *n]), 100);
            progress.next(stamp, held.iter().map(address).collect(), at(ms))
        };
        assert_eq!(next(stamp(1), &[1, 2, 3], 0), Next::Give);
        assert_eq!(next(stamp(2), &[], 500), Next::Wait, "it may just be being written");
        assert_eq!(next(stamp(3), &[2, 3], 1000), Next::Give);
        assert_eq!(next(stamp(4), &[3], 5900), Next::Give, "slowly");
        assert_eq!(next(stamp(4), &[4], 10_800), Next::Give);
        assert_eq!(next(stamp(4), &[4], 10_900), Next::Give, "as many, but another one");
        assert_eq!(next(stamp(4), &[4, 5], 15_700), Next::Give);
        assert_eq!(next(stamp(4), &[4, 5], 15_800), Next::GiveUp);
        assert_eq!(next(stamp(5), &[], 16_000), Next::Wait);
        assert_eq!(next(stamp(5), &[], 16_500), Next::Done);
        assert_eq!(next(None, &[], 17_000), Next::Wait);
        assert_eq!(next(None, &[], 17_500), Next::Done, "there is no file");
    }

    #[test]
    fn a_release_has_the_fields_of_its_rfc() {
        let message = message4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), [2, 0, 0, 0, 0, 9]);
        assert_eq!(message[12..16], [10, 0, 0, 2], "ciaddr");
        assert_eq!(message[28..34], [2, 0, 0, 0, 0, 9], "chaddr");
        assert_eq!(message[236..240], [99, 130, 83, 99], "the magic cookie");
        assert_eq!(message[240..], [53, 1, 7, 54, 4, 10, 0, 0, 1, 255]);

        let mut holder = Holder6 {
            address: "fd00::2".parse().unwrap(),
            association: 7,
            temporary: false,
            client: vec![0, 1, 0xaa],
            server: vec![0, 2],
        };
        let gateway = "fd00::1".parse().unwrap();
        let relayed = message6(gateway, &holder);
        assert_eq!((&relayed[..3], relayed[17], relayed[33]), (&[12, 0, 0xfd][..], 1, 2));
        assert_eq!(relayed[34..38], [0, 9, 0, 61]);
        let message = &relayed[38..];
        assert_eq!(message.len(), 61);
        assert_eq!(message[..17], [8, 0, 0, 0, 0, 1, 0, 3, 0, 1, 0xaa, 0, 2, 0, 2, 0, 2]);
        assert_eq!(message[17..33], [0, 3, 0, 40, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(message[33..38], [0, 5, 0, 24, 0xfd]);
        holder.temporary = true;
        assert_eq!(message6(gateway, &holder)[55..68], [0, 4, 0, 32, 0, 0, 0, 7, 0, 5, 0, 24, 0xfd]);
    }
}
