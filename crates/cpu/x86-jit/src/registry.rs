//! All translated blocks of a machine: found by physical address, linked to each other, thrown away when their code is
//! overwritten.

mod direct;
mod evict;

use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use guest_memory::CodePage;
use guest_memory::CodeWatch;
use rustc_hash::FxHashMap;

use crate::area;
use crate::asm::Asm;
use crate::asm::RCX;
use crate::asm::T0;
use crate::asm::T1;
use crate::block::Block;
use crate::block::Exit;
use crate::block::HOT;
use crate::block::Key;
use crate::block::Record;
use crate::block::Second;
use crate::memory::CodeMemory;
use crate::perf::PerfMap;
use crate::thunk::Thunks;
use crate::thunk::Why;
use crate::translate;
use crate::translate::Draft;
use direct::Direct;

/// A jump that leads into a block: one of another block.
#[derive(Clone, Copy)]
struct Link {
    from: u32,
    exit: u32,
    /// Without a guard, from another page.
    direct: bool,
}

struct State {
    block: Box<Block>,
    links: Vec<Link>,
}

/// What lies in one part of the code memory.
#[derive(Default)]
struct Part {
    /// Blocks, in the order of their code.
    blocks: Vec<u32>,
    /// Exits of blocks anywhere that lead through code in this part.
    guards: Vec<(u32, u32)>,
}

/// Blocks and their code.
pub(crate) struct Registry {
    memory: CodeMemory,
    perf: PerfMap,
    thunks: Thunks,
    /// By number.
    blocks: Vec<Option<State>>,
    /// Numbers that nothing has.
    free: Vec<u32>,
    parts: Vec<Part>,
    by_key: FxHashMap<Key, u32>,
    by_page: FxHashMap<usize, Vec<u32>>,
    /// Numbers of code pages.
    pages: FxHashMap<usize, u32>,
    free_pages: Vec<u32>,
    direct: Direct,
    pub(crate) translated: u64,
    pub(crate) overwritten: u64,
    /// Times that a part of the code memory was given up, and the blocks that were in it.
    pub(crate) evictions: u64,
    pub(crate) evicted: u64,
}

/// The registry, shared by the vCPUs and whoever writes to guest memory.
pub(crate) struct SharedRegistry {
    registry: Mutex<Registry>,
    /// See [`Direct`].
    epoch: AtomicU64,
}

impl SharedRegistry {
    pub(crate) fn new(memory: CodeMemory, thunks: Thunks) -> Self {
        let parts = (0..memory.parts()).map(|_| Part::default()).collect();
        let registry = Registry {
            memory,
            perf: PerfMap::new(),
            thunks,
            blocks: Vec::new(),
            free: Vec::new(),
            parts,
            by_key: FxHashMap::default(),
            by_page: FxHashMap::default(),
            pages: FxHashMap::default(),
            free_pages: Vec::new(),
            direct: Direct::new(),
            translated: 0,
            overwritten: 0,
            evictions: 0,
            evicted: 0,
        };
        Self {
            registry: Mutex::new(registry),
            epoch: AtomicU64::new(0),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CodeWatch for SharedRegistry {
    fn overwritten(&self, page: &CodePage) {
        self.lock().kill_page(page);
    }
}

/// What a block is made of, beside its draft.
pub(crate) struct Origin {
    pub(crate) key: Key,
    pub(crate) code: *const CodePage,
    pub(crate) second: Option<Second>,
    pub(crate) rip: u64,
}

impl Registry {
    /// The block of `key`. It lives until the next eviction.
    pub(crate) fn find(&self, key: Key) -> Option<*const Block> {
        let id = *self.by_key.get(&key)?;
        Some(&raw const *self.blocks[id as usize].as_ref()?.block)
    }

    /// The block whose code holds host address `at`.
    pub(crate) fn find_host(&self, at: u64) -> Option<*const Block> {
        // Within a part, code is added at ever higher addresses.
        let part = &self.parts[self.memory.part_of(at)?].blocks;
        let block = |id: u32| self.blocks[id as usize].as_ref().map(|s| &s.block);
        let behind = part.partition_point(|&id| block(id).is_some_and(|b| b.host <= at));
        let block = block(part[behind.checked_sub(1)?])?;
        (at < block.host + u64::from(block.len)).then_some(&raw const **block)
    }

    /// Bytes of code, and blocks.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.memory.used(), self.blocks.len() - self.free.len())
    }

    /// Whether a block fits into the code memory at all.
    pub(crate) fn may_fit(&self, draft: &Draft) -> bool {
        self.memory.may_hold(draft.split.max(draft.code.len() - draft.split))
    }

    /// Takes in a block; `None` when there is no room.
    pub(crate) fn insert(&mut self, mut draft: Draft, origin: &Origin) -> Option<*const Block> {
        let mut place: Box<MaybeUninit<Block>> = Box::new_uninit();
        let pointer: *const Block = place.as_ptr();
        for (at, index) in &draft.records {
            let record = Record {
                block: pointer,
                index: *index,
            };
            draft.code[*at..*at + 8].copy_from_slice(&(record.block as u64).to_le_bytes());
            draft.code[*at + 8..*at + 16].copy_from_slice(&record.index.to_le_bytes());
        }
        let (hot, cold) = (draft.split, draft.code.len() - draft.split);
        if !self.memory.has_room(hot, cold) && !self.memory.advance_into_empty() {
            return None;
        }
        if !self.memory.has_room(hot, cold) {
            return None;
        }
        let (base, cold) = (self.memory.next(), self.memory.next_cold());
        let address = |at: usize| match at.checked_sub(draft.split) {
            Some(at) => cold + at as u64,
            None => base + at as u64,
        };
        for (at, why) in &draft.thunks {
            let thunk = self.thunks.leave[*why as usize];
            let displacement = thunk.wrapping_sub(address(*at) + 4) as u32;
            draft.code[*at..*at + 4].copy_from_slice(&displacement.to_le_bytes());
        }
        // What leads from one part to the other was made as if they were one.
        let apart = cold.wrapping_sub(base + draft.split as u64) as u32;
        for at in &draft.across {
            let place = &mut draft.code[*at..*at + 4];
            let displacement = u32::from_le_bytes([place[0], place[1], place[2], place[3]]).wrapping_add(apart);
            place.copy_from_slice(&displacement.to_le_bytes());
        }
        for at in &draft.back {
            let place = &mut draft.code[*at..*at + 4];
            let displacement = u32::from_le_bytes([place[0], place[1], place[2], place[3]]).wrapping_sub(apart);
            place.copy_from_slice(&displacement.to_le_bytes());
        }
        let second_page = origin.second.map(|second| self.page_number(second.code));
        if let (Some(at), Some(page)) = (draft.next_page, second_page) {
            // Pages without a place in the map are never found there.
            let place = area::page_map(origin.key.1 as u8 & 3, page.min(area::PAGES as u32));
            draft.code[at..at + 4].copy_from_slice(&place.to_le_bytes());
        }
        let host = self.memory.add(&draft.code[..draft.split])?;
        self.memory.add_cold(&draft.code[draft.split..]);
        self.perf.add(host, draft.split, origin.rip, origin.key.1 as u8 & 3);
        let id = self.free.pop().unwrap_or(self.blocks.len() as u32);
        let page = self.page_number(origin.code);
        place.write(Block {
            id,
            page,
            code: origin.code,
            key: origin.key,
            fixed: translate::fixed_page(origin.key.1, origin.rip),
            host,
            len: draft.split as u32,
            cold,
            entries: draft.entries,
            insns: draft.insns.into(),
            spans: draft.spans.into(),
            groups: draft.groups.into(),
            exits: draft.exits.into(),
            hot: draft.hot.map(Box::new),
            spins: AtomicU32::new(if draft.tried { HOT + 1 } else { 0 }),
            dead: AtomicBool::new(false),
            second: origin.second,
            second_page,
        });
        // SAFETY: just written.
        let block = unsafe { place.assume_init() };
        self.by_key.insert(origin.key, id);
        self.by_page.entry(origin.code as usize).or_default().push(id);
        if let Some(second) = origin.second {
            self.by_page.entry(second.code as usize).or_default().push(id);
        }
        self.translated += 1;
        let state = State {
            block,
            links: Vec::new(),
        };
        match self.blocks.get_mut(id as usize) {
            Some(place) => *place = Some(state),
            None => self.blocks.push(Some(state)),
        }
        self.parts[self.memory.part()].blocks.push(id);
        Some(pointer)
    }

    /// The number of a page of code.
    fn page_number(&mut self, code: *const CodePage) -> u32 {
        let next = (self.pages.len() + self.free_pages.len()) as u32;
        let free = &mut self.free_pages;
        *self
            .pages
            .entry(code as usize)
            .or_insert_with(|| free.pop().unwrap_or(next))
    }

    /// Lets exit `exit` of `from` lead into `to` from now on, which a vCPU of this epoch has found there.
    pub(crate) fn link(&mut self, from: &Block, exit: usize, to: &Block, epoch: u64) {
        if from.dead.load(Ordering::SeqCst) || to.dead.load(Ordering::SeqCst) {
            return;
        }
        let mut link = Link {
            from: from.id,
            exit: exit as u32,
            direct: false,
        };
        let exit = &from.exits[exit];
        let place = from.place(exit);
        let place_is_known = to.fixed.is_none() || from.fixed.is_some();
        if !place_is_known {
            if exit.leaves_page() {
                self.memory.patch_jump(place, from.far(exit));
            }
            return;
        }
        let entry = to.host
            + u64::from(match &to.hot {
                Some(hot) if from.id == to.id => hot.again,
                _ if exit.backward => to.entries.poll,
                _ => to.entries.body,
            });
        if !exit.leaves_page() {
            self.memory.patch_jump(place, entry);
        } else if let Some(entry) = self.direct_entry(from, exit, to, epoch) {
            self.memory.patch_jump(place, entry);
            self.direct.links.push((link.from, link.exit, to.id));
            link.direct = true;
        } else if let Some(guard) = self.guard(from, exit, to, entry) {
            self.memory.patch_jump(place, guard);
            self.parts[self.memory.part()].guards.push((link.from, link.exit));
        } else {
            // For good: the way through the jump cache finds whatever is there.
            self.memory.patch_jump(place, from.far(exit));
            return;
        }
        if let Some(to) = &mut self.blocks[to.id as usize] {
            to.links.push(link);
        }
    }

    /// Code that goes on at `entry` of `to` if its page is where the exit leads, else through the jump cache. Flags stay.
    fn guard(&mut self, from: &Block, exit: &Exit, to: &Block, entry: u64) -> Option<u64> {
        if to.page as usize >= area::PAGES {
            return None;
        }
        let mut a = Asm::new();
        let base = self.memory.next();
        let lead = |a: &mut Asm, to: u64| {
            let fix = a.jmp();
            a.lead(fix, to.wrapping_sub(base) as i64);
        };
        let page = from
            .fixed
            .map(|page| page.wrapping_add((exit.target & !0xfff) as i64 as u64));
        let fixed = page.and_then(|page| i32::try_from(page as i64).ok());
        a.load(T1, area::page_map(to.key.1 as u8 & 3, to.page));
        match fixed {
            Some(page) => a.lea(T1, T1, page),
            None => {
                a.load(T0, area::PAGE);
                a.lea(T0, T0, exit.target & !0xfff);
                a.lea_sum(T1, T1, T0);
            }
        }
        a.xchg_rcx(T1);
        let hit = a.jrcxz();
        a.mov(RCX, T1);
        lead(&mut a, from.far(exit));
        a.here_short(hit);
        a.mov(RCX, T1);
        match fixed {
            Some(page) => a.mov_qword_gs(area::PAGE, page),
            None => a.store(area::PAGE, T0),
        }
        lead(&mut a, entry);
        self.memory.add(&a.buf)
    }

    /// Throws away the blocks of a page.
    fn kill_page(&mut self, page: &CodePage) {
        let Some(ids) = self.by_page.remove(&(std::ptr::from_ref(page) as usize)) else {
            return;
        };
        self.overwritten += 1;
        ids.into_iter().for_each(|id| self.kill(id));
    }

    /// Throws away one block: nothing enters it any more.
    pub(crate) fn kill(&mut self, id: u32) {
        let Some(state) = &mut self.blocks[id as usize] else {
            return;
        };
        if state.block.dead.swap(true, Ordering::SeqCst) {
            return;
        }
        let block = &state.block;
        self.memory
            .patch_entry(block.host, self.thunks.leave[Why::Miss as usize]);
        let key = block.key;
        for link in std::mem::take(&mut state.links) {
            self.unlink(link.from, link.exit);
        }
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
    }
}
