//! CR4 (SDM vol. 3 §2.5).

/// Virtual-8086 extensions.
pub const VME: u64 = 1 << 0;
/// Protected-mode virtual interrupts.
pub const PVI: u64 = 1 << 1;
/// RDTSC is privileged.
pub const TSD: u64 = 1 << 2;
/// Debugging extensions.
pub const DE: u64 = 1 << 3;
/// Page-size extension.
pub const PSE: u64 = 1 << 4;
/// Physical-address extension.
pub const PAE: u64 = 1 << 5;
/// Machine check.
pub const MCE: u64 = 1 << 6;
/// Global pages.
pub const PGE: u64 = 1 << 7;
/// RDPMC in user mode.
pub const PCE: u64 = 1 << 8;
/// The system supports FXSAVE and SSE.
pub const OSFXSR: u64 = 1 << 9;
/// The system handles #XM.
pub const OSXMMEXCPT: u64 = 1 << 10;
/// User-mode instruction prevention.
pub const UMIP: u64 = 1 << 11;
/// 5-level paging.
pub const LA57: u64 = 1 << 12;
/// VMX.
pub const VMXE: u64 = 1 << 13;
/// SMX.
pub const SMXE: u64 = 1 << 14;
/// RDFSBASE and its kin.
pub const FSGSBASE: u64 = 1 << 16;
/// Process-context identifiers.
pub const PCIDE: u64 = 1 << 17;
/// XSAVE and XCR0.
pub const OSXSAVE: u64 = 1 << 18;
/// Key locker.
pub const KL: u64 = 1 << 19;
/// Supervisor-mode execution prevention.
pub const SMEP: u64 = 1 << 20;
/// Supervisor-mode access prevention.
pub const SMAP: u64 = 1 << 21;
/// Protection keys for user pages.
pub const PKE: u64 = 1 << 22;
/// Control-flow enforcement.
pub const CET: u64 = 1 << 23;
/// Protection keys for supervisor pages.
pub const PKS: u64 = 1 << 24;
