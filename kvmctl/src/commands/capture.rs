//! `kvmctl port capture`.

use super::console::Signals;
use crate::{
    cli::CapturePort,
    client::{Clients, DEADLINE},
    output::{Printer, Stop},
    resource,
};
use proto::netd::v1::{CaptureChunk, CaptureEnd, CaptureRequest};
use shared::fault::{Fault, Kind};
use std::{
    future::Future,
    io::{self, IsTerminal as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    process::Stdio,
    time::Duration,
};
use tokio::{
    fs::File,
    io::{AsyncWrite, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};
use tonic::Streaming;

/// How long a reader of ours that has fallen behind may take after the end was asked for.
const PARTING: Duration = Duration::from_secs(2);
/// Captures show what people sent each other.
const MODE: u32 = 0o600;

/// Carries the command out.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(asked: CapturePort, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let signals = Signals::new().map_err(|e| Fault::internal("cannot watch for signals").cause(&e))?;
    let place = Place::choose(asked.write, io::stdout().is_terminal())?;
    let request = CaptureRequest {
        name: resource::port(&asked.port.network, &asked.port.name),
        filter: asked.filter.join(" "),
        snap_length: asked.snaplen.unwrap_or_default(),
        max_frames: asked.count.unwrap_or_default(),
        max_bytes: asked.size.unwrap_or_default(),
        max_duration: asked.duration.map(TryInto::try_into).transpose().map_err(|e| {
            Fault::new(Kind::InvalidArgument, "INVALID_DURATION", "the duration is not possible").cause(&e)
        })?,
    };
    let stream = clients.netd.call(DEADLINE, clients.captures()?.capture(request)).await?;
    // Only now: a capture that is refused overwrites no file.
    let sink = Sink::open(place)?;
    let (last, result) = copy(stream, sink, clients, pin!(signals.any())).await;
    let CaptureChunk { frames, bytes, dropped, .. } = last;
    let plural = if frames == 1 { "" } else { "s" };
    printer.remark(&format!("{frames} frame{plural} captured, {bytes} bytes; {dropped} dropped"));
    result?;
    match last.end() {
        CaptureEnd::PortDeleted => printer.remark("note: the port was deleted"),
        CaptureEnd::Bytes => printer.remark("note: the file is full; --size allows more"),
        CaptureEnd::LinkLost => return Err(ended_early("somebody removed the port's link").into()),
        CaptureEnd::ServerEnding => {
            return Err(ended_early("netd ended").with_kind(Kind::Unavailable).into());
        }
        CaptureEnd::Unspecified | CaptureEnd::Frames | CaptureEnd::Duration => {}
    }
    Ok(())
}

fn ended_early(why: &str) -> Fault {
    Fault::new(Kind::Aborted, "CAPTURE_ENDED", format!("the capture ended early: {why}"))
        .hint("what was captured is complete up to there; capture again for more")
}

/// Copies the stream until it ends or a signal comes, and makes the file whole. Returns the last chunk, without data.
async fn copy(
    mut stream: Streaming<CaptureChunk>,
    mut sink: Sink,
    clients: &Clients,
    mut signal: Pin<&mut impl Future<Output = ()>>,
) -> (CaptureChunk, Result<(), Stop>) {
    let mut last = CaptureChunk::default();
    let result = loop {
        let message = tokio::select! {
            biased;
            () = &mut signal => break Ok(()),
            message = stream.message() => message,
        };
        let mut chunk = match message {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Ok(()),
            Err(status) => break Err(clients.netd.fault(status).into()),
        };
        let data = std::mem::take(&mut chunk.data);
        last = chunk;
        let mut write = pin!(sink.write(&data));
        let written = tokio::select! {
            written = &mut write => written,
            // Half a block would spoil the file.
            () = &mut signal => match timeout(PARTING, write).await {
                Ok(Ok(())) => break Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => return (last, Ok(())),
            },
        };
        if let Err(error) = written {
            return (last, Err(error));
        }
    };
    let finished = timeout(PARTING, sink.finish(&last.closing)).await.unwrap_or(Ok(()));
    (last, result.and(finished))
}

/// Where a capture goes.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Stdout,
    /// As lines, by tcpdump.
    Lines,
}

impl Place {
    fn choose(write: Option<PathBuf>, terminal: bool) -> Result<Self, Fault> {
        match write {
            Some(path) if path == Path::new("-") && terminal => {
                Err(Fault::new(Kind::InvalidArgument, "TERMINAL", "a capture is not for a terminal's eyes")
                    .hint("leave out -w for a line for each frame, or write it to a file or a pipe"))
            }
            Some(path) if path == Path::new("-") => Ok(Self::Stdout),
            Some(path) => Ok(Self::File(path)),
            None if terminal => Ok(Self::Lines),
            None => Ok(Self::Stdout),
        }
    }
}

struct Sink {
    out: Box<dyn AsyncWrite + Unpin>,
    place: String,
    reader: Option<Child>,
}

impl Sink {
    fn open(place: Place) -> Result<Self, Fault> {
        let failed = |what: String| Fault::new(Kind::FailedPrecondition, "OUTPUT", what);
        match place {
            Place::Stdout => Ok(Self {
                out: Box::new(tokio::io::stdout()),
                place: "standard output".to_owned(),
                reader: None,
            }),
            Place::File(path) => {
                let place = format!("`{}`", path.display());
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(MODE)
                    .open(&path)
                    .map_err(|e| failed(format!("cannot write to {place}")).cause(&e))?;
                Ok(Self { out: Box::new(File::from_std(file)), place, reader: None })
            }
            Place::Lines => {
                let cannot = || failed("cannot run tcpdump, which makes lines of the frames".to_owned());
                let mut reader = Command::new("tcpdump")
                    .args(["-n", "-l", "-r", "-"])
                    .stdin(Stdio::piped())
                    // Ctrl-C is for us; it prints what it has, and ends with its input.
                    .process_group(0)
                    .kill_on_drop(true)
                    .spawn()
                    .map_err(|e| {
                        cannot().cause(&e).hint("install tcpdump, or write the frames to a file with -w FILE")
                    })?;
                let out = reader.stdin.take().ok_or_else(cannot)?;
                Ok(Self { out: Box::new(out), place: "tcpdump".to_owned(), reader: Some(reader) })
            }
        }
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), Stop> {
        let written = async {
            self.out.write_all(data).await?;
            self.out.flush().await
        };
        written.await.map_err(|error| match Stop::from(error) {
            Stop::Fault(fault) => Stop::Fault(fault.context(format!("cannot write to {}", self.place))),
            closed => closed,
        })
    }

    async fn finish(mut self, closing: &[u8]) -> Result<(), Stop> {
        self.write(closing).await?;
        drop(self.out);
        if let Some(mut reader) = self.reader {
            reader.wait().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_terminal_gets_lines_and_never_the_file() {
        let choose = |write: Option<&str>, terminal| Place::choose(write.map(PathBuf::from), terminal);
        assert_eq!(choose(None, true).unwrap(), Place::Lines);
        assert_eq!(choose(None, false).unwrap(), Place::Stdout);
        assert_eq!(choose(Some("-"), false).unwrap(), Place::Stdout);
        assert_eq!(choose(Some("-"), true).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(choose(Some("x"), true).unwrap(), Place::File("x".into()));
    }
}
