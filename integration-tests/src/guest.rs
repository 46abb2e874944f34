//! A guest without a machine: a namespace whose eth0 is wired to a port's tap.
//!
//! What it sends comes out of the tap exactly as from QEMU, so every rule sees it, and it costs milliseconds.

use crate::{netns::Netns, tap::open_tap};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, read, write},
};
use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
};

/// Larger than any frame of an MTU that tests use.
const FRAME: usize = 10_000;

/// A namespace that is a guest on a port.
#[derive(Debug)]
pub struct Guest {
    /// Where it lives.
    pub netns: Netns,
    stop: Arc<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    /// Plugs a new guest into the tap `interface` of `host`. Its eth0 has `mac`, is up and has no address.
    ///
    /// # Panics
    /// If the tap cannot be opened.
    #[must_use]
    pub fn plug(host: &Netns, interface: &str, mac: &str) -> Self {
        host.enter(|| Self::plug_here(interface, mac))
    }

    /// As `plug`, into a tap of the present namespace.
    ///
    /// # Panics
    /// If the tap cannot be opened.
    #[must_use]
    pub fn plug_here(interface: &str, mac: &str) -> Self {
        let netns = Netns::new("guest");
        let port = open_tap(interface).unwrap_or_else(|e| panic!("open tap {interface}: {e}"));
        let nic = netns.enter(|| open_tap("eth0")).expect("make eth0");
        netns.sh(&format!("ip link set eth0 address {mac} up"));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"));
        let watch = Arc::clone(&stop);
        let pump = std::thread::spawn(move || pump(&port, &nic, &watch));
        Self { netns, stop, pump: Some(pump) }
    }

    /// Gives eth0 addresses, usable at once; it may have formed one of them by itself.
    pub fn addresses(&self, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.netns.sh(&format!("ip address replace {address} dev eth0 {nodad}"));
        }
    }

    /// Makes these the gateways, whether or not they are in a subnet of the guest, in place of one that it has heard of.
    pub fn gateways(&self, gateways: &[&str]) {
        for gateway in gateways {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            self.netns.sh(&format!("ip {family} route replace default via {gateway} dev eth0 onlink"));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// Carries frames both ways until told to stop or until one end is gone.
fn pump(port: &OwnedFd, nic: &OwnedFd, stop: &OwnedFd) {
    let mut frame = vec![0; FRAME];
    loop {
        let mut ready = [
            PollFd::new(port, PollFlags::IN),
            PollFd::new(nic, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if !ready[2].revents().is_empty() {
            return;
        }
        for (from, to) in [(port, nic), (nic, port)] {
            loop {
                match read(from.as_fd(), &mut frame) {
                    // A frame that the other end cannot take is lost, as on a wire.
                    Ok(length) => drop(write(to.as_fd(), &frame[..length])),
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(_) => return,
                }
            }
        }
    }
}
