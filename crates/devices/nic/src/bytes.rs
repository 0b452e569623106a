//! Numbers in byte strings, and what a wire adds to frames.
//!
//! Spec: IEEE 802.3-2018 §3.2.8 (padding), §3.2.9 (frame check sequence).

pub(crate) use device_model::bytes::index;
pub(crate) use device_model::bytes::low8;
pub(crate) use device_model::bytes::low16;
pub(crate) use device_model::bytes::low32;

/// Bytes of the shortest frame, without its check sequence.
pub(crate) const SHORTEST: usize = 60;

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
