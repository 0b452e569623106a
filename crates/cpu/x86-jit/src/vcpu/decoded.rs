//! Instructions of blocks as the interpreter wants them: decoded again when they are handed over, and kept for a while.

use std::sync::atomic::Ordering;

use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::Instruction;
use x86_interp::DInsn;

use super::find::MAX_LEN;
use super::find::next_page;
use crate::area::Frame;
use crate::block::Block;

/// Slots for decoded instructions.
const SLOTS: usize = 2048;

/// Decoded instructions, by block and number.
pub(super) struct Decoded(Box<[Option<(u64, DInsn)>]>);

fn key_of(block: &Block, index: usize) -> u64 {
    u64::from(block.id) << 8 | index as u64
}

fn slot_of(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as usize % SLOTS
}

impl Decoded {
    pub(super) fn new() -> Self {
        Self(vec![None; SLOTS].into())
    }

    /// Forgets all: the numbers of blocks begin anew.
    pub(super) fn clear(&mut self) {
        self.0.fill(None);
    }
}

impl Frame {
    /// The instruction at RIP, which is number `index` of a block; `None` when its bytes have gone meanwhile.
    pub(super) fn decoded(&mut self, block: &Block, index: usize) -> Option<DInsn> {
        let key = key_of(block, index);
        let slot = slot_of(key);
        if let Some((found, decoded)) = &self.rest.decoded.0[slot]
            && *found == key
        {
            return Some(*decoded);
        }
        let ins = self.read_again(block)?;
        let decoded = self.interp.decode(&ins);
        self.rest.decoded.0[slot] = Some((key, decoded));
        Some(decoded)
    }

    /// Reads the instruction at RIP, which is one of a block; `None` when its bytes have gone meanwhile.
    pub(super) fn read_again(&mut self, block: &Block) -> Option<Instruction> {
        let rip = self.linear(self.interp.rip());
        let mut bytes = [0; MAX_LEN];
        let first = MAX_LEN.min(4096 - (rip & 0xfff) as usize);
        let source = self.interp.source(rip).filter(|s| !s.host.is_null())?;
        self.interp.fetch(&source, rip, &mut bytes[..first]);
        let mut len = first;
        if block.second.is_some() {
            let next = next_page(rip);
            let source = self.interp.source(next).filter(|s| !s.host.is_null())?;
            self.interp.fetch(&source, next, &mut bytes[first..]);
            len = MAX_LEN;
        }
        // Only now: what a block was made of changes no sooner than it dies.
        if block.dead.load(Ordering::SeqCst) {
            return None;
        }
        let bits = self.interp.mode().bits.into();
        Some(Decoder::with_ip(bits, &bytes[..len], rip, DecoderOptions::NONE).decode())
    }
}
