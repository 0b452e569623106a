//! Finding the block at RIP: what was found before, the registry, translation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use x86_interp::seam::Mode;

use crate::area;
use crate::area::Frame;
use crate::block::Block;
use crate::block::Key;
use crate::block::Second;
use crate::known::Known;
use crate::registry::Origin;
use crate::translate;
use crate::translate::EDGE;
use crate::translate::EXACT_STACK;
use crate::translate::FIXED;
use crate::translate::SINGLE;
use crate::translate::Translator;

/// Address spaces whose jump targets are kept beside those of the present one.
const ASIDE: usize = 8;

/// Number of the code segment's register.
const CS: usize = 1;

/// Longest instruction.
pub(super) const MAX_LEN: usize = 15;

/// Bytes looked at beyond the page's end, for the flags that they want.
const AHEAD: usize = 64;

/// Where the next instruction is.
pub(super) enum Found {
    Code(*const Block),
    /// In no block: the interpreter goes on.
    Interpret,
    /// In no block yet, for the same reason that it may never be again: the interpreter goes on, and remembers nothing.
    Cold,
    /// Its fetch faulted.
    Fault,
}

/// A block that was found at an address.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    address: u64,
    /// Mode, and generation of the code translations.
    context: u64,
    block: *const Block,
}

pub(super) const UNSEEN: Seen = Seen {
    address: 0,
    context: u64::MAX,
    block: std::ptr::null(),
};

/// The block at a physical address.
#[derive(Clone, Copy)]
pub(super) struct Placed {
    key: Key,
    block: *const Block,
}

pub(super) const NOT_PLACED: Placed = Placed {
    key: (u64::MAX, 0),
    block: std::ptr::null(),
};

/// Slots for blocks by their physical address: new address spaces find here what others have executed.
pub(super) const PLACED: usize = 1 << 14;

fn placed_slot((gpa, key): Key) -> usize {
    (gpa ^ gpa >> 14 ^ u64::from(key) << 4) as usize & (PLACED - 1)
}

/// Slots for blocks that were found.
pub(super) const SEEN: usize = 1 << 15;

fn seen_slot(address: u64) -> usize {
    (address ^ address >> 15) as usize & (SEEN - 1)
}

impl Frame {
    /// Forgets jump targets that may no longer hold.
    pub(super) fn check_jumps(&mut self, key: u32) {
        let high = self.interp.code_generations()[1] != self.rest.generations[1];
        self.follow_epoch(high);
        let generations = self.interp.code_generations();
        let flushes = self.rest.shared.flushes.load(Ordering::SeqCst);
        if flushes != self.rest.flushes {
            self.start_over();
        } else if generations != self.rest.generations {
            let high = generations[1] != self.rest.generations[1];
            if high || self.rest.low {
                self.forget(1);
                self.rest.counters.kernel_clears += 1;
                self.rest.low = false;
            }
        }
        self.rest.generations = generations;
        self.rest.flushes = flushes;
        let cache = area::cache_of(key as u8 & 3) as usize;
        if generations[0] != self.rest.space {
            if cache == 0 {
                self.change_space(generations[0]);
            } else if self.area.calls[0].config != 0 {
                // Many a process is left again before anything but the kernel is executed: until then it can wait.
                self.rest.return_config = std::mem::take(&mut self.area.calls[0].config);
            }
        } else if self.rest.return_config != 0 {
            self.area.calls[0].config = std::mem::take(&mut self.rest.return_config);
        }
        if self.rest.modes[cache] != key {
            self.forget(cache);
            self.rest.counters.mode_clears += 1;
            self.rest.modes[cache] = key;
            self.area.calls[cache].config = 0;
        }
        if translate::segmented(key) {
            let segment = (self.interp.segment_base(CS), self.interp.code_limit());
            if std::mem::replace(&mut self.rest.code_segments[cache], segment) != segment {
                self.forget(cache);
                self.rest.counters.segment_clears += 1;
            }
        }
    }

    /// Links without guards hold for all vCPUs. So whoever learns that the kernel's pages may have moved (`moved`) has them
    /// dropped, and whoever makes new ones must not do it out of older knowledge.
    fn follow_epoch(&mut self, moved: bool) {
        let epoch = self.rest.shared.registry.epoch();
        if epoch != self.rest.epoch {
            self.interp.forget_high_code();
            self.rest.epoch = epoch;
        }
        if moved {
            let (before, after) = self.rest.shared.registry.next_epoch();
            if before == self.rest.epoch {
                self.rest.epoch = after;
            }
        }
    }

    /// The linear address of RIP.
    pub(super) fn linear(&self, rip: u64) -> u64 {
        match self.interp.segment_base(CS) {
            0 => rip,
            base => base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// Forgets everything after a flush: empty slots of the jump caches are jumped through before they are looked at.
    fn start_over(&mut self) {
        self.rest.found.fill(UNSEEN);
        self.rest.placed.fill(NOT_PLACED);
        self.rest.decoded.clear();
        self.area.empty_jumps(&self.rest.shared.thunks);
        self.area.pages.iter_mut().for_each(area::PageMap::init);
        self.rest.known.iter_mut().for_each(Known::forget);
        self.rest.aside.clear();
        self.rest.low = false;
    }

    /// Lower-half code is of generation `new` from now on, which may be one that there has been.
    fn change_space(&mut self, new: u32) {
        let (old, mode) = (self.rest.space, self.rest.modes[0]);
        let found = self.rest.aside.iter().position(|(g, m, _)| *g == new && *m == mode);
        let known = match found.and_then(|at| self.rest.aside.remove(at)) {
            Some((_, _, mut known)) => {
                known.visit();
                known
            }
            None => {
                let mut spare = self.rest.spare.pop().unwrap_or_else(Known::new);
                spare.forget();
                spare
            }
        };
        let mut leaving = std::mem::replace(&mut self.rest.known[0], known);
        leaving.exchange(&self.rest.known[0], &mut self.area.jumps[0], &mut self.area.pages[0]);
        if self.rest.aside.len() == ASIDE {
            self.rest.spare.extend(self.rest.aside.pop_front().map(|a| a.2));
        }
        self.rest.aside.push_back((old, mode, leaving));
        self.rest.space = new;
        self.rest.counters.user_clears += 1;
        // It is of the mode that it was of.
        self.area.calls[0].config = std::mem::take(&mut self.rest.return_config);
        if translate::segmented(mode) {
            // What was kept aside may be of another code segment.
            self.forget(0);
        }
    }

    /// Forgets the jump targets, and where pages are, of a privilege level.
    fn forget(&mut self, cache: usize) {
        self.rest.known[cache].clear(&mut self.area.jumps[cache], &mut self.area.pages[cache]);
    }

    /// The block at RIP, translated if need be.
    pub(super) fn find(&mut self, more: u32) -> Found {
        let mode = self.interp.mode();
        let Some(key) = translate::mode_key(&mode) else {
            return Found::Interpret;
        };
        self.check_jumps(key);
        let alone = if self.rest.end.is_some() { SINGLE } else { 0 };
        let rip = self.interp.rip();
        let kernel = mode.bits == 64 && mode.cpl != 3 && rip >> 63 != 0;
        let key = key | more | alone | if kernel { FIXED } else { 0 };
        if translate::segmented(key) {
            return self.find_segmented(rip, &mode, key);
        }
        self.find_linear(rip, &mode, key)
    }

    /// The same in 16-bit code and where segments are not flat.
    fn find_segmented(&mut self, rip: u64, mode: &Mode, key: u32) -> Found {
        let widest = if mode.bits == 16 { 0xffff } else { 0xffff_ffff };
        let top = u64::from(self.interp.code_limit()).min(widest);
        // What runs into the limit is the interpreter's.
        if rip > top {
            return Found::Interpret;
        }
        let lin = self.linear(rip);
        let inside = (lin & 0xfff) <= rip && rip - (lin & 0xfff) + 4095 <= top;
        if inside && top == widest {
            return self.find_linear(lin, mode, key);
        }
        let found = self.find_linear(lin, mode, key | EDGE);
        if let Found::Code(block) = found {
            // SAFETY: found just now.
            let insns = &unsafe { &*block }.insns;
            let last = insns.last().expect("a block has an instruction").offset;
            if rip + u64::from(last - insns[0].offset) + MAX_LEN as u64 > top {
                return Found::Interpret;
            }
        }
        found
    }

    /// The block at linear address `rip`.
    fn find_linear(&mut self, rip: u64, mode: &Mode, key: u32) -> Found {
        let context = u64::from(key) << 32 | u64::from(self.rest.generations[(rip >> 63) as usize]);
        let slot = seen_slot(rip);
        let seen = self.rest.found[slot];
        // SAFETY: of the present context, hence found since the last flush.
        if seen.address == rip && seen.context == context && !unsafe { &*seen.block }.dead.load(Ordering::Relaxed) {
            return Found::Code(seen.block);
        }
        let found = self.find_slow(rip, mode, key);
        self.rest.hot = false;
        if let Found::Code(block) = found {
            // SAFETY: found just now.
            if unsafe { &*block }
                .second_page
                .is_some_and(|page| page as usize >= area::PAGES)
            {
                // Its check would fail.
                return Found::Interpret;
            }
            // A flush on the way has changed nothing that the context tells: it was noted already.
            self.rest.found[slot] = Seen {
                address: rip,
                context,
                block,
            };
        }
        found
    }

    /// The same, where nothing is known of the address.
    #[cold]
    fn find_slow(&mut self, rip: u64, mode: &Mode, key: u32) -> Found {
        let Some(source) = self.interp.source(rip) else {
            return Found::Fault;
        };
        if source.host.is_null() {
            return Found::Interpret;
        }
        let at = (source.gpa | rip & 0xfff, key);
        let slot = placed_slot(at);
        let placed = self.rest.placed[slot];
        // SAFETY: the table is emptied by flushes.
        if placed.key == at && holds_at(unsafe { &*placed.block }, rip) {
            return Found::Code(placed.block);
        }
        let found = self.rest.shared.registry.lock().find(at);
        if let Some(block) = found {
            // SAFETY: found just now.
            if !holds_at(unsafe { &*block }, rip) {
                // The page is somewhere else too.
                return self.find_slow(rip, mode, key & !FIXED);
            }
            // SAFETY: found just now.
            match unsafe { &*block }.second {
                None => {
                    self.rest.placed[slot] = Placed { key: at, block };
                    return Found::Code(block);
                }
                Some(second) => match self.interp.source(next_page(rip)) {
                    Some(next) if next.gpa == second.gpa => return Found::Code(block),
                    Some(_) => return Found::Interpret,
                    None => return Found::Fault,
                },
            }
        }
        let counts = key & (SINGLE | EXACT_STACK) == 0 && !self.rest.hot;
        if counts && self.rest.warmth.is_cold(at) {
            return Found::Cold;
        }
        self.translate(rip, mode, key)
    }

    /// Translates the block at RIP.
    fn translate(&mut self, rip: u64, mode: &Mode, key: u32) -> Found {
        loop {
            let Some(source) = self.interp.source(rip) else {
                return Found::Fault;
            };
            // SAFETY: code pages live as long as guest memory.
            let version = unsafe { &*source.code }.version();
            let mut bytes = [0u8; 4096];
            let len = 4096 - (rip & 0xfff) as usize;
            let bytes = &mut bytes[..len];
            self.interp.fetch(&source, rip, bytes);
            // What is relative to the page is so in segments too, wherever the page is in them.
            let at = if translate::segmented(key) { rip & 0xfff } else { rip };
            let items = translate::scan(&self.interp, mode, bytes, at, key);
            let Some(last) = items.last() else {
                if translate::segmented(key) {
                    return Found::Interpret;
                }
                return self.translate_crossing(rip, mode, key);
            };
            let end = u64::from(last.offset) + last.ins.len() as u64;
            self.interp.hold(&source, rip & 0xfff, end - 1);
            let mut again = [0u8; 4096];
            let held = (end - (rip & 0xfff)) as usize;
            self.interp.fetch(&source, rip, &mut again[..held]);
            if again[..held] != bytes[..held] {
                continue;
            }
            let hot = std::mem::take(&mut self.rest.hot);
            let draft = Translator::translate(mode, key, items, bytes, at, hot);
            let origin = Origin {
                key: (source.gpa | rip & 0xfff, key),
                code: source.code,
                second: None,
                rip,
            };
            if let Some(found) = self.take_in(draft, &origin, version, None) {
                return found;
            }
        }
    }

    /// Translates the instruction at RIP that goes on in the next page.
    fn translate_crossing(&mut self, rip: u64, mode: &Mode, key: u32) -> Found {
        let next = next_page(rip);
        let (Some(source), Some(source2)) = (self.interp.source(rip), self.interp.source(next)) else {
            return Found::Fault;
        };
        if source2.host.is_null() {
            return Found::Interpret;
        }
        // SAFETY: code pages live as long as guest memory.
        let versions = unsafe { ((*source.code).version(), (*source2.code).version()) };
        let first = 4096 - (rip & 0xfff) as usize;
        self.interp.hold(&source, rip & 0xfff, 4095);
        self.interp.hold(&source2, 0, MAX_LEN as u64 - 1);
        let mut bytes = [0u8; MAX_LEN + AHEAD];
        self.interp.fetch(&source, rip, &mut bytes[..first]);
        self.interp.fetch(&source2, next, &mut bytes[first..first + AHEAD]);
        let items = translate::scan_one(&self.interp, mode, &bytes[..first + MAX_LEN], rip, key);
        if items.is_empty() {
            return Found::Interpret;
        }
        let draft = Translator::translate(mode, key, items, &bytes[..first + AHEAD], rip, false);
        let origin = Origin {
            key: (source.gpa | rip & 0xfff, key),
            code: source.code,
            second: Some(Second {
                gpa: source2.gpa,
                code: source2.code,
            }),
            rip,
        };
        self.take_in(draft, &origin, versions.0, Some(versions.1))
            .unwrap_or(Found::Interpret)
    }

    /// Takes a draft into the registry, unless its code was overwritten meanwhile.
    fn take_in(
        &mut self,
        draft: translate::Draft,
        origin: &Origin,
        version: u32,
        version2: Option<u32>,
    ) -> Option<Found> {
        self.rest.counters.translated += 1;
        let shared = Arc::clone(&self.rest.shared);
        let mut registry = shared.registry.lock();
        if !registry.may_fit(&draft) {
            return Some(Found::Interpret);
        }
        // SAFETY: code pages live as long as guest memory.
        let same = unsafe {
            (*origin.code).version() == version && origin.second.is_none_or(|s| Some((*s.code).version()) == version2)
        };
        if !same {
            return None;
        }
        if let Some(block) = registry.find(origin.key) {
            // SAFETY: found just now.
            let holds = holds_at(unsafe { &*block }, origin.rip);
            // Another vCPU was faster, and perhaps at another address.
            return Some(if holds { Found::Code(block) } else { Found::Interpret });
        }
        if let Some(block) = registry.insert(draft, origin) {
            return Some(Found::Code(block));
        }
        drop(registry);
        self.flush();
        None
    }

    /// Has the oldest translations thrown away: the code memory is full.
    fn flush(&mut self) {
        let shared = Arc::clone(&self.rest.shared);
        shared.flush_wanted.store(true, Ordering::SeqCst);
        shared.call_all();
        self.rest.world = None;
        // Until it is done, by this vCPU or by another that wanted it too.
        while shared.flush_wanted.load(Ordering::SeqCst) {
            if let Some(_world) = shared.try_write() {
                if shared.flush_wanted.swap(false, Ordering::SeqCst) {
                    shared.registry.lock().evict();
                    shared.flushes.fetch_add(1, Ordering::SeqCst);
                }
            } else {
                // Who holds it may wait for this vCPU.
                self.interp.serve_requests();
                std::thread::yield_now();
            }
        }
        self.take_world();
        self.rest.running = std::ptr::null();
        self.check_jumps(self.rest.modes[0]);
    }
}

/// Whether a block may be executed at `rip`.
fn holds_at(block: &Block, rip: u64) -> bool {
    !block.dead.load(Ordering::Relaxed) && block.fixed.is_none_or(|page| page == rip & !0xfff)
}

pub(super) fn next_page(lin: u64) -> u64 {
    (lin & !0xfff).wrapping_add(4096)
}
