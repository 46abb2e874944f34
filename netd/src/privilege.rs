//! Gives up what netd does not need, before it has threads: root, all capabilities but three, new privileges, and
//! writing outside of its own folders.
//!
//! ```text
//!   as root:    folders and the socket are made and given to the user -> bounding set -> groups, gid, uid
//!   as anybody: capabilities, ambient for nft and dnsmasq -> no_new_privs -> not dumpable -> Landlock
//! ```
//!
//! All of it is a thread's own, and is inherited by the threads and programs that it makes.

mod files;
mod reach;

use crate::config::Config;
use rustix::{
    fs::{Gid, Uid},
    io::Errno,
    process::{DumpableBehavior, geteuid, set_dumpable_behavior},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
        set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use shared::{
    fault::{Fault, Kind},
    socket::Prepared,
};
use std::fs;

/// Users that netd becomes if none is named and there is one.
const USERS: [&str; 2] = ["netd", "kvmctl-netd"];
/// Bridges, taps, rules and sysctls; raw frames, for captures and for dnsmasq; dnsmasq's ports.
const KEPT: [CapabilitySet; 3] =
    [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW, CapabilitySet::NET_BIND_SERVICE];

/// Whom netd becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id, not 0.
    pub uid: u32,
    /// The user's primary group.
    pub gid: u32,
}

/// What is said once there is a log.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The socket, if it had to be made by root.
    pub socket: Option<Prepared>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Gives up what netd does not need. `group` may use the socket.
///
/// # Errors
/// INVALID_ARGUMENT if the user is not there or is root; FAILED_PRECONDITION if netd lacks CAP_NET_ADMIN, if another
/// netd has the state folder, or what the kernel refused.
pub fn give_up(config: &Config, group: Option<u32>) -> Result<Outcome, Fault> {
    let mut outcome = Outcome::default();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = user(config.user.as_deref(), geteuid().is_root(), &passwd)?;
    let held = capabilities(None).map_err(|e| failed("read capabilities", e))?.permitted;
    let kept = KEPT.into_iter().filter(|one| held.contains(*one)).fold(CapabilitySet::empty(), |a, b| a | b);
    if !kept.contains(CapabilitySet::NET_ADMIN) {
        let message = "netd lacks CAP_NET_ADMIN, without which it can make no network";
        return Err(Fault::new(Kind::FailedPrecondition, "NO_CAPABILITY", message)
            .hint("start it as root, or by netd.service, which gives it what it needs"));
    }
    match user {
        None if geteuid().is_root() => {
            outcome.warnings.push(
                "netd runs as root: make a user `netd`, or name one with --user, and it needs root no more"
                    .into(),
            );
            return Ok(outcome);
        }
        Some(user) if geteuid().is_root() => {
            outcome.socket = Some(files::give(config, user, group)?);
            become_user(user).map_err(|e| failed("become the user of --user", e))?;
        }
        Some(user) if user.uid != geteuid().as_raw() => {
            return Err(Fault::new(Kind::InvalidArgument, "NOT_ROOT", "only root can become another user")
                .hint("start netd as root, or without --user"));
        }
        _ => {}
    }
    keep(kept).map_err(|e| failed("give up capabilities", e))?;
    set_no_new_privs(true).map_err(|e| failed("give up new privileges", e))?;
    // Programs that it starts have its uid: none may look into it, or trace it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| failed("hide from debuggers", e))?;
    // Landlock knows folders that are there. Whoever needs one says why it cannot be.
    let _ = files::make(&config.state_dir, 0o700).and_then(|()| files::make(&config.run_dir, 0o711));
    outcome.warnings.extend(reach::restrict(config, outcome.socket.is_none()));
    Ok(outcome)
}

fn failed(what: &str, error: Errno) -> Fault {
    Fault::new(Kind::FailedPrecondition, "PRIVILEGES", format!("cannot {what}")).cause(&error)
}

/// The user that was named, by name or number. If none was, the first of `USERS` that there is, which only root can
/// become.
fn user(named: Option<&str>, root: bool, passwd: &str) -> Result<Option<User>, Fault> {
    let lines = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let find = |field: usize, text: &str| {
        let line = lines().find(|fields| fields.get(field) == Some(&text))?;
        Some(User { uid: line.get(2)?.parse().ok()?, gid: line.get(3)?.parse().ok()? })
    };
    let Some(named) = named else {
        let default = || USERS.iter().find_map(|name| find(0, name)).filter(|user| user.uid != 0);
        return Ok(if root { default() } else { None });
    };
    let number = || named.parse().ok().map(|uid| find(2, named).unwrap_or(User { uid, gid: uid }));
    let refused = |what: &str| {
        Fault::new(Kind::InvalidArgument, "NO_SUCH_USER", format!("`{named}` {what}"))
            .hint("make a system user for netd alone, and name it with --user")
    };
    match find(0, named).or_else(number) {
        None => Err(refused("is no user")),
        Some(User { uid: 0, .. }) => Err(refused("is root")),
        user => Ok(user),
    }
}

/// Leaves root for good. The capabilities that are permitted stay so, and are sorted out afterwards.
fn become_user(user: User) -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if KEPT.contains(&one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_keep_capabilities(false)
}

/// Has these capabilities and no others, and lets nft and dnsmasq have them too.
fn keep(kept: CapabilitySet) -> Result<(), Errno> {
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    clear_ambient_capability_set()?;
    KEPT.into_iter()
        .filter(|one| kept.contains(*one))
        .try_for_each(|one| configure_capability_in_ambient_set(one, true))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_user_of_its_own_is_found_by_name_number_or_default() {
        let passwd = "root:x:0:0::/:\nnobody:x:65534:65534::/:\nkvmctl-netd:x:990:980::/:\n";
        let found = |named| user(named, true, passwd);
        let own = Some(User { uid: 990, gid: 980 });
        assert_eq!(found(None).unwrap(), own);
        assert_eq!(found(Some("kvmctl-netd")).unwrap(), own);
        assert_eq!(found(Some("990")).unwrap(), own);
        assert_eq!(found(Some("4711")).unwrap(), Some(User { uid: 4711, gid: 4711 }));
        for refused in ["root", "0", "no-such-user", ""] {
            assert_eq!(found(Some(refused)).unwrap_err().reason(), "NO_SUCH_USER", "{refused}");
        }
        let both = format!("{passwd}netd:x:991:981::/:\n");
        assert_eq!(user(None, true, &both).unwrap(), Some(User { uid: 991, gid: 981 }));
        assert_eq!(user(None, false, &both).unwrap(), None, "who is not root stays who it is");
        assert_eq!(user(Some("netd"), false, &both).unwrap(), Some(User { uid: 991, gid: 981 }));
        let alias = "root:x:0:0::/:\nnetd:x:0:0::/:\n";
        assert_eq!(user(None, true, alias).unwrap(), None, "another name of root's");
    }
}
