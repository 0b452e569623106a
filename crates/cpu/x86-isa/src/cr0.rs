//! CR0 (SDM vol. 3 §2.5).

/// Protection enable.
pub const PE: u64 = 1 << 0;
/// Monitor coprocessor.
pub const MP: u64 = 1 << 1;
/// Emulation: no x87.
pub const EM: u64 = 1 << 2;
/// Task switched.
pub const TS: u64 = 1 << 3;
/// Extension type: always set.
pub const ET: u64 = 1 << 4;
/// Numeric error: report x87 errors as #MF.
pub const NE: u64 = 1 << 5;
/// Write protect in supervisor mode.
pub const WP: u64 = 1 << 16;
/// Alignment mask.
pub const AM: u64 = 1 << 18;
/// Not write-through.
pub const NW: u64 = 1 << 29;
/// Cache disable.
pub const CD: u64 = 1 << 30;
/// Paging.
pub const PG: u64 = 1 << 31;
