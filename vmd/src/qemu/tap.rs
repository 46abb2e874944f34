//! Opens taps that netd made.

use rustix::{
    ioctl::{Setter, ioctl, opcode},
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
};
use shared::fault::{Fault, Kind};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

const TUN: &str = "/dev/net/tun";
/// IFNAMSIZ of <linux/if.h>, with the final zero.
const NAME_SIZE: usize = 16;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);

/// `struct ifreq` of <linux/if.h>: the name, then a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_SIZE],
    flags: u16,
    rest: [u8; 22],
}

/// The kernel's number of an interface; `None` if there is none of that name.
#[must_use]
pub fn index(interface: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    name_to_index(socket, interface).ok()
}

/// Opens the tap `interface` without privileges: netd made this user its owner.
///
/// # Errors
/// FAILED_PRECONDITION or PERMISSION_DENIED that tells which of device node, interface and owner is in the way.
pub fn open(interface: &str, owner_uid: u32) -> Result<File, Fault> {
    let failed =
        |kind, why: String| Fault::new(kind, "TAP", format!("cannot open the tap `{interface}`: {why}"));
    // A missing tap would be made here, by a vmd that may.
    if !Path::new("/sys/class/net").join(interface).exists() {
        return Err(failed(Kind::FailedPrecondition, "there is no such interface".to_owned())
            .hint("netd and vmd must run in the same network namespace"));
    }
    let mut name = [0; NAME_SIZE];
    if interface.len() >= NAME_SIZE {
        return Err(failed(Kind::Internal, "its name is too long".to_owned()));
    }
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    let denied = |error: &io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
        _ => Kind::FailedPrecondition,
    };
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let tun =
        OpenOptions::new().read(true).write(true).custom_flags(nonblock).open(TUN).map_err(|error| {
            failed(denied(&error), format!("cannot open {TUN}")).cause(&error).hint(format!(
                "vmd's user must be able to read and write {TUN}, which is 0666 on most systems"
            ))
        })?;
    let request = InterfaceRequest { name, flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `InterfaceRequest` is laid out as, and writes nothing that
    // matters here.
    let attached = unsafe { ioctl(&tun, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) };
    attached.map_err(|errno| {
        let error = io::Error::from(errno);
        let fault = failed(denied(&error), "the kernel refused to attach to it".to_owned()).cause(&error);
        match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => {
                fault.hint("another program has it open: stop that one")
            }
            _ => fault.hint(format!(
                "the port belongs to uid {owner_uid} and vmd runs as uid {}: they have to be the same",
                rustix::process::geteuid().as_raw()
            )),
        }
    })?;
    Ok(tun)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_request_has_the_layout_of_the_kernel() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
    }

    #[test]
    fn a_tap_that_is_not_there_is_not_made() {
        let fault = open("kv-none-here", 0).unwrap_err();
        assert!(fault.to_string().contains("kv-none-here"), "{fault}");
        assert!(fault.hints()[0].contains("namespace"));
    }
}
