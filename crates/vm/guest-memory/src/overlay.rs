//! Memory that comes, goes and moves while the machine runs: firmware's ROM and the RAM that shadows it, the frame buffers
//! and ROMs of PCI devices, and address line 20.
//!
//! The table of pieces is an immutable snapshot that is swapped on a change. CPU engines keep host addresses of pages that
//! they have looked up, and pointers to the pages' code states; so a region that was ever mapped lives as long as the map.
//! After a change the watch makes every processor forget what it has looked up.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;

use crate::CodeWatch;
use crate::Kind;
use crate::MemoryRegion;
use crate::PAGE_MASK;
use crate::PAGE_SIZE;

/// Address line 20.
pub(crate) const A20: u64 = 1 << 20;

/// A part of a region at an address.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Guest physical address, a multiple of the page size.
    pub gpa: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// The region.
    pub region: Arc<MemoryRegion>,
    /// Where in the region it begins, a multiple of the page size.
    pub offset: u64,
    /// What guest writes do here.
    pub kind: Kind,
}

impl Piece {
    fn is_sound(&self) -> bool {
        let aligned = (self.gpa | self.len | self.offset) & PAGE_MASK == 0 && self.len > 0;
        let inside = self
            .offset
            .checked_add(self.len)
            .is_some_and(|end| end <= self.region.len());
        aligned && inside && self.gpa.checked_add(self.len).is_some()
    }

    fn meets(&self, other: &Self) -> bool {
        self.gpa < other.gpa + other.len && other.gpa < self.gpa + self.len
    }

    fn same(&self, other: &Self) -> bool {
        let (one, two) = (self, other);
        (one.gpa, one.len, one.offset, one.kind) == (two.gpa, two.len, two.offset, two.kind)
            && Arc::ptr_eq(&one.region, &two.region)
    }
}

/// Who must know that addresses show other memory than before: whoever keeps host addresses.
///
/// Called on the thread that made the change, perhaps that of a vCPU, under the lock of a device. Takes no device's lock.
pub trait MapWatch: Send + Sync {
    /// What was looked up before is void.
    fn remapped(&self);
}

/// Owner's name and piece.
type Owned = (String, Piece);

/// A part of a region: itself, offset, bytes.
pub(crate) type Part = (Arc<MemoryRegion>, u64, u64);

/// The pieces that are mapped at present.
pub struct Overlay {
    /// By address; none meets another.
    visible: ArcSwap<Vec<Piece>>,
    /// What owners want, in the order in which they asked.
    wanted: Mutex<Vec<Owned>>,
    /// Every region that was ever mapped, so that it lives as long as this.
    kept: Mutex<Vec<Arc<MemoryRegion>>>,
    a20_mask: AtomicU64,
    generation: AtomicU64,
    used: AtomicBool,
    watch: OnceLock<Arc<dyn MapWatch>>,
    code_watch: Mutex<Option<Arc<dyn CodeWatch>>>,
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            visible: ArcSwap::default(),
            wanted: Mutex::default(),
            kept: Mutex::default(),
            a20_mask: AtomicU64::new(u64::MAX),
            generation: AtomicU64::new(0),
            used: AtomicBool::new(false),
            watch: OnceLock::new(),
            code_watch: Mutex::default(),
        }
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("visible", &self.visible)
            .finish_non_exhaustive()
    }
}

impl Overlay {
    /// Tells `watch` of all changes from now on. The first watch stays.
    pub fn watch(&self, watch: Arc<dyn MapWatch>) {
        // A map serves one machine.
        let _ = self.watch.set(watch);
    }

    /// The number of changes so far.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The pieces that are mapped at present, by address.
    #[must_use]
    pub fn pieces(&self) -> Arc<Vec<Piece>> {
        self.visible.load_full()
    }

    pub(crate) fn a20_mask(&self) -> u64 {
        self.a20_mask.load(Ordering::Relaxed)
    }

    /// True when that is a change.
    pub(crate) fn set_a20(&self, open: bool) -> bool {
        let mask = if open { u64::MAX } else { !A20 };
        self.a20_mask.swap(mask, Ordering::SeqCst) != mask
    }

    pub(crate) fn watch_code(&self, watch: Option<&Arc<dyn CodeWatch>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *self.code_watch() = watch.cloned();
        for region in kept.iter() {
            region.code().set_watch(watch.cloned());
        }
    }

    fn code_watch(&self) -> MutexGuard<'_, Option<Arc<dyn CodeWatch>>> {
        self.code_watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`crate::GuestMemory::remap`]. Returns the parts that are seen no more where they were.
    pub(crate) fn replace(&self, owner: &str, pieces: Vec<Piece>) -> Vec<Part> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in &pieces {
            self.keep(&piece.region);
        }
        wanted.retain(|(name, _)| name != owner);
        let sound = pieces.into_iter().filter(Piece::is_sound);
        wanted.extend(sound.map(|piece| (owner.to_owned(), piece)));
        let mut visible: Vec<Piece> = Vec::new();
        for (_, piece) in wanted.iter() {
            if !visible.iter().any(|other| other.meets(piece)) {
                visible.push(piece.clone());
            }
        }
        visible.sort_by_key(|piece| piece.gpa);
        let old = self.visible.load_full();
        let gone = |(these, those): (&[Piece], &[Piece])| -> Vec<Piece> {
            let stays = |piece: &&Piece| !those.iter().any(|other| other.same(piece));
            these.iter().filter(stays).cloned().collect()
        };
        let (lost, new) = (gone((&old, &visible)), gone((&visible, &old)));
        if lost.is_empty() && new.is_empty() {
            return Vec::new();
        }
        self.used.store(true, Ordering::Release);
        self.visible.store(Arc::new(visible));
        let parts = lost.into_iter().chain(new);
        parts.map(|piece| (piece.region, piece.offset, piece.len)).collect()
    }

    fn keep(&self, region: &Arc<MemoryRegion>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|other| Arc::ptr_eq(other, region)) {
            return;
        }
        region.code().set_watch(self.code_watch().clone());
        kept.push(Arc::clone(region));
    }

    /// After a change: code that was decoded from these parts is void, and so is every look-up.
    pub(crate) fn changed(&self, parts: &[Part], code_watch: Option<&Arc<dyn CodeWatch>>) {
        if parts.is_empty() {
            return;
        }
        for (region, offset, len) in parts {
            for index in offset / PAGE_SIZE..(offset + len) / PAGE_SIZE {
                let page = region.code().page(index as usize).filter(|page| page.is_code());
                if let Some(page) = page
                    && page.note_write(0, PAGE_MASK)
                    && let Some(watch) = code_watch
                {
                    watch.overwritten(page);
                }
            }
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(watch) = self.watch.get() {
            watch.remapped();
        }
    }

    /// As `GuestMemory::find`.
    pub(crate) fn find(&self, gpa: u64) -> Option<(u64, &MemoryRegion, Kind, u64)> {
        if !self.used.load(Ordering::Acquire) {
            return None;
        }
        let visible = self.visible.load();
        let at = visible.partition_point(|piece| piece.gpa <= gpa);
        let piece = visible.get(at.checked_sub(1)?)?;
        let inside = gpa - piece.gpa;
        if inside >= piece.len {
            return None;
        }
        let region = Arc::as_ptr(&piece.region);
        // SAFETY: `keep` has taken the region before the piece became visible, and lets none go as long as `self` lives.
        let region = unsafe { &*region };
        Some((piece.offset + inside, region, piece.kind, piece.len - inside))
    }
}
