//! The cache of an image's metadata, written back in an order that survives a power cut.
//!
//! A change is of one of two stages. `Early` is what nothing refers to yet: counts that only grow, new tables. `Late` is
//! what refers to data or to early structures. A flush writes early sectors beside the data, waits for the medium, writes
//! late sectors, and waits again. In between nothing is written, so that what is on the medium never refers to what is
//! not. An early sector is written with all that it holds: a structure that has early sectors must not be reachable
//! from the medium, or have early changes only.
//!
//! The unit is a sector of 512 bytes, which a medium writes as a whole. Pages that are clean are forgotten when there are
//! too many of them; pages that are dirty stay, and the engine flushes when they become many.

use rustc_hash::FxHashMap;

use crate::Result;
use crate::store::File;

const PAGE: u64 = 4096;
const SECTOR: usize = 512;
/// 32 MiB.
const CAPACITY: usize = 8192;
/// The engine should flush when this many pages are dirty.
const DIRTY: usize = 4096;

/// When a change may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Together with the data: nothing refers to it yet.
    Early,
    /// After everything that it refers to.
    Late,
}

#[derive(Debug)]
struct Page {
    data: Box<[u8; PAGE as usize]>,
    /// Sectors to be written, a bit each.
    early: u8,
    late: u8,
    /// Flushes that are writing it: the file does not have it yet.
    pinned: u32,
    used: u64,
}

/// Pieces of the file to be written: where, and what.
type Pieces = Vec<(u64, Vec<u8>)>;

/// What a flush writes.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) early: Pieces,
    pub(crate) late: Pieces,
    pages: Vec<(u64, u8, u8)>,
}

#[derive(Debug)]
pub(crate) struct Meta {
    file: File,
    pages: FxHashMap<u64, Page>,
    /// Pages with sectors to be written.
    dirty: Vec<u64>,
    clock: u64,
    capacity: usize,
}

impl Meta {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            pages: FxHashMap::default(),
            dirty: Vec::new(),
            clock: 0,
            capacity: CAPACITY,
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buf`; what is beyond the end of the file is zeros.
    pub(crate) fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(buf.len() - done);
            let page = self.page(at / PAGE)?;
            if let (Some(out), Some(bytes)) = (buf.get_mut(done..done + part), page.data.get(within..within + part)) {
                out.copy_from_slice(bytes);
            }
            done += part;
        }
        Ok(())
    }

    /// `N` bytes.
    pub(crate) fn get<const N: usize>(&mut self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u16_be(&mut self, offset: u64) -> Result<u16> {
        Ok(u16::from_be_bytes(self.get(offset)?))
    }

    pub(crate) fn u32_le(&mut self, offset: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.get(offset)?))
    }

    pub(crate) fn u32_be(&mut self, offset: u64) -> Result<u32> {
        Ok(u32::from_be_bytes(self.get(offset)?))
    }

    pub(crate) fn u64_le(&mut self, offset: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.get(offset)?))
    }

    pub(crate) fn u64_be(&mut self, offset: u64) -> Result<u64> {
        Ok(u64::from_be_bytes(self.get(offset)?))
    }

    /// Changes bytes.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8], stage: Stage) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset.saturating_add(done as u64);
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(bytes.len() - done);
            self.page(at / PAGE)?;
            self.change(at, stage, part, |out| {
                out.copy_from_slice(bytes.get(done..done + part).unwrap_or_default());
            });
            done += part;
        }
        Ok(())
    }

    /// A new structure of zeros, whatever the file has there. Bounds are of whole sectors.
    pub(crate) fn fresh(&mut self, offset: u64, len: u64) -> Result<()> {
        let mut at = offset;
        while at < offset + len {
            let part = (PAGE - at % PAGE).min(offset + len - at) as usize;
            if part == PAGE as usize {
                // What the file has there does not matter.
                let used = self.clock;
                let data = Box::new([0; PAGE as usize]);
                self.pages.entry(at / PAGE).or_insert(Page {
                    data,
                    early: 0,
                    late: 0,
                    pinned: 0,
                    used,
                });
            } else {
                self.page(at / PAGE)?;
            }
            self.change(at, Stage::Early, part, |out| out.fill(0));
            at += part as u64;
        }
        Ok(())
    }

    /// A structure that is no longer one: its space may hold data next, which must not be written over.
    pub(crate) fn forget(&mut self, offset: u64, len: u64) {
        for sector in offset / SECTOR as u64..(offset + len).div_ceil(SECTOR as u64) {
            let bit = 1 << (sector % 8);
            if let Some(page) = self.pages.get_mut(&(sector / 8)) {
                page.early &= !bit;
                page.late &= !bit;
            }
        }
    }

    /// So much is to be written that it should be.
    pub(crate) fn is_full(&self) -> bool {
        self.dirty.len() >= DIRTY
    }

    fn change(&mut self, at: u64, stage: Stage, len: usize, change: impl FnOnce(&mut [u8])) {
        let within = (at % PAGE) as usize;
        let Some(page) = self.pages.get_mut(&(at / PAGE)) else {
            return;
        };
        let Some(bytes) = page.data.get_mut(within..within + len) else {
            return;
        };
        change(bytes);
        if page.early | page.late == 0 {
            self.dirty.push(at / PAGE);
        }
        for sector in within / SECTOR..(within + len).div_ceil(SECTOR) {
            match stage {
                Stage::Early => page.early |= 1 << sector,
                Stage::Late => page.late |= 1 << sector,
            }
        }
    }

    fn page(&mut self, number: u64) -> Result<&mut Page> {
        self.clock += 1;
        if !self.pages.contains_key(&number) {
            let mut data = Box::new([0; PAGE as usize]);
            self.file
                .read_padded(number.saturating_mul(PAGE), data.as_mut_slice())?;
            if self.pages.len() >= self.capacity {
                self.evict();
            }
            self.pages.insert(
                number,
                Page {
                    data,
                    early: 0,
                    late: 0,
                    pinned: 0,
                    used: 0,
                },
            );
        }
        let clock = self.clock;
        let entry = self.pages.entry(number).or_insert_with(|| unreachable_page(clock));
        entry.used = clock;
        Ok(entry)
    }

    /// Forgets the quarter of the clean pages that was not used for longest.
    fn evict(&mut self) {
        let clean = |page: &Page| page.early | page.late == 0 && page.pinned == 0;
        let mut ages: Vec<u64> = self
            .pages
            .values()
            .filter(|page| clean(page))
            .map(|page| page.used)
            .collect();
        if ages.is_empty() {
            return;
        }
        let middle = ages.len() / 4;
        let (_, &mut limit, _) = ages.select_nth_unstable(middle);
        self.pages.retain(|_, page| !clean(page) || page.used > limit);
    }

    /// Everything that is to be written, as it is now. Until `written`, the pages stay.
    pub(crate) fn take(&mut self) -> Dirty {
        let mut taken = Dirty::default();
        let mut numbers = std::mem::take(&mut self.dirty);
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let Some(page) = self.pages.get_mut(&number) else {
                continue;
            };
            let (early, late) = (page.early, page.late & !page.early);
            collect(&mut taken.early, number, early, &page.data);
            collect(&mut taken.late, number, late, &page.data);
            if early | late != 0 {
                taken.pages.push((number, early, late));
                page.pinned += 1;
            }
            (page.early, page.late) = (0, 0);
        }
        taken
    }

    /// The end of a flush. What failed is due again.
    pub(crate) fn written(&mut self, dirty: &Dirty, ok: bool) {
        for &(number, early, late) in &dirty.pages {
            let Some(page) = self.pages.get_mut(&number) else {
                continue;
            };
            page.pinned = page.pinned.saturating_sub(1);
            if !ok {
                if page.early | page.late == 0 {
                    self.dirty.push(number);
                }
                page.early |= early;
                page.late |= late;
            }
        }
    }
}

/// A page of zeros; the entry that it stands for is always there.
fn unreachable_page(used: u64) -> Page {
    Page {
        data: Box::new([0; PAGE as usize]),
        early: 0,
        late: 0,
        pinned: 0,
        used,
    }
}

/// Adds the sectors of `mask` to `pieces`, joined with the last piece where they follow it.
fn collect(pieces: &mut Pieces, number: u64, mask: u8, data: &[u8; PAGE as usize]) {
    for (index, sector) in data
        .chunks_exact(SECTOR)
        .enumerate()
        .filter(|(index, _)| mask & (1 << index) != 0)
    {
        let at = number * PAGE + (index * SECTOR) as u64;
        match pieces.last_mut() {
            Some((start, bytes)) if *start + bytes.len() as u64 == at && bytes.len() < 1 << 20 => {
                bytes.extend_from_slice(sector);
            }
            _ => pieces.push((at, sector.to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::store::Access;
    use crate::store::MemoryFiles;
    use crate::store::MemoryStore;

    fn meta(len: usize) -> Meta {
        let files = MemoryFiles::default();
        files.put("f", Arc::new(MemoryStore::with(&vec![7; len], len)));
        Meta::new(File::open(&files, Path::new("f"), Access::Write).unwrap())
    }

    #[test]
    fn take_separates_stages_and_joins_neighbours() {
        let mut meta = meta(16384);
        meta.put(510, &[1; 4], Stage::Late).unwrap();
        meta.put(4096, &[2; 1], Stage::Early).unwrap();
        let dirty = meta.take();
        let shape = |pieces: &Pieces| pieces.iter().map(|(at, bytes)| (*at, bytes.len())).collect::<Vec<_>>();
        assert_eq!(shape(&dirty.late), [(0, 1024)]);
        assert_eq!(shape(&dirty.early), [(4096, 512)]);
        assert!(meta.take().late.is_empty());
    }

    #[test]
    fn failed_flush_is_due_again() {
        let mut meta = meta(4096);
        meta.put(0, &[1], Stage::Late).unwrap();
        let dirty = meta.take();
        meta.written(&dirty, false);
        assert_eq!(meta.take().late, dirty.late);
    }

    #[test]
    fn eviction_keeps_what_is_dirty() {
        let mut meta = meta(65536);
        meta.capacity = 4;
        meta.put(0, &[1], Stage::Late).unwrap();
        for page in 0..16 {
            meta.get::<1>(page * 4096).unwrap();
        }
        assert!(meta.pages.len() <= 6, "{}", meta.pages.len());
        assert_eq!(meta.get::<1>(0).unwrap(), [1]);
    }

    #[test]
    fn forgotten_structure_is_not_written() {
        let mut meta = meta(8192);
        meta.fresh(0, 4096).unwrap();
        meta.forget(512, 3584);
        assert_eq!(meta.take().early, [(0, vec![0; 512])]);
    }
}
