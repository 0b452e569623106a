//! How a run ends, and the exit statuses that say so.

use board::Outcome;

/// The host could not go on.
pub(crate) const FAILED: u8 = 1;
/// Wrong usage or unusable input.
pub(crate) const WRONG_INPUT: u8 = 2;
/// Triple fault.
pub(crate) const TRIPLE_FAULT: u8 = 3;
/// `disk check`: the image is damaged. `disk compare`: the disks differ.
pub(crate) const NOT_SOUND: u8 = 3;
/// `disk check`: nothing is damaged, but space is lost.
pub(crate) const LEAKS: u8 = 4;
/// `--timeout` has passed: as `timeout` of coreutils says it.
pub(crate) const TIMEOUT: u8 = 124;
/// A signal's number is added to this, as shells do.
pub(crate) const SIGNAL: u8 = 128;
/// The number of SIGPIPE: nobody reads our output.
const SIGPIPE: u8 = 13;

/// Why the machine is to end, from whoever noticed first.
#[derive(Debug)]
pub(crate) enum End {
    /// The machine came to an end of its own.
    Guest(Outcome),
    /// Ctrl-A x.
    Escape,
    /// A client of the control socket asked for it.
    Quit,
    /// A signal of this number.
    Signal(u8),
    /// Time is up.
    Timeout,
    /// The reader of our output is gone.
    OutputClosed,
    /// Output could not be written.
    OutputFailed(String),
}

impl End {
    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Guest(outcome) => match outcome {
                Outcome::PowerOff | Outcome::Reset | Outcome::Stopped => 0,
                Outcome::DebugExit(code) => code << 1 | 1,
                Outcome::TripleFault(_) => TRIPLE_FAULT,
                Outcome::Failed(_) => FAILED,
            },
            Self::Escape | Self::Quit => 0,
            Self::Signal(number) => SIGNAL.saturating_add(*number),
            Self::Timeout => TIMEOUT,
            Self::OutputClosed => SIGNAL + SIGPIPE,
            Self::OutputFailed(_) => FAILED,
        }
    }

    /// What the user is told, if anything.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Self::Guest(Outcome::TripleFault(fault)) => Some(fault.to_string()),
            Self::Guest(Outcome::Failed(error)) | Self::OutputFailed(error) => Some(error.clone()),
            Self::Timeout => Some("the guest did not end in time".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_what_the_manual_says() {
        assert_eq!(End::Guest(Outcome::PowerOff).status(), 0);
        assert_eq!(End::Guest(Outcome::Reset).status(), 0);
        assert_eq!(End::Guest(Outcome::DebugExit(0)).status(), 1);
        assert_eq!(End::Guest(Outcome::DebugExit(77)).status(), 155);
        assert_eq!(End::Guest(Outcome::DebugExit(0xff)).status(), 255);
        assert_eq!(End::Quit.status(), 0);
        assert_eq!(End::Timeout.status(), 124);
        assert_eq!(End::Signal(2).status(), 130);
        assert_eq!(End::Signal(15).status(), 143);
        assert_eq!(End::OutputClosed.status(), 141);
    }
}
