//! A port held open as a VMM holds it, and witnesses of what came out elsewhere.

use crate::{netns::Netns, tap::open_tap, wait};
use rustix::{
    io::{Errno, read, write},
    net::{
        AddressFamily, SocketFlags, SocketType,
        addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque},
        bind, netdevice, socket_with,
    },
};
use std::{cell::RefCell, os::fd::OwnedFd};

/// Larger than any frame of an MTU that tests use.
const FRAME: usize = 10_000;

/// Where frames come out, one at each read: a port, or a link of a host.
#[derive(Debug)]
pub struct Wire {
    fd: OwnedFd,
    buffer: RefCell<Vec<u8>>,
}

impl Wire {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, buffer: RefCell::new(vec![0; FRAME]) }
    }

    /// Plugs into the tap `interface` of `host`; returns when the bridge carries its frames.
    ///
    /// # Panics
    /// If it cannot be opened or does not come up.
    #[must_use]
    pub fn plug(host: &Netns, interface: &str) -> Self {
        let tap = host.enter(|| open_tap(interface)).unwrap_or_else(|e| panic!("open tap {interface}: {e}"));
        wait::until(&format!("{interface} to forward"), || {
            let port = host.json(&format!("bridge -j link show dev {interface}"));
            (port[0]["state"] == "forwarding").then_some(())
        });
        Self::new(tap)
    }

    /// Listens to what reaches the host itself by the link `interface`, below its IP and its firewall. What the host
    /// sends by it is heard too.
    ///
    /// # Panics
    /// Without root, or if there is no such link.
    #[must_use]
    pub fn tap_into(host: &Netns, interface: &str) -> Self {
        Self::new(host.enter(|| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).expect("socket");
            let index = netdevice::name_to_index(&socket, interface).expect("link");
            bind(&socket, &LinkAddress::of(index)).expect("bind");
            socket
        }))
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn send(&self, frame: &[u8]) {
        write(&self.fd, frame).unwrap_or_else(|e| panic!("write {frame:02x?}: {e}"));
    }

    /// The next frame that came out, if there is one now.
    ///
    /// # Panics
    /// If the link has gone.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = self.buffer.borrow_mut();
        match read(&self.fd, &mut buffer[..]) {
            Ok(length) => Some(buffer[..length].to_vec()),
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("read: {error}"),
        }
    }

    /// Forgets what came out so far.
    pub fn drain(&self) {
        while self.receive().is_some() {}
    }

    /// All that came out before `marker`, which has to come.
    ///
    /// # Panics
    /// If it does not.
    pub fn until(&self, marker: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        wait::until("the marker frame", || {
            loop {
                let frame = self.receive()?;
                if same(&frame, marker) {
                    return Some(());
                }
                frames.push(frame);
            }
        });
        frames
    }

    /// Sends a frame and then `marker`, which has to come out at `to`: whether the frame came out too. Since a bridge
    /// keeps frames in their order, one that comes after the marker is not late but lost.
    #[must_use]
    pub fn arrives(&self, frame: &[u8], marker: &[u8], to: &Self) -> bool {
        self.send(frame);
        self.send(marker);
        to.until(marker).iter().any(|seen| same(seen, frame))
    }
}

/// Whether two frames are the same but for padding, which bridge netfilter cuts off.
#[must_use]
pub fn same(one: &[u8], other: &[u8]) -> bool {
    let bare = |frame: &[u8]| frame.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    one[..bare(one)] == other[..bare(other)]
}

/// `struct sockaddr_ll`: all protocols of one link.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: i32,
    hardware: u16,
    packet: u8,
    length: u8,
    address: [u8; 8],
}

impl LinkAddress {
    fn of(index: u32) -> Self {
        const ETH_P_ALL: u16 = 3;
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol: ETH_P_ALL.to_be(),
            index: i32::try_from(index).expect("index"),
            hardware: 0,
            packet: 0,
            length: 0,
            address: [0; 8],
        }
    }
}

// SAFETY: the pointer is to a `struct sockaddr_ll`, which `LinkAddress` is laid out as, and lives as long as `self`.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let length = SocketAddrLen::try_from(size_of::<Self>()).expect("20 bytes");
        f((&raw const *self).cast(), length)
    }
}
