//! Landlock: which files QEMU may open by name, and whom it may signal. Where it has a root folder of its own this is
//! a second wall; where it has none, the only one.

use super::{DEVICES, Layer, Spec};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use std::path::Path;

/// The newest that is asked for; an older kernel gives what it has.
const ABI_WANTED: ABI = ABI::V10;

/// Restricts this process. Says what an older kernel lacks, or nothing.
///
/// # Errors
/// If the kernel has no Landlock.
pub fn restrict(spec: &Spec) -> Result<String, String> {
    let failed = |error: &dyn std::error::Error| format!("cannot use Landlock: {error}");
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_WANTED))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI_WANTED)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI_WANTED)))
        .and_then(Ruleset::create)
        .map_err(|e| failed(&e))?;
    let read = AccessFs::from_read(ABI_WANTED);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let inside = spec.layers.contains(&Layer::Files);
    let mut allowed: Vec<(&Path, BitFlags<AccessFs>)> = Vec::new();
    if inside {
        allowed.push((Path::new("/"), read));
    } else {
        allowed.extend(spec.read.iter().map(|path| (path.as_path(), read)));
        allowed.extend(spec.files.iter().map(|file| (file.path.as_path(), AccessFs::ReadFile.into())));
    }
    allowed.extend(DEVICES.iter().map(|path| (Path::new(*path), device)));
    allowed.extend(spec.devices.iter().map(|path| (path.as_path(), device)));
    for (path, access) in allowed {
        let beneath = PathFd::new(path).map_err(|e| failed(&e))?;
        rules = rules.add_rule(PathBeneath::new(beneath, access)).map_err(|e| failed(&e))?;
    }
    match rules.restrict_self().map_err(|e| failed(&e))?.ruleset {
        RulesetStatus::FullyEnforced => Ok(String::new()),
        RulesetStatus::PartiallyEnforced => {
            Ok("in part: this kernel's Landlock does not know all of it".into())
        }
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock, or it is switched off".into()),
    }
}
