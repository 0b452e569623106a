//! Files of the host past its page cache (`O_DIRECT`).
//!
//! The kernel then takes only whole blocks, from memory at a multiple of some power of two. Accesses of another shape go
//! through an aligned buffer: reads of more than was asked for, writes with what is around them read before. The block in
//! which the file ends, where it is not a whole one, is written through the page cache, since a write past it would make the
//! file longer; the kernel keeps both ways in step as long as they do not meet.
//!
//! Spec: open(2) "O_DIRECT"; statx(2) (`STATX_DIOALIGN`); ioctl_blksszget.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;

use rustix::fs::AtFlags;
use rustix::fs::OFlags;
use rustix::fs::StatxFlags;
use rustix::io::Errno;

use super::Store;
use super::host::HostFile;
use crate::BlockError;
use crate::Result;

/// Where the kernel does not say: a multiple of every block size that it knows, and of every page's.
const USUAL: usize = 4096;
/// Alignments beyond that are not taken for true.
const MOST: usize = 1 << 20;
/// Bytes that go through a buffer at a time.
const PIECE: usize = 1 << 20;

/// What the kernel wants of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    /// Of the memory.
    memory: usize,
    /// Of offset and length.
    block: usize,
}

/// A file that is open in both ways.
#[derive(Debug)]
pub(super) struct DirectFile {
    cached: HostFile,
    direct: fs::File,
    align: Alignment,
    /// Whole blocks are written while it is shared; parts of blocks, and whatever else has the kernel change a part of a
    /// page, while it is not.
    parts: RwLock<()>,
}

/// Memory whose start is aligned.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize, align: usize) -> Self {
        let bytes = vec![0; len + align];
        let start = bytes.as_ptr().addr().next_multiple_of(align) - bytes.as_ptr().addr();
        Self { bytes, start, len }
    }

    fn get(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

/// What of a request goes in one step: bytes `skip..skip + len` of `whole` bytes at `start`, which are whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    start: u64,
    whole: usize,
    skip: usize,
    len: usize,
}

impl Step {
    fn is_whole(&self) -> bool {
        self.len == self.whole
    }
}

impl Alignment {
    /// Of a file, if it can be used so at all.
    fn of(file: &fs::File) -> Option<Self> {
        let block_device = file.metadata().is_ok_and(|data| data.file_type().is_block_device());
        let sector = block_device.then(|| rustix::fs::ioctl_blksszget(file).ok()).flatten();
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let (memory, block) = match (stat, sector) {
            (Ok(stat), _) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                (stat.stx_dio_mem_align, stat.stx_dio_offset_align)
            }
            (_, Some(sector)) => (sector, sector),
            _ => (USUAL as u32, USUAL as u32),
        };
        let good = |align: u32| {
            usize::try_from(align)
                .ok()
                .filter(|a| a.is_power_of_two() && *a <= MOST)
        };
        Some(Self {
            memory: good(memory)?,
            block: good(block)?,
        })
    }

    /// The first step of `len` bytes at `offset`: the part of a block that it begins with, or whole blocks, at most a
    /// [`PIECE`] of them if they need a buffer.
    fn step(&self, offset: u64, len: usize, piece: usize) -> Step {
        let block = self.block as u64;
        let start = offset - offset % block;
        let skip = (offset - start) as usize;
        if skip != 0 || len < self.block {
            let len = len.min(self.block - skip);
            let whole = self.block;
            return Step {
                start,
                whole,
                skip,
                len,
            };
        }
        let whole = (len - len % self.block).min(piece.max(self.block));
        Step {
            start,
            whole,
            skip,
            len: whole,
        }
    }

    fn holds(&self, memory: &[u8]) -> bool {
        memory.as_ptr().addr().is_multiple_of(self.memory)
    }
}

/// Reads until `buf` is full or the file ends. Positions in the middle of a block, as a short read leaves, are the end.
fn read(file: &fs::File, offset: u64, buf: &mut [u8], block: usize) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => {
                done += count;
                if !done.is_multiple_of(block) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

impl DirectFile {
    /// Opens the file of `cached`, which is at `path`, a second time.
    pub(super) fn open(cached: HostFile, path: &Path, write: bool) -> Result<Self> {
        let refuse = |why: &str| BlockError::Unsupported {
            file: path.display().to_string(),
            what: format!(
                "{why}, so that it cannot be used past the host's page cache (cache=none, cache=directsync); \
                 use cache=writeback or cache=writethrough"
            ),
        };
        let io = |source| BlockError::Io {
            file: path.display().to_string(),
            action: "open without the page cache",
            source,
        };
        let flags = i32::try_from((OFlags::DIRECT | OFlags::NONBLOCK).bits()).unwrap_or(0);
        let opened = fs::OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(path);
        let direct = match opened {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                return Err(refuse("its file system knows no O_DIRECT"));
            }
            opened => opened.map_err(io)?,
        };
        let id = |file: &fs::File| file.metadata().map(|data| (data.dev(), data.ino())).map_err(io);
        if id(&direct)? != id(cached.file())? {
            return Err(refuse("another file has taken its name meanwhile"));
        }
        let align =
            Alignment::of(&direct).ok_or_else(|| refuse("its file system says that it takes no direct accesses"))?;
        // Some only say so when it is tried.
        let mut first = Buffer::new(align.block, align.memory);
        match read(&direct, 0, first.get(), align.block) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                return Err(refuse("its file system refuses accesses with O_DIRECT"));
            }
            tried => tried.map_err(io)?,
        };
        tracing::debug!(path = %path.display(), ?align, "no page cache");
        Ok(Self {
            cached,
            direct,
            align,
            parts: RwLock::new(()),
        })
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.parts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for accesses of `len` bytes that do not fit.
    fn buffer(&self, len: usize) -> Buffer {
        let whole = len.next_multiple_of(self.align.block) + self.align.block;
        Buffer::new(whole.min(PIECE.max(self.align.block)), self.align.memory)
    }

    /// Writes a part of a block.
    fn write_part(&self, step: &Step, bytes: &[u8], buffer: &mut Buffer) -> io::Result<()> {
        let _alone = self.alone();
        let block = buffer.get().get_mut(..step.whole).unwrap_or_default();
        let there = read(&self.direct, step.start, block, self.align.block)?;
        if there < step.whole {
            // The file ends here, or before.
            return self.cached.write_at(step.start + step.skip as u64, bytes);
        }
        if let Some(place) = block.get_mut(step.skip..step.skip + step.len) {
            place.copy_from_slice(bytes);
        }
        self.direct.write_all_at(block, step.start)
    }
}

impl Store for DirectFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        // As of a plain file, whose positions end there.
        if offset > i64::MAX as u64 {
            return Ok(0);
        }
        let mut buffer = None;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let fits = self.align.holds(rest);
            let step = self.align.step(at, rest.len(), if fits { usize::MAX } else { PIECE });
            let room = rest.len();
            let part = rest.get_mut(..step.len).unwrap_or_default();
            let got = if fits && step.is_whole() {
                read(&self.direct, step.start, part, self.align.block)?
            } else {
                let buffer = buffer.get_or_insert_with(|| self.buffer(room));
                let whole = buffer.get().get_mut(..step.whole).unwrap_or_default();
                let got = read(&self.direct, step.start, whole, self.align.block)?;
                let got = got.saturating_sub(step.skip).min(step.len);
                let (to, from) = (part.get_mut(..got), whole.get(step.skip..step.skip + got));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                got
            };
            done += got;
            if got < step.len {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut buffer = None;
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::FileTooLarge)?;
            let fits = self.align.holds(rest);
            let step = self.align.step(at, rest.len(), if fits { usize::MAX } else { PIECE });
            let part = rest.get(..step.len).unwrap_or_default();
            if fits && step.is_whole() {
                let _shared = self.shared();
                self.direct.write_all_at(part, step.start)?;
            } else {
                let buffer = buffer.get_or_insert_with(|| self.buffer(rest.len()));
                if step.is_whole() {
                    let whole = buffer.get().get_mut(..step.whole).unwrap_or_default();
                    whole.copy_from_slice(part);
                    let _shared = self.shared();
                    self.direct.write_all_at(whole, step.start)?;
                } else {
                    self.write_part(&step, part, buffer)?;
                }
            }
            done += step.len;
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.cached.length()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _alone = self.alone();
        self.cached.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.cached.sync()
    }

    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        let _alone = self.alone();
        self.cached.zero(offset, len, keep)
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        self.cached.data_run(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.cached.allocated()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIGN: Alignment = Alignment {
        memory: 512,
        block: 4096,
    };

    #[test]
    fn steps_are_parts_of_one_block_or_whole_blocks() {
        let step = |offset, len| {
            let Step {
                start,
                whole,
                skip,
                len,
            } = ALIGN.step(offset, len, PIECE);
            (start, whole, skip, len)
        };
        assert_eq!(step(4096, 4096), (4096, 4096, 0, 4096));
        assert_eq!(step(4096, 100), (4096, 4096, 0, 100));
        assert_eq!(step(5000, 100), (4096, 4096, 904, 100));
        assert_eq!(step(5000, 9000), (4096, 4096, 904, 3192));
        assert_eq!(step(8192, 9000), (8192, 8192, 0, 8192));
        assert_eq!(step(0, 3 << 20), (0, 1 << 20, 0, 1 << 20));
    }

    #[test]
    fn buffer_starts_at_a_multiple_of_any_alignment() {
        for align in [1, 4, 512, 4096, 1 << 20] {
            let mut buffer = Buffer::new(5000, align);
            assert!(buffer.get().as_ptr().addr().is_multiple_of(align));
            assert_eq!(buffer.get().len(), 5000);
        }
    }
}
