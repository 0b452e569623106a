//! The software TLB: direct-mapped, virtual page to host page, three banks of data translations and two of code.

use std::ops::Deref;
use std::ops::DerefMut;
use std::ptr::NonNull;
use std::ptr::null;

use guest_memory::CodePage;

use super::filter::Filter;
use super::space::Entry;
use super::space::SLOTS;
use super::space::Space;
use super::walk::SMALL;

/// A tag that no page has: subtracting it from any canonical address leaves a huge number.
const INVALID: u64 = 1 << 62;
const DATA_ENTRIES: usize = SLOTS;
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

impl Default for StackPage {
    fn default() -> Self {
        NO_STACK
    }
}

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

/// Address spaces kept beside the present one at most.
const SPACES: usize = 8;

impl Entry for DataEntry {
    const EMPTY: Self = EMPTY;

    fn is_local(&self) -> bool {
        self.info & info::GLOBAL == 0 && (self.read != INVALID || self.write != INVALID)
    }
}

impl Entry for ExecEntry {
    const EMPTY: Self = EMPTY_EXEC;

    fn is_local(&self) -> bool {
        self.tag != INVALID && !self.global
    }
}

pub(crate) struct Tlb {
    data: Data,
    exec: [[ExecEntry; EXEC_ENTRIES]; 2],
    /// What is not global.
    local: Box<Space>,
    /// Other address spaces, the least recently used first.
    #[expect(clippy::vec_box, reason = "they are large, and move with every switch")]
    spaces: Vec<Box<Space>>,
    /// Spaces whose memory is used again.
    #[expect(clippy::vec_box, reason = "as above")]
    spare: Vec<Box<Space>>,
    /// Where entries of large pages have been since the last full flush, by units of 4 MiB, in both halves.
    large: [Filter; 2],
    /// The same of pages of 1 GiB: a bit for each GiB, modulo 64.
    giant: [u64; 2],
    /// Pages of the upper half that code was looked up in since its generation began.
    high_code: Filter,
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
    /// log2 of the bytes of the page that it is from.
    pub(crate) shift: u8,
}

impl Fill {
    fn large(&self) -> bool {
        self.shift > SMALL
    }
}

/// log2 of the bytes of the largest page but one.
const UNIT: u8 = 22;

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
            local: Box::default(),
            spaces: Vec::new(),
            spare: Vec::new(),
            large: Default::default(),
            giant: [0; 2],
            high_code: Filter::default(),
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
        let entry = DataEntry {
            read: tag(fill.read),
            write: tag(fill.write && !fill.noted),
            addend: (fill.host as u64).wrapping_sub(fill.page),
            info: fill.gpa
                | bit(fill.write && fill.noted, info::NOTED_WRITE)
                | bit(fill.large(), info::LARGE)
                | bit(fill.global, info::GLOBAL),
        };
        self.data[bank][slot] = entry;
        self.local.data[bank].note(slot, &entry);
        self.note_large(fill);
    }

    pub(crate) fn exec(&self, user: bool, address: u64) -> Option<&ExecEntry> {
        let entry = &self.exec[user as usize][(address >> 12) as usize & (EXEC_ENTRIES - 1)];
        (entry.tag == address & !0xfff).then_some(entry)
    }

    pub(crate) fn fill_exec(&mut self, user: bool, fill: &Fill, code: *const CodePage) {
        let slot = (fill.page >> 12) as usize & (EXEC_ENTRIES - 1);
        let entry = ExecEntry {
            tag: fill.page,
            gpa: fill.gpa,
            host: fill.host,
            code,
            global: fill.global,
            large: fill.large(),
        };
        self.exec[user as usize][slot] = entry;
        self.local.exec[user as usize].note(slot, &entry);
        self.local_high_code |= !fill.global && half(fill.page) == 1;
        self.note_large(fill);
    }

    fn note_large(&mut self, fill: &Fill) {
        if fill.shift > UNIT {
            self.giant[half(fill.page)] |= 1 << gib(fill.page);
        } else if fill.large() {
            self.large[half(fill.page)].put(fill.page >> UNIT);
        }
    }

    /// Code is about to be looked up at `address`.
    pub(crate) fn note_code(&mut self, address: u64) {
        match half(address) {
            0 => self.local.code.put(address >> 12),
            _ => self.high_code.put(address >> 12),
        }
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
        self.local.clear();
        self.large.iter_mut().for_each(Filter::clear);
        self.giant = [0; 2];
        self.high_code.clear();
        self.forget_spaces();
        self.local_high_code = false;
        self.code_gen = [self.next_gen(); 2];
    }

    fn next_gen(&mut self) -> u32 {
        self.last_gen = self.last_gen.wrapping_add(1);
        self.last_gen
    }

    /// Drops what is kept of other address spaces.
    pub(crate) fn forget_spaces(&mut self) {
        self.spare.append(&mut self.spaces);
    }

    /// Drops what is kept of address space `pcid`, which is not the present one.
    pub(crate) fn forget_space(&mut self, pcid: u16) {
        if let Some(at) = self.spaces.iter().position(|s| s.pcid == pcid) {
            self.spare.push(self.spaces.remove(at));
        }
    }

    /// Goes from one address space to another, whose translations come back if they are to be kept.
    pub(crate) fn switch_space(&mut self, from: u16, to: u16, keep: bool) {
        debug_assert!(self.spaces.iter().all(|s| s.pcid != from));
        self.flushes += 1;
        let found = self.spaces.iter().position(|s| s.pcid == to);
        let mut new = match found {
            Some(at) => {
                let mut space = self.spaces.remove(at);
                space.visit();
                space
            }
            None => self.spare.pop().unwrap_or_default(),
        };
        if found.is_none() || !keep {
            new.clear();
            new.code_gen = self.next_gen();
        }
        let mut old = std::mem::replace(&mut self.local, new);
        for ((old, new), bank) in old.data.iter_mut().zip(&self.local.data).zip(self.data.iter_mut()) {
            old.exchange(new, bank);
        }
        for ((old, new), bank) in old.exec.iter_mut().zip(&self.local.exec).zip(&mut self.exec) {
            old.exchange(new, bank);
        }
        old.pcid = from;
        old.code_gen = self.code_gen[0];
        self.code_gen[0] = self.local.code_gen;
        if std::mem::take(&mut self.local_high_code) {
            old.exec.iter_mut().for_each(|log| log.retain(|e| half(e.tag) == 0));
            self.code_gen[1] = self.next_gen();
        }
        self.exchange_stacks(&mut old);
        if self.spaces.len() == SPACES {
            self.spare.push(self.spaces.remove(0));
        }
        self.spaces.push(old);
    }

    /// Stacks in the lower half belong to the address space.
    fn exchange_stacks(&mut self, old: &mut Space) {
        let known = |s: &StackPage| s.page != INVALID;
        old.stack = self.stack.map(|s| if half(s.page) == 0 { s } else { NO_STACK });
        for (stack, new) in self.stack.iter_mut().zip(&self.local.stack) {
            if known(new) || half(stack.page) == 0 {
                *stack = *new;
            }
        }
        self.check_stacks();
    }

    /// Drops all of the present address space that is not global.
    pub(crate) fn flush_local(&mut self) {
        self.flushes += 1;
        for (log, bank) in self.local.data.iter_mut().zip(self.data.iter_mut()) {
            log.flush(bank);
        }
        for (log, bank) in self.local.exec.iter_mut().zip(&mut self.exec) {
            log.flush(bank);
        }
        self.check_stacks();
        self.local.code.clear();
        self.code_gen[0] = self.next_gen();
        if std::mem::take(&mut self.local_high_code) {
            self.code_gen[1] = self.next_gen();
        }
    }

    /// Drops the translations of the page that holds `address`, of whatever size.
    pub(crate) fn flush_page(&mut self, address: u64) {
        let page = address & !0xfff;
        let slot = (address >> 12) as usize;
        let giant = self.giant[half(address)] >> gib(address) & 1 != 0;
        let large = giant || self.large[half(address)].may_have(address >> UNIT);
        // All translations of one large page are dropped, and some others with them, which is always allowed.
        let same = |tag: u64, is_large: bool| tag == page || is_large && (tag ^ page) >> 30 == 0;
        for (bank, log) in self.data.iter_mut().zip(&mut self.local.data) {
            if large {
                log.all_changed();
                for e in bank.iter_mut() {
                    let tag = if e.read == INVALID { e.write } else { e.read };
                    if same(tag, e.info & info::LARGE != 0) || tag == INVALID {
                        *e = EMPTY;
                    }
                }
            } else {
                bank[slot & (DATA_ENTRIES - 1)] = EMPTY;
                log.changed(slot & (DATA_ENTRIES - 1));
            }
        }
        for (bank, log) in self.exec.iter_mut().zip(&mut self.local.exec) {
            if large {
                log.all_changed();
                bank.iter_mut()
                    .filter(|e| same(e.tag, e.large))
                    .for_each(|e| *e = EMPTY_EXEC);
            } else {
                bank[slot & (EXEC_ENTRIES - 1)] = EMPTY_EXEC;
                log.changed(slot & (EXEC_ENTRIES - 1));
            }
        }
        self.check_stacks();
        let code = match half(address) {
            0 => &mut self.local.code,
            _ => &mut self.high_code,
        };
        // Nothing was found by way of a page where no code was looked up.
        if large || code.may_have(address >> 12) {
            code.clear();
            self.code_gen[half(address)] = self.next_gen();
        }
    }

    /// Drops the code translations of the upper half.
    pub(crate) fn forget_high_code(&mut self) {
        for (bank, log) in self.exec.iter_mut().zip(&mut self.local.exec) {
            log.all_changed();
            bank.iter_mut()
                .filter(|e| half(e.tag) == 1)
                .for_each(|e| *e = EMPTY_EXEC);
        }
        self.high_code.clear();
        self.local_high_code = false;
        self.code_gen[1] = self.next_gen();
    }

    /// Forgets the stack pages that have no translation any more.
    fn check_stacks(&mut self) {
        for bank in 0..3 {
            let page = self.stack[bank].page;
            if !self.set_stack(bank, page) {
                self.stack[bank] = NO_STACK;
            }
        }
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
        self.spaces.iter_mut().for_each(|s| s.stack = [NO_STACK; 3]);
        let spaces = self.spaces.iter_mut().chain([&mut self.local]);
        let logs = spaces.flat_map(|s| &mut s.data).flat_map(|log| &mut log.entries);
        for entry in self.data.iter_mut().flatten().chain(logs.map(|(_, e)| e)) {
            if entry.info & !0xfff == gpa && entry.write != INVALID {
                entry.write = INVALID;
                entry.info |= info::NOTED_WRITE;
            }
        }
    }

    /// Takes away all rights to write without a look at the page's code state.
    pub(crate) fn drop_writes(&mut self) {
        self.stack = [NO_STACK; 3];
        self.spaces.iter_mut().for_each(|s| s.stack = [NO_STACK; 3]);
        let spaces = self.spaces.iter_mut().chain([&mut self.local]);
        let logs = spaces.flat_map(|s| &mut s.data).flat_map(|log| &mut log.entries);
        for entry in self.data.iter_mut().flatten().chain(logs.map(|(_, e)| e)) {
            entry.write = INVALID;
        }
    }
}
