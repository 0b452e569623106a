//! Drives whose media users change while the machine runs.
//!
//! A device with such a drive adds one of these to the builder when it is built; nothing else knows all drives.

use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;

use crate::BuildError;

/// What kind of media a drive takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveKind {
    /// Floppy disks.
    Floppy,
    /// CDs and DVDs.
    Cdrom,
}

impl DriveKind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floppy => "floppy",
            Self::Cdrom => "cdrom",
        }
    }
}

/// What is in a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    /// The image.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// Why a medium could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The image does not fit the drive.
    #[error(transparent)]
    Medium(#[from] BuildError),
    /// The guest holds the medium.
    #[error("the guest has locked the drive `{0}`")]
    Locked(String),
}

/// A drive with a medium that comes and goes. Called from any thread that holds no device's lock, in every state of the
/// machine. Images are opened before the drive is touched: what cannot be opened changes nothing.
pub trait RemovableDrive: Send + Sync {
    /// Its name, by which users call it: `floppy0`.
    fn name(&self) -> &str;

    /// What it takes.
    fn kind(&self) -> DriveKind;

    /// What is in it.
    fn medium(&self) -> Option<Medium>;

    /// Puts an image in, in the place of what was there.
    ///
    /// # Errors
    /// [`DriveError`] when the image cannot be had or the guest holds the medium.
    fn insert(&self, path: &Path, read_only: bool) -> Result<(), DriveError>;

    /// Takes the medium out; an empty drive stays so.
    ///
    /// # Errors
    /// [`DriveError::Locked`] when the guest holds it.
    fn eject(&self) -> Result<(), DriveError>;

    /// Saves what was written, as when the guest flushes.
    fn settle(&self) {}
}
