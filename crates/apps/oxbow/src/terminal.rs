//! The user's terminal in raw mode: every key goes to the guest, and the old mode comes back whatever happens.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::termios::OptionalActions;
use rustix::termios::OutputModes;
use rustix::termios::Termios;

/// The mode to go back to, while the terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal at standard input raw. None when there is no terminal.
    pub(crate) fn enter() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let mode = rustix::termios::tcgetattr(&stdin)?;
        saved().replace(mode);
        restore_on_panic();
        enter_again();
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal raw again after somebody else changed it: when the process was stopped and goes on.
pub(crate) fn enter_again() {
    if let Some(mode) = &*saved() {
        let mut raw = mode.clone();
        raw.make_raw();
        // Output stays cooked, so that lines of a guest that ends them with LF alone begin at the left.
        raw.output_modes |= mode.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw);
    }
}

/// Gives the terminal back as it was.
fn restore() {
    if let Some(mode) = saved().take() {
        // Nothing is left to be done about a terminal that is gone.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &mode);
    }
}

fn saved() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A panic aborts the process: its message should find a terminal that shows it.
fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        next(info);
    }));
}
