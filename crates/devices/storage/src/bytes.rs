//! Numbers in byte strings, and bytes of numbers.

pub(crate) use device_model::bytes::index;
pub(crate) use device_model::bytes::low8;
pub(crate) use device_model::bytes::low16;
pub(crate) use device_model::bytes::low32;

/// The byte at `at`; zero beyond the end.
pub(crate) fn at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn number<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
    std::array::from_fn(|offset| at(bytes, from.saturating_add(offset)))
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(number(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(number(bytes, at))
}

/// Puts `new` at `at`; what does not fit is left out.
pub(crate) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (old, new) in bytes.iter_mut().skip(at).zip(new) {
        *old = *new;
    }
}

/// A text of `len` bytes, filled up with spaces. What is not printable ASCII becomes a space (ACS-3 §3.3.10).
pub(crate) fn text(text: &str, len: usize) -> Vec<u8> {
    let printable = |byte: u8| if (0x20..0x7f).contains(&byte) { byte } else { b' ' };
    let chars = text.bytes().map(printable).chain(std::iter::repeat(b' '));
    chars.take(len).collect()
}
