//! Numbers in network byte order, and the Internet checksum.
//!
//! Spec: RFC 1071 (checksum).

/// The number at `at`; none beyond the end.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

/// The number at `at`; none beyond the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

/// Puts `new` at `at`; nothing if it does not fit.
pub(crate) fn put(bytes: &mut [u8], at: usize, new: &[u8]) -> Option<()> {
    let end = at.checked_add(new.len())?;
    bytes.get_mut(at..end)?.copy_from_slice(new);
    Some(())
}

/// The lowest 16 bits.
pub(crate) const fn low16(value: u64) -> u16 {
    let [.., a, b] = value.to_be_bytes();
    u16::from_be_bytes([a, b])
}

/// A length that is known to fit 16 bits; the largest number if it does not.
pub(crate) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// The sum of 16-bit numbers, not folded: an odd last byte is the high half of one.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let mut total: u64 = 0;
    for chunk in &mut chunks {
        let eight = u64::from_be_bytes(chunk.try_into().unwrap_or_default());
        // PERF: the sum of 32-bit halves folds to the same 16 bits.
        total += (eight >> 32) + (eight & 0xffff_ffff);
    }
    let mut rest = chunks.remainder().chunks_exact(2);
    for pair in &mut rest {
        total += u64::from(u16::from_be_bytes(pair.try_into().unwrap_or_default()));
    }
    if let [last] = rest.remainder() {
        total += u64::from(*last) << 8;
    }
    total
}

/// Folds a sum to 16 bits, without complementing it.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    low16(sum)
}

/// The checksum of a sum.
pub(crate) fn checksum(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sum_is_that_of_pairs(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let pairs = bytes.chunks(2).map(|pair| {
                u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low))
            });
            prop_assert_eq!(fold(sum(&bytes)), fold(pairs.sum()));
        }
    }

    #[test]
    fn checksum_is_that_of_the_rfc() {
        // RFC 1071 §3
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
        assert_eq!(checksum(sum(&bytes)), 0x220d);
    }
}
