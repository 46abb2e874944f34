use super::*;
use crate::fault::Kind;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt as _};

const RPC: &str = "/netd.v1.PortService/CreatePort";

fn settle(audit: &Audit) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(runtime.block_on(audit.0.writer.flush(Duration::from_secs(60))), "the thread hangs");
}

fn lines(audit: &Audit, folder: &Path) -> Vec<Value> {
    settle(audit);
    let text = fs::read_to_string(folder.join("audit.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn call(audit: &Audit, uid: u32) -> Call {
    let mut call = Call::begin(audit, Some(uid), RPC);
    call.by(Some(Role::Operator));
    call
}

fn denied() -> Status {
    Fault::new(Kind::PermissionDenied, "NOT_OWNER", "secret words").hint("more of them").into()
}

fn caller() -> Caller {
    Caller::root()
}

#[test]
fn a_change_and_a_refusal_are_a_line_each_and_a_look_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path());
    call(&audit, 7).end(&Status::ok(""), "networks/lan/ports/a", true);
    call(&audit, 8).end(&denied(), "vms/a", false);
    call(&audit, 9).end(&Status::ok(""), "vms/a", false);
    call(&audit, 9).end(&Status::not_found(""), "vms/a", false);
    let lines = lines(&audit, dir.path());
    assert_eq!(lines.len(), 2);
    let ok = &lines[0];
    assert_eq!((ok["sequence"].as_u64(), ok["uid"].as_u64()), (Some(1), Some(7)));
    assert_eq!((&ok["role"], &ok["rpc"], &ok["code"]), (&"operator".into(), &RPC.into(), &"OK".into()));
    assert_eq!(ok["object"], "networks/lan/ports/a");
    let time = ok["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    assert_eq!((&lines[1]["code"], &lines[1]["reason"]), (&"PERMISSION_DENIED".into(), &"NOT_OWNER".into()));
    let text = fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    assert!(!text.contains("words"), "messages are not written: {text}");
    let mode = fs::metadata(dir.path().join("audit.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn numbers_go_on_after_a_restart_and_after_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let once = || {
        let audit = Audit::open(dir.path());
        call(&audit, 7).end(&Status::ok(""), "", true);
        settle(&audit);
    };
    (0..3).for_each(|_| once());
    let path = dir.path().join("audit.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"time\":\"2026-");
    fs::write(&path, text).unwrap();
    once();
    let text = fs::read_to_string(&path).unwrap();
    let numbers: Vec<_> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["sequence"].as_u64())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}

#[test]
fn no_client_can_break_a_line_or_make_it_long() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path());
    let caller = caller();
    caller.about(&format!("vms/a\n{{\"sequence\":99}}\u{2028}\u{202e}\0{}", "x".repeat(100_000)));
    caller.about("vms/other");
    call(&audit, 7).end(&Status::ok(""), caller.object(), true);
    Call::begin(&audit, None, &format!("/a\n{}", "b".repeat(9999))).end(&denied(), "", false);
    let lines = lines(&audit, dir.path());
    assert_eq!(lines.len(), 2);
    let object = lines[0]["object"].as_str().unwrap();
    assert!(object.starts_with("vms/a\\n{") && object.len() < 400, "{object}");
    assert!(!object.contains(['\u{2028}', '\u{202e}', '\0']), "{object:?}");
    assert!(lines[1]["rpc"].as_str().unwrap().len() < 200);
}

#[test]
fn refusals_are_limited_and_counted_and_the_file_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path());
    for _ in 0..100_000 {
        call(&audit, 7).end(&denied(), "", false);
    }
    call(&audit, 8).end(&Status::ok(""), "", true);
    let found = lines(&audit, dir.path());
    assert!(found.len() < 100, "{}", found.len());
    let written = found.iter().filter(|line| line["code"] != "OK").count() as u64;
    let left_out: u64 = found.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    assert_eq!(written + left_out, 100_000);
    for number in 0..150_000 {
        call(&audit, 8).end(&Status::ok(""), &"x".repeat(150), true);
        if number % 1000 == 0 {
            settle(&audit);
        }
    }
    settle(&audit);
    let sizes: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
    println!("{written} of 100000 refusals were written; files of {sizes:?} bytes after 150000 changes");
    assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= 8 << 20), "{sizes:?}");
}

/// A user's 65,536 subordinate uids push nothing out of the log.
#[test]
fn who_has_no_role_shares_one_pace() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path());
    for uid in 100_000..101_000 {
        for _ in 0..3 {
            Call::begin(&audit, Some(uid), RPC).end(&denied(), "", false);
        }
    }
    call(&audit, 7).end(&denied(), "", false);
    let found = lines(&audit, dir.path());
    println!("{} lines of 3000 refusals of 1000 uids without a role", found.len() - 1);
    assert!((30..100).contains(&found.len()), "{}", found.len());
    assert_eq!(found.last().unwrap()["uid"], 7, "who has one keeps its own");
}

#[test]
fn a_disk_that_takes_no_line_stops_nothing_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("later");
    let audit = Audit::open(&folder);
    let mut news = audit.subscribe();
    for _ in 0..5 {
        call(&audit, 7).end(&Status::ok(""), "", true);
    }
    settle(&audit);
    fs::create_dir(&folder).unwrap();
    call(&audit, 7).end(&Status::ok(""), "", true);
    call(&audit, 7).end(&Status::ok(""), "", true);
    let found = lines(&audit, &folder);
    assert_eq!((found[0]["lost"].as_u64(), found[0]["sequence"].as_u64()), (Some(5), Some(6)));
    assert!(found[1].get("lost").is_none());
    let heard: Vec<_> = std::iter::from_fn(|| news.try_recv().ok()).map(|record| record.sequence).collect();
    assert_eq!(heard, [1, 2, 3, 4, 5, 6, 7], "subscribers hear all of it");
    fs::remove_file(folder.join("audit.jsonl")).unwrap();
    call(&audit, 7).end(&Status::ok(""), "", true);
    assert_eq!(lines(&audit, &folder).len(), 1, "a file that somebody removed is made anew");
}

/// A pipe takes 64 KiB, and then hangs until somebody reads.
#[test]
fn a_disk_that_hangs_holds_up_no_call_and_what_it_cost_is_counted() {
    const CALLS: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::open(dir.path());
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (done, answered) = std::sync::mpsc::channel();
    let calls = audit.clone();
    std::thread::spawn(move || {
        for _ in 0..CALLS {
            call(&calls, 7).end(&Status::ok(""), "vms/a", true);
        }
        done.send(()).unwrap();
    });
    answered.recv_timeout(Duration::from_secs(60)).expect("calls wait for the disk");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(!runtime.block_on(audit.0.writer.flush(Duration::from_millis(1))), "it does not hang");
    // More than the pipe has room for: then there is room for one that waits.
    let mut found = std::io::BufRead::lines(std::io::BufReader::new(fs::File::open(&path).unwrap()))
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let mut lines: Vec<_> = found.by_ref().take(1000).collect();
    call(&audit, 7).end(&Status::ok(""), "vms/last", true);
    while lines.last().unwrap()["object"] != "vms/last" {
        lines.push(found.next().unwrap());
    }
    let numbers: Vec<_> = lines.iter().filter_map(|line| line["sequence"].as_u64()).collect();
    assert!(numbers.is_sorted() && numbers.last() == Some(&(CALLS + 1)), "{numbers:?}");
    let lost: u64 = lines.iter().filter_map(|line| line["lost"].as_u64()).sum();
    println!("{CALLS} calls while the disk hung: {} lines waited, {lost} were lost", lines.len());
    assert!(lost > 0 && lines.len() as u64 + lost == CALLS + 1, "{lost} of {}", lines.len());
    settle(&audit);
}

#[test]
fn a_client_that_goes_away_leaves_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path());
    let caller = caller();
    let mut gone = call(&audit, 7);
    gone.expect_an_end(Some(caller.clone()));
    caller.about("vms/a");
    drop(gone);
    let mut look = call(&audit, 7);
    look.expect_an_end(None);
    drop(look);
    let lines = lines(&audit, dir.path());
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["code"], &lines[0]["object"]), (&"CANCELLED".into(), &"vms/a".into()));
}
