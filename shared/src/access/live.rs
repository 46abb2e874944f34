//! The access file as it is now: read at the start, and again whenever it was changed.

use super::{
    Caller, Rights,
    identity::{self, Identity},
    policy::{Place, Policy},
};
use crate::{
    fault::{Fault, Kind},
    socket::Peer,
};
use std::{
    cell::Cell,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::timeout,
};

/// Where the access file is, if no other place was named.
pub const DEFAULT_FILE: &str = "/etc/kvmctl/access.toml";
/// Largest access file, in bytes.
const LARGEST: u64 = 1 << 20;
/// How long the user database may take. One on the network may hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions to the user database at once; more wait.
const LOOKUPS: usize = 8;

/// Tells one state of a file from another: device, inode, size, and the times of the last change, of contents and all.
type Version = (u64, u64, u64, (i64, i64), (i64, i64));

/// What a daemon's own user, where it is not root, is to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnUser {
    /// An admin, as root is: nobody runs as that user but people, and the daemon itself.
    Admin,
    /// Nobody, in whichever group, unless a grant has the user: the daemon starts programs with its own uid that may
    /// fall to others.
    Nobody,
}

/// Who may do what, now. Clones share it.
#[derive(Clone, Debug)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Arc<Path>,
    own: u32,
    own_user: OwnUser,
    socket_group: Option<u32>,
    lookups: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: Arc<Policy>,
    /// The file that was last looked into; `None`: it was not there.
    seen: Option<Version>,
    /// Why the file as it is now is not in force.
    trouble: Option<String>,
}

impl Access {
    /// Reads the access file, which has to be root's, or an admin's who is this process's own user. Without one, root is
    /// admin, and members of the socket's group are operators.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if a named file is not there, or if the file is somebody else's to write, or not valid.
    pub fn open(named: Option<&Path>, socket_group: Option<u32>, own_user: OwnUser) -> Result<Self, Fault> {
        let file = named.unwrap_or(Path::new(DEFAULT_FILE));
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let own = rustix::process::geteuid().as_raw();
        let seen = version(&file);
        let policy = match load(&file, trusted(own, own_user)) {
            Ok(policy) => policy,
            Err(Refusal::Missing) if named.is_none() => Policy::default(),
            Err(refusal) => return Err(refusal.fault(&file)),
        };
        warn_of_unknown_names(&policy, &file);
        let state = State { policy: Arc::new(policy), seen, trouble: None };
        Ok(Self(Arc::new(Inner {
            file: file.into(),
            own,
            own_user,
            socket_group,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            state: Mutex::new(state),
        })))
    }

    /// Reads the file again whenever the process gets SIGHUP, even if it seems unchanged.
    ///
    /// # Errors
    /// If the process cannot install a signal handler.
    pub fn reload_on_hangup(&self) -> io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        let this = self.clone();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                this.reload(&mut this.state());
            }
        });
        Ok(())
    }

    /// The access file's path.
    #[must_use]
    pub fn file(&self) -> Arc<Path> {
        Arc::clone(&self.0.file)
    }

    /// The folders that operators' disks and kernels have to be in.
    #[must_use]
    pub fn images(&self) -> Arc<[PathBuf]> {
        self.current().images()
    }

    /// The group whose members may connect; `None`: only this process's user.
    #[must_use]
    pub fn socket_group(&self) -> Option<u32> {
        self.0.socket_group
    }

    /// The uid that is an admin besides root; 0 if none is.
    #[must_use]
    pub fn admin_uid(&self) -> u32 {
        trusted(self.0.own, self.0.own_user)
    }

    /// Why the file as it is now is not in force; `None` if it is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.current();
        self.state().trouble.clone()
    }

    /// Who a peer is, and what it may do; `None`: nothing.
    ///
    /// # Errors
    /// UNAVAILABLE if the user database does not answer: then nobody knows what the caller may do.
    pub async fn caller(&self, peer: &Peer) -> Result<Option<Caller>, Fault> {
        let policy = self.current();
        let (who, rights) = if peer.uid == 0 || peer.uid == self.admin_uid() {
            // They are admins whatever the file and the user database say.
            let who = Identity { uid: peer.uid, ..Identity::default() };
            let rights = self.judge(&policy, &who, |_| Ok(None)).unwrap_or_default();
            (who, rights)
        } else {
            self.look_up(peer.clone(), policy).await?
        };
        Ok(rights.map(|rights| Caller::new(who.uid, who.user, rights, self.file())))
    }

    /// What the policy says of somebody. Names of groups are looked up only where the file has some.
    ///
    /// # Errors
    /// If one of them cannot be: a grant that keeps its members out might not be seen.
    fn judge(
        &self,
        policy: &Policy,
        who: &Identity,
        group_id: impl Fn(&str) -> io::Result<Option<u32>>,
    ) -> io::Result<Option<Rights>> {
        let failure = Cell::new(None);
        let place = Place {
            own: self.0.own,
            own_user: self.0.own_user,
            socket_group: self.0.socket_group,
            group_id: &|name| {
                group_id(name).unwrap_or_else(|error| {
                    failure.set(Some(error));
                    None
                })
            },
        };
        let rights = policy.decide(who, &place);
        failure.take().map_or(Ok(rights), Err)
    }

    async fn look_up(&self, peer: Peer, policy: Arc<Policy>) -> Result<(Identity, Option<Rights>), Fault> {
        let silent = || {
            Fault::new(Kind::Unavailable, "NO_USER_DATABASE", "the host's user database does not answer")
                .hint("see what /etc/nsswitch.conf says for passwd and group; root does not need it")
        };
        let this = self.clone();
        let work = async move {
            let lookups = Arc::clone(&this.0.lookups);
            let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
            // It may be a query to a server.
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let who = identity::look_up(&peer)?;
                let rights = this.judge(&policy, &who, identity::group_id)?;
                Ok::<_, io::Error>((who, rights))
            })
            .await?
        };
        match timeout(PATIENCE, work).await {
            Ok(Ok(known)) => Ok(known),
            Ok(Err(error)) => Err(silent().cause(&error)),
            Err(_) => Err(silent()),
        }
    }

    /// The policy in force.
    fn current(&self) -> Arc<Policy> {
        let mut state = self.state();
        if version(&self.0.file) != state.seen {
            self.reload(&mut state);
        }
        Arc::clone(&state.policy)
    }

    /// A file that is broken, or that went away, changes nothing: what was said before stays in force.
    fn reload(&self, state: &mut State) {
        let file = &self.0.file;
        // Looked at first: a change in between is seen at the next use.
        state.seen = version(file);
        match load(file, self.admin_uid()) {
            Ok(policy) => {
                state.policy = Arc::new(policy);
                let (policy, named) = (Arc::clone(&state.policy), Arc::clone(file));
                // Not here: a user database that is silent would hold up every call, root's too.
                let warn = std::thread::Builder::new().spawn(move || warn_of_unknown_names(&policy, &named));
                drop(
                    warn.inspect_err(
                        |error| tracing::warn!(%error, "names of the access file are not checked"),
                    ),
                );
                state.trouble = None;
                tracing::info!(file = %file.display(), "the access file was read anew");
            }
            Err(Refusal::Missing) if *state.policy == Policy::default() => state.trouble = None,
            Err(refusal) => {
                let fault = refusal.fault(file);
                tracing::error!(error = fault.chain(), "the former access rules stay in force");
                state.trouble = Some(format!("{}; the former access rules stay in force", fault.chain()));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment after all that may fail.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a file is not taken.
enum Refusal {
    Missing,
    Unreadable(io::Error),
    Unsafe(String),
    Invalid(Fault),
}

impl Refusal {
    fn fault(self, file: &Path) -> Fault {
        let fault = |why: &str| {
            Fault::new(
                Kind::FailedPrecondition,
                "ACCESS_FILE",
                format!("cannot use the access file `{}`{why}", file.display()),
            )
        };
        match self {
            Self::Missing => fault(": it is not there").hint("make it, or name another with --access-file"),
            Self::Unreadable(error) => fault("")
                .cause(&error)
                .hint("the daemon's user has to be able to read it: chmod 644, there is no secret in it"),
            Self::Unsafe(why) => fault(&format!(": {why}"))
                .hint("it decides who is an admin: chown root:root and chmod 644 it, and its folder 755"),
            Self::Invalid(error) => fault("")
                .cause(&error)
                .hint("README.md has an example; a daemon that runs keeps to what the file said before"),
        }
    }
}

fn version(file: &Path) -> Option<Version> {
    let meta = fs::metadata(file).ok()?;
    let modified = (meta.mtime(), meta.mtime_nsec());
    Some((meta.dev(), meta.ino(), meta.size(), modified, (meta.ctime(), meta.ctime_nsec())))
}

fn load(file: &Path, trusted: u32) -> Result<Policy, Refusal> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Refusal::Missing,
        _ => Refusal::Unreadable(error),
    };
    // Where a link leads: its folder is what has to be safe.
    let real = fs::canonicalize(file).map_err(unreadable)?;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let opened = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(&real)
        .map_err(unreadable)?;
    let meta = opened.metadata().map_err(Refusal::Unreadable)?;
    if !meta.is_file() {
        return Err(Refusal::Unsafe("it is not a regular file".into()));
    }
    only_ours("it", &meta, trusted)?;
    if let Some(folder) = real.parent() {
        let meta = fs::metadata(folder).map_err(Refusal::Unreadable)?;
        // In a sticky folder only the owner can replace a file.
        if meta.mode() & 0o1000 == 0 {
            only_ours("its folder", &meta, trusted)?;
        }
    }
    let mut text = String::new();
    opened.take(LARGEST + 1).read_to_string(&mut text).map_err(Refusal::Unreadable)?;
    if text.len() as u64 > LARGEST {
        return Err(Refusal::Unsafe(format!("it has more than {LARGEST} bytes")));
    }
    Policy::parse(&text).map_err(Refusal::Invalid)
}

/// The uid that is as good as root's, or root's.
fn trusted(own: u32, own_user: OwnUser) -> u32 {
    if own_user == OwnUser::Admin { own } else { 0 }
}

/// Whether nobody but root and `trusted` can write it.
fn only_ours(what: &str, meta: &Metadata, trusted: u32) -> Result<(), Refusal> {
    if meta.uid() != 0 && meta.uid() != trusted {
        return Err(Refusal::Unsafe(format!("{what} belongs to uid {}, not to root", meta.uid())));
    }
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(Refusal::Unsafe(format!("{what} can be written by others (mode {mode:04o})")));
    }
    Ok(())
}

/// A name that nobody has grants nothing, which may be a slip of the pen.
fn warn_of_unknown_names(policy: &Policy, file: &Path) {
    let (users, groups) = policy.names();
    for user in users.into_iter().filter(|name| !identity::user_is_known(name)) {
        tracing::warn!(file = %file.display(), user, "the access file names a user that does not exist");
    }
    for group in groups.into_iter().filter(|name| matches!(identity::group_id(name), Ok(None))) {
        tracing::warn!(file = %file.display(), group, "the access file names a group that does not exist");
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::access::Role;
    use std::os::unix::fs::PermissionsExt as _;

    /// Nobody's on any system.
    const STRANGER: u32 = 3_999_000_001;

    fn peer(uid: u32) -> Peer {
        Peer { uid, gid: uid, pid: 0, groups: [].into() }
    }

    fn write(file: &Path, text: &str) {
        // As an editor does it: a new file in the old one's place.
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&new, file).unwrap();
    }

    fn grant(role: &str) -> String {
        format!("[[grant]]\nusers = [{STRANGER}]\nrole = \"{role}\"\n")
    }

    async fn role(access: &Access) -> Option<Role> {
        access.caller(&peer(STRANGER)).await.unwrap().map(|caller| caller.rights.role)
    }

    #[tokio::test]
    async fn a_change_counts_at_once_and_a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        write(&file, &grant("viewer"));
        let access = Access::open(Some(&file), None, OwnUser::Admin).unwrap();
        assert_eq!(role(&access).await, Some(Role::Viewer));
        write(&file, &grant("operator"));
        assert_eq!(role(&access).await, Some(Role::Operator));
        assert_eq!(access.trouble(), None);
        write(&file, "role =");
        assert_eq!(role(&access).await, Some(Role::Operator));
        assert!(access.trouble().unwrap().contains("line 1"), "{:?}", access.trouble());
        fs::remove_file(&file).unwrap();
        assert_eq!(role(&access).await, Some(Role::Operator), "a file that is gone takes nothing back");
        assert!(access.trouble().unwrap().contains("not there"));
        write(&file, "");
        assert_eq!(role(&access).await, None);
        assert_eq!(access.trouble(), None);
    }

    #[tokio::test]
    async fn the_sockets_group_and_the_daemons_user_need_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        write(&file, "");
        let access = Access::open(Some(&file), Some(4711), OwnUser::Admin).unwrap();
        let member = Peer { groups: [4711].into(), ..peer(STRANGER) };
        let caller = access.caller(&member).await.unwrap().unwrap();
        assert_eq!(caller.rights.role, Role::Operator);
        assert_eq!(role(&access).await, None);
        let own = access.caller(&peer(rustix::process::geteuid().as_raw())).await.unwrap().unwrap();
        assert!(own.is_admin());
    }

    #[test]
    fn a_group_that_cannot_be_looked_up_lets_nobody_in_whom_it_may_keep_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        write(&file, "[[grant]]\ngroups = [\"banned\"]\nrole = \"nobody\"");
        let access = Access::open(Some(&file), Some(4711), OwnUser::Admin).unwrap();
        let who = Identity { uid: STRANGER, user: None, groups: [4711, 13].into() };
        let role = |answer: fn() -> io::Result<Option<u32>>| {
            let rights = access.judge(&access.current(), &who, |_| answer())?;
            Ok::<_, io::Error>(rights.map(|rights| rights.role))
        };
        assert_eq!(role(|| Ok(None)).unwrap(), Some(Role::Operator));
        assert_eq!(role(|| Ok(Some(13))).unwrap(), None);
        assert!(role(|| Err(io::Error::other("silent"))).is_err());
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        let refused = || Access::open(Some(&file), None, OwnUser::Admin).unwrap_err().chain();
        assert!(refused().contains("not there"), "{}", refused());
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        write(&file, "");
        for mode in [0o664, 0o646, 0o666] {
            chmod(&file, mode);
            assert!(refused().contains("written by others"), "{}", refused());
        }
        chmod(&file, 0o644);
        chmod(dir.path(), 0o777);
        assert!(refused().contains("its folder can be written by others"), "{}", refused());
        chmod(dir.path(), 0o1777);
        Access::open(Some(&file), None, OwnUser::Admin).unwrap();
        chmod(dir.path(), 0o755);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(STRANGER), None).unwrap();
            assert!(refused().contains("belongs to uid"), "{}", refused());
            std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        } else {
            println!("SKIPPED: only root can give a file away");
        }
        write(&file, &"#".repeat(2 << 20));
        assert!(refused().contains("more than"), "{}", refused());
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(refused().contains("not a regular file"), "{}", refused());
    }
}
