//! What the TLB holds of one address space, in such a form that it is quickly taken out and put back.

use super::filter::Filter;
use super::tlb::DataEntry;
use super::tlb::ExecEntry;
use super::tlb::StackPage;

/// Slots of the largest bank.
pub(super) const SLOTS: usize = 4096;

/// Visits before what is known of an address space is forgotten for the first time.
const OFTEN: u32 = 16;
/// Visits between two such times later on.
const LASTING: u32 = 4096;

/// An entry of a bank.
pub(super) trait Entry: Copy {
    const EMPTY: Self;

    /// It translates something, and is not global.
    fn is_local(&self) -> bool;
}

/// The entries of a bank that are not global.
pub(super) struct Log<E> {
    pub(super) entries: Vec<(u16, E)>,
    listed: [u64; SLOTS / 64],
    /// A slot holds something else than its entry here.
    stale: bool,
}

impl<E> Default for Log<E> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            listed: [0; SLOTS / 64],
            stale: false,
        }
    }
}

impl<E: Entry> Log<E> {
    fn holds(&self, slot: usize) -> bool {
        self.listed[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// `entry` was put into `slot`.
    pub(super) fn note(&mut self, slot: usize, entry: &E) {
        if self.holds(slot) {
            self.stale = true;
        } else if entry.is_local() {
            self.listed[slot / 64] |= 1 << (slot % 64);
            self.entries.push((slot as u16, *entry));
        }
    }

    /// `slot` was changed in another way.
    pub(super) fn changed(&mut self, slot: usize) {
        self.stale |= self.holds(slot);
    }

    /// All slots may have been changed.
    pub(super) fn all_changed(&mut self) {
        self.stale = true;
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.listed = [0; SLOTS / 64];
        self.stale = false;
    }

    /// Takes the entries out of the bank and forgets them.
    pub(super) fn flush(&mut self, bank: &mut [E]) {
        for &(slot, _) in &self.entries {
            let entry = &mut bank[usize::from(slot)];
            // It may be a global one by now.
            if entry.is_local() {
                *entry = E::EMPTY;
            }
        }
        self.clear();
    }

    /// Takes the entries out of the bank, and puts those of `new` there.
    pub(super) fn exchange(&mut self, new: &Self, bank: &mut [E]) {
        if std::mem::take(&mut self.stale) {
            self.read_again(bank);
        }
        for &(slot, _) in &self.entries {
            let entry = &mut bank[usize::from(slot)];
            if !new.holds(slot.into()) && entry.is_local() {
                *entry = E::EMPTY;
            }
        }
        for &(slot, entry) in &new.entries {
            bank[usize::from(slot)] = entry;
        }
    }

    fn read_again(&mut self, bank: &[E]) {
        self.entries.retain_mut(|(slot, entry)| {
            *entry = bank[usize::from(*slot)];
            entry.is_local()
        });
        self.list();
    }

    /// Keeps only some.
    pub(super) fn retain(&mut self, keep: impl Fn(&E) -> bool) {
        self.entries.retain(|(_, entry)| keep(entry));
        self.list();
    }

    fn list(&mut self) {
        self.listed = [0; SLOTS / 64];
        for &(slot, _) in &self.entries {
            self.listed[usize::from(slot) / 64] |= 1 << (slot % 64);
        }
    }
}

/// An address space: a process-context identifier and its translations.
#[derive(Default)]
///
/// What is known is forgotten now and then, since much of it is from when a process began.
pub(super) struct Space {
    /// Times that it was put back.
    visits: u32,
    pub(super) pcid: u16,
    pub(super) code_gen: u32,
    /// Pages of the lower half that code was looked up in since that generation began.
    pub(super) code: Filter,
    /// By bank.
    pub(super) data: [Log<DataEntry>; 3],
    pub(super) exec: [Log<ExecEntry>; 2],
    /// Pages in the lower half that stacks are on.
    pub(super) stack: [StackPage; 3],
}

impl Space {
    /// It is about to be put back.
    pub(super) fn visit(&mut self) {
        self.visits = self.visits.wrapping_add(1);
        if self.visits >= OFTEN && (self.visits.is_power_of_two() || self.visits.is_multiple_of(LASTING)) {
            self.data.iter_mut().for_each(Log::clear);
            self.exec.iter_mut().for_each(Log::clear);
        }
    }

    pub(super) fn clear(&mut self) {
        self.visits = 0;
        self.data.iter_mut().for_each(Log::clear);
        self.exec.iter_mut().for_each(Log::clear);
        self.code.clear();
        self.stack = Default::default();
    }
}
