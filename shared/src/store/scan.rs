//! What can be read of a database's bytes, whatever state they are in.

use super::{
    image::image,
    record::{Key, OWN, Row, Rows},
};
use rusqlite::{Connection, config::DbConfig, types::ValueRef};
use std::{fs, io, path::Path};
use uuid::Uuid;

/// Version of the tables; a newer one is refused.
pub const SCHEMA: i64 = 2;
/// How a database begins.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// What was found in one file.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// What is wrong with the file as a whole, if anything is: rows may be missing.
    pub damage: Option<String>,
    /// Version of its tables; 0: cannot be read.
    pub schema: i64,
    /// The store's id, if a whole row names it.
    pub instance: Option<Uuid>,
    /// Number of its last commit, if the store's own row is whole.
    pub rev: Option<i64>,
    /// Version of its tables as the store's own row has it.
    tables: Option<i64>,
    /// All rows that there are, the store's own aside.
    pub rows: Rows,
}

impl Scan {
    /// Whether nothing is missing, and all of it can be read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_none() && self.rev.is_some() && self.instance.is_some()
    }

    /// The newest commit that a row is of.
    #[must_use]
    pub fn newest(&self) -> i64 {
        let rows = self.rows.values().filter_map(|row| row.sealed().map(|sealed| sealed.rev)).max();
        rows.max(self.rev).unwrap_or(0)
    }

    fn damaged(&mut self, what: impl ToString) {
        self.damage.get_or_insert_with(|| what.to_string());
    }

    fn take(&mut self, place: Key, row: Row, sealed_as: Option<Key>) {
        if let Some(sealed) = row.sealed().filter(|_| sealed_as.is_some()) {
            self.instance.get_or_insert(sealed.store);
            if sealed.kind == OWN {
                self.rev = Some(sealed.rev);
                self.tables = serde_json::from_str(sealed.record.get()).ok();
            }
        }
        // SQLite could not find a row again that is filed under another key.
        if sealed_as.as_ref().is_some_and(|key| *key != place) {
            self.damaged("the key of a record is damaged");
        }
        let key = sealed_as.unwrap_or(place);
        if key.0 != OWN {
            self.rows.insert(key, row);
        }
    }
}

/// Reads the database at `path` with its log; `None` if there is no file.
///
/// # Errors
/// What the file system said.
pub fn read(path: &Path) -> io::Result<Option<Scan>> {
    let optional = |path: &Path| match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    };
    let Some(database) = optional(path)? else { return Ok(None) };
    let log = optional(&log_of(path))?.unwrap_or_default();
    Ok(Some(of(database, &log)))
}

/// Reads a database and its log, both as bytes.
#[must_use]
pub fn of(database: Vec<u8>, log: &[u8]) -> Scan {
    scan(image(database, log))
}

/// The write-ahead log beside a database.
#[must_use]
pub fn log_of(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn scan(bytes: Vec<u8>) -> Scan {
    let mut scan = Scan::default();
    if !bytes.starts_with(MAGIC) {
        let what = if bytes.is_empty() { "it is empty" } else { "it is no database" };
        scan.damaged(what);
        return scan;
    }
    if let Err(error) = scan_database(&mut scan, &bytes) {
        scan.damaged(error);
    }
    scan
}

fn scan_database(scan: &mut Scan, bytes: &[u8]) -> rusqlite::Result<()> {
    let mut memory = Connection::open_in_memory()?;
    memory.deserialize_read_exact("main", bytes, bytes.len(), true)?;
    // The schema is bytes of the file like all others.
    memory.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    memory.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    memory.pragma_update(None, "cell_size_check", true)?;
    scan.schema = memory.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let check: rusqlite::Result<String> = memory.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match check {
        Ok(words) if words == "ok" => {}
        Ok(words) => scan.damaged(words),
        Err(error) => scan.damaged(error),
    }
    if scan.schema == 1 && memory.table_exists(None, "o")? {
        return scan_first(scan, &memory);
    }
    scan_rows(scan, &memory)?;
    // A header that says otherwise is not a newer program's.
    if scan.tables == Some(SCHEMA) && scan.schema != SCHEMA {
        scan.schema = SCHEMA;
        scan.damaged("its version is damaged");
    }
    Ok(())
}

/// From the first row on and, if that is not all of it, from the last one back.
fn scan_rows(scan: &mut Scan, memory: &Connection) -> rusqlite::Result<()> {
    for order in ["ASC", "DESC"] {
        let mut query = memory
            .prepare(&format!("SELECT kind, id, sum, doc FROM record ORDER BY kind {order}, id {order}"))?;
        let mut rows = query.query([])?;
        loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let place = (text(row.get_ref(0)?), text(row.get_ref(1)?));
                    let (row, key) = Row::found(bytes(row.get_ref(2)?), bytes(row.get_ref(3)?));
                    scan.take(place, row, key);
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    scan.damaged(error);
                    break;
                }
            }
        }
    }
    Ok(())
}

/// The first version's records had no seal.
fn scan_first(scan: &mut Scan, memory: &Connection) -> rusqlite::Result<()> {
    let stored: String =
        memory.query_row("SELECT value FROM meta WHERE key = 'instance'", [], |row| row.get(0))?;
    let Ok(instance) = Uuid::parse_str(&stored) else {
        scan.damaged("its instance id is damaged");
        return Ok(());
    };
    (scan.instance, scan.rev) = (Some(instance), Some(0));
    let mut query = memory.prepare("SELECT kind, id, doc FROM o")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, id, document) = (text(row.get_ref(0)?), text(row.get_ref(1)?), bytes(row.get_ref(2)?));
        let sealed = Row::seal(instance, 0, (&kind, &id), &String::from_utf8_lossy(&document));
        let row = sealed.unwrap_or_else(|_| Row::found(Vec::new(), document).0);
        scan.rows.insert((kind, id), row);
    }
    Ok(())
}

fn bytes(value: ValueRef<'_>) -> Vec<u8> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        // Damaged: a row's columns are of other types.
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Vec::new(),
    }
}

fn text(value: ValueRef<'_>) -> String {
    String::from_utf8_lossy(&bytes(value)).into_owned()
}
