//! The guest physical address map: regions at addresses, and access to them.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::CodePage;
use crate::CodeWatch;
use crate::Kind;
use crate::MemoryRegion;
use crate::Overlay;
use crate::PAGE_MASK;
use crate::PAGE_SIZE;
use crate::Piece;
use crate::overlay::A20;

/// Why guest memory could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region's length is zero or not a multiple of the page size.
    #[error("{0:#x} bytes is not a whole number of pages")]
    Size(u64),
    /// The host gave no memory.
    #[error("the host has no {len} bytes of memory to map")]
    Host {
        /// Bytes asked for.
        len: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Two regions overlap, or one is not page-aligned.
    #[error("region `{0}` overlaps another or is not aligned")]
    Overlap(String),
    /// An access left guest memory.
    #[error("no guest memory at {gpa:#x} for {len} bytes")]
    Hole {
        /// First address of the access.
        gpa: u64,
        /// Its length.
        len: u64,
    },
}

/// A page of guest memory as a CPU engine sees it.
#[derive(Clone, Copy)]
pub struct PageRef<'a> {
    /// Host address of the page's first byte.
    pub host: NonNull<u8>,
    /// RAM or ROM.
    pub kind: Kind,
    /// The page's code state.
    pub code: &'a CodePage,
}

/// The address map. Fixed regions are built once, then shared; others come, go and move while the machine runs (see
/// [`crate::Piece`]). Every address without a region is a hole (MMIO).
#[derive(Default)]
pub struct GuestMemory {
    slots: Vec<(u64, Arc<MemoryRegion>)>,
    overlay: Overlay,
    watch: RwLock<Option<Arc<dyn CodeWatch>>>,
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl GuestMemory {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `region` at guest physical address `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`] where the range is taken or not page-aligned.
    pub fn add(&mut self, gpa: u64, region: Arc<MemoryRegion>) -> Result<(), MemoryError> {
        let end = gpa.checked_add(region.len());
        let free = |end| self.slots.iter().all(|(base, r)| end <= *base || gpa >= base + r.len());
        if gpa & PAGE_MASK != 0 || !end.is_some_and(free) {
            return Err(MemoryError::Overlap(region.name().to_owned()));
        }
        let at = self.slots.partition_point(|(base, _)| *base < gpa);
        self.slots.insert(at, (gpa, region));
        Ok(())
    }

    /// Tells `watch` of all overwritten code from now on, whoever writes. The engine that was told before, if any, has no
    /// use for it any more: it belongs to the same machine, which has one engine at a time.
    pub fn watch_code(&self, watch: &Arc<dyn CodeWatch>) {
        self.set_watch(Some(watch));
    }

    /// Tells nobody any more: the machine goes on with an engine that makes nothing of code.
    pub fn unwatch_code(&self) {
        self.set_watch(None);
    }

    fn set_watch(&self, watch: Option<&Arc<dyn CodeWatch>>) {
        for (_, region) in &self.slots {
            region.code().set_watch(watch.cloned());
        }
        self.overlay.watch_code(watch);
        *self.watch.write().unwrap_or_else(PoisonError::into_inner) = watch.cloned();
    }

    fn watch(&self) -> Option<Arc<dyn CodeWatch>> {
        self.watch.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A CPU engine has noted a write of its own, which hit held code of `page`.
    pub fn code_overwritten(&self, page: &CodePage) {
        if let Some(watch) = self.watch() {
            watch.overwritten(page);
        }
    }

    /// What was at fixed addresses from the beginning, by address.
    #[must_use]
    pub fn slots(&self) -> &[(u64, Arc<MemoryRegion>)] {
        &self.slots
    }

    /// Bytes of RAM at fixed addresses.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.slots
            .iter()
            .filter(|(_, r)| r.kind() == Kind::Ram)
            .map(|(_, r)| r.len())
            .sum()
    }

    /// What comes and goes.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Puts `pieces` in the place of those that `owner` had. Where a piece meets a fixed region, that one is seen; pieces
    /// that meet another owner's are left out until that one's are gone.
    pub fn remap(&self, owner: &str, pieces: Vec<Piece>) {
        let changed = self.overlay.replace(owner, pieces);
        self.overlay.changed(&changed, self.watch().as_ref());
    }

    /// Opens or closes address line 20: while it is closed, odd mebibytes show what the even ones below them hold.
    pub fn set_a20(&self, open: bool) {
        if !self.overlay.set_a20(open) {
            return;
        }
        // Code that was decoded at an odd mebibyte came from the one that it now no longer shows: the even one below it when
        // the line opens, itself when it closes.
        let parity = if open { 0 } else { A20 };
        let mut changed = Vec::new();
        for (base, region) in &self.slots {
            let end = base + region.len();
            let mebibytes = (base & !(A20 - 1)..end).step_by(A20 as usize);
            for start in mebibytes.filter(|start| start & A20 == parity) {
                let (from, to) = (start.max(*base), (start + A20).min(end));
                changed.push((Arc::clone(region), from - base, to - from));
            }
        }
        for piece in self.overlay.pieces().iter() {
            changed.push((Arc::clone(&piece.region), piece.offset, piece.len));
        }
        self.overlay.changed(&changed, self.watch().as_ref());
    }

    /// Whether address line 20 is open.
    #[must_use]
    pub fn a20(&self) -> bool {
        self.overlay.a20_mask() == u64::MAX
    }

    /// `gpa` as it is on the bus: without bit 20 while that line is closed.
    #[must_use]
    pub fn on_bus(&self, gpa: u64) -> u64 {
        gpa & self.overlay.a20_mask()
    }

    /// The page that holds `gpa`; none in a hole.
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<PageRef<'_>> {
        let (offset, region, kind, _) = self.find(gpa)?;
        let page = offset & !PAGE_MASK;
        // SAFETY: the offset lies inside the mapping.
        let host = unsafe { region.host().add(page as usize) };
        Some(PageRef {
            host,
            kind,
            code: region.code().page((page / PAGE_SIZE) as usize)?,
        })
    }

    /// Reads `buf.len()` bytes at `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::Hole`] when any byte is not guest memory; `buf` is then partly written.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len() as u64;
        let mut done = 0;
        self.for_each(gpa, len, |region, _, offset, n| {
            region.read(offset, &mut buf[done..done + n]);
            done += n;
        })
    }

    /// Writes `buf` at `gpa`: this is the loaders' and devices' path. Code engines see the write. ROM stays as it is.
    ///
    /// # Errors
    /// [`MemoryError::Hole`] when any byte is not guest memory; the bytes before it are then written.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.for_each(gpa, buf.len() as u64, |region, kind, offset, n| {
            if kind == Kind::Ram {
                region.write(offset, &buf[done..done + n]);
            }
            done += n;
        })
    }

    /// Reads a plain value.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, gpa: u64) -> Result<T, MemoryError> {
        let mut value = T::new_zeroed();
        self.read(gpa, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads the 16-bit number at an even address in one access that a vCPU's or another device's cannot divide. What was
    /// written before the number was, is seen after it.
    ///
    /// # Errors
    /// [`MemoryError::Hole`] where there is no guest memory, or the address is odd.
    pub fn load_u16(&self, gpa: u64) -> Result<u16, MemoryError> {
        let (offset, region, _, _) = self.find_even(gpa)?;
        Ok(region.load_u16(offset))
    }

    /// Writes the 16-bit number at an even address in one access. Whoever sees it also sees what was written before it.
    /// Code engines see the write. ROM stays as it is.
    ///
    /// # Errors
    /// As [`Self::load_u16`].
    pub fn store_u16(&self, gpa: u64, value: u16) -> Result<(), MemoryError> {
        let (offset, region, kind, _) = self.find_even(gpa)?;
        if kind == Kind::Ram {
            region.store_u16(offset, value);
        }
        Ok(())
    }

    /// Puts `value` in the place of the byte at `gpa`, which it returns, in one step that a vCPU cannot divide. Code engines see
    /// the write. ROM stays as it is.
    ///
    /// # Errors
    /// [`MemoryError::Hole`] where there is no guest memory.
    pub fn swap_u8(&self, gpa: u64, value: u8) -> Result<u8, MemoryError> {
        let (offset, region, kind, _) = self.find(gpa).ok_or(MemoryError::Hole { gpa, len: 1 })?;
        if kind == Kind::Ram {
            return Ok(region.swap_u8(offset, value));
        }
        let mut byte = [0];
        region.read(offset, &mut byte);
        Ok(byte[0])
    }

    fn find_even(&self, gpa: u64) -> Result<(u64, &MemoryRegion, Kind, u64), MemoryError> {
        let found = self.find(gpa).filter(|_| gpa.is_multiple_of(2));
        found.ok_or(MemoryError::Hole { gpa, len: 2 })
    }

    /// Gives the host back what holds the whole pages of RAM in `len` bytes at `gpa`: they read as zeros until they are
    /// written again. Code engines see that as a write. Returns how many bytes those were; where the host does not take it
    /// back, it stays as it is.
    pub fn release(&self, gpa: u64, len: u64) -> u64 {
        let first = gpa.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
        let end = gpa.saturating_add(len) & !PAGE_MASK;
        let mut released = 0;
        // What there is before a hole is released.
        let _ = self.for_each(first, end.saturating_sub(first), |region, kind, offset, n| {
            if kind == Kind::Ram && region.release(offset, n as u64) {
                released += n as u64;
            }
        });
        released
    }

    /// Whether all of `len` bytes at `gpa` are guest memory.
    #[must_use]
    pub fn holds(&self, gpa: u64, len: u64) -> bool {
        gpa.checked_add(len).is_some() && self.for_each(gpa, len, |_, _, _, _| ()).is_ok()
    }

    /// Writes a plain value.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_obj<T: IntoBytes + Immutable>(&self, gpa: u64, value: &T) -> Result<(), MemoryError> {
        self.write(gpa, value.as_bytes())
    }

    /// The region at `gpa`, the offset in it, what guest writes do there, and the bytes that follow in it.
    fn find(&self, gpa: u64) -> Option<(u64, &MemoryRegion, Kind, u64)> {
        let gpa = self.on_bus(gpa);
        let at = self.slots.partition_point(|(base, _)| *base <= gpa);
        if let Some((base, region)) = at.checked_sub(1).and_then(|at| self.slots.get(at))
            && gpa - base < region.len()
        {
            let offset = gpa - base;
            return Some((offset, region, region.kind(), region.len() - offset));
        }
        self.overlay.find(gpa)
    }

    fn for_each(
        &self,
        mut gpa: u64,
        mut len: u64,
        mut f: impl FnMut(&MemoryRegion, Kind, u64, usize),
    ) -> Result<(), MemoryError> {
        while len > 0 {
            let (offset, region, kind, room) = self.find(gpa).ok_or(MemoryError::Hole { gpa, len })?;
            // What follows bit 20's change is somewhere else while that line is closed.
            let n = len.min(room).min(A20 - (gpa & (A20 - 1)));
            f(region, kind, offset, n as usize);
            gpa = gpa.wrapping_add(n);
            len -= n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_regions() -> GuestMemory {
        let mut memory = GuestMemory::new();
        memory
            .add(0, Arc::new(MemoryRegion::new("low", Kind::Ram, 8192).unwrap()))
            .unwrap();
        memory
            .add(8192, Arc::new(MemoryRegion::new("rom", Kind::Rom, 4096).unwrap()))
            .unwrap();
        memory
    }

    #[test]
    fn access_across_regions_is_one_access() {
        let memory = two_regions();
        memory.slots()[1].1.load(0, &[0x44, 0x33, 0x22, 0x11]).unwrap();
        memory.write_obj(8188, &0x5566_7788u64).unwrap();
        assert_eq!(memory.read_obj::<u64>(8188).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(memory.read_obj::<u32>(8192).unwrap(), 0x1122_3344, "ROM stays as it is");
    }

    #[test]
    fn access_past_the_end_is_a_hole() {
        let memory = two_regions();
        assert!(matches!(
            memory.read(12_287, &mut [0; 2]),
            Err(MemoryError::Hole { gpa: 12_288, len: 1 })
        ));
        assert!(memory.page(12_288).is_none());
        assert!(matches!(memory.page(8192).unwrap().kind, Kind::Rom));
    }

    #[test]
    fn numbers_are_whole_and_at_even_addresses() {
        let memory = two_regions();
        memory.page(0).unwrap().code.mark(0x100, 0x13f);
        memory.store_u16(0x102, 0xabcd).unwrap();
        assert_eq!(memory.load_u16(0x102).unwrap(), 0xabcd);
        assert_eq!(memory.page(0).unwrap().code.version(), 1);
        memory.store_u16(8192, 1).unwrap();
        assert_eq!(memory.load_u16(8192).unwrap(), 0, "ROM stays as it is");
        assert!(memory.load_u16(0x101).is_err());
        assert!(memory.store_u16(12_288, 0).is_err());
    }

    #[test]
    fn bytes_are_exchanged_where_there_is_ram() {
        let memory = two_regions();
        memory.page(0).unwrap().code.mark(0x100, 0x13f);
        assert_eq!(memory.swap_u8(0x101, 7).unwrap(), 0);
        assert_eq!(memory.swap_u8(0x101, 8).unwrap(), 7);
        assert_eq!(
            memory.page(0).unwrap().code.version(),
            1,
            "and once there was code there"
        );
        memory.swap_u8(8192, 1).unwrap();
        assert_eq!(memory.swap_u8(8192, 1).unwrap(), 0, "ROM stays as it is");
        assert!(memory.swap_u8(12_288, 0).is_err());
    }

    #[test]
    fn released_pages_are_zeros_and_their_code_is_void() {
        let memory = two_regions();
        memory.write(0, &[7; 8192]).unwrap();
        let code = memory.page(4096).unwrap().code;
        code.mark(0, 63);
        assert_eq!(memory.release(1, 8190), 0, "no whole page");
        assert_eq!(memory.release(1, 8191), 4096);
        assert_eq!(memory.read_obj::<u8>(4095).unwrap(), 7);
        assert_eq!(memory.read_obj::<[u8; 4096]>(4096).unwrap(), [0; 4096]);
        assert_eq!(code.version(), 1);
        assert_eq!(memory.release(8192, 4096), 0, "ROM stays as it is");
        assert_eq!(memory.release(u64::MAX - 10, 10), 0);
    }

    #[test]
    fn memory_holds_what_lies_inside_it() {
        let memory = two_regions();
        assert!(memory.holds(0, 12_288) && memory.holds(12_288, 0));
        assert!(!memory.holds(1, 12_288) && !memory.holds(u64::MAX, 2));
    }

    #[test]
    fn overlapping_region_is_refused() {
        let mut memory = two_regions();
        let more = Arc::new(MemoryRegion::new("more", Kind::Ram, 8192).unwrap());
        assert!(memory.add(4096, more.clone()).is_err());
        assert!(memory.add(12_289, more.clone()).is_err());
        assert!(memory.add(!4095, more).is_err());
    }

    #[test]
    fn write_by_a_device_ends_code_of_the_page() {
        let memory = two_regions();
        let code = memory.page(4096).unwrap().code;
        code.mark(0, 63);
        memory.write(4096 + 64, &[1]).unwrap();
        assert_eq!(code.version(), 0);
        memory.write(4096 + 60, &[1; 8]).unwrap();
        assert_eq!(code.version(), 1);
    }

    fn piece(gpa: u64, region: &Arc<MemoryRegion>, offset: u64, kind: Kind) -> Piece {
        Piece {
            gpa,
            len: 4096,
            region: Arc::clone(region),
            offset,
            kind,
        }
    }

    #[test]
    fn pieces_come_go_and_change_their_kind() {
        let memory = two_regions();
        let shadow = Arc::new(MemoryRegion::new("shadow", Kind::Ram, 8192).unwrap());
        shadow.load(4096, b"second").unwrap();
        memory.remap("bridge", vec![piece(0xc000, &shadow, 4096, Kind::Rom)]);
        assert_eq!(memory.read_obj::<[u8; 6]>(0xc000).unwrap(), *b"second");
        assert!(matches!(memory.page(0xc000).unwrap().kind, Kind::Rom));
        memory.write(0xc000, b"change").unwrap();
        assert_eq!(memory.read_obj::<[u8; 6]>(0xc000).unwrap(), *b"second");
        let generation = memory.overlay().generation();
        memory.remap("bridge", vec![piece(0xc000, &shadow, 4096, Kind::Ram)]);
        assert_ne!(memory.overlay().generation(), generation);
        memory.write(0xc000, b"change").unwrap();
        assert_eq!(memory.read_obj::<[u8; 6]>(0xc000).unwrap(), *b"change");
        memory.remap("bridge", Vec::new());
        assert!(memory.page(0xc000).is_none());
    }

    #[test]
    fn pieces_of_two_owners_do_not_meet() {
        let memory = two_regions();
        let page = || Arc::new(MemoryRegion::new("page", Kind::Ram, 4096).unwrap());
        let (one, other) = (page(), page());
        one.load(0, b"1").unwrap();
        other.load(0, b"2").unwrap();
        memory.remap("one", vec![piece(0xc000, &one, 0, Kind::Ram)]);
        memory.remap("other", vec![piece(0xc000, &other, 0, Kind::Ram)]);
        assert_eq!(memory.read_obj::<u8>(0xc000).unwrap(), b'1');
        memory.remap("one", Vec::new());
        assert_eq!(memory.read_obj::<u8>(0xc000).unwrap(), b'2');
    }

    #[test]
    fn code_of_a_page_that_moves_is_void() {
        let memory = two_regions();
        let page = Arc::new(MemoryRegion::new("page", Kind::Ram, 4096).unwrap());
        memory.remap("one", vec![piece(0xc000, &page, 0, Kind::Ram)]);
        let code = memory.page(0xc000).unwrap().code;
        code.mark(0, 63);
        memory.remap("other", Vec::new());
        assert_eq!(code.version(), 0);
        memory.remap("one", vec![piece(0xd000, &page, 0, Kind::Ram)]);
        assert_eq!(code.version(), 1);
    }

    #[test]
    fn closed_line_20_shows_even_mebibytes_at_odd_ones() {
        let mut memory = GuestMemory::new();
        let ram = Arc::new(MemoryRegion::new("ram", Kind::Ram, 4 << 20).unwrap());
        memory.add(0, ram).unwrap();
        memory.write(0, b"low").unwrap();
        memory.write(1 << 20, b"odd").unwrap();
        let code = memory.page(0x1000).unwrap().code;
        code.mark(0, 4095);
        assert!(memory.a20());
        memory.set_a20(false);
        assert_eq!(memory.read_obj::<[u8; 3]>(1 << 20).unwrap(), *b"low");
        assert_eq!(memory.on_bus(0x31_2345), 0x21_2345);
        let mut across = [0; 4];
        memory.read((1 << 20) - 1, &mut across).unwrap();
        assert_eq!(&across, b"\0low");
        assert_eq!(code.version(), 0);
        memory.set_a20(true);
        assert_eq!(code.version(), 1, "it may have been decoded at an odd mebibyte");
        assert_eq!(memory.read_obj::<[u8; 3]>(1 << 20).unwrap(), *b"odd");
    }
}
