//! Guest physical address map of a PC: where RAM is, what of it firmware keeps, and the map in the terms of E820.
//!
//! ```text
//!   0000_0000  RAM                     usable below 9FC00h
//!   0009_fc00  EBDA, option ROM area   reserved
//!   000e_0000  ACPI tables             reserved
//!   000f_f000  interrupt handlers      reserved
//!   0010_0000  RAM                     usable up to 3 GiB
//!   c000_0000  hole: MMIO, APICs, HPET
//!   1_0000_0000  RAM above 3 GiB       usable
//! ```
//!
//! Spec: ACPI 6.5 §15 (system address map interfaces).

use std::ops::Range;

use guest_memory::GuestMemory;
use guest_memory::Kind;

/// First address of the hole for memory-mapped devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// First address after the hole, where RAM continues.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Extended BIOS data area: the end of usable conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// Where the ACPI tables begin; the RSDP is the first thing there.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the ACPI tables' area.
pub const ACPI_END: u64 = HANDLERS;
/// Real-mode interrupt handlers, up to 1 MiB.
pub(crate) const HANDLERS: u64 = 0xf_f000;
/// Start of extended memory.
pub const MIB: u64 = 0x10_0000;
/// Registers of the I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// First address that processors have no lines for.
pub const PHYSICAL_END: u64 = 1 << 40;
/// First port of a PC's ACPI registers where UEFI firmware puts them.
pub const UEFI_PM_BASE: u16 = 0xb000;
/// First port of a PC's ACPI registers.
pub const PM_BASE: u16 = 0x600;
/// First port of the ACPI registers of a PC with an ICH9 where UEFI firmware puts them.
pub const UEFI_ICH9_PM_BASE: u16 = 0x600;
/// Memory-mapped configuration space of a PC with PCI Express: first address and bytes.
pub const ECAM: (u32, u32) = (0xb000_0000, 0x1000_0000);
/// The same where UEFI firmware puts it.
pub const UEFI_ECAM: (u32, u32) = (0xb000_0000, 0x1000_0000);
/// Chipset configuration registers of an ICH9.
pub const RCBA: u32 = 0xfed1_c000;
/// Bytes of them.
pub const RCBA_LEN: u32 = 0x4000;
/// Registers of the HPET.
pub const HPET: u64 = 0xfed0_0000;
/// Registers of the local APICs after reset.
pub const LAPIC: u64 = 0xfee0_0000;

/// Where `bytes` of RAM go: address and length of each range, the hole left free.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    [(0, low), (HOLE_END, bytes - low)]
        .into_iter()
        .filter(|(_, len)| *len > 0)
        .collect()
}

/// Largest amount of RAM that a PC has all below 4 GiB: the hole is smaller there than [`HOLE_START`] leaves it.
const PC_LOW_MAX: u64 = 0xe000_0000;
/// The same of a PC with PCI Express, whose configuration space is in the hole; and where the hole begins if there is more.
const EXPRESS_LOW_MAX: u64 = 0xb000_0000;
const EXPRESS_HOLE: u64 = 0x8000_0000;
/// Video memory, where a PC's RAM pauses until 1 MiB.
pub const VIDEO: u64 = 0xa_0000;

/// Where `bytes` of a PC's RAM go: what video memory and firmware hide between A0000h and 1 MiB is not among them.
#[must_use]
pub fn pc_ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    around_video(bytes, if bytes <= PC_LOW_MAX { bytes } else { HOLE_START })
}

/// The same for a PC with PCI Express.
#[must_use]
pub fn express_ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = if bytes <= EXPRESS_LOW_MAX { bytes } else { EXPRESS_HOLE };
    around_video(bytes, low)
}

/// `low` bytes from address zero, without what is hidden, and the others from 4 GiB on.
fn around_video(bytes: u64, low: u64) -> Vec<(u64, u64)> {
    [
        (0, low.min(VIDEO)),
        (MIB, low.saturating_sub(MIB)),
        (HOLE_END, bytes - low),
    ]
    .into_iter()
    .filter(|(_, len)| *len > 0)
    .collect()
}

/// What a range of the address map holds, in the numbering of E820.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// RAM for the operating system.
    Usable = 1,
    /// Not for the operating system to allocate.
    Reserved = 2,
}

/// A range of the address map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: MapKind,
}

/// The address map of `memory` as firmware reports it.
#[must_use]
pub fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let areas = [
        (0..EBDA, MapKind::Usable),
        (EBDA..MIB, MapKind::Reserved),
        (MIB..u64::MAX, MapKind::Usable),
    ];
    let mut map = Vec::new();
    for ram in Ram::of(memory).ranges {
        for (area, kind) in &areas {
            let (start, end) = (ram.start.max(area.start), ram.end.min(area.end));
            if start < end {
                map.push(MapEntry {
                    start,
                    len: end - start,
                    kind: *kind,
                });
            }
        }
    }
    map
}

/// The ranges of RAM, ascending, adjacent ones joined.
#[derive(Debug)]
pub(crate) struct Ram {
    ranges: Vec<Range<u64>>,
}

impl Ram {
    pub(crate) fn of(memory: &GuestMemory) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let fixed = memory.slots().iter().filter(|(_, region)| region.kind() == Kind::Ram);
        let mut pieces: Vec<(u64, u64)> = fixed.map(|(base, region)| (*base, region.len())).collect();
        // RAM that shadows firmware's ROM.
        let overlay = memory.overlay().pieces();
        let shadow = overlay
            .iter()
            .filter(|piece| piece.kind == Kind::Ram && piece.gpa < MIB);
        pieces.extend(shadow.map(|piece| (piece.gpa, piece.len)));
        pieces.sort_unstable();
        for (base, len) in pieces {
            let end = base.saturating_add(len);
            match ranges.last_mut() {
                Some(last) if last.end == base => last.end = end,
                _ => ranges.push(base..end),
            }
        }
        Self { ranges }
    }

    /// End of the RAM around 1 MiB, at most 4 GiB: a PC's is not joined to that at address zero. Where there is none, the end
    /// of the RAM at address zero.
    pub(crate) fn low_end(&self) -> u64 {
        let at_zero = self.ranges.first().filter(|first| first.start == 0);
        let around = self.ranges.iter().find(|r| r.start <= MIB && MIB < r.end);
        match (at_zero, around) {
            (Some(first), around) => around.unwrap_or(first).end.min(HOLE_END),
            (None, _) => 0,
        }
    }

    /// Where what lies in low RAM of `used` ends: from there on modules have room. Not below 1 MiB.
    pub(crate) fn low_end_of(&self, used: &[Range<u64>]) -> u64 {
        let low = used.iter().filter(|r| r.start < self.low_end());
        low.map(|r| r.end.min(self.low_end())).max().unwrap_or(0).max(MIB)
    }

    /// Whether all of `len` bytes at `start` are RAM.
    pub(crate) fn contains(&self, start: u64, len: u64) -> bool {
        start
            .checked_add(len)
            .is_some_and(|end| self.ranges.iter().any(|r| r.start <= start && end <= r.end))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use guest_memory::MemoryRegion;

    use super::*;

    /// Guest memory with `bytes` of RAM laid out by [`ram_ranges`].
    pub(crate) fn memory(bytes: u64) -> GuestMemory {
        let mut memory = GuestMemory::new();
        for (gpa, len) in ram_ranges(bytes) {
            memory
                .add(gpa, Arc::new(MemoryRegion::new("ram", Kind::Ram, len).unwrap()))
                .unwrap();
        }
        memory
    }

    #[test]
    fn ram_above_3_gib_continues_at_4_gib() {
        assert_eq!(ram_ranges(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram_ranges(HOLE_START), [(0, HOLE_START)]);
        assert_eq!(ram_ranges(4 << 30), [(0, HOLE_START), (HOLE_END, 1 << 30)]);
        assert_eq!(ram_ranges(0), []);
        assert_eq!(ram_ranges(u64::MAX)[1], (HOLE_END, u64::MAX - HOLE_START));
    }

    #[test]
    fn memory_map_covers_all_ram_and_keeps_the_first_mebibyte_s_top() {
        let map = memory_map(&memory(4 << 30));
        let as_tuple: Vec<_> = map.iter().map(|e| (e.start, e.len, e.kind)).collect();
        assert_eq!(
            as_tuple,
            [
                (0, EBDA, MapKind::Usable),
                (EBDA, MIB - EBDA, MapKind::Reserved),
                (MIB, HOLE_START - MIB, MapKind::Usable),
                (HOLE_END, 1 << 30, MapKind::Usable),
            ]
        );
    }

    #[test]
    fn adjacent_regions_are_one_range_and_rom_is_none() {
        let mut memory = memory(8192);
        let page = |kind| Arc::new(MemoryRegion::new("page", kind, 4096).unwrap());
        memory.add(8192, page(Kind::Ram)).unwrap();
        memory.add(12288, page(Kind::Rom)).unwrap();
        let ram = Ram::of(&memory);
        assert_eq!(ram.low_end(), 12288);
        assert!(ram.contains(4096, 8192));
        assert!(!ram.contains(8192, 4097));
        assert!(!ram.contains(u64::MAX, 2));
        assert_eq!(ram.low_end_of(&[]), MIB);
    }

    #[test]
    fn modules_have_room_after_what_lies_in_low_ram() {
        let ram = Ram::of(&memory(4 << 30));
        assert_eq!(
            ram.low_end_of(&[0x40_0000..0x41_0000, HOLE_END..HOLE_END + 1]),
            0x41_0000
        );
    }
}
