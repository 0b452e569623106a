//! Which pages hold code that an engine has decoded or translated, and when that code was last overwritten.
//!
//! A page is divided into 64 granules of 64 bytes. An engine *marks* the granules that it has decoded; every write to a
//! page with marked granules is *noted*. A write that overlaps a marked granule raises the page's version and clears
//! the marks: whoever holds code of an older version throws it away when it next looks.
//!
//! Ordering: an engine marks, then reads the bytes; a writer writes the bytes, then looks at the marks. With both sides
//! sequentially consistent, either the engine sees the new bytes or the writer sees the mark.

use std::fmt;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

/// The code state of one page.
#[derive(Debug, Default)]
pub struct CodePage {
    granules: AtomicU64,
    version: AtomicU32,
}

impl CodePage {
    /// A page without code.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            granules: AtomicU64::new(0),
            version: AtomicU32::new(0),
        }
    }

    /// Whether any code of this page is held; if so, writes must be noted.
    #[inline]
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.granules.load(Ordering::SeqCst) != 0
    }

    /// The number of times that held code of this page was overwritten.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Marks the granules of bytes `first..=last` (offsets in the page). True when the page held no code before: then
    /// other vCPUs may still write to it without noting, and must be told first.
    pub fn mark(&self, first: u64, last: u64) -> bool {
        let old = self.granules.fetch_or(granules(first, last), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        old == 0
    }

    /// Notes a write that has just been made to bytes `first..=last`. True when it hit held code.
    pub fn note_write(&self, first: u64, last: u64) -> bool {
        fence(Ordering::SeqCst);
        if self.granules.load(Ordering::SeqCst) & granules(first, last) == 0 {
            return false;
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        self.granules.store(0, Ordering::SeqCst);
        true
    }
}

fn granules(first: u64, last: u64) -> u64 {
    let (low, high) = ((first & 4095) / 64, (last & 4095) / 64);
    (u64::MAX << low) & (u64::MAX >> (63 - high))
}

/// Who wants to know at once that held code was overwritten, before the writer does anything else.
pub trait CodeWatch: Send + Sync {
    /// Held code of this page was overwritten: whatever was made of the page's code must not be entered again.
    fn overwritten(&self, page: &CodePage);
}

/// The code state of every page of a region.
pub struct CodeMap {
    pages: Box<[CodePage]>,
    watch: RwLock<Option<Arc<dyn CodeWatch>>>,
}

impl fmt::Debug for CodeMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeMap").field("pages", &self.pages.len()).finish()
    }
}

impl CodeMap {
    /// A map of `pages` pages without code.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self {
            pages: (0..pages).map(|_| CodePage::default()).collect(),
            watch: RwLock::default(),
        }
    }

    /// Tells `watch` of all overwritten code from now on, in the place of the one before.
    pub fn set_watch(&self, watch: Option<Arc<dyn CodeWatch>>) {
        *self.watch.write().unwrap_or_else(PoisonError::into_inner) = watch;
    }

    /// The state of page number `index` of the region.
    #[must_use]
    pub fn page(&self, index: usize) -> Option<&CodePage> {
        self.pages.get(index)
    }

    /// Notes a write of `len` bytes at byte `offset` of the region.
    pub fn note_write(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = offset + (len - 1);
        for index in offset / 4096..=last / 4096 {
            if let Some(page) = self.pages.get(index as usize) {
                let start = index * 4096;
                let hit = page.note_write(offset.max(start) - start, last.min(start + 4095) - start);
                if hit {
                    let watch = self.watch.read().unwrap_or_else(PoisonError::into_inner).clone();
                    watch.inspect(|watch| watch.overwritten(page));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_beside_code_keeps_it_and_write_into_it_ends_it() {
        let page = CodePage::default();
        assert!(page.mark(128, 191));
        assert!(!page.note_write(64, 127));
        assert_eq!(page.version(), 0);
        assert!(page.note_write(127, 128));
        assert_eq!(page.version(), 1);
        assert!(!page.is_code());
    }

    #[test]
    fn write_across_pages_reaches_each() {
        let map = CodeMap::new(3);
        for i in 0..3 {
            map.page(i).unwrap().mark(0, 4095);
        }
        map.note_write(4095, 2);
        let versions: Vec<u32> = (0..3).map(|i| map.page(i).unwrap().version()).collect();
        assert_eq!(versions, [1, 1, 0]);
    }
}
