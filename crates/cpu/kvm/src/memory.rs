//! Guest memory as the kernel has it: slots, and the log of pages that were written.
//!
//! RAM is a slot, ROM a read-only one, and a hole none: accesses there come out as memory-mapped I/O. Slots follow the
//! map of guest memory, whose changes a vCPU sees before it enters the guest again.
//!
//! DEVIATION: while address line 20 is closed, odd mebibytes show the even ones below them up to 16 MiB only, which is as
//! far as code that knows of the line reaches.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use guest_memory::PAGE_SIZE;
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_bindings::KVM_MEM_READONLY;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// Address line 20, and how far its closing reaches.
const A20: u64 = 1 << 20;
const A20_END: u64 = 16 << 20;
/// No generation: nothing was followed yet.
const NEVER: u64 = u64::MAX;

/// A part of a region at an address.
#[derive(Clone, Debug)]
struct Part {
    gpa: u64,
    len: u64,
    region: Arc<MemoryRegion>,
    offset: u64,
    kind: Kind,
}

impl Part {
    fn end(&self) -> u64 {
        self.gpa + self.len
    }

    fn same(&self, other: &Self) -> bool {
        (self.gpa, self.len, self.offset, self.kind) == (other.gpa, other.len, other.offset, other.kind)
            && Arc::ptr_eq(&self.region, &other.region)
    }

    /// What of it lies in `start..end`.
    fn within(&self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.gpa.max(start), self.end().min(end));
        (from < to).then(|| Self {
            gpa: from,
            len: to - from,
            offset: self.offset + (from - self.gpa),
            ..self.clone()
        })
    }

    /// What of it lies before `start` and from `end` on.
    fn without(&self, start: u64, end: u64) -> impl Iterator<Item = Self> + use<> {
        [self.within(0, start), self.within(end, u64::MAX)]
            .into_iter()
            .flatten()
    }
}

/// What the kernel is to have, by address.
fn layout(memory: &GuestMemory) -> Vec<Part> {
    let fixed = memory.slots().iter().map(|(gpa, region)| Part {
        gpa: *gpa,
        len: region.len(),
        region: Arc::clone(region),
        offset: 0,
        kind: region.kind(),
    });
    let mut parts: Vec<Part> = fixed.collect();
    let fixed = parts.clone();
    for piece in memory.overlay().pieces().iter() {
        let mut rest = vec![Part {
            gpa: piece.gpa,
            len: piece.len,
            region: Arc::clone(&piece.region),
            offset: piece.offset,
            kind: piece.kind,
        }];
        // What is fixed is seen.
        for part in &fixed {
            rest = rest.iter().flat_map(|p| p.without(part.gpa, part.end())).collect();
        }
        parts.extend(rest);
    }
    if !memory.a20() {
        close_a20(&mut parts);
    }
    parts.sort_by_key(|part| part.gpa);
    parts
}

fn close_a20(parts: &mut Vec<Part>) {
    for odd in (A20..A20_END).step_by(2 * A20 as usize) {
        let shown: Vec<Part> = parts.iter().filter_map(|p| p.within(odd - A20, odd)).collect();
        *parts = parts.iter().flat_map(|p| p.without(odd, odd + A20)).collect();
        parts.extend(shown.into_iter().map(|part| Part {
            gpa: part.gpa + A20,
            ..part
        }));
    }
}

#[derive(Default)]
struct Table {
    /// By number of the slot.
    slots: Vec<Option<Part>>,
    log: bool,
    /// Pages written, from slots that are gone.
    written: Vec<u64>,
    /// Somebody has written whom the kernel does not see: any page may have changed.
    unseen: bool,
}

/// The slots of a machine.
pub(crate) struct Slots {
    memory: Arc<GuestMemory>,
    limit: usize,
    followed: AtomicU64,
    table: Mutex<Table>,
}

impl Slots {
    /// None yet, for at most `limit` of them.
    pub(crate) fn new(memory: Arc<GuestMemory>, limit: usize) -> Self {
        Self {
            memory,
            limit,
            followed: AtomicU64::new(NEVER),
            table: Mutex::default(),
        }
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of slots in use.
    pub(crate) fn count(&self) -> usize {
        self.table().slots.iter().flatten().count()
    }

    /// Makes the kernel's slots those of the map as it is now.
    pub(crate) fn follow(&self, vm: &VmFd) -> Result<(), String> {
        let now = self.memory.overlay().generation();
        if self.followed.load(Ordering::Acquire) == now {
            return Ok(());
        }
        let mut table = self.table();
        let wanted = layout(&self.memory);
        if wanted.len() > self.limit {
            return Err(format!(
                "guest memory is in {} parts, KVM takes {}",
                wanted.len(),
                self.limit
            ));
        }
        let stays = |part: &Part| wanted.iter().any(|other| other.same(part));
        for index in 0..table.slots.len() {
            if table.slots[index].as_ref().is_some_and(|part| !stays(part)) {
                table.harvest(vm, index)?;
                table.remove(vm, index)?;
            }
        }
        for part in wanted {
            if !table.slots.iter().flatten().any(|other| other.same(&part)) {
                table.insert(vm, part)?;
            }
        }
        self.followed.store(now, Ordering::Release);
        Ok(())
    }

    /// Begins or ends the log of written pages.
    pub(crate) fn set_log(&self, vm: &VmFd, on: bool) -> Result<(), String> {
        let mut table = self.table();
        table.log = on;
        table.written.clear();
        table.unseen = false;
        (0..table.slots.len()).try_for_each(|index| table.put(vm, index))
    }

    /// The guest may have written anywhere without the kernel.
    pub(crate) fn note_unseen_writes(&self) {
        self.table().unseen = true;
    }

    /// Addresses of the pages that the guest has written since the last call, in order. Those that devices wrote are the
    /// devices' to tell.
    pub(crate) fn take_written(&self, vm: &VmFd) -> Result<Vec<u64>, String> {
        let mut table = self.table();
        (0..table.slots.len()).try_for_each(|index| table.harvest(vm, index))?;
        let mut written = std::mem::take(&mut table.written);
        if std::mem::take(&mut table.unseen) && table.log {
            let ram = table.slots.iter().flatten().filter(|part| part.kind == Kind::Ram);
            written.extend(ram.flat_map(|part| (part.gpa..part.end()).step_by(PAGE_SIZE as usize)));
        }
        written.sort_unstable();
        written.dedup();
        Ok(written)
    }
}

impl Table {
    /// Tells the kernel of slot `index` as it is in the table.
    fn put(&self, vm: &VmFd, index: usize) -> Result<(), String> {
        let Some(part) = self.slots.get(index).and_then(Option::as_ref) else {
            return Ok(());
        };
        let log = if self.log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        let flags = match part.kind {
            Kind::Ram => log,
            Kind::Rom => KVM_MEM_READONLY,
        };
        let region = kvm_userspace_memory_region {
            slot: index as u32,
            flags,
            guest_phys_addr: part.gpa,
            memory_size: part.len,
            userspace_addr: part.region.host().as_ptr() as u64 + part.offset,
        };
        // SAFETY: the part lies inside the region's mapping, which the table keeps for as long as the kernel has the slot.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| format!("memory at {:#x}, {:#x} bytes: {error}", part.gpa, part.len))
    }

    fn insert(&mut self, vm: &VmFd, part: Part) -> Result<(), String> {
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.slots.len());
        if free.is_none() {
            self.slots.push(None);
        }
        self.slots[index] = Some(part);
        self.put(vm, index).inspect_err(|_| self.slots[index] = None)
    }

    fn remove(&mut self, vm: &VmFd, index: usize) -> Result<(), String> {
        let none = kvm_userspace_memory_region {
            slot: index as u32,
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: a slot of no length ends it.
        unsafe { vm.set_user_memory_region(none) }.map_err(|error| format!("memory slot {index}: {error}"))?;
        self.slots[index] = None;
        Ok(())
    }

    /// Takes over what the kernel has noted of slot `index`.
    fn harvest(&mut self, vm: &VmFd, index: usize) -> Result<(), String> {
        let Some(part) = self.slots[index]
            .as_ref()
            .filter(|part| self.log && part.kind == Kind::Ram)
        else {
            return Ok(());
        };
        let words = vm
            .get_dirty_log(index as u32, part.len as usize)
            .map_err(|error| format!("the log of written pages: {error}"))?;
        for (number, word) in words.iter().enumerate() {
            let first = part.gpa + number as u64 * 64 * PAGE_SIZE;
            let set = (0..64).filter(|bit| word >> bit & 1 != 0);
            self.written.extend(set.map(|bit| first + bit * PAGE_SIZE));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use guest_memory::Piece;

    use super::*;

    fn memory() -> GuestMemory {
        let mut memory = GuestMemory::new();
        let region = |name, kind, len| Arc::new(MemoryRegion::new(name, kind, len).unwrap());
        memory.add(0, region("ram", Kind::Ram, 4 << 20)).unwrap();
        memory.add(0xfff0_0000, region("rom", Kind::Rom, 0x10_0000)).unwrap();
        memory
    }

    fn ranges(memory: &GuestMemory) -> Vec<(u64, u64, u64, bool)> {
        let parts = layout(memory).into_iter();
        parts.map(|p| (p.gpa, p.len, p.offset, p.kind == Kind::Rom)).collect()
    }

    #[test]
    fn layout_has_pieces_where_nothing_fixed_is() {
        let memory = memory();
        let region = Arc::new(MemoryRegion::new("piece", Kind::Ram, 0x4000).unwrap());
        let piece = |gpa, kind| Piece {
            gpa,
            len: 0x4000,
            region: Arc::clone(&region),
            offset: 0,
            kind,
        };
        memory.remap("owner", vec![piece(0x3f_e000, Kind::Ram), piece(0x80_0000, Kind::Rom)]);
        assert_eq!(
            ranges(&memory),
            [
                (0, 4 << 20, 0, false),
                (0x40_0000, 0x2000, 0x2000, false),
                (0x80_0000, 0x4000, 0, true),
                (0xfff0_0000, 0x10_0000, 0, true),
            ]
        );
    }

    #[test]
    fn layout_shows_even_mebibytes_twice_while_line_20_is_closed() {
        let memory = memory();
        memory.set_a20(false);
        let mib = 1 << 20;
        assert_eq!(
            ranges(&memory),
            [
                (0, mib, 0, false),
                (mib, mib, 0, false),
                (2 * mib, mib, 2 * mib, false),
                (3 * mib, mib, 2 * mib, false),
                (0xfff0_0000, 0x10_0000, 0, true),
            ]
        );
    }

    #[test]
    fn log_has_all_ram_once_somebody_wrote_whom_the_kernel_does_not_see() {
        let kvm = match crate::availability::open() {
            Ok(kvm) => kvm,
            Err(reason) => {
                eprintln!("SKIPPED: {reason}");
                return;
            }
        };
        let vm = kvm.create_vm().unwrap();
        let slots = Slots::new(Arc::new(memory()), kvm.get_nr_memslots());
        slots.follow(&vm).unwrap();
        slots.note_unseen_writes();
        slots.set_log(&vm, true).unwrap();
        assert_eq!(slots.take_written(&vm), Ok(vec![]), "that was before");
        slots.note_unseen_writes();
        let all: Vec<u64> = (0..4 << 20).step_by(4096).collect();
        assert_eq!(slots.take_written(&vm), Ok(all));
        assert_eq!(slots.take_written(&vm), Ok(vec![]));
    }
}
