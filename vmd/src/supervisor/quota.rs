//! What one user may have.

use super::NewVm;
use crate::{driver::Handle, model::Spec};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the owner of a new machine may have it besides those that there are.
///
/// # Errors
/// RESOURCE_EXHAUSTED with what there is and what may be.
pub fn check<'a>(machines: impl Iterator<Item = &'a Handle>, new: &NewVm) -> Result<(), Fault> {
    let quota = new.owner.rights.quota;
    let (mut count, mut vcpus, mut bytes) = (1_u64, u64::from(new.spec.vcpus), new.spec.memory_bytes);
    // A NIC is a port whenever its machine runs, and netd sees vmd ask for it.
    let mut nics = 0_u64;
    let mut nics_of: BTreeMap<Name, u64> = BTreeMap::new();
    let mut add = |spec: &Spec| {
        for nic in &spec.nics {
            // As netd counts, each extra address as one more.
            let ports = 1 + nic.port.extra.len() as u64;
            nics += ports;
            *nics_of.entry(nic.network.clone()).or_default() += ports;
        }
    };
    add(&new.spec);
    for machine in machines {
        let record = &machine.watch.borrow().record;
        if record.owner == new.owner.uid {
            count += 1;
            vcpus += u64::from(record.spec.vcpus);
            bytes = bytes.saturating_add(record.spec.memory_bytes);
            add(&record.spec);
        }
    }
    let mut limits = vec![
        (count, quota.machines.map(u64::from), "machines".to_owned()),
        (vcpus, quota.vcpus.map(u64::from), "virtual CPUs".to_owned()),
        (bytes, quota.memory_bytes, "bytes of memory".to_owned()),
    ];
    // A quota that was lowered must not refuse a machine that has no part in it.
    if !new.spec.nics.is_empty() {
        limits.push((nics, quota.ports.map(u64::from), "NICs".to_owned()));
    }
    for network in new.spec.nics.iter().map(|nic| &nic.network).collect::<BTreeSet<_>>() {
        let has = nics_of.get(network).copied().unwrap_or_default();
        limits.push((has, quota.ports_per_network.map(u64::from), format!("NICs on network `{network}`")));
    }
    for (has, most, what) in limits {
        if let Some(most) = most.filter(|most| has > *most) {
            return Err(Fault::new(
                Kind::ResourceExhausted,
                "MACHINE_QUOTA",
                format!("uid {} would have {has} {what}, and may have {most}", new.owner.uid),
            )
            .context(format!("cannot create machine `{}`", new.name))
            .hint(format!(
                "delete machines that are not needed, or have root raise `quota` in {}",
                new.owner.file.display()
            )));
        }
    }
    Ok(())
}
