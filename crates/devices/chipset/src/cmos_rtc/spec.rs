//! MC146818A registers, and the CMOS bytes that PC firmware defines.
//!
//! Only bytes that a guest or firmware of today reads are named.
//!
//! Spec: Motorola MC146818A (1984), "Registers"; Intel 316972 (ICH9) §13.6; SeaBIOS src/hw/rtc.h.

use bitfield_struct::bitfield;

/// Seconds (RW).
pub(super) const SECONDS: u8 = 0x00;
/// Seconds alarm (RW).
pub(super) const SECONDS_ALARM: u8 = 0x01;
/// Minutes (RW).
pub(super) const MINUTES: u8 = 0x02;
/// Minutes alarm (RW).
pub(super) const MINUTES_ALARM: u8 = 0x03;
/// Hours (RW).
pub(super) const HOURS: u8 = 0x04;
/// Hours alarm (RW).
pub(super) const HOURS_ALARM: u8 = 0x05;
/// Day of the week, Sunday is 1 (RW).
pub(super) const DAY_OF_WEEK: u8 = 0x06;
/// Day of the month (RW).
pub(super) const DAY_OF_MONTH: u8 = 0x07;
/// Month (RW).
pub(super) const MONTH: u8 = 0x08;
/// Year of the century (RW).
pub(super) const YEAR: u8 = 0x09;
/// Register A.
pub(super) const REG_A: u8 = 0x0A;
/// Register B.
pub(super) const REG_B: u8 = 0x0B;
/// Register C.
pub(super) const REG_C: u8 = 0x0C;
/// Register D.
pub(super) const REG_D: u8 = 0x0D;
/// Equipment byte.
pub(super) const EQUIPMENT: u8 = 0x14;
/// KiB of base memory, 16 bits.
pub(super) const BASE_MEMORY: u8 = 0x15;
/// KiB between 1 MiB and 64 MiB, 16 bits.
pub(super) const EXTENDED_MEMORY: u8 = 0x17;
/// First byte that the checksum covers.
pub(super) const CHECKSUM_FIRST: u8 = 0x10;
/// Checksum, high byte first; the bytes before it are covered.
pub(super) const CHECKSUM: u8 = 0x2E;
/// As [`EXTENDED_MEMORY`], found by the power-on test.
pub(super) const EXTENDED_MEMORY_FOUND: u8 = 0x30;
/// Century (RW).
pub(super) const CENTURY: u8 = 0x32;
/// Units of 64 KiB between 16 MiB and 4 GiB, 16 bits.
pub(super) const MEMORY_ABOVE_16M: u8 = 0x34;
/// Units of 64 KiB above 4 GiB, 24 bits.
pub(super) const MEMORY_ABOVE_4G: u8 = 0x5B;
/// Processors, less one.
pub(super) const CPUS: u8 = 0x5F;

/// Equipment: a coprocessor and a pointing device.
pub(super) const EQUIPMENT_FPU_AND_MOUSE: u8 = 0x06;
/// Register D (RO): VRT, the battery is good.
pub(super) const REG_D_VRT: u8 = 0x80;
/// Frequency of the divider's stage that the periodic interrupt is taken from.
pub(super) const DIVIDER_HZ: u64 = 32_768;

/// Register A.
#[bitfield(u8)]
pub(super) struct RegA {
    /// RS: rate of the periodic interrupt (RW).
    #[bits(4)]
    pub rs: u8,
    /// DV: divider control (RW).
    #[bits(3)]
    pub dv: u8,
    /// UIP: the time is about to be updated (RO).
    pub uip: bool,
}

impl RegA {
    /// As firmware leaves it: 32.768 kHz crystal, 1024 Hz.
    pub(super) const USUAL: u8 = 0x26;

    /// The divider chain runs. 11x hold it in reset, and the other codes stop the oscillator.
    pub(super) fn divider_runs(self) -> bool {
        self.dv() <= 2
    }

    /// Divider ticks between periodic interrupts. MC146818A table 5: codes 1 and 2 repeat 8 and 9.
    pub(super) fn period(self) -> Option<u64> {
        match self.rs() {
            0 => None,
            rs @ 1..=2 => Some(1 << (rs + 6)),
            rs => Some(1 << (rs - 1)),
        }
    }
}

/// Register B (RW).
#[bitfield(u8)]
pub(super) struct RegB {
    /// DSE: daylight saving. Stored, without effect.
    pub dse: bool,
    /// 24/12: hours run to 23.
    pub h24: bool,
    /// DM: numbers are binary rather than BCD.
    pub dm: bool,
    /// SQWE: square wave output. Goes nowhere on a PC.
    pub sqwe: bool,
    /// UIE: update-ended interrupt enable.
    pub uie: bool,
    /// AIE: alarm interrupt enable.
    pub aie: bool,
    /// PIE: periodic interrupt enable.
    pub pie: bool,
    /// SET: the time stands, to be set.
    pub set: bool,
}

impl RegB {
    /// As firmware leaves it: 24 hours, BCD.
    pub(super) const USUAL: u8 = 0x02;
    /// The enables, at the places that their flags have in register C.
    pub(super) const ENABLES: u8 = 0x70;
}

/// Register C (RO; reading clears it).
#[bitfield(u8)]
pub(super) struct RegC {
    #[bits(4)]
    __: u8,
    /// UF: an update ended.
    pub uf: bool,
    /// AF: the time was the alarm's.
    pub af: bool,
    /// PF: a period ended.
    pub pf: bool,
    /// IRQF: an enabled flag is set.
    pub irqf: bool,
}

impl RegC {
    /// The flags that are kept.
    pub(super) const FLAGS: u8 = 0x70;
}
