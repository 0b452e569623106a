//! What can be wrong with an image or an access to it.
//!
//! Every message names the file and says what is wrong; where the user can do something about it, it says what.

use std::io;
use std::path::Path;

use thiserror::Error;

/// Why an image cannot be opened, read, written or made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The host could not do what was asked.
    #[error("{file}: cannot {action}")]
    Io {
        /// Path of the file.
        file: String,
        /// What was tried, such as `read`.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The image contradicts its format.
    #[error("{file}: the image is damaged: {what}")]
    Corrupt {
        /// Path of the file.
        file: String,
        /// Which structure says what, and where.
        what: String,
    },
    /// The image uses something that is not supported.
    #[error("{file}: {what}")]
    Unsupported {
        /// Path of the file.
        file: String,
        /// The feature, and what to do instead.
        what: String,
    },
    /// The image is encrypted.
    #[error(
        "{file}: the image is encrypted ({what}), which is not supported; decrypt it with the program that made it"
    )]
    Encrypted {
        /// Path of the file.
        file: String,
        /// The method.
        what: String,
    },
    /// Another process has the image open.
    #[error(
        "{file}: the image is in use by another process; end that first (with --force-share, `oxbow disk` reads it meanwhile)"
    )]
    Locked {
        /// Path of the file.
        file: String,
    },
    /// The image, or its format, cannot be written.
    #[error("{file}: {what}")]
    ReadOnly {
        /// Path of the file.
        file: String,
        /// Why.
        what: String,
    },
    /// A parent of a differencing image.
    #[error("{file}: {what}")]
    Parent {
        /// Path of the child.
        file: String,
        /// What is wrong with the reference.
        what: String,
    },
    /// An access beyond the end of the disk.
    #[error("{len} bytes at {offset:#x} are beyond the end of the disk at {size:#x}")]
    OutOfRange {
        /// Where it begins, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// Whoever watches a long operation wants it to end.
    #[error("stopped by signal {signal}; what was begun is undone")]
    Stopped {
        /// The signal that made him want that.
        signal: u8,
    },
    /// What was asked for makes no sense for this format.
    #[error("{0}")]
    Usage(String),
}

impl BlockError {
    /// The same about a file that is going to have another name.
    pub(crate) fn renamed(mut self, from: &Path, to: &Path) -> Self {
        let from = from.display().to_string();
        match &mut self {
            Self::Io { file, .. }
            | Self::Corrupt { file, .. }
            | Self::Unsupported { file, .. }
            | Self::Encrypted { file, .. }
            | Self::Locked { file }
            | Self::ReadOnly { file, .. }
            | Self::Parent { file, .. }
                if *file == from =>
            {
                *file = to.display().to_string();
            }
            _ => {}
        }
        self
    }
}

/// Short for the results of this crate.
pub type Result<T> = std::result::Result<T, BlockError>;
