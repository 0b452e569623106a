//! Parts of a value as it travels on the bus, without lossy casts.

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

/// As an index or a length: this program runs on 64-bit hosts.
pub(crate) const fn index(value: u32) -> usize {
    value as usize
}
