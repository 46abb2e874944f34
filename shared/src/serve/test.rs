//! The limits, over a real socket, with a service that waits or never stops talking.

use super::{Api, Health, Limits, serve_within};
use crate::{
    access::{Access, Gate, OwnUser},
    audit::Audit,
    fault::{Fault, Kind},
    slots::Share,
    socket::{self, Bound},
};
use http::{Request, Response, uri::PathAndQuery};
use http_body::Frame;
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};
use std::{
    convert::Infallible,
    future::Future,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, body::Body, client::Grpc, codegen::Bytes, server::NamedService, transport::Channel,
};
use tonic_prost::ProstCodec;

/// Only a hang reaches it.
const CEILING: Duration = Duration::from_secs(60);

/// `Wait` never answers, `Talk` never ends, `Now` answers.
#[derive(Clone)]
struct Odd;

impl NamedService for Odd {
    const NAME: &'static str = "test.Odd";
}

/// Messages of 16 KiB without end; of a zero-filled field that no reader knows.
struct Flood;

impl http_body::Body for Flood {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // Field 1, length-delimited, 16,384 bytes.
        let mut message = vec![0x0a, 0x80, 0x80, 0x01];
        message.resize(4 + (16 << 10), 0);
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
        frame.extend(message);
        Poll::Ready(Some(Ok(Frame::data(frame.into()))))
    }
}

/// One empty message, and the end.
struct Once(bool);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if std::mem::replace(&mut self.0, true) {
            let mut trailers = http::HeaderMap::new();
            Status::ok("").add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 5])))))
    }
}

impl tower::Service<Request<Body>> for Odd {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            let answer = |body| {
                let mut response = Response::new(body);
                let grpc = http::HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
                Ok(response)
            };
            match request.uri().path() {
                "/test.Odd/Wait" => std::future::pending().await,
                "/test.Odd/Talk" => answer(Body::new(Flood)),
                _ => answer(Body::new(Once(false))),
            }
        })
    }
}

fn descriptors() -> &'static [u8] {
    let method = |name: &str, server_streaming| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".test.Empty".into()),
        output_type: Some(".test.Empty".into()),
        server_streaming: Some(server_streaming),
        ..Default::default()
    };
    let service = ServiceDescriptorProto {
        name: Some("Odd".into()),
        method: vec![method("Wait", false), method("Talk", true), method("Now", false)],
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some("test.proto".into()),
        package: Some("test".into()),
        message_type: vec![prost_types::DescriptorProto { name: Some("Empty".into()), ..Default::default() }],
        service: vec![service],
        ..Default::default()
    };
    Vec::leak(FileDescriptorSet { file: vec![file] }.encode_to_vec())
}

struct Served {
    dir: TempDir,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Fault>>,
}

impl Served {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::bind(&dir.path().join("s"), None).unwrap();
        let stop = CancellationToken::new();
        let routes = tonic::service::Routes::new(Odd);
        // Whoever runs the tests is the daemon's own user, and so an admin.
        let file = dir.path().join("access.toml");
        std::fs::write(&file, "").unwrap();
        let gate =
            Gate::new(Access::open(Some(&file), None, OwnUser::Admin).unwrap(), Audit::open(dir.path()), [])
                .unwrap();
        let health = Health::new([("/test.Odd/Wait", true)], || None);
        let api = Api { routes, descriptors: descriptors(), health };
        let end = stop.clone();
        let task = tokio::spawn(async move { serve_within(limits, bound, api, &gate, end).await });
        Self { dir, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A client with a connection of its own.
    fn client(&self) -> Grpc<Channel> {
        Grpc::new(socket::channel(&format!("unix://{}", self.path().display())).unwrap())
    }

    /// Waits until the other side ends the connection.
    async fn raw_ends(&self, first: &[u8]) {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(first).await.unwrap();
        let mut heard = Vec::new();
        let read = tokio::time::timeout(CEILING, stream.read_to_end(&mut heard)).await;
        drop(read.expect("the connection is held open"));
    }
}

async fn call_with(
    client: &mut Grpc<Channel>,
    path: &'static str,
    panic: Option<&'static str>,
) -> Result<(), Fault> {
    let mut request = tonic::Request::new(());
    if let Some(place) = panic {
        request.metadata_mut().insert("kvmctl-debug-panic", place.parse().unwrap());
    }
    let called = async {
        client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        client.unary(request, PathAndQuery::from_static(path), ProstCodec::<(), ()>::default()).await
    };
    tokio::time::timeout(CEILING, called).await.expect("no answer").map(drop).map_err(Fault::from)
}

async fn call(client: &mut Grpc<Channel>, path: &'static str) -> Result<(), Fault> {
    call_with(client, path, None).await
}

async fn talk(
    client: &mut Grpc<Channel>,
    timeout: Option<&'static str>,
    panic: bool,
) -> tonic::Streaming<()> {
    client.ready().await.unwrap();
    let mut request = tonic::Request::new(());
    if let Some(timeout) = timeout {
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    }
    if panic {
        request.metadata_mut().insert("kvmctl-debug-panic", "stream".parse().unwrap());
    }
    let path = PathAndQuery::from_static("/test.Odd/Talk");
    client.server_streaming(request, path, ProstCodec::<(), ()>::default()).await.unwrap().into_inner()
}

/// How a stream ends.
async fn end(mut stream: tonic::Streaming<()>) -> Status {
    let drained = async {
        loop {
            match stream.message().await {
                Ok(Some(())) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(CEILING, drained).await.expect("the stream goes on")
}

/// Calls that wait, once they have all been let in.
async fn waiting(served: &Served, count: usize) -> Vec<JoinHandle<Result<(), Fault>>> {
    let mut client = served.client();
    call(&mut client, "/test.Odd/Now").await.unwrap();
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { call(&mut client, "/test.Odd/Wait").await })
        })
        .collect();
    tokio::task::yield_now().await;
    tasks
}

#[tokio::test]
async fn a_client_that_does_not_begin_or_does_not_live_loses_its_connection() {
    let short = Duration::from_millis(100);
    let limits = Limits { handshake: short, keepalive: short, keepalive_answer: short, ..Limits::default() };
    let served = Served::new(limits);
    served.raw_ends(b"").await;
    served.raw_ends(b"PRI * HTTP/2.0\r\n").await;
    // A whole preface, settings and the half of a frame: it answers no ping.
    served
        .raw_ends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x10\x01\x04\0\0\0\x01half")
        .await;
    // Who lives keeps the connection; that the same one is used shows in nothing but the absence of an error.
    let mut client = served.client();
    for _ in 0..3 {
        call(&mut client, "/test.Odd/Now").await.unwrap();
        tokio::time::timeout(short * 3, std::future::pending::<()>()).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_connection_too_many_is_told_why_and_one_that_ends_makes_room() {
    // Root and the daemon's own user, one of which the test is, have the reserve as well.
    let limits =
        Limits { connections: Share { all: 1, each: 1, reserve: 1 }, refusals: 1, ..Limits::default() };
    let served = Served::new(limits);
    let (mut first, mut second) = (served.client(), served.client());
    call(&mut first, "/test.Odd/Now").await.unwrap();
    call(&mut second, "/test.Odd/Now").await.unwrap();
    let refused = call(&mut served.client(), "/test.Odd/Now").await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (Kind::ResourceExhausted, "TOO_MANY_CONNECTIONS"));
    assert!(refused.to_string().contains("connections to this daemon"), "{refused}");
    assert!(!refused.hints().is_empty());
    assert_eq!(refused.metadata()["limit"], "connections");
    drop(first);
    let admitted = async { while call(&mut served.client(), "/test.Odd/Now").await.is_err() {} };
    tokio::time::timeout(CEILING, admitted).await.expect("the place is not given back");
    call(&mut second, "/test.Odd/Now").await.unwrap();
}

#[tokio::test]
async fn calls_too_many_are_refused_and_streams_have_their_own_places() {
    let one = Share { all: 1, each: 1, reserve: 0 };
    let served = Served::new(Limits { calls: one, streams: one, ..Limits::default() });
    let tasks = waiting(&served, 1).await;
    let mut client = served.client();
    let refused = async {
        loop {
            if let Err(fault) = call(&mut client, "/test.Odd/Now").await {
                return fault;
            }
        }
    };
    let refused = tokio::time::timeout(CEILING, refused).await.expect("calls are not counted");
    assert_eq!((refused.kind(), refused.reason()), (Kind::ResourceExhausted, "BUSY"));
    assert_eq!((&*refused.metadata()["limit"], &*refused.metadata()["value"]), ("calls", "1"));
    let stream = talk(&mut client, None, false).await;
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Odd/Talk");
    let second =
        client.server_streaming(tonic::Request::new(()), path, ProstCodec::<(), ()>::default()).await;
    assert_eq!(second.unwrap_err().code(), Code::ResourceExhausted);
    drop(stream);
    tasks.iter().for_each(JoinHandle::abort);
    let free = async { while call(&mut client, "/test.Odd/Now").await.is_err() {} };
    tokio::time::timeout(CEILING, free).await.expect("the place is not given back");
}

#[tokio::test]
async fn a_call_ends_at_the_daemons_deadline_and_a_stream_at_the_clients() {
    let served = Served::new(Limits { call: Duration::from_millis(100), ..Limits::default() });
    let mut client = served.client();
    let late = call(&mut client, "/test.Odd/Wait").await.unwrap_err();
    assert_eq!((late.kind(), late.reason()), (Kind::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert!(late.to_string().contains("100ms"), "{late}");
    let ended = Fault::from(end(talk(&mut client, Some("200m"), false).await).await);
    assert_eq!((ended.kind(), ended.reason()), (Kind::DeadlineExceeded, "DEADLINE_EXCEEDED"));
}

#[tokio::test]
async fn a_defect_ends_its_own_call_only() {
    let served = Served::new(Limits::default());
    let mut client = served.client();
    let mut other = talk(&mut client, None, false).await;
    let failed = call_with(&mut client, "/test.Odd/Now", Some("call")).await.unwrap_err();
    assert_eq!((failed.kind(), failed.reason()), (Kind::Internal, "DEFECT"));
    let ended = Fault::from(end(talk(&mut client, None, true).await).await);
    assert_eq!((ended.kind(), ended.reason()), (Kind::Internal, "DEFECT"));
    call(&mut client, "/test.Odd/Now").await.unwrap();
    assert!(other.message().await.unwrap().is_some(), "another stream of the same connection goes on");
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_who_reads_is_not() {
    let served = Served::new(Limits { stalled: Duration::from_millis(300), ..Limits::default() });
    let (mut slow, mut quick) = (served.client(), served.client());
    let stalled = talk(&mut slow, None, false).await;
    let mut read = talk(&mut quick, None, false).await;
    // It reads for far longer than anybody may not read.
    let end_of_reading = tokio::time::Instant::now() + Duration::from_secs(1);
    while tokio::time::Instant::now() < end_of_reading {
        assert!(read.message().await.unwrap().is_some());
    }
    assert_ne!(end(stalled).await.code(), Code::Ok);
    assert!(read.message().await.unwrap().is_some());
}

#[tokio::test]
async fn who_leaves_the_socket_full_is_cut_off() {
    let short = Duration::from_millis(100);
    let served = Served::new(Limits { keepalive: short, keepalive_answer: short, ..Limits::default() });
    // A stream that fills the socket: the client's windows are larger than that.
    let mut settings =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff".to_vec();
    settings.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\0\0\0");
    let field = |name: &str, value: &str| {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [&[0][..], &text(name), &text(value)].concat()
    };
    let headers = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", "/test.Odd/Talk"),
        field(":authority", "localhost"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat();
    let mut stream = UnixStream::connect(served.path()).await.unwrap();
    stream.write_all(&settings).await.unwrap();
    stream.write_all(&[0, 0, u8::try_from(headers.len()).unwrap(), 1, 4, 0, 0, 0, 1]).await.unwrap();
    stream.write_all(&headers).await.unwrap();
    // An empty message, the end of the call.
    stream.write_all(&[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]).await.unwrap();
    // Nothing is read until the other side has gone.
    let gone = async {
        while !stream.ready(tokio::io::Interest::WRITABLE).await.unwrap().is_write_closed() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(CEILING, gone).await.expect("the connection is held open");
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    assert!(heard.len() > 64 << 10, "the socket was not full: {} bytes", heard.len());
}

#[tokio::test]
async fn at_the_end_what_is_open_gets_an_answer() {
    let served = Served::new(Limits { ending: Duration::from_millis(100), ..Limits::default() });
    let mut tasks = waiting(&served, 1).await;
    let mut client = served.client();
    let stream = talk(&mut client, None, false).await;
    let _idle = UnixStream::connect(served.path()).await.unwrap();
    served.stop.cancel();
    let answer = tasks.remove(0).await.unwrap().unwrap_err();
    assert_eq!(answer.kind(), Kind::Unavailable, "{}", answer.chain());
    drop(stream);
    let ended = tokio::time::timeout(CEILING, served.task).await.expect("the server does not end");
    ended.unwrap().unwrap();
}

#[tokio::test]
async fn a_message_too_long_is_refused_by_its_length_before_it_has_come() {
    let served = Served::new(Limits { message: 100, ..Limits::default() });
    let mut client = tonic_health::pb::health_client::HealthClient::new(
        socket::channel(&format!("unix://{}", served.path().display())).unwrap(),
    );
    let request = |length: usize| tonic_health::pb::HealthCheckRequest { service: "x".repeat(length) };
    assert_eq!(client.check(request(98)).await.unwrap_err().code(), Code::NotFound);
    let refused = Fault::from(client.check(request(99)).await.unwrap_err());
    assert_eq!((refused.kind(), refused.reason()), (Kind::ResourceExhausted, "MESSAGE_TOO_LONG"));
    assert_eq!(refused.metadata()["value"], "100");
}
