//! For tests of several crates: what `hash.S` beside this file works out.

/// Words of memory that it goes through in each round.
const WORDS: usize = 4096;

/// Its hash and its sum after so many rounds.
pub(crate) fn expected(rounds: u32) -> (u32, u32) {
    let mut x = 1u32;
    let mut words = [0u32; WORDS];
    for word in &mut words {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *word = x;
    }
    let (mut hash, mut sum) = (0x811c_9dc5u32, 0u32);
    for _ in 0..rounds {
        for word in &mut words {
            hash = (hash ^ *word).wrapping_mul(16_777_619);
            *word = word.wrapping_add(hash);
            sum = sum.wrapping_add(hash);
        }
    }
    (hash, sum)
}
