//! What all formats with allocation tables share: reading through parents, copying on write, zeroing, flushing.
//!
//! A format is a [`Tables`]: it says where a block is, gives space to one that has none, and records that. The engine
//! does all input and output of data.
//!
//! ```text
//!   write ─► mapped here ───────────────► write in place                           (shared gate)
//!        └─► not mapped ─► begin: space ─► fill around, write data ─► publish ─┐   (block is busy)
//!   flush ◄── data and early metadata │ sync │ late metadata │ sync │ release ◄┘
//! ```
//!
//! Locks, in their order: flushing, busy ranges, gate, state. The gate is shared while data moves by a mapping that was
//! looked up, and exclusive for the moment in which space that is no longer mapped may be given away. The state is
//! locked for look-ups and changes of tables only, never for the input and output of data.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::BlockError;
use crate::Extent;
use crate::ExtentKind;
use crate::Image;
use crate::Result;
use crate::busy::Busy;
use crate::meta::Meta;
use crate::packed;
use crate::packed::Codec;
use crate::packed::Packed;
use crate::store::File;

/// Data is copied from parents in pieces of at most this many bytes.
const COPY: u64 = 1 << 20;
/// Runs are joined from at most this many looks.
const LOOKS: usize = 16384;
/// Blocks that are allocated at once span at most this many bytes.
const BATCH: u64 = 4 << 20;

/// Where a range of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Map {
    /// In the file.
    Data {
        /// Offset in the file.
        at: u64,
        /// Something else needs it too: it must not be changed.
        shared: bool,
    },
    /// Zeros, whatever a parent has.
    Zero,
    /// Not in this image.
    Parent,
    /// The compressed block that holds it.
    Packed(Packed),
}

/// A range of one kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) map: Map,
    /// In bytes, at least 1.
    pub(crate) len: u64,
}

/// Space for blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Offset in the file of the first block.
    pub(crate) at: u64,
    /// In bytes: whole blocks.
    pub(crate) len: u64,
    /// It reads as zeros.
    pub(crate) zeros: bool,
    /// All units of the blocks have to be written, not only those that change.
    pub(crate) whole: bool,
    /// Nothing referred to it before.
    pub(crate) new: bool,
}

/// Space of the file: offset and length.
pub(crate) type Space = (u64, u64);

/// The allocation tables of a format. Called with the state locked; `meta` is the image's metadata.
pub(crate) trait Tables: Send {
    /// What is at `offset`, as far as one look tells. The engine joins runs.
    fn look(&mut self, meta: &mut Meta, offset: u64) -> Result<Run>;

    /// Space for up to `len` bytes of blocks from `offset` on; both are of whole blocks. All of the blocks that it is for
    /// are not writable in place. Nothing refers to it yet.
    fn begin(&mut self, meta: &mut Meta, offset: u64, len: u64) -> Result<Place>;

    /// The units in `range` are at `at` now, that is: their data is written.
    fn publish(&mut self, meta: &mut Meta, range: Range<u64>, at: u64) -> Result<()>;

    /// Whole blocks become zeros without data. False when the format has no way to say so.
    fn zero(&mut self, meta: &mut Meta, range: Range<u64>) -> Result<bool>;

    /// Zeroing a block gives its space back, rather than making a hole in the file.
    fn frees(&self) -> bool {
        false
    }

    /// A space that `begin` gave is not wanted.
    fn abandon(&mut self, _meta: &mut Meta, _place: Place) {}

    /// The first change since the image was opened.
    fn first_write(&mut self, _meta: &mut Meta) -> Result<()> {
        Ok(())
    }

    /// Space that is no longer referred to, once the present state is on the medium.
    fn take_freed(&mut self) -> Vec<Space> {
        Vec::new()
    }

    /// The state that freed `spaces` is on the medium. Returns what no longer holds anything.
    fn release(&mut self, _meta: &mut Meta, _spaces: &[Space]) -> Result<Vec<Space>> {
        Ok(Vec::new())
    }

    /// The image is closed after changes; everything is on the medium.
    fn close(&mut self, _meta: &mut Meta) -> Result<()> {
        Ok(())
    }
}

/// What a format is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Of the disk, in bytes.
    pub(crate) size: u64,
    /// Unit of allocation in bytes; a power of two.
    pub(crate) block: u64,
    /// Unit of presence within a block, in bytes; a power of two.
    pub(crate) unit: u64,
    pub(crate) codec: Codec,
}

/// The image that a child refers to, from `offset` on.
#[derive(Clone)]
pub(crate) struct Parent {
    pub(crate) image: Arc<dyn Image>,
    pub(crate) offset: u64,
}

pub(crate) struct State<T> {
    pub(crate) tables: T,
    pub(crate) meta: Meta,
}

impl<T: Tables> State<T> {
    /// What is at `offset`, for at most `max` bytes. Neighbours of the same kind are joined, as many as can be looked at
    /// in a short time.
    fn lookup(&mut self, offset: u64, max: u64) -> Result<Run> {
        let mut run = self.tables.look(&mut self.meta, offset)?;
        run.len = run.len.max(1);
        for _ in 0..LOOKS {
            if run.len >= max || matches!(run.map, Map::Packed(_)) {
                break;
            }
            let next = match self.tables.look(&mut self.meta, offset.saturating_add(run.len)) {
                Ok(next) => next,
                // Whoever needs that part gets the error.
                Err(_) => break,
            };
            let joined = match (run.map, next.map) {
                (Map::Data { at, shared }, Map::Data { at: next, shared: also }) => {
                    at.checked_add(run.len) == Some(next) && shared == also
                }
                (Map::Zero, Map::Zero) | (Map::Parent, Map::Parent) => true,
                _ => false,
            };
            if !joined {
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        run.len = run.len.min(max);
        Ok(run)
    }
}

pub(crate) struct Engine<T: Tables> {
    // Wiring
    file: File,
    parent: Option<Parent>,
    // Configuration
    writable: bool,
    codec: Codec,
    block: u64,
    unit: u64,
    // State
    size: AtomicU64,
    state: Mutex<State<T>>,
    busy: Busy,
    gate: RwLock<()>,
    flushing: Mutex<()>,
    /// Something was written since the last sync.
    unsynced: AtomicBool,
    changed: AtomicBool,
    unpacked: packed::Cache,
}

/// What is written.
#[derive(Clone, Copy)]
enum Content<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl Content<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }
}

impl<T: Tables> Engine<T> {
    pub(crate) fn new(meta: Meta, tables: T, shape: Shape, parent: Option<Parent>, writable: bool) -> Self {
        Self {
            file: meta.file().clone(),
            parent,
            writable,
            codec: shape.codec,
            block: shape.block,
            unit: shape.unit,
            size: AtomicU64::new(shape.size),
            state: Mutex::new(State { tables, meta }),
            busy: Busy::default(),
            gate: RwLock::new(()),
            flushing: Mutex::new(()),
            unsynced: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            unpacked: packed::Cache::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    /// The file was written to behind the engine's back: a flush must sync.
    pub(crate) fn wrote(&self) {
        self.unsynced.store(true, Ordering::Release);
    }

    fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lookup(&self, offset: u64, max: u64) -> Result<Run> {
        self.state().lookup(offset, max)
    }

    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        in_range(offset, buf.len() as u64, self.size())?;
        self.read_runs(offset, buf)
    }

    /// Reads within the disk.
    fn read_runs(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let gate = self.gate();
            let run = self.lookup(offset, buf.len() as u64)?;
            let len = usize::try_from(run.len).map_or(buf.len(), |len| len.clamp(1, buf.len()));
            let (part, rest) = buf.split_at_mut(len);
            match run.map {
                Map::Data { at, .. } => self.file.read_padded(at, part)?,
                Map::Zero => part.fill(0),
                Map::Parent => {
                    drop(gate);
                    self.read_parent(offset, part)?;
                }
                Map::Packed(packed) => {
                    let within = (offset % self.block) as usize;
                    let least = self.block.min(self.size().saturating_sub(offset - within as u64));
                    let block = self.unpacked.get(&self.file, self.codec, packed, self.block, least)?;
                    part.copy_from_slice(block.get(within..within + len).unwrap_or_default());
                }
            }
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    fn read_parent(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(parent) = &self.parent else {
            buf.fill(0);
            return Ok(());
        };
        let offset = offset.saturating_add(parent.offset);
        let rest = parent.image.info().size.saturating_sub(offset);
        let len = usize::try_from(rest).map_or(buf.len(), |rest| rest.min(buf.len()));
        let (inside, beyond) = buf.split_at_mut(len);
        beyond.fill(0);
        if inside.is_empty() {
            Ok(())
        } else {
            parent.image.read_at(offset, inside)
        }
    }

    /// Bytes from `offset` on that are zeros since no parent has anything there, or none.
    fn unallocated(&self, offset: u64, len: u64) -> Result<u64> {
        let Some(parent) = &self.parent else { return Ok(len) };
        let offset = offset.saturating_add(parent.offset);
        if offset >= parent.image.info().size {
            return Ok(len);
        }
        let extent = parent.image.extent(offset)?;
        Ok(if extent.kind == ExtentKind::Data {
            0
        } else {
            extent.len.min(len)
        })
    }

    fn prepare_write(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(BlockError::ReadOnly {
                file: self.file.name().to_owned(),
                what: "the image was opened for reading only".to_owned(),
            });
        }
        in_range(offset, len, self.size())?;
        if len > 0 && !self.changed.load(Ordering::Acquire) {
            let State { tables, meta } = &mut *self.state();
            if !self.changed.load(Ordering::Acquire) {
                tables.first_write(meta)?;
                self.changed.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    pub(crate) fn write_at(&self, mut offset: u64, mut buf: &[u8]) -> Result<()> {
        self.prepare_write(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let done = match self.write_in_place(offset, buf)? {
                0 => self.write_new(offset, Content::Bytes(buf))?,
                done => done,
            };
            offset += done;
            buf = usize::try_from(done)
                .ok()
                .and_then(|done| buf.get(done..))
                .unwrap_or_default();
        }
        self.relieve()
    }

    /// Writes where the disk already has space of its own. Returns how much; 0 when it has none at `offset`.
    fn write_in_place(&self, offset: u64, buf: &[u8]) -> Result<u64> {
        let _gate = self.gate();
        let run = self.lookup(offset, buf.len() as u64)?;
        let Map::Data { at, shared: false } = run.map else {
            return Ok(0);
        };
        let len = usize::try_from(run.len).map_or(buf.len(), |len| len.min(buf.len()));
        let result = self.file.write(at, buf.get(..len).unwrap_or_default());
        self.wrote();
        result.map(|()| len as u64)
    }

    /// Writes blocks that have no space of their own yet. Returns how much; 0 when they got some meanwhile.
    fn write_new(&self, offset: u64, content: Content<'_>) -> Result<u64> {
        let first = offset - offset % self.block;
        let end = offset + content.len().min(BATCH);
        let last = end.div_ceil(self.block) * self.block;
        let _hold = self.busy.hold(first..last);
        let place = {
            let State { tables, meta } = &mut *self.state();
            if matches!(tables.look(meta, offset)?.map, Map::Data { shared: false, .. }) {
                return Ok(0);
            }
            tables.begin(meta, first, last - first)?
        };
        let mut end = end.min(first + place.len);
        if !place.new {
            // Other units of the block are written in place, by others at this moment too.
            end = end.min(offset.saturating_add(self.lookup(offset, end - offset)?.len));
        }
        let unit = if place.whole { self.block } else { self.unit };
        // The block's tail beyond the end of the disk is zeros, should the disk grow.
        let units = offset - offset % unit..end.div_ceil(unit) * unit;
        let result = self.fill(
            offset..end,
            &units,
            Place {
                at: place.at + (units.start - first),
                ..place
            },
            content,
        );
        self.wrote();
        let State { tables, meta } = &mut *self.state();
        if let Err(error) = result {
            if place.new {
                tables.abandon(meta, place);
            }
            return Err(error);
        }
        tables.publish(meta, units.clone(), place.at + (units.start - first))?;
        Ok(end - offset)
    }

    /// Writes units to where the place begins: the content, and around it what the disk has there now.
    fn fill(&self, range: Range<u64>, units: &Range<u64>, place: Place, content: Content<'_>) -> Result<()> {
        let size = self.size();
        let Range { start: offset, end } = range;
        let at = |offset: u64| place.at + (offset - units.start);
        self.copy(units.start..offset, at(units.start), place.zeros)?;
        self.copy(end..units.end.min(size).max(end), at(end), place.zeros)?;
        let tail = size.max(end)..units.end.max(size.max(end));
        if !place.zeros && !tail.is_empty() {
            self.file.zero(at(tail.start), tail.end - tail.start, false)?;
        }
        match content {
            Content::Bytes(bytes) => {
                let len = usize::try_from(end - offset).unwrap_or(bytes.len());
                self.file.write(at(offset), bytes.get(..len).unwrap_or(bytes))
            }
            Content::Zeros(_) if place.zeros => Ok(()),
            Content::Zeros(_) => self.file.zero(at(offset), end - offset, false),
        }
    }

    /// Copies what the disk has in `range` to `at` in the file, which is zeros already or not.
    fn copy(&self, range: Range<u64>, at: u64, zeros: bool) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let max = (range.end - offset).min(COPY);
            let run = self.lookup(offset, max)?;
            let mut len = run.len.clamp(1, max);
            let to = at + (offset - range.start);
            let empty = match run.map {
                Map::Zero => len,
                Map::Parent => self.unallocated(offset, len)?.min(len),
                _ => 0,
            };
            if empty > 0 {
                len = empty;
                if !zeros {
                    self.file.zero(to, len, false)?;
                }
            } else {
                let mut buf = vec![0; usize::try_from(len).unwrap_or(1 << 20)];
                self.read_runs(offset, &mut buf)?;
                self.file.write(to, &buf)?;
            }
            offset += len;
        }
        Ok(())
    }

    /// Somebody changes tables themselves.
    pub(crate) fn prepare_maintenance(&self) -> Result<()> {
        self.prepare_write(0, 0)?;
        let State { tables, meta } = &mut *self.state();
        if !self.changed.swap(true, Ordering::AcqRel) {
            tables.first_write(meta)?;
        }
        Ok(())
    }

    /// Changes the mapping of a range by other means than a plain write; `change` writes the data too.
    pub(crate) fn write_out_of_line(
        &self,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut T, &mut Meta) -> Result<()>,
    ) -> Result<()> {
        self.prepare_write(offset, len.min(self.size().saturating_sub(offset)))?;
        let _hold = self.busy.hold(offset..offset + len);
        let State { tables, meta } = &mut *self.state();
        let result = change(tables, meta);
        self.wrote();
        result
    }

    /// Makes a range zeros; `discard` gives space back.
    pub(crate) fn zero_range(&self, mut offset: u64, mut len: u64, discard: bool) -> Result<()> {
        self.prepare_write(offset, len)?;
        while len > 0 {
            let done = self.zero_part(offset, len, discard)?;
            offset += done;
            len = len.saturating_sub(done);
        }
        self.relieve()
    }

    fn zero_part(&self, offset: u64, len: u64, discard: bool) -> Result<u64> {
        let to_end = self.block - offset % self.block;
        let disk_end = offset + len == self.size();
        let whole = offset.is_multiple_of(self.block) && (len >= self.block || disk_end);
        let gate = self.gate();
        let run = self.lookup(offset, len)?;
        let run_len = run.len.clamp(1, len);
        match run.map {
            Map::Zero => return Ok(run_len),
            Map::Parent => {
                let empty = self.unallocated(offset, run_len)?;
                if empty > 0 {
                    return Ok(empty.min(run_len));
                }
            }
            Map::Data { at, shared: false } => {
                let (frees, part) = match whole {
                    true => (self.state().tables.frees(), run_len),
                    false => (false, run_len.min(to_end)),
                };
                if !frees {
                    let result = self.file.zero(at, part, !discard);
                    self.wrote();
                    return result.map(|()| part);
                }
            }
            _ => {}
        }
        drop(gate);
        if whole {
            // As far as the run goes, in whole blocks; the disk's last block may be short.
            let blocks = if run_len == len && disk_end {
                len.div_ceil(self.block)
            } else {
                run_len / self.block
            };
            let end = offset + blocks.clamp(1, BATCH.div_ceil(self.block)) * self.block;
            let _hold = self.busy.hold(offset..end);
            let State { tables, meta } = &mut *self.state();
            if tables.zero(meta, offset..end)? {
                return Ok((end - offset).min(len));
            }
        }
        // Nothing was done when somebody else gave the block space meanwhile: look again.
        self.write_new(
            offset,
            Content::Zeros(run_len.min(if whole { run_len } else { to_end })),
        )
    }

    /// Writes metadata when much of it waits.
    fn relieve(&self) -> Result<()> {
        if self.state().meta.is_full() {
            self.flush()
        } else {
            Ok(())
        }
    }

    pub(crate) fn flush(&self) -> Result<()> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let (dirty, freed) = {
            let State { tables, meta } = &mut *self.state();
            (meta.take(), tables.take_freed())
        };
        let unsynced = self.unsynced.swap(false, Ordering::AcqRel);
        let write = |pieces: &[(u64, Vec<u8>)]| pieces.iter().try_for_each(|(at, bytes)| self.file.write(*at, bytes));
        let result = write(&dirty.early).and_then(|()| {
            if unsynced || !dirty.early.is_empty() {
                self.file.sync()?;
            }
            if !dirty.late.is_empty() {
                write(&dirty.late)?;
                self.file.sync()?;
            }
            Ok(())
        });
        self.state().meta.written(&dirty, result.is_ok());
        if result.is_err() {
            self.wrote();
            // The space stays out of use until the image is opened again: a leak, not a danger.
            return result;
        }
        if freed.is_empty() {
            return Ok(());
        }
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let State { tables, meta } = &mut *self.state();
        self.unpacked.clear();
        let empty = tables.release(meta, &freed)?;
        for (at, len) in empty {
            self.file.zero(at, len, false)?;
        }
        Ok(())
    }

    pub(crate) fn extent(&self, offset: u64) -> Result<Extent> {
        let size = self.size();
        in_range(offset, 1, size)?;
        let run = self.lookup(offset, size - offset)?;
        let len = run.len.clamp(1, size - offset);
        let here = |kind| Extent { len, kind, depth: 0 };
        match (run.map, &self.parent) {
            (Map::Data { .. } | Map::Packed(_), _) => Ok(here(ExtentKind::Data)),
            (Map::Zero, _) => Ok(here(ExtentKind::Zero)),
            (Map::Parent, None) => Ok(here(ExtentKind::Unallocated)),
            (Map::Parent, Some(parent)) => {
                let from = offset.saturating_add(parent.offset);
                if from >= parent.image.info().size {
                    return Ok(here(ExtentKind::Unallocated));
                }
                let extent = parent.image.extent(from)?;
                Ok(Extent {
                    len: extent.len.min(len),
                    kind: extent.kind,
                    depth: extent.depth + 1,
                })
            }
        }
    }
}

impl<T: Tables> Drop for Engine<T> {
    /// What was not flushed may be lost at any time; an orderly end does not lose it.
    fn drop(&mut self) {
        if !self.writable || !self.changed.load(Ordering::Acquire) {
            return;
        }
        let result = self.flush().and_then(|()| {
            let State { tables, meta } = &mut *self.state();
            tables.close(meta)
        });
        if let Err(error) = result.and_then(|()| self.flush()) {
            tracing::warn!(file = self.file.name(), %error, "the image could not be closed properly");
        }
    }
}

/// A range within a disk of `size` bytes.
pub(crate) fn in_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(BlockError::OutOfRange { offset, len, size }),
    }
}

/// A disk whose field `engine` does all the work. The second argument tells about the disk.
macro_rules! disk_of_engine {
    ($disk:ty, $info:expr) => {
        impl crate::BlockBackend for $disk {
            fn info(&self) -> crate::ImageInfo {
                $info(self)
            }

            fn read_at(&self, offset: u64, buf: &mut [u8]) -> crate::Result<()> {
                self.engine.read_at(offset, buf)
            }

            fn write_at(&self, offset: u64, buf: &[u8]) -> crate::Result<()> {
                self.engine.write_at(offset, buf)
            }

            fn write_zeroes(&self, offset: u64, len: u64) -> crate::Result<()> {
                self.engine.zero_range(offset, len, false)
            }

            fn discard(&self, offset: u64, len: u64) -> crate::Result<()> {
                self.engine.zero_range(offset, len, true)
            }

            fn flush(&self) -> crate::Result<()> {
                self.engine.flush()
            }

            fn extent(&self, offset: u64) -> crate::Result<crate::Extent> {
                self.engine.extent(offset)
            }
        }

        impl device_model::Inspect for $disk {
            fn inspect(&self) -> device_model::Node {
                crate::image::inspect(self)
            }
        }
    };
}
pub(crate) use disk_of_engine;
