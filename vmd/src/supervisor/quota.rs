//! What one user may have.

use super::NewVm;
use crate::driver::Handle;
use shared::fault::{Fault, Kind};

/// Whether the owner of a new machine may have it besides those that there are.
///
/// # Errors
/// RESOURCE_EXHAUSTED with what there is and what may be.
pub fn check<'a>(machines: impl Iterator<Item = &'a Handle>, new: &NewVm) -> Result<(), Fault> {
    let quota = new.owner.rights.quota;
    let (mut count, mut vcpus, mut bytes) = (1_u64, u64::from(new.spec.vcpus), new.spec.memory_bytes);
    for machine in machines {
        let record = &machine.watch.borrow().record;
        if record.owner == new.owner.uid {
            count += 1;
            vcpus += u64::from(record.spec.vcpus);
            bytes = bytes.saturating_add(record.spec.memory_bytes);
        }
    }
    for (has, most, what) in [
        (count, quota.machines.map(u64::from), "machines"),
        (vcpus, quota.vcpus.map(u64::from), "virtual CPUs"),
        (bytes, quota.memory_bytes, "bytes of memory"),
    ] {
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
