//! Landlock: where netd, nft and dnsmasq may write. They read what its user may read.

use crate::config::Config;
use landlock::{
    ABI, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};
use std::path::Path;

/// The oldest that will do: before it no file could be renamed into another folder at all.
const OLDEST: ABI = ABI::V2;
/// The newest that is asked for.
const NEWEST: ABI = ABI::V5;

/// Restricts this thread; what to warn of. `binds`: the socket is still to be made.
pub fn restrict(config: &Config, binds: bool) -> Option<String> {
    match rules(config, binds) {
        Ok(RulesetStatus::NotEnforced) => Some(
            "this kernel has no Landlock, or it is switched off: netd may write whatever its user may".into(),
        ),
        // An older kernel's knows less, and that is all there is.
        Ok(_) => None,
        Err(error) => Some(format!("cannot use Landlock ({error}): netd may write whatever its user may")),
    }
}

fn rules(config: &Config, binds: bool) -> Result<RulesetStatus, RulesetError> {
    let write = AccessFs::from_write(NEWEST);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_write(OLDEST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(write)?;
    let mut rules = rules.create()?;
    let file = AccessFs::WriteFile | AccessFs::Truncate;
    let device = file | AccessFs::IoctlDev;
    let socket = config.socket.parent().filter(|_| binds);
    let socket = socket.map(|folder| (folder, AccessFs::MakeSock | AccessFs::RemoveFile));
    let rest = [
        // sysctls, and the maps of users of a process in a namespace; the kernel has its own opinion on both.
        ("/proc", file),
        ("/dev/net/tun", device),
        ("/dev/null", device),
    ];
    let own = [(config.state_dir.as_path(), write), (config.run_dir.as_path(), write)];
    let rest = rest.map(|(path, access)| (Path::new(path), access));
    for (path, access) in own.into_iter().chain(socket).chain(rest) {
        // What is not there cannot be written.
        if let Ok(beneath) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(beneath, access))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
