//! The console on a pseudo-terminal.

use crate::fake::{Fake, RECORD};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    process::{Child, Stdio},
};

/// A console on a terminal of its own, in raw mode for certain.
struct Session {
    keyboard: File,
    terminal: File,
    child: Child,
    _fake: Fake,
}

impl Session {
    fn start() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let path = ptsname(&keyboard, Vec::new()).unwrap();
        let terminal = OpenOptions::new().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        let mut keyboard = File::from(keyboard);
        assert!(cooked(&terminal));

        let fake = Fake::start();
        let mut child = fake
            .command("vm console web")
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let greeting = "connected to vm web; Ctrl-] leaves the console\r\n";
        let mut remark = vec![0; greeting.len()];
        child.stderr.as_mut().unwrap().read_exact(&mut remark).unwrap();
        assert_eq!(remark, greeting.as_bytes());
        // Without a line break: a cooked terminal would keep it. Ctrl-C is a key like any other.
        keyboard.write_all(b"a\x03").unwrap();
        let mut shown = vec![0; RECORD.len() + 2];
        child.stdout.as_mut().unwrap().read_exact(&mut shown).unwrap();
        assert_eq!(shown, format!("{RECORD}A\u{3}").as_bytes());
        assert!(!cooked(&terminal));
        Self { keyboard, terminal, child, _fake: fake }
    }

    fn end(mut self) {
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(cooked(&self.terminal));
    }
}

fn cooked(terminal: &File) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
}

#[test]
fn the_escape_leaves_and_puts_the_terminal_back() {
    let mut session = Session::start();
    session.keyboard.write_all(b"\x1d").unwrap();
    session.end();
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let session = Session::start();
    let pid = Pid::from_raw(session.child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    session.end();
}

#[test]
fn the_end_of_the_stream_puts_the_terminal_back() {
    let mut session = Session::start();
    session.keyboard.write_all(b"!").unwrap();
    session.end();
}
