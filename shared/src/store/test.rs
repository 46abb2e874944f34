use super::{
    record::Row,
    scan::{SCHEMA, Scan},
    *,
};
use rusqlite::Connection;

#[tokio::test]
async fn a_commit_is_all_or_nothing_and_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.is_new());
    let ops =
        vec![Op::put("n", "b", &2).unwrap(), Op::put("n", "a", &1).unwrap(), Op::put("p", "a", &9).unwrap()];
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
    assert_eq!(store.load::<serde_json::Value>("n").await.unwrap().records[0].1, "text");
    // Nothing takes its place, and it is given up only if somebody says so.
    for op in [Op::put("n", "bad", &1).unwrap(), Op::delete("n", "bad")] {
        let refused = store.commit(vec![Op::put("n", "other", &1).unwrap(), op]).await.unwrap_err();
        assert_eq!(refused.reason(), "BROKEN_RECORD");
        assert!(refused.hints()[0].contains("--forget 'n bad'"), "{:?}", refused.hints());
    }
    assert_eq!(store.load::<u32>("n").await.unwrap().records.len(), 1, "half of a commit");
    assert!(store.warnings()[0].contains("n `bad` cannot be read"), "{:?}", store.warnings());
    assert_eq!(store.forget("n good").await.unwrap_err().reason(), "NOT_BROKEN");
    assert_eq!(store.forget("n never").await.unwrap_err().kind(), Kind::NotFound);
    store.forget("n bad").await.unwrap();
    store.commit(vec![Op::put("n", "bad", &1).unwrap()]).await.unwrap();
    assert!(store.warnings().is_empty());
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Connection::open(dir.path().join(FILE)).unwrap().pragma_update(None, "user_version", SCHEMA + 1).unwrap();
    assert_eq!(Store::open(dir.path()).unwrap_err().reason(), "NEWER_SCHEMA");
}

const RECORDS: [(&str, &str); 5] =
    [("network", "apart"), ("network", "lan"), ("port", "lan/a"), ("port", "lan/b"), ("sysctl", "forward")];

/// A document as long as those of ports are.
fn document(id: &str) -> serde_json::Value {
    serde_json::json!({ "name": id, "labels": { "of": "x".repeat(300) }, "mtu": 1500 })
}

/// A store with `RECORDS` that was left alone for a second, and its two files.
async fn settled(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let store = Store::open(dir).unwrap();
    for (kind, id) in RECORDS {
        store.commit(vec![Op::put(kind, id, &document(id)).unwrap()]).await.unwrap();
    }
    close(store, dir).await;
    assert!(!scan::log_of(&dir.join(FILE)).exists());
    (fs::read(dir.join(FILE)).unwrap(), fs::read(dir.join(COPY)).unwrap())
}

/// Returns when the store's thread has written its last and let go.
async fn close(store: Store, dir: &Path) {
    drop(store);
    while lock(dir).is_err() {
        tokio::task::yield_now().await;
    }
}

/// What a store would have in it with these files.
fn decided(main: &[u8], copy: Option<&Scan>) -> Result<Decision, Fault> {
    recover::decide(Path::new(FILE), Some(scan::of(main.to_vec(), &[])), copy.cloned())
}

/// How many of `RECORDS` are there as they were, and how many are there and known to be broken.
fn count(content: &Content) -> (usize, usize) {
    let is = |kind: &str, id: &str| content.rows.get(&(kind.to_owned(), id.to_owned()));
    let whole = |row: &Row, id: &str| {
        row.record().is_some_and(|text| text == serde_json::to_string(&document(id)).unwrap())
    };
    let good = RECORDS.iter().filter(|(kind, id)| is(kind, id).is_some_and(|row| whole(row, id))).count();
    let broken =
        RECORDS.iter().filter(|(kind, id)| is(kind, id).is_some_and(|row| row.why.is_some())).count();
    // None is another than it was without saying so.
    let rows = content.rows.iter().filter(|((kind, _), _)| !events::is_kind(kind));
    let readable = rows.filter(|(_, row)| row.record().is_some()).count();
    assert_eq!(readable, good);
    (good, broken)
}

/// Each byte of the file is changed, once to another and once to zero or all ones.
#[tokio::test]
async fn no_changed_byte_of_the_file_loses_or_forges_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let (main, copy) = settled(dir.path()).await;
    let copy = scan::of(copy, &[]);
    let instance = match decided(&main, None).unwrap() {
        Decision::Sound(content) => content.instance,
        other => panic!("{other:?}"),
    };
    let (mut tried, mut sound, mut broken, mut salvaged, mut refused) = (0, 0, 0, 0, 0);
    for at in 0..main.len() {
        let mut damaged = main.clone();
        damaged[at] = match at % 3 {
            0 => damaged[at] ^ 0x01,
            1 => damaged[at] ^ 0xff,
            _ => damaged[at].wrapping_add(0x40),
        };
        tried += 1;
        match decided(&damaged, Some(&copy)).unwrap() {
            Decision::Sound(content) | Decision::Rewrite { content, .. } => {
                assert_eq!((count(&content), content.instance), ((RECORDS.len(), 0), instance), "byte {at}");
            }
            Decision::Fresh => panic!("byte {at}: an empty store"),
        }
        // Without a copy there is nothing to restore from: what is damaged is said to be, and the rest is there.
        match decided(&damaged, None) {
            Ok(Decision::Sound(content)) => {
                assert_eq!(content.instance, instance);
                let (good, bad) = count(&content);
                assert!(good + bad == RECORDS.len() && bad <= 1, "byte {at}: {good} {bad}");
                if bad == 0 { sound += 1 } else { broken += 1 }
            }
            Ok(Decision::Rewrite { content, note, .. }) => {
                assert_eq!(content.instance, instance);
                assert!(note.is_some(), "byte {at}: unsaid");
                count(&content);
                salvaged += 1;
            }
            Ok(Decision::Fresh) => panic!("byte {at}: an empty store"),
            Err(fault) => {
                assert!(
                    ["STATE_DAMAGED", "NEWER_SCHEMA"].contains(&fault.reason()),
                    "byte {at}: {}",
                    fault.chain()
                );
                assert!(!fault.hints().is_empty());
                refused += 1;
            }
        }
    }
    println!(
        "{tried} bytes changed. With the copy: 0 of {} records lost each time. Without: {sound} harmless, \
         {broken} with one record broken, {salvaged} salvaged, {refused} refused with what to do",
        RECORDS.len()
    );
    assert!(broken > 1000, "the records are most of the file");
}

#[tokio::test]
async fn a_file_that_is_cut_off_empty_garbage_or_missing_is_restored_from_the_copy_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (main, copy) = settled(dir.path()).await;
    let copy = scan::of(copy, &[]);
    let garbage: Vec<u8> = (0..main.len()).map(|at| (at * 7919 % 251) as u8).collect();
    let cut = (0..main.len()).step_by(97).map(|length| main[..length].to_vec());
    let mut tried = 0;
    for damaged in cut.chain([garbage, b"SQLite format 3\0".to_vec()]) {
        tried += 1;
        let Decision::Rewrite { content, note, .. } = decided(&damaged, Some(&copy)).unwrap() else {
            panic!("{} bytes are no store", damaged.len())
        };
        let note = note.unwrap();
        assert_eq!(count(&content), (RECORDS.len(), 0), "{} bytes: {note}", damaged.len());
        // What cannot be read is never taken for a store with nothing in it.
        match decided(&damaged, None) {
            Ok(Decision::Rewrite { content, .. }) => assert!(!content.rows.is_empty()),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => assert_eq!(fault.reason(), "STATE_DAMAGED"),
        }
        assert!(decided(&main, Some(&scan::of(damaged, &[]))).is_ok(), "a damaged copy does no harm");
    }
    fs::remove_file(dir.path().join(FILE)).unwrap();
    let store = reopen(dir.path()).await;
    assert!(!store.is_new() && store.warnings()[0].contains("was missing"), "{:?}", store.warnings());
    assert_eq!(store.load::<serde_json::Value>("port").await.unwrap().records.len(), 2);
    println!("{tried} cut off or garbled files: none taken for an empty store");
}

/// The log is what was committed last; nothing else tells that its end is damaged and not just missing.
#[tokio::test]
async fn no_changed_byte_of_the_log_loses_what_the_copy_has() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for (kind, id) in RECORDS {
        store.commit(vec![Op::put(kind, id, &document(id)).unwrap()]).await.unwrap();
    }
    let (main, log) = (dir.path().join(FILE), scan::log_of(&dir.path().join(FILE)));
    let (pages, frames) = (fs::read(&main).unwrap(), fs::read(&log).unwrap());
    assert!(frames.len() > 4096);
    let content = store.common.content.read().unwrap().clone();
    let other = tempfile::tempdir().unwrap();
    disk::write_copy(other.path(), &content).unwrap();
    let mut restored = 0;
    for at in (0..frames.len()).step_by(13) {
        let mut damaged = frames.clone();
        damaged[at] ^= 0x5a;
        let file = other.path().join(FILE);
        fs::write(&file, &pages).unwrap();
        fs::write(scan::log_of(&file), damaged).unwrap();
        let copy = scan::read(&other.path().join(COPY)).unwrap();
        let (Decision::Sound(content) | Decision::Rewrite { content, .. }) =
            recover::decide(&file, scan::read(&file).unwrap(), copy).unwrap()
        else {
            panic!("byte {at}: an empty store")
        };
        assert_eq!(count(&content), (RECORDS.len(), 0), "byte {at}");
        restored += 1;
    }
    println!("{restored} damaged logs: nothing lost");
}

#[tokio::test]
async fn a_damaged_file_is_kept_and_the_new_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (main, _) = settled(dir.path()).await;
    let place = main.windows(8).position(|bytes| bytes == b"\"lan/a\",").unwrap();
    for with_copy in [true, false] {
        let mut damaged = main.clone();
        damaged[place + 2] ^= 1;
        fs::write(dir.path().join(FILE), &damaged).unwrap();
        if !with_copy {
            fs::remove_file(dir.path().join(COPY)).unwrap();
        }
        let store = reopen(dir.path()).await;
        let ports = store.load::<serde_json::Value>("port").await.unwrap();
        assert_eq!((ports.records.len(), ports.broken.len()), if with_copy { (2, 0) } else { (1, 1) });
        store.commit(vec![Op::put("port", "lan/c", &document("lan/c")).unwrap()]).await.unwrap();
        let result = store.commit(vec![Op::put("port", "lan/a", &0).unwrap()]).await;
        assert_eq!(result.is_ok(), with_copy);
        let warnings = store.warnings();
        assert!(
            warnings.len() == 1
                && warnings[0].contains(if with_copy { "is kept as" } else { "port `lan/a`" }),
            "{warnings:?}"
        );
        close(store, dir.path()).await;
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(
            store.load::<serde_json::Value>("port").await.unwrap().broken.len(),
            usize::from(!with_copy)
        );
        close(store, dir.path()).await;
    }
    let kept = fs::read_dir(dir.path()).unwrap().flatten();
    let kept: Vec<_> =
        kept.map(|entry| entry.path()).filter(|path| path.to_str().unwrap().contains("damaged")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read(&kept[0]).unwrap()[place + 2], main[place + 2] ^ 1);
}

/// A folder in the place of SQLite's journal lets the new file be written, and not be opened.
#[tokio::test]
async fn what_was_damaged_stays_kept_when_the_new_file_cannot_be_opened_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let (mut damaged, _) = settled(dir.path()).await;
    let place = damaged.windows(8).position(|bytes| bytes == b"\"lan/a\",").unwrap();
    damaged[place + 2] ^= 1;
    fs::write(dir.path().join(FILE), &damaged).unwrap();
    let journal = dir.path().join(format!("{FILE}-journal"));
    fs::create_dir(&journal).unwrap();
    let store = reopen(dir.path()).await;
    for _ in 0..2 {
        let refused = store.commit(vec![Op::put("n", "a", &1).unwrap()]).await.unwrap_err();
        assert_eq!(refused.reason(), "STATE_STORE", "{}", refused.chain());
        assert_ne!(fs::read(dir.path().join(FILE)).unwrap(), damaged, "the new file is there");
    }
    fs::remove_dir(&journal).unwrap();
    store.commit(vec![Op::put("n", "a", &1).unwrap()]).await.unwrap();
    let all = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
    let kept: Vec<_> = all.filter(|path| path.to_str().unwrap().contains("damaged")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read(&kept[0]).unwrap(), damaged);
    assert_eq!(store.load::<serde_json::Value>("port").await.unwrap().records.len(), 2);
}

/// Made by the program as it was before records had checksums.
#[tokio::test]
async fn a_store_of_the_first_version_is_taken_over_and_kept() {
    let first = include_bytes!("testdata/schema-1.sqlite");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), first).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(!store.is_new() && store.warnings().is_empty(), "{:?}", store.warnings());
    assert_eq!(store.instance().simple().to_string(), "b44dc941f73645ef87981353b4f42e01");
    let names = async |kind: &'static str| {
        let loaded = store.load::<serde_json::Value>(kind).await.unwrap();
        loaded.records.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(names("network").await, ["apart", "lan"]);
    assert_eq!(names("port").await, ["networks/lan/ports/a"]);
    assert_eq!(
        (names("group").await.len(), names("reservation").await.len(), names("sysctl").await.len()),
        (1, 1, 2)
    );
    assert_eq!(fs::read(dir.path().join("state.sqlite.schema-1")).unwrap(), first);
    store.commit(vec![Op::delete("network", "apart")]).await.unwrap();
    drop(store);
    let store = reopen(dir.path()).await;
    assert_eq!(store.load::<serde_json::Value>("network").await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn a_file_that_goes_away_under_the_program_takes_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    fs::rename(dir.path().join(FILE), dir.path().join("elsewhere")).unwrap();
    let lost = store.commit(vec![Op::put("n", "a", &1).unwrap()]).await.unwrap_err();
    assert!(lost.chain().contains("no longer the file"), "{}", lost.chain());
    assert!(store.load::<u32>("n").await.unwrap().records.is_empty());
    assert!(store.warnings()[0].starts_with("degraded"), "{:?}", store.warnings());
    fs::rename(dir.path().join("elsewhere"), dir.path().join(FILE)).unwrap();
    store.commit(vec![Op::put("n", "a", &1).unwrap()]).await.unwrap();
    assert!(store.warnings().is_empty(), "{:?}", store.warnings());
}

#[tokio::test]
async fn nobody_else_can_look_into_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    settled(&dir.path().join("s")).await;
    let store = reopen(&dir.path().join("s")).await;
    store.commit(vec![Op::put("n", "a", &1).unwrap()]).await.unwrap();
    let mut files = 0;
    for entry in fs::read_dir(dir.path().join("s")).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        files += 1;
    }
    assert!(files >= 4, "database, log, copy, lock");
}
