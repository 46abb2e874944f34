//! A database as its two files have it, without touching either: a full or read-only disk can be read this way.

/// Length of the header of a database, of a log, and of each page in the log, bytes.
const DATABASE_HEADER: usize = 100;
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// First word of a log; its lowest bit says that checksums are made of big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// The pages of `database` with the committed ones of its write-ahead log over them, as SQLite's file format has it
/// (<https://www.sqlite.org/fileformat2.html#the_write_ahead_log>). A log that is damaged counts up to there. The
/// result says of itself that it has no log.
#[must_use]
pub fn image(mut database: Vec<u8>, log: &[u8]) -> Vec<u8> {
    if has_log(&database) {
        apply(&mut database, log);
    }
    if database.len() >= DATABASE_HEADER {
        // Read and write version: 1 is a rollback journal, 2 a log, which a database in memory cannot have.
        database[18..20].copy_from_slice(&[1, 1]);
    }
    database
}

/// Whether a database, of which these are the first bytes, says that it has a log. One that was just put in the place of
/// another has none, whatever lies beside it.
#[must_use]
pub fn has_log(database: &[u8]) -> bool {
    database.get(18..20).is_some_and(|versions| versions.contains(&2))
}

fn apply(database: &mut Vec<u8>, log: &[u8]) -> Option<()> {
    let magic = word(log, 0)?;
    let size = word(log, 8)? as usize;
    if magic & !1 != MAGIC || !size.is_power_of_two() || !(512..=65_536).contains(&size) {
        return None;
    }
    let big = magic & 1 == 1;
    let salts = log.get(16..24)?;
    let mut sum = checksum((0, 0), log.get(..24)?, big);
    if sum != (word(log, 24)?, word(log, 28)?) {
        return None;
    }
    // Pages count once the transaction that they are of is whole.
    let mut pending: Vec<(usize, &[u8])> = Vec::new();
    let mut at = LOG_HEADER;
    while let (Some(head), Some(page)) =
        (log.get(at..at + FRAME_HEADER), log.get(at + FRAME_HEADER..at + FRAME_HEADER + size))
    {
        sum = checksum(checksum(sum, &head[..8], big), page, big);
        if head.get(8..16)? != salts || sum != (word(head, 16)?, word(head, 20)?) {
            break;
        }
        pending.push((word(head, 0)? as usize, page));
        let pages_after = word(head, 4)? as usize;
        if pages_after > 0 {
            database.resize(pages_after * size, 0);
            for (number, page) in pending.drain(..) {
                // One beyond the end was cut off by a later part of the transaction.
                if let Some(place) =
                    number.checked_sub(1).and_then(|n| database.get_mut(n * size..(n + 1) * size))
                {
                    place.copy_from_slice(page);
                }
            }
        }
        at += FRAME_HEADER + size;
    }
    Some(())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// SQLite's own: a Fibonacci sum over pairs of words.
fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big: bool) -> (u32, u32) {
    let number = |part: &[u8]| {
        let four = [part[0], part[1], part[2], part[3]];
        if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(number(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(number(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod test {
    use super::*;
    use rusqlite::Connection;
    use std::{fs, path::Path};

    fn rows(image: &[u8]) -> Vec<String> {
        let mut memory = Connection::open_in_memory().unwrap();
        memory.deserialize_read_exact("main", image, image.len(), true).unwrap();
        let mut query = memory.prepare("SELECT x FROM t ORDER BY x").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn files(path: &Path) -> (Vec<u8>, Vec<u8>) {
        let log = path.with_extension("sqlite-wal");
        (fs::read(path).unwrap(), fs::read(log).unwrap_or_default())
    }

    #[test]
    fn what_is_committed_is_in_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.sqlite");
        let mut database = Connection::open(&path).unwrap();
        database.pragma_update(None, "journal_mode", "WAL").unwrap();
        database.execute_batch("CREATE TABLE t (x TEXT); INSERT INTO t VALUES ('a')").unwrap();
        database.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
        database.execute_batch("INSERT INTO t VALUES ('b'); INSERT INTO t VALUES ('c')").unwrap();
        // Into the log, but not committed: it no longer fits into memory.
        database.pragma_update(None, "cache_size", 5).unwrap();
        let open = database.transaction().unwrap();
        for _ in 0..50 {
            open.execute("INSERT INTO t VALUES (?1)", ["x".repeat(3000)]).unwrap();
        }
        let (pages, log) = files(&path);
        assert!(log.len() > 20 * 4096, "nothing uncommitted is in the log: {}", log.len());
        assert_eq!(rows(&image(pages.clone(), &log)), ["a", "b", "c"]);
        assert_eq!(rows(&image(pages.clone(), &[])), ["a"]);
        // A log that is cut off, or damaged somewhere, counts up to there.
        let one = LOG_HEADER + FRAME_HEADER + 4096;
        assert_eq!(rows(&image(pages.clone(), &log[..one])), ["a", "b"]);
        let mut damaged = log.clone();
        damaged[one + FRAME_HEADER + 77] ^= 1;
        assert_eq!(rows(&image(pages.clone(), &damaged)), ["a", "b"]);
        damaged[20] ^= 1;
        assert_eq!(rows(&image(pages, &damaged)), ["a"]);
    }

    #[test]
    fn any_bytes_are_taken() {
        for length in [0, 1, 19, 31, 32, 99, 100, 5000] {
            let bytes = vec![0xa5; length];
            assert_eq!(image(bytes.clone(), &bytes).len(), length);
        }
    }
}
