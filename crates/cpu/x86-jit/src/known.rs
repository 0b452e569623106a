//! What is known of the jumps of one address space, in such a form that it is quickly taken out and put back.

use crate::area::Jump;
use crate::area::JumpCache;
use crate::area::PageMap;

/// Visits before what is known of an address space is forgotten for the first time.
const OFTEN: u32 = 16;
/// Visits between two such times later on.
const LASTING: u32 = 4096;

/// A table of which few slots are in use.
pub(crate) trait Table {
    type Entry: Copy;
    const SLOTS: usize;

    fn slot(&mut self, slot: usize) -> &mut Self::Entry;

    fn clear(&mut self, slot: usize);
}

/// The slots of a table that are in use, each once, and what they hold.
pub(crate) struct Log<T: Table> {
    entries: Vec<(u32, T::Entry)>,
    listed: Box<[u64]>,
    /// A slot holds something else than its entry here.
    stale: bool,
}

impl<T: Table> Log<T> {
    fn new() -> Self {
        Self {
            entries: Vec::new(),
            listed: vec![0; T::SLOTS / 64].into(),
            stale: false,
        }
    }

    fn holds(&self, slot: usize) -> bool {
        self.listed[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// Puts `entry` into `slot` of the table.
    fn set(&mut self, table: &mut T, slot: usize, entry: T::Entry) {
        *table.slot(slot) = entry;
        if self.holds(slot) {
            self.stale = true;
        } else {
            self.listed[slot / 64] |= 1 << (slot % 64);
            self.entries.push((slot as u32, entry));
        }
    }

    fn forget(&mut self) {
        self.entries.clear();
        self.listed.fill(0);
        self.stale = false;
    }

    /// Takes the entries out of the table and forgets them.
    fn clear(&mut self, table: &mut T) {
        for &(slot, _) in &self.entries {
            table.clear(slot as usize);
        }
        self.forget();
    }

    /// Takes the entries out of the table, and puts those of `new` there.
    fn exchange(&mut self, new: &Self, table: &mut T) {
        if std::mem::take(&mut self.stale) {
            for (slot, entry) in &mut self.entries {
                *entry = *table.slot(*slot as usize);
            }
        }
        for &(slot, _) in self.entries.iter().filter(|e| !new.holds(e.0 as usize)) {
            table.clear(slot as usize);
        }
        for &(slot, entry) in &new.entries {
            *table.slot(slot as usize) = entry;
        }
    }
}

/// The contents of a jump cache and of a page map.
///
/// Much of it is from when a process began, and is never wanted again. So it is forgotten now and then: what is in use comes
/// back at once.
pub(crate) struct Known {
    /// Times that it was put back.
    visits: u32,
    jumps: Log<JumpCache>,
    pages: Log<PageMap>,
}

impl Known {
    pub(crate) fn new() -> Self {
        Self {
            visits: 0,
            jumps: Log::new(),
            pages: Log::new(),
        }
    }

    /// Lets jumps to `address` go to `host`. What was in its first slot goes to its own second.
    pub(crate) fn set_jump(&mut self, jumps: &mut JumpCache, address: u64, host: u64) {
        let (slot, jump) = Jump::new(address, host);
        let old = *jumps.slot(slot);
        if let Some(second) = old.second_slot()
            && old.address != jump.address
        {
            self.jumps.set(jumps, second, old);
        }
        self.jumps.set(jumps, slot, jump);
    }

    /// Page number `page` is at virtual address `at`.
    pub(crate) fn set_page(&mut self, pages: &mut PageMap, page: u32, at: u64) {
        let page = page as usize;
        if page < PageMap::SLOTS && *pages.slot(page) != at.wrapping_neg() {
            self.pages.set(pages, page, at.wrapping_neg());
        }
    }

    /// Forgets all. Slots still lead to code, which will not find the address that it is for.
    pub(crate) fn clear(&mut self, jumps: &mut JumpCache, pages: &mut PageMap) {
        self.jumps.clear(jumps);
        self.pages.clear(pages);
    }

    /// It is about to be put back.
    pub(crate) fn visit(&mut self) {
        self.visits = self.visits.wrapping_add(1);
        if self.visits >= OFTEN && (self.visits.is_power_of_two() || self.visits.is_multiple_of(LASTING)) {
            self.jumps.forget();
            self.pages.forget();
        }
    }

    /// The tables hold nothing of it any more.
    pub(crate) fn forget(&mut self) {
        self.visits = 0;
        self.jumps.forget();
        self.pages.forget();
    }

    /// Puts `new` into the tables in the place of this.
    pub(crate) fn exchange(&mut self, new: &Self, jumps: &mut JumpCache, pages: &mut PageMap) {
        self.jumps.exchange(&new.jumps, jumps);
        self.pages.exchange(&new.pages, pages);
    }
}
