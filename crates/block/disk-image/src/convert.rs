//! Copying and comparing disks of whatever format.

use std::path::Path;
use std::sync::Arc;

use crate::BlockBackend;
use crate::BlockError;
use crate::CreateOptions;
use crate::Extent;
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

/// Data moves in pieces of at most this many bytes.
const PIECE: u64 = 2 << 20;
/// Holes that are shorter than this are read with the data around them.
const GAP: u64 = 65536;
/// Zeros are looked for in pieces of this many bytes, or of a block where that is smaller.
pub(crate) const GRAIN: u64 = 65536;

/// How far a long operation is, in bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Done.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// Whoever is told how far an operation is. An error of his ends it, and what was begun is removed.
pub type Watcher<'a> = dyn FnMut(Progress) -> Result<()> + 'a;

/// How a copy is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CopyOptions {
    /// Blocks are written compressed where the format has that.
    pub(crate) compress: bool,
    /// Only what the source itself has, not what its parents have.
    pub(crate) layer: bool,
    /// The target has a parent: zeros have to be written, and what it has already has not.
    pub(crate) over_parent: bool,
}

/// Where a copy goes: pieces come in rising order.
pub(crate) trait Sink {
    /// Unit of allocation in bytes, a power of two.
    fn block(&self) -> u64;
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    fn zero(&mut self, offset: u64, len: u64) -> Result<()>;
    fn finish(&mut self) -> Result<()>;
}

/// What a sink takes at once to find out what is alike.
fn grain(sink: &dyn Sink) -> u64 {
    sink.block().clamp(4096, GRAIN)
}

struct ImageSink<'a> {
    image: &'a dyn Image,
    options: CopyOptions,
    block: u64,
    /// What the target has already.
    present: Vec<u8>,
}

impl ImageSink<'_> {
    fn put(&self, offset: u64, data: &[u8]) -> Result<()> {
        match self.options.compress {
            true => self.image.write_packed(offset, data),
            false => self.image.write_at(offset, data),
        }
    }
}

impl Sink for ImageSink<'_> {
    fn block(&self) -> u64 {
        self.block
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        if !self.options.over_parent || self.options.layer {
            return self.put(offset, data);
        }
        let mut present = std::mem::take(&mut self.present);
        present.resize(data.len(), 0);
        self.image.read_at(offset, &mut present)?;
        let grain = grain(self);
        let differs = |at: usize, part: &[u8]| present.get(at..at + part.len()) != Some(part);
        let result = in_runs(offset, data, grain, differs, |offset, part, differs| match differs {
            true => self.put(offset, part),
            false => Ok(()),
        });
        self.present = present;
        result
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
/// The image gets its name when it is whole; until then it has another one beside it.
///
/// # Errors
/// The image cannot be made, one of the two fails, or `watcher` does not want to go on. What was made of the new image
/// is removed.
pub fn copy(
    files: &Arc<dyn Files>,
    source: &dyn Image,
    path: &Path,
    options: &CreateOptions,
    compress: bool,
    watcher: &mut Watcher<'_>,
) -> Result<()> {
    if compress && options.format != Format::Qcow2 && options.variant != Variant::StreamOptimized {
        return Err(BlockError::Usage(
            "only qcow2 and vmdk's streamOptimized are compressed; leave out --compress".to_owned(),
        ));
    }
    create::in_place_of_nothing(files, path, options, &mut |path, options| {
        copy_to(files, source, path, options, compress, watcher)
    })
}

/// Copies to a name that nobody else uses. What is left of the image after an error is up to the caller.
pub(crate) fn copy_to(
    files: &Arc<dyn Files>,
    source: &dyn BlockBackend,
    path: &Path,
    options: &CreateOptions,
    compress: bool,
    watcher: &mut Watcher<'_>,
) -> Result<()> {
    let copied = CopyOptions {
        compress,
        layer: false,
        over_parent: options.parent.is_some(),
    };
    if options.variant == Variant::StreamOptimized {
        let making = prepare(files, path, options)?;
        let file = File::open(&**files, path, Access::Create)?;
        return run(source, &mut StreamWriter::new(&making, file)?, copied, watcher);
    }
    create::make(files, path, options)?;
    let open = OpenOptions {
        format: Some(options.format),
        ..OpenOptions::writable()
    };
    into_image(source, &*open_in(files, path, &open)?, copied, watcher)
}

/// Copies into an image that is still empty.
pub(crate) fn into_image(
    source: &dyn BlockBackend,
    target: &dyn Image,
    options: CopyOptions,
    watcher: &mut Watcher<'_>,
) -> Result<()> {
    let mut sink = ImageSink {
        image: target,
        options,
        block: target.info().block_size.max(1),
        present: Vec::new(),
    };
    run(source, &mut sink, options, watcher)
}

/// Walks through the extents of the source.
fn run(source: &dyn BlockBackend, sink: &mut dyn Sink, options: CopyOptions, watcher: &mut Watcher<'_>) -> Result<()> {
    let total = source.info().size;
    // Blocks of the target stay whole, so that each is written once. Of a layer not a byte more is copied than it has.
    let align = if options.layer { 1 } else { sink.block().min(PIECE) };
    let is_data = |extent: Extent| extent.kind == ExtentKind::Data && !(options.layer && extent.depth > 0);
    let mut buf = vec![0; usize::try_from(PIECE.min(total)).unwrap_or_default()];
    let mut done = 0;
    while done < total {
        let extent = source.extent(done)?;
        let end = done.saturating_add(extent.len).min(total);
        let whole = if end == total { end } else { end - end % align };
        let next = if is_data(extent) || whole <= done {
            let limit = (done - done % PIECE + PIECE).min(total);
            let end = data_end(source, end, limit, if options.layer { 0 } else { GAP }, is_data)?;
            let end = end.next_multiple_of(align).min(limit);
            let len = usize::try_from(end - done).unwrap_or_default();
            let piece = buf.get_mut(..len).unwrap_or_default();
            source.read_at(done, piece)?;
            write_data(sink, done, piece)?;
            end
        } else {
            if !(options.layer && (extent.depth > 0 || extent.kind == ExtentKind::Unallocated)) {
                sink.zero(done, whole - done)?;
            }
            whole
        };
        done = next.max(done + 1);
        watcher(Progress { done, total })?;
    }
    sink.finish()
}

/// Where the data that reaches to `end` ends, with short holes in it; at `limit` at most.
fn data_end(
    source: &dyn BlockBackend,
    mut end: u64,
    limit: u64,
    gap: u64,
    is_data: impl Fn(Extent) -> bool,
) -> Result<u64> {
    while end < limit {
        let extent = source.extent(end)?;
        if !is_data(extent) && extent.len >= gap {
            break;
        }
        end = end.saturating_add(extent.len.max(1));
    }
    Ok(end.min(limit))
}

/// Writes a piece without its zeros.
fn write_data(sink: &mut dyn Sink, offset: u64, piece: &[u8]) -> Result<()> {
    let zero = |_: usize, part: &[u8]| is_zero(part);
    in_runs(offset, piece, grain(sink), zero, |offset, part, zero| match zero {
        true => sink.zero(offset, part.len() as u64),
        false => sink.write(offset, part),
    })
}

/// Tells `each` of runs of grains for which `kind`, which gets their place in `piece`, is the same. Grains begin at
/// multiples of their size.
fn in_runs(
    offset: u64,
    piece: &[u8],
    grain: u64,
    kind: impl Fn(usize, &[u8]) -> bool,
    mut each: impl FnMut(u64, &[u8], bool) -> Result<()>,
) -> Result<()> {
    let (mut start, mut at, mut last) = (0, 0, false);
    while at < piece.len() {
        let to_next = grain - (offset + at as u64) % grain;
        let end = usize::try_from(to_next).map_or(piece.len(), |len| (at + len).min(piece.len()));
        let this = kind(at, piece.get(at..end).unwrap_or_default());
        if this != last && at > start {
            each(offset + start as u64, piece.get(start..at).unwrap_or_default(), last)?;
            start = at;
        }
        (last, at) = (this, end);
    }
    match piece.get(start..) {
        None | Some([]) => Ok(()),
        Some(rest) => each(offset + start as u64, rest, last),
    }
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
pub fn compare(a: &dyn BlockBackend, b: &dyn BlockBackend, watcher: &mut Watcher<'_>) -> Result<Comparison> {
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
        watcher(Progress { done, total })?;
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
