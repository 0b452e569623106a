//! Which code is worth a translation: most of what a program executes when it begins, it executes once.

use crate::block::Key;

/// Places that a block may be counted in. Those of one place count together: that makes code warm too soon, never too late.
const PLACES: usize = 1 << 18;

/// Blocks counted before all counts are forgotten: few places are taken at any time.
const LASTING: u32 = PLACES as u32 / 4;

/// How often blocks were executed that have no translation.
pub(super) struct Warmth {
    counts: Box<[u8]>,
    counted: u32,
    /// Executions before a block is translated.
    cold: u8,
}

impl Warmth {
    pub(super) fn new(cold: u8) -> Self {
        Self {
            counts: vec![0; if cold == 0 { 0 } else { PLACES }].into(),
            counted: 0,
            cold,
        }
    }

    /// The block of `key` is about to be executed. True while it is not worth a translation.
    pub(super) fn is_cold(&mut self, (gpa, mode): Key) -> bool {
        if self.cold == 0 {
            return false;
        }
        let hash = (gpa ^ u64::from(mode) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = (hash >> (64 - PLACES.trailing_zeros())) as usize;
        if self.counts[place] >= self.cold {
            self.counts[place] = 0;
            return false;
        }
        self.counted += 1;
        if self.counted == LASTING {
            self.counted = 0;
            self.counts.fill(0);
        }
        self.counts[place] += 1;
        true
    }
}
