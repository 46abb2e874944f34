//! Flows between namespaces: a server that echoes, and attempts to reach it.

use crate::netns::Netns;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::write,
};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

/// How long an attempt waits for an answer.
const ANSWER: Duration = Duration::from_millis(300);
/// How often an attempt is made before it counts as failed: neighbours have to be found first.
const ATTEMPTS: u32 = 2;

/// Answers TCP and UDP, over both families, with what it gets, until dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Serves these ports inside `netns`.
    ///
    /// # Panics
    /// If a port is taken.
    #[must_use]
    pub fn serve(netns: &Netns, ports: &[u16]) -> Self {
        let sockets: Vec<_> = netns.enter(|| {
            let bind = |port: &u16| {
                let tcp = TcpListener::bind(("::", *port)).expect("bind");
                let udp = UdpSocket::bind(("::", *port)).expect("bind");
                tcp.set_nonblocking(true).expect("nonblocking");
                udp.set_nonblocking(true).expect("nonblocking");
                (tcp, udp)
            };
            ports.iter().map(bind).collect()
        });
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"));
        let watch = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || serve(&sockets, &watch))) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(sockets: &[(TcpListener, UdpSocket)], stop: &OwnedFd) {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let fds = std::iter::once(stop.as_fd())
            .chain(sockets.iter().flat_map(|(tcp, udp)| [tcp.as_fd(), udp.as_fd()]))
            .chain(streams.iter().map(|stream| stream.as_fd()));
        let mut ready: Vec<PollFd<'_>> =
            fds.map(|fd: BorrowedFd<'_>| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        if poll(&mut ready, None).is_err() {
            continue;
        }
        if !ready[0].revents().is_empty() {
            return;
        }
        drop(ready);
        for (tcp, udp) in sockets {
            while let Ok((stream, _)) = tcp.accept() {
                stream.set_nonblocking(true).expect("nonblocking");
                streams.push(stream);
            }
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..length], from);
            }
        }
        streams.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
    }
}

/// A sort of flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// TCP to a port.
    Tcp(u16),
    /// UDP to a port, and back.
    Udp(u16),
    /// An echo request.
    Ping,
}

impl Flow {
    /// Whether a new flow from `from` to `to` gets an answer. Where it does not, that takes more than half a second.
    #[must_use]
    pub fn works(self, from: &Netns, to: IpAddr) -> bool {
        (0..ATTEMPTS).any(|_| match self {
            Self::Tcp(port) => Connection::open(from, (to, port).into()).is_some_and(|mut c| c.answers()),
            Self::Udp(port) => {
                let mut socket = Datagrams::bind(from, to.is_ipv6(), 0);
                socket.answered((to, port).into(), b"echo")
            }
            Self::Ping => from.succeeds(&format!("ping -n -c 1 -W 0.3 {to}")),
        })
    }
}

/// A TCP connection to an `Echo`.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Opens it, if that is possible.
    ///
    /// # Panics
    /// If a socket has no time-out.
    #[must_use]
    pub fn open(from: &Netns, to: SocketAddr) -> Option<Self> {
        let stream = from.enter(|| TcpStream::connect_timeout(&to, ANSWER)).ok()?;
        stream.set_read_timeout(Some(ANSWER)).expect("time-out");
        Some(Self(stream))
    }

    /// Whether what is sent comes back.
    pub fn answers(&mut self) -> bool {
        let mut answer = [0; 4];
        self.0.write_all(b"echo").is_ok() && self.0.read_exact(&mut answer).is_ok() && answer == *b"echo"
    }
}

/// A UDP socket.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

impl Datagrams {
    /// Binds a port, any if 0, in one family.
    ///
    /// # Panics
    /// If it is taken.
    #[must_use]
    pub fn bind(netns: &Netns, v6: bool, port: u16) -> Self {
        let address = if v6 { "::" } else { "0.0.0.0" };
        let socket = netns.enter(|| UdpSocket::bind((address, port))).expect("bind");
        socket.set_read_timeout(Some(ANSWER)).expect("time-out");
        Self(socket)
    }

    /// Its port.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.local_addr().expect("bound").port()
    }

    /// Sends a datagram; a refusal to send is a way of not arriving.
    pub fn send(&self, to: SocketAddr, text: &[u8]) {
        let _ = self.0.send_to(text, to);
    }

    /// Whether `text` arrives within a moment; others that do are passed over.
    #[must_use]
    pub fn receives(&self, text: &[u8]) -> bool {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, _)) = self.0.recv_from(&mut buffer) {
            if buffer[..length] == *text {
                return true;
            }
        }
        false
    }

    /// Whether what is sent comes back.
    pub fn answered(&mut self, to: SocketAddr, text: &[u8]) -> bool {
        self.send(to, text);
        self.receives(text)
    }
}
