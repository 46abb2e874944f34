//! QEMU's last words: a bounded log of its stderr.
//!
//! QEMU writes into a FIFO that vmd holds open in both directions and without blocking. So a guest that makes QEMU
//! talk fills 64 KiB of the kernel while there is no vmd, then 128 KiB of disk, and never blocks or dies of it.

use crate::console::Log;
use rustix::fs::{CWD, FileType, OFlags};
use std::{
    fs::OpenOptions,
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::Path,
    sync::Arc,
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::oneshot, task::JoinHandle};

const SEGMENT: u64 = 64 << 10;
/// Name of the log in the machine's state folder, before the offset.
pub const FILE: &str = "qemu";
const FIFO: &str = "stderr";
/// How much of the end an error quotes.
const QUOTED_LINES: usize = 4;
const QUOTED_BYTES: u64 = 2048;

/// Reads a machine's stderr until told to end.
#[derive(Debug)]
pub struct Stderr {
    end: oneshot::Sender<()>,
    task: JoinHandle<Arc<Log>>,
    /// Where this run began.
    begin: u64,
}

impl Stderr {
    /// Makes the FIFO in `run` unless it is there, and begins to read it into a log in `state`.
    ///
    /// # Errors
    /// What the file system said.
    pub fn start(run: &Path, state: &Path) -> io::Result<Self> {
        let path = run.join(FIFO);
        match rustix::fs::mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let mut receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path)?;
        let log = Log::open(state, FILE, SEGMENT)?;
        let begin = *log.follow().borrow();
        let (end, mut told) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let read = tokio::select! {
                    read = receiver.read(&mut buffer) => read,
                    _ = &mut told => break,
                };
                match read {
                    Ok(read) => log.append(&buffer[..read]).await,
                    Err(_) => break,
                }
            }
            // What is in the FIFO already, of which the runtime may not know yet.
            while let Ok(read @ 1..) = rustix::io::read(&receiver, &mut *buffer) {
                log.append(&buffer[..read]).await;
            }
            log.flush().await;
            log
        });
        Ok(Self { end, task, begin })
    }

    /// The other end, for QEMU.
    ///
    /// # Errors
    /// What the file system said.
    pub fn writer(run: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        // For reading too, so that it can be opened while vmd's end is not.
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(run.join(FIFO))?;
        Ok(file.into())
    }

    /// Ends after all that was written is read, and quotes its last lines in one.
    pub async fn finish(self) -> String {
        let _ = self.end.send(());
        let Ok(log) = self.task.await else { return String::new() };
        let end = *log.follow().borrow();
        let from = self.begin.max(end.saturating_sub(QUOTED_BYTES));
        let (_, bytes) = log.read(from, usize::try_from(QUOTED_BYTES).unwrap_or(usize::MAX)).await;
        quote(&String::from_utf8_lossy(&bytes))
    }
}

/// The last lines without QEMU's time stamps and its own name.
pub(crate) fn quote(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(bare).filter(|line| !line.is_empty()).collect();
    let first = lines.len().saturating_sub(QUOTED_LINES);
    lines[first..]
        .join("; ")
        .chars()
        .flat_map(char::escape_debug)
        .collect::<String>()
        .replace("\\\"", "\"")
        .replace("\\'", "'")
}

/// `2025-01-01T00:00:00.000000Z qemu-system-x86_64: -device {…}: text` without all that is before the text.
fn bare(line: &str) -> &str {
    let line = match line.split_once(' ') {
        Some((stamp, rest)) if stamp.ends_with('Z') && stamp.contains('T') => rest,
        _ => line,
    };
    let line = match line.split_once(": ") {
        Some((name, rest)) if name.starts_with("qemu-system-") && !name.contains(' ') => rest,
        _ => line,
    };
    // An error about an option begins with all of it; the message says which device it is.
    match line.strip_prefix('-').and_then(|option| option.split_once("}: ")) {
        Some((option, rest)) if option.contains(" {") => rest,
        _ => line,
    }
    .trim()
}

#[cfg(test)]
mod test {
    use super::*;
    use std::{fs, io::Write as _};

    #[tokio::test]
    async fn the_last_words_of_this_run_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        for words in ["first", "second"] {
            let stderr = Stderr::start(dir.path(), dir.path()).unwrap();
            let mut writer = fs::File::from(Stderr::writer(dir.path()).unwrap());
            writeln!(writer, "2025-11-24T21:00:00.123456Z qemu-system-x86_64: {words} failed: no").unwrap();
            assert_eq!(stderr.finish().await, format!("{words} failed: no"));
        }
    }

    #[test]
    fn quotes_are_short_and_printable() {
        assert_eq!(quote("a\nb\nc\nd\ne\u{1b}[31m\n\n"), "b; c; d; e\\u{1b}[31m");
        let option = "qemu-system-x86_64: -device {\"id\":\"x: y\"}: no such bus";
        assert_eq!(quote(option), "no such bus");
        assert_eq!(quote("plain `\"x\"`: 'y'"), "plain `\"x\"`: 'y'");
    }
}
