//! Who may do what.
//!
//! A caller is known by the uid of its connection, and by the groups that the user database gives to that uid now.
//! A file of root's says what follows from that: a role, networks, quotas. The layer of `serve` refuses what a role
//! does not cover before the request is read, and hands the `Caller` to the service, which judges ownership.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod identity;
mod layer;
mod live;
mod policy;
mod redact;
mod subordinate;

pub use identity::groups_of;
pub use layer::{Gate, GateLayer, Guarded};
pub use live::{Access, DEFAULT_FILE, OwnUser};
pub use policy::{Quota, Rights};
pub use redact::redact;
pub use subordinate::Subordinates;

use crate::{
    fault::{Fault, Kind},
    name::Name,
};
use policy::Policy;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    str::FromStr,
    sync::{Arc, OnceLock},
};

/// What a caller is to a daemon; each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees what there is, without host paths and secrets.
    Viewer,
    /// Has machines and ports of its own.
    Operator,
    /// Does all, to everybody's objects.
    Admin,
}

impl Role {
    /// As the access file has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        [Self::Viewer, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| Fault::internal(format!("there is no role `{text}`")))
    }
}

/// Longest object in the audit log, in characters.
const LONGEST_OBJECT: usize = 160;

/// Whoever sent a request. The layer puts it into the request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// By the socket's credentials.
    pub uid: u32,
    /// By the user database; `None` if it does not know the uid.
    pub user: Option<String>,
    /// What follows from that.
    pub rights: Rights,
    /// The file that decides it.
    pub file: Arc<Path>,
    object: Arc<OnceLock<String>>,
}

impl Caller {
    /// A caller with these rights.
    #[must_use]
    pub fn new(uid: u32, user: Option<String>, rights: Rights, file: Arc<Path>) -> Self {
        Self { uid, user, rights, file, object: Arc::default() }
    }

    /// Root, where no file says anything of uplinks: what a daemon does by itself.
    #[must_use]
    pub fn root() -> Self {
        let rights = Policy::default().admin("root".into());
        Self::new(0, Some("root".into()), rights, Path::new(DEFAULT_FILE).into())
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// PERMISSION_DENIED if the request did not come by the layer that knows it.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Fault> {
        request.extensions().get::<Self>().cloned().ok_or_else(unknown)
    }

    /// Says which object the request is about, as the client named it, for the audit log. The first word counts.
    pub fn about(&self, object: &str) {
        let _ = self.object.set(object.chars().take(LONGEST_OBJECT).flat_map(char::escape_debug).collect());
    }

    /// What `about` was told; empty if nothing.
    #[must_use]
    pub fn object(&self) -> &str {
        self.object.get().map_or("", String::as_str)
    }

    /// Whether it is an admin.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.rights.role == Role::Admin
    }

    /// The uid that ownership is judged by: an admin acts on everybody's objects, as root does.
    #[must_use]
    pub fn acting_uid(&self) -> u32 {
        if self.is_admin() { 0 } else { self.uid }
    }

    /// Whether an object of that owner may be changed, or looked into, by this caller.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with `what` it is, such as `machine`.
    pub fn must_own(&self, what: &str, owner: u32) -> Result<(), Fault> {
        if self.is_admin() || self.uid == owner {
            return Ok(());
        }
        Err(Fault::new(
            Kind::PermissionDenied,
            "NOT_OWNER",
            format!("the {what} belongs to uid {owner}, and the caller is uid {}", self.uid),
        )
        .hint("ask its owner, or an admin"))
    }

    /// Whether machines and ports of this caller may be on a network.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with what grants it.
    pub fn must_be_granted(&self, network: &Name) -> Result<(), Fault> {
        match &self.rights.networks {
            Some(networks) if !networks.contains(network) => Err(Fault::new(
                Kind::PermissionDenied,
                "NETWORK_NOT_GRANTED",
                format!("network `{network}` is not granted to uid {}", self.uid),
            )
            .meta("network", network)
            .hint(format!("root can add it to `networks` of a grant in {}", self.file.display()))),
            _ => Ok(()),
        }
    }

    /// Whether ports of this caller may go without a filter.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with what grants it.
    pub fn must_filter(&self, filter: bool) -> Result<(), Fault> {
        if filter || self.rights.unfiltered {
            return Ok(());
        }
        Err(Fault::new(
            Kind::PermissionDenied,
            "UNFILTERED",
            format!(
                "uid {} may not have a port without a filter: its guest could speak for others",
                self.uid
            ),
        )
        .hint(format!(
            "leave the filter on, or have root set `unfiltered` in a grant in {}",
            self.file.display()
        )))
    }

    /// Whether this caller may change the groups of a port from one set to another: into one it puts only what is granted,
    /// and takes out only what it might have put in.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with what grants it.
    pub fn must_be_granted_groups(
        &self,
        before: &BTreeSet<Name>,
        after: &BTreeSet<Name>,
    ) -> Result<(), Fault> {
        let Some(granted) = &self.rights.port_groups else { return Ok(()) };
        let Some(group) = before.symmetric_difference(after).find(|group| !granted.contains(*group)) else {
            return Ok(());
        };
        let change = if after.contains(group) { "put a port into" } else { "take a port out of" };
        Err(Fault::new(
            Kind::PermissionDenied,
            "GROUP_NOT_GRANTED",
            format!("uid {} may not {change} group `{group}`: it is not granted", self.uid),
        )
        .meta("group", group)
        .hint(format!(
            "ask an admin, or have root add it to `port_groups` of a grant in {}",
            self.file.display()
        )))
    }

    /// Whether a network may use an interface of the host: a NIC as its uplink, or a bridge.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with what allows it.
    pub fn must_be_allowed_uplink(&self, interface: &str) -> Result<(), Fault> {
        match &self.rights.uplinks {
            Some(uplinks) if !uplinks.contains(interface) => Err(Fault::new(
                Kind::PermissionDenied,
                "UPLINK_NOT_ALLOWED",
                format!("interface `{}` is not among the allowed uplinks", crate::name::printable(interface)),
            )
            .hint(format!("root can add it to `uplinks` in {}", self.file.display()))),
            _ => Ok(()),
        }
    }

    /// A text that may name files of the host, fit for this caller.
    #[must_use]
    pub fn words(&self, text: &str) -> String {
        if self.is_admin() { text.to_owned() } else { redact(text) }
    }
}

/// Nobody knows who sent it.
fn unknown() -> Fault {
    Fault::new(Kind::PermissionDenied, "UNKNOWN_PEER", "the caller cannot be identified")
        .hint("connect through the daemon's Unix socket")
}
