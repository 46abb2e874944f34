use super::*;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::OwnedReadHalf,
};

const GREETING: &str =
    "{\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":0}},\"capabilities\":[]}}\n";

/// The other end, which answers as the test says.
struct Server {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Server {
    async fn asked(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn say(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    async fn answer(&mut self, id: &Value, value: Value) {
        self.say(&format!("{}\n", json!({"return": value, "id": id}))).await;
    }
}

fn server() -> (UnixStream, Server) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (reader, writer) = theirs.into_split();
    (ours, Server { reader: BufReader::new(reader), writer })
}

async fn connected() -> (Qmp, mpsc::Receiver<Event>, Server) {
    let (stream, mut server) = server();
    let greet = async {
        server.say(GREETING).await;
        let id = server.asked().await["id"].clone();
        server.answer(&id, json!({})).await;
    };
    let (client, ()) = tokio::join!(Qmp::negotiate(stream), greet);
    let (qmp, events) = client.unwrap();
    (qmp, events, server)
}

#[tokio::test]
async fn replies_go_by_id_whatever_their_order() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let first = server.asked().await;
        let second = server.asked().await;
        server.answer(&second["id"], second["execute"].clone()).await;
        server.answer(&first["id"], first["execute"].clone()).await;
    };
    let (a, b, ()) = tokio::join!(qmp.execute("a", Value::Null), qmp.execute("b", Value::Null), serve);
    assert_eq!((a.unwrap(), b.unwrap()), (json!("a"), json!("b")));
}

#[tokio::test]
async fn events_pass_and_unknown_ones_do_no_harm() {
    let (qmp, mut events, mut server) = connected().await;
    let serve = async {
        let id = server.asked().await["id"].clone();
        server.say("{\"event\":\"NEVER_HEARD_OF\",\"data\":7}\n{\"event\":\"STOP\"}\n").await;
        server
            .say("{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-shutdown\"}}\n")
            .await;
        server.say("[1,2]\n7\n\"x\"\n{\"id\":\"wrong kind\"}\n").await;
        server.answer(&id, json!(1)).await;
    };
    let (result, ()) = tokio::join!(qmp.execute("x", Value::Null), serve);
    assert_eq!(result.unwrap(), json!(1));
    assert_eq!(events.recv().await, Some(Event::Stop));
    assert_eq!(events.recv().await, Some(Event::Shutdown("guest-shutdown".into())));
}

#[tokio::test]
async fn a_refusal_has_qemus_words() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let id = server.asked().await["id"].clone();
        server.say(&format!("{{\"id\":{id},\"error\":{{\"class\":\"X\",\"desc\":\"not now\"}}}}\n")).await;
    };
    let (result, ()) = tokio::join!(qmp.execute("x", Value::Null), serve);
    let fault = result.unwrap_err();
    assert_eq!(fault.kind(), Kind::FailedPrecondition);
    assert!(fault.to_string().contains("not now"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_qemu_times_out_and_its_late_reply_is_dropped() {
    let (qmp, _events, mut server) = connected().await;
    let fault = qmp.execute("slow", Value::Null).await.unwrap_err();
    assert_eq!(fault.reason(), "QMP_TIMEOUT");
    let serve = async {
        let late = server.asked().await;
        let next = server.asked().await;
        server.answer(&late["id"], json!("late")).await;
        server.answer(&json!(4_000_000), json!("nobody asked")).await;
        server.answer(&next["id"], json!("in time")).await;
    };
    let (result, ()) = tokio::join!(qmp.execute("next", Value::Null), serve);
    assert_eq!(result.unwrap(), json!("in time"));
}

#[tokio::test]
async fn the_end_of_the_connection_ends_every_wait() {
    let (qmp, mut events, mut server) = connected().await;
    let serve = async {
        server.asked().await;
        drop(server);
    };
    let (result, ()) = tokio::join!(qmp.execute("x", Value::Null), serve);
    assert_eq!(result.unwrap_err().reason(), "QMP_CLOSED");
    assert_eq!(events.recv().await, Some(Event::Lost("it closed the connection".into())));
    assert_eq!(events.recv().await, None);
    assert_eq!(qmp.execute("x", Value::Null).await.unwrap_err().reason(), "QMP_CLOSED");
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let (qmp, mut events, mut server) = connected().await;
    server.say("this is no JSON\n").await;
    let Some(Event::Lost(why)) = events.recv().await else { panic!("not lost") };
    assert!(why.contains("no JSON"), "{why}");
    assert_eq!(qmp.execute("x", Value::Null).await.unwrap_err().reason(), "QMP_CLOSED");
}

#[tokio::test]
async fn a_line_without_end_is_cut_off() {
    const FLOOD: usize = 100 << 20;
    let (stream, mut server) = server();
    let flood = async {
        let block = vec![b'x'; 64 << 10];
        let mut sent = 0;
        while sent < FLOOD && server.writer.write_all(&block).await.is_ok() {
            sent += block.len();
        }
        sent
    };
    let (client, sent) = tokio::join!(Qmp::negotiate(stream), flood);
    assert!(client.is_err());
    assert!(sent < FLOOD / 10, "{sent} bytes were taken");
}

#[tokio::test]
async fn what_is_not_qemu_is_refused() {
    let (stream, mut server) = server();
    let (client, ()) = tokio::join!(Qmp::negotiate(stream), server.say("{\"hello\":1}\n"));
    assert!(client.unwrap_err().to_string().contains("not QEMU"));
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_does_not_greet_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    assert_eq!(Qmp::connect(&path, DEADLINE).await.unwrap_err().reason(), "QMP_TIMEOUT");
    drop(_listener);
    assert_eq!(Qmp::connect(&path, DEADLINE).await.unwrap_err().reason(), "QMP_CONNECT");
}

/// As after a storage that hangs for half an hour: probes fill the socket, and QEMU comes back.
#[tokio::test]
async fn a_connection_that_a_command_was_cut_off_in_ends() {
    use futures_util::FutureExt as _;
    let (qmp, mut events, _deaf) = connected().await;
    let mut sent = 0;
    while qmp.execute("query-status", Value::Null).now_or_never().is_none() {
        sent += 1;
        assert!(sent < 100_000, "the socket never fills");
        tokio::task::yield_now().await;
    }
    let end = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
    assert!(matches!(end.expect("nobody would ever connect again"), Some(Event::Lost(_))));
}

#[tokio::test]
async fn a_storm_of_events_ends_the_connection_and_long_words_are_cut() {
    const STORM: usize = 100_000;
    let (_qmp, mut events, mut server) = connected().await;
    let long = "x".repeat(100_000);
    server.say(&format!("{{\"event\":\"SHUTDOWN\",\"data\":{{\"reason\":\"{long}\"}}}}\n")).await;
    let Some(Event::Shutdown(reason)) = events.recv().await else { panic!("no event") };
    assert!(reason.len() < 300, "{} bytes are kept", reason.len());
    let storm = async {
        let mut sent = 0;
        while sent < STORM && server.writer.write_all(b"{\"event\":\"X\"}\n").await.is_ok() {
            sent += 1;
        }
    };
    // Nobody reads it any more: it may wait for ever.
    let lost = tokio::select! {
        lost = events.recv() => lost,
        () = storm => events.recv().await,
    };
    assert_eq!(lost, Some(Event::Lost("it sends more than anybody could read".into())));
}

#[tokio::test]
async fn json_of_any_depth_is_no_harm() {
    let (_qmp, mut events, mut server) = connected().await;
    server.say(&format!("{}{}\n", "[".repeat(100_000), "]".repeat(100_000))).await;
    let Some(Event::Lost(why)) = events.recv().await else { panic!("not lost") };
    assert!(why.contains("recursion limit"), "{why}");
}
