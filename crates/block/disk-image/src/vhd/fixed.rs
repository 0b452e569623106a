//! Fixed VHD images: the disk's bytes, and a footer behind them.
//!
//! A resize writes the new footer before it gives up the old one.

use std::path::PathBuf;

use device_model::Inspect;
use device_model::Node;

use super::format::FIXED;
use super::format::Footer;
use super::format::MAX_SIZE;
use super::format::SECTOR;
use crate::BlockBackend;
use crate::BlockError;
use crate::CreateOptions;
use crate::Extent;
use crate::Format;
use crate::Identity;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::Variant;
use crate::image;
use crate::open::Opening;
use crate::raw::Window;
use crate::store::File;

/// A fixed image: the disk's bytes, and a footer.
pub(super) struct FixedVhd {
    window: Window,
    path: PathBuf,
    writable: bool,
    footer: Footer,
}

impl FixedVhd {
    pub(super) fn new(opening: &Opening, file: File, footer: Footer) -> Self {
        Self {
            window: Window::new(file, 0, footer.size),
            path: opening.path.clone(),
            writable: opening.write(),
            footer,
        }
    }

    fn writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(BlockError::ReadOnly {
            file: self.window.file().name().to_owned(),
            what: "the image was opened for reading only".to_owned(),
        })
    }
}

impl BlockBackend for FixedVhd {
    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Vhd,
            variant: "fixed".to_owned(),
            size: self.window.size(),
            sector_size: 512,
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

impl Image for FixedVhd {
    fn check(&self, _repair: bool) -> Result<Report> {
        Ok(Report::default())
    }

    /// The new footer is there before the old one is given up.
    fn resize(&self, size: u64) -> Result<bool> {
        self.writable()?;
        if size > MAX_SIZE {
            return Err(BlockError::Usage(format!(
                "a disk of {size} bytes is too large for VHD (2040 GiB)"
            )));
        }
        let (file, old) = (self.window.file(), self.window.size());
        let footer = Footer::make(size, FIXED, self.footer.uuid);
        if size < old {
            // The footer at the end counts as long as it is there.
            file.write(size, &footer)?;
            file.sync()?;
            file.set_len(size + SECTOR)?;
        } else {
            file.write(size, &footer)?;
            file.sync()?;
            file.zero(old, (size - old).min(SECTOR), true)?;
        }
        self.window.set_size(size);
        self.window.flush()?;
        Ok(true)
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn allocated(&self) -> Result<u64> {
        self.window.file().allocated()
    }

    fn identity(&self) -> Identity {
        Identity {
            uuid: self.footer.uuid,
            ..Identity::default()
        }
    }

    fn kind(&self) -> CreateOptions {
        CreateOptions {
            variant: Variant::Fixed,
            ..CreateOptions::new(Format::Vhd, self.window.size())
        }
    }
}

impl Inspect for FixedVhd {
    fn inspect(&self) -> Node {
        image::inspect(self)
    }
}
