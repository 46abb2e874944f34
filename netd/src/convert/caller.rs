//! Who asks.

use proto::access::v1 as wire;
use shared::access::{Caller, Quota, Role};

/// A caller, and what they may do with networks and ports.
pub fn caller(caller: &Caller) -> wire::Caller {
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
        quota: (rights.role == Role::Operator).then(|| quota(&rights.quota)),
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

fn quota(quota: &Quota) -> wire::Quota {
    wire::Quota {
        ports: quota.ports,
        ports_per_network: quota.ports_per_network,
        machines: None,
        vcpus: None,
        memory_bytes: None,
    }
}
