//! Spawns dnsmasq behind a gate.
//!
//! netd runs itself as the child, which waits at its standard input until netd has recorded it, and then becomes dnsmasq
//! in the same process, confined to what dnsmasq needs. If netd dies first the pipe closes and the child ends: there is never a dnsmasq that the next
//! netd does not know of. The child of a cell makes the namespaces first, and says so on its standard output.

use super::{confine::confine, folder::MOST_LEASES};
use crate::kernel::cell;
use ipnet::IpNet;
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, geteuid},
    thread::{
        CapabilitySet, UnshareFlags, capabilities, configure_capability_in_ambient_set, set_capabilities,
    },
};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

/// First argument of the child; hidden, since it is of no use to people.
const COMMAND: &str = "__service";
const CONFIG: &str = "--conf-file=";
/// As a shell reports a command that cannot be executed.
const CANNOT_EXECUTE: u8 = 127;
/// What dnsmasq needs: its ports, raw frames to clients without an address, and the neighbour table.
pub const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
];

/// Starts the child, which waits. Dropping its standard input ends it, a byte there lets it go on. Addresses make it a
/// cell: they are those of its `eth0`.
///
/// # Errors
/// If there is no process or descriptor left.
pub fn spawn(binary: &Path, config: &Path, cell: Option<&[IpNet]>, log: File) -> io::Result<Child> {
    // The file may have been replaced by an update; this is what runs.
    let mut command = Command::new("/proc/self/exe");
    let addresses = cell.map(|nets| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    command
        .arg(COMMAND)
        .arg(addresses.map_or_else(|| "host".to_owned(), |nets| format!("cell:{nets}")))
        .arg(binary)
        .arg(config_argument(config))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log);
    command.spawn()
}

/// How the program is told its configuration, by which it is also recognized.
pub fn config_argument(config: &Path) -> OsString {
    let mut argument = OsString::from(CONFIG);
    argument.push(config);
    argument
}

/// The folder that the configuration is in.
fn config_folder(argument: &OsString) -> Option<PathBuf> {
    let path = argument.to_str()?.strip_prefix(CONFIG)?;
    Path::new(path).parent().map(Path::to_owned)
}

/// The child: `None` if this process is not one. It returns only where it fails; its stderr is the service's log.
pub fn child_main(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    args.next()?;
    if args.next()? != COMMAND {
        return None;
    }
    let result = args.next().ok_or_else(|| io::Error::other("no place")).and_then(|place| {
        let binary = args.next().ok_or_else(|| io::Error::other("no program"))?;
        let args: Vec<_> = args.collect();
        let folder = args.first().and_then(config_folder).ok_or_else(|| io::Error::other("no folder"))?;
        prepare(&place.to_string_lossy())?;
        // What it lacks netd says, which has tried it.
        confine(Path::new(&binary), &folder).map_err(|e| failed("confine dnsmasq", e))?;
        let error = Command::new(&binary)
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .exec();
        Err::<(), _>(io::Error::new(error.kind(), format!("cannot execute `{}`: {error}", binary.display())))
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            eprintln!("netd went away before the service was recorded");
        }
        Err(error) => eprintln!("{error}"),
        Ok(()) => {}
    }
    Some(ExitCode::from(CANNOT_EXECUTE))
}

/// Cuts the process off from netd's session and from what it does not need, and waits at the gate.
fn prepare(place: &str) -> io::Result<()> {
    rustix::process::setsid()?;
    // The run folder is in memory.
    for (resource, most) in [(Resource::Core, 0), (Resource::Fsize, MOST_LEASES)] {
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    // Then a write past the limit fails and the server goes on: netd, which cuts the log off, may be away for long.
    // SAFETY: no handler is installed, and this process has one thread.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::umask(Mode::from_raw_mode(0o027));
    let cell = place.strip_prefix("cell:");
    if cell.is_some() {
        enter_own_namespace()?;
        io::stdout().write_all(b"!")?;
        io::stdout().flush()?;
    }
    io::stdin().read_exact(&mut [0])?;
    if let Some(addresses) = cell {
        let addresses = addresses.split(',').map(|net| net.parse().map_err(io::Error::other));
        cell::furnish(&addresses.collect::<io::Result<Vec<_>>>()?)?;
    }
    // Root's program has root's capabilities anyway, and gives them up itself.
    if !geteuid().is_root() { keep_capabilities() } else { Ok(()) }
}

/// A network namespace of its own; where netd may not make one, in a user namespace of its own, in which it is still
/// the same user.
fn enter_own_namespace() -> io::Result<()> {
    let unshare = |flags| {
        // SAFETY: this process has one thread, and neither flag touches its memory or descriptors.
        unsafe { rustix::thread::unshare_unsafe(flags) }
    };
    match unshare(UnshareFlags::NEWNET) {
        Err(rustix::io::Errno::PERM) => {}
        result => return result.map_err(|e| failed("make a network namespace", e.into())),
    }
    let (uid, gid) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)
        .map_err(|e| failed("make a user namespace (user.max_user_namespaces)", e.into()))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes()).map_err(|e| failed(file, e))?;
    }
    Ok(())
}

fn failed(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}

/// Lets the program that comes after exec(2) have what it needs, although it is not root.
fn keep_capabilities() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    for (capability, name) in NEEDED {
        if !sets.permitted.contains(capability) {
            return Err(io::Error::other(format!("netd lacks {name}")));
        }
        sets.inheritable |= capability;
    }
    set_capabilities(None, sets)?;
    for (capability, _) in NEEDED {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// User and group for dnsmasq, by name, and the number of the group: Debian's package has a user for it.
#[must_use]
pub fn user() -> Option<(String, String, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let groups = fs::read_to_string("/etc/group").ok()?;
    user_of(&passwd, &groups)
}

fn user_of(passwd: &str, groups: &str) -> Option<(String, String, u32)> {
    let gid = |user: &str| {
        let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f[0] == user)?;
        line.get(3)?.parse::<u32>().ok()
    };
    let group = |gid: u32| {
        let line = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
        line.into_iter().find(|f| f.get(2).is_some_and(|id| *id == gid.to_string())).map(|f| f[0].to_owned())
    };
    ["dnsmasq", "nobody"].into_iter().find_map(|user| {
        let gid = gid(user)?;
        Some((user.to_owned(), group(gid)?, gid))
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn dnsmasqs_own_user_is_taken_if_there_is_one() {
        let groups = "root:x:0:\nnogroup:x:65534:\n";
        let passwd = "root:x:0:0::/:\nnobody:x:65534:65534::/:\n";
        let nobody = Some(("nobody".to_owned(), "nogroup".to_owned(), 65534));
        assert_eq!(user_of(passwd, groups), nobody);
        let both = format!("{passwd}dnsmasq:x:999:65534::/:\n");
        assert_eq!(user_of(&both, groups).unwrap().0, "dnsmasq");
        // A user of a group that nobody knows is of no use.
        assert_eq!(user_of(&format!("{passwd}dnsmasq:x:999:7::/:\n"), groups), nobody);
        assert_eq!(user_of("", ""), None);
    }
}
