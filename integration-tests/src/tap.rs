//! Opening a tap as any program would, through /dev/net/tun.

use rustix::{
    fs::{Mode, OFlags, open},
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode},
};
use std::{ffi::c_void, io, os::fd::OwnedFd};

const IFF_TAP_NO_PI: u16 = 0x0002 | 0x1000;

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

struct SetIff(IfReq);

// SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `IfReq` is laid out as.
unsafe impl Ioctl for SetIff {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::write::<i32>(b'T', 202)
    }
    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Opens the tap `name` of the present namespace, or makes it. One frame a read or write.
///
/// # Errors
/// What open(2) or the ioctl said.
///
/// # Panics
/// If the name is too long.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let fd = open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let mut request = IfReq { name: [0; 16], flags: IFF_TAP_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: see `SetIff`.
    unsafe { ioctl(&fd, SetIff(request))? };
    Ok(fd)
}
