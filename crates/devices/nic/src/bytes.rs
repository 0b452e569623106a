//! Numbers in byte strings, and what a wire adds to frames.
//!
//! Spec: IEEE 802.3-2018 §3.2.8 (padding), §3.2.9 (frame check sequence).

/// Bytes of the shortest frame, without its check sequence.
pub(crate) const SHORTEST: usize = 60;

/// The lowest byte.
pub(crate) const fn low8(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// The lowest 16 bits.
pub(crate) const fn low16(value: u64) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The lowest 32 bits.
pub(crate) const fn low32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// As an index; nothing that is that large is ever there.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The frame check sequence of a frame.
pub(crate) fn frame_check_sequence(frame: &[u8]) -> [u8; 4] {
    crc32fast::hash(frame).to_le_bytes()
}

/// Fills a frame up to the shortest that a wire carries.
pub(crate) fn pad(frame: &mut Vec<u8>) {
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0);
    }
}
