//! Ports of netd: where guests plug in.

mod fake;
mod netd;
mod releases;

pub use fake::FakePorts;
pub use netd::NetdPorts;
pub use releases::{KIND_PORT, PortRecord, Releases};

use crate::model::{Addresses, PortOptions};
use sha2::{Digest as _, Sha256};
use shared::{fault::Fault, mac::Mac, name::Name};
use std::future::Future;

/// A port as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// The machine it is for.
    pub vm: Name,
    /// Whose machine that is: nobody else's port gets what this one leaves behind.
    pub tenant: u32,
    /// Network and name as netd's resource name.
    pub resource: String,
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's name on the network; `None`: the port's.
    pub hostname: Option<Name>,
    /// What else the NIC asks for.
    pub options: PortOptions,
}

/// A port as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Tells it from another one of the same name later.
    pub uid: String,
    /// Name of the tap.
    pub interface: String,
    /// Bytes.
    pub mtu: u32,
    /// The only user that may open the tap.
    pub owner_uid: u32,
    /// What netd recorded as the guest's.
    pub addresses: Addresses,
}

/// Whoever makes ports.
pub trait Ports: Clone + Send + Sync + 'static {
    /// Fails with NOT_FOUND unless there is such a network.
    fn check_network(&self, network: &Name) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Makes a port, or finds it as it is asked for.
    fn create(&self, port: &PortRequest) -> impl Future<Output = Result<Port, Fault>> + Send;
    /// Deletes a port, if its uid is still `uid`; `None`: whatever its uid. One that is not there is fine.
    fn delete(&self, resource: &str, uid: Option<&str>) -> impl Future<Output = Result<(), Fault>> + Send;
    /// The resource names of all ports that a vmd of this user made.
    fn own(&self) -> impl Future<Output = Result<Vec<String>, Fault>> + Send;
}

/// The name of a machine's port: `MACHINE-INDEX`, cut and marked with a hash where that is too long.
#[must_use]
pub fn port_name(vm: &Name, index: usize) -> String {
    let plain = format!("{vm}-{index}");
    if plain.len() <= Name::MAX_LEN {
        return plain;
    }
    let hash = Sha256::digest(vm.as_str().as_bytes());
    let tail = format!("-{:02x}{:02x}{:02x}{:02x}-{index}", hash[0], hash[1], hash[2], hash[3]);
    format!("{}{tail}", &vm.as_str()[..Name::MAX_LEN - tail.len()])
}

/// A port's resource name.
#[must_use]
pub fn resource(network: &Name, port: &str) -> String {
    format!("{}/{network}/ports/{port}", crate::convert::NETWORKS)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn port_names_are_names_and_differ() {
        let long: Name = "x".repeat(63).parse().unwrap();
        let other: Name = format!("{}y", "x".repeat(62)).parse().unwrap();
        let names = [port_name(&long, 0), port_name(&long, 15), port_name(&other, 0)];
        for name in &names {
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
        assert_ne!(names[0], names[1]);
        assert_ne!(names[0], names[2]);
        assert_eq!(port_name(&"web".parse().unwrap(), 3), "web-3");
    }
}
