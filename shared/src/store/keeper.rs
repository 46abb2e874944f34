//! The thread that writes: it has the files, and takes commits in order.

use super::{
    Op,
    disk::{self, Disk, Trouble},
    record::{Key, Row},
    recover::Content,
};
use crate::{
    events::{self, EventLog, News, Pending},
    fault::{Fault, Kind},
};
use rusqlite::ErrorCode;
use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long nothing is written until the copy is: what is written in between is in one place only.
const QUIET: Duration = Duration::from_secs(1);
/// The copy is written after this time even if there is no pause.
const LONGEST: Duration = Duration::from_secs(30);
/// How often it is tried whether the disk can be written again.
const RETRY: Duration = Duration::from_secs(2);

/// A commit with what is told of it.
pub struct Job {
    pub ops: Arc<[Op]>,
    pub news: Arc<[News]>,
    /// Where its result goes. Nowhere: nobody waits, and it need not be on the disk at once.
    pub answer: Option<oneshot::Sender<Result<Pending, Fault>>>,
}

/// What the thread and those who ask have in common.
#[derive(Debug)]
pub struct Common {
    /// What is on disk.
    pub content: RwLock<Content>,
    /// Why the last write failed; nothing if it did not.
    pub trouble: RwLock<Option<Fault>>,
}

/// What still has to be done before something can be written.
#[derive(Debug)]
pub enum Place {
    /// Nothing.
    Open(Disk),
    /// The file is to be opened.
    Closed,
    /// It is to be written whole; what is there gets this name.
    Unwritten(Option<String>),
}

/// The writer.
#[derive(Debug)]
pub struct Keeper {
    pub dir: PathBuf,
    pub common: Arc<Common>,
    pub events: EventLog,
    /// What the opening has to write, until it is written.
    pub unwritten: Vec<Op>,
    pub place: Place,
    /// Whether the copy lacks something.
    pub behind: bool,
    /// Held as long as the files are open: the next process may open them only after that.
    pub _lock: Vec<File>,
}

impl Keeper {
    /// Takes jobs until nobody can send any.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let mut copied = Instant::now();
        loop {
            let pause = if self.in_trouble() { RETRY } else { QUIET };
            match jobs.recv_timeout(pause) {
                Ok(Job { ops, news, answer: Some(answer) }) => {
                    // The asker may have gone; the change is made all the same.
                    let _ = answer.send(self.commit(&ops, &news, true));
                    if !self.behind || copied.elapsed() < LONGEST {
                        continue;
                    }
                }
                Ok(Job { ops, news, answer: None }) => {
                    let durable = !self.events.may_be_quick();
                    if let Err(fault) = self.commit(&ops, &news, durable) {
                        tracing::warn!(error = fault.chain(), lost = news.len(), "cannot keep events");
                        self.events.lose();
                    }
                    if !self.behind || copied.elapsed() < LONGEST {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.in_trouble() => drop(self.commit(&[], &[], true)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.behind && !self.in_trouble() {
                self.copy();
                copied = Instant::now();
            }
        }
        if self.behind {
            self.copy();
        }
    }

    fn in_trouble(&self) -> bool {
        self.common.trouble.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Opens the file if it is not open yet.
    pub fn open(&mut self) -> Result<&mut Disk, Trouble> {
        let content = self.common.content.read().unwrap_or_else(PoisonError::into_inner);
        if let Place::Unwritten(aside) = &self.place {
            Disk::replace(&self.dir, &content, aside.as_deref())?;
            // Written once: the next try must not take it for what was there before.
            self.place = Place::Closed;
        }
        if matches!(self.place, Place::Closed) {
            self.place = Place::Open(Disk::attach(&self.dir, &content)?);
        }
        drop(content);
        match &mut self.place {
            Place::Open(disk) => Ok(disk),
            Place::Closed | Place::Unwritten(_) => Err(io::Error::other("it is not open").into()),
        }
    }

    /// Opens the file, and writes what the opening has to.
    pub fn begin(&mut self) -> Result<(), Fault> {
        let opened = self.open().map(drop).map_err(|trouble| self.fault(&trouble));
        opened.and_then(|()| self.commit(&[], &[], true).map(drop))
    }

    fn commit(&mut self, ops: &[Op], news: &[News], durable: bool) -> Result<Pending, Fault> {
        let result = self.write(ops, news, durable).map_err(|trouble| self.fault(&trouble));
        let now = result.as_ref().err().cloned();
        // Without having waited for the disk nobody knows whether it works.
        if now.is_none() && !durable {
            return result;
        }
        let before = std::mem::replace(
            &mut *self.common.trouble.write().unwrap_or_else(PoisonError::into_inner),
            now.clone(),
        );
        match (before, now) {
            (None, Some(fault)) => tracing::error!(error = fault.chain(), "changes are refused"),
            (Some(_), None) => tracing::info!("the state can be written again"),
            _ => {}
        }
        result
    }

    fn write(&mut self, ops: &[Op], news: &[News], durable: bool) -> Result<Pending, Trouble> {
        let (numbered, event_ops, too_old) = self.events.number(news).map_err(io::Error::other)?;
        let (own, changes, rev) = {
            let content = self.common.content.read().unwrap_or_else(PoisonError::into_inner);
            let rev = content.rev + 1;
            let seal = |op: &Op| {
                let row = op
                    .document
                    .as_ref()
                    .map(|document| Row::seal(content.instance, rev, (&op.kind, &op.id), document));
                row.transpose().map(|row| ((op.kind.clone().into_owned(), op.id.clone()), row))
            };
            let all = self.unwritten.iter().chain(ops).chain(&event_ops);
            let changes = all.map(seal).collect::<serde_json::Result<Vec<(Key, Option<Row>)>>>();
            let mut changes = changes.map_err(io::Error::other)?;
            let oldest = (events::EVENT.to_owned(), String::new());
            let gone = content
                .rows
                .range(oldest..)
                .take_while(|((kind, id), _)| kind == events::EVENT && *id <= too_old);
            changes.extend(gone.map(|(key, _)| (key.clone(), None)));
            (disk::own(&content, rev).map_err(io::Error::other)?, changes, rev)
        };
        self.open()?.commit(&own, &changes, durable)?;
        self.unwritten.clear();
        let mut content = self.common.content.write().unwrap_or_else(PoisonError::into_inner);
        content.rev = rev;
        for (key, row) in changes {
            match row {
                Some(row) => drop(content.rows.insert(key, row)),
                None => drop(content.rows.remove(&key)),
            }
        }
        self.behind = true;
        Ok(self.events.append(numbered))
    }

    /// Best effort: without room there is none, until there is room.
    fn copy(&mut self) {
        let settled = match &self.place {
            Place::Open(disk) => disk.settle(),
            Place::Closed | Place::Unwritten(_) => Ok(()),
        };
        let content = {
            let content = self.common.content.read().unwrap_or_else(PoisonError::into_inner);
            // Of the events only the newest, which says what numbers there were: they are many, and no intent.
            let newest = content.rows.keys().rfind(|(kind, _)| kind == events::EVENT).cloned();
            let rows = content
                .rows
                .iter()
                .filter(|(key, _)| key.0 != events::EVENT || Some(*key) == newest.as_ref());
            Content { rows: rows.map(|(key, row)| (key.clone(), row.clone())).collect(), ..*content }
        };
        match settled.and_then(|()| disk::write_copy(&self.dir, &content)) {
            Ok(()) => self.behind = false,
            Err(error) => tracing::debug!(%error, "cannot write the copy of the state"),
        }
    }

    /// What a failed write means to whoever asked for it.
    pub fn fault(&self, trouble: &Trouble) -> Fault {
        let dir = self.dir.display();
        let code = match trouble {
            Trouble::Sqlite(error) => error.sqlite_error_code(),
            Trouble::Io(_) | Trouble::Replaced(_) => None,
        };
        let errno = match trouble {
            Trouble::Io(error) => error.raw_os_error(),
            Trouble::Sqlite(_) | Trouble::Replaced(_) => None,
        };
        let is = |wanted: rustix::io::Errno| errno == Some(wanted.raw_os_error());
        let full =
            code == Some(ErrorCode::DiskFull) || is(rustix::io::Errno::NOSPC) || is(rustix::io::Errno::DQUOT);
        let read_only = code == Some(ErrorCode::ReadOnly) || is(rustix::io::Errno::ROFS);
        let (kind, what, hint) = match super::room(&self.dir) {
            _ if matches!(trouble, Trouble::Replaced(_)) => (
                Kind::FailedPrecondition,
                "is another one",
                format!(
                    "mount or put back what was in `{dir}`; what netd and vmd made goes on. A restart takes what is there then"
                ),
            ),
            Some(room @ super::Room::Full) | Some(room @ super::Room::NoInodes) => (
                Kind::ResourceExhausted,
                room.what(),
                format!("make room on the file system of `{dir}`; it is used again by itself"),
            ),
            _ if full => (
                Kind::ResourceExhausted,
                super::Room::Full.what(),
                format!("make room on the file system of `{dir}`; it is used again by itself"),
            ),
            Some(super::Room::ReadOnly) => {
                (Kind::FailedPrecondition, super::Room::ReadOnly.what(), read_only_hint(&dir))
            }
            _ if read_only => (Kind::FailedPrecondition, super::Room::ReadOnly.what(), read_only_hint(&dir)),
            None => (
                Kind::FailedPrecondition,
                "cannot be written",
                format!(
                    "look at the kernel's log and check the file system of `{dir}`; it is used again by itself"
                ),
            ),
        };
        let message = format!("the state store {what}; nothing was changed");
        Fault::new(kind, "STATE_STORE", message).cause(trouble).hint(hint)
    }
}

fn read_only_hint(dir: &impl std::fmt::Display) -> String {
    format!("make the file system of `{dir}` writable (mount -o remount,rw); it is used again by itself")
}
