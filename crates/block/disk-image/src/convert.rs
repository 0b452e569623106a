//! Copying and comparing disks of whatever format.

use std::path::Path;
use std::sync::Arc;

use crate::BlockBackend;
use crate::BlockError;
use crate::CreateOptions;
use crate::ExtentKind;
use crate::Files;
use crate::Format;
use crate::Image;
use crate::OpenOptions;
use crate::Result;
use crate::Variant;
use crate::create;
use crate::create::prepare;
use crate::open_in;
use crate::store::Access;
use crate::store::File;
use crate::vmdk::stream::StreamWriter;

/// Data moves in pieces of this many bytes.
const PIECE: u64 = 2 << 20;
/// Zeros are looked for in pieces of this many bytes.
pub(crate) const GRAIN: usize = 65536;

/// How far a long operation is, in bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Done.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// How a copy is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CopyOptions {
    /// Blocks are written compressed where the format has that.
    pub(crate) compress: bool,
    /// Only what the source itself has, not what its parents have.
    pub(crate) layer: bool,
    /// The target has a parent: zeros have to be written.
    pub(crate) over_parent: bool,
}

/// Where a copy goes: pieces come in rising order.
pub(crate) trait Sink {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    fn zero(&mut self, offset: u64, len: u64) -> Result<()>;
    fn finish(&mut self) -> Result<()>;
}

struct ImageSink<'a> {
    image: &'a dyn Image,
    options: CopyOptions,
    block: u64,
}

impl Sink for ImageSink<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        if !self.options.compress {
            return self.image.write_at(offset, data);
        }
        let mut at = offset;
        for block in data.chunks(usize::try_from(self.block).unwrap_or(GRAIN)) {
            if !self.image.write_packed(at, block)? {
                self.image.write_at(at, block)?;
            }
            at += block.len() as u64;
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        if self.options.over_parent {
            self.image.discard(offset, len)
        } else {
            Ok(())
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.image.flush()
    }
}

/// Makes a new image of the format that `options` say, with the contents of `source`. With a parent in `options`, the
/// new image has only what differs from it. Compressed where that is asked for and the format can.
///
/// # Errors
/// The image cannot be made, or one of the two fails. What was made of the new image is removed.
pub fn copy(
    files: &Arc<dyn Files>,
    source: &dyn Image,
    path: &Path,
    options: &CreateOptions,
    compress: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    if compress && options.format != Format::Qcow2 && options.variant != Variant::StreamOptimized {
        return Err(BlockError::Usage(
            "only qcow2 and vmdk's streamOptimized are compressed; leave out --compress".to_owned(),
        ));
    }
    let copied = CopyOptions {
        compress,
        layer: false,
        over_parent: options.parent.is_some(),
    };
    if options.variant == Variant::StreamOptimized {
        let making = prepare(files, path, options)?;
        let file = File::open(&**files, path, Access::Create)?;
        let result = StreamWriter::new(&making, file).and_then(|mut writer| run(source, &mut writer, copied, progress));
        return clean(files, path, result);
    }
    create(files, path, options)?;
    let result = open_in(
        files,
        path,
        &OpenOptions {
            format: Some(options.format),
            ..OpenOptions::writable()
        },
    )
    .and_then(|target| into_image(source, &*target, copied, progress));
    clean(files, path, result)
}

fn clean(files: &Arc<dyn Files>, path: &Path, result: Result<()>) -> Result<()> {
    if result.is_err() {
        let _ = files.remove(path);
    }
    result
}

/// Copies into an image that is still empty.
pub(crate) fn into_image(
    source: &dyn BlockBackend,
    target: &dyn Image,
    options: CopyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let block = target.info().block_size.max(1);
    run(
        source,
        &mut ImageSink {
            image: target,
            options,
            block,
        },
        options,
        progress,
    )
}

/// Walks through the extents of the source.
fn run(
    source: &dyn BlockBackend,
    sink: &mut dyn Sink,
    options: CopyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let total = source.info().size;
    let mut buf = vec![0; usize::try_from(PIECE.min(total)).unwrap_or_default()];
    let mut done = 0;
    while done < total {
        let extent = source.extent(done)?;
        let foreign = options.layer && (extent.depth > 0 || extent.kind == ExtentKind::Unallocated);
        let len = match extent.kind {
            _ if foreign => extent.len,
            ExtentKind::Zero | ExtentKind::Unallocated => {
                sink.zero(done, extent.len.min(total - done))?;
                extent.len
            }
            ExtentKind::Data => {
                // Pieces end at multiples of their size, so that blocks stay whole.
                let len = extent.len.min(PIECE - done % PIECE).min(total - done);
                let piece = buf
                    .get_mut(..usize::try_from(len).unwrap_or_default())
                    .unwrap_or_default();
                source.read_at(done, piece)?;
                write_data(sink, done, piece)?;
                len
            }
        };
        done += len.min(total - done).max(1);
        progress(Progress { done, total });
    }
    sink.finish()
}

/// Writes a piece without its zeros.
fn write_data(sink: &mut dyn Sink, offset: u64, piece: &[u8]) -> Result<()> {
    let mut start = 0;
    let mut at = 0;
    let mut send = |from: usize, to: usize, zero: bool| match piece.get(from..to) {
        None | Some([]) => Ok(()),
        Some(part) if zero => sink.zero(offset + from as u64, part.len() as u64),
        Some(part) => sink.write(offset + from as u64, part),
    };
    for grain in piece.chunks(GRAIN) {
        if is_zero(grain) {
            send(start, at, false)?;
            send(at, at + grain.len(), true)?;
            start = at + grain.len();
        }
        at += grain.len();
    }
    send(start, at, false)
}

/// Nothing but zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes.
    Equal,
    /// The same bytes as far as the shorter one goes, and zeros behind.
    Longer {
        /// Size of the shorter disk.
        size: u64,
    },
    /// They differ.
    Different {
        /// Offset of the first byte that differs.
        offset: u64,
    },
}

/// Compares the contents of two disks.
///
/// # Errors
/// One of them cannot be read.
pub fn compare(a: &dyn BlockBackend, b: &dyn BlockBackend, progress: &mut dyn FnMut(Progress)) -> Result<Comparison> {
    let (size_a, size_b) = (a.info().size, b.info().size);
    let total = size_a.max(size_b);
    let mut bufs = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut done = 0;
    while done < total {
        let kind_a = known(a, done, size_a, total)?;
        let kind_b = known(b, done, size_b, total)?;
        let mut len = kind_a.1.min(kind_b.1);
        if kind_a.0 || kind_b.0 {
            len = len.min(1 << 20);
            let [buf_a, buf_b] = &mut bufs;
            let part = usize::try_from(len).unwrap_or_default();
            let (Some(left), Some(right)) = (buf_a.get_mut(..part), buf_b.get_mut(..part)) else {
                break;
            };
            fill(a, done, size_a, left)?;
            fill(b, done, size_b, right)?;
            if left != right {
                let first = left
                    .iter()
                    .zip(&*right)
                    .take_while(|(left, right)| left == right)
                    .count();
                return Ok(Comparison::Different {
                    offset: done + first as u64,
                });
            }
        }
        done += len.max(1);
        progress(Progress { done, total });
    }
    Ok(match size_a == size_b {
        true => Comparison::Equal,
        false => Comparison::Longer {
            size: size_a.min(size_b),
        },
    })
}

/// Whether there is data at `offset`, and how far that is so.
fn known(disk: &dyn BlockBackend, offset: u64, size: u64, total: u64) -> Result<(bool, u64)> {
    if offset >= size {
        return Ok((false, total - offset));
    }
    let extent = disk.extent(offset)?;
    Ok((extent.kind == ExtentKind::Data, extent.len.min(size - offset)))
}

fn fill(disk: &dyn BlockBackend, offset: u64, size: u64, buf: &mut [u8]) -> Result<()> {
    let inside = usize::try_from(size.saturating_sub(offset)).map_or(buf.len(), |rest| rest.min(buf.len()));
    let (inside, beyond) = buf.split_at_mut(inside);
    beyond.fill(0);
    if inside.is_empty() {
        Ok(())
    } else {
        disk.read_at(offset, inside)
    }
}
