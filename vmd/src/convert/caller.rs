//! Who asks.

use proto::access::v1 as wire;
use shared::access::{Caller, Quota, Role};

/// A caller, and what they may do with machines.
pub fn caller(caller: &Caller) -> wire::Caller {
    let rights = &caller.rights;
    let allowed = rights.images.iter().flat_map(|folders| folders.iter());
    let allowed = allowed.filter(|_| rights.role == Role::Operator);
    let folders = allowed.map(|folder| folder.display().to_string()).collect();
    let networks = rights.networks.iter().flatten();
    wire::Caller {
        uid: caller.uid,
        user: caller.user.clone().unwrap_or_default(),
        role: role(rights.role).into(),
        source: rights.source.clone(),
        networks: networks.map(|network| format!("networks/{network}")).collect(),
        all_networks: rights.role >= Role::Operator && rights.networks.is_none(),
        unfiltered: rights.unfiltered,
        quota: (rights.role == Role::Operator).then(|| quota(&rights.quota)),
        image_folders: folders,
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

fn quota(quota: &Quota) -> wire::Quota {
    wire::Quota {
        ports: None,
        ports_per_network: None,
        machines: quota.machines,
        vcpus: quota.vcpus,
        memory_bytes: quota.memory_bytes,
    }
}
