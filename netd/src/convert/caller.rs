//! Who asks.

use proto::access::v1 as wire;
use shared::access::{Caller, Quota};

/// A caller, and what they may do with networks and ports.
pub fn caller(caller: &Caller) -> wire::Caller {
    shared::wire::caller(caller, quota)
}

fn quota(quota: &Quota) -> wire::Quota {
    wire::Quota { ports: quota.ports, ports_per_network: quota.ports_per_network, ..wire::Quota::default() }
}
