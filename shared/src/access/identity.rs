//! Who a uid is, by the user database.

use super::subordinate::{self, SUBUID};
use crate::socket::Peer;
use nix::{
    errno::Errno,
    unistd::{Group, Uid, User, getgrouplist},
};
use std::{collections::BTreeSet, ffi::CString, io, path::Path};

/// A caller, as the host knows it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// By the socket's credentials.
    pub uid: u32,
    /// `None`: the user database does not know it.
    pub user: Option<String>,
    /// All its groups.
    pub groups: BTreeSet<u32>,
}

/// Looks a peer up. The groups are those that the user database has now, not those that the process was started with.
/// For a uid that it does not know, as in a container, they are the connection's; but for one that `/etc/subuid` gives
/// to somebody there are none, since whoever has it enters a user namespace with groups of their choice. May block,
/// where the user database is on the network.
///
/// # Errors
/// If the user database or `/etc/subuid` cannot be read: then it is not known what the caller may do.
pub fn look_up(peer: &Peer) -> io::Result<Identity> {
    look_up_by(peer, Path::new(SUBUID))
}

fn look_up_by(peer: &Peer, subuid: &Path) -> io::Result<Identity> {
    let found = User::from_uid(Uid::from_raw(peer.uid))?;
    let Some(user) = found else {
        let groups = if subordinate::ranges(subuid)?.iter().any(|range| range.contains(&peer.uid.into())) {
            BTreeSet::new()
        } else {
            peer.groups.iter().copied().chain([peer.gid]).collect()
        };
        return Ok(Identity { uid: peer.uid, user: None, groups });
    };
    let groups = groups(&user)?;
    Ok(Identity { uid: peer.uid, user: Some(user.name), groups })
}

/// The groups that the user database has for a uid; none for one that it does not know. May block, where the user
/// database is on the network.
///
/// # Errors
/// If the user database cannot be read.
pub fn groups_of(uid: u32) -> io::Result<BTreeSet<u32>> {
    User::from_uid(Uid::from_raw(uid))?.map_or_else(|| Ok(BTreeSet::new()), |user| groups(&user))
}

fn groups(user: &User) -> io::Result<BTreeSet<u32>> {
    let name = CString::new(user.name.as_str()).map_err(io::Error::other)?;
    Ok(getgrouplist(&name, user.gid)?.into_iter().map(nix::unistd::Gid::as_raw).collect())
}

/// The id of a group; `None` if the database has none of that name. May block, where it is on the network.
///
/// # Errors
/// If it cannot be asked: then it is not known who is in the group.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    match Group::from_name(name) {
        Ok(group) => Ok(group.map(|group| group.gid.as_raw())),
        // What some databases say of a name that they do not know: getgrnam_r(3).
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the user database knows a user of that name; true if it cannot be asked.
#[must_use]
pub fn user_is_known(name: &str) -> bool {
    !matches!(User::from_name(name), Ok(None))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;

    fn peer(uid: u32) -> Peer {
        Peer { uid, gid: 7, pid: 0, groups: [8, 9].into() }
    }

    #[test]
    fn a_known_users_groups_are_the_databases_and_an_unknown_ones_the_connections() {
        let root = look_up(&peer(0)).unwrap();
        assert_eq!(root.user.as_deref(), Some("root"));
        assert!(root.groups.contains(&0) && !root.groups.contains(&8), "{root:?}");
        let nobody = look_up(&peer(3_999_999_999)).unwrap();
        assert_eq!((nobody.user, nobody.groups), (None, [7, 8, 9].into()));
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("no such group").unwrap(), None);
        assert!(user_is_known("root") && !user_is_known("no such user"));
    }

    /// Whoever has the id chose the groups.
    #[test]
    fn a_subordinate_uid_has_no_groups() {
        const FIRST: u32 = 3_999_000_000;
        let dir = tempfile::tempdir().unwrap();
        let subuid = dir.path().join("subuid");
        let groups = |uid| look_up_by(&peer(uid), &subuid).unwrap().groups;
        assert_eq!(groups(FIRST), [7, 8, 9].into(), "without the file");
        fs::write(&subuid, format!("# no line\nx:1\nalice:100:5\nbob:{FIRST}:10\nlast:4294967290:9\n"))
            .unwrap();
        for (uid, subordinate) in
            [(FIRST - 1, false), (FIRST, true), (FIRST + 9, true), (FIRST + 10, false), (u32::MAX - 1, true)]
        {
            assert_eq!(groups(uid).is_empty(), subordinate, "{uid}");
        }
        assert!(look_up_by(&peer(0), &subuid).unwrap().groups.contains(&0), "a known user");
        assert!(look_up_by(&peer(FIRST), dir.path()).is_err(), "what cannot be read grants nothing");
    }
}
