//! A program that takes QEMU's command line, picks up the sockets it inherits, and speaks QMP, well or badly.
//!
//! `FAKE_QEMU` says how: `ok` (also if unset); `refuse`: fails at once, with a message; `mute`: never greets; `hang`:
//! answers until the guest runs, then never again; `crash`: dies of signal 11 once the guest runs; `lie`: sends
//! replies nobody asked for, unknown events and a false status; `flood`: writes to the serial port and sends events
//! without end.

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
};

const GREETING: &str =
    r#"{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":"fake"},"capabilities":[]}}"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Ok,
    Refuse,
    Mute,
    Hang,
    Crash,
    Lie,
    Flood,
}

impl Manner {
    fn from_env() -> Result<Self, String> {
        match env::var("FAKE_QEMU").as_deref() {
            Err(_) | Ok("ok") => Ok(Self::Ok),
            Ok("refuse") => Ok(Self::Refuse),
            Ok("mute") => Ok(Self::Mute),
            Ok("hang") => Ok(Self::Hang),
            Ok("crash") => Ok(Self::Crash),
            Ok("lie") => Ok(Self::Lie),
            Ok("flood") => Ok(Self::Flood),
            Ok(other) => Err(format!("FAKE_QEMU={other} is not a manner")),
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
    let manner = match Manner::from_env() {
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
        if machine.manner == Manner::Hang && machine.running.load(Ordering::SeqCst) {
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
            after_start(&client, machine)?;
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
            let status = if running { "running" } else { "paused" };
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
        "system_powerdown" => (done(), shutdown(true, "guest-shutdown")),
        "quit" => (done(), shutdown(false, "host-qmp-quit")),
        other => (Err(format!("The command {other} has not been found")), None),
    }
}

fn after_start(client: &UnixStream, machine: &Machine) -> io::Result<()> {
    match machine.manner {
        Manner::Crash => loop {
            // Twice at least: the first one only ends the handler that Rust's runtime installs.
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::SEGV)?;
        },
        Manner::Flood => loop {
            say(client, &json!({"event": "FAKE_EVENT", "data": "x".repeat(1000)}))?;
        },
        Manner::Ok | Manner::Refuse | Manner::Mute | Manner::Hang | Manner::Lie => Ok(()),
    }
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
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            read => client.write_all(&buffer[..read])?,
        }
    }
}
