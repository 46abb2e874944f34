//! Moves bytes between a running guest's serial port and its console.

use super::{Console, INPUT};
use std::{io, path::Path, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
};

const BUFFER: usize = 16 << 10;

/// The tasks of one run. Dropping it ends them; the guest does not notice.
#[derive(Debug)]
pub struct Pump {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    console: Arc<Console>,
}

impl Pump {
    /// Connects to the serial port's socket, and begins.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn start(socket: &Path, console: Arc<Console>) -> io::Result<Self> {
        let (from_guest, to_guest) = UnixStream::connect(socket).await?.into_split();
        let (sender, input) = mpsc::channel(INPUT);
        *console.input() = Some(sender);
        Ok(Self {
            reader: tokio::spawn(read(from_guest, Arc::clone(&console))),
            // Apart from the reader: a guest that does not read must still be heard.
            writer: tokio::spawn(write(to_guest, input)),
            console,
        })
    }

    /// Waits until all that a dead guest has said is read.
    pub async fn drained(&mut self) {
        let _ = (&mut self.reader).await;
        self.console.log.flush().await;
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.console.input().take();
        self.reader.abort();
        self.writer.abort();
    }
}

async fn read(mut guest: OwnedReadHalf, console: Arc<Console>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match guest.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => console.log.append(&buffer[..read]).await,
        }
    }
}

async fn write(mut guest: OwnedWriteHalf, mut input: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = input.recv().await {
        if guest.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let console = Console::open(dir.path()).unwrap();
        let mut pump = Pump::start(&socket, Arc::clone(&console)).await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        guest.write_all(b"login: ").await.unwrap();
        let mut end = console.follow();
        end.wait_for(|end| *end == 7).await.unwrap();
        console.writer().unwrap().write(b"root\n".to_vec()).await.unwrap();
        let mut got = [0; 5];
        guest.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"root\n");
        guest.write_all(b"bye").await.unwrap();
        drop(guest);
        pump.drained().await;
        assert_eq!(console.read(7).await.1, b"bye");
        drop(pump);
        assert_eq!(console.writer().unwrap().write(vec![1]).await.unwrap_err().reason(), "NOT_RUNNING");
    }
}
