//! What the access file says, and what follows for a caller. Pure.

use super::{OwnUser, Role, identity::Identity};
use crate::{
    bucket::Pace,
    fault::{Fault, Kind},
    name::{Name, printable},
};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    path::{Component, PathBuf},
    sync::Arc,
};

/// Where operators' disks and kernels are, unless the file says otherwise.
const IMAGES: &str = "/var/lib/kvmctl/images";
/// Ports of an operator, unless the file says otherwise: of 200 machines with all their NICs.
const PORTS: u32 = 4096;
/// Changes of an operator in a second, unless the file says otherwise.
const CHANGES: u32 = 10;
/// A burst of changes is what may be made in so many seconds: 400, stops and starts of 200 machines.
const BURST_SECONDS: u32 = 40;
/// Stands for every group.
const ANY: &str = "*";
/// Machines of an operator, unless the file says otherwise.
const MACHINES: u32 = 256;
const MIB: u64 = 1 << 20;

/// What one user may have at most; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Ports.
    pub ports: Option<u32>,
    /// Ports on one network.
    pub ports_per_network: Option<u32>,
    /// Machines.
    pub machines: Option<u32>,
    /// Virtual CPUs of all machines together.
    pub vcpus: Option<u32>,
    /// Bytes of all machines together.
    pub memory_bytes: Option<u64>,
    /// Changes in a second, in the long run.
    pub changes_per_second: Option<u32>,
}

impl Quota {
    /// How often changes may be made; `None`: as often as one likes.
    pub(super) fn changes(&self) -> Option<Pace> {
        let rate = self.changes_per_second?.max(1);
        Some(Pace { burst: f64::from(rate) * f64::from(BURST_SECONDS), per_second: rate.into() })
    }

    /// The larger of both, in each respect.
    fn or(self, other: Self) -> Self {
        fn larger<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            a.zip(b).map(|(a, b)| a.max(b))
        }
        Self {
            ports: larger(self.ports, other.ports),
            ports_per_network: larger(self.ports_per_network, other.ports_per_network),
            machines: larger(self.machines, other.machines),
            vcpus: larger(self.vcpus, other.vcpus),
            memory_bytes: larger(self.memory_bytes, other.memory_bytes),
            changes_per_second: larger(self.changes_per_second, other.changes_per_second),
        }
    }
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Its role.
    pub role: Role,
    /// Why it has that, in words.
    pub source: String,
    /// The networks that its machines and ports may be on; `None`: any.
    pub networks: Option<BTreeSet<Name>>,
    /// Whether its ports may go without a filter.
    pub unfiltered: bool,
    /// The groups that it may put its ports into, and take them out of; `None`: any.
    pub port_groups: Option<BTreeSet<Name>>,
    /// What it may have.
    pub quota: Quota,
    /// Where its disks and kernels have to be; `None`: anywhere.
    pub images: Option<Arc<[PathBuf]>>,
    /// The interfaces that a network may use; `None`: any.
    pub uplinks: Option<Arc<BTreeSet<String>>>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Who {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// A role, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Standing {
    Nobody,
    Viewer,
    Operator,
    Admin,
}

impl Standing {
    fn role(self) -> Option<Role> {
        match self {
            Self::Nobody => None,
            Self::Viewer => Some(Role::Viewer),
            Self::Operator => Some(Role::Operator),
            Self::Admin => Some(Role::Admin),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QuotaText {
    ports: Option<u32>,
    ports_per_network: Option<u32>,
    machines: Option<u32>,
    vcpus: Option<u32>,
    memory_mib: Option<u64>,
    changes_per_second: Option<u32>,
}

impl QuotaText {
    fn quota(&self) -> Quota {
        Quota {
            ports: Some(self.ports.unwrap_or(PORTS)),
            ports_per_network: self.ports_per_network,
            machines: Some(self.machines.unwrap_or(MACHINES)),
            vcpus: self.vcpus,
            memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(MIB)),
            changes_per_second: Some(self.changes_per_second.unwrap_or(CHANGES)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    #[serde(default)]
    users: Vec<Who>,
    #[serde(default)]
    groups: Vec<Who>,
    role: Standing,
    networks: Option<BTreeSet<Name>>,
    #[serde(default)]
    unfiltered: bool,
    #[serde(default)]
    port_groups: Vec<String>,
    quota: Option<QuotaText>,
}

/// The access file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What members of the socket's group are whom no grant names.
    members: Standing,
    images: Vec<PathBuf>,
    uplinks: Option<BTreeSet<String>>,
    #[serde(rename = "grant")]
    grants: Vec<Grant>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { members: Standing::Operator, images: vec![IMAGES.into()], uplinks: None, grants: Vec::new() }
    }
}

/// What is known of the place where the file is read.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations)]
pub struct Place<'a> {
    /// The daemon's own uid.
    pub own: u32,
    /// What it is.
    pub own_user: OwnUser,
    /// The group of the socket.
    pub socket_group: Option<u32>,
    /// The id of a group.
    pub group_id: &'a dyn Fn(&str) -> Option<u32>,
}

impl Policy {
    /// Reads the file's text.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with line and column of what is wrong.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let wrong = |why: String| Fault::new(Kind::FailedPrecondition, "ACCESS_FILE", why);
        let policy: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            wrong(format!("line {line}: {}", error.message()))
        })?;
        let plain = |path: &PathBuf| {
            path.is_absolute() && !path.components().any(|part| matches!(part, Component::ParentDir))
        };
        if let Some(path) = policy.images.iter().find(|path| !plain(path)) {
            return Err(wrong(format!(
                "`{}` in `images` is not an absolute path without `..`",
                path.display()
            )));
        }
        for grant in &policy.grants {
            if grant.users.is_empty() && grant.groups.is_empty() {
                return Err(wrong("a grant names neither `users` nor `groups`".into()));
            }
            if let Some(bad) =
                grant.port_groups.iter().find(|group| *group != ANY && group.parse::<Name>().is_err())
            {
                return Err(wrong(format!("`{}` in `port_groups` is no name of a group", printable(bad))));
            }
            let limited = grant.networks.is_some()
                || grant.quota.is_some()
                || grant.unfiltered
                || !grant.port_groups.is_empty();
            if limited && grant.role != Standing::Operator {
                return Err(wrong(
                    "`networks`, `quota`, `port_groups` and `unfiltered` are for grants of the role `operator`".into(),
                ));
            }
        }
        Ok(policy)
    }

    /// The folders of operators' files.
    #[must_use]
    pub fn images(&self) -> Arc<[PathBuf]> {
        self.images.clone().into()
    }

    /// All names of users, and all names of groups, that the file has.
    pub fn names(&self) -> (Vec<&str>, Vec<&str>) {
        let names = |pick: fn(&Grant) -> &Vec<Who>| {
            let all = self.grants.iter().flat_map(pick);
            all.filter_map(|who| if let Who::Name(name) = who { Some(name.as_str()) } else { None }).collect()
        };
        (names(|grant| &grant.users), names(|grant| &grant.groups))
    }

    /// What a caller may do; `None`: nothing. The highest role that a grant gives counts, and of the grants that
    /// give it, all networks and the largest quotas.
    #[must_use]
    pub fn decide(&self, who: &Identity, place: &Place) -> Option<Rights> {
        if who.uid == 0 {
            return Some(self.admin("root".into()));
        }
        if who.uid == place.own {
            match place.own_user {
                OwnUser::Admin => return Some(self.admin("the daemon's own user".into())),
                // Its groups are what the daemon needs, and say nothing of what the programs that it starts may.
                OwnUser::Nobody if !who.groups.is_empty() => {
                    return self.decide(&Identity { groups: BTreeSet::new(), ..who.clone() }, place);
                }
                OwnUser::Nobody => {}
            }
        }
        let matching: Vec<&Grant> = self.grants.iter().filter(|grant| grant.names(who, place)).collect();
        let Some(standing) = matching.iter().map(|grant| grant.role).max() else {
            let member = place.socket_group.is_some_and(|group| who.groups.contains(&group));
            let role = self.members.role().filter(|_| member)?;
            return Some(self.rights(role, "a member of the socket's group".into(), &[]));
        };
        let counting: Vec<&Grant> = matching.into_iter().filter(|grant| grant.role == standing).collect();
        Some(self.rights(standing.role()?, "a grant of the access file".into(), &counting))
    }

    /// What an admin may do.
    pub fn admin(&self, source: String) -> Rights {
        Rights {
            role: Role::Admin,
            source,
            networks: None,
            unfiltered: true,
            port_groups: None,
            quota: Quota::default(),
            images: None,
            uplinks: self.uplinks.clone().map(Arc::new),
        }
    }

    fn rights(&self, role: Role, source: String, grants: &[&Grant]) -> Rights {
        if role == Role::Admin {
            return self.admin(source);
        }
        let quotas = grants.iter().map(|grant| grant.quota.clone().unwrap_or_default().quota());
        let all = grants.iter().any(|grant| grant.networks.is_none()) || grants.is_empty();
        let groups = || grants.iter().flat_map(|grant| &grant.port_groups);
        let named = groups().filter_map(|group| group.parse().ok()).collect();
        Rights {
            role,
            source,
            networks: (!all)
                .then(|| grants.iter().flat_map(|grant| grant.networks.clone()).flatten().collect()),
            unfiltered: grants.iter().any(|grant| grant.unfiltered),
            port_groups: (!groups().any(|group| group == ANY)).then_some(named),
            quota: quotas.reduce(Quota::or).unwrap_or_else(|| QuotaText::default().quota()),
            images: Some(self.images()),
            uplinks: Some(Arc::default()),
        }
    }
}

impl Grant {
    fn names(&self, who: &Identity, place: &Place) -> bool {
        let user = |one: &Who| match one {
            Who::Id(uid) => *uid == who.uid,
            Who::Name(name) => who.user.as_ref() == Some(name),
        };
        let group = |one: &Who| match one {
            Who::Id(gid) => who.groups.contains(gid),
            Who::Name(name) => (place.group_id)(name).is_some_and(|gid| who.groups.contains(&gid)),
        };
        self.users.iter().any(user) || self.groups.iter().any(group)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn who(uid: u32, user: &str, groups: &[u32]) -> Identity {
        Identity {
            uid,
            user: (!user.is_empty()).then(|| user.to_owned()),
            groups: groups.iter().copied().collect(),
        }
    }

    fn decide(text: &str, who: &Identity) -> Option<Rights> {
        decide_for(OwnUser::Admin, text, who)
    }

    fn decide_for(own_user: OwnUser, text: &str, who: &Identity) -> Option<Rights> {
        let group_id = |name: &str| (name == "staff").then_some(50);
        let place = Place { own: 70, own_user, socket_group: Some(60), group_id: &group_id };
        Policy::parse(text).unwrap().decide(who, &place)
    }

    #[test]
    fn a_daemons_own_user_that_is_nobody_is_so_in_any_group_but_not_against_a_grant() {
        let role =
            |text: &str, who: &Identity| decide_for(OwnUser::Nobody, text, who).map(|rights| rights.role);
        let grant = |whom: &str| format!("[[grant]]\n{whom}\nrole = \"admin\"");
        let own = who(70, "netd", &[50, 60]);
        for text in [String::new(), grant("groups = [50, 60]"), grant("groups = [\"staff\"]")] {
            assert_eq!(role(&text, &own), None, "{text}");
            assert!(decide(&text, &own).unwrap().role == Role::Admin, "{text}");
            assert!(role(&text, &who(71, "", &[50, 60])).is_some(), "others of the group, {text}");
        }
        assert_eq!(role(&grant("users = [70]"), &own), Some(Role::Admin));
        assert_eq!(role(&grant("users = [\"netd\"]"), &own), Some(Role::Admin));
        assert_eq!(role("", &who(0, "root", &[])), Some(Role::Admin));
    }

    #[test]
    fn without_a_file_root_and_the_daemon_are_admins_and_the_sockets_group_operators() {
        let role = |who: &Identity| decide("", who).map(|rights| rights.role);
        assert_eq!(role(&who(0, "root", &[])), Some(Role::Admin));
        assert_eq!(role(&who(70, "", &[])), Some(Role::Admin));
        assert_eq!(role(&who(1000, "alice", &[50, 60])), Some(Role::Operator));
        assert_eq!(role(&who(1000, "alice", &[50])), None);
        let rights = decide("", &who(1000, "", &[60])).unwrap();
        assert_eq!((rights.networks, rights.unfiltered, rights.quota.ports), (None, false, Some(PORTS)));
        assert_eq!(rights.images.unwrap().as_ref(), [PathBuf::from(IMAGES)]);
        assert!(rights.uplinks.unwrap().is_empty(), "an operator names no uplink");
        assert!(rights.port_groups.unwrap().is_empty(), "groups are granted by name");
        let any = "[[grant]]\nusers = [1000]\nrole = \"operator\"\nport_groups = [\"web\", \"*\"]";
        assert_eq!(decide(any, &who(1000, "", &[])).unwrap().port_groups, None);
    }

    #[test]
    fn the_highest_role_counts_with_all_its_networks_and_the_largest_quotas() {
        let file = r#"
            members = "viewer"
            uplinks = ["eth1"]
            images = ["/srv/images"]
            [[grant]]
            users = ["alice", 1001]
            role = "operator"
            networks = ["lan"]
            port_groups = ["db"]
            quota = { ports = 4, memory_mib = 1024 }
            [[grant]]
            groups = ["staff"]
            role = "operator"
            networks = ["dmz"]
            unfiltered = true
            port_groups = ["web"]
            quota = { ports = 2, ports_per_network = 1, memory_mib = 2048, changes_per_second = 50 }
            [[grant]]
            groups = [51]
            role = "admin"
            [[grant]]
            users = ["mallory"]
            role = "nobody"
        "#;
        let alice = decide(file, &who(1000, "alice", &[50])).unwrap();
        assert_eq!(alice.role, Role::Operator);
        assert_eq!(alice.networks.as_ref().unwrap().len(), 2);
        assert!(alice.unfiltered);
        assert_eq!((alice.quota.ports, alice.quota.ports_per_network), (Some(4), None));
        assert_eq!(alice.quota.memory_bytes, Some(2 << 30));
        assert_eq!(alice.quota.changes(), Some(Pace { burst: 2000.0, per_second: 50.0 }));
        let groups = |rights: &Rights| rights.port_groups.as_ref().map(|groups| groups.len());
        assert_eq!(groups(&alice), Some(2));
        let other = decide(file, &who(1001, "bob", &[])).unwrap();
        assert_eq!((other.networks.as_ref().unwrap().len(), other.unfiltered), (1, false));
        let admin = decide(file, &who(1000, "alice", &[50, 51])).unwrap();
        assert_eq!((groups(&other), other.quota.changes_per_second), (Some(1), Some(CHANGES)));
        assert_eq!((groups(&admin), admin.quota.changes()), (None, None));
        assert_eq!((admin.role, admin.networks, admin.images), (Role::Admin, None, None));
        assert_eq!(admin.uplinks.unwrap().as_ref(), &BTreeSet::from(["eth1".to_owned()]));
        assert_eq!(decide(file, &who(1002, "mallory", &[60])), None, "a grant may take away");
        assert_eq!(decide(file, &who(1003, "eve", &[60])).unwrap().role, Role::Viewer);
        assert_eq!(decide(file, &who(1003, "eve", &[])), None);
        assert_eq!(decide(file, &who(0, "root", &[])).unwrap().role, Role::Admin);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, says) in [
            ("members = \"boss\"", "line 1"),
            ("\nmember = \"viewer\"", "line 2"),
            ("[[grant]]\nrole = \"viewer\"", "neither"),
            ("[[grant]]\nusers = [1]\nrole = \"admin\"\nnetworks = [\"lan\"]", "are for grants"),
            ("[[grant]]\nusers = [1]\nrole = \"operator\"\nnetworks = [\"../x\"]", "not a valid name"),
            ("[[grant]]\nusers = [1]\nrole = \"operator\"\nport_groups = [\"w*\"]", "no name of a group"),
            ("[[grant]]\nusers = [1]\nrole = \"viewer\"\nport_groups = [\"web\"]", "are for grants"),
            ("[[grant]]\nusers = [-1]\nrole = \"viewer\"", "line 2"),
            ("[[grant]]\nusers = [1]\nrole = \"operator\"\nquota = { port = 1 }", "line 4"),
            ("images = [\"/srv/../etc\"]", "without `..`"),
            ("images = [\"srv\"]", "absolute"),
            ("[[grant]", "line 1"),
        ] {
            let fault = Policy::parse(text).unwrap_err();
            assert!(fault.to_string().contains(says), "{text}: {fault}");
        }
    }
}
