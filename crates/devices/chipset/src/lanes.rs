//! Byte lanes: parts of a value as it travels on the bus, without lossy casts.

use device_model::Width;

/// The low byte.
pub(crate) fn byte(value: u64) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

/// The low word.
pub(crate) fn word(value: u64) -> u16 {
    let [b0, b1, ..] = value.to_le_bytes();
    u16::from_le_bytes([b0, b1])
}

/// The low doubleword.
pub(crate) fn dword(value: u64) -> u32 {
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    u32::from_le_bytes([b0, b1, b2, b3])
}

/// What an access of `width` at byte `offset` sees of a register block of up to 8 bytes that holds `image`.
pub(crate) fn extract(image: u64, offset: u64, width: Width) -> u64 {
    let shift = offset.saturating_mul(8).min(64);
    let shift = u32::from(byte(shift));
    image.checked_shr(shift).unwrap_or(0) & width.ones()
}

/// The bytes of a write of `width`, each with its offset.
pub(crate) fn bytes(offset: u64, width: Width, value: u64) -> impl Iterator<Item = (u64, u8)> {
    let count = usize::from(width as u8);
    value
        .to_le_bytes()
        .into_iter()
        .take(count)
        .zip(offset..)
        .map(|(byte, at)| (at, byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extract_past_the_block_is_zero() {
        assert_eq!(extract(0x1122_3344, 1, Width::Word), 0x2233);
        assert_eq!(extract(u64::MAX, 8, Width::Byte), 0);
        assert_eq!(extract(u64::MAX, u64::MAX, Width::Byte), 0);
    }

    #[test]
    fn bytes_come_in_address_order() {
        let all: Vec<_> = bytes(2, Width::Word, 0xAABB).collect();
        assert_eq!(all, [(2, 0xBB), (3, 0xAA)]);
    }
}
