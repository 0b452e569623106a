//! Making room: the oldest part of the code memory is given up, with the blocks in it.

use std::sync::atomic::Ordering;

use rustc_hash::FxHashSet;

use super::Registry;
use crate::block::Block;

impl Registry {
    /// Gives the oldest part of the code memory up, for what comes next. All that is in the other parts stays, and jumps to
    /// what is given up are unlinked.
    ///
    /// No vCPU may be in translated code or hold a block, and all must forget those that they have found.
    pub(crate) fn evict(&mut self) {
        let part = self.memory.advance();
        let evicted = std::mem::take(&mut self.parts[part]);
        self.evictions += 1;
        self.evicted += evicted.blocks.len() as u64;
        for (from, exit) in evicted.guards {
            self.unlink(from, exit);
        }
        for &id in &evicted.blocks {
            let Some(state) = self.blocks[id as usize].take() else {
                continue;
            };
            for link in &state.links {
                self.unlink(link.from, link.exit);
            }
            self.forget(id, &state.block);
            self.free.push(id);
        }
        // Before their numbers are given to others.
        let gone: FxHashSet<u32> = evicted.blocks.into_iter().collect();
        for state in self.blocks.iter_mut().flatten() {
            state.links.retain(|link| !gone.contains(&link.from));
        }
        for part in &mut self.parts {
            part.guards.retain(|(from, _)| !gone.contains(from));
        }
        let direct = &mut self.direct.links;
        direct.retain(|(from, _, to)| !gone.contains(from) && !gone.contains(to));
        self.recycle_pages();
    }

    /// Lets an exit lead nowhere in particular again.
    pub(super) fn unlink(&self, from: u32, exit: u32) {
        let Some(state) = &self.blocks[from as usize] else {
            return;
        };
        if let Some(exit) = state.block.exits.get(exit as usize) {
            self.memory.patch_jump(state.block.place(exit), state.block.stub(exit));
        }
    }

    /// Takes a block out of the tables.
    fn forget(&mut self, id: u32, block: &Block) {
        block.dead.store(true, Ordering::SeqCst);
        if self.by_key.get(&block.key) == Some(&id) {
            self.by_key.remove(&block.key);
        }
        for code in [Some(block.code), block.second.map(|s| s.code)].into_iter().flatten() {
            if let Some(ids) = self.by_page.get_mut(&(code as usize)) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_page.remove(&(code as usize));
                }
            }
        }
    }

    /// Numbers of pages without blocks may be given to others.
    fn recycle_pages(&mut self) {
        let by_page = &self.by_page;
        let free = &mut self.free_pages;
        self.pages.retain(|page, number| {
            let used = by_page.contains_key(page);
            if !used {
                free.push(*number);
            }
            used
        });
    }
}
