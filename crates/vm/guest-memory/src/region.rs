//! One contiguous region of guest RAM or ROM.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use crate::CodeMap;
use crate::MemoryError;
use crate::PAGE_MASK;
use crate::PAGE_SIZE;

/// What guest writes do to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read and write.
    Ram,
    /// Guest writes are dropped; loaders may write.
    Rom,
}

/// A mapped region. The host address stays valid for the life of the value.
pub struct MemoryRegion {
    name: String,
    kind: Kind,
    len: u64,
    host: NonNull<u8>,
    code: CodeMap,
}

// SAFETY: the mapping is plain memory, accessed only with volatile or atomic operations.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Maps `len` bytes (a multiple of the page size) of zeroed memory.
    ///
    /// # Errors
    /// [`MemoryError::Size`] for an odd length, [`MemoryError::Host`] when the host refuses.
    pub fn new(name: &str, kind: Kind, len: u64) -> Result<Self, MemoryError> {
        if len == 0 || len & PAGE_MASK != 0 {
            return Err(MemoryError::Size(len));
        }
        let host = map(name, len as usize).map_err(|source| MemoryError::Host { len, source })?;
        let code = CodeMap::new((len / PAGE_SIZE) as usize);
        Ok(Self {
            name: name.to_owned(),
            kind,
            len,
            host,
            code,
        })
    }

    /// Name in plans and inspection.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// RAM or ROM.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a region has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Host address of the first byte.
    #[must_use]
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Code state of the region's pages.
    #[must_use]
    pub fn code(&self) -> &CodeMap {
        &self.code
    }

    /// Copies out `buf.len()` bytes at `offset`, wherever the region is mapped. `None` when they do not lie inside.
    #[must_use]
    pub fn fetch(&self, offset: u64, buf: &mut [u8]) -> Option<()> {
        self.holds(offset, buf.len()).then(|| self.read(offset, buf))
    }

    /// Copies in `buf` at `offset`, wherever the region is mapped and whatever its kind; code engines see the write.
    /// `None` when it does not lie inside.
    #[must_use]
    pub fn load(&self, offset: u64, buf: &[u8]) -> Option<()> {
        self.holds(offset, buf.len()).then(|| self.write(offset, buf))
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        offset.checked_add(len as u64).is_some_and(|end| end <= self.len)
    }

    /// Copies out `buf.len()` bytes at `offset`. The range must lie inside the region.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        assert!(offset + buf.len() as u64 <= self.len, "range checked by the caller");
        // SAFETY: the range lies inside the mapping; the source may change meanwhile, so the copy is done by a
        // volatile loop that makes no claim about its contents.
        unsafe { copy_volatile(self.host.as_ptr().add(offset as usize), buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies in `buf` at `offset` and notes the write. The range must lie inside the region.
    pub(crate) fn write(&self, offset: u64, buf: &[u8]) {
        assert!(offset + buf.len() as u64 <= self.len, "range checked by the caller");
        // SAFETY: the range lies inside the mapping, as above.
        unsafe { copy_volatile(buf.as_ptr(), self.host.as_ptr().add(offset as usize), buf.len()) }
        self.code.note_write(offset, buf.len() as u64);
    }
}

impl MemoryRegion {
    /// Gives the host back what holds whole pages, which then read as zeros. They must lie inside the region. False when the
    /// host keeps it.
    pub(crate) fn release(&self, offset: u64, len: u64) -> bool {
        assert!(
            offset + len <= self.len && (offset | len) & PAGE_MASK == 0,
            "checked by the caller"
        );
        // SAFETY: the pages lie inside the mapping.
        let released = unsafe { give_back(self.host.as_ptr().add(offset as usize), len as usize) };
        if released {
            self.code.note_write(offset, len);
        }
        released
    }

    fn number(&self, offset: u64) -> &AtomicU16 {
        assert!(
            offset + 2 <= self.len && offset.is_multiple_of(2),
            "checked by the caller"
        );
        // SAFETY: the number lies inside the mapping, which begins at a page and lives as long as the region; everybody
        // accesses it by volatile or atomic operations.
        unsafe { AtomicU16::from_ptr(self.host.as_ptr().add(offset as usize).cast()) }
    }

    /// Exchanges a byte and notes the write. It must lie inside the region.
    pub(crate) fn swap_u8(&self, offset: u64, value: u8) -> u8 {
        assert!(offset < self.len, "checked by the caller");
        // SAFETY: the byte lies inside the mapping, which lives as long as the region; everybody accesses it by volatile or
        // atomic operations.
        let byte = unsafe { AtomicU8::from_ptr(self.host.as_ptr().add(offset as usize)) };
        let old = byte.swap(value, Ordering::SeqCst);
        self.code.note_write(offset, 1);
        old
    }

    /// Reads a 16-bit number. It must lie inside the region, at an even offset.
    pub(crate) fn load_u16(&self, offset: u64) -> u16 {
        u16::from_le(self.number(offset).load(Ordering::Acquire))
    }

    /// Writes a 16-bit number and notes the write. As [`Self::load_u16`].
    pub(crate) fn store_u16(&self, offset: u64, value: u16) {
        self.number(offset).store(value.to_le(), Ordering::Release);
        self.code.note_write(offset, 2);
    }
}

/// Copies `len` bytes in words where both sides allow it, with volatile accesses.
///
/// # Safety
/// Both ranges must be valid for `len` bytes and must not overlap.
unsafe fn copy_volatile(from: *const u8, to: *mut u8, len: usize) {
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Word(u64);
    let words = len / 8;
    for i in 0..words {
        // SAFETY: i * 8 + 8 <= len, and the packed type asks for no alignment.
        unsafe {
            to.cast::<Word>()
                .add(i)
                .write_volatile(from.cast::<Word>().add(i).read_volatile())
        }
    }
    for i in words * 8..len {
        // SAFETY: i < len.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) }
    }
}

/// A huge page of the host.
#[cfg(not(miri))]
const HUGE: usize = 2 << 20;

/// Maps zeroed memory, at a multiple of a huge page if it has room for one: guests reach all over their memory, and the
/// host's TLB holds translations of few small pages.
#[cfg(not(miri))]
fn map(_name: &str, len: usize) -> std::io::Result<NonNull<u8>> {
    use rustix::mm::Advice;
    use rustix::mm::MapFlags;
    use rustix::mm::ProtFlags;
    let (prot, flags) = (
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE | MapFlags::NORESERVE,
    );
    let spare = if len >= HUGE { HUGE } else { 0 };
    let none = std::ptr::null_mut();
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory, and what is given back of
    // it at both ends is not used.
    let at = unsafe {
        let whole = rustix::mm::mmap_anonymous(none, len + spare, prot, flags)?.cast::<u8>();
        let before = if spare == 0 { 0 } else { whole.align_offset(HUGE) };
        let at = whole.add(before);
        if before > 0 {
            rustix::mm::munmap(whole.cast(), before)?;
        }
        if spare > before {
            rustix::mm::munmap(at.add(len).cast(), spare - before)?;
        }
        if spare > 0 {
            // A host without huge pages is only slower.
            let _ = rustix::mm::madvise(at.cast(), len, Advice::LinuxHugepage);
        }
        at
    };
    NonNull::new(at).ok_or_else(|| std::io::Error::other("mapped at address zero"))
}

/// Gives pages of a mapping that [`map`] made back to the host.
///
/// # Safety
/// They must lie inside the mapping.
#[cfg(not(miri))]
unsafe fn give_back(at: *mut u8, len: usize) -> bool {
    // SAFETY: the mapping is private and anonymous, so that the pages read as zeros from now on, as plain memory that changed.
    unsafe { rustix::mm::madvise(at.cast(), len, rustix::mm::Advice::LinuxDontNeed).is_ok() }
}

#[cfg(miri)]
unsafe fn give_back(at: *mut u8, len: usize) -> bool {
    // SAFETY: the pages lie inside the allocation, by the caller.
    unsafe { at.write_bytes(0, len) };
    true
}

#[cfg(miri)]
fn map(_name: &str, len: usize) -> std::io::Result<NonNull<u8>> {
    let layout = std::alloc::Layout::from_size_align(len, 4096).map_err(std::io::Error::other)?;
    // SAFETY: the length is not zero.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(|| std::io::Error::other("no memory"))
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        #[cfg(not(miri))]
        // SAFETY: the mapping was made by `map` with this length, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.host.as_ptr().cast::<c_void>(), self.len as usize) };
        #[cfg(miri)]
        // SAFETY: allocated by `map` with this layout.
        unsafe {
            let _: *mut c_void = std::ptr::null_mut();
            std::alloc::dealloc(
                self.host.as_ptr(),
                std::alloc::Layout::from_size_align_unchecked(self.len as usize, 4096),
            );
        }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            kind,
            len,
            host: _,
            code: _,
        } = self;
        f.debug_struct("MemoryRegion")
            .field("name", name)
            .field("kind", kind)
            .field("len", len)
            .finish_non_exhaustive()
    }
}
