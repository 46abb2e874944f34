//! The store's files, and writing to them.

use super::{
    image::has_log,
    record::{Key, OWN, Row},
    recover::Content,
    scan::{self, SCHEMA},
};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, ToSql, params,
    types::{ToSqlOutput, ValueRef},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Name of the database in its folder.
pub const FILE: &str = "state.sqlite";
/// Its copy, which lags some seconds behind.
pub const COPY: &str = "state.sqlite.copy";

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// SQLite's.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file system's.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not the one that was read.
    #[error("`{0}` is no longer the file that was opened")]
    Replaced(PathBuf),
}

/// An open database.
#[derive(Debug)]
pub struct Disk {
    connection: Connection,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

struct Bytes<'a>(&'a [u8]);

impl ToSql for Bytes<'_> {
    /// As text, even if it is damaged and is none.
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

impl Disk {
    /// Opens the database that `content` was read from.
    ///
    /// # Errors
    /// If it cannot be written, or is another one by now.
    pub fn attach(dir: &Path, content: &Content) -> Result<Self, Trouble> {
        let path = dir.join(FILE);
        // It may have got its name just now.
        File::open(dir)?.sync_all()?;
        let file = identity(&path)?;
        let mut head = [0; 20];
        File::open(&path)?.read_exact(&mut head)?;
        if !has_log(&head) {
            remove(&scan::log_of(&path))?;
        }
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // SQLite takes what it gets, and would stay so when the disk can be written again.
        if connection.is_readonly("main")? {
            return Err(io::Error::from(rustix::io::Errno::ROFS).into());
        }
        // Nobody else may have it, so the log needs no shared memory, which a full disk has no room for.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let own: Option<(Vec<u8>, Vec<u8>)> = connection
            .query_row(
                "SELECT sum, CAST(doc AS BLOB) FROM record WHERE kind = ?1 AND id = ''",
                [OWN],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let row = own.map(|(sum, document)| Row::found(sum, document).0);
        let is = row.as_ref().and_then(Row::sealed).map(|sealed| (sealed.store, sealed.rev));
        if is != Some((content.instance, content.rev)) {
            return Err(Trouble::Replaced(path));
        }
        Ok(Self { connection, path, file })
    }

    /// Writes a new database with `content` in the place of what is there, which is kept under the name `aside`. It is
    /// still to be attached.
    ///
    /// # Errors
    /// What is there is then still there.
    pub fn replace(dir: &Path, content: &Content, aside: Option<&str>) -> Result<(), Trouble> {
        let path = dir.join(FILE);
        if let Some(aside) = aside.filter(|_| path.exists()) {
            keep(&path, &dir.join(aside))?;
        }
        let new = dir.join(format!("{FILE}.new"));
        write_whole(&new, content)?;
        // The log that may lie beside it is the former one's: `attach` removes it.
        fs::rename(&new, &path)?;
        Ok(())
    }

    /// Carries out changes, all or none; durable when it returns, or with the next that is. `None` removes a record.
    ///
    /// # Errors
    /// Nothing was changed.
    pub fn commit(
        &mut self,
        own: &Row,
        changes: &[(Key, Option<Row>)],
        durable: bool,
    ) -> Result<(), Trouble> {
        if identity(&self.path).ok() != Some(self.file) {
            return Err(Trouble::Replaced(self.path.clone()));
        }
        self.connection.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
        let transaction = self.connection.transaction()?;
        let own = ((OWN.to_owned(), String::new()), Some(own.clone()));
        for ((kind, id), row) in changes.iter().chain([&own]) {
            match row {
                Some(row) => transaction.prepare_cached(PUT)?.execute(params![
                    kind,
                    id,
                    row.sum,
                    Bytes(&row.document)
                ])?,
                None => transaction
                    .prepare_cached("DELETE FROM record WHERE kind = ?1 AND id = ?2")?
                    .execute(params![kind, id])?,
            };
        }
        transaction.commit()?;
        Ok(())
    }

    /// Moves what is in the log into the database, so that little depends on the log.
    ///
    /// # Errors
    /// The log then goes on.
    pub fn settle(&self) -> Result<(), Trouble> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

const PUT: &str = "INSERT INTO record (kind, id, sum, doc) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (kind, id) DO UPDATE SET sum = excluded.sum, doc = excluded.doc";

/// Writes the copy.
///
/// # Errors
/// The former one is then still there.
pub fn write_copy(dir: &Path, content: &Content) -> Result<(), Trouble> {
    let new = dir.join(format!("{COPY}.new"));
    write_whole(&new, content)?;
    fs::rename(&new, dir.join(COPY))?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// A name beside the database for what was found damaged.
#[must_use]
pub fn aside(dir: &Path, what: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut names = (now..).map(|at| format!("{what}.damaged-{at}"));
    names.find(|name| !dir.join(name).exists()).unwrap_or_default()
}

/// The store's own record.
///
/// # Errors
/// Never: a number has a JSON form.
pub fn own(content: &Content, rev: i64) -> serde_json::Result<Row> {
    Row::seal(content.instance, rev, (OWN, ""), &SCHEMA.to_string())
}

fn write_whole(path: &Path, content: &Content) -> Result<(), Trouble> {
    remove(path)?;
    // SQLite gives its other files the mode of this one.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut connection = Connection::open(path)?;
    // Nobody knows of the file before it is whole.
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE record (
             kind TEXT NOT NULL, id TEXT NOT NULL, sum BLOB NOT NULL, doc TEXT NOT NULL,
             PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID;",
    )?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    {
        let own = own(content, content.rev).map_err(io::Error::other)?;
        let mut put = transaction.prepare(PUT)?;
        put.execute(params![OWN, "", own.sum, Bytes(&own.document)])?;
        for ((kind, id), row) in &content.rows {
            put.execute(params![kind, id, row.sum, Bytes(&row.document)])?;
        }
    }
    transaction.commit()?;
    drop(connection);
    File::open(path)?.sync_all()?;
    Ok(())
}

/// Copies a database with its log to another name, and sees it on the disk. What has that name already is whole, and
/// stays as it is.
fn keep(path: &Path, to: &Path) -> io::Result<()> {
    for (from, to) in [(path.to_owned(), to.to_owned()), (scan::log_of(path), scan::log_of(to))] {
        if from.exists() && !to.exists() {
            let mut part = to.clone().into_os_string();
            part.push(".new");
            fs::copy(&from, &part)?;
            File::open(&part)?.sync_all()?;
            fs::rename(&part, &to)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}
