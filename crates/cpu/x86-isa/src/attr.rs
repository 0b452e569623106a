//! Segment attributes: descriptor byte 5 in bits 7-0, the high nibble of byte 6 in bits 11-8 (SDM vol. 3 §3.4.5).

/// Type field.
pub const TYPE: u16 = 0xf;
/// Accessed (code and data).
pub const ACCESSED: u16 = 1 << 0;
/// Writable data; readable code.
pub const WRITABLE: u16 = 1 << 1;
/// Conforming code; expand-down data.
pub const CONFORMING: u16 = 1 << 2;
/// Code (with S set).
pub const CODE: u16 = 1 << 3;
/// Code or data, not system.
pub const S: u16 = 1 << 4;
/// Lowest bit of the privilege level.
pub const DPL_SHIFT: u16 = 5;
/// Present.
pub const P: u16 = 1 << 7;
/// Available to software.
pub const AVL: u16 = 1 << 8;
/// 64-bit code.
pub const L: u16 = 1 << 9;
/// 32-bit code or stack.
pub const DB: u16 = 1 << 10;
/// Limit counts pages.
pub const G: u16 = 1 << 11;
/// The register holds a null selector.
pub const UNUSABLE: u16 = 1 << 12;
