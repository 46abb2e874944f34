//! Making a tap through /dev/net/tun; the kernel's drivers/net/tun.c is the reference.

use crate::model::IfName;
use rustix::{
    fs::{Mode, OFlags, open},
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode},
};
use std::{ffi::c_void, io, os::fd::OwnedFd};

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_TUN_EXCL: u16 = 0x8000;

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A tap that goes away with this value unless `persist` was called.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Makes a new tap, down.
    ///
    /// # Errors
    /// EBUSY if there is a link of that name; what open(2) or the ioctl said.
    pub fn create(name: &IfName) -> io::Result<Self> {
        let fd = open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
        let mut request =
            IfReq { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL, rest: [0; 22] };
        request.name[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is laid out as.
        unsafe { ioctl(&fd, Call { opcode: TUNSETIFF, argument: (&raw mut request).cast() })? };
        Ok(Self(fd))
    }

    /// Lets this uid open the tap without capabilities.
    ///
    /// # Errors
    /// EINVAL if the user namespace does not map the uid.
    pub fn set_owner(&self, uid: u32) -> io::Result<()> {
        self.set(TUNSETOWNER, uid as usize)
    }

    /// Lets the tap outlive this value.
    ///
    /// # Errors
    /// What the ioctl said.
    pub fn persist(self) -> io::Result<()> {
        self.set(TUNSETPERSIST, 1)
    }

    fn set(&self, opcode: Opcode, value: usize) -> io::Result<()> {
        // SAFETY: both ioctls take their argument by value and touch no memory.
        unsafe { ioctl(&self.0, Call { opcode, argument: value as *mut c_void })? };
        Ok(())
    }
}

/// An ioctl whose argument is a pointer, or a number in its place.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: opcode and argument are passed on as given; nothing is read back.
unsafe impl Ioctl for Call {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }
    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}
