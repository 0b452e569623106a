//! The software TLB: direct-mapped, virtual page to host page, three banks of data translations and two of code.

use std::ops::Deref;
use std::ops::DerefMut;
use std::ptr::NonNull;
use std::ptr::null;

use guest_memory::CodePage;

/// A tag that no page has: subtracting it from any canonical address leaves a huge number.
const INVALID: u64 = 1 << 62;
const DATA_ENTRIES: usize = 4096;
const EXEC_ENTRIES: usize = 512;

/// A data translation. A tag is the page's virtual address, or [`INVALID`] when such accesses must take the slow path.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataEntry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    /// Host address minus virtual address.
    pub(crate) addend: u64,
    /// Guest physical page, plus the bits of [`info`].
    pub(crate) info: u64,
}

/// Bits beside the page address in [`DataEntry::info`].
pub(crate) mod info {
    /// Writes are allowed by the page tables and the dirty bit is set, but they must be noted (the page holds code).
    pub(crate) const NOTED_WRITE: u64 = 1;
    /// From a large page.
    pub(crate) const LARGE: u64 = 2;
    /// Global.
    pub(crate) const GLOBAL: u64 = 4;
}

const EMPTY: DataEntry = DataEntry {
    read: INVALID,
    write: INVALID,
    addend: 0,
    info: 0,
};

/// The data translations of all banks, for whoever keeps them at a place of its own.
#[repr(transparent)]
pub struct TlbData([[DataEntry; DATA_ENTRIES]; 3]);

/// Where the data translations are: in a box, or where translated code finds them.
struct Data {
    place: NonNull<TlbData>,
    own: bool,
}

// SAFETY: the translations belong to this TLB alone, whoever keeps the memory.
unsafe impl Send for Data {}

impl Data {
    fn new() -> Self {
        let mut entries = vec![EMPTY; DATA_ENTRIES * 3].into_boxed_slice();
        let place = NonNull::new(entries.as_mut_ptr().cast()).expect("boxes have an address");
        std::mem::forget(entries);
        Self { place, own: true }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if self.own {
            let entries = std::ptr::slice_from_raw_parts_mut(self.place.as_ptr().cast::<DataEntry>(), DATA_ENTRIES * 3);
            // SAFETY: made by `new` from a box of this length.
            drop(unsafe { Box::from_raw(entries) });
        }
    }
}

impl Deref for Data {
    type Target = [[DataEntry; DATA_ENTRIES]; 3];
    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        // SAFETY: the place is valid as long as this value; see `Tlb::move_data`.
        unsafe { &(*self.place.as_ptr()).0 }
    }
}

impl DerefMut for Data {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as above.
        unsafe { &mut (*self.place.as_ptr()).0 }
    }
}

/// The page that translated code last had its stack on: it may be read and written without noting.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackPage {
    /// Virtual address, or [`INVALID`].
    pub(crate) page: u64,
    /// Host address minus virtual address.
    pub(crate) addend: u64,
}

const NO_STACK: StackPage = StackPage {
    page: INVALID,
    addend: 0,
};

/// A code translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecEntry {
    pub(crate) tag: u64,
    pub(crate) gpa: u64,
    /// Host page; null when the page is not RAM or ROM.
    pub(crate) host: *const u8,
    pub(crate) code: *const CodePage,
    global: bool,
    large: bool,
}

const EMPTY_EXEC: ExecEntry = ExecEntry {
    tag: INVALID,
    gpa: 0,
    host: null(),
    code: null(),
    global: false,
    large: false,
};

/// Translations of a process-context identifier that is not the present one.
struct Space {
    pcid: u16,
    code_gen: u32,
    data: Vec<(u8, u16, DataEntry)>,
    exec: Vec<(u8, u16, ExecEntry)>,
}

/// Address spaces kept beside the present one at most.
const SPACES: usize = 8;
/// Translations of one that are kept at most: beyond that finding them again is as cheap.
const KEPT: usize = 1024;

pub(crate) struct Tlb {
    data: Data,
    exec: [[ExecEntry; EXEC_ENTRIES]; 2],
    /// Slots with non-global entries, by bank (data, then exec); a slot may be listed twice.
    local: [Vec<u16>; 5],
    /// The least recently used first.
    spaces: Vec<Space>,
    /// Where entries of large pages have been since the last full flush: a bit for each GiB, modulo 64.
    large: u64,
    /// Raised whenever a code translation may have gone: cached block look-ups of an older generation are void. One for
    /// each half of the address space, so that process switches keep the kernel's.
    pub(crate) code_gen: [u32; 2],
    /// The highest generation there has been: those of address spaces come back.
    last_gen: u32,
    /// A code translation of the upper half is not global.
    local_high_code: bool,
    /// The page of each bank's stack as translated code knows it.
    pub(crate) stack: [StackPage; 3],
    pub(crate) flushes: u64,
}

/// Where translated code finds things.
pub(crate) mod layout {
    use std::mem::offset_of;

    use super::DataEntry;

    pub(crate) const ENTRIES: usize = super::DATA_ENTRIES;
    pub(crate) const ENTRY: usize = size_of::<DataEntry>();
    pub(crate) const READ: usize = offset_of!(DataEntry, read);
    pub(crate) const WRITE: usize = offset_of!(DataEntry, write);
    pub(crate) const ADDEND: usize = offset_of!(DataEntry, addend);
}

/// What a walk found, as the TLB wants it.
#[derive(Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) page: u64,
    pub(crate) gpa: u64,
    pub(crate) host: *mut u8,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) noted: bool,
    pub(crate) global: bool,
    pub(crate) large: bool,
}

/// The GiB that an address is in, modulo 64.
fn gib(address: u64) -> u64 {
    address >> 30 & 63
}

#[inline(always)]
fn half(address: u64) -> usize {
    (address >> 63) as usize
}

impl Tlb {
    /// Bank of CPL 3.
    pub(crate) const USER: usize = 0;
    /// Bank of CPL 0-2; user pages are refused under SMAP.
    pub(crate) const SUPERVISOR: usize = 1;
    /// Bank of CPL 0-2 with SMAP and RFLAGS.AC.
    pub(crate) const SUPERVISOR_AC: usize = 2;

    pub(crate) fn new() -> Self {
        Self {
            data: Data::new(),
            exec: [[EMPTY_EXEC; EXEC_ENTRIES]; 2],
            local: Default::default(),
            spaces: Vec::new(),
            large: 0,
            code_gen: [0; 2],
            last_gen: 0,
            local_high_code: false,
            stack: [NO_STACK; 3],
            flushes: 0,
        }
    }

    /// Keeps the data translations at `place` from now on; those that there were are forgotten.
    ///
    /// # Safety
    /// `place` must be valid, and used by nobody else but translated code of this vCPU, as long as the TLB lives.
    pub(crate) unsafe fn move_data(&mut self, place: NonNull<TlbData>) {
        self.data = Data { place, own: false };
        for bank in self.data.iter_mut() {
            bank.fill(EMPTY);
        }
        self.flush_all();
    }

    #[inline(always)]
    pub(crate) fn data(&self, bank: usize, address: u64) -> &DataEntry {
        let slot = (address >> 12) as usize & (DATA_ENTRIES - 1);
        debug_assert!(bank < 3);
        // SAFETY: banks are the three constants, and the slot is masked.
        unsafe { self.data.get_unchecked(bank).get_unchecked(slot) }
    }

    pub(crate) fn fill(&mut self, bank: usize, fill: &Fill) {
        let slot = (fill.page >> 12) as usize & (DATA_ENTRIES - 1);
        let tag = |on| if on { fill.page } else { INVALID };
        let bit = |on, bit| if on { bit } else { 0 };
        self.data[bank][slot] = DataEntry {
            read: tag(fill.read),
            write: tag(fill.write && !fill.noted),
            addend: (fill.host as u64).wrapping_sub(fill.page),
            info: fill.gpa
                | bit(fill.write && fill.noted, info::NOTED_WRITE)
                | bit(fill.large, info::LARGE)
                | bit(fill.global, info::GLOBAL),
        };
        if !fill.global {
            self.remember_local(bank, slot);
        }
        self.large |= u64::from(fill.large) << gib(fill.page);
    }

    fn remember_local(&mut self, list: usize, slot: usize) {
        // A full list means that flushing the whole bank is as cheap.
        if self.local[list].len() <= DATA_ENTRIES {
            self.local[list].push(slot as u16);
        }
    }

    pub(crate) fn exec(&self, user: bool, address: u64) -> Option<&ExecEntry> {
        let entry = &self.exec[user as usize][(address >> 12) as usize & (EXEC_ENTRIES - 1)];
        (entry.tag == address & !0xfff).then_some(entry)
    }

    pub(crate) fn fill_exec(&mut self, user: bool, fill: &Fill, code: *const CodePage) {
        let slot = (fill.page >> 12) as usize & (EXEC_ENTRIES - 1);
        self.exec[user as usize][slot] = ExecEntry {
            tag: fill.page,
            gpa: fill.gpa,
            host: fill.host,
            code,
            global: fill.global,
            large: fill.large,
        };
        if !fill.global {
            self.remember_local(3 + user as usize, slot);
            self.local_high_code |= half(fill.page) == 1;
        }
        self.large |= u64::from(fill.large) << gib(fill.page);
    }

    /// Drops everything.
    pub(crate) fn flush_all(&mut self) {
        self.stack = [NO_STACK; 3];
        self.flushes += 1;
        for bank in self.data.iter_mut() {
            bank.fill(EMPTY);
        }
        for bank in &mut self.exec {
            bank.fill(EMPTY_EXEC);
        }
        self.local.iter_mut().for_each(Vec::clear);
        self.large = 0;
        self.spaces.clear();
        self.local_high_code = false;
        self.code_gen = [self.next_gen(); 2];
    }

    fn next_gen(&mut self) -> u32 {
        self.last_gen = self.last_gen.wrapping_add(1);
        self.last_gen
    }

    /// Drops what is kept of other address spaces.
    pub(crate) fn forget_spaces(&mut self) {
        self.spaces.clear();
    }

    /// Drops what is kept of address space `pcid`, which is not the present one.
    pub(crate) fn forget_space(&mut self, pcid: u16) {
        self.spaces.retain(|s| s.pcid != pcid);
    }

    /// Goes from one address space to another, whose translations come back if they are to be kept.
    pub(crate) fn switch_space(&mut self, from: u16, to: u16, keep: bool) {
        let leaving = self.put_aside(from);
        self.flush_local();
        let found = self.spaces.iter().position(|s| s.pcid == to);
        let found = found.map(|i| self.spaces.remove(i)).filter(|_| keep);
        if let Some(space) = leaving {
            if self.spaces.len() == SPACES {
                self.spaces.remove(0);
            }
            self.spaces.push(space);
        }
        if let Some(space) = found {
            self.bring_back(&space);
        }
    }

    /// Copies of all translations that are not global, unless they are too many.
    fn put_aside(&self, pcid: u16) -> Option<Space> {
        debug_assert!(self.spaces.iter().all(|s| s.pcid != pcid));
        if self.local.iter().any(|l| l.len() > KEPT) {
            return None;
        }
        let mut data = Vec::with_capacity(self.local[0].len() + self.local[1].len());
        for bank in 0..3 {
            for &slot in &self.local[bank] {
                let entry = self.data[bank][slot as usize];
                if entry.info & info::GLOBAL == 0 && (entry.read != INVALID || entry.write != INVALID) {
                    data.push((bank as u8, slot, entry));
                }
            }
        }
        let mut exec = Vec::with_capacity(self.local[3].len());
        for user in 0..2 {
            for &slot in &self.local[3 + user] {
                let entry = self.exec[user][slot as usize];
                if entry.tag != INVALID && !entry.global && half(entry.tag) == 0 {
                    exec.push((user as u8, slot, entry));
                }
            }
        }
        Some(Space {
            pcid,
            code_gen: self.code_gen[0],
            data,
            exec,
        })
    }

    fn bring_back(&mut self, space: &Space) {
        for &(bank, slot, entry) in &space.data {
            self.data[bank as usize][slot as usize] = entry;
            self.remember_local(bank.into(), slot.into());
        }
        for &(user, slot, entry) in &space.exec {
            self.exec[user as usize][slot as usize] = entry;
            self.remember_local(3 + usize::from(user), slot.into());
        }
        self.code_gen[0] = space.code_gen;
    }

    /// Drops all of the present address space that is not global.
    pub(crate) fn flush_local(&mut self) {
        self.stack = [NO_STACK; 3];
        self.flushes += 1;
        for bank in 0..3 {
            if self.local[bank].len() > DATA_ENTRIES {
                for entry in self.data[bank].iter_mut().filter(|e| e.info & info::GLOBAL == 0) {
                    *entry = EMPTY;
                }
            } else {
                for &slot in &self.local[bank] {
                    let entry = &mut self.data[bank][slot as usize];
                    if entry.info & info::GLOBAL == 0 {
                        *entry = EMPTY;
                    }
                }
            }
            self.local[bank].clear();
        }
        for user in 0..2 {
            let listed = std::mem::take(&mut self.local[3 + user]);
            if listed.len() > DATA_ENTRIES {
                for entry in self.exec[user].iter_mut().filter(|e| !e.global) {
                    *entry = EMPTY_EXEC;
                }
            }
            for &slot in &listed {
                // It may hold a global entry by now.
                let entry = &mut self.exec[user][slot as usize];
                if !entry.global {
                    *entry = EMPTY_EXEC;
                }
            }
            self.local[3 + user] = listed;
            self.local[3 + user].clear();
        }
        self.code_gen[0] = self.next_gen();
        if std::mem::take(&mut self.local_high_code) {
            self.code_gen[1] = self.next_gen();
        }
    }

    /// Drops the translations of the page that holds `address`, of whatever size.
    pub(crate) fn flush_page(&mut self, address: u64) {
        self.stack = [NO_STACK; 3];
        let page = address & !0xfff;
        let slot = (address >> 12) as usize;
        let large = self.large >> gib(address) & 1 != 0;
        // All translations of one large page are dropped, and some others with them, which is always allowed.
        let same = |tag: u64, is_large: bool| tag == page || is_large && (tag ^ page) >> 30 == 0;
        for bank in self.data.iter_mut() {
            if large {
                for e in bank.iter_mut() {
                    let tag = if e.read == INVALID { e.write } else { e.read };
                    if same(tag, e.info & info::LARGE != 0) || tag == INVALID {
                        *e = EMPTY;
                    }
                }
            } else {
                bank[slot & (DATA_ENTRIES - 1)] = EMPTY;
            }
        }
        for bank in &mut self.exec {
            if large {
                bank.iter_mut()
                    .filter(|e| same(e.tag, e.large))
                    .for_each(|e| *e = EMPTY_EXEC);
            } else {
                bank[slot & (EXEC_ENTRIES - 1)] = EMPTY_EXEC;
            }
        }
        self.code_gen[half(address)] = self.next_gen();
    }

    /// Makes the page at `address` the stack page of `bank`, if it may be written without noting.
    pub(crate) fn set_stack(&mut self, bank: usize, address: u64) -> bool {
        let entry = *self.data(bank, address);
        let page = address & !0xfff;
        let usable = entry.read == page && entry.write == page;
        if usable {
            self.stack[bank] = StackPage {
                page,
                addend: entry.addend,
            };
        }
        usable
    }

    /// Takes away the right to write to the page at `gpa` without noting it, in every bank.
    pub(crate) fn protect_code(&mut self, gpa: u64) {
        self.stack = [NO_STACK; 3];
        let aside = self
            .spaces
            .iter_mut()
            .flat_map(|s| s.data.iter_mut().map(|(_, _, e)| e));
        for entry in self.data.iter_mut().flatten().chain(aside) {
            if entry.info & !0xfff == gpa && entry.write != INVALID {
                entry.write = INVALID;
                entry.info |= info::NOTED_WRITE;
            }
        }
    }

    /// Takes away all rights to write without a look at the page's code state.
    pub(crate) fn drop_writes(&mut self) {
        self.stack = [NO_STACK; 3];
        let aside = self
            .spaces
            .iter_mut()
            .flat_map(|s| s.data.iter_mut().map(|(_, _, e)| e));
        for entry in self.data.iter_mut().flatten().chain(aside) {
            entry.write = INVALID;
        }
    }
}
