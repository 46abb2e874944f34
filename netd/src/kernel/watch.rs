//! Hears that something changed: links, qdiscs, addresses, nft objects. What it was is for a fresh look to say.

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, socket_with,
    },
};
use shared::fault::{Fault, Kind};
use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{io::unix::AsyncFd, sync::Notify};

/// How long after an error to listen again.
const PAUSE: Duration = Duration::from_millis(500);

/// Multicast groups of rtnetlink (include/uapi/linux/rtnetlink.h).
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
/// Multicast group of nfnetlink (include/uapi/linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;

/// Notifies `changed` after each change, by whomever, until the runtime ends.
///
/// # Errors
/// FAILED_PRECONDITION if the kernel gives no socket.
pub fn start(changed: &Arc<Notify>) -> Result<(), Fault> {
    // NETLINK_ROUTE is protocol 0.
    let sources: [(Option<Protocol>, &'static [u32]); 2] = [
        (None, &[RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR]),
        (Some(netlink::NETFILTER), &[NFNLGRP_NFTABLES]),
    ];
    for (protocol, groups) in sources {
        let socket = listen(protocol, groups).map_err(|error| {
            let what = "cannot watch for changes of links and rules";
            Fault::new(Kind::FailedPrecondition, "NETLINK", what).cause(&error)
        })?;
        let changed = Arc::clone(changed);
        tokio::spawn(async move { watch(socket, || listen(protocol, groups), &changed).await });
    }
    Ok(())
}

fn listen(protocol: Option<Protocol>, groups: &[u32]) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    bind(&socket, &SocketAddrNetlink::new(0, mask))?;
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `AsyncFd` owns it.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

/// Notifies without an end: a socket that fails is followed by another.
async fn watch(
    mut socket: AsyncFd<OwnedFd>,
    again: impl Fn() -> io::Result<AsyncFd<OwnedFd>>,
    changed: &Notify,
) {
    loop {
        if let Err(error) = notify(&socket, changed).await {
            tracing::error!(%error, "cannot hear of changes by others; listening again");
        }
        loop {
            tokio::time::sleep(PAUSE).await;
            match again() {
                Ok(new) => {
                    socket = new;
                    break;
                }
                Err(error) => tracing::error!(%error, "changes by others are found by the resync only"),
            }
        }
        // Of what has changed meanwhile nobody told.
        changed.notify_one();
    }
}

async fn notify(socket: &AsyncFd<OwnedFd>, changed: &Notify) -> io::Result<()> {
    // A datagram that does not fit is cut, which does not matter: it is not read.
    let mut buffer = [0; 4096];
    loop {
        let mut ready = socket.readable().await?;
        while let Ok(result) =
            ready.try_io(|socket| Ok(recv(socket.get_ref(), &mut buffer[..], RecvFlags::empty()).map(drop)?))
        {
            match result {
                Ok(()) => {}
                // More was told than fits the socket: that something changed is all that matters.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {}
                Err(error) => return Err(error),
            }
            changed.notify_one();
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::{
        io::Write as _,
        os::unix::net::UnixDatagram,
        sync::{
            Mutex,
            atomic::{AtomicU32, Ordering},
        },
    };

    fn register(fd: impl Into<OwnedFd>) -> AsyncFd<OwnedFd> {
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `AsyncFd` owns it.
        unsafe { AsyncFd::register(fd.into()) }.unwrap()
    }

    #[tokio::test]
    async fn a_socket_that_fails_is_followed_by_another() {
        let (pipe, mut writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&pipe, true).unwrap();
        // Readable, and no socket: recv(2) fails.
        writer.write_all(b"x").unwrap();
        let (next, teller) = UnixDatagram::pair().unwrap();
        next.set_nonblocking(true).unwrap();
        let (next, asked) = (Mutex::new(Some(next)), AtomicU32::new(0));
        let again = || match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::Error::other("not yet")),
            _ => Ok(register(next.lock().unwrap().take().unwrap())),
        };
        let changed = Notify::new();
        let heard = async {
            changed.notified().await;
            assert_eq!(asked.load(Ordering::Relaxed), 2, "what was missed is told once there is a new one");
            teller.send(b"x").unwrap();
            changed.notified().await;
        };
        tokio::select! {
            () = watch(register(pipe), again, &changed) => unreachable!("it has no end"),
            () = heard => {}
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("nothing was heard"),
        }
    }
}
