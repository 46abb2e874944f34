//! Capture filters: libpcap's language made into a classic BPF program by tcpdump(8), in a child that can do nothing
//! else. It runs without a device, so what it reads is the filter's text and never a frame.

use rustix::{
    process::{Gid, Resource, Rlimit, Uid, geteuid, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use shared::{
    fault::{Fault, Kind},
    name::printable,
};
use std::{io, process::Stdio, time::Duration};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

/// Longest text of a filter, bytes.
pub const LONGEST: usize = 4096;
/// Longest run of tcpdump; a filter takes milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// Processor seconds and bytes of address space of that run.
const MOST_CPU: u64 = 2;
const MOST_MEMORY: u64 = 512 << 20;
/// Most instructions that the kernel takes (`BPF_MAXINSNS` of include/uapi/linux/bpf_common.h).
const MOST_INSTRUCTIONS: usize = 4096;
/// Most bytes of a program as text that are read; no filter of the longest text comes near it.
const MOST_OUTPUT: u64 = 1 << 20;
/// Most bytes of tcpdump's complaint that are read.
const MOST_WORDS: u64 = 4096;
/// Who has no files; as the kernel's overflow uid.
const NOBODY: u32 = 65_534;

/// A classic BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(pub(super) Vec<Instruction>);

/// As `struct sock_filter`: code, jump if true, jump if false, operand.
pub(super) type Instruction = (u16, u8, u8, u32);

/// Compiles a filter for Ethernet. The program keeps `snap_length` bytes of a frame; an empty filter takes all.
///
/// # Errors
/// INVALID_ARGUMENT with tcpdump's own words, FAILED_PRECONDITION if it is missing.
#[tracing::instrument(level = "info", skip_all)]
pub async fn compile(filter: &str, snap_length: u32) -> Result<Program, Fault> {
    if filter.is_empty() {
        return Ok(Program(vec![(RETURN, 0, 0, snap_length)]));
    }
    check(filter)?;
    let program = parse(&run(filter, snap_length).await?).ok_or_else(|| {
        Fault::new(Kind::Internal, "TCPDUMP", "tcpdump printed something that is no program")
    })?;
    if program.0.len() > MOST_INSTRUCTIONS {
        return Err(refused("the filter is too long a program for the kernel").hint("write a simpler one"));
    }
    Ok(program)
}

/// `BPF_RET | BPF_K`: the operand is how many bytes are kept.
const RETURN: u16 = 6;

/// A filter that cannot be.
pub(super) fn refused(message: impl Into<String>) -> Fault {
    Fault::new(Kind::InvalidArgument, "INVALID_FILTER", message)
}

pub(crate) fn check(filter: &str) -> Result<(), Fault> {
    if filter.len() > LONGEST {
        return Err(refused(format!("the filter has {} bytes, and {LONGEST} is the most", filter.len())));
    }
    if let Some(bad) = filter.chars().find(|c| !matches!(c, ' '..='~')) {
        return Err(refused(format!("`{}` has no place in a filter", bad.escape_debug()))
            .hint("write it in printable ASCII, on one line"));
    }
    // tcpdump would not take it for an option; whoever wrote it meant one.
    if filter.trim_start().starts_with('-') {
        return Err(refused(format!("`{}` is no filter", printable(filter)))
            .hint("options of tcpdump have no meaning here; pcap-filter(7) describes the filters"));
    }
    // Before a packet socket the kernel takes the tag off the frame, where tcpdump's program would look for it.
    if filter.split(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).any(|word| word == "vlan") {
        return Err(refused("`vlan` cannot be used in a filter")
            .hint("capture without it, and use it when you read the file: tcpdump -r FILE vlan"));
    }
    Ok(())
}

async fn run(filter: &str, snap_length: u32) -> Result<String, Fault> {
    let failed = |what: &str| Fault::new(Kind::Internal, "TCPDUMP", what);
    let mut command = Command::new("tcpdump");
    command
        // `-ddd`: print the program as numbers and end. With `-y` no device is opened to ask for its link type.
        .args(["-ddd", "-y", "EN10MB", "-s", &snap_length.to_string(), "--", filter])
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(confine) };
    let mut child = command.spawn().map_err(|error| {
        let fault = failed("cannot run tcpdump").with_kind(Kind::FailedPrecondition).cause(&error);
        fault.hint("a filter needs it: install tcpdump, or capture without a filter")
    })?;
    let (mut output, mut words) = (String::new(), String::new());
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed("tcpdump has no output"));
    };
    let finish = async {
        let (mut stdout, mut stderr) = (stdout.take(MOST_OUTPUT), stderr.take(MOST_WORDS));
        tokio::try_join!(stdout.read_to_string(&mut output), stderr.read_to_string(&mut words))?;
        // One that has more to say than is read would wait for ever.
        drop((stdout, stderr));
        child.wait().await
    };
    let status = timeout(LIMIT, finish)
        .await
        .map_err(|_| refused("the filter takes too long to compile").hint("write a simpler one"))?
        .map_err(|e| failed("cannot read tcpdump's answer").cause(&e))?;
    if status.success() {
        return Ok(output);
    }
    let words = words.lines().last().unwrap_or("tcpdump said nothing");
    let words = words.strip_prefix("tcpdump: ").unwrap_or(words).to_owned();
    Err(refused("tcpdump cannot compile the filter")
        .cause(&io::Error::other(words))
        .hint("pcap-filter(7) describes the filters; hosts are named by address"))
}

/// Leaves the child nothing but its arguments: no user, no capability, no socket, little time and memory.
fn confine() -> io::Result<()> {
    if geteuid().is_root() {
        // Best effort, since a root without CAP_SETUID is no danger: what follows takes its capabilities.
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        let _ = set_thread_groups(&[])
            .and_then(|()| set_thread_res_gid(group, group, group))
            .and_then(|()| set_thread_res_uid(user, user, user));
    }
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    for (resource, most) in
        [(Resource::Cpu, MOST_CPU), (Resource::As, MOST_MEMORY), (Resource::Fsize, 0), (Resource::Core, 0)]
    {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    forbid_sockets()
}

/// A filter may name hosts, and netd asks no name server on behalf of its clients: socket(2) fails from now on.
fn forbid_sockets() -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // `struct seccomp_data` begins with the number of the call.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_socket as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads `program` and the four instructions it points to, which live until it returns.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of instructions, then one a line.
pub(crate) fn parse(text: &str) -> Option<Program> {
    let mut lines = text.lines();
    let count: usize = lines.next()?.trim().parse().ok()?;
    let instructions = lines.map(instruction).collect::<Option<Vec<_>>>()?;
    (instructions.len() == count && count > 0).then_some(Program(instructions))
}

fn instruction(line: &str) -> Option<Instruction> {
    let mut words = line.split_ascii_whitespace();
    let instruction = (
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
    );
    words.next().is_none().then_some(instruction)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_filter_becomes_the_program_that_keeps_the_snap_length() {
        assert_eq!(compile("", 77).await.unwrap(), Program(vec![(RETURN, 0, 0, 77)]));
        let arp = compile("arp", 77).await.unwrap();
        // Load the type, compare, keep 77 bytes or none.
        assert_eq!(arp, Program(vec![(40, 0, 0, 12), (21, 0, 1, 0x0806), (6, 0, 0, 77), (6, 0, 0, 0)]));
        let longer = compile("tcp port 80 and not (src net 10.0.0.0/8 or ip6 host fd00::1)", 77).await;
        assert!(longer.unwrap().0.len() > 10);
    }

    #[tokio::test]
    async fn what_is_no_filter_is_refused_with_the_reason() {
        let protochains = vec!["ip6 protochain 7"; 200].join(" or ");
        let long = "arp or ".repeat(600) + "arp";
        for (filter, part) in [
            ("tcp prot 80", "syntax error"),
            ("--help", "is no filter"),
            ("-w /tmp/x", "is no filter"),
            ("  -F /etc/shadow", "is no filter"),
            ("arp -w /tmp/x", "syntax error"),
            ("arp\n-w /tmp/x", "has no place"),
            ("arp\0", "has no place"),
            ("host bücher.example", "has no place"),
            ("vlan 5 and arp", "`vlan` cannot be used"),
            ("arp or(vlan)", "`vlan` cannot be used"),
            (&protochains, "too long a program"),
            (&long, "4096 is the most"),
        ] {
            let fault = compile(filter, 100).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::InvalidArgument, "{filter}");
            assert!(fault.chain().contains(part), "{filter}: {}", fault.chain());
        }
    }

    #[tokio::test]
    async fn no_name_server_is_asked() {
        let began = Instant::now();
        let fault = compile("host kvmctl.example", 100).await.unwrap_err();
        assert!(fault.chain().contains("unknown host"), "{}", fault.chain());
        assert!(began.elapsed() < LIMIT, "it was killed");
    }

    #[test]
    fn only_a_whole_program_is_taken() {
        assert_eq!(parse("1\n6 0 0 96\n"), Some(Program(vec![(6, 0, 0, 96)])));
        for bad in ["", "0\n", "2\n6 0 0 96\n", "1\n6 0 0\n", "1\n6 0 0 96 7\n", "1\n6 0 0 -1\n", "x\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
