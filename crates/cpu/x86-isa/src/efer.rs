//! IA32_EFER (SDM vol. 3 §2.2.1).

/// SYSCALL enable.
pub const SCE: u64 = 1 << 0;
/// Long mode enable.
pub const LME: u64 = 1 << 8;
/// Long mode active.
pub const LMA: u64 = 1 << 10;
/// No-execute enable.
pub const NXE: u64 = 1 << 11;
/// SVM enable (AMD).
pub const SVME: u64 = 1 << 12;
/// Fast FXSAVE (AMD).
pub const FFXSR: u64 = 1 << 14;
