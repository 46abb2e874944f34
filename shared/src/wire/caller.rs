//! Who asks.

use crate::access::{Caller, Quota, Role};
use proto::access::v1 as wire;

/// A caller, and what they may do with the objects of every daemon. `quota` has the limits that the daemon counts;
/// folders of images are for the daemon that opens some.
#[must_use]
pub fn caller(caller: &Caller, quota: impl FnOnce(&Quota) -> wire::Quota) -> wire::Caller {
    let rights = &caller.rights;
    let networks = rights.networks.iter().flatten();
    wire::Caller {
        uid: caller.uid,
        user: caller.user.clone().unwrap_or_default(),
        role: role(rights.role).into(),
        source: rights.source.clone(),
        networks: networks.map(|network| format!("networks/{network}")).collect(),
        all_networks: rights.role >= Role::Operator && rights.networks.is_none(),
        unfiltered: rights.unfiltered,
        port_groups: rights.port_groups.iter().flatten().map(|group| format!("groups/{group}")).collect(),
        all_port_groups: rights.role >= Role::Operator && rights.port_groups.is_none(),
        quota: (rights.role == Role::Operator).then(|| wire::Quota {
            changes_per_second: rights.quota.changes_per_second,
            ..quota(&rights.quota)
        }),
        image_folders: Vec::new(),
        access_file: caller.file.display().to_string(),
    }
}

fn role(role: Role) -> wire::Role {
    match role {
        Role::Viewer => wire::Role::Viewer,
        Role::Operator => wire::Role::Operator,
        Role::Admin => wire::Role::Admin,
    }
}
