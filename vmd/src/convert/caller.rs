//! Who asks.

use proto::access::v1 as wire;
use shared::access::{Caller, Quota, Role};

/// A caller, and what they may do with machines.
pub fn caller(caller: &Caller) -> wire::Caller {
    let allowed = caller.rights.images.iter().flat_map(|folders| folders.iter());
    let allowed = allowed.filter(|_| caller.rights.role == Role::Operator);
    let image_folders = allowed.map(|folder| folder.display().to_string()).collect();
    wire::Caller { image_folders, ..shared::wire::caller(caller, quota) }
}

fn quota(quota: &Quota) -> wire::Quota {
    wire::Quota {
        machines: quota.machines,
        vcpus: quota.vcpus,
        memory_bytes: quota.memory_bytes,
        ..wire::Quota::default()
    }
}
