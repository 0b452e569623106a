//! A set of the 256 vectors: IRR, ISR and TMR.

use serde::Deserialize;
use serde::Serialize;

/// One bit per vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    /// 32 vectors as their register shows them; zero past the end.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.word(usize::from(vector / 32)) >> (vector % 32) & 1 != 0
    }

    pub(super) fn set(&mut self, vector: u8, member: bool) {
        let bit = 1u32 << (vector % 32);
        if let Some(word) = self.0.get_mut(usize::from(vector / 32)) {
            *word = if member { *word | bit } else { *word & !bit };
        }
    }

    /// The highest vector of the set.
    pub(super) fn highest(&self) -> Option<u8> {
        let index = (0..8u32).rev().find(|index| self.word_at(*index) != 0)?;
        u8::try_from(index * 32 + self.word_at(index).ilog2()).ok()
    }

    fn word_at(&self, index: u32) -> u32 {
        usize::try_from(index).map_or(0, |index| self.word(index))
    }

    /// Vectors 0 to 15 cannot be in any of the registers.
    pub(super) fn is_legal(&self) -> bool {
        self.word(0) & 0xFFFF == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_crosses_words() {
        let mut set = Vectors::default();
        assert_eq!(set.highest(), None);
        for vector in [16, 31, 32, 200, 255] {
            set.set(vector, true);
            assert_eq!(set.highest(), Some(vector));
            assert!(set.contains(vector));
        }
        set.set(255, false);
        assert_eq!((set.highest(), set.contains(255)), (Some(200), false));
        assert_eq!((set.word(6), set.word(8)), (1 << 8, 0));
    }
}
