//! From what was found on disk to what the store has in it. Pure.

use super::{
    record::{Key, Rows},
    scan::{SCHEMA, Scan},
};
use crate::fault::{Fault, Kind};
use std::path::Path;
use uuid::Uuid;

/// Commits that are left out where it is not known how many there were.
const GAP: i64 = 1000;

/// All that a store has in it.
#[derive(Clone, Debug)]
pub struct Content {
    /// The store's id.
    pub instance: Uuid,
    /// Number of the last commit.
    pub rev: i64,
    /// The records.
    pub rows: Rows,
}

/// What is to be done with what was found.
#[derive(Debug)]
pub enum Decision {
    /// There is no store yet.
    Fresh,
    /// The file is as it should be.
    Sound(Content),
    /// The file is to be written anew, and the one that is there kept under another name.
    Rewrite {
        /// What goes into it.
        content: Content,
        /// Whether that is all there was. If not, the copy is kept as well.
        complete: bool,
        /// What an operator should know; nothing if only the form of the tables changes.
        note: Option<String>,
    },
}

/// Chooses between the file and its copy, and puts together what neither has whole.
///
/// # Errors
/// FAILED_PRECONDITION if a newer program wrote it, or if nothing can be read: the store is then as it was.
pub fn decide(path: &Path, main: Option<Scan>, copy: Option<Scan>) -> Result<Decision, Fault> {
    for scan in [&main, &copy].into_iter().flatten() {
        refuse_newer(path, scan)?;
    }
    let file = path.display();
    let Some(main) = main else {
        let Some(copy) = copy else { return Ok(Decision::Fresh) };
        let complete = copy.is_whole();
        let content =
            content(copy).ok_or_else(|| unreadable(path, "it is missing, and its copy is damaged"))?;
        let note = format!(
            "`{file}` was missing: it was restored from its copy, without what was changed in the last seconds before it went"
        );
        return Ok(Decision::Rewrite { content, complete, note: Some(note) });
    };
    let copy = copy.filter(|copy| main.instance.is_none_or(|instance| copy.instance == Some(instance)));
    if main.is_whole() {
        let decided = whole(path, main, copy.filter(Scan::is_whole));
        return decided.ok_or_else(|| unreadable(path, "it does not say whose it is"));
    }
    let why = main.damage.clone().unwrap_or_else(|| "the store's own record is damaged".to_owned());
    if let Some(copy) =
        copy.as_ref().filter(|copy| copy.is_whole() && main.rev.is_some() && copy.rev >= main.rev)
        && let Some(content) = content(copy.clone())
    {
        let note =
            format!("`{file}` was damaged ({why}): it was restored from its copy, and nothing was lost");
        return Ok(Decision::Rewrite { content, complete: true, note: Some(note) });
    }
    salvage(path, main, copy, &why)
}

/// A file in which nothing is missing; single records of it may be damaged.
fn whole(path: &Path, mut main: Scan, copy: Option<Scan>) -> Option<Decision> {
    let file = path.display();
    let migrate = main.schema != SCHEMA;
    let all_read = |scan: &Scan| scan.rows.values().all(|row| row.why.is_none());
    let mut note = None;
    if let Some(copy) = copy.filter(|copy| copy.schema == main.schema) {
        if copy.rev > main.rev {
            let note = format!(
                "`{file}` lacked its last changes, as if part of it had been lost: it was restored from its copy"
            );
            let complete = all_read(&main);
            return content(copy).map(|content| Decision::Rewrite { content, complete, note: Some(note) });
        }
        // The copy is of the very same commit, so its record is the one that was damaged.
        if copy.rev == main.rev {
            let broken = |key: &Key| main.rows.get(key).is_some_and(|row| row.why.is_some());
            let mended: Vec<_> =
                copy.rows.into_iter().filter(|(key, row)| row.why.is_none() && broken(key)).collect();
            note = (!mended.is_empty()).then(|| {
                let names = names(mended.iter().map(|(key, _)| key));
                format!(
                    "damaged records in `{file}` were restored from its copy, and nothing was lost: {names}"
                )
            });
            main.rows.extend(mended);
        }
    }
    let complete = all_read(&main);
    let content = content(main)?;
    Some(if migrate || note.is_some() {
        Decision::Rewrite { content, complete, note }
    } else {
        Decision::Sound(content)
    })
}

/// What can be read of the file, and from an older copy what cannot.
fn salvage(path: &Path, main: Scan, copy: Option<Scan>, why: &str) -> Result<Decision, Fault> {
    let newest = main.newest().max(copy.as_ref().map_or(0, Scan::newest));
    let structure_lost = main.damage.is_some();
    let from_file = main.rows.values().filter(|row| row.why.is_none()).count();
    let mut from_copy = Vec::new();
    let mut merged = main;
    merged.rev = Some(newest + GAP);
    // What is left of a row that does not even say what it is of.
    merged.rows.retain(|(kind, _), row| row.why.is_none() || !kind.is_empty());
    if let Some(copy) = copy {
        merged.instance = merged.instance.or(copy.instance);
        for (key, row) in copy.rows {
            // In a file whose structure is whole, what is not there was deleted.
            if structure_lost && merged.rows.get(&key).is_none_or(|row| row.why.is_some()) {
                from_copy.push(key.clone());
                merged.rows.insert(key, row);
            }
        }
    }
    let content = content(merged).ok_or_else(|| unreadable(path, why))?;
    let mut note =
        format!("`{}` was damaged ({why}): {from_file} records were saved from it", path.display());
    if !from_copy.is_empty() {
        note += &format!(", and from its copy, which may be older: {}", names(from_copy.iter()));
    }
    Ok(Decision::Rewrite { content, complete: !structure_lost, note: Some(note) })
}

fn content(scan: Scan) -> Option<Content> {
    let rev = scan.rev.unwrap_or_else(|| scan.newest() + GAP);
    Some(Content { instance: scan.instance?, rev, rows: scan.rows })
}

fn names<'a>(keys: impl ExactSizeIterator<Item = &'a Key>) -> String {
    const MOST: usize = 20;
    let (count, mut text) = (keys.len(), String::new());
    for (kind, id) in keys.take(MOST) {
        text += &format!("{}{kind} `{id}`", if text.is_empty() { "" } else { ", " });
    }
    if count > MOST { format!("{text} and {} more", count - MOST) } else { text }
}

fn refuse_newer(path: &Path, scan: &Scan) -> Result<(), Fault> {
    if scan.schema <= SCHEMA {
        return Ok(());
    }
    let message = format!("`{}` has schema {}, this program knows {SCHEMA}", path.display(), scan.schema);
    Err(Fault::new(Kind::FailedPrecondition, "NEWER_SCHEMA", message)
        .hint("start the newer version again, or choose another folder with --state-dir"))
}

fn unreadable(path: &Path, why: &str) -> Fault {
    let message = format!("`{}` is damaged, and nothing of it can be read: {why}", path.display());
    Fault::new(Kind::FailedPrecondition, "STATE_DAMAGED", message)
        .hint("what runs goes on; put a backup of the folder back and start again")
        .hint("to give up what was recorded, move the folder's files away: what runs goes on then too, and belongs to nobody")
}
