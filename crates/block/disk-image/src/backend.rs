//! The disk as controllers, converters and backups see it.
//!
//! Positions and lengths are in bytes and need no alignment. Whoever calls comes from any thread, with no lock of the
//! board held; calls may run at the same time. Two writes that overlap, or a write and a read, end as if one of them had
//! been first, sector by sector.

use device_model::Inspect;
use serde::Serialize;

use crate::Format;
use crate::Result;

/// What never changes while a disk is open, other than by a resize.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The format.
    pub format: Format,
    /// Its variety, such as `dynamic` or `streamOptimized`.
    pub variant: String,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Size of a sector in bytes, as the medium has them: 512, or 2048 for CDs and DVDs.
    pub sector_size: u32,
    /// Space is allocated in pieces of this many bytes; 1 where there are none.
    pub block_size: u64,
    /// Writes are accepted.
    pub writable: bool,
}

/// What stands behind a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtentKind {
    /// Bytes in a file.
    Data,
    /// Zeros, and the image says so.
    Zero,
    /// Zeros, since no image of the chain has ever been written there.
    Unallocated,
}

/// A range of the disk that has the same kind of content throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Bytes from the asked offset on. At least 1.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
    /// Which image of the chain decides: 0 is this one, 1 its parent, and so on.
    pub depth: u32,
}

/// A disk: positional, synchronous, shared by threads.
///
/// After an error the range that was to be written holds old bytes, new ones, or a mix of both by sectors. Everything
/// that was written before a `flush` that returned `Ok` is still there after the process was killed or the power was
/// cut; of what came later, each sector may or may not be.
pub trait BlockBackend: Inspect + Send + Sync {
    /// Size, format, granularity.
    fn info(&self) -> ImageInfo;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// Beyond the end, damaged metadata, or the host cannot read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// Beyond the end, read-only, damaged metadata, or the host cannot write.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Makes a range zeros. Space that it has stays allocated where the format can do that.
    ///
    /// # Errors
    /// As `write_at`.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes a range zeros and gives its space back where possible. A parent's data never shows through.
    ///
    /// # Errors
    /// As `write_at`.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns when everything written before is on the medium, metadata included.
    ///
    /// # Errors
    /// The host cannot write. What was written before stays due: a later flush tries again.
    fn flush(&self) -> Result<()>;

    /// What stands behind `offset`, and how far.
    ///
    /// # Errors
    /// Beyond the end, or damaged metadata.
    fn extent(&self, offset: u64) -> Result<Extent>;
}
