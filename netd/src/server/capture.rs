//! `netd.v1.CaptureService`.

use crate::{
    capture::{Bounds, Capture, End, LONGEST_SNAP, Piece, QUEUE},
    convert,
    kernel::{Kernel, bpf},
    model::Port,
    reconciler::{Reconciler, may_change},
};
use futures_util::{Stream, StreamExt as _};
use proto::netd::v1 as wire;
use shared::{
    access::Caller,
    fault::{Fault, Kind},
    slots::{Full, Share, Slots},
    time::span,
};
use std::{pin::Pin, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Captures at once: of all users, and of each but root, who has more.
const MOST: Share = Share { all: 16, each: 4, reserve: 4 };
/// Bytes of a file: least, most, and where the client does not say.
const LEAST_BYTES: u64 = 8192;
const MOST_BYTES: u64 = 64 << 30;
const BYTES: u64 = 1 << 30;
/// How long one may take, and does where the client does not say.
const MOST_DURATION: Duration = Duration::from_secs(24 * 3600);
const DURATION: Duration = Duration::from_secs(3600);

type Chunks = Pin<Box<dyn Stream<Item = Result<wire::CaptureChunk, Status>> + Send>>;

#[derive(Debug)]
pub struct Service<K> {
    reconciler: Reconciler<K>,
    stop: CancellationToken,
    slots: Slots,
}

impl<K: Kernel> Service<K> {
    pub fn new(reconciler: Reconciler<K>, stop: CancellationToken) -> Self {
        Self { reconciler, stop, slots: Slots::new(MOST, 0) }
    }

    async fn open(&self, request: wire::CaptureRequest, caller: u32) -> Result<Chunks, Fault> {
        let bounds = bounds(&request)?;
        let key = convert::port_key(&request.name)?;
        let port = self.reconciler.port(&key.0, &key.1)?.port;
        may_change(&port, caller)?;
        let slot = self.slots.take(caller).map_err(|full| {
            let message = match full {
                Full::All(most) => format!("{most} captures are running"),
                Full::Each(most) => format!("{most} captures of uid {caller} are running"),
            };
            Fault::new(Kind::ResourceExhausted, "TOO_MANY_CAPTURES", message).hint("end one of them first")
        })?;
        let filter = request.filter.trim();
        let program = bpf::compile(filter, bounds.snap_length).await?;
        let deleted = {
            let (reconciler, uid) = (self.reconciler.clone(), port.uid);
            move || {
                reconciler.port(&key.0, &key.1).map_or(true, |now| now.port.deleting || now.port.uid != uid)
            }
        };
        let capture = Capture::open(&port, (filter, &program), bounds, deleted.clone(), self.stop.clone())?;
        // Since the port was looked up, its tap may have become another owner's.
        if deleted() {
            return Err(Fault::new(Kind::Aborted, "DELETING", "the port is being deleted"));
        }
        let Port { network, name, .. } = port;
        tracing::info!(%network, %name, caller, "a capture begins");
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(capture.run(sender, slot));
        Ok(ReceiverStream::new(receiver).map(|piece| Ok(chunk(piece))).boxed())
    }
}

#[tonic::async_trait]
impl<K: Kernel> wire::capture_service_server::CaptureService for Service<K> {
    type CaptureStream = Chunks;

    async fn capture(&self, request: Request<wire::CaptureRequest>) -> Result<Response<Chunks>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(&request.name);
        let context = format!("cannot capture on `{}`", shared::name::printable(&request.name));
        Ok(Response::new(
            self.open(request, caller.acting_uid()).await.map_err(|fault| fault.context(context))?,
        ))
    }
}

pub(super) fn bounds(request: &wire::CaptureRequest) -> Result<Bounds, Fault> {
    let invalid = |what: &str, hint: String| {
        Err(Fault::new(Kind::InvalidArgument, "INVALID_BOUND", format!("the {what} cannot be that"))
            .hint(hint))
    };
    let snap_length = match request.snap_length {
        0 => LONGEST_SNAP,
        length @ 1..=LONGEST_SNAP => length,
        _ => return invalid("snap length", format!("at most {LONGEST_SNAP} bytes of a frame are kept")),
    };
    let bytes = match request.max_bytes {
        0 => BYTES,
        bytes @ LEAST_BYTES..=MOST_BYTES => bytes,
        _ => return invalid("size of the file", format!("{LEAST_BYTES} bytes to 64 GiB are possible")),
    };
    let duration = match request.max_duration {
        None => DURATION,
        Some(duration) => match span(duration.seconds, duration.nanos) {
            Some(duration) if (Duration::from_millis(1)..=MOST_DURATION).contains(&duration) => duration,
            _ => return invalid("duration", "1 ms to 24 h are possible".to_owned()),
        },
    };
    let frames = if request.max_frames == 0 { u64::MAX } else { request.max_frames };
    Ok(Bounds { snap_length, frames, bytes, duration })
}

fn chunk(piece: Piece) -> wire::CaptureChunk {
    let end = match piece.end {
        None => wire::CaptureEnd::Unspecified,
        Some(End::Frames) => wire::CaptureEnd::Frames,
        Some(End::Bytes) => wire::CaptureEnd::Bytes,
        Some(End::Duration) => wire::CaptureEnd::Duration,
        Some(End::PortDeleted) => wire::CaptureEnd::PortDeleted,
        Some(End::LinkLost) => wire::CaptureEnd::LinkLost,
        Some(End::Stopping) => wire::CaptureEnd::ServerEnding,
    };
    wire::CaptureChunk {
        data: piece.data,
        closing: piece.closing,
        frames: piece.frames,
        bytes: piece.bytes,
        dropped: piece.dropped,
        end: end.into(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bounds_that_are_not_given_are_sane_and_impossible_ones_are_refused() {
        let default = bounds(&wire::CaptureRequest::default()).unwrap();
        assert_eq!((default.snap_length, default.frames), (262_144, u64::MAX));
        assert_eq!((default.bytes, default.duration), (1 << 30, Duration::from_secs(3600)));
        let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        for bad in [
            wire::CaptureRequest { snap_length: 262_145, ..Default::default() },
            wire::CaptureRequest { max_bytes: 8191, ..Default::default() },
            wire::CaptureRequest { max_bytes: (64 << 30) + 1, ..Default::default() },
            wire::CaptureRequest { max_duration: time(0, 0), ..Default::default() },
            wire::CaptureRequest { max_duration: time(-1, 0), ..Default::default() },
            wire::CaptureRequest { max_duration: time(i64::MIN, 0), ..Default::default() },
            wire::CaptureRequest { max_duration: time(24 * 3600, 1), ..Default::default() },
        ] {
            assert_eq!(bounds(&bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad:?}");
        }
    }
}
