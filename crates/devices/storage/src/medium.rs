//! What a drive keeps its data on.

use std::sync::Mutex;
use std::sync::PoisonError;

/// Why a medium could not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediumError {
    /// It cannot be written.
    #[error("the medium is write-protected")]
    Protected,
    /// The place does not exist.
    #[error("beyond the end of the medium")]
    Beyond,
    /// The host failed.
    #[error("the host failed")]
    Failed,
}

/// A disk as controllers see it: positional, synchronous, shared by threads.
///
/// Called by workers on their own threads, with no lock held, several at a time. What was written before a `flush` that
/// succeeded survives the host's power cut, unless the user chose otherwise.
pub trait Medium: Send + Sync {
    /// Bytes. Controllers use whole sectors of it.
    fn size(&self) -> u64;

    /// It cannot be written.
    fn is_read_only(&self) -> bool;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// Beyond the end, or the host cannot read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError>;

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// Beyond the end, protected, or the host cannot write.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MediumError>;

    /// Makes a range zeros.
    ///
    /// # Errors
    /// As `write_at`.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), MediumError>;

    /// Makes a range zeros, and gives its space back where that is possible.
    ///
    /// # Errors
    /// As `write_at`.
    fn discard(&self, offset: u64, len: u64) -> Result<(), MediumError>;

    /// Returns when everything that was written is safe.
    ///
    /// # Errors
    /// The host cannot write.
    fn flush(&self) -> Result<(), MediumError>;
}

/// A medium in memory: for tests.
#[derive(Debug, Default)]
pub struct MemoryMedium(Mutex<Vec<u8>>);

impl MemoryMedium {
    /// A medium that holds `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.with(|bytes| bytes.clone())
    }

    fn with<R>(&self, f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn part<R>(&self, offset: u64, len: u64, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, MediumError> {
        let end = offset.checked_add(len).ok_or(MediumError::Beyond)?;
        let range = crate::bytes::index(offset)..crate::bytes::index(end);
        self.with(|bytes| bytes.get_mut(range).map(f))
            .ok_or(MediumError::Beyond)
    }
}

impl Medium for MemoryMedium {
    fn size(&self) -> u64 {
        self.with(|bytes| bytes.len() as u64)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        self.part(offset, buf.len() as u64, |bytes| buf.copy_from_slice(bytes))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MediumError> {
        self.part(offset, buf.len() as u64, |bytes| bytes.copy_from_slice(buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), MediumError> {
        self.part(offset, len, |bytes| bytes.fill(0))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), MediumError> {
        self.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }
}
