//! Errors towards the user: one line, and an exit status that tells wrong input from a host that cannot.

use std::process::ExitCode;

use board::BuildError;
use control::ClientError;
use control::ErrorKind;
use disk_image::BlockError;

use crate::end;

/// Why a command did not do its work.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    status: u8,
}

impl Failure {
    /// The host cannot: no memory, no threads, no terminal.
    pub(crate) fn host(error: impl Into<anyhow::Error>) -> Self {
        Self {
            error: error.into(),
            status: end::FAILED,
        }
    }

    /// An error with a status of its own.
    pub(crate) fn with_status(error: impl Into<anyhow::Error>, status: u8) -> Self {
        Self {
            error: error.into(),
            status,
        }
    }

    /// Prints the one line, and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("oxbow: {}", self.line());
        ExitCode::from(self.status)
    }

    /// The error with its causes.
    fn line(&self) -> String {
        one_line(&self.error)
    }
}

/// An error with its causes.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(|cause| plain(&cause.to_string())).collect();
    causes.join(": ").replace('\n', " ")
}

/// The system's messages without their numbers.
fn plain(text: &str) -> String {
    match text.rfind(" (os error ") {
        Some(at) if text.ends_with(')') => text[..at].to_owned(),
        _ => text.to_owned(),
    }
}

/// Errors are the input's fault unless said otherwise.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            error,
            status: end::WRONG_INPUT,
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Plan(_)
            | BuildError::Policy(_)
            | BuildError::File { .. }
            | BuildError::Boot { .. }
            | BuildError::Firmware(_)
            | BuildError::Share(_)
            | BuildError::Floppy { .. } => anyhow::Error::from(error).into(),
            _ => Self::host(error),
        }
    }
}

impl From<ClientError> for Failure {
    /// Nobody there, and requests that make no sense, are wrong input; others are what the machine says.
    fn from(error: ClientError) -> Self {
        let status = match &error {
            ClientError::Connect { .. } | ClientError::Protocol { .. } => end::WRONG_INPUT,
            ClientError::Broken(_) | ClientError::Ended => end::FAILED,
            ClientError::Refused(refusal) => match refusal.kind {
                ErrorKind::Invalid | ErrorKind::Absent | ErrorKind::Malformed | ErrorKind::TooLong => end::WRONG_INPUT,
                ErrorKind::Timeout => end::TIMEOUT,
                ErrorKind::State | ErrorKind::Failed | ErrorKind::Busy | ErrorKind::Other => end::FAILED,
            },
        };
        Self::with_status(error, status)
    }
}

impl From<BlockError> for Failure {
    /// A file that cannot be opened or made is wrong input; one that fails later is the host's.
    fn from(error: BlockError) -> Self {
        match &error {
            &BlockError::Stopped { signal } => Self::with_status(error, end::SIGNAL.saturating_add(signal)),
            BlockError::Io { action, .. } if !matches!(*action, "open" | "open for writing" | "create") => {
                Self::host(error)
            }
            _ => anyhow::Error::from(error).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_every_cause_once_and_no_numbers() {
        let cause = std::io::Error::from_raw_os_error(2);
        let failure = Failure::from(anyhow::Error::from(cause).context("cannot read `x`"));
        assert_eq!(failure.line(), "cannot read `x`: No such file or directory");
        assert_eq!(failure.status, 2);
    }
}
