//! The streams of a console.

use super::Chunks;
use crate::{console::Writer, driver::Handle, supervisor::not_found};
use futures_util::{StreamExt as _, future::pending};
use proto::vmd::v1::{AttachConsoleRequest, ConsoleChunk, ConsoleOpen, attach_console_request::Message};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    serve::ending,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Chunks that wait for one slow viewer; the rest stays on disk.
const QUEUE: usize = 2;
/// Most bytes of one message to the guest.
const MAX_INPUT: usize = 64 << 10;

/// One viewer.
pub(super) struct View {
    pub name: Name,
    pub handle: Handle,
    pub offset: u64,
    pub stop: CancellationToken,
}

/// The first message of an attached console.
pub(super) fn open_message(message: Option<AttachConsoleRequest>) -> Result<ConsoleOpen, Fault> {
    match message.and_then(|message| message.message) {
        Some(Message::Open(open)) => Ok(open),
        Some(Message::Input(_)) | None => {
            Err(Fault::new(Kind::InvalidArgument, "NOT_OPENED", "the first message does not open a console")
                .hint("send `open` with the machine's name first"))
        }
    }
}

/// The recorded output, and what follows if asked.
pub(super) fn log(view: View, follow: bool) -> Chunks {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let stop = view.stop.clone();
        let result = tokio::select! {
            // First: the end of vmd ends the machine's watch too, which must not be taken for its deletion.
            biased;
            () = stop.cancelled() => Err(ending().into()),
            result = output(view, follow, &sender) => result,
            () = sender.closed() => return,
        };
        finish(&sender, result).await;
    });
    ReceiverStream::new(receiver).boxed()
}

/// Output for as long as the client stays, and its input.
pub(super) fn attach(view: View, stream: Streaming<AttachConsoleRequest>, writer: Option<Writer>) -> Chunks {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let stop = view.stop.clone();
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => Err(ending().into()),
            result = output(view, true, &sender) => result,
            result = input(stream, writer) => result,
            () = sender.closed() => return,
        };
        finish(&sender, result).await;
    });
    ReceiverStream::new(receiver).boxed()
}

type Sender = mpsc::Sender<Result<ConsoleChunk, Status>>;

async fn finish(sender: &Sender, result: Result<(), Status>) {
    if let Err(status) = result {
        let _ = sender.send(Err(status)).await;
    }
}

async fn output(view: View, follow: bool, sender: &Sender) -> Result<(), Status> {
    let View { name, handle, mut offset, .. } = view;
    let mut end = handle.console.follow();
    let mut vm = handle.watch;
    // A guest that never stops talking must not keep a reader of what is there.
    let last = if follow { u64::MAX } else { *end.borrow_and_update() };
    loop {
        end.mark_unchanged();
        let (begin, mut data) = handle.console.read(offset).await;
        let room = last.saturating_sub(begin);
        data.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        if !data.is_empty() {
            offset = begin + data.len() as u64;
            if sender.send(Ok(ConsoleChunk { offset: begin, data })).await.is_err() {
                return Ok(());
            }
            continue;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            changed = end.changed() => if changed.is_err() {
                return Err(not_found(&name).into());
            },
            () = deleted(&mut vm) => return Err(not_found(&name).into()),
        }
    }
}

async fn deleted(vm: &mut tokio::sync::watch::Receiver<std::sync::Arc<crate::model::Vm>>) {
    while vm.changed().await.is_ok() {}
}

/// Input until the client has no more; its output goes on after that.
async fn input(mut stream: Streaming<AttachConsoleRequest>, writer: Option<Writer>) -> Result<(), Status> {
    let invalid = |reason: &str, message: &str, hint: &str| {
        Status::from(Fault::new(Kind::InvalidArgument, reason, message).hint(hint))
    };
    while let Some(message) = stream.message().await? {
        let bytes = match message.message {
            Some(Message::Input(bytes)) => bytes,
            Some(Message::Open(_)) => {
                return Err(invalid("OPENED_TWICE", "the console is open already", "send `open` once"));
            }
            None => continue,
        };
        if bytes.len() > MAX_INPUT {
            return Err(invalid(
                "INPUT_TOO_LONG",
                "a message has more than 64 KiB of input",
                "send smaller pieces",
            ));
        }
        match &writer {
            Some(writer) => writer.write(bytes).await?,
            None => {
                return Err(invalid(
                    "READ_ONLY",
                    "the console was opened to be watched only",
                    "open it without `read_only`",
                ));
            }
        }
    }
    drop(writer);
    pending().await
}
