//! Headers of type 1: what a bridge between PCI buses passes on to its secondary side.
//!
//! Base and limit registers of ports, memory and prefetchable memory, the bus numbers, and the bits of bridge control that
//! concern routing. What is passed on is a value, so that whoever routes need not lock the bridge for each access.
//!
//! Spec: PCI-to-PCI Bridge 1.2 §3.2 (registers), §4 (address decoding).

use super::PciHeader;
use super::PciWindow;
use super::command;
use super::reg;
use crate::Space;

/// Registers of a header of type 1, by offset.
pub mod reg1 {
    /// Number of the bus that the bridge is on (RW).
    pub const PRIMARY: u16 = 0x18;
    /// Number of the bus behind it (RW).
    pub const SECONDARY: u16 = 0x19;
    /// Highest bus number behind it (RW).
    pub const SUBORDINATE: u16 = 0x1A;
    /// Secondary latency timer (RW).
    pub const SECONDARY_LATENCY: u16 = 0x1B;
    /// First port passed on, in bits 7-4 its bits 15-12 (RW); bits 3-0 say whether there are 32 bits.
    pub const IO_BASE: u16 = 0x1C;
    /// Last port passed on.
    pub const IO_LIMIT: u16 = 0x1D;
    /// Secondary status (RW1C).
    pub const SECONDARY_STATUS: u16 = 0x1E;
    /// First memory address passed on: its bits 31-20 in bits 15-4 (RW).
    pub const MEMORY_BASE: u16 = 0x20;
    /// Last memory address passed on.
    pub const MEMORY_LIMIT: u16 = 0x22;
    /// First prefetchable address; bits 3-0 say whether there are 64 bits.
    pub const PREFETCH_BASE: u16 = 0x24;
    /// Last prefetchable address.
    pub const PREFETCH_LIMIT: u16 = 0x26;
    /// Upper halves of the two.
    pub const PREFETCH_BASE_HIGH: u16 = 0x28;
    /// See [`PREFETCH_BASE_HIGH`].
    pub const PREFETCH_LIMIT_HIGH: u16 = 0x2C;
    /// Expansion ROM base address.
    pub const ROM: u16 = 0x38;
    /// Bridge control (RW).
    pub const CONTROL: u16 = 0x3E;
}

/// Bits of bridge control.
pub mod control {
    /// Ports within the window are passed on only below 100h of each 400h.
    pub const ISA: u16 = 1 << 2;
    /// A VGA's fixed ports and memory are passed on.
    pub const VGA: u16 = 1 << 3;
    /// A VGA's fixed ports are decoded with all 16 bits.
    pub const VGA_16: u16 = 1 << 4;
    /// The bus behind is in reset.
    pub const RESET: u16 = 1 << 6;
}

/// Bits 3-0 of the prefetchable base: 64-bit addresses.
const WIDE: u16 = 1;
/// What a VGA answers to by itself; the last are the ports of Bochs VBE.
const VGA_PORTS: [(u64, u64); 3] = [(0x3b0, 0x3bb), (0x3c0, 0x3df), (0x1ce, 0x1d1)];
const VGA_MEMORY: (u64, u64) = (0xa_0000, 0xb_ffff);
/// Where the ISA bit concerns ports.
const ISA_END: u64 = 0x1_0000;

/// First and last address of a range.
type Extent = (u64, u64);

/// What a bridge passes on at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The bus behind it; zero while it has no number.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
    /// Ports.
    pub ports: Option<Extent>,
    /// Only those ports that ISA cards do not use.
    pub isa: bool,
    /// Memory.
    pub memory: Option<Extent>,
    /// Prefetchable memory.
    pub prefetch: Option<Extent>,
    /// A VGA's fixed ports.
    pub vga_ports: bool,
    /// A VGA's fixed memory.
    pub vga_memory: bool,
    /// The bus behind is in reset.
    pub reset: bool,
    /// What nobody else claims is passed on too: ports, memory.
    pub subtractive: (bool, bool),
}

impl Forwarding {
    /// What the registers of `header`, of type 1, say.
    #[must_use]
    pub fn of(header: &PciHeader) -> Self {
        let control = header.word(reg1::CONTROL);
        let (io, memory) = (header.commanded(command::IO), header.commanded(command::MEMORY));
        let vga = control & control::VGA != 0;
        Self {
            secondary: header.byte(reg1::SECONDARY),
            subordinate: header.byte(reg1::SUBORDINATE),
            ports: ports(header).filter(|_| io),
            isa: control & control::ISA != 0,
            memory: memory_window(header).filter(|_| memory),
            prefetch: prefetch_window(header).filter(|_| memory),
            vga_ports: vga && io,
            vga_memory: vga && memory,
            reset: control & control::RESET != 0,
            subtractive: (false, false),
        }
    }

    /// As [`Self::of`], for a bridge that decodes subtractively.
    #[must_use]
    pub fn subtractive(header: &PciHeader) -> Self {
        Self {
            subtractive: (header.commanded(command::IO), header.commanded(command::MEMORY)),
            ..Self::of(header)
        }
    }

    /// Whether accesses to the bus numbered `bus` go through.
    #[must_use]
    pub fn leads_to(&self, bus: u8) -> bool {
        self.secondary != 0 && (self.secondary..=self.subordinate).contains(&bus)
    }

    /// Whether accesses to all of `window` go through.
    #[must_use]
    pub fn passes(&self, window: &PciWindow) -> bool {
        let last = window.base.saturating_add(window.len.saturating_sub(1));
        let inside = |extent: &Extent| extent.0 <= window.base && last <= extent.1;
        match window.space {
            Space::Pio => {
                let hidden = self.isa && last < ISA_END && window.base & 0x300 != 0;
                self.subtractive.0
                    || self.ports.as_ref().is_some_and(inside) && !hidden
                    || self.vga_ports && VGA_PORTS.iter().any(inside)
            }
            Space::Mmio => {
                self.subtractive.1
                    || [self.memory, self.prefetch].iter().flatten().any(inside)
                    || self.vga_memory && inside(&VGA_MEMORY)
            }
        }
    }
}

/// A range that is none where it ends before it begins.
fn extent(base: u64, last: u64) -> Option<Extent> {
    (base <= last).then_some((base, last))
}

fn ports(header: &PciHeader) -> Option<Extent> {
    let at = |at: u16| u64::from(header.byte(at) & 0xf0) << 8;
    extent(at(reg1::IO_BASE), at(reg1::IO_LIMIT) | 0xfff)
}

fn memory_window(header: &PciHeader) -> Option<Extent> {
    let at = |at: u16| u64::from(header.word(at) & 0xfff0) << 16;
    extent(at(reg1::MEMORY_BASE), at(reg1::MEMORY_LIMIT) | 0xf_ffff)
}

fn prefetch_window(header: &PciHeader) -> Option<Extent> {
    let at = |low: u16, high: u16| {
        let high = if header.word(low) & WIDE != 0 {
            header.dword(high)
        } else {
            0
        };
        u64::from(header.word(low) & 0xfff0) << 16 | u64::from(high) << 32
    };
    extent(
        at(reg1::PREFETCH_BASE, reg1::PREFETCH_BASE_HIGH),
        at(reg1::PREFETCH_LIMIT, reg1::PREFETCH_LIMIT_HIGH) | 0xf_ffff,
    )
}

/// Makes the registers of type 1 in a header that has those of all: bus numbers, windows, bridge control. What was at the
/// places of type 0's is to be left zero. For the making of a function.
pub fn make_bridge(header: &mut PciHeader) {
    let kind = header.byte(reg::HEADER_TYPE) | 1;
    header.fix(reg::HEADER_TYPE, &[kind]);
    header.allow(reg1::PRIMARY, &[0xff, 0xff, 0xff]);
    header.allow(reg1::IO_BASE, &[0xf0, 0xf0]);
    header.clear_by_ones(reg1::SECONDARY_STATUS, &0xf900u16.to_le_bytes());
    for at in [reg1::MEMORY_BASE, reg1::MEMORY_LIMIT] {
        header.allow(at, &0xfff0u16.to_le_bytes());
    }
    for at in [reg1::PREFETCH_BASE, reg1::PREFETCH_LIMIT] {
        header.fix(at, &WIDE.to_le_bytes());
        header.allow(at, &0xfff0u16.to_le_bytes());
    }
    for at in [reg1::PREFETCH_BASE_HIGH, reg1::PREFETCH_LIMIT_HIGH] {
        header.allow(at, &[0xff; 4]);
    }
    // Parity response, SERR#, ISA, VGA and its 16 bits, master abort, secondary bus reset.
    header.allow(reg1::CONTROL, &[0x7f]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width;

    fn bridge() -> PciHeader {
        let mut header = PciHeader::new(PciHeader::CONVENTIONAL);
        header.allow(reg::COMMAND, &[7, 4]);
        make_bridge(&mut header);
        header
    }

    fn window(space: Space, base: u64, len: u64) -> PciWindow {
        PciWindow {
            region: 0,
            space,
            base,
            len,
        }
    }

    #[test]
    fn windows_pass_what_lies_within_them_while_they_are_enabled() {
        let mut header = bridge();
        header.write(reg1::IO_BASE, Width::Word, 0xd0c0);
        header.write(reg1::MEMORY_BASE, Width::Dword, 0xfe90_fe80);
        header.write(reg1::PREFETCH_BASE, Width::Dword, 0x0010_0000);
        header.write(reg1::PREFETCH_BASE_HIGH, Width::Dword, 0x80);
        header.write(reg1::PREFETCH_LIMIT_HIGH, Width::Dword, 0x80);
        assert!(!Forwarding::of(&header).passes(&window(Space::Pio, 0xc000, 8)));
        header.write(reg::COMMAND, Width::Word, 3);
        let passed = Forwarding::of(&header);
        for (space, base, len, passes) in [
            (Space::Pio, 0xc000, 8, true),
            (Space::Pio, 0xdff8, 8, true),
            (Space::Pio, 0xdffc, 8, false),
            (Space::Pio, 0xbff8, 8, false),
            (Space::Pio, 0x3c0, 16, false),
            (Space::Mmio, 0xfe80_0000, 0x20_0000, true),
            (Space::Mmio, 0xfe80_0000, 0x20_1000, false),
            (Space::Mmio, 0x80_0000_0000, 0x20_0000, true),
            (Space::Mmio, 0xa_0000, 0x2_0000, false),
            (Space::Mmio, u64::MAX - 3, 16, false),
        ] {
            assert_eq!(passed.passes(&window(space, base, len)), passes, "{space:?} {base:#x}");
        }
    }

    #[test]
    fn empty_windows_pass_nothing() {
        let mut header = bridge();
        header.write(reg::COMMAND, Width::Word, 3);
        header.write(reg1::IO_BASE, Width::Word, 0x00f0);
        header.write(reg1::MEMORY_BASE, Width::Dword, 0x0000_fff0);
        header.write(reg1::PREFETCH_BASE, Width::Dword, 0x0000_fff0);
        let passed = Forwarding::of(&header);
        assert_eq!((passed.ports, passed.memory, passed.prefetch), (None, None, None));
    }

    #[test]
    fn vga_bit_passes_its_fixed_places_and_isa_bit_hides_ports() {
        let mut header = bridge();
        header.write(reg::COMMAND, Width::Word, 3);
        header.write(reg1::IO_BASE, Width::Word, 0xc0c0);
        header.write(reg1::CONTROL, Width::Word, (control::VGA | control::ISA).into());
        let passed = Forwarding::of(&header);
        assert!(passed.passes(&window(Space::Mmio, 0xa_0000, 0x2_0000)));
        assert!(passed.passes(&window(Space::Pio, 0x3c0, 16)));
        assert!(passed.passes(&window(Space::Pio, 0xc400, 8)));
        assert!(!passed.passes(&window(Space::Pio, 0xc500, 8)));
        header.write(reg::COMMAND, Width::Word, 1);
        assert!(!Forwarding::of(&header).passes(&window(Space::Mmio, 0xa_0000, 0x2_0000)));
    }

    #[test]
    fn buses_are_those_from_the_secondary_to_the_subordinate() {
        let mut header = bridge();
        assert!(!Forwarding::of(&header).leads_to(0));
        header.write(reg1::PRIMARY, Width::Dword, 0x0004_0200);
        let passed = Forwarding::of(&header);
        let reached: Vec<u8> = (0..8).filter(|bus| passed.leads_to(*bus)).collect();
        assert_eq!(reached, [2, 3, 4]);
        assert_eq!(header.read(reg::HEADER_TYPE, Width::Byte), 1);
    }
}
