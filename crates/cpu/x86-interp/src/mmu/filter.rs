//! Which pages or regions something was done with, in little memory.

/// Bits of a filter: numbers that differ by a multiple are one.
const BITS: u64 = 4096;

/// A set of numbers that may have more in it than was put there.
#[derive(Clone, Debug)]
pub(super) struct Filter([u64; BITS as usize / 64]);

impl Default for Filter {
    fn default() -> Self {
        Self([0; BITS as usize / 64])
    }
}

impl Filter {
    pub(super) fn put(&mut self, number: u64) {
        let n = number % BITS;
        self.0[(n / 64) as usize] |= 1 << (n % 64);
    }

    pub(super) fn may_have(&self, number: u64) -> bool {
        let n = number % BITS;
        self.0[(n / 64) as usize] >> (n % 64) & 1 != 0
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
