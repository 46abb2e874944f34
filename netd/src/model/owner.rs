//! Whose ports are, and what is set aside for their owners when they go.

use super::{PortKey, port_resource};
use serde::{Deserialize, Serialize};
use shared::{mac::Mac, name::Name};
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Whose a port is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// By the socket's credentials.
    pub uid: u32,
    /// Whom that user made it for, by that user's word; empty: for itself. `None` in records of earlier versions, which
    /// may be any of its.
    #[serde(default)]
    pub tenant: Option<String>,
}

impl Owner {
    /// What is nobody's, and is given to nobody.
    pub const NOBODY: Self = Self { uid: u32::MAX, tenant: None };

    /// Whether both are, or may be, the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let unknown = self.tenant.is_none() || other.tenant.is_none();
        self.uid == other.uid && (unknown || self.tenant == other.tenant)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}", self.uid)?;
        match self.tenant.as_deref() {
            None | Some("") => Ok(()),
            Some(tenant) => write!(f, " for `{tenant}`"),
        }
    }
}

/// Tells reservations apart: network, name and owner.
pub type ReservationKey = (Name, Name, Option<Owner>);

/// What a deleted port had: it goes to a port of the same name and owner again, so that a machine keeps its addresses
/// over a restart, unless the network has no other left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The network.
    pub network: Name,
    /// The port's name there.
    pub name: Name,
    /// Whose it was. `None` in records of earlier versions: an admin's port of that name gets it, and whoever asks for
    /// the address.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// Its MAC.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// More addresses that it had.
    #[serde(default)]
    pub extra: BTreeSet<IpAddr>,
    /// Its name in DNS, where that was another one.
    #[serde(default)]
    pub hostname: Option<Name>,
    /// Larger than that of every earlier one: the one of least number is given up first.
    pub order: i64,
}

impl Reservation {
    /// Its key in maps.
    #[must_use]
    pub fn key(&self) -> ReservationKey {
        (self.network.clone(), self.name.clone(), self.owner.clone())
    }

    /// The port's key.
    #[must_use]
    pub fn port(&self) -> PortKey {
        (self.network.clone(), self.name.clone())
    }

    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6));
        own.chain(self.extra.iter().copied())
    }

    /// Whether somebody else's port must not have what is set aside here.
    #[must_use]
    pub fn is_kept_from(&self, other: &Owner) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.is(other))
    }
}

/// Id of a reservation's record.
#[must_use]
pub fn reservation_id((network, name, owner): &ReservationKey) -> String {
    let port = port_resource(network, name);
    match owner {
        None => port,
        Some(Owner { uid, tenant: None }) => format!("{port}#{uid}"),
        Some(Owner { uid, tenant: Some(tenant) }) => format!("{port}#{uid}/{tenant}"),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_record_of_an_earlier_version_is_read_and_has_no_owner() {
        let old = r#"{"network":"lan","name":"web","ipv4":"10.0.0.2","ipv6":null,"order":3}"#;
        let old: Reservation = serde_json::from_str(old).unwrap();
        assert_eq!((old.owner.as_ref(), old.mac, old.extra.len()), (None, None, 0));
        assert_eq!(reservation_id(&old.key()), "networks/lan/ports/web");
        assert!(!old.is_kept_from(&Owner { uid: 7, tenant: Some(String::new()) }));
    }

    #[test]
    fn owners_differ_by_uid_and_by_tenant_where_both_are_known() {
        let owner = |uid, tenant: Option<&str>| Owner { uid, tenant: tenant.map(str::to_owned) };
        assert!(!owner(1, None).is(&owner(2, None)));
        assert!(owner(1, None).is(&owner(1, Some("7"))));
        assert!(!owner(1, Some("")).is(&owner(1, Some("7"))));
        assert!(owner(1, Some("7")).is(&owner(1, Some("7"))));
    }
}
