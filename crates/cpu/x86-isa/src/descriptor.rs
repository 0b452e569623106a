//! Segment and gate descriptors: parsing of the eight bytes, and of the second eight that long mode adds.
//!
//! Spec: SDM vol. 3 §3.4.5 (segments), §5.8.3 and §6.11 (gates), §7.2 (TSS), §3.5.2 (long mode).

use crate::attr;

/// System types of the type field (with S clear).
pub mod system {
    /// Available 16-bit TSS.
    pub const TSS16: u8 = 1;
    /// Local descriptor table.
    pub const LDT: u8 = 2;
    /// Busy 16-bit TSS.
    pub const TSS16_BUSY: u8 = 3;
    /// 16-bit call gate.
    pub const CALL16: u8 = 4;
    /// Task gate.
    pub const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INTERRUPT16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP16: u8 = 7;
    /// Available 32- or 64-bit TSS.
    pub const TSS32: u8 = 9;
    /// Busy 32- or 64-bit TSS.
    pub const TSS32_BUSY: u8 = 11;
    /// 32- or 64-bit call gate.
    pub const CALL32: u8 = 12;
    /// 32- or 64-bit interrupt gate.
    pub const INTERRUPT32: u8 = 14;
    /// 32- or 64-bit trap gate.
    pub const TRAP32: u8 = 15;
}

/// The busy bit in byte 5 of a TSS descriptor.
pub const TSS_BUSY: u8 = 2;

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector(pub u16);

impl Selector {
    /// Refers to no descriptor.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 & 0xfffc == 0
    }

    /// Of the local descriptor table.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Requested privilege level.
    #[must_use]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Offset of the descriptor in its table.
    #[must_use]
    pub const fn offset(self) -> u64 {
        (self.0 & 0xfff8) as u64
    }

    /// As an error code tells it.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0 & 0xfffc
    }

    /// With another privilege level.
    #[must_use]
    pub const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & 0xfffc | rpl as u16)
    }
}

/// A descriptor's (first) eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address: its low 32 bits.
    #[must_use]
    pub const fn base(self) -> u32 {
        (self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000) as u32
    }

    /// Limit in bytes, granularity applied.
    #[must_use]
    pub const fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Attributes in the layout of [`crate::attr`].
    #[must_use]
    pub const fn attr(self) -> u16 {
        (self.0 >> 40 & 0xff | self.0 >> 44 & 0xf00) as u16
    }

    /// The second doubleword, as LAR sees it.
    #[must_use]
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn has(self, bits: u16) -> bool {
        self.attr() & bits == bits
    }

    /// The type field.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.attr() & attr::TYPE) as u8
    }

    /// The type of a system segment or gate; `None` for code and data.
    #[must_use]
    pub const fn system(self) -> Option<u8> {
        if self.has(attr::S) { None } else { Some(self.kind()) }
    }

    /// Code segment.
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.has(attr::S | attr::CODE)
    }

    /// Data segment.
    #[must_use]
    pub const fn is_data(self) -> bool {
        self.has(attr::S) && !self.has(attr::CODE)
    }

    /// Conforming code segment.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.has(attr::CONFORMING)
    }

    /// Data segment that may be written.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.is_data() && self.has(attr::WRITABLE)
    }

    /// Data segment, or code segment that may be read.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.is_data() || self.is_code() && self.has(attr::WRITABLE)
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.attr() >> attr::DPL_SHIFT & 3) as u8
    }

    /// Present.
    #[must_use]
    pub const fn present(self) -> bool {
        self.has(attr::P)
    }

    /// 64-bit code segment; with [`Self::db`] set as well there is no such mode.
    #[must_use]
    pub const fn long(self) -> bool {
        self.has(attr::L)
    }

    /// 32-bit code or stack segment.
    #[must_use]
    pub const fn db(self) -> bool {
        self.has(attr::DB)
    }

    /// Gates: target selector.
    #[must_use]
    pub const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }

    /// Gates: the low 32 bits of the target offset.
    #[must_use]
    pub const fn gate_offset(self) -> u32 {
        (self.0 & 0xffff | self.0 >> 32 & 0xffff_0000) as u32
    }

    /// Call gates: number of parameters.
    #[must_use]
    pub const fn gate_params(self) -> u8 {
        (self.0 >> 32 & 0x1f) as u8
    }

    /// Interrupt and trap gates in long mode: index into the interrupt stack table, zero for none.
    #[must_use]
    pub const fn gate_ist(self) -> u8 {
        (self.0 >> 32 & 7) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_code_descriptor_parses_to_its_parts() {
        let d = Descriptor(0x00cf_9b00_0000_ffff);
        assert_eq!((d.base(), d.limit(), d.attr()), (0, u32::MAX, 0xc9b));
        assert!(d.is_code() && !d.is_data() && d.present() && d.db() && !d.long() && d.is_readable());
        assert_eq!(d.system(), None);
    }

    #[test]
    fn scattered_base_and_byte_limit_are_put_together() {
        let d = Descriptor(0x1240_f334_5678_9abc);
        assert_eq!((d.base(), d.limit()), (0x1234_5678, 0x9abc));
        assert_eq!((d.dpl(), d.is_writable()), (3, true));
    }

    #[test]
    fn gates_tell_selector_offset_and_parameters() {
        let d = Descriptor(0x1234_ec05_0008_5678);
        assert_eq!(
            (d.system(), d.gate_selector(), d.gate_params()),
            (Some(system::CALL32), Selector(8), 5)
        );
        assert_eq!(d.gate_offset(), 0x1234_5678);
    }
}
