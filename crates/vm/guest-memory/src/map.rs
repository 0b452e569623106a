//! The guest physical address map: regions at addresses, and access to them.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::OnceLock;

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::CodePage;
use crate::CodeWatch;
use crate::Kind;
use crate::MemoryRegion;
use crate::PAGE_MASK;
use crate::PAGE_SIZE;

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
    /// An access left its region.
    #[error("the region has no {len} bytes at {offset:#x}")]
    Range {
        /// First byte of the access.
        offset: u64,
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

/// The address map. Built once, then shared; every address without a region is a hole (MMIO).
#[derive(Default)]
pub struct GuestMemory {
    slots: Vec<(u64, Arc<MemoryRegion>)>,
    watch: OnceLock<Arc<dyn CodeWatch>>,
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

    /// Tells `watch` of all overwritten code from now on, whoever writes. The first watch stays.
    pub fn watch_code(&self, watch: &Arc<dyn CodeWatch>) {
        for (_, region) in &self.slots {
            region.code().set_watch(Arc::clone(watch));
        }
        // A map serves one machine, and a machine has one engine.
        let _ = self.watch.set(Arc::clone(watch));
    }

    /// A CPU engine has noted a write of its own, which hit held code of `page`.
    pub fn code_overwritten(&self, page: &CodePage) {
        if let Some(watch) = self.watch.get() {
            watch.overwritten(page);
        }
    }

    /// The regions by address.
    #[must_use]
    pub fn slots(&self) -> &[(u64, Arc<MemoryRegion>)] {
        &self.slots
    }

    /// Bytes of RAM in all.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.slots
            .iter()
            .filter(|(_, r)| r.kind() == Kind::Ram)
            .map(|(_, r)| r.len())
            .sum()
    }

    /// The page that holds `gpa`; none in a hole.
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<PageRef<'_>> {
        let (offset, region) = self.find(gpa)?;
        let page = offset & !PAGE_MASK;
        // SAFETY: the offset lies inside the mapping.
        let host = unsafe { region.host().add(page as usize) };
        Some(PageRef {
            host,
            kind: region.kind(),
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
        self.for_each(gpa, len, |region, offset, n| {
            region.read(offset, &mut buf[done..done + n]);
            done += n;
        })
    }

    /// Writes `buf` at `gpa`, to ROM too: this is the loaders' and devices' path. Code engines see the write.
    ///
    /// # Errors
    /// [`MemoryError::Hole`] when any byte is not guest memory; the bytes before it are then written.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.for_each(gpa, buf.len() as u64, |region, offset, n| {
            region.write(offset, &buf[done..done + n]);
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

    /// Writes a plain value.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_obj<T: IntoBytes + Immutable>(&self, gpa: u64, value: &T) -> Result<(), MemoryError> {
        self.write(gpa, value.as_bytes())
    }

    fn find(&self, gpa: u64) -> Option<(u64, &MemoryRegion)> {
        let at = self.slots.partition_point(|(base, _)| *base <= gpa);
        let (base, region) = self.slots.get(at.checked_sub(1)?)?;
        (gpa - base < region.len()).then(|| (gpa - base, &**region))
    }

    fn for_each(
        &self,
        mut gpa: u64,
        mut len: u64,
        mut f: impl FnMut(&MemoryRegion, u64, usize),
    ) -> Result<(), MemoryError> {
        while len > 0 {
            let (offset, region) = self.find(gpa).ok_or(MemoryError::Hole { gpa, len })?;
            let n = len.min(region.len() - offset);
            f(region, offset, n as usize);
            gpa += n;
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
        memory.write_obj(8188, &0x1122_3344_5566_7788u64).unwrap();
        assert_eq!(memory.read_obj::<u64>(8188).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(memory.read_obj::<u32>(8192).unwrap(), 0x1122_3344);
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
}
