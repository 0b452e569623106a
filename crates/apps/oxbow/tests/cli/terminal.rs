//! The terminal: raw while the guest runs, as before afterwards; and the pseudo-terminal that a port can lead to.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::process::Stdio;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use rustix::termios::LocalModes;
use rustix::termios::OptionalActions;
use rustix::termios::Termios;
use rustix::termios::tcgetattr;

use crate::guest::ECHO;
use crate::guest::Guest;
use crate::guest::IDLE;
use crate::guest::POWER_OFF;
use crate::guest::print;

/// A terminal with a guest at it.
struct Session {
    user: File,
    slave: OwnedFd,
    before: Termios,
    child: Child,
}

impl Session {
    /// Starts `guest`, and waits for its prompt.
    fn start(guest: &Guest) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let path = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(path.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let before = tcgetattr(&slave).unwrap();
        let child = guest
            .command(&[])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let mut session = Self {
            user: master.into(),
            slave,
            before,
            child,
        };
        session.expect(">");
        session
    }

    /// Reads until `text` has come.
    fn expect(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            self.user.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    }

    fn is_raw(&self) -> bool {
        let mode = tcgetattr(&self.slave).unwrap();
        !mode
            .local_modes
            .intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Waits for the end, and checks status and terminal.
    fn finish(mut self, status: i32) {
        assert_eq!(self.child.wait().unwrap().code(), Some(status));
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
    }
}

#[test]
fn escape_ends_the_machine_and_restores_the_terminal() {
    let mut session = Session::start(&Guest::new(&[&print(">"), IDLE]));
    assert!(session.is_raw());
    session.user.write_all(b"\x01h").unwrap();
    session.expect("Ctrl-A x");
    session.user.write_all(b"\x01x").unwrap();
    session.finish(0);
}

#[test]
fn keys_go_to_the_guest_control_c_and_escaped_control_a_too() {
    let mut session = Session::start(&Guest::new(&[&print(">"), ECHO, POWER_OFF]));
    session.user.write_all(b"a\x03\x01\x01z").unwrap();
    session.expect("a\x03\x01z");
    session.user.write_all(b"q").unwrap();
    session.finish(0);
}

#[test]
fn signal_restores_the_terminal() {
    let session = Session::start(&Guest::new(&[&print(">"), IDLE]));
    rustix::process::kill_process(Pid::from_child(&session.child), Signal::TERM).unwrap();
    session.finish(143);
}

#[test]
fn stopped_and_continued_process_makes_the_terminal_raw_again() {
    let mut session = Session::start(&Guest::new(&[&print(">"), ECHO, POWER_OFF]));
    let pid = Pid::from_child(&session.child);
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    // What a shell does when its job stops.
    rustix::termios::tcsetattr(&session.slave, OptionalActions::Now, &session.before).unwrap();
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    while !session.is_raw() {
        std::thread::yield_now();
    }
    session.user.write_all(b"q").unwrap();
    session.expect("q");
    session.finish(0);
}

#[test]
fn port_at_a_pseudo_terminal_talks_to_whoever_opens_it() {
    let guest = Guest::new(&[ECHO, POWER_OFF]);
    let mut child = guest
        .command(&["--serial", "pty"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let path = line.trim_end().strip_prefix("oxbow: com1 is at ").unwrap();
    let mut port = File::options().read(true).write(true).open(path).unwrap();
    port.write_all(b"hello").unwrap();
    let mut echoed = [0; 5];
    port.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello");
    port.write_all(b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
