//! Unix sockets: who is calling, and how to call.

mod groups;

use crate::fault::{Fault, Kind};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::{
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
};
use tonic::transport::{Channel, Endpoint, server::Connected};

/// Connections that wait to be accepted, at most, as far as the kernel lets them.
const BACKLOG: i32 = 1024;

/// The process at the other end of a connection, as the kernel knew it when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id, for people only: it may be another process's by now. 0: a process of another PID namespace, such as
    /// another container's, that has no number in ours.
    pub pid: i32,
    /// The supplementary groups that it had.
    pub groups: Arc<[u32]>,
}

/// A connection that knows its peer. Handlers find the `Peer` in the request's extensions.
#[derive(Debug)]
pub struct PeerStream {
    stream: UnixStream,
    peer: Option<Peer>,
}

impl PeerStream {
    /// Reads the peer's credentials (SO_PEERCRED). Without them the connection is served as nobody's.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        // Not rustix's: it fails where the pid is 0.
        let peer = stream.peer_cred().ok().map(|cred| Peer {
            uid: cred.uid(),
            gid: cred.gid(),
            pid: cred.pid().unwrap_or_default(),
            // Without them it has none.
            groups: groups::of_peer(&stream).unwrap_or_default().into(),
        });
        Self { stream, peer }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Option<Peer>;

    fn connect_info(&self) -> Option<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A socket that has its file and is not listened on yet: root may make it for a user who may not.
#[derive(Debug)]
pub struct Prepared {
    socket: OwnedFd,
    path: PathBuf,
    inode: u64,
}

/// A bound listening socket that removes its file in the end.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Prepared {
    /// Binds `path` with mode 0660, and gives it to `owner` and `group` where they are named. The folder is made if missing. A
    /// file left by a dead daemon is replaced; a living daemon's never is.
    ///
    /// # Errors
    /// ALREADY_EXISTS if a daemon listens there or the path is no socket; else what the kernel said.
    pub fn bind(path: &Path, owner: Option<u32>, group: Option<u32>) -> Result<Self, Fault> {
        let failed = |what: &str, error: &io::Error| {
            Fault::new(Kind::FailedPrecondition, "SOCKET", format!("cannot {what} `{}`", path.display()))
                .cause(error)
                .hint("choose another place with --socket")
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| failed("make the folder of", &e))?;
        }
        if let Ok(meta) = fs::symlink_metadata(path) {
            let taken =
                |why: &str| Fault::new(Kind::AlreadyExists, "SOCKET", format!("`{}` {why}", path.display()));
            if !meta.file_type().is_socket() {
                return Err(taken("is there and is not a socket"));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(taken("belongs to a running daemon")
                    .hint("stop that daemon first, or choose another place with --socket"));
            }
            fs::remove_file(path).map_err(|e| failed("replace", &e))?;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| failed("make a socket for", &e.into()))?;
        SocketAddrUnix::new(path)
            .and_then(|address| bind(&socket, &address))
            .map_err(|e| failed("bind", &e.into()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(|e| failed("set the mode of", &e))?;
        if owner.is_some() || group.is_some() {
            std::os::unix::fs::chown(path, owner, group).map_err(|e| failed("set the group of", &e))?;
        }
        let inode = fs::symlink_metadata(path).map_err(|e| failed("look at", &e))?.ino();
        Ok(Self { socket, path: path.to_owned(), inode })
    }

    /// Listens, within a runtime.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with what the kernel said.
    pub fn listen(self) -> Result<Bound, Fault> {
        let Self { socket, path, inode } = self;
        let listening = listen(&socket, BACKLOG).map_err(io::Error::from);
        let listener = listening.and_then(|()| UnixListener::from_std(socket.into())).map_err(|e| {
            let message = format!("cannot listen on `{}`", path.display());
            Fault::new(Kind::FailedPrecondition, "SOCKET", message).cause(&e)
        })?;
        Ok(Bound { listener, path, inode })
    }
}

impl Bound {
    /// Binds `path` with mode 0660, and gives it to `group` where one is named. The folder is made if missing. A
    /// file left by a dead daemon is replaced; a living daemon's never is.
    ///
    /// # Errors
    /// ALREADY_EXISTS if a daemon listens there or the path is no socket; else what the kernel said.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Self, Fault> {
        Prepared::bind(path, None, group)?.listen()
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// What accept(2) said; EMFILE and the like pass when descriptors are freed.
    pub async fn accept(&self) -> io::Result<PeerStream> {
        let (stream, _) = self.listener.accept().await?;
        Ok(PeerStream::new(stream))
    }
}

impl Drop for Bound {
    /// Best effort: a file that stays is replaced by the next start.
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A channel to `address` (`unix:///path`) that connects at the first call and again after each loss.
///
/// # Errors
/// INVALID_ARGUMENT if the address is not `unix://` and an absolute path.
pub fn channel(address: &str) -> Result<Channel, Fault> {
    let wrong = || {
        Fault::new(Kind::InvalidArgument, "INVALID_ADDRESS", format!("`{address}` is not a daemon's address"))
            .hint("write unix:///path/to/socket")
    };
    if !address.strip_prefix("unix://").is_some_and(|path| path.starts_with('/')) {
        return Err(wrong());
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|e| wrong().cause(&e))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy())
}

/// The id of the group that may use the sockets: a number, or a name of /etc/group. `None` if there is no such
/// group.
#[must_use]
pub fn group_id(group: &str) -> Option<u32> {
    group.parse().ok().or_else(|| {
        fs::read_to_string("/etc/group").ok()?.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
        })
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/d.sock");
        let first = Bound::bind(&path, None).unwrap();
        let refused = Bound::bind(&path, None).unwrap_err();
        assert_eq!(refused.kind(), Kind::AlreadyExists);
        drop(first);
        assert!(!path.exists());
        // What a killed daemon leaves: a socket file that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Bound::bind(&path, None).unwrap();
    }

    #[tokio::test]
    async fn something_else_at_the_path_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "mine").unwrap();
        assert!(Bound::bind(&path, None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn the_peer_is_ourselves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = Bound::bind(&path, None).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        let peer = bound.accept().await.unwrap().connect_info().unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, rustix::process::getpid().as_raw_nonzero().get());
    }

    #[tokio::test]
    async fn addresses_are_unix_urls() {
        assert!(channel("unix:///run/x.sock").is_ok());
        for bad in ["", "/run/x.sock", "unix://run/x", "http://localhost:1"] {
            assert_eq!(channel(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }
}
