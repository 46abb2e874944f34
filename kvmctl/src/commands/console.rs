//! `kvmctl vm console` and `kvmctl vm log`.

use crate::{
    client::{Clients, DEADLINE},
    output::{Printer, Stop},
    resource,
    terminal::RawTerminal,
};
use proto::vmd::v1::{
    AttachConsoleRequest, ConsoleChunk, ConsoleOpen, ReadConsoleLogRequest, attach_console_request::Message,
};
use shared::{fault::Fault, name::Name};
use std::{
    future,
    io::{self, IsTerminal as _, Read as _},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Ctrl-], as telnet and `virsh console` have it.
const ESCAPE: u8 = 0x1d;
/// How much of what was put out before is shown on entry, in bytes: about a screen.
const HISTORY: usize = 4 << 10;
/// Bytes read from standard input at once; vmd takes 64 KiB.
const INPUT: usize = 4 << 10;
/// Pieces of input on their way; more is not read before these are taken.
const QUEUE: usize = 8;
/// How long the last keys before the escape may take to leave.
const PARTING: Duration = Duration::from_millis(100);

/// Prints the recorded output of the serial console, and goes on with `follow`.
///
/// # Errors
/// Whatever ended it early.
pub async fn log(
    name: &Name,
    follow: bool,
    clients: &Clients,
    printer: &mut Printer<'_>,
) -> Result<(), Stop> {
    let mut stream = read_log(name, follow, clients).await?;
    let mut expected = 0;
    while let Some(chunk) = next(&mut stream, clients).await? {
        if chunk.offset > expected {
            printer.remark(&format!("note: {} bytes are no longer kept", chunk.offset - expected));
        }
        expected = chunk.offset + chunk.data.len() as u64;
        printer.bytes(&chunk.data)?;
    }
    Ok(())
}

async fn read_log(name: &Name, follow: bool, clients: &Clients) -> Result<Streaming<ConsoleChunk>, Fault> {
    let request = ReadConsoleLogRequest { name: resource::vm(name), offset: 0, follow };
    clients.vmd.call(DEADLINE, clients.vms()?.read_console_log(request)).await
}

async fn next(
    stream: &mut Streaming<ConsoleChunk>,
    clients: &Clients,
) -> Result<Option<ConsoleChunk>, Fault> {
    stream.message().await.map_err(|status| clients.vmd.fault(status))
}

/// Attaches standard input and output to the serial console.
///
/// # Errors
/// Whatever ended it early. The terminal is as before in any case.
pub async fn attach(name: &Name, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let broken = |error: &io::Error| Fault::internal("cannot use the terminal").cause(error);
    let ended = Signals::new().map_err(|e| broken(&e))?;
    let history = history(name, clients).await?;
    let (requests, outgoing) = mpsc::channel(QUEUE);
    // Cannot fail: the queue is empty and its other end is held.
    let _ = requests.try_send(open(name, history.end));
    let mut output =
        clients.vmd.call(DEADLINE, clients.vms()?.attach_console(ReceiverStream::new(outgoing))).await?;

    let interactive = io::stdin().is_terminal();
    let terminal = if interactive {
        let raw = RawTerminal::enter().map_err(|e| broken(&e))?;
        // Said when it is true: a Ctrl-C now goes to the guest. A raw terminal needs the carriage return.
        printer.verbatim(&format!("connected to vm {name}; Ctrl-] leaves the console\r\n"));
        Some(raw)
    } else {
        None
    };
    let mut keys = read_stdin(interactive).map_err(|e| broken(&e))?;

    let mut show = Box::pin(async {
        write_out(&history.shown).await?;
        while let Some(chunk) = next(&mut output, clients).await? {
            write_out(&chunk.data).await?;
        }
        Ok::<(), Stop>(())
    });
    let ended_by_itself = tokio::select! {
        result = &mut show => Some(result),
        () = send(&mut keys, &requests) => None,
        () = ended.any() => None,
    };
    // The end of the input tells vmd to close; what was typed last must not be lost with the stream.
    drop(requests);
    let result = match ended_by_itself {
        Some(result) => result,
        None => tokio::time::timeout(PARTING, show).await.unwrap_or(Ok(())),
    };
    drop(terminal);
    if interactive {
        // The shell's prompt begins on a line of its own.
        printer.verbatim("\n");
    }
    result
}

fn open(name: &Name, offset: u64) -> AttachConsoleRequest {
    let open = ConsoleOpen { name: resource::vm(name), offset: Some(offset), read_only: false };
    AttachConsoleRequest { message: Some(Message::Open(open)) }
}

/// Sends keys until the escape. At the end of standard input it goes on waiting: the guest may still have much to
/// say.
async fn send(keys: &mut mpsc::Receiver<Keys>, requests: &mpsc::Sender<AttachConsoleRequest>) {
    while let Some(keys) = keys.recv().await {
        let bytes = match keys {
            Keys::Bytes(bytes) => bytes,
            Keys::Escape => return,
        };
        let request = AttachConsoleRequest { message: Some(Message::Input(bytes)) };
        if requests.send(request).await.is_err() {
            break;
        }
    }
    future::pending().await
}

async fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = tokio::io::stdout();
    out.write_all(bytes).await?;
    out.flush().await
}

/// What was put out before.
struct History {
    /// Its last lines.
    shown: Vec<u8>,
    /// Offset of the byte after it.
    end: u64,
}

/// Reads the whole record, which vmd keeps short, since only its end tells the offset to go on at.
async fn history(name: &Name, clients: &Clients) -> Result<History, Fault> {
    let mut stream = read_log(name, false, clients).await?;
    let (mut bytes, mut end, mut cut) = (Vec::new(), 0, false);
    while let Some(chunk) = next(&mut stream, clients).await? {
        end = chunk.offset + chunk.data.len() as u64;
        bytes.extend_from_slice(&chunk.data);
        if bytes.len() > HISTORY {
            bytes.drain(..bytes.len() - HISTORY);
            cut = true;
        }
    }
    let start = if cut { line_start(&bytes) } else { 0 };
    Ok(History { shown: bytes.split_off(start), end })
}

/// Where the first whole line begins; 0 if there is no line break.
fn line_start(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// A piece of standard input.
#[derive(Debug, PartialEq, Eq)]
enum Keys {
    Bytes(Vec<u8>),
    Escape,
}

/// Standard input, read by a thread of its own: a read cannot be given up, and must not hold the end of the program.
fn read_stdin(interactive: bool) -> io::Result<mpsc::Receiver<Keys>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = [0; INPUT];
        loop {
            let read = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => &buffer[..read],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            for keys in keys(read, interactive) {
                if sender.blocking_send(keys).is_err() {
                    return;
                }
            }
        }
    })?;
    Ok(receiver)
}

/// Cuts input at the escape; a pipe may send any byte.
fn keys(bytes: &[u8], interactive: bool) -> Vec<Keys> {
    match bytes.iter().position(|byte| *byte == ESCAPE) {
        Some(0) if interactive => vec![Keys::Escape],
        Some(at) if interactive => vec![Keys::Bytes(bytes[..at].to_vec()), Keys::Escape],
        _ => vec![Keys::Bytes(bytes.to_vec())],
    }
}

/// The signals that end a console, so that the terminal can be put back, or a capture, so that its file is whole.
pub(super) struct Signals(Vec<tokio::signal::unix::Signal>);

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let kinds =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        Ok(Self(kinds.into_iter().map(signal).collect::<io::Result<_>>()?))
    }

    pub(super) async fn any(mut self) {
        future::poll_fn(|cx| {
            if self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_escape_cuts_the_input_of_a_terminal_only() {
        assert_eq!(keys(b"ab\x1dcd", true), [Keys::Bytes(b"ab".to_vec()), Keys::Escape]);
        assert_eq!(keys(b"\x1d", true), [Keys::Escape]);
        assert_eq!(keys(b"ab", true), [Keys::Bytes(b"ab".to_vec())]);
        assert_eq!(keys(b"ab\x1dcd", false), [Keys::Bytes(b"ab\x1dcd".to_vec())]);
    }

    #[test]
    fn a_cut_history_begins_with_a_whole_line() {
        assert_eq!(line_start(b"rest of it\nlogin: "), 11);
        assert_eq!(line_start(b"no line break"), 0);
        assert_eq!(line_start(b""), 0);
    }
}
