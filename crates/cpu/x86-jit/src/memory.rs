//! Memory for translated code: one file mapped twice, writable here and executable there, never both.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use crate::asm::LINE;

/// Bytes reserved unless told otherwise; only what is used takes memory.
pub(crate) const LEN: usize = 96 << 20;

/// The least that has room for any block, in each of two parts.
const LEAST: usize = 256 << 10;

/// Parts that are given up one after the other, and bytes of one half of such a part at least.
const PARTS: usize = 8;
const PART: usize = 64 << 10;

/// A huge page. Code is scattered, and the processor remembers few small pages of it.
const HUGE: usize = 2 << 20;

/// Code in a huge page's worth of memory that makes it worth one.
const WORTH: usize = HUGE / 8;

/// Writes after which the pages of the writable mapping are let go.
const KEPT: u32 = 512;

/// Makes huge pages of small ones, whatever the system's policy for them is (Linux 6.1, madvise(2)).
const MADV_COLLAPSE: libc::c_int = 25;

pub(crate) struct CodeMemory {
    /// Address space that the mappings lie in, and its length.
    reserved: [(*mut u8, usize); 2],
    write: *mut u8,
    exec: *mut u8,
    len: usize,
    /// Which parts were made huge pages, or cannot be.
    collapsed: Vec<bool>,
    /// Bytes at the start that stay for ever: the thunks.
    floor: usize,
    /// The part that is being filled, and whether each was ever.
    part: usize,
    filled: Vec<bool>,
    /// Where the next code goes.
    used: usize,
    /// Where the next code goes that is rarely executed.
    cold: usize,
    /// Writes since the writable mapping was let go.
    writes: AtomicU32,
}

// SAFETY: the mappings belong to this value; they are written under the registry's lock, but for aligned atomic patches.
unsafe impl Send for CodeMemory {}

/// Maps the file at a multiple of a huge page. The address space that it takes, and where it is in there.
fn map(file: &OwnedFd, len: usize, prot: ProtFlags) -> std::io::Result<((*mut u8, usize), *mut u8)> {
    let room = len + HUGE;
    // SAFETY: a new mapping at an address of the kernel's choice; then one inside it.
    unsafe {
        let base = rustix::mm::mmap_anonymous(null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE)?.cast::<u8>();
        let at = base.add(base.align_offset(HUGE));
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        rustix::mm::mmap(at.cast(), len, prot, flags, file, 0)?;
        Ok(((base, room), at))
    }
}

impl CodeMemory {
    /// Memory for `len` bytes of code.
    pub(crate) fn new(len: usize) -> std::io::Result<Self> {
        let len = len.max(LEAST).next_multiple_of(8192 * PARTS);
        let parts = (len / 2 / PART).clamp(2, PARTS);
        let file = rustix::fs::memfd_create("oxbow-code", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let (reserved_exec, exec) = map(&file, len, ProtFlags::READ | ProtFlags::EXEC)?;
        let (reserved_write, write) = map(&file, len, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self {
            reserved: [reserved_exec, reserved_write],
            write,
            exec,
            len,
            collapsed: vec![false; len / HUGE],
            floor: 0,
            part: 0,
            filled: (0..parts).map(|part| part == 0).collect(),
            used: 0,
            cold: len / 2,
            writes: AtomicU32::new(0),
        })
    }

    /// Where the part for rarely executed code begins.
    fn middle(&self) -> usize {
        self.len / 2
    }

    /// Addresses that translated code has.
    pub(crate) fn range(&self) -> Range<u64> {
        self.exec as u64..self.exec as u64 + self.len as u64
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        let of_each = |part: usize, (hot, cold): (usize, usize)| {
            hot - part * self.part_len() + (cold - self.middle() - part * self.part_len())
        };
        let full = |part: usize| (self.filled[part] && part != self.part).then_some(2 * self.part_len());
        let others: usize = (0..self.parts()).filter_map(full).sum();
        others + of_each(self.part, (self.used, self.cold))
    }

    /// The address that the next rarely executed code gets.
    pub(crate) fn next_cold(&self) -> u64 {
        self.exec as u64 + self.cold.next_multiple_of(LINE) as u64
    }

    /// Parts that are given up one after the other. Each has a piece of both halves.
    pub(crate) fn parts(&self) -> usize {
        self.filled.len()
    }

    /// The part that is being filled.
    pub(crate) fn part(&self) -> usize {
        self.part
    }

    /// Bytes that a part has of each half.
    fn part_len(&self) -> usize {
        self.middle() / self.parts() / LINE * LINE
    }

    /// The part that executable address `at` lies in, if that is in the half for ordinary code.
    pub(crate) fn part_of(&self, at: u64) -> Option<usize> {
        let offset = at.checked_sub(self.exec as u64)? as usize;
        Some(offset / self.part_len()).filter(|part| *part < self.parts())
    }

    /// Whether an empty part has room for so many bytes of each kind.
    pub(crate) fn may_hold(&self, bytes: usize) -> bool {
        bytes + self.floor + LINE <= self.part_len()
    }

    /// Whether there is room for so many bytes of both kinds.
    pub(crate) fn has_room(&self, hot: usize, cold: usize) -> bool {
        let end = (self.part + 1) * self.part_len();
        self.used.next_multiple_of(LINE) + hot <= end && self.cold.next_multiple_of(LINE) + cold <= self.middle() + end
    }

    /// Goes on with the next part if that was never filled.
    pub(crate) fn advance_into_empty(&mut self) -> bool {
        let next = (self.part + 1) % self.parts();
        if !self.filled[next] {
            self.advance();
            return true;
        }
        false
    }

    /// Goes on with the next part, whatever is in it. Nothing may execute that, nor come back to it.
    pub(crate) fn advance(&mut self) -> usize {
        self.part = (self.part + 1) % self.parts();
        self.filled[self.part] = true;
        let start = self.part * self.part_len();
        self.used = start.max(self.floor);
        self.cold = self.middle() + start;
        self.part
    }

    /// Adds rarely executed code at [`Self::next_cold`].
    pub(crate) fn add_cold(&mut self, code: &[u8]) {
        let at = self.cold.next_multiple_of(LINE);
        self.cold = self.put(at, code);
    }

    /// Writes code at offset `at`, where nothing is yet. Where it ends.
    fn put(&mut self, at: usize, code: &[u8]) -> usize {
        let end = at + code.len();
        assert!(end <= self.len);
        // SAFETY: the range lies in the writable mapping, and nothing executes it yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.collapse(end);
        self.written();
        end
    }

    /// Makes the part that ends with offset `end` a huge page, if it has got enough code for one.
    fn collapse(&mut self, end: usize) {
        let part = end / HUGE;
        if end % HUGE < WORTH || self.collapsed.get(part) != Some(&false) {
            return;
        }
        self.collapsed[part] = true;
        // SAFETY: a whole part of the mapping; its contents stay. Without huge pages all is as before.
        unsafe { libc::madvise(self.exec.add(part * HUGE).cast(), HUGE, MADV_COLLAPSE) };
    }

    /// Lets the pages of the writable mapping go now and then: they count as memory of the process a second time.
    fn written(&self) {
        if self.writes.fetch_add(1, Ordering::Relaxed) >= KEPT {
            self.writes.store(0, Ordering::Relaxed);
            // SAFETY: the mapping is shared: what it shows stays in the file.
            unsafe { libc::madvise(self.write.cast(), self.len, libc::MADV_DONTNEED) };
        }
    }

    /// The address that the next code gets.
    pub(crate) fn next(&self) -> u64 {
        self.exec as u64 + self.used.next_multiple_of(LINE) as u64
    }

    /// Adds code at [`Self::next`]; `None` when there is no room.
    pub(crate) fn add(&mut self, code: &[u8]) -> Option<u64> {
        let at = self.used.next_multiple_of(LINE);
        if at + code.len() > (self.part + 1) * self.part_len() {
            return None;
        }
        self.used = self.put(at, code);
        Some(self.exec as u64 + at as u64)
    }

    /// All that was added so far stays.
    pub(crate) fn keep(&mut self) {
        self.floor = self.used;
    }

    /// Changes the 32-bit displacement at executable address `at`, which is aligned, to lead to `to`.
    pub(crate) fn patch_jump(&self, at: u64, to: u64) {
        let displacement = to.wrapping_sub(at + 4) as u32;
        let place = self.writable(at).cast::<u32>();
        assert!(place.is_aligned());
        // SAFETY: inside the mapping, aligned; others execute it meanwhile, and see the old or the new one.
        unsafe { AtomicU32::from_ptr(place) }.store(displacement, Ordering::SeqCst);
        self.written();
    }

    /// Overwrites the first instruction at `at`, which is aligned to eight bytes and at least eight long, by a jump.
    pub(crate) fn patch_entry(&self, at: u64, to: u64) {
        let displacement = to.wrapping_sub(at + 5) as u32;
        let place = self.writable(at).cast::<u64>();
        assert!(place.is_aligned());
        let code = 0xe9 | u64::from(displacement) << 8 | 0x90_9090 << 40;
        // SAFETY: as in `patch_jump`.
        unsafe { AtomicU64::from_ptr(place) }.store(code, Ordering::SeqCst);
    }

    fn writable(&self, at: u64) -> *mut u8 {
        let offset = (at - self.exec as u64) as usize;
        assert!(offset < self.len);
        // SAFETY: the offset lies in the mapping.
        unsafe { self.write.add(offset) }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for (base, len) in self.reserved {
            // SAFETY: both mappings are ours, and no vCPU that could execute them is left: each holds the engine.
            let _ = unsafe { rustix::mm::munmap(base.cast(), len) };
        }
    }
}
