//! The power goes at each moment of the store's work: what was acknowledged is there, what was not is absent or whole.
//!
//! strace(1) records what a program does to the store's files. Each prefix of that is played back to a file system that
//! keeps only what was synced, with more or less of the rest.

use shared::store::Store;
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Commits of the program; each writes its number to two records and a third of its own.
const COMMITS: u32 = 24;

/// One system call that matters.
#[derive(Clone, Debug)]
enum Call {
    Open {
        name: String,
        fd: i32,
        create: bool,
        truncate: bool,
    },
    Close(i32),
    Write {
        fd: i32,
        at: Option<usize>,
        data: Vec<u8>,
    },
    Truncate {
        fd: i32,
        length: usize,
    },
    Sync(i32),
    Rename(String, String),
    Unlink(String),
    /// The program knows that so many commits are done.
    Acknowledge(u32),
}

#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Writes since the last sync, for a disk that did some of them.
    pending: Vec<(usize, Vec<u8>)>,
}

/// A folder on a disk with a cache.
#[derive(Clone, Debug, Default)]
struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Inode and offset by descriptor; `None`: the folder itself.
    open: BTreeMap<i32, Option<(usize, usize)>>,
    acknowledged: u32,
}

impl Disk {
    fn play(&mut self, call: &Call) {
        match call {
            Call::Open { name, fd, create, truncate } => {
                if name.is_empty() {
                    self.open.insert(*fd, None);
                    return;
                }
                let inode = match self.names.get(name) {
                    Some(inode) => *inode,
                    None if *create => {
                        self.files.push(File::default());
                        self.names.insert(name.clone(), self.files.len() - 1);
                        self.files.len() - 1
                    }
                    None => panic!("{name} is not there"),
                };
                if *truncate {
                    self.files[inode].now.clear();
                }
                self.open.insert(*fd, Some((inode, 0)));
            }
            Call::Close(fd) => drop(self.open.remove(fd)),
            Call::Write { fd, at, data } => {
                let Some(Some((inode, offset))) = self.open.get_mut(fd) else { return };
                let place = at.unwrap_or(*offset);
                *offset = place + data.len();
                let file = &mut self.files[*inode];
                put(&mut file.now, place, data);
                file.pending.push((place, data.clone()));
            }
            Call::Truncate { fd, length } => {
                if let Some(Some((inode, _))) = self.open.get(fd) {
                    self.files[*inode].now.resize(*length, 0);
                }
            }
            Call::Sync(fd) => match self.open.get(fd) {
                Some(Some((inode, _))) => {
                    let file = &mut self.files[*inode];
                    file.durable = file.now.clone();
                    file.pending.clear();
                }
                Some(None) => self.durable_names = self.names.clone(),
                None => {}
            },
            Call::Rename(from, to) => {
                let inode = self.names.remove(from).expect("renamed");
                self.names.insert(to.clone(), inode);
            }
            Call::Unlink(name) => drop(self.names.remove(name)),
            Call::Acknowledge(number) => self.acknowledged = *number,
        }
    }

    /// What is on the disk after the power went. `luck` says how much there is beyond what was synced.
    fn after_power_loss(&self, luck: Luck, seed: u64) -> BTreeMap<String, Vec<u8>> {
        let names = if luck == Luck::None || (luck == Luck::Some && seed.is_multiple_of(2)) {
            &self.durable_names
        } else {
            &self.names
        };
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut content = |file: &File| match luck {
            Luck::None => file.durable.clone(),
            Luck::All => file.now.clone(),
            Luck::Some => {
                let mut bytes = file.durable.clone();
                for (place, data) in &file.pending {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    match random % 3 {
                        0 => {}
                        // Torn at the end of a sector.
                        1 => put(
                            &mut bytes,
                            *place,
                            &data[..data.len().min(512 * (1 + (random as usize >> 8) % 8))],
                        ),
                        _ => put(&mut bytes, *place, data),
                    }
                }
                bytes
            }
        };
        names.iter().map(|(name, inode)| (name.clone(), content(&self.files[*inode]))).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    None,
    Some,
    All,
}

fn put(bytes: &mut Vec<u8>, place: usize, data: &[u8]) {
    if bytes.len() < place + data.len() {
        bytes.resize(place + data.len(), 0);
    }
    bytes[place..place + data.len()].copy_from_slice(data);
}

/// The bytes of one of strace's strings, all in hexadecimal.
fn bytes(text: &str) -> Vec<u8> {
    text.split("\\x")
        .skip(1)
        .map(|digits| u8::from_str_radix(&digits[..2], 16).expect("hexadecimal"))
        .collect()
}

fn parse(line: &str, folder: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let result: i64 = result.split(' ').next()?.parse().ok()?;
    if result < 0 {
        return None;
    }
    let quoted: Vec<Vec<u8>> = arguments.split('"').skip(1).step_by(2).map(bytes).collect();
    let inside = |index: usize| {
        let path = String::from_utf8(quoted.get(index)?.clone()).ok()?;
        let name = path.strip_prefix(folder)?;
        Some(name.trim_start_matches('/').to_owned())
    };
    let number = |index: usize| arguments.split(", ").nth(index)?.trim().parse::<i64>().ok();
    let fd = number(0).and_then(|fd| i32::try_from(fd).ok());
    Some(match name {
        "openat" => Call::Open {
            name: inside(0)?,
            fd: i32::try_from(result).ok()?,
            create: arguments.contains("O_CREAT"),
            truncate: arguments.contains("O_TRUNC"),
        },
        "close" => Call::Close(fd?),
        "pwrite64" => {
            let at = usize::try_from(arguments.rsplit(", ").next()?.parse::<u64>().ok()?).ok()?;
            Call::Write { fd: fd?, at: Some(at), data: quoted.into_iter().next()? }
        }
        "write" if fd? == 1 => {
            let words = String::from_utf8(quoted.into_iter().next()?).ok()?;
            Call::Acknowledge(words.trim().strip_prefix("done ")?.parse().ok()?)
        }
        "write" => Call::Write { fd: fd?, at: None, data: quoted.into_iter().next()? },
        "ftruncate" => Call::Truncate { fd: fd?, length: usize::try_from(number(1)?).ok()? },
        "fsync" | "fdatasync" => Call::Sync(fd?),
        "rename" => Call::Rename(inside(0)?, inside(1)?),
        "unlink" => Call::Unlink(inside(0)?),
        other => panic!("{other} is not known"),
    })
}

/// All calls in the order in which they ended; strace cuts a line in two where another thread is in between.
fn calls(log: &str, folder: &str) -> Vec<Call> {
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((pid, call)) = line.trim().split_once(' ') else { continue };
        let call = call.trim();
        if let Some(part) = call.strip_suffix("<unfinished ...>") {
            begun.insert(pid, part.trim_end().to_owned());
        } else if call.starts_with("<... ") {
            let rest = call.split_once("resumed>").expect("resumed").1;
            let whole = begun.remove(pid).expect("begun") + rest.trim_start();
            calls.extend(parse(&whole, folder));
        } else {
            calls.extend(parse(call, folder));
        }
    }
    calls
}

#[test]
fn what_was_acknowledged_survives_power_loss_and_the_rest_is_whole_or_absent() {
    let dir = tempfile::tempdir().expect("folder");
    let (folder, log) = (dir.path().join("state"), dir.path().join("log"));
    fs::create_dir(&folder).expect("folder");
    let program = integration_tests::host::program_path("store-writer");
    integration_tests::netns::run(
        Command::new("strace")
            .args(["-f", "-xx", "-s", "10000000", "-o", &log.display().to_string()])
            .args(["-e", "trace=openat,close,pwrite64,write,ftruncate,fsync,fdatasync,rename,unlink"])
            .arg(program)
            .args([folder.display().to_string(), COMMITS.to_string()]),
    );
    let text = fs::read_to_string(&log).expect("log");
    let calls = calls(&text, &folder.display().to_string());
    let syncs = calls.iter().filter(|call| matches!(call, Call::Sync(_))).count();
    assert!(calls.len() > 150 && syncs > COMMITS as usize, "{} calls, {syncs} syncs", calls.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut disk = Disk::default();
    let (mut cuts, mut ahead, mut last) = (0, 0, None);
    let lucks: Vec<(Luck, u64)> = if integration_tests::soak() {
        [(Luck::None, 0), (Luck::All, 0)].into_iter().chain((0..20).map(|seed| (Luck::Some, seed))).collect()
    } else {
        vec![(Luck::None, 0), (Luck::All, 0), (Luck::Some, 1), (Luck::Some, 2)]
    };
    for (at, call) in calls.iter().enumerate() {
        disk.play(call);
        for (luck, seed) in &lucks {
            let left = disk.after_power_loss(*luck, seed + 2 * at as u64);
            let key = (left.clone(), disk.acknowledged);
            // The very same was looked at before.
            if last.as_ref() == Some(&key) {
                continue;
            }
            last = Some(key);
            let found =
                runtime.block_on(check(&left, disk.acknowledged, &format!("{at} {luck:?} {seed}: {call:?}")));
            ahead += u32::from(found > disk.acknowledged);
            cuts += 1;
        }
    }
    assert_eq!(disk.acknowledged, COMMITS);
    assert!(ahead > 0, "no commit was ever found that was not acknowledged yet");
    println!(
        "{} system calls, {syncs} of them syncs: {cuts} power cuts, 0 acknowledged commits lost, 0 half ones; {ahead} \
         unacknowledged ones were there as a whole",
        calls.len()
    );
}

/// Opens what is left; returns the last commit that is there.
async fn check(left: &BTreeMap<String, Vec<u8>>, acknowledged: u32, at: &str) -> u32 {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("folder");
    for (name, bytes) in left {
        fs::write(dir.path().join(name), bytes).expect("write");
    }
    let describe = || left.iter().map(|(name, bytes)| format!("{name}:{}", bytes.len())).collect::<Vec<_>>();
    let store = Store::open(Path::new(dir.path())).unwrap_or_else(|fault| {
        panic!("{at}: after {acknowledged} commits: {}: {:?}", fault.chain(), describe())
    });
    let first = store.load::<u32>("first").await.expect("first");
    let second = store.load::<u32>("second").await.expect("second");
    let own = store.load::<u32>("own").await.expect("own");
    assert!(first.broken.is_empty() && second.broken.is_empty() && own.broken.is_empty(), "{at}");
    let value = |records: &[(String, u32)]| records.first().map_or(0, |(_, number)| *number);
    let number = value(&first.records);
    assert_eq!(number, value(&second.records), "{at}: half a commit");
    assert_eq!(own.records.len(), number as usize, "{at}: half a commit");
    assert!(
        number == acknowledged || number == acknowledged + 1,
        "{at}: commit {number} is the last, and {acknowledged} were acknowledged: {:?}",
        describe()
    );
    number
}
