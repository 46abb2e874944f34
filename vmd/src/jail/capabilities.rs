//! No capability, and none to come.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// `CAP_LAST_CAP` of kernels to come is below this.
const MOST: u32 = 64;

/// Empties all sets: bounding, ambient, inheritable, permitted, effective.
pub fn drop_all() -> Result<(), String> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // An ordinary user may not, outside of a user namespace; no_new_privs does as much then.
    let bounded = drop_bounding();
    let _ = rustix::thread::clear_ambient_capability_set();
    rustix::thread::set_capabilities(None, none).map_err(|e| format!("cannot give up capabilities: {e}"))?;
    if !bounded && rustix::process::geteuid().is_root() {
        return Err("root would get them back by executing QEMU".into());
    }
    Ok(())
}

fn drop_bounding() -> bool {
    for capability in 0..MOST {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let unknown = std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
            return unknown && capability > 0;
        }
    }
    true
}
