//! Memory for translated code: one file mapped twice, writable here and executable there, never both.

use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

/// Bytes reserved unless told otherwise; only what is used takes memory.
pub(crate) const LEN: usize = 128 << 20;

/// The least that has room for any block.
const LEAST: usize = 256 << 10;

pub(crate) struct CodeMemory {
    write: *mut u8,
    exec: *mut u8,
    len: usize,
    /// Bytes at the start that stay for ever: the thunks.
    floor: usize,
    used: usize,
    /// Bytes in use of the part for code that is rarely executed.
    cold: usize,
}

// SAFETY: the mappings belong to this value; they are written under the registry's lock, but for aligned atomic patches.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Memory for `len` bytes of code.
    pub(crate) fn new(len: usize) -> std::io::Result<Self> {
        let len = len.max(LEAST).next_multiple_of(8192);
        let file = rustix::fs::memfd_create("oxbow-code", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let map = |prot| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { rustix::mm::mmap(null_mut(), len, prot, MapFlags::SHARED | MapFlags::NORESERVE, &file, 0) }
        };
        let exec = map(ProtFlags::READ | ProtFlags::EXEC)?.cast();
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?.cast();
        Ok(Self {
            write,
            exec,
            len,
            floor: 0,
            used: 0,
            cold: len / 2,
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
        self.used + (self.cold - self.middle())
    }

    /// The address that the next rarely executed code gets.
    pub(crate) fn next_cold(&self) -> u64 {
        self.exec as u64 + self.cold.next_multiple_of(16) as u64
    }

    /// Whether there is room for so many bytes of both kinds.
    pub(crate) fn has_room(&self, hot: usize, cold: usize) -> bool {
        self.used.next_multiple_of(16) + hot <= self.middle() && self.cold.next_multiple_of(16) + cold <= self.len
    }

    /// Adds rarely executed code at [`Self::next_cold`].
    pub(crate) fn add_cold(&mut self, code: &[u8]) {
        let at = self.cold.next_multiple_of(16);
        assert!(at + code.len() <= self.len);
        // SAFETY: as in `add`.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.cold = at + code.len();
    }

    /// The address that the next code gets.
    pub(crate) fn next(&self) -> u64 {
        self.exec as u64 + self.used.next_multiple_of(16) as u64
    }

    /// Adds code at [`Self::next`]; `None` when there is no room.
    pub(crate) fn add(&mut self, code: &[u8]) -> Option<u64> {
        let at = self.used.next_multiple_of(16);
        if at + code.len() > self.middle() {
            return None;
        }
        // SAFETY: the range lies in the writable mapping, and nothing executes it yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = at + code.len();
        Some(self.exec as u64 + at as u64)
    }

    /// All that was added so far stays.
    pub(crate) fn keep(&mut self) {
        self.floor = self.used;
    }

    /// Forgets all but what stays. Nothing may execute it, nor come back to it.
    pub(crate) fn clear(&mut self) {
        self.used = self.floor;
        self.cold = self.middle();
    }

    /// Changes the 32-bit displacement at executable address `at`, which is aligned, to lead to `to`.
    pub(crate) fn patch_jump(&self, at: u64, to: u64) {
        let displacement = to.wrapping_sub(at + 4) as u32;
        let place = self.writable(at).cast::<u32>();
        assert!(place.is_aligned());
        // SAFETY: inside the mapping, aligned; others execute it meanwhile, and see the old or the new one.
        unsafe { AtomicU32::from_ptr(place) }.store(displacement, Ordering::SeqCst);
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
        // SAFETY: both mappings are ours, and no vCPU that could execute them is left: each holds the engine.
        unsafe {
            let _ = rustix::mm::munmap(self.write.cast(), self.len);
            let _ = rustix::mm::munmap(self.exec.cast(), self.len);
        }
    }
}
