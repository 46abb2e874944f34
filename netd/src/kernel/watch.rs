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
use std::{io, os::fd::OwnedFd, sync::Arc};
use tokio::{io::unix::AsyncFd, sync::Notify};

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
    let sources: [(Option<Protocol>, &[u32]); 2] = [
        (None, &[RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR]),
        (Some(netlink::NETFILTER), &[NFNLGRP_NFTABLES]),
    ];
    for (protocol, groups) in sources {
        let socket = listen(protocol, groups).map_err(|error| {
            let what = "cannot watch for changes of links and rules";
            Fault::new(Kind::FailedPrecondition, "NETLINK", what).cause(&error)
        })?;
        let changed = Arc::clone(changed);
        tokio::spawn(async move {
            if let Err(error) = notify(&socket, &changed).await {
                tracing::error!(%error, "changes by others are found by the resync only from now on");
            }
        });
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
