use super::*;
use crate::store::{Op, Store, lock};
use proptest::prelude::*;
use rusqlite::Connection;
use std::path::Path;

fn news(number: usize) -> Vec<News> {
    (0..number).map(|at| News::of(EventKind::Updated, format!("things/{at}"), format!("{at}"))).collect()
}

/// The thread lets go of the lock a moment after the last handle is dropped.
async fn open(dir: &Path) -> Store {
    loop {
        match Store::open(dir) {
            Ok(store) => return store,
            Err(fault) => assert_eq!(fault.reason(), "STATE_LOCKED"),
        }
        tokio::task::yield_now().await;
    }
}

/// Opens a log as after a start of the host.
async fn opened_after_boot(dir: &Path, boot: &str) -> EventLog {
    closed(dir).await;
    Store::open_in(dir, boot).unwrap().events().clone()
}

/// Returns when nobody has the store any more.
async fn closed(dir: &Path) {
    while lock(dir).is_err() {
        tokio::task::yield_now().await;
    }
}

fn revisions(events: &[Arc<Event>]) -> Vec<i64> {
    events.iter().map(|event| event.revision).collect()
}

fn at(revision: i64) -> Cursor {
    Cursor { epoch: String::new(), revision }
}

fn next(watch: &mut Watch) -> Option<i64> {
    match watch.news.try_recv().ok()? {
        Told::Event(event) => Some(event.revision),
        Told::Lost => Some(-1),
    }
}

fn all(log: &EventLog) -> Vec<Arc<Event>> {
    log.list(&at(0), usize::MAX).unwrap()
}

#[tokio::test]
async fn a_resume_at_each_revision_gives_exactly_the_rest_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut cursors = vec![];
    for life in 0..5 {
        let store = open(dir.path()).await;
        for number in 1..8 {
            if number % 2 == 0 {
                store.tell(vec![], news(number));
            } else {
                let op = Op::put("n", format!("{life}"), &number).unwrap();
                drop(store.commit_telling(vec![op], news(number)).await.unwrap());
            }
        }
        store.commit(vec![]).await.unwrap();
        cursors.extend(
            all(store.events()).iter().map(|e| Cursor { epoch: e.epoch.clone(), revision: e.revision }),
        );
    }
    let store = open(dir.path()).await;
    let log = store.events();
    let whole = revisions(&all(log));
    assert_eq!(whole, (1..=5 * 28).collect::<Vec<_>>());
    for cursor in &cursors {
        for since in [cursor.clone(), at(cursor.revision)] {
            let rest: Vec<_> = (since.revision + 1..=5 * 28).collect();
            assert_eq!(revisions(&log.list(&since, usize::MAX).unwrap()), rest);
            assert_eq!(revisions(&log.watch(&since).unwrap().kept), rest);
        }
    }
    println!("{} positions of 5 lives resumed, each with exactly the rest", cursors.len());
}

#[tokio::test]
async fn an_event_is_told_once_and_after_what_it_tells_of_can_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut watch = store.events().watch(&at(0)).unwrap();
    let first = store.commit_telling(vec![], news(2)).await.unwrap();
    let second = store.commit_telling(vec![], news(1)).await.unwrap();
    store.tell(vec![], news(1));
    store.commit(vec![]).await.unwrap();
    drop(second);
    assert_eq!(next(&mut watch), None, "an earlier one is still held back");
    assert_eq!((all(store.events()).len(), store.events().present().revision), (0, 0));
    let late = store.events().watch(&at(0)).unwrap();
    drop(first);
    let told: Vec<_> = std::iter::from_fn(|| next(&mut watch)).collect();
    assert_eq!(told, [1, 2, 3, 4]);
    let mut late = late;
    assert_eq!(std::iter::from_fn(|| next(&mut late)).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let mut watch = store.events().watch(&at(2)).unwrap();
    assert_eq!((revisions(&watch.kept), next(&mut watch)), (vec![3, 4], None));
}

#[tokio::test]
async fn the_oldest_go_and_are_called_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for _ in 0..100 {
        store.tell(vec![], news(50));
    }
    store.commit(vec![]).await.unwrap();
    let kept = usize::try_from(KEPT).unwrap();
    for store in [store] {
        let events = all(store.events());
        assert_eq!((events.len(), events[0].revision), (kept, 5000 - KEPT + 1));
        for revision in 1..=5000 {
            let result = store.events().list(&at(revision), usize::MAX);
            if revision < 5000 - KEPT {
                assert_eq!(result.unwrap_err().reason(), "EVENTS_GONE");
            } else {
                assert_eq!(result.unwrap().len(), usize::try_from(5000 - revision).unwrap());
            }
        }
        assert_eq!(store.events().list_on(17, 1).unwrap_err().reason(), "EVENTS_GONE");
        drop(store);
    }
    let store = open(dir.path()).await;
    assert_eq!(all(store.events()).len(), kept, "as many on disk");
    assert_eq!(store.events().watch(&at(5000 - KEPT - 1)).unwrap_err().reason(), "EVENTS_GONE");
    assert!(store.events().watch(&at(5000 - KEPT)).is_ok());
}

#[tokio::test]
async fn a_position_of_another_history_is_known_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(10)).await.unwrap());
    let shared_past = store.events().present();
    drop(store);
    // A backup, which is put back after the log went on.
    closed(dir.path()).await;
    std::fs::copy(dir.path().join("state.sqlite"), other.path().join("state.sqlite")).unwrap();
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(10)).await.unwrap());
    let lost_future = store.events().present();
    let restored = open(other.path()).await;
    drop(restored.commit_telling(vec![], news(30)).await.unwrap());
    let log = restored.events();
    assert_eq!(log.list(&shared_past, 100).unwrap().len(), 30);
    assert_eq!(
        log.watch(&lost_future).unwrap_err().reason(),
        "EVENTS_GONE",
        "the number is there, and means another event"
    );
    assert!(log.watch(&at(lost_future.revision)).is_ok(), "without its epoch nobody can tell");
    let beyond = Cursor { epoch: shared_past.epoch, revision: 11 };
    assert_eq!(log.watch(&beyond).unwrap_err().reason(), "EVENTS_GONE", "that life ended at 10");
}

#[tokio::test]
async fn after_a_crash_of_the_host_no_number_is_used_again_and_all_before_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(10)).await.unwrap());
    let before = store.events().present();
    drop(store);
    drop(open(dir.path()).await);
    let log = opened_after_boot(dir.path(), "another boot").await;
    assert!(log.present().revision >= 10 + 256, "more than may have been told and not written");
    assert_eq!(log.watch(&before).unwrap_err().reason(), "EVENTS_GONE");
    assert_eq!(log.watch(&at(10)).unwrap_err().reason(), "EVENTS_GONE");
    assert_eq!(all(&log).len(), 10, "what there is is shown all the same");
    assert!(log.watch(&log.present()).unwrap().kept.is_empty());
    // The same boot again: nothing can have been lost.
    let again = opened_after_boot(dir.path(), "another boot").await;
    assert!(again.watch(&at(log.present().revision)).is_ok());
    assert_eq!(again.watch(&at(10)).unwrap_err().reason(), "EVENTS_GONE", "still");
}

#[tokio::test]
async fn an_orderly_end_of_daemon_and_host_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(10)).await.unwrap());
    let end = vec![News::of(EventKind::Stopped, "", "ended")];
    drop(store.commit_telling(vec![], end).await.unwrap());
    let before = store.events().present();
    drop(store);
    let log = opened_after_boot(dir.path(), "another boot").await;
    assert_eq!((log.present().revision, log.watch(&before).unwrap().kept.len()), (11, 0));
}

#[tokio::test]
async fn events_that_cannot_be_written_end_watches_and_nobody_resumes_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(3)).await.unwrap());
    let before = store.events().present();
    let mut watch = store.events().watch(&before).unwrap();
    let (file, away) = (dir.path().join("state.sqlite"), dir.path().join("away"));
    std::fs::rename(&file, &away).unwrap();
    store.tell(vec![], news(1));
    assert!(store.commit_telling(vec![], news(1)).await.is_err());
    std::fs::rename(&away, &file).unwrap();
    assert_eq!(next(&mut watch), Some(-1), "told that something is missing");
    assert_eq!(store.events().watch(&before).unwrap_err().reason(), "EVENTS_GONE");
    drop(store.commit_telling(vec![], news(1)).await.unwrap());
    let after = store.events().present();
    assert!(store.events().watch(&after).is_ok());
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.events().watch(&before).unwrap_err().reason(), "EVENTS_GONE", "after a restart too");
    assert!(store.events().watch(&after).is_ok());
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_a_gap_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(9)).await.unwrap());
    drop(store);
    closed(dir.path()).await;
    let id = format!("{:020}", 5);
    Connection::open(dir.path().join("state.sqlite"))
        .unwrap()
        .execute("UPDATE record SET doc = 'x' WHERE kind = 'event' AND id = ?1", [&id])
        .unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.events().broken()[0].id, id);
    assert_eq!(all(store.events()).len(), 8);
    assert_eq!(store.events().watch(&at(4)).unwrap_err().reason(), "EVENTS_GONE");
    assert_eq!(store.events().watch(&at(5)).unwrap().kept.len(), 4);
}

#[tokio::test]
async fn events_of_an_earlier_program_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let document = serde_json::json!({"revision": 101, "time": {"seconds": 1, "nanos": 0}, "kind": "repaired",
        "resource": "networks/lan", "message": "m"});
    store
        .commit(vec![
            Op::put("event", format!("{:020}", 101), &document).unwrap(),
            Op::delete("life", format!("{:020}", 1)),
        ])
        .await
        .unwrap();
    drop(store);
    let store = open(dir.path()).await;
    drop(store.commit_telling(vec![], news(1)).await.unwrap());
    assert_eq!(revisions(&all(store.events())), [101, 102]);
    assert_eq!(store.events().watch(&at(101)).unwrap().kept.len(), 1);
    assert!(store.events().watch(&at(99)).is_err(), "nobody knows what there was");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever happens to a log, and whatever is asked: a resume gives exactly what was told after it, or says gone.
    #[test]
    fn a_resume_gives_exactly_the_rest_or_says_gone(
        steps in prop::collection::vec((0..5u8, 1..40usize), 1..10),
        asked in prop::collection::vec((any::<prop::sample::Index>(), -3..3i64), 20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path()).await;
            // All that was ever told, and where something was lost.
            let mut told: Vec<Arc<Event>> = vec![];
            let mut positions = vec![Cursor::default()];
            let mut boot = 0;
            for (step, number) in steps {
                match step {
                    0 => store.tell(vec![], news(number)),
                    1 => drop(store.commit_telling(vec![], news(number)).await.unwrap()),
                    2 => {
                        drop(store);
                        store = open(dir.path()).await;
                    }
                    3 => {
                        drop(store);
                        drop(open(dir.path()).await);
                        boot += 1;
                        drop(opened_after_boot(dir.path(), &format!("{boot}")).await);
                        store = open(dir.path()).await;
                    }
                    _ => positions.push(store.events().present()),
                }
                store.commit(vec![]).await.unwrap();
                let last = told.last().map_or(0, |last| last.revision);
                told.extend(all(store.events()).into_iter().filter(|event| event.revision > last));
                positions.push(store.events().present());
            }
            assert!(told.windows(2).all(|pair| pair[0].revision < pair[1].revision));
            for (index, shift) in asked {
                let mut since = index.get(&positions).clone();
                since.revision += shift;
                if since.revision <= 0 {
                    continue;
                }
                if let Ok(watch) = store.events().watch(&since) {
                    let rest: Vec<_> = told.iter().filter(|e| e.revision > since.revision).map(|e| e.revision).collect();
                    assert_eq!(revisions(&watch.kept), rest, "{since:?}");
                }
            }
        });
    }
}
