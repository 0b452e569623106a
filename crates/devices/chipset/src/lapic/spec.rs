//! Registers of the local APIC: offsets, fields, reserved bits.
//!
//! Spec: SDM vol. 3 §11.4-11.12; table 11-1 (memory map), table 11-6 (x2APIC MSRs).

use bitfield_struct::bitfield;

/// Physical address width of the guest's processor.
const PHYS_BITS: u32 = 40;

/// Offset in the memory-mapped page. Its MSR in x2APIC mode is `800h + (offset >> 4)`.
#[rustfmt::skip]
pub(super) mod reg {
    pub(in super::super) const ID: u16            = 0x020; // RW in xAPIC mode, RO in x2APIC mode
    pub(in super::super) const VERSION: u16       = 0x030; // RO
    pub(in super::super) const TPR: u16           = 0x080; // RW
    pub(in super::super) const APR: u16           = 0x090; // RO, xAPIC only
    pub(in super::super) const PPR: u16           = 0x0A0; // RO
    pub(in super::super) const EOI: u16           = 0x0B0; // WO
    pub(in super::super) const RRD: u16           = 0x0C0; // RO, xAPIC only
    pub(in super::super) const LDR: u16           = 0x0D0; // RW, RO in x2APIC mode
    pub(in super::super) const DFR: u16           = 0x0E0; // RW, xAPIC only
    pub(in super::super) const SVR: u16           = 0x0F0; // RW
    pub(in super::super) const ISR: u16           = 0x100; // RO, 8 registers
    pub(in super::super) const TMR: u16           = 0x180; // RO, 8 registers
    pub(in super::super) const IRR: u16           = 0x200; // RO, 8 registers
    pub(in super::super) const IRR_END: u16       = 0x270;
    pub(in super::super) const ESR: u16           = 0x280; // RW
    pub(in super::super) const ICR: u16           = 0x300; // RW, 64 bits in x2APIC mode
    pub(in super::super) const ICR_HIGH: u16      = 0x310; // RW, xAPIC only
    pub(in super::super) const LVT: u16           = 0x320; // RW, 6 registers
    pub(in super::super) const LVT_END: u16       = 0x370;
    pub(in super::super) const INITIAL_COUNT: u16 = 0x380; // RW
    pub(in super::super) const CURRENT_COUNT: u16 = 0x390; // RO
    pub(in super::super) const DIVIDE: u16        = 0x3E0; // RW
    pub(in super::super) const SELF_IPI: u16      = 0x3F0; // WO, x2APIC only
}

/// Version 14h, highest LVT entry 5, EOI broadcast can be suppressed.
pub(super) const VERSION: u32 = 0x0105_0014;

/// Number of local vector table entries.
pub(super) const LVT_COUNT: usize = 6;
/// Entries of the local vector table.
pub(super) const LVT_TIMER: usize = 0;
pub(super) const LVT_LINT0: usize = 3;
pub(super) const LVT_LINT1: usize = 4;
pub(super) const LVT_ERROR: usize = 5;

/// Bits that software writes, by entry.
pub(super) const LVT_WRITABLE: [u32; LVT_COUNT] = [0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF];
/// Delivery status and Remote IRR: read-only, ignored in writes.
pub(super) const LVT_READ_ONLY: u32 = 0x5000;

/// Errors in the error status register.
pub(super) const ESR_SEND_ILLEGAL: u32 = 1 << 5;
pub(super) const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;
/// Every error that is detected here.
pub(super) const ESR_KNOWN: u32 = ESR_SEND_ILLEGAL | ESR_RECEIVE_ILLEGAL | ESR_ILLEGAL_REGISTER;

/// Bits of the spurious-interrupt vector register that exist.
pub(super) const SVR_WRITABLE: u32 = 0x13FF;
/// Bits of the divide configuration register that exist.
pub(super) const DIVIDE_WRITABLE: u32 = 0xB;
/// Bits of the destination format register that read as one.
pub(super) const DFR_ONES: u32 = 0x0FFF_FFFF;
/// Bits of the low interrupt command register that exist.
pub(super) const ICR_WRITABLE: u32 = 0x000C_CFFF;
/// Bits of the interrupt command MSR that fault when set. Bit 12 was the delivery status, and Intel's processors let it
/// pass.
pub(super) const ICR_RESERVED: u64 = 0xFFF3_2000;

/// IA32_APIC_BASE.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct ApicBase {
    __: u8,
    /// Bootstrap processor (RO).
    pub(super) bsp: bool,
    __: bool,
    /// x2APIC mode.
    pub(super) extd: bool,
    /// Enabled.
    pub(super) en: bool,
    #[bits(52)]
    pub(super) page: u64,
}

impl ApicBase {
    /// Where the page is after reset.
    pub(super) const AT_RESET: Self = Self::new().with_en(true).with_page(0xFEE00);
    /// Bits that fault when set.
    pub(super) const RESERVED: u64 = !((1 << PHYS_BITS) - 1) | 0x2FF;
}

/// A local vector table entry.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Lvt {
    pub(super) vector: u8,
    #[bits(3)]
    pub(super) delivery_mode: u8,
    __: bool,
    /// Delivery status (RO).
    pub(super) delivery_status: bool,
    pub(super) active_low: bool,
    /// Remote IRR (RO): a level-triggered interrupt waits for its EOI.
    pub(super) remote_irr: bool,
    pub(super) level: bool,
    pub(super) masked: bool,
    /// Timer mode.
    #[bits(2)]
    pub(super) timer_mode: u8,
    #[bits(13)]
    __: u16,
}

/// Spurious-interrupt vector register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Svr {
    pub(super) vector: u8,
    /// APIC software enable.
    pub(super) enabled: bool,
    pub(super) focus_disabled: bool,
    #[bits(2)]
    __: u8,
    /// No EOI messages to I/O APICs.
    pub(super) suppress_broadcast: bool,
    #[bits(19)]
    __: u32,
}

impl Svr {
    pub(super) const AT_RESET: Self = Self::new().with_vector(0xFF);
}

/// Low half of the interrupt command register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Icr {
    pub(super) vector: u8,
    #[bits(3)]
    pub(super) delivery_mode: u8,
    pub(super) logical: bool,
    /// Delivery status (RO): always idle.
    pub(super) busy: bool,
    __: bool,
    pub(super) assert: bool,
    pub(super) level: bool,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    pub(super) shorthand: u8,
    #[bits(12)]
    __: u16,
}
