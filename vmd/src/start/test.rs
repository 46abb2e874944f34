use super::*;
use crate::model::{Spec, VncListen, test_record, test_spec};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixListener,
};

fn record() -> Record {
    test_record(Spec { vnc: Some(VncListen::Unix), ..test_spec() })
}

/// A QEMU of an earlier vmd that was silent while this one started, and whose guest never began to run.
#[tokio::test]
async fn a_qemu_that_answers_late_is_brought_to_where_its_start_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(MONITORS[0])).unwrap();
    let qemu = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.write_all(b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n").await.unwrap();
        let mut commands = Vec::new();
        while commands.last().is_none_or(|last| last != "cont") {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let asked: Value = serde_json::from_str(&line).unwrap();
            let result = json!({"status": "prelaunch", "running": false});
            let answer = format!("{}\n", json!({"return": result, "id": asked["id"]}));
            stream.write_all(answer.as_bytes()).await.unwrap();
            commands.push(asked["execute"].as_str().unwrap().to_owned());
        }
    };
    let record = record();
    let both = async { tokio::join!(reconnect(&record, dir.path().to_owned()), qemu).0 };
    let reunion = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap().unwrap();
    assert!(!reunion.paused);
    assert_eq!(reunion.vnc_address, format!("unix:{}", dir.path().join(args::VNC_SOCKET).display()));
}
