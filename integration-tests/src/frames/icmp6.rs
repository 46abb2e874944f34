//! ICMPv6: neighbour and router discovery, multicast listeners.

use super::Mac;
use std::net::Ipv6Addr;

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Echo request.
pub const ECHO: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Multicast listener query.
pub const QUERY: u8 = 130;
/// Multicast listener report of version 1.
pub const REPORT: u8 = 131;
/// Router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// Router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Redirect.
pub const REDIRECT: u8 = 137;
/// Multicast listener report of version 2.
pub const REPORT_2: u8 = 143;

/// A message; its checksum is the packet's business.
#[derive(Clone, Debug)]
pub struct Icmp6 {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// What follows the checksum.
    pub body: Vec<u8>,
}

impl Icmp6 {
    /// A message of code 0.
    #[must_use]
    pub fn new(kind: u8, body: &[&[u8]]) -> Self {
        Self { kind, code: 0, body: body.concat() }
    }

    /// A router solicitation.
    #[must_use]
    pub fn router_solicitation(options: &[LinkOption]) -> Self {
        Self::new(ROUTER_SOLICITATION, &[&[0; 4], &joined(options)])
    }

    /// I am a router, and this /64 is here: use it and me, for an hour.
    #[must_use]
    pub fn router_advertisement(router: Mac, prefix: Ipv6Addr) -> Self {
        let prefix_option = [&[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0], &prefix.octets()[..]];
        let body: [&[u8]; 3] = [
            &[64, 0, 14, 16, 0, 0, 0, 0, 0, 0, 0, 0],
            &LinkOption::Source(router).bytes(),
            &prefix_option.concat(),
        ];
        Self::new(ROUTER_ADVERTISEMENT, &body)
    }

    /// For `destination` there is a better way, by `target`, whose MAC this is.
    #[must_use]
    pub fn redirect(target: (Mac, Ipv6Addr), destination: Ipv6Addr) -> Self {
        let option = LinkOption::Target(target.0).bytes();
        Self::new(REDIRECT, &[&[0; 4], &target.1.octets(), &destination.octets(), &option])
    }

    /// I listen to these groups, whatever their source (version 2, RFC 3810).
    #[must_use]
    pub fn listener_report(groups: &[Ipv6Addr]) -> Self {
        let count = u8::try_from(groups.len()).expect("a few groups");
        // "Change to exclude mode", with no source excluded.
        let records = groups.iter().map(|group| [&[4, 0, 0, 0], &group.octets()[..]].concat());
        Self::new(REPORT_2, &[&[0, 0, 0, count], &records.collect::<Vec<_>>().concat()])
    }

    /// Who listens to anything? (version 2)
    #[must_use]
    pub fn listener_query() -> Self {
        Self::new(QUERY, &[&[0x27, 0x10, 0, 0], &[0; 16], &[2, 125, 0, 0]])
    }

    /// Whether a receiver wants a hop limit of 255.
    #[must_use]
    pub fn is_of_neighbours(&self) -> bool {
        (ROUTER_SOLICITATION..=REDIRECT).contains(&self.kind)
    }

    /// The message, its checksum zero.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [&[self.kind, self.code, 0, 0], &self.body[..]].concat()
    }
}

/// "This is the answer to a question".
pub const SOLICITED: u8 = 0x40;
/// "Believe this, and not what you believed before".
pub const OVERRIDE: u8 = 0x20;

/// A message about one address.
#[derive(Clone, Copy, Debug)]
pub enum Neighbour {
    /// Who has it?
    Solicitation(Ipv6Addr),
    /// I have it; with the upper byte of the flags.
    Advertisement(u8, Ipv6Addr),
}

impl Neighbour {
    /// The message with options.
    #[must_use]
    pub fn message(self, options: &[LinkOption]) -> Icmp6 {
        let (kind, flags, target) = match self {
            Self::Solicitation(target) => (135, 0, target),
            Self::Advertisement(flags, target) => (136, flags, target),
        };
        Icmp6::new(kind, &[&[flags, 0, 0, 0], &target.octets(), &joined(options)])
    }
}

/// An option of eight bytes.
#[derive(Clone, Copy, Debug)]
pub enum LinkOption {
    /// The MAC of the packet's sender.
    Source(Mac),
    /// The MAC of the target that the message speaks of.
    Target(Mac),
    /// Tells one's own question from another's of the same (RFC 7527).
    Nonce(Mac),
    /// Any bytes.
    Raw([u8; 8]),
}

impl LinkOption {
    /// The option.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        let option = |kind, [a, b, c, d, e, f]: Mac| [kind, 1, a, b, c, d, e, f];
        match self {
            Self::Source(mac) => option(1, mac),
            Self::Target(mac) => option(2, mac),
            Self::Nonce(nonce) => option(14, nonce),
            Self::Raw(bytes) => bytes,
        }
    }
}

fn joined(options: &[LinkOption]) -> Vec<u8> {
    options.iter().flat_map(|option| option.bytes()).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn messages_have_the_lengths_that_receivers_want() {
        let target = Ipv6Addr::LOCALHOST;
        let solicitation = Neighbour::Solicitation(target);
        assert_eq!(solicitation.message(&[]).bytes().len(), 24);
        let bytes = solicitation.message(&[LinkOption::Source([2; 6])]).bytes();
        assert_eq!(bytes[24..], [1, 1, 2, 2, 2, 2, 2, 2]);
        let bytes = Neighbour::Advertisement(SOLICITED | OVERRIDE, target).message(&[]).bytes();
        assert_eq!(bytes[..8], [136, 0, 0, 0, 0x60, 0, 0, 0]);
        assert_eq!(Icmp6::router_solicitation(&[]).bytes().len(), 8);
        assert_eq!(Icmp6::router_advertisement([2; 6], target).bytes().len(), 56);
        assert_eq!(Icmp6::redirect(([2; 6], target), target).bytes().len(), 48);
        assert_eq!(Icmp6::listener_report(&[target]).bytes().len(), 28);
        assert_eq!(Icmp6::listener_query().bytes().len(), 28);
    }
}
