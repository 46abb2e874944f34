//! Which user ids of the host machines get: vmd's subordinate ids, one for each machine that runs.

use serde::{Deserialize, Serialize};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    process,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A user and a group of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The range, and who has which part of it.
#[derive(Debug)]
pub struct Pool {
    first: Ids,
    count: u32,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// Where the next search begins: an id is not given again soon.
    next: u32,
    slots: BTreeMap<Name, u32>,
    /// Of processes of which nobody knows what they belong to.
    strangers: BTreeSet<u32>,
}

impl Pool {
    /// The ids that /etc/subuid and /etc/subgid give this process's user.
    ///
    /// # Errors
    /// Why there are none, in words.
    pub fn of_this_user() -> Result<Self, String> {
        let uid = rustix::process::geteuid().as_raw();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = user_name(&passwd, uid);
        let range = |path: &str| {
            let text = fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
            subordinate(&text, user, uid).ok_or_else(|| {
                let user = user.map_or_else(|| format!("uid {uid}"), |user| format!("`{user}`"));
                format!("{path} gives {user} no ids")
            })
        };
        let ((uid, uids), (gid, gids)) = (range("/etc/subuid")?, range("/etc/subgid")?);
        Ok(Self::new(Ids { uid, gid }, uids.min(gids)))
    }

    /// `count` ids from `first` on.
    #[must_use]
    pub fn new(first: Ids, count: u32) -> Self {
        Self { first, count, used: Mutex::default() }
    }

    /// Ids that no other machine has; the same again for a machine that has some.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if all are in use.
    pub fn take(&self, machine: &Name) -> Result<Ids, Fault> {
        let mut used = self.used();
        if let Some(slot) = used.slots.get(machine) {
            return Ok(self.ids(*slot));
        }
        let slot = (used.next..self.count)
            .chain(0..used.next)
            .find(|slot| !used.strangers.contains(slot) && used.slots.values().all(|other| other != slot))
            .ok_or_else(|| {
                Fault::new(
                    Kind::ResourceExhausted,
                    "USER_IDS",
                    format!("all {} user ids that vmd's user may give machines are in use", self.count),
                )
                .hint("give vmd's user more of them in /etc/subuid and /etc/subgid, and start vmd again")
            })?;
        used.next = slot + 1;
        used.slots.insert(machine.clone(), slot);
        Ok(self.ids(slot))
    }

    /// Notes that a machine that runs has this user. Another range's are nobody else's anyway.
    pub fn keep(&self, machine: &Name, uid: u32) {
        if let Some(slot) = uid.checked_sub(self.first.uid).filter(|slot| *slot < self.count) {
            let mut used = self.used();
            used.next = used.next.max(slot + 1);
            used.slots.insert(machine.clone(), slot);
        }
    }

    /// Gives nobody these users, unless a machine that is known has one: they have processes.
    pub fn avoid(&self, uids: impl IntoIterator<Item = u32>) {
        let mut used = self.used();
        let slots = uids.into_iter().filter_map(|uid| uid.checked_sub(self.first.uid));
        let strangers: BTreeSet<u32> = slots
            .filter(|slot| *slot < self.count && used.slots.values().all(|known| known != slot))
            .collect();
        used.strangers.extend(strangers);
    }

    /// The machine runs no more.
    pub fn give_back(&self, machine: &Name) {
        self.used().slots.remove(machine);
    }

    /// The last ids, for a probe: machines get them last.
    #[must_use]
    pub fn last(&self) -> Ids {
        self.ids(self.count - 1)
    }

    fn ids(&self, slot: u32) -> Ids {
        Ids { uid: self.first.uid + slot, gid: self.first.gid + slot }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The users that have processes, as far as /proc shows them.
pub(super) fn users_of_processes() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| process::uid(pid).ok()).collect()
}

/// The name of the user with this id, of the text of /etc/passwd.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The first range of a user, `USER:FIRST:COUNT`, where the user is a name or an id.
fn subordinate(text: &str, user: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':').map(str::trim);
        let owner = fields.next()?;
        if Some(owner) != user && owner.parse() != Ok(uid) {
            return None;
        }
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        // Never root, and never beyond the ids that there are.
        let usable = first > 0 && count > 0 && first.checked_add(count).is_some();
        usable.then_some((first, count))
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_range_is_the_users_own_by_name_or_number() {
        let text = "other:100:5\n# note\nvmd:2000:10\n7:3000:1\nbad:x:1\n";
        assert_eq!(subordinate(text, Some("vmd"), 9), Some((2000, 10)));
        assert_eq!(subordinate(text, None, 7), Some((3000, 1)));
        assert_eq!(subordinate(text, Some("bad"), 9), None);
        assert_eq!(subordinate(text, Some("none"), 9), None);
        for line in ["vmd:0:10", "vmd:5:0", "vmd:4294967295:2", "vmd:5", "vmd"] {
            assert_eq!(subordinate(line, Some("vmd"), 9), None, "{line}");
        }
        assert_eq!(user_name("root:x:0:0:r:/:/bin/sh\nvmd:x:64055:1::/:/x\n", 64_055), Some("vmd"));
        assert_eq!(user_name("root:x:0:0:r:/:/bin/sh\n", 1), None);
    }

    #[test]
    fn no_two_machines_have_the_same_ids_and_an_adopted_one_keeps_its_own() {
        let pool = Pool::new(Ids { uid: 100, gid: 200 }, 3);
        let name = |text: &str| text.parse::<Name>().unwrap();
        pool.keep(&name("old"), 101);
        // Of another range: passed over.
        pool.keep(&name("older"), 99);
        let a = pool.take(&name("a")).unwrap();
        assert_eq!(a, Ids { uid: 102, gid: 202 });
        assert_eq!(pool.take(&name("a")).unwrap(), a);
        assert_eq!(pool.take(&name("b")).unwrap(), Ids { uid: 100, gid: 200 });
        assert_eq!(pool.take(&name("c")).unwrap_err().reason(), "USER_IDS");
        pool.give_back(&name("old"));
        assert_eq!(pool.take(&name("c")).unwrap().uid, 101);
    }

    #[test]
    fn a_user_whose_process_nobody_knows_is_given_to_no_machine() {
        let own = rustix::process::getuid().as_raw();
        let users = users_of_processes();
        assert!(users.contains(&own), "{users:?}");
        let pool = Pool::new(Ids { uid: own, gid: 1 }, 1);
        let web = "web".parse().unwrap();
        pool.keep(&web, own);
        pool.avoid(users.clone());
        pool.give_back(&web);
        assert_eq!(pool.take(&web).unwrap().uid, own, "it was known");
        pool.give_back(&web);
        pool.avoid(users);
        assert_eq!(pool.take(&web).unwrap_err().reason(), "USER_IDS");
    }
}
