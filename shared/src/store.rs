//! The record of what was asked for: JSON documents in SQLite, one folder a daemon.
//!
//! A commit is durable when it returns (WAL, synchronous=FULL). SQLite is a blocking library, so one thread owns
//! the connection and takes commits in order. Reads come from memory: they need no disk, and neither does an open, so
//! that a daemon with a full or read-only disk starts and serves what is recorded.
//!
//! ```text
//!   image -> scan -> recover    what the files have in them, whatever state they are in; nothing is written
//!   disk, keeper                the files as they should be, and the thread that writes them
//! ```
//!
//! Each record carries its key and a checksum. A copy of everything is written whenever nothing else is for a second.

mod disk;
mod image;
mod keeper;
mod record;
mod recover;
mod scan;

use crate::{
    events::{self, EventLog, News, Pending},
    fault::{Fault, Kind},
    steps,
};
use disk::{COPY, FILE};
use keeper::{Common, Job, Keeper, Place};
use recover::{Content, Decision};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, mpsc},
    thread,
};
use tokio::sync::oneshot;
use uuid::Uuid;

pub(crate) use record::Rows;

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    kind: Cow<'static, str>,
    id: String,
    document: Option<String>,
}

impl Op {
    /// Writes `document` under `kind` and `id`, whether or not there was one.
    ///
    /// # Errors
    /// INTERNAL if the document has no JSON form.
    pub fn put<T: Serialize>(kind: &'static str, id: impl Into<String>, document: &T) -> Result<Self, Fault> {
        let document = serde_json::to_string(document)
            .map_err(|e| Fault::internal("cannot write a record as JSON").cause(&e))?;
        Ok(Self { kind: kind.into(), id: id.into(), document: Some(document) })
    }

    /// Removes the record, if there is one.
    #[must_use]
    pub fn delete(kind: &'static str, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into(), document: None }
    }
}

/// A record that this program cannot read: damaged, or written by a newer one. It is kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its id.
    pub id: String,
    /// What is wrong with it.
    pub why: String,
}

/// What `load` found of one kind, in the order of the ids.
#[derive(Debug)]
pub struct Loaded<T> {
    /// Records that were read.
    pub records: Vec<(String, T)>,
    /// Records that were not.
    pub broken: Vec<Broken>,
}

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    events: EventLog,
    common: Arc<Common>,
    about: Arc<About>,
}

#[derive(Debug)]
struct About {
    dir: PathBuf,
    instance: Uuid,
    created: bool,
    /// What happened when it was opened.
    note: Option<String>,
    /// Records that cannot be read, and why.
    broken: RwLock<BTreeMap<record::Key, String>>,
}

impl Store {
    /// Opens the store in `dir`, and makes both if missing. Only one process at a time may have it. A damaged file is
    /// kept under another name, and what can be read of it and of its copy goes into a new one.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if another process has it, if it was written by a newer version, or if nothing of it can be
    /// read; RESOURCE_EXHAUSTED if there is none and no room for one. The hint says how to recover.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        // What it is for is said where it is used.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open_in(dir, boot.trim())
    }

    pub(crate) fn open_in(dir: &Path, boot: &str) -> Result<Self, Fault> {
        let failed = |what: &str, error: &dyn std::error::Error| {
            let message = format!("cannot {what} the state in `{}`", dir.display());
            Fault::new(Kind::FailedPrecondition, "STATE_DIR", message)
                .cause(error)
                .hint("choose another folder with --state-dir, or put its backup back")
        };
        make_private(dir).map_err(|e| failed("make the folder of", &e))?;
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        let main = scan::read(&path).map_err(|e| failed("read", &e))?;
        // A copy that cannot be read is as good as none.
        let copy = scan::read(&dir.join(COPY)).unwrap_or_default();
        let mut created = false;
        let (content, place, note) = match recover::decide(&path, main, copy)? {
            Decision::Fresh => {
                created = true;
                let content = Content { instance: Uuid::new_v4(), rev: 0, rows: BTreeMap::new() };
                (content, Place::Unwritten(None), None)
            }
            Decision::Sound(content) => (content, Place::Closed, None),
            Decision::Rewrite { content, complete, note } => {
                if !complete {
                    // It may have whole what the file has not. Best effort, as the file itself is kept.
                    let _ = fs::rename(dir.join(COPY), dir.join(disk::aside(dir, COPY)));
                }
                let aside = if note.is_some() { disk::aside(dir, FILE) } else { format!("{FILE}.schema-1") };
                let kept = if path.exists() {
                    format!("; what was there is kept as `{aside}`")
                } else {
                    String::new()
                };
                (content, Place::Unwritten(Some(aside)), note.map(|note| note + &kept))
            }
        };
        if let Some(note) = &note {
            tracing::error!(note, "the state was damaged");
        }
        let (events, ops) = events::opened(&content.rows, boot, note.is_some())?;
        let broken = content.rows.iter().filter(|((kind, _), _)| !events::is_kind(kind));
        let broken = broken.filter_map(|(key, row)| Some((key.clone(), row.why.clone()?)));
        let about = About {
            dir: dir.to_owned(),
            instance: content.instance,
            created,
            note,
            broken: RwLock::new(broken.collect()),
        };
        let common = Arc::new(Common { content: RwLock::new(content), trouble: RwLock::default() });
        let mut keeper = Keeper {
            dir: dir.to_owned(),
            common: Arc::clone(&common),
            events: events.clone(),
            unwritten: ops,
            place,
            behind: true,
            _lock: lock,
        };
        if let Err(fault) = keeper.begin() {
            // What was never written is nothing to serve.
            if created {
                return Err(fault.context(format!("cannot make the state in `{}`", dir.display())));
            }
            tracing::error!(error = fault.chain(), "changes are refused");
            *common.trouble.write().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        }
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("store".into())
            .spawn(move || keeper.run(&queue))
            .map_err(|e| failed("start the thread for", &e))?;
        Ok(Self { jobs, events, common, about: Arc::new(about) })
    }

    /// The id made when the store was; it marks this daemon's objects in the kernel.
    #[must_use]
    pub fn instance(&self) -> Uuid {
        self.about.instance
    }

    /// Whether this start made the store, so that objects found in the kernel have no record.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.about.created
    }

    /// Why changes are refused, or will be for all that is known; nothing if they are not. It asks the file system.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        let about = &self.about;
        let trouble = self.common.trouble.read().unwrap_or_else(PoisonError::into_inner).clone();
        match (trouble, room(&about.dir)) {
            (Some(fault), _) => {
                let hints = fault.hints().join("; ");
                Some(format!("degraded: changes are refused: {}: {hints}", fault.chain()))
            }
            (None, Some(room)) => Some(format!(
                "degraded: the state folder `{}` {}: changes may be refused",
                about.dir.display(),
                room.what()
            )),
            (None, None) => None,
        }
    }

    /// What an operator should know: that changes are refused and why, what was damaged, and what cannot be read.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let about = &self.about;
        let broken = about.broken.read().unwrap_or_else(PoisonError::into_inner);
        let broken = broken.iter().map(|((kind, id), why)| {
            format!("the record {kind} `{id}` cannot be read and is left alone: {why}; {}", way_out(kind, id))
        });
        self.degraded().into_iter().chain(about.note.clone()).chain(broken).collect()
    }

    /// Refuses a new object whose record is there and cannot be read.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with what is wrong with it, and how to recover.
    pub fn check_broken(&self, kind: &str, id: &str) -> Result<(), Fault> {
        let broken = self.about.broken.read().unwrap_or_else(PoisonError::into_inner);
        // Nearly always there is none, and no key has to be made.
        let why = if broken.is_empty() { None } else { broken.get(&(kind.to_owned(), id.to_owned())) };
        why.map_or(Ok(()), |why| Err(unreadable(kind, id, why)))
    }

    /// The records of a kind that cannot be read, in the order of their ids. `why` has the words of the error that a
    /// look at the object is refused with, and the way out.
    #[must_use]
    pub fn broken(&self, kind: &str) -> Vec<Broken> {
        let broken = self.about.broken.read().unwrap_or_else(PoisonError::into_inner);
        let of_kind = broken.iter().filter(|((is, _), _)| is == kind);
        of_kind
            .map(|((_, id), why)| {
                let fault = unreadable(kind, id, why);
                Broken { id: id.clone(), why: format!("{}; {}", fault.chain(), fault.hints().join("; ")) }
            })
            .collect()
    }

    /// Takes a record that could be read for one that cannot: what it says makes no sense to its daemon.
    pub fn reject(&self, kind: &str, id: &str, why: &str) {
        let mut broken = self.about.broken.write().unwrap_or_else(PoisonError::into_inner);
        broken.insert((kind.to_owned(), id.to_owned()), why.to_owned());
    }

    /// Lets records of a kind that cannot be read be replaced: notes of the daemon's own, which nobody asked for.
    pub fn expend(&self, kinds: &[&str]) {
        let mut broken = self.about.broken.write().unwrap_or_else(PoisonError::into_inner);
        broken.retain(|(kind, id), why| {
            let goes = kinds.contains(&kind.as_str());
            if goes {
                tracing::warn!(kind, id, why, "a note of this daemon's cannot be read, and does not count");
            }
            !goes
        });
    }

    /// Whether a record of this kind cannot be read.
    #[must_use]
    pub fn has_broken(&self, kind: &str) -> bool {
        self.about.broken.read().unwrap_or_else(PoisonError::into_inner).keys().any(|(is, _)| is == kind)
    }

    /// Removes a record that cannot be read, `KIND ID`, for good. All kinds have to be loaded before.
    ///
    /// # Errors
    /// NOT_FOUND if there is no such record, FAILED_PRECONDITION if it can be read; what `commit` says.
    pub async fn forget(&self, what: &str) -> Result<(), Fault> {
        let (kind, id) = what.split_once(' ').unwrap_or((what, ""));
        let key = (kind.to_owned(), id.to_owned());
        if !self.about.broken.read().unwrap_or_else(PoisonError::into_inner).contains_key(&key) {
            let content = self.common.content.read().unwrap_or_else(PoisonError::into_inner);
            return Err(if content.rows.contains_key(&key) {
                let message = format!("the record {kind} `{id}` can be read");
                Fault::new(Kind::FailedPrecondition, "NOT_BROKEN", message)
                    .hint("start the daemon and delete the object as usual")
            } else {
                Fault::new(Kind::NotFound, "NO_RECORD", format!("there is no record {kind} `{id}`"))
                    .hint("write KIND ID as `kvmctl host show` does, between quotes")
            });
        }
        let op = Op { kind: kind.to_owned().into(), id: id.to_owned(), document: None };
        drop(self.send(vec![op].into(), Vec::new().into()).await?);
        tracing::warn!(kind, id, "a record that could not be read was given up");
        self.about.broken.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        Ok(())
    }

    /// Carries out all of `ops`, or none. Durable when it returns.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the disk is full, else FAILED_PRECONDITION, as where one of the records cannot be read.
    /// Nothing was changed.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<(), Fault> {
        self.commit_telling(ops, Vec::new()).await.map(drop)
    }

    /// As `commit`, and numbers and records what is to be told of it in the same transaction. It is told when the
    /// answer is dropped.
    ///
    /// # Errors
    /// As `commit`.
    pub async fn commit_telling(&self, ops: Vec<Op>, news: Vec<News>) -> Result<Pending, Fault> {
        for op in &ops {
            self.check_broken(&op.kind, &op.id)?;
        }
        let (ops, news): (Arc<[Op]>, Arc<[News]>) = (ops.into(), news.into());
        steps::step(|| names(&ops), || self.send(Arc::clone(&ops), Arc::clone(&news))).await
    }

    async fn send(&self, ops: Arc<[Op]>, news: Arc<[News]>) -> Result<Pending, Fault> {
        let (answer, result) = oneshot::channel();
        let gone = || Fault::internal("the thread of the state store has ended");
        self.jobs.send(Job { ops, news, answer: Some(answer) }).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Tells what belongs to no change of a record, in the background: an event is no reason to wait, and its loss
    /// none to fail. `ops` are what is to be known at the next start along with it. Neither is lost by the end of
    /// this process, once it is written, and nothing is told before; the host's own end may lose both.
    pub fn tell(&self, ops: Vec<Op>, news: Vec<News>) {
        if self.jobs.send(Job { ops: ops.into(), news: news.into(), answer: None }).is_err() {
            tracing::warn!("the thread of the state store has ended: events are lost");
        }
    }

    /// What happened to the records, and to what they stand for.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Reads all records of a kind.
    ///
    /// # Errors
    /// None so far: what cannot be read is part of the result.
    pub async fn load<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: &'static str,
    ) -> Result<Loaded<T>, Fault> {
        let mut loaded = Loaded { records: Vec::new(), broken: Vec::new() };
        let content = self.common.content.read().unwrap_or_else(PoisonError::into_inner);
        let from = (kind.to_owned(), String::new());
        for ((_, id), row) in content.rows.range(from..).take_while(|((is, _), _)| is == kind) {
            let read = match (&row.why, row.record()) {
                (None, Some(record)) => serde_json::from_str(record).map_err(|error| error.to_string()),
                (why, _) => Err(why.clone().unwrap_or_default()),
            };
            match read {
                Ok(record) => loaded.records.push((id.clone(), record)),
                Err(why) => loaded.broken.push(Broken { id: id.clone(), why }),
            }
        }
        drop(content);
        let mut broken = self.about.broken.write().unwrap_or_else(PoisonError::into_inner);
        broken.extend(loaded.broken.iter().map(|one| ((kind.to_owned(), one.id.clone()), one.why.clone())));
        Ok(loaded)
    }
}

/// What a commit is about, for people.
fn names(ops: &[Op]) -> String {
    let name = |op: &Op| {
        let verb = if op.document.is_some() { "put" } else { "delete" };
        format!(" {verb} {}/{}", op.kind, op.id)
    };
    format!("commit{}", ops.iter().map(name).collect::<String>())
}

/// What is asked of an object whose record cannot be read is refused with this.
fn unreadable(kind: &str, id: &str, why: &str) -> Fault {
    let message = format!("the record {kind} `{id}` cannot be read and is kept: {why}");
    Fault::new(Kind::FailedPrecondition, "BROKEN_RECORD", message).hint(way_out(kind, id))
}

fn way_out(kind: &str, id: &str) -> String {
    format!(
        "start the version that wrote it, put a backup back, or give it up: stop the daemon and start it once with --forget '{kind} {id}'"
    )
}

/// What a file system lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Full,
    NoInodes,
    ReadOnly,
}

impl Room {
    fn what(self) -> &'static str {
        match self {
            Self::Full => "has no room: its file system is full",
            Self::NoInodes => "has no room: its file system has no inode left",
            Self::ReadOnly => "is read-only",
        }
    }
}

/// What is lacking where `dir` is, as the file system says by itself; one that says nothing lacks nothing.
fn room(dir: &Path) -> Option<Room> {
    let is = rustix::fs::statvfs(dir).ok()?;
    if is.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Some(Room::ReadOnly);
    }
    // File systems without a fixed number of inodes say 0 of 0.
    let no_inodes = is.f_files > 0 && is.f_favail == 0;
    if is.f_bavail == 0 { Some(Room::Full) } else { no_inodes.then_some(Room::NoInodes) }
}

/// Only the last folder is private: those above it are other daemons' way to theirs.
fn make_private(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Locks a state folder until the result is dropped: the folder itself, which needs no room, and the file that earlier
/// versions lock, where it can be had.
///
/// # Errors
/// FAILED_PRECONDITION, STATE_LOCKED, if another process has it.
pub fn lock(dir: &Path) -> Result<Vec<File>, Fault> {
    let failed = |path: &Path, error: &dyn std::error::Error| {
        Fault::new(Kind::FailedPrecondition, "STATE_LOCKED", format!("cannot lock `{}`", path.display()))
            .cause(error)
            .hint("another daemon may use this folder: stop it, or choose another with --state-dir")
    };
    let own = File::open(dir).map_err(|e| failed(dir, &e))?;
    let path = dir.join("lock");
    let earlier = File::open(&path)
        .or_else(|_| OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path));
    let files: Vec<File> = std::iter::once(own).chain(earlier).collect();
    for file in &files {
        rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed(dir, &e))?;
    }
    Ok(files)
}

#[cfg(test)]
mod test;
