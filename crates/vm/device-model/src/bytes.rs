//! The lowest bytes of numbers.

/// The lowest byte.
#[must_use]
pub const fn low8(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// The lowest 16 bits.
#[must_use]
pub const fn low16(value: u64) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The lowest 32 bits.
#[must_use]
pub const fn low32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// As an index; nothing that is that large is ever there.
#[must_use]
pub fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
