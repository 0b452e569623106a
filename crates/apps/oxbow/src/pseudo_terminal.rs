//! A pseudo-terminal as a serial port's far end: `screen /dev/pts/N` talks to the guest.
//!
//! Nobody may be attached: output that finds no room for a moment is dropped, so that the guest goes on.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use board::SerialHost;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

/// How long output waits for room.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// An open pair.
pub(crate) struct PseudoTerminal {
    master: OwnedFd,
    /// Kept open, so that the master stays usable while nobody is attached.
    slave: OwnedFd,
    path: String,
}

/// The side that reads what the user types.
pub(crate) struct PtyInput {
    master: File,
    _slave: OwnedFd,
}

/// The side that shows what the guest sends.
pub(crate) struct PtyOutput(File);

impl PseudoTerminal {
    /// A new pair in raw mode.
    pub(crate) fn open() -> std::io::Result<Self> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let path = rustix::pty::ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
        let mut mode = rustix::termios::tcgetattr(&slave)?;
        mode.make_raw();
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &mode)?;
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        let path = path.to_string_lossy().into_owned();
        Ok(Self { master, slave, path })
    }

    /// Where to attach.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Its two directions.
    pub(crate) fn split(self) -> std::io::Result<(PtyInput, PtyOutput)> {
        let output = PtyOutput(self.master.try_clone()?.into());
        let master = self.master.into();
        let _slave = self.slave;
        Ok((PtyInput { master, _slave }, output))
    }
}

impl PtyInput {
    /// Carries what is typed to `host`.
    pub(crate) fn spawn(mut self, host: SerialHost) -> std::io::Result<()> {
        let body = move || {
            let mut bytes = [0; 4096];
            loop {
                match self.master.read(&mut bytes) {
                    Ok(0) => break,
                    Ok(n) if !host.write(&bytes[..n]) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        ready(&self.master, PollFlags::IN, None);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        };
        std::thread::Builder::new().name("pty in".to_owned()).spawn(body)?;
        Ok(())
    }
}

/// Waits until `fd` is ready, for at most `timeout`.
fn ready(fd: &impl AsFd, flags: PollFlags, timeout: Option<&Timespec>) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    rustix::event::poll(&mut fds, timeout).is_ok_and(|n| n > 0)
}

impl Write for PtyOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if ready(&self.0, PollFlags::OUT, Some(&PATIENCE)) {
                    Err(std::io::ErrorKind::Interrupted.into())
                } else {
                    Ok(bytes.len())
                }
            }
            result => result,
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
