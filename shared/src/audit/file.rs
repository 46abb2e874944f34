//! The log's file: appended to, and moved aside when it is full.

use super::Record;
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    mem,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Most bytes of one file; there are two.
const MOST: u64 = 8 << 20;
/// Enough for the last line of a file.
const TAIL: u64 = 8 << 10;

/// The newest file and the one before.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    open: Option<Open>,
    /// Lines that were not written since the last that was.
    lost: u64,
    /// The last could not be.
    failing: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    /// Its last line is not whole.
    torn: bool,
}

impl LogFile {
    /// Nothing is opened yet.
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join("audit.jsonl"), open: None, lost: 0, failing: false }
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("jsonl.1")
    }

    /// The number of the last line, 0 if there is none.
    pub fn last_sequence(&self) -> u64 {
        let last = |path: &Path| {
            tail(path).ok().and_then(|text| {
                // The last line may be torn.
                text.lines()
                    .rev()
                    .find_map(|line| serde_json::from_str::<Value>(line).ok()?["sequence"].as_u64())
            })
        };
        last(&self.path).or_else(|| last(&self.older())).unwrap_or(0)
    }

    /// Writes a line. What fails is said once, until something is written again.
    pub fn append(&mut self, record: &Record) {
        // With those that did not even get here.
        self.lost += record.lost;
        let line = serde_json::to_vec(&Record { lost: self.lost, ..record.clone() });
        let written = line.map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.write(&line)
        });
        match written {
            Ok(()) => {
                self.failing = false;
                let lost = mem::take(&mut self.lost);
                if lost > 0 {
                    tracing::warn!(lost, "the audit log is written again; lines are missing");
                }
            }
            Err(error) => {
                self.open = None;
                if !mem::replace(&mut self.failing, true) {
                    let file = self.path.display();
                    tracing::error!(%file, %error, "the audit log cannot be written; its lines are lost until it can");
                }
                self.lost += 1;
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let older = self.older();
        // Somebody may have removed it to make room.
        let gone = self.open.as_ref().is_some_and(|open| open.file.metadata().is_ok_and(|m| m.nlink() == 0));
        let mut open = match self.open.take().filter(|_| !gone) {
            Some(open) => open,
            None => Open::at(&self.path)?,
        };
        let length = line.len() as u64 + 1;
        if open.size > 0 && open.size + length > MOST {
            fs::rename(&self.path, older)?;
            open = Open::at(&self.path)?;
        }
        if mem::take(&mut open.torn) {
            open.file.write_all(b"\n")?;
        }
        open.file.write_all(line)?;
        open.size += length;
        self.open = Some(open);
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).read(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.seek(SeekFrom::Start(size - 1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self { file, size, torn: last != [b'\n'] })
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
