//! A program that takes QEMU's command line, picks up the sockets it inherits, and speaks QMP, well or badly.
//!
//! `FAKE_QEMU` says how; `by-name`: the first part of the machine's name does, and any other name means `ok`.
//!
//! - `ok` (also if unset);
//! - `refuse`: fails at once, with a message;
//! - `mute`: never greets;
//! - `crash`: dies of signal 11 once the guest runs;
//! - `lie`: sends replies nobody asked for, unknown events and a false status;
//! - `flood`: sends events and writes to the serial port without end;
//! - `gush`: writes as many MiB as `FAKE_QEMU_MIB` says to the serial port, then how long the slowest write took;
//! - `deaf`: does not react to the power button;
//!
//! and these, each from the moment on in which the guest runs, on every connection:
//!
//! - `hang`: never answers; `late`: answers after 6 s; `wrong`: answers with other ids; `half`: begins an answer;
//! - `close`: closes; `garbage`: sends what is no JSON; `deep`: JSON that is nested 100,000 deep;
//! - `line`: sends 100 MB without the end of a line; `storm`: answers, with 20,000 events after each answer.

use serde_json::{Value, json};
use std::{
    env,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::{FromRawFd as _, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::{self, ExitCode},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const GREETING: &str =
    r#"{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":"fake"},"capabilities":[]}}"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Ok,
    Refuse,
    Mute,
    Crash,
    Lie,
    Flood,
    Gush,
    Deaf,
    Hang,
    Late,
    Wrong,
    Half,
    Close,
    Garbage,
    Deep,
    Line,
    Storm,
}

const MANNERS: [(&str, Manner); 17] = [
    ("ok", Manner::Ok),
    ("refuse", Manner::Refuse),
    ("mute", Manner::Mute),
    ("crash", Manner::Crash),
    ("lie", Manner::Lie),
    ("flood", Manner::Flood),
    ("gush", Manner::Gush),
    ("deaf", Manner::Deaf),
    ("hang", Manner::Hang),
    ("late", Manner::Late),
    ("wrong", Manner::Wrong),
    ("half", Manner::Half),
    ("close", Manner::Close),
    ("garbage", Manner::Garbage),
    ("deep", Manner::Deep),
    ("line", Manner::Line),
    ("storm", Manner::Storm),
];

impl Manner {
    fn named(name: &str) -> Option<Self> {
        MANNERS.iter().find(|(known, _)| *known == name).map(|(_, manner)| *manner)
    }

    fn of(args: &[String]) -> Result<Self, String> {
        match env::var("FAKE_QEMU").as_deref() {
            Err(_) => Ok(Self::Ok),
            Ok("by-name") => {
                let name = args.iter().find_map(|arg| arg.strip_prefix("guest=")).unwrap_or_default();
                Ok(Self::named(name.split('-').next().unwrap_or_default()).unwrap_or(Self::Ok))
            }
            Ok(name) => Self::named(name).ok_or_else(|| format!("FAKE_QEMU={name} is not a manner")),
        }
    }
}

/// The guest, as far as there is one.
struct Machine {
    manner: Manner,
    running: AtomicBool,
    /// Set once, by the first `cont`.
    started: (Mutex<bool>, Condvar),
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--version") {
        println!("QEMU emulator version 7.2.0 (fake)");
        return ExitCode::SUCCESS;
    }
    let manner = match Manner::of(&args) {
        Ok(Manner::Refuse) => {
            eprintln!("fake-qemu: no machine today");
            return ExitCode::FAILURE;
        }
        Ok(manner) => manner,
        Err(error) => {
            eprintln!("fake-qemu: {error}");
            return ExitCode::from(2);
        }
    };
    let machine = Arc::new(Machine {
        manner,
        running: AtomicBool::new(false),
        started: (Mutex::new(false), Condvar::new()),
    });
    let mut threads = Vec::new();
    for (id, fd) in sockets(&args) {
        // SAFETY: whoever wrote the command line put a listening socket there, for this chardev alone.
        let listener = unsafe { UnixListener::from_raw_fd(fd) };
        let machine = Arc::clone(&machine);
        threads.push(thread::spawn(move || {
            // One client at a time, as QEMU does; its errors end that client only.
            for client in listener.incoming().flatten() {
                let _ =
                    if id.starts_with("qmp") { monitor(client, &machine) } else { serial(client, &machine) };
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    ExitCode::SUCCESS
}

/// Id and descriptor of each socket chardev.
fn sockets(args: &[String]) -> Vec<(String, RawFd)> {
    let value = |arg: &str, key: &str| {
        arg.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    };
    args.windows(2)
        .filter(|pair| pair[0] == "-chardev")
        .filter_map(|pair| Some((value(&pair[1], "id")?, value(&pair[1], "fd")?.parse().ok()?)))
        .collect()
}

fn say(mut client: &UnixStream, message: &Value) -> io::Result<()> {
    client.write_all(format!("{message}\n").as_bytes())
}

fn monitor(client: UnixStream, machine: &Machine) -> io::Result<()> {
    if machine.manner == Manner::Mute {
        // Reads to the end, so that the client's bytes do not fill the socket.
        return io::copy(&mut &client, &mut io::sink()).map(drop);
    }
    (&client).write_all(format!("{GREETING}\n").as_bytes())?;
    for line in BufReader::new(&client).lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let name = command["execute"].as_str().unwrap_or_default();
        if machine.manner == Manner::Lie {
            say(&client, &json!({"event": "FAKE_EVENT", "data": [1, 2, 3]}))?;
            say(&client, &json!({"return": "nobody asked", "id": 9_000_000}))?;
        }
        if machine.running.load(Ordering::SeqCst) && !misbehave(&client, machine, &command)? {
            continue;
        }
        let (answer, event) = obey(name, machine);
        match answer {
            Ok(value) => say(&client, &json!({"return": value, "id": command["id"]}))?,
            Err(text) => {
                let error = json!({"class": "GenericError", "desc": text});
                say(&client, &json!({"error": error, "id": command["id"]}))?;
            }
        }
        if let Some(event) = event {
            say(&client, &event)?;
            if event["event"] == "SHUTDOWN" {
                process::exit(0);
            }
        }
        if name == "cont" {
            if machine.manner == Manner::Crash {
                die()?;
            }
            misbehave(&client, machine, &Value::Null)?;
        }
        if machine.manner == Manner::Storm && machine.running.load(Ordering::SeqCst) {
            for _ in 0..20_000 {
                say(&client, &json!({"event": "FAKE_EVENT", "data": {}}))?;
            }
        }
    }
    Ok(())
}

/// The answer to a command, and the event it leads to.
fn obey(name: &str, machine: &Machine) -> (Result<Value, String>, Option<Value>) {
    let done = || Ok(json!({}));
    let shutdown = |guest: bool, reason: &str| {
        Some(json!({"event": "SHUTDOWN", "data": {"guest": guest, "reason": reason}}))
    };
    match name {
        "qmp_capabilities" => (done(), None),
        "query-status" => {
            let running = machine.running.load(Ordering::SeqCst) != (machine.manner == Manner::Lie);
            let started = *machine.started.0.lock().unwrap_or_else(PoisonError::into_inner);
            let status = match (running, started) {
                (true, _) => "running",
                (false, true) => "paused",
                (false, false) => "prelaunch",
            };
            (Ok(json!({"running": running, "status": status, "singlestep": false})), None)
        }
        "query-chardev" => (Ok(json!([])), None),
        "query-vnc" => (Ok(json!({"enabled": true, "host": "127.0.0.1", "service": "5900"})), None),
        "cont" => {
            machine.running.store(true, Ordering::SeqCst);
            *machine.started.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            machine.started.1.notify_all();
            (done(), Some(json!({"event": "RESUME"})))
        }
        "stop" => {
            machine.running.store(false, Ordering::SeqCst);
            (done(), Some(json!({"event": "STOP"})))
        }
        "system_reset" => (done(), Some(json!({"event": "RESET", "data": {"guest": false}}))),
        "system_powerdown" if machine.manner == Manner::Deaf => (done(), None),
        "system_powerdown" => (done(), shutdown(true, "guest-shutdown")),
        "quit" => (done(), shutdown(false, "host-qmp-quit")),
        other => (Err(format!("The command {other} has not been found")), None),
    }
}

fn die() -> io::Result<()> {
    loop {
        // Twice at least: the first one only ends the handler that Rust's runtime installs.
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::SEGV)?;
    }
}

/// What happens once the guest runs, at its start (`command` is null) and at each command; whether the command is then
/// obeyed.
fn misbehave(mut client: &UnixStream, machine: &Machine, command: &Value) -> io::Result<bool> {
    match machine.manner {
        Manner::Flood => loop {
            say(client, &json!({"event": "FAKE_EVENT", "data": "x".repeat(1000)}))?;
        },
        Manner::Line => loop {
            for _ in 0..1600 {
                client.write_all(&[b'x'; 64 << 10])?;
            }
            client.write_all(b"\n")?;
        },
        Manner::Deep => {
            client.write_all(format!("{}{}\n", "[".repeat(100_000), "]".repeat(100_000)).as_bytes())?;
        }
        Manner::Garbage => client.write_all(b"\xff\0{]\n")?,
        Manner::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
        Manner::Half if !command.is_null() => client.write_all(b"{\"return\": {")?,
        Manner::Wrong if !command.is_null() => {
            say(client, &json!({"return": {}, "id": command["id"].as_u64().map(|id| id + 1000)}))?;
        }
        Manner::Late if !command.is_null() => {
            thread::sleep(Duration::from_secs(6));
            return Ok(true);
        }
        Manner::Half | Manner::Wrong | Manner::Late | Manner::Hang => {}
        Manner::Ok
        | Manner::Refuse
        | Manner::Mute
        | Manner::Crash
        | Manner::Lie
        | Manner::Gush
        | Manner::Deaf
        | Manner::Storm => return Ok(true),
    }
    Ok(false)
}

/// The guest's console: a greeting once it runs, then an echo.
fn serial(mut client: UnixStream, machine: &Machine) -> io::Result<()> {
    let mut started = machine.started.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*started {
        started = machine.started.1.wait(started).unwrap_or_else(PoisonError::into_inner);
    }
    drop(started);
    client.write_all(b"FAKE READY\n")?;
    if machine.manner == Manner::Flood {
        loop {
            client.write_all(&[b'x'; 4096])?;
        }
    }
    if machine.manner == Manner::Gush {
        gush(&mut client)?;
    }
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            read => client.write_all(&buffer[..read])?,
        }
    }
}

/// Lines of 64 bytes, and at the end how many bytes came before it and the slowest write in milliseconds.
fn gush(client: &mut UnixStream) -> io::Result<()> {
    let mib: usize = env::var("FAKE_QEMU_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let block = format!("{:63}\n", "all work and no play").repeat(1024);
    let mut slowest = Duration::ZERO;
    for _ in 0..mib * 16 {
        let begin = Instant::now();
        client.write_all(block.as_bytes())?;
        slowest = slowest.max(begin.elapsed());
    }
    writeln!(client, "GUSHED {} bytes, slowest write {} ms", mib << 20, slowest.as_millis())
}
