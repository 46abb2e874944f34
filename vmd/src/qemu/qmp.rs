//! QMP: QEMU's monitor protocol, lines of JSON over a socket.
//!
//! The other end is not trusted: lines and waits are bounded, replies go by id, late ones are dropped, and events that
//! nobody knows pass.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod lines;

use lines::Lines;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use shared::fault::{Fault, Kind};
use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// How long a command may take.
pub const DEADLINE: Duration = Duration::from_secs(5);
const EVENTS: usize = 64;
/// Most characters of QEMU's own words that are kept or shown.
const MAX_WORDS: usize = 200;

/// What QEMU tells by itself, as far as anybody here listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The machine has shut down, with QEMU's word for why.
    Shutdown(String),
    /// The virtual CPUs stand still.
    Stop,
    /// The virtual CPUs run.
    Resume,
    /// A disk failed, in words.
    DiskError(String),
    /// The machine was reset; `guest`: the guest did that.
    Reset {
        /// Not a client of ours.
        guest: bool,
    },
    /// The connection is over, in words why. The last event.
    Lost(String),
}

impl Event {
    fn from_json(message: &Value) -> Option<Self> {
        let data = &message["data"];
        let text = |key: &str| words(data[key].as_str().unwrap_or_default());
        match message["event"].as_str()? {
            "SHUTDOWN" => Some(Self::Shutdown(text("reason"))),
            "STOP" => Some(Self::Stop),
            "RESUME" => Some(Self::Resume),
            "BLOCK_IO_ERROR" => Some(Self::DiskError(format!(
                "{} failed on {} ({}); the guest was told: {}",
                text("operation"),
                text(if data["node-name"].is_string() { "node-name" } else { "device" }),
                text("reason"),
                text("action"),
            ))),
            "RESET" => Some(Self::Reset { guest: data["guest"] == true }),
            other => {
                tracing::debug!(event = words(other), "QMP event");
                None
            }
        }
    }
}

/// Words of a QEMU that may have been taken over: printable, and not many.
fn words(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_WORDS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_WORDS).is_some() {
        out.push('…');
    }
    out
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Value, String>>>;

#[derive(Debug)]
struct Shared {
    /// `None` once the connection is gone.
    waiting: Mutex<Option<Waiting>>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU64,
    /// Ends the reader, so that the machine gets a new connection.
    broken: CancellationToken,
}

/// A monitor that is ready for commands. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Qmp(Arc<Shared>);

fn broken(reason: &str, message: &str) -> Fault {
    Fault::new(Kind::Unavailable, reason, message)
        .hint("QEMU may hang: `kvmctl vm stop --force` ends it in any case")
}

impl Qmp {
    /// Connects, waits for the greeting and negotiates. `deadline` bounds all of it.
    ///
    /// # Errors
    /// UNAVAILABLE if QEMU is not there or does not speak QMP.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<(Self, mpsc::Receiver<Event>), Fault> {
        let connecting = async {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|e| broken("QMP_CONNECT", "cannot connect to QEMU's monitor").cause(&e))?;
            Self::negotiate(stream).await
        };
        tokio::time::timeout(deadline, connecting)
            .await
            .map_err(|_| broken("QMP_TIMEOUT", "QEMU's monitor did not greet in time"))?
    }

    async fn negotiate(stream: UnixStream) -> Result<(Self, mpsc::Receiver<Event>), Fault> {
        let (reader, writer) = stream.into_split();
        let mut lines = Lines::new(reader);
        let greeting =
            lines.next().await.map_err(|e| broken("QMP", "QEMU's monitor did not greet").cause(&e))?;
        if greeting.get("QMP").is_none() {
            return Err(broken("QMP", "what listens on QEMU's monitor is not QEMU"));
        }
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(HashMap::new())),
            writer: tokio::sync::Mutex::new(writer),
            next: AtomicU64::new(1),
            broken: CancellationToken::new(),
        });
        let (sender, events) = mpsc::channel(EVENTS);
        let readers = Arc::clone(&shared);
        tokio::spawn(async move {
            let error = read_on(&mut lines, &readers, &sender).await;
            tracing::debug!(%error, "QMP connection ended");
            // Whoever waits is told so by the drop.
            readers.waiting().take();
            lines.hang_up();
            drop(lines);
            let _ = sender.send(Event::Lost(error.to_string())).await;
        });
        let qmp = Self(shared);
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok((qmp, events))
    }

    /// Runs a command. Arguments are an object, or null for none.
    ///
    /// # Errors
    /// UNAVAILABLE if QEMU does not answer within `DEADLINE` or is gone, FAILED_PRECONDITION with QEMU's words if it
    /// refuses.
    pub async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, Fault> {
        let span = tracing::info_span!("qmp", otel.name = format!("qmp {command}"), command);
        tokio::time::timeout(DEADLINE, self.exchange(command, arguments)).instrument(span).await.map_err(
            |_| {
                broken(
                    "QMP_TIMEOUT",
                    &format!("QEMU did not answer `{command}` within {} s", DEADLINE.as_secs()),
                )
            },
        )?
    }

    /// Gives QEMU a descriptor, which it then has by this name.
    ///
    /// # Errors
    /// As `execute`.
    pub async fn give(&self, name: &str, fd: OwnedFd) -> Result<(), Fault> {
        let command = "getfd";
        let arguments = json!({"fdname": name});
        let giving = self.exchange_with(command, arguments, Some(fd));
        let late = || broken("QMP_TIMEOUT", "QEMU did not take a descriptor in time");
        tokio::time::timeout(DEADLINE, giving).await.map_err(|_| late())?.map(drop)
    }

    async fn exchange(&self, command: &str, arguments: Value) -> Result<Value, Fault> {
        self.exchange_with(command, arguments, None).await
    }

    async fn exchange_with(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, Fault> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"execute": command, "id": id});
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut line = message.to_string();
        line.push('\n');
        let gone = || broken("QMP_CLOSED", &format!("QEMU's monitor closed before it answered `{command}`"));
        let (sender, answer) = oneshot::channel();
        // Dropped with this future, so that a command that is given up leaves nothing behind.
        let _forget = Forget { shared: &self.0, id };
        self.0.waiting().as_mut().ok_or_else(gone)?.insert(id, sender);
        // The lock is only ever given up between lines: a write that is cancelled half-way ends the connection.
        let mut writer = self.0.writer.lock().await;
        let mut partial = CloseUnlessDone { shared: &self.0, done: false };
        let sent = match &fd {
            Some(fd) => send_with(&writer, line.as_bytes(), fd).await.map_err(|e| gone().cause(&e))?,
            None => 0,
        };
        writer.write_all(&line.as_bytes()[sent..]).await.map_err(|e| gone().cause(&e))?;
        partial.done = true;
        drop(writer);
        answer.await.map_err(|_| gone())?.map_err(|text| {
            Fault::new(Kind::FailedPrecondition, "QMP_REFUSED", format!("QEMU refused `{command}`: {text}"))
        })
    }
}

/// Sends the beginning of a line together with a descriptor.
async fn send_with(writer: &OwnedWriteHalf, line: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    writer
        .as_ref()
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [fd.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            Ok(sendmsg(writer.as_ref(), &[io::IoSlice::new(line)], &mut control, flags)?)
        })
        .await
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

struct CloseUnlessDone<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Drop for CloseUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.waiting().take();
            self.shared.broken.cancel();
        }
    }
}

async fn read_on(lines: &mut Lines, shared: &Shared, events: &mpsc::Sender<Event>) -> io::Error {
    loop {
        let mut message = tokio::select! {
            line = lines.next() => match line {
                Ok(message) => message,
                Err(error) => return error,
            },
            // Nobody listens any more: the machine has a new connection, or none.
            () = events.closed() => return io::Error::other("no longer wanted"),
            () = shared.broken.cancelled() => return io::Error::other("a command was cut off"),
        };
        if let Some(event) = Event::from_json(&message) {
            if events.send(event).await.is_err() {
                return io::Error::other("no longer wanted");
            }
        } else if let Some(id) = message["id"].as_u64() {
            let asker = shared.waiting().as_mut().and_then(|waiting| waiting.remove(&id));
            // Late replies have no asker.
            if let Some(asker) = asker {
                let _ = asker.send(match message.get("error") {
                    Some(error) => Err(words(error["desc"].as_str().unwrap_or("no reason given"))),
                    None => Ok(message["return"].take()),
                });
            }
        }
    }
}

#[cfg(test)]
mod test;
