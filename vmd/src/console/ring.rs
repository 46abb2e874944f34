//! A byte log of bounded size on disk: two segments, named by the offset of their first byte.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

const SEGMENTS: usize = 2;

/// The last bytes of an endless stream, with the offsets they have in it.
#[derive(Debug)]
pub struct Ring {
    folder: PathBuf,
    name: &'static str,
    segment: u64,
    /// Oldest first.
    segments: VecDeque<Segment>,
    end: u64,
    /// Whether the last write failed, so that each trouble is logged once.
    failing: bool,
}

#[derive(Debug)]
struct Segment {
    base: u64,
    len: u64,
    file: File,
    path: PathBuf,
}

impl Ring {
    /// Opens the ring `name` in `folder`, which is made if missing. A segment holds about `segment` bytes. On a disk that
    /// is full or read-only it has what there is, and loses what is added until there is room.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(folder: &Path, name: &'static str, segment: u64) -> io::Result<Self> {
        tolerate(fs::create_dir_all(folder))?;
        let mut found = Vec::new();
        for entry in tolerate(fs::read_dir(folder).map(Some))?.into_iter().flatten() {
            let path = entry?.path();
            if let Some(base) = path.file_name().and_then(|file| base_of(file.to_str()?, name)) {
                let file = options().open(&path).or_else(|_| File::open(&path))?;
                found.push(Segment { base, len: file.metadata()?.len(), file, path });
            }
        }
        found.sort_by_key(|segment| segment.base);
        let end = found.last().map_or(0, |last| last.base.saturating_add(last.len));
        let mut ring =
            Self { folder: folder.to_owned(), name, segment, segments: found.into(), end, failing: false };
        ring.discard();
        Ok(ring)
    }

    /// Offset after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds bytes. If the disk does not take them they are lost, and the offsets go on: a full disk must not stop the
    /// guest.
    pub fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let now = self.segment.min(bytes.len() as u64);
            let (piece, rest) = bytes.split_at(usize::try_from(now).unwrap_or(bytes.len()));
            bytes = rest;
            match self.write(piece) {
                Ok(()) => self.failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(folder = %self.folder.display(), %error, "output of a guest is lost");
                    }
                    // What did get in must not be taken for what follows: the next piece begins a new segment.
                    if let Some(last) = self.segments.back_mut() {
                        last.len = last.len.max(self.segment);
                    }
                }
            }
            self.end += piece.len() as u64;
        }
    }

    /// Passes over bytes that are lost.
    pub fn skip(&mut self, lost: u64) {
        self.end += lost;
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if self
            .segments
            .back()
            .is_none_or(|last| last.len >= self.segment || last.base + last.len != self.end)
        {
            let path = self.folder.join(format!("{}.{:020}", self.name, self.end));
            fs::create_dir_all(&self.folder)?;
            let file = options().truncate(true).create(true).open(&path)?;
            self.segments.push_back(Segment { base: self.end, len: 0, file, path });
            self.discard();
        }
        if let Some(last) = self.segments.back_mut() {
            last.file.write_all_at(piece, last.len)?;
            last.len += piece.len() as u64;
        }
        Ok(())
    }

    fn discard(&mut self) {
        while self.segments.len() > SEGMENTS {
            if let Some(old) = self.segments.pop_front() {
                let _ = fs::remove_file(&old.path);
            }
        }
    }

    /// At most `most` bytes from `offset` on, or from the oldest byte after it that is kept; and the offset of the
    /// first. Nothing at the end.
    #[must_use]
    pub fn read(&self, offset: u64, most: usize) -> (u64, Vec<u8>) {
        for segment in &self.segments {
            let from = offset.max(segment.base);
            let within = from - segment.base;
            let mut bytes =
                vec![0; most.min(usize::try_from(segment.len.saturating_sub(within)).unwrap_or(most))];
            if bytes.is_empty() {
                continue;
            }
            let read = segment.file.read_at(&mut bytes, within).unwrap_or(0);
            bytes.truncate(read);
            if read > 0 {
                return (from, bytes);
            }
        }
        (offset.max(self.end), Vec::new())
    }
}

/// Passes over what a full or read-only disk refuses.
fn tolerate<T: Default>(result: io::Result<T>) -> io::Result<T> {
    use io::ErrorKind::{NotFound, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match result {
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | NotFound) => {
            Ok(T::default())
        }
        result => result,
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// The offset in a segment's file name.
fn base_of(file: &str, name: &str) -> Option<u64> {
    file.strip_prefix(name)?.strip_prefix('.')?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn kept(ring: &Ring) -> (u64, Vec<u8>) {
        let (begin, mut all) = ring.read(0, 7);
        loop {
            let (at, more) = ring.read(begin + all.len() as u64, 7);
            if more.is_empty() {
                return (begin, all);
            }
            assert_eq!(at, begin + all.len() as u64);
            all.extend(more);
        }
    }

    #[test]
    fn a_flood_stays_within_its_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(dir.path(), "console", 1000).unwrap();
        for _ in 0..1000 {
            ring.append(&[b'x'; 333]);
        }
        let used: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(used <= 2 * 1333, "{used}");
        assert_eq!(ring.end(), 333_000);
    }

    #[test]
    fn another_ring_in_the_folder_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        Ring::open(dir.path(), "qemu", 10).unwrap().append(b"one");
        let mut other = Ring::open(dir.path(), "console", 10).unwrap();
        assert_eq!(other.end(), 0);
        other.append(b"two");
        assert_eq!(kept(&Ring::open(dir.path(), "qemu", 10).unwrap()), (0, b"one".to_vec()));
    }

    proptest! {
        /// What is kept is always the end of what was written, at its right offset, also after reopening.
        #[test]
        fn what_is_kept_is_the_tail(pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..50), any::<bool>()), 0..30)) {
            let dir = tempfile::tempdir().unwrap();
            let mut ring = Ring::open(dir.path(), "console", 40).unwrap();
            let mut written = Vec::new();
            for (piece, reopen) in pieces {
                ring.append(&piece);
                written.extend(piece);
                if reopen {
                    ring = Ring::open(dir.path(), "console", 40).unwrap();
                }
                let (begin, tail) = kept(&ring);
                prop_assert_eq!(ring.end(), written.len() as u64);
                prop_assert_eq!(begin as usize + tail.len(), written.len());
                prop_assert_eq!(&tail[..], &written[begin as usize..]);
                prop_assert!(tail.len() >= written.len().min(40));
            }
        }
    }
}
