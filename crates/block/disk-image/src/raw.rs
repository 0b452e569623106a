//! Raw images: the disk's bytes and nothing else; and CDs and DVDs, which are raw with sectors of 2048 bytes.
//!
//! Holes of the file are the disk's unallocated parts. A file whose length is no multiple of a sector is padded with
//! zeros when it is read; writing needs a whole number of sectors.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use device_model::Inspect;
use device_model::Node;

use crate::BlockBackend;
use crate::BlockError;
use crate::CreateOptions;
use crate::Extent;
use crate::ExtentKind;
use crate::Format;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::engine::in_range;
use crate::image;
use crate::open::Opening;
use crate::store::File;

const SECTOR: u64 = 512;

/// A part of a file that is a disk, or a part of one.
#[derive(Debug)]
pub(crate) struct Window {
    file: File,
    start: u64,
    size: AtomicU64,
    unsynced: AtomicBool,
}

impl Window {
    pub(crate) fn new(file: File, start: u64, size: u64) -> Self {
        Self {
            file,
            start,
            size: AtomicU64::new(size),
            unsynced: AtomicBool::new(false),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
        self.unsynced.store(true, Ordering::Release);
    }

    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        in_range(offset, buf.len() as u64, self.size())?;
        self.file.read_padded(self.start + offset, buf)
    }

    pub(crate) fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        in_range(offset, buf.len() as u64, self.size())?;
        let result = self.file.write(self.start + offset, buf);
        self.unsynced.store(true, Ordering::Release);
        result
    }

    pub(crate) fn zero_range(&self, offset: u64, len: u64, discard: bool) -> Result<()> {
        in_range(offset, len, self.size())?;
        let result = self.file.zero(self.start + offset, len, !discard);
        self.unsynced.store(true, Ordering::Release);
        result
    }

    pub(crate) fn flush(&self) -> Result<()> {
        if self.unsynced.swap(false, Ordering::AcqRel)
            && let Err(error) = self.file.sync()
        {
            self.unsynced.store(true, Ordering::Release);
            return Err(error);
        }
        Ok(())
    }

    pub(crate) fn extent(&self, offset: u64) -> Result<Extent> {
        let size = self.size();
        in_range(offset, 1, size)?;
        let at = self.start + offset;
        let (data, end) = self.file.data_run(at)?;
        Ok(Extent {
            len: end.saturating_sub(at).clamp(1, size - offset),
            kind: if data {
                ExtentKind::Data
            } else {
                ExtentKind::Unallocated
            },
            depth: 0,
        })
    }
}

struct Raw {
    window: Window,
    path: PathBuf,
    format: Format,
    writable: bool,
}

/// Opens a file as it is.
pub(crate) fn open(opening: &Opening, file: File, format: Format) -> Result<Arc<dyn Image>> {
    let len = file.len()?;
    if format == Format::Iso && opening.write() {
        return Err(BlockError::ReadOnly {
            file: file.name().to_owned(),
            what: "images of CDs and DVDs are for reading; give --format raw to change the file".to_owned(),
        });
    }
    if opening.write() && !len.is_multiple_of(SECTOR) {
        return Err(file.unsupported(format!(
            "the length of {len} bytes is no multiple of a sector of {SECTOR}; pad the file first, as with `truncate -s %512`"
        )));
    }
    let size = len.div_ceil(SECTOR).saturating_mul(SECTOR);
    Ok(Arc::new(Raw {
        window: Window::new(file, 0, size),
        path: opening.path.clone(),
        format,
        writable: opening.write(),
    }))
}

impl Raw {
    fn writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(BlockError::ReadOnly {
            file: self.window.file.name().to_owned(),
            what: "the image was opened for reading only".to_owned(),
        })
    }
}

impl BlockBackend for Raw {
    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: self.format,
            variant: String::new(),
            size: self.window.size(),
            sector_size: if self.format == Format::Iso { 2048 } else { 512 },
            block_size: 1,
            writable: self.writable,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.window.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.writable()?;
        self.window.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.window.zero_range(offset, len, false)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.window.zero_range(offset, len, true)
    }

    fn flush(&self) -> Result<()> {
        self.window.flush()
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        self.window.extent(offset)
    }
}

impl Image for Raw {
    /// Whatever a raw file holds is sound.
    fn check(&self, _repair: bool) -> Result<Report> {
        Ok(Report::default())
    }

    fn resize(&self, size: u64) -> Result<bool> {
        self.writable()?;
        self.window.file.set_len(size)?;
        self.window.set_size(size);
        self.flush()?;
        Ok(true)
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn allocated(&self) -> Result<u64> {
        self.window.file.allocated()
    }

    fn kind(&self) -> CreateOptions {
        CreateOptions::new(self.format, self.window.size())
    }
}

impl Inspect for Raw {
    fn inspect(&self) -> Node {
        image::inspect(self)
    }
}
