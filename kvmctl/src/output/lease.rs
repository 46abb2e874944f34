//! Leases as they are printed.

use super::{
    Object, last_part, set,
    text::{Sheet, or_dash},
    time::rfc3339,
};
use proto::netd::v1 as wire;
use serde::Serialize;

/// An address that a network's DHCP server has given out.
#[derive(Clone, Debug, Serialize)]
pub struct Lease {
    /// Without prefix length.
    pub address: String,
    /// Who has it; null if it is not known any more.
    pub mac: Option<String>,
    /// The guest's name in DNS, without domain; null if the port is gone.
    pub hostname: Option<String>,
    /// Bare name of the port it is reserved for; null if that is gone.
    pub port: Option<String>,
    /// When it ends unless the guest asks again.
    pub expire_time: Option<String>,
}

impl From<wire::Lease> for Lease {
    fn from(lease: wire::Lease) -> Self {
        Self {
            address: lease.address,
            mac: set(lease.mac),
            hostname: set(lease.hostname),
            port: set(last_part(&lease.port)),
            expire_time: rfc3339(lease.expire_time.as_ref()),
        }
    }
}

impl Object for Lease {
    const COLUMNS: &'static [&'static str] = &["ADDRESS", "MAC", "HOSTNAME", "PORT", "EXPIRES"];

    fn name(&self) -> &str {
        &self.address
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.address.clone(),
            or_dash(self.mac.as_deref()),
            or_dash(self.hostname.as_deref()),
            or_dash(self.port.as_deref()),
            or_dash(self.expire_time.as_deref()),
        ]
    }

    fn sheet(&self) -> String {
        Sheet::default()
            .line("Address", &self.address)
            .maybe("MAC", self.mac.as_deref())
            .maybe("Host name", self.hostname.as_deref())
            .maybe("Port", self.port.as_deref())
            .maybe("Expires", self.expire_time.as_deref())
            .render()
    }

    fn summary(&self) -> String {
        [self.hostname.clone(), self.mac.clone()].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}
