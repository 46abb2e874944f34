//! The supplementary groups of the process at the other end, which rustix has no option for.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _},
};

/// Enough for nearly everybody; the kernel says how many there are if not.
const USUAL: usize = 32;

/// The groups that the peer of a Unix socket had when it connected (SO_PEERGROUPS).
///
/// # Errors
/// What the kernel said.
pub fn of_peer(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; USUAL];
    loop {
        let bytes = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the buffer has `length` bytes and outlives the call, which writes no more than that and any bytes
        // of which are valid numbers.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // Too small: the length is now the one that is needed.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::{collections::BTreeSet, os::unix::net::UnixStream};

    #[test]
    fn they_are_the_kernels() {
        let (end, _other) = UnixStream::pair().unwrap();
        let found: BTreeSet<u32> = of_peer(&end).unwrap().into_iter().collect();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let expected: BTreeSet<u32> = line.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        assert_eq!(found, expected);
    }
}
