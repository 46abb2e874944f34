//! A packet socket on one link (packet(7)): it hears what passes, and sends nothing.

use super::bpf::{self, Program};
use crate::model::IfName;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with},
};
use shared::fault::{Fault, Kind};
use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};
use tokio::io::unix::AsyncFd;

/// Frames that wait in the kernel for us, in bytes of its memory; what does not fit is dropped and counted.
const BUFFER: c_int = 4 << 20;
/// `ETH_P_ALL` in network byte order: frames of all types, both ways.
const ALL_TYPES: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Length of the two MACs, after which a VLAN tag stands.
const MACS: usize = 12;
/// Length of a VLAN tag.
const TAG: usize = 4;

/// A socket that hears one link.
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
    link: IfName,
    index: u32,
    statistics: Statistics,
}

/// What the kernel counted since the socket was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the filter took, dropped ones included.
    pub taken: u64,
    /// Frames of these for which there was no room.
    pub dropped: u64,
}

/// A frame that passed the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its first bytes, as many as the filter and the buffer let through.
    pub data: &'a [u8],
    /// How long it was.
    pub length: usize,
    /// When it passed, since the Unix epoch.
    pub time: Duration,
    /// Whether the host sent it: on a tap, towards the guest.
    pub outgoing: bool,
}

impl PacketSocket {
    /// Hears `link`, as much as `program` lets through.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if netd may not, or there is no such link.
    pub fn open(link: &IfName, program: &Program) -> Result<Self, Fault> {
        let failed = |what: &str, error: io::Error| {
            Fault::new(Kind::FailedPrecondition, "PACKET_SOCKET", what).cause(&error)
        };
        // Bound to no protocol it hears nothing, so no frame comes in before the filter is there.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).map_err(|error| {
            let fault = failed("cannot open a packet socket", error.into());
            if error == Errno::PERM {
                fault.hint("give netd CAP_NET_RAW: it needs it for captures only")
            } else {
                fault
            }
        })?;
        let index = netdevice::name_to_index(&socket, link.as_str())
            .map_err(|e| failed(&format!("link `{link}` is not there"), e.into()))?;
        let mut instructions: Vec<_> =
            program.0.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
        let filter = libc::sock_fprog {
            len: u16::try_from(instructions.len()).unwrap_or(u16::MAX),
            filter: instructions.as_mut_ptr(),
        };
        // SAFETY: the filter points to `instructions`, which the kernel copies.
        unsafe { set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter) }.map_err(|error| {
            // libpcap makes loops of `protochain`, which the kernel runs none of.
            bpf::refused("the kernel does not take the filter")
                .cause(&error)
                .hint("write a simpler one; `protochain` cannot be used")
        })?;
        let bind = || {
            // SAFETY: these options are numbers.
            unsafe {
                set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1)?;
                set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1)?;
                set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER)?;
            }
            bind(&socket, index)
        };
        bind().map_err(|e| failed(&format!("cannot capture on link `{link}`"), e))?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `AsyncFd` owns it.
        let socket =
            unsafe { AsyncFd::register(socket) }.map_err(|e| failed("cannot wait for frames", e.into()))?;
        Ok(Self { socket, link: link.clone(), index, statistics: Statistics::default() })
    }

    /// Waits for the next frame and puts it into `buffer`, which is to have room for the snap length and a VLAN tag.
    ///
    /// # Errors
    /// ENETDOWN when the link goes down or away, once.
    pub async fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Frame<'a>> {
        let heard = self.socket.async_io(tokio::io::Interest::READABLE, |fd| receive(fd, buffer)).await?;
        Ok(heard.frame(buffer))
    }

    /// As `receive`, but `None` if no frame waits.
    ///
    /// # Errors
    /// As `receive`.
    pub fn try_receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<Frame<'a>>> {
        match receive(self.socket.get_ref(), buffer) {
            Ok(heard) => Ok(Some(heard.frame(buffer))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the link is still there; another one of its name is not it.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        netdevice::name_to_index(self.socket.get_ref(), self.link.as_str()) == Ok(self.index)
    }

    /// What the kernel counted so far.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn statistics(&mut self) -> io::Result<Statistics> {
        // SAFETY: plain numbers, for which zero is a value.
        let mut since: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut length = size_of_u32::<libc::tpacket_stats>();
        // SAFETY: the kernel writes at most `length` bytes, which is the size of `since`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.get_ref().as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut since).cast(),
                &raw mut length,
            )
        };
        check(result)?;
        // The kernel starts again from zero at each look.
        self.statistics.taken += u64::from(since.tp_packets);
        self.statistics.dropped += u64::from(since.tp_drops);
        Ok(self.statistics)
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For structs of a few dozen bytes.
fn size_of_u32<T>() -> u32 {
    mem::size_of::<T>() as u32
}

/// # Safety
/// `T` must be what the option reads, pointers in it included.
unsafe fn set<T>(socket: &OwnedFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `value` has.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_u32::<T>(),
        )
    })
}

fn bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ALL_TYPES;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the kernel reads one `sockaddr_ll`.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_u32::<libc::sockaddr_ll>())
    })
}

/// A frame in a buffer, whose VLAN tag is back in its place.
struct Heard {
    kept: usize,
    length: usize,
    time: Duration,
    outgoing: bool,
}

impl Heard {
    fn frame<'a>(&self, buffer: &'a [u8]) -> Frame<'a> {
        let Self { kept, length, time, outgoing } = *self;
        Frame { data: &buffer[..kept], length, time, outgoing }
    }
}

/// Room for the two control messages that were asked for, aligned as they have to be.
#[repr(C, align(8))]
struct Control([u8; 128]);

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Heard> {
    let room = buffer.len().saturating_sub(TAG);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room };
    let mut control = Control([0; 128]);
    // SAFETY: plain numbers and pointers, for which zero is a value.
    let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of_u32::<libc::sockaddr_ll>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = mem::size_of::<Control>();
    // SAFETY: name, buffer and control are as long as the message says, and live until recvmsg returns.
    let kept = loop {
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
        match usize::try_from(result) {
            Ok(kept) => break kept,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let mut heard = Heard {
        kept,
        length: kept,
        time: Duration::ZERO,
        outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
    };
    // SAFETY: the kernel has filled in the control messages, and the macros stay within `msg_controllen`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: a header that the macros returned is whole, and the data is of the type that level and type name.
        unsafe {
            let data = libc::CMSG_DATA(next);
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    let time = data.cast::<libc::timespec>().read_unaligned();
                    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
                    heard.time = Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0));
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                    heard.describe(&data.cast::<libc::tpacket_auxdata>().read_unaligned(), buffer);
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(&raw const message, next);
        }
    }
    Ok(heard)
}

impl Heard {
    /// The kernel tells the whole length apart from the frame, and the VLAN tag, which it has taken off.
    fn describe(&mut self, aux: &libc::tpacket_auxdata, buffer: &mut [u8]) {
        self.length = usize::try_from(aux.tp_len).unwrap_or(self.kept);
        if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 || self.kept < MACS {
            return;
        }
        let has_type = aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
        let ethertype = if has_type { aux.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
        buffer.copy_within(MACS..self.kept, MACS + TAG);
        buffer[MACS..MACS + 2].copy_from_slice(&ethertype.to_be_bytes());
        buffer[MACS + 2..MACS + TAG].copy_from_slice(&aux.tp_vlan_tci.to_be_bytes());
        self.kept += TAG;
        self.length += TAG;
    }
}
