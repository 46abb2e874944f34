//! gRPC without generated code: any bytes to any method, and connections that do not keep to HTTP/2.

use crate::host::TestHost;
use http_body::{Body as _, Frame};
use std::{
    io::Write as _,
    os::unix::net::UnixStream,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{Code, Status, body::Body, codegen::Bytes, transport::Channel};
use tower::{Service as _, ServiceExt as _};

/// What every HTTP/2 client sends first, and its settings: none.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The acknowledgement of the other side's settings.
const ACKNOWLEDGED: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// netd.
    Netd,
    /// vmd.
    Vmd,
}

impl Daemon {
    /// Those that serve a call or a service: what no package of one daemon has, both.
    #[must_use]
    pub fn of(path: &str) -> &'static [Self] {
        match path.trim_start_matches('/').split_once('.') {
            Some(("netd", _)) => &[Self::Netd],
            Some(("vmd", _)) => &[Self::Vmd],
            _ => &[Self::Netd, Self::Vmd],
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(self, host: &TestHost) -> PathBuf {
        host.dir.path().join(match self {
            Self::Netd => "netd.sock",
            Self::Vmd => "vmd-run/vmd.sock",
        })
    }

    /// A channel with a connection of its own.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn channel(self, host: &TestHost) -> Channel {
        shared::socket::channel(&format!("unix://{}", self.socket(host).display())).expect("address")
    }
}

/// A message as gRPC frames it.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).expect("a message of less than 4 GiB").to_be_bytes());
    bytes.extend(message);
    bytes
}

/// Sends these bytes as the body of a call of `path` (`/package.Service/Method`). The status that it ends with; a
/// `stream` that begins is OK and is given up.
///
/// # Errors
/// If the connection failed.
pub async fn call(channel: &mut Channel, path: &str, stream: bool, body: Vec<u8>) -> Result<Status, Status> {
    let lost = |error: tonic::transport::Error| Status::from_error(Box::new(error));
    let request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Once(Some(body.into()))))
        .map_err(|e| Status::unknown(e.to_string()))?;
    let response = channel.ready().await.map_err(lost)?.call(request).await.map_err(lost)?;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Ok(status);
    }
    if stream {
        return Ok(Status::ok("a stream"));
    }
    let mut body = response.into_body();
    loop {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    return Ok(status);
                }
            }
            Some(Err(status)) => return Ok(status),
            None => return Ok(Status::new(Code::Unknown, "an answer without a status")),
        }
    }
}

/// A body of one piece.
#[derive(Debug)]
pub struct Once(pub Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The bytes of a whole connection that calls `path` once with `message`.
#[must_use]
pub fn conversation(path: &str, message: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        [&length[1..], &[kind, flags], &1u32.to_be_bytes()[..], payload].concat()
    };
    // Literal fields without a table (RFC 7541, 6.2.2), so that no byte depends on another.
    let field = |name: &str, value: &str| {
        let text = |text: &str| {
            let length = u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text");
            [&[length], text.as_bytes()].concat()
        };
        [&[0][..], &text(name), &text(value)].concat()
    };
    let headers = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", "localhost"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat();
    const END_HEADERS: u8 = 4;
    const END_STREAM: u8 = 1;
    [PREFACE, ACKNOWLEDGED, &frame(1, END_HEADERS, &headers), &frame(0, END_STREAM, &framed(message))]
        .concat()
}

/// Connects, says `bytes` and no more.
///
/// # Errors
/// What the kernel said; a connection that the daemon has closed meanwhile is none.
pub fn connect(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    match stream.write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(stream),
    }
}
