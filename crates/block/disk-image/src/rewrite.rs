//! Making an image smaller, or of another size.
//!
//! Formats without a way to do that in place are written anew beside the old file, which is then replaced: whatever
//! happens, one of the two is there, whole.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::BlockError;
use crate::CreateOptions;
use crate::ExtentKind;
use crate::Files;
use crate::Format;
use crate::Image;
use crate::OpenOptions;
use crate::ParentReference;
use crate::Progress;
use crate::Result;
use crate::Variant;
use crate::Watcher;
use crate::convert;
use crate::convert::CopyOptions;
use crate::convert::GRAIN;
use crate::create;
use crate::create::Unfinished;
use crate::open_in;

/// Gives back the space of zeros and of what the disk does not use. Returns the bytes occupied before and after.
///
/// # Errors
/// The image cannot be opened for writing or rewritten.
pub fn compact(
    files: &Arc<dyn Files>,
    path: &Path,
    options: &OpenOptions,
    watcher: &mut Watcher<'_>,
) -> Result<(u64, u64)> {
    let image = open_in(
        files,
        path,
        &OpenOptions {
            write: true,
            ..*options
        },
    )?;
    let before = image.allocated()?;
    let kind = image.kind();
    if image.info().block_size <= 1 || kind.variant == Variant::Fixed {
        punch(&*image, watcher)?;
        return Ok((before, image.allocated()?));
    }
    let rewriting = Rewriting {
        files,
        image: &*image,
        path,
        size: image.info().size,
        zeros: 0..0,
    };
    let after = rewriting.run(kind, watcher)?;
    Ok((before, after))
}

/// Makes holes where the disk has zeros.
fn punch(image: &dyn Image, watcher: &mut Watcher<'_>) -> Result<()> {
    let total = image.info().size;
    let mut buf = vec![0; GRAIN as usize];
    let mut done = 0;
    while done < total {
        let extent = image.extent(done)?;
        let mut len = extent.len;
        if extent.kind == ExtentKind::Data {
            len = len.min(GRAIN - done % GRAIN);
            let part = buf
                .get_mut(..usize::try_from(len).unwrap_or(GRAIN as usize))
                .unwrap_or_default();
            image.read_at(done, part)?;
            if convert::is_zero(part) {
                image.discard(done, len)?;
            }
        }
        done += len.max(1);
        watcher(Progress {
            done: done.min(total),
            total,
        })?;
    }
    image.flush()
}

/// Changes the size of the disk. Shrinking loses what is behind the new end.
///
/// # Errors
/// The image cannot be opened for writing, resized or rewritten.
pub fn resize(
    files: &Arc<dyn Files>,
    path: &Path,
    options: &OpenOptions,
    size: u64,
    watcher: &mut Watcher<'_>,
) -> Result<()> {
    if !size.is_multiple_of(512) || i64::try_from(size).is_err() {
        return Err(BlockError::Usage(format!(
            "a disk of {size} bytes is not a whole number of sectors of 512 bytes, or too large"
        )));
    }
    let image = open_in(
        files,
        path,
        &OpenOptions {
            write: true,
            ..*options
        },
    )?;
    let old = image.info().size;
    if image.resize(size)? {
        return Ok(());
    }
    let kind = CreateOptions {
        size: Some(size),
        ..image.kind()
    };
    // What is behind the new end is not copied; what is behind the old one is zeros, whatever a parent has there.
    let parent_size = image.parent().map_or(0, |(_, parent)| parent.info().size);
    let rewriting = Rewriting {
        files,
        image: &*image,
        path,
        size: size.min(old),
        zeros: old..parent_size.min(size),
    };
    rewriting.run(kind, watcher).map(drop)
}

/// An image that is written as a new file in place of the old one.
struct Rewriting<'a> {
    files: &'a Arc<dyn Files>,
    image: &'a dyn Image,
    path: &'a Path,
    /// How much of the disk is copied.
    size: u64,
    /// What has to be zeros besides.
    zeros: Range<u64>,
}

impl Rewriting<'_> {
    /// Returns the bytes that the new file occupies.
    fn run(&self, kind: CreateOptions, watcher: &mut Watcher<'_>) -> Result<u64> {
        if let Some(why) = self.image.pinned() {
            return Err(BlockError::Unsupported {
                file: self.path.display().to_string(),
                what: format!("the image cannot be rewritten: {why}"),
            });
        }
        let parent = self.image.parent().map(|(path, parent)| ParentReference {
            path,
            format: Some(parent.info().format),
        });
        let kind = CreateOptions {
            parent,
            identity: Some(self.image.identity()),
            named: Some(self.path.to_owned()),
            ..kind
        };
        let unfinished = Unfinished::new(self.files, self.path, kind.format);
        let after = self
            .write(&unfinished.path, &kind, watcher)
            .map_err(|error| error.renamed(&unfinished.path, self.path))?;
        self.files.rename(&unfinished.path, self.path)?;
        unfinished.done();
        Ok(after)
    }

    /// Makes the new file.
    fn write(&self, path: &Path, kind: &CreateOptions, watcher: &mut Watcher<'_>) -> Result<u64> {
        let open = |write| {
            let options = OpenOptions {
                write,
                format: Some(kind.format),
                share: false,
            };
            open_in(self.files, path, &options)
        };
        let source = Limited {
            image: self.image,
            size: self.size,
        };
        if kind.variant == Variant::StreamOptimized {
            convert::copy_to(self.files, &source, path, kind, false, watcher)?;
            return open(false)?.allocated();
        }
        let options = CopyOptions {
            // Compressed clusters become compressed ones again.
            compress: kind.format == Format::Qcow2 && self.image.check(false)?.compressed > 0,
            layer: true,
            over_parent: kind.parent.is_some(),
        };
        create::make(self.files, path, kind)?;
        let target = open(true)?;
        convert::into_image(&source, &*target, options, watcher)?;
        if !self.zeros.is_empty() {
            target.discard(self.zeros.start, self.zeros.end - self.zeros.start)?;
        }
        target.set_identity(&self.image.identity())?;
        target.flush()?;
        drop(target);
        open(false)?.allocated()
    }
}

/// The first bytes of an image.
struct Limited<'a> {
    image: &'a dyn Image,
    size: u64,
}

impl device_model::Inspect for Limited<'_> {
    fn inspect(&self) -> device_model::Node {
        self.image.inspect()
    }
}

impl crate::BlockBackend for Limited<'_> {
    fn info(&self) -> crate::ImageInfo {
        crate::ImageInfo {
            size: self.size,
            ..self.image.info()
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.image.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.image.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.image.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.image.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.image.flush()
    }

    fn extent(&self, offset: u64) -> Result<crate::Extent> {
        self.image.extent(offset)
    }
}
