//! The record of what was asked for: JSON documents in SQLite, one folder a daemon.
//!
//! A commit is durable when it returns (WAL, synchronous=FULL). SQLite is a blocking library, so one thread owns
//! the connection and takes jobs in order.

use crate::{
    events::{self, EventLog, News, Pending},
    fault::{Fault, Kind},
    steps,
};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Version of the tables below; a newer one is refused.
const SCHEMA: i64 = 1;
const FILE: &str = "state.sqlite";

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    kind: &'static str,
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
        Ok(Self { kind, id: id.into(), document: Some(document) })
    }

    /// Removes the record, if there is one.
    #[must_use]
    pub fn delete(kind: &'static str, id: impl Into<String>) -> Self {
        Self { kind, id: id.into(), document: None }
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

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::UnboundedSender<Job>,
    events: EventLog,
    instance: Uuid,
    created: bool,
}

impl Store {
    /// Opens the store in `dir`, and makes both if missing. Only one process at a time may have it.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if another process has it, if it was written by a newer version, or if it cannot be
    /// opened; the hint says how to recover.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let place = dir.to_owned();
        let failed = move |what: &str, error: &dyn std::error::Error| {
            Fault::new(
                Kind::FailedPrecondition,
                "STATE_DIR",
                format!("cannot {what} the state in `{}`", place.display()),
            )
            .cause(error)
            .hint("choose another folder with --state-dir, or put its backup back")
        };
        make_private(dir).map_err(|e| failed("make the folder of", &e))?;
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        let created = !path.exists();
        let mut connection = Connection::open(&path).map_err(|e| failed("open", &e))?;
        let instance = prepare(&mut connection, &path).map_err(|e| match e {
            Opening::Sqlite(e) => failed("read", &e),
            Opening::Refused(fault) => fault,
        })?;
        let events = events::opened(&mut connection).map_err(|e| failed("read", &e))?;
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                // Held as long as the connection: the next process may open only after both are gone.
                let _lock = lock;
                while let Some(job) = queue.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(|e| failed("start the thread for", &e))?;
        Ok(Self { jobs, events, instance, created })
    }

    /// The id made when the store was; it marks this daemon's objects in the kernel.
    #[must_use]
    pub fn instance(&self) -> Uuid {
        self.instance
    }

    /// Whether this start made the store, so that objects found in the kernel have no record.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.created
    }

    /// Carries out all of `ops`, or none. Durable when it returns.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the disk is full, else FAILED_PRECONDITION. Nothing was changed.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<(), Fault> {
        self.commit_telling(ops, Vec::new()).await.map(drop)
    }

    /// As `commit`, and numbers and records what is to be told of it in the same transaction. It is told when the
    /// answer is dropped.
    ///
    /// # Errors
    /// As `commit`.
    pub async fn commit_telling(&self, ops: Vec<Op>, news: Vec<News>) -> Result<Pending, Fault> {
        let (ops, news): (Arc<[Op]>, Arc<[News]>) = (ops.into(), news.into());
        let work = || {
            let (ops, news, events) = (Arc::clone(&ops), Arc::clone(&news), self.events.clone());
            self.run(move |connection| write(connection, &ops, &events, &news))
        };
        steps::step(|| names(&ops), work).await
    }

    /// Tells what belongs to no change of a record, in the background: an event is no reason to wait, and its loss
    /// none to fail. `ops` are what is to be known at the next start along with it. Neither is lost by the end of
    /// this process, once it is written, and nothing is told before; the host's own end may lose both.
    pub fn tell(&self, ops: Vec<Op>, news: Vec<News>) {
        let events = self.events.clone();
        let told = self.jobs.send(Box::new(move |connection| {
            let result = if events.may_be_quick() {
                relaxed(connection, |connection| write(connection, &ops, &events, &news))
            } else {
                write(connection, &ops, &events, &news)
            };
            if let Err(error) = result {
                tracing::warn!(%error, lost = news.len(), "cannot keep events");
                events.lose();
            }
        }));
        if told.is_err() {
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
    /// FAILED_PRECONDITION if the store as a whole cannot be read.
    pub async fn load<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: &'static str,
    ) -> Result<Loaded<T>, Fault> {
        let rows = self
            .run(move |connection| {
                connection
                    .prepare("SELECT id, doc FROM o WHERE kind = ?1 ORDER BY id")?
                    .query_map([kind], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
                    .collect::<Result<Vec<_>, _>>()
            })
            .await?;
        let mut loaded = Loaded { records: Vec::new(), broken: Vec::new() };
        for (id, document) in rows {
            match serde_json::from_str(&document) {
                Ok(record) => loaded.records.push((id, record)),
                Err(error) => loaded.broken.push(Broken { id, why: error.to_string() }),
            }
        }
        Ok(loaded)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (answer, result) = oneshot::channel();
        let gone = || Fault::internal("the thread of the state store has ended");
        self.jobs
            .send(Box::new(move |connection| {
                // The asker may have gone; the change is made all the same.
                let _ = answer.send(job(connection));
            }))
            .map_err(|_| gone())?;
        result.await.map_err(|_| gone())?.map_err(|error| {
            let (kind, hint) = match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => (Kind::ResourceExhausted, "make room on its file system"),
                Some(ErrorCode::ReadOnly) => (Kind::FailedPrecondition, "make its file system writable"),
                _ => (Kind::FailedPrecondition, "check the file system of the state folder"),
            };
            Fault::new(kind, "STATE_STORE", "the state store failed; nothing was changed")
                .cause(&error)
                .hint(hint)
        })
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

fn write(
    connection: &mut Connection,
    ops: &[Op],
    events: &EventLog,
    news: &[News],
) -> rusqlite::Result<Pending> {
    let transaction = connection.transaction()?;
    for op in ops {
        match &op.document {
            Some(document) => transaction
                .prepare_cached(
                    "INSERT INTO o (kind, id, doc) VALUES (?1, ?2, ?3)
                     ON CONFLICT (kind, id) DO UPDATE SET doc = excluded.doc",
                )?
                .execute(params![op.kind, op.id, document])?,
            None => transaction
                .prepare_cached("DELETE FROM o WHERE kind = ?1 AND id = ?2")?
                .execute(params![op.kind, op.id])?,
        };
    }
    let numbered = events.write(&transaction, news)?;
    transaction.commit()?;
    Ok(events.append(numbered))
}

/// Runs `work` without waiting for the disk. The next transaction that waits, waits for this one too.
fn relaxed<T>(
    connection: &mut Connection,
    work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let result = work(connection);
    connection.pragma_update(None, "synchronous", "FULL")?;
    result
}

/// Only the last folder is private: those above it are other daemons' way to theirs.
fn make_private(dir: &Path) -> std::io::Result<()> {
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn lock(dir: &Path) -> Result<File, Fault> {
    let path: PathBuf = dir.join("lock");
    let failed = |error: &dyn std::error::Error| {
        Fault::new(Kind::FailedPrecondition, "STATE_LOCKED", format!("cannot lock `{}`", path.display()))
            .cause(error)
            .hint("another daemon may use this folder: stop it, or choose another with --state-dir")
    };
    let file = File::create(&path).map_err(|e| failed(&e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(&e))?;
    Ok(file)
}

enum Opening {
    Sqlite(rusqlite::Error),
    Refused(Fault),
}

impl From<rusqlite::Error> for Opening {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn prepare(connection: &mut Connection, path: &Path) -> Result<Uuid, Opening> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > SCHEMA {
        return Err(Opening::Refused(
            Fault::new(
                Kind::FailedPrecondition,
                "NEWER_SCHEMA",
                format!("`{}` has schema {version}, this program knows {SCHEMA}", path.display()),
            )
            .hint("start the newer version again, or choose another folder with --state-dir"),
        ));
    }
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS o (
             kind TEXT NOT NULL, id TEXT NOT NULL, doc TEXT NOT NULL,
             PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;",
    )?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    let stored: Option<String> = transaction
        .query_row("SELECT value FROM meta WHERE key = 'instance'", [], |row| row.get(0))
        .optional()?;
    let instance = match stored {
        Some(text) => Uuid::parse_str(&text).map_err(|e| {
            Opening::Refused(
                Fault::new(Kind::FailedPrecondition, "STATE_DIR", "the instance id in the state is damaged")
                    .cause(&e)
                    .hint("put the backup of the state folder back"),
            )
        })?,
        None => {
            let fresh = Uuid::new_v4();
            transaction.execute("INSERT INTO meta VALUES ('instance', ?1)", [fresh.to_string()])?;
            fresh
        }
    };
    transaction.commit()?;
    Ok(instance)
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_all_or_nothing_and_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.is_new());
        let ops = vec![
            Op::put("n", "b", &2).unwrap(),
            Op::put("n", "a", &1).unwrap(),
            Op::put("p", "a", &9).unwrap(),
        ];
        store.commit(ops).await.unwrap();
        store.commit(vec![Op::delete("n", "b"), Op::delete("n", "never")]).await.unwrap();
        let instance = store.instance();
        drop(store);
        let store = reopen(dir.path()).await;
        assert!(!store.is_new());
        assert_eq!(store.instance(), instance);
        assert_eq!(store.load::<u32>("n").await.unwrap().records, vec![("a".to_owned(), 1)]);
    }

    /// The thread lets go of the lock a moment after the last handle is dropped.
    async fn reopen(dir: &Path) -> Store {
        loop {
            match Store::open(dir) {
                Ok(store) => return store,
                Err(fault) => assert_eq!(fault.reason(), "STATE_LOCKED"),
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn only_the_last_folder_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let common = dir.path().join("common");
        let _store = Store::open(&common.join("own")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&common.join("own")), 0o700);
        // 0755 or what the umask leaves of it, which a folder made beside it shows.
        let plain = dir.path().join("plain");
        fs::create_dir(&plain).unwrap();
        assert_eq!(mode(&common), mode(&plain));
    }

    #[tokio::test]
    async fn two_processes_cannot_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap_err().reason(), "STATE_LOCKED");
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_kept_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store
            .commit(vec![Op::put("n", "bad", &"text").unwrap(), Op::put("n", "good", &7).unwrap()])
            .await
            .unwrap();
        let loaded = store.load::<u32>("n").await.unwrap();
        assert_eq!(loaded.records, vec![("good".to_owned(), 7)]);
        assert_eq!(loaded.broken[0].id, "bad");
        assert_eq!(store.load::<String>("n").await.unwrap().records[0].1, "text");
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Connection::open(dir.path().join(FILE))
            .unwrap()
            .pragma_update(None, "user_version", SCHEMA + 1)
            .unwrap();
        assert_eq!(Store::open(dir.path()).unwrap_err().reason(), "NEWER_SCHEMA");
    }
}
