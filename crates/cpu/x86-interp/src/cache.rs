//! Decoded blocks: found by virtual address in a small direct-mapped cache, by physical address in a map.
//!
//! A block is a run of instructions that starts and (but for a last instruction that crosses into the next page) ends on
//! one physical page. It is valid while the code version of its pages is the one it was decoded at.

use std::ptr::null;

use guest_memory::CodePage;
use rustc_hash::FxHashMap;

use crate::insn::DInsn;

/// Instructions per block at most.
pub(crate) const MAX_BLOCK: usize = 48;
/// Instructions kept at most: 16 MiB of them.
const MAX_INSNS: usize = 512 * 1024;
const LOOKUPS: usize = 8192;

pub(crate) struct Block {
    insns: Box<[DInsn]>,
    /// Length of the instructions in bytes.
    bytes: u16,
    code: *const CodePage,
    version: u32,
    /// The page that the last instruction crosses into: code state, version, address. Null when there is none.
    code2: *const CodePage,
    version2: u32,
    pub(crate) gpa2: u64,
}

impl Block {
    pub(crate) fn new(
        insns: Vec<DInsn>,
        first: (*const CodePage, u32),
        second: Option<(*const CodePage, u32, u64)>,
    ) -> Self {
        let bytes = insns.iter().map(|d| u16::from(d.len)).sum();
        let (code2, version2, gpa2) = second.unwrap_or((null(), 0, 0));
        Self {
            insns: insns.into(),
            bytes,
            code: first.0,
            version: first.1,
            code2,
            version2,
            gpa2,
        }
    }

    /// Whether the guest has not overwritten it.
    #[inline(always)]
    pub(crate) fn fresh(&self) -> bool {
        // SAFETY: code pages belong to guest memory, which outlives every block.
        unsafe {
            (*self.code).version() == self.version && (self.code2.is_null() || (*self.code2).version() == self.version2)
        }
    }

    pub(crate) fn run(&self) -> Run {
        Run {
            insns: self.insns.as_ptr(),
            len: self.insns.len() as u16,
            bytes: self.bytes,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.into()
    }

    pub(crate) fn crosses(&self) -> bool {
        !self.code2.is_null()
    }
}

/// The instructions of a block, as the run loop wants them.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) insns: *const DInsn,
    pub(crate) len: u16,
    /// Length in bytes.
    pub(crate) bytes: u16,
}

/// What was last found at a linear address. All that a hit needs is here, so that it costs one cache line and the page's
/// version.
#[derive(Clone, Copy)]
struct Lookup {
    lin: u64,
    context: u64,
    code: *const CodePage,
    version: u32,
    run: Run,
}

pub(crate) struct Cache {
    lookups: Box<[Lookup; LOOKUPS]>,
    blocks: FxHashMap<u64, Block>,
    insns: usize,
    /// A block that is used once: cut at a segment limit, or from device memory.
    scratch: Option<Block>,
    pub(crate) decoded: u64,
    pub(crate) flushes: u64,
}

// SAFETY: the pointers lead to blocks that the cache itself owns, and to code pages with atomic fields.
unsafe impl Send for Cache {}

/// Key of a block: physical address and code size.
pub(crate) fn key(gpa: u64, bits: u8) -> u64 {
    gpa << 2 | u64::from(bits >> 5)
}

#[inline(always)]
fn slot(lin: u64) -> usize {
    (lin ^ lin >> 13) as usize & (LOOKUPS - 1)
}

impl Cache {
    pub(crate) fn new() -> Self {
        let run = Run {
            insns: null(),
            len: 0,
            bytes: 0,
        };
        let empty = Lookup {
            lin: 0,
            context: u64::MAX,
            code: null(),
            version: 0,
            run,
        };
        Self {
            lookups: Box::new([empty; LOOKUPS]),
            blocks: FxHashMap::default(),
            insns: 0,
            scratch: None,
            decoded: 0,
            flushes: 0,
        }
    }

    /// The block last found at `lin` in this context (code generation, size, privilege), if it still holds.
    #[inline(always)]
    pub(crate) fn lookup(&self, lin: u64, context: u64) -> Option<Run> {
        let entry = &self.lookups[slot(lin)];
        // SAFETY: code pages belong to guest memory, which outlives every entry; entries that were never filled match no
        // context.
        let holds = || unsafe { (*entry.code).version() == entry.version };
        (entry.lin == lin && entry.context == context && holds()).then_some(entry.run)
    }

    /// Keeps the block of `key` for [`Self::lookup`]. Blocks that cross into another page must be looked at more closely
    /// each time.
    pub(crate) fn remember(&mut self, lin: u64, context: u64, key: u64) {
        if let Some(block) = self.blocks.get(&key).filter(|b| !b.crosses()) {
            let (code, version) = (block.code, block.version);
            self.lookups[slot(lin)] = Lookup {
                lin,
                context,
                code,
                version,
                run: block.run(),
            };
        }
    }

    /// The block at a physical address, if it still holds.
    pub(crate) fn find(&self, key: u64) -> Option<&Block> {
        self.blocks.get(&key).filter(|b| b.fresh())
    }

    /// Takes in a block, in the place of one that no longer holds. No block of this cache may be running.
    pub(crate) fn insert(&mut self, key: u64, block: Block) {
        if self.insns > MAX_INSNS {
            self.flush();
        }
        self.insns += block.insns.len();
        self.decoded += block.insns.len() as u64;
        // Look-ups of the old block are of an older version of its page, and never match again.
        if let Some(old) = self.blocks.insert(key, block) {
            self.insns -= old.insns.len();
        }
    }

    /// Keeps a block for one execution. No block of this cache may be running.
    pub(crate) fn keep_scratch(&mut self, block: Block) -> Run {
        self.scratch.insert(block).run()
    }

    /// Forgets all blocks.
    pub(crate) fn flush(&mut self) {
        self.flushes += 1;
        self.blocks.clear();
        self.insns = 0;
        self.lookups.iter_mut().for_each(|l| l.context = u64::MAX);
    }

    /// Instructions held.
    pub(crate) fn len(&self) -> usize {
        self.insns
    }
}
