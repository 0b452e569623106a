//! Links between pages of a kernel, which stay where they are for years: without guards, until it is heard that one may have
//! moved.
//!
//! Such a link holds for every vCPU, whatever that has in its TLB. It is made out of what one vCPU knows, and dropped when any
//! of them drops translations of code in the upper half. An *epoch* lies between two such times: a vCPU takes part
//! in a new one by forgetting all that it knows of that half, and only then makes links of it.

use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::Registry;
use super::SharedRegistry;
use crate::block::Block;
use crate::block::Exit;

/// Epochs that may follow each other at once.
const PATIENCE: u32 = 2000;
/// How long it takes to regain one.
const REST: Duration = Duration::from_millis(50);
/// What there must be of them before guards are done without again.
const ENOUGH: u32 = 200;

/// The links without guards.
pub(super) struct Direct {
    /// Block, exit, and the block that it leads to.
    pub(super) links: Vec<(u32, u32, u32)>,
    epoch: u64,
    /// Links are made. They are not while a guest changes the upper half of its address space all the time, as those do
    /// that hide the kernel from programs.
    on: bool,
    /// Epochs that may still follow at once, and since when.
    left: u32,
    since: Instant,
}

impl Direct {
    pub(super) fn new() -> Self {
        Self {
            links: Vec::new(),
            epoch: 0,
            on: true,
            left: PATIENCE,
            since: Instant::now(),
        }
    }

    /// Whether an epoch ends now, in which links could be made.
    fn turn(&mut self) -> bool {
        let regained = (self.since.elapsed().as_nanos() / REST.as_nanos()) as u32;
        self.since += REST * regained;
        self.left = self.left.saturating_add(regained).min(PATIENCE);
        if self.on {
            self.left = self.left.saturating_sub(1);
            self.on = self.left > 0;
            return true;
        }
        self.on = self.left >= ENOUGH;
        self.on
    }
}

impl SharedRegistry {
    /// The present epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Ends the present epoch. Its number, and that of the next.
    pub(crate) fn next_epoch(&self) -> (u64, u64) {
        let mut registry = self.lock();
        let before = registry.direct.epoch;
        if registry.direct.turn() {
            registry.drop_direct();
            registry.direct.epoch += 1;
            self.epoch.store(registry.direct.epoch, Ordering::SeqCst);
        }
        (before, registry.direct.epoch)
    }
}

impl Registry {
    /// Where the exit may lead without a guard: both blocks have their place in their code, and that of `to` is where the exit
    /// leads.
    pub(super) fn direct_entry(&self, from: &Block, exit: &Exit, to: &Block, epoch: u64) -> Option<u64> {
        let page = from.fixed?.wrapping_add((exit.target & !0xfff) as i64 as u64);
        let paged = to.entries.paged?;
        if !self.direct.on || epoch != self.direct.epoch || to.fixed != Some(page) {
            return None;
        }
        Some(to.host + u64::from(if exit.backward { to.entries.poll } else { paged }))
    }

    fn drop_direct(&mut self) {
        for (from, exit, to) in std::mem::take(&mut self.direct.links) {
            self.unlink(from, exit);
            if let Some(to) = &mut self.blocks[to as usize] {
                to.links.retain(|link| !link.direct);
            }
        }
    }
}
