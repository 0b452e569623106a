//! PCI configuration space as data, and what makes a device a function of a PCI bus.
//!
//! A function's configuration space is a block of bytes with masks that say which bits a guest may change, clear by
//! writing ones, or neither. Base address registers are entries of a table, so that sizing them, and finding where they
//! decode, is no device's business.
//!
//! Spec: PCI Local Bus 3.0 §6.1-6.2 (header, command, status, base addresses), §6.7 (capabilities list).

use std::sync::Arc;

use guest_memory::MemoryRegion;

pub use self::bridge::Forwarding;
pub use self::bridge::control;
pub use self::bridge::make_bridge;
pub use self::bridge::reg1;
use crate::RestoreError;
use crate::Space;
use crate::Width;

mod bridge;

/// Registers of every header, by offset.
pub mod reg {
    /// Vendor, then device identifier.
    pub const VENDOR: u16 = 0x00;
    /// Command register.
    pub const COMMAND: u16 = 0x04;
    /// Status register.
    pub const STATUS: u16 = 0x06;
    /// Revision, then the three bytes of the class.
    pub const REVISION: u16 = 0x08;
    /// Header type; bit 7 says that there are more functions.
    pub const HEADER_TYPE: u16 = 0x0E;
    /// First base address register.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor, then subsystem identifier, of a header of type 0.
    pub const SUBSYSTEM: u16 = 0x2C;
    /// Expansion ROM base address of a header of type 0.
    pub const ROM: u16 = 0x30;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line: a note of firmware's for the operating system.
    pub const INTERRUPT_LINE: u16 = 0x3C;
    /// Interrupt pin: 0 none, 1 INTA# and so on.
    pub const INTERRUPT_PIN: u16 = 0x3D;
}

/// Bits of the command register.
pub mod command {
    /// Answers I/O accesses.
    pub const IO: u16 = 1 << 0;
    /// Answers memory accesses.
    pub const MEMORY: u16 = 1 << 1;
    /// May access memory, and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Does not drive its interrupt pin.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
pub mod status {
    /// The function asks for an interrupt on its pin, whether or not the pin is disabled.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There is a list of capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// The region of an expansion ROM that the header has itself; devices' own regions have lower numbers.
pub const ROM_REGION: usize = 0x100;
/// Where the first capability of a conventional header goes.
const FIRST_CAPABILITY: u16 = 0x40;
/// I/O base addresses leave two bits to the kind, memory ones four.
const IO_FLAG: u32 = 1;
const WIDE_FLAG: u32 = 4;
const PREFETCH_FLAG: u32 = 8;
const ROM_ENABLE: u32 = 1;
const IO_END: u64 = 1 << 16;
const LOW_END: u64 = 1 << 32;

/// What a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register too.
    Memory64,
    /// Memory anywhere whose reads have no side effects; takes the next register too.
    Prefetch64,
    /// Memory below 4 GiB whose reads have no side effects.
    Prefetch32,
    /// The expansion ROM: memory below 4 GiB with an enable bit of its own.
    Rom,
}

impl BarKind {
    fn flags(self) -> u32 {
        match self {
            Self::Io => IO_FLAG,
            Self::Memory32 | Self::Rom => 0,
            Self::Memory64 => WIDE_FLAG,
            Self::Prefetch64 => WIDE_FLAG | PREFETCH_FLAG,
            Self::Prefetch32 => PREFETCH_FLAG,
        }
    }

    fn is_wide(self) -> bool {
        matches!(self, Self::Memory64 | Self::Prefetch64)
    }

    fn space(self) -> Space {
        match self {
            Self::Io => Space::Pio,
            _ => Space::Mmio,
        }
    }
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its offset.
    pub at: u16,
    /// What it asks for.
    pub kind: BarKind,
    /// Bytes: a power of two.
    pub len: u64,
    /// Which of the device's regions appears there.
    pub region: usize,
}

/// A place where a function answers at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// The region of the device.
    pub region: usize,
    /// Ports or memory.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct PciHeader {
    // Configuration
    bars: Vec<Bar>,
    initial: Box<[u8]>,
    /// Bits that a guest sets and clears.
    writable: Box<[u8]>,
    /// Bits that a guest clears by writing ones.
    clears: Box<[u8]>,
    /// Bits that the device itself changes, so that they are state.
    changing: Box<[u8]>,
    next_capability: u16,
    last_capability: u16,
    rom: Option<Arc<MemoryRegion>>,
    // State
    bytes: Box<[u8]>,
}

impl PciHeader {
    /// Bytes of a conventional configuration space.
    pub const CONVENTIONAL: u16 = 256;
    /// Bytes of the configuration space of PCI Express.
    pub const EXPRESS: u16 = 4096;

    /// A space of `len` bytes that read as zero and cannot be written.
    #[must_use]
    pub fn new(len: u16) -> Self {
        let zeros = || vec![0; usize::from(len)].into_boxed_slice();
        Self {
            bars: Vec::new(),
            initial: zeros(),
            writable: zeros(),
            clears: zeros(),
            changing: zeros(),
            next_capability: FIRST_CAPABILITY,
            last_capability: 0,
            rom: None,
            bytes: zeros(),
        }
    }

    /// Says what `bytes` at `at` are after a reset. For the making of a function.
    pub fn fix(&mut self, at: u16, bytes: &[u8]) {
        replace(&mut self.initial, at, bytes);
        replace(&mut self.bytes, at, bytes);
    }

    /// Lets guests change the bits of `mask` at `at`. For the making of a function.
    pub fn allow(&mut self, at: u16, mask: &[u8]) {
        set_bits(&mut self.writable, at, mask);
    }

    /// Lets guests clear the bits of `mask` at `at` by writing ones. For the making of a function.
    pub fn clear_by_ones(&mut self, at: u16, mask: &[u8]) {
        set_bits(&mut self.clears, at, mask);
        set_bits(&mut self.changing, at, mask);
    }

    /// Says that the device changes the bits of `mask` at `at` itself. For the making of a function.
    pub fn changes(&mut self, at: u16, mask: &[u8]) {
        set_bits(&mut self.changing, at, mask);
    }

    /// Adds a base address register. For the making of a function.
    pub fn add_bar(&mut self, bar: Bar) {
        // Powers of two only: what is not decoded is what can be written.
        let mask = !(bar.len.next_power_of_two() - 1);
        let [b0, b1, b2, b3, high @ ..] = mask.to_le_bytes();
        let flags = bar.kind.flags();
        self.fix(bar.at, &flags.to_le_bytes());
        let low = u32::from_le_bytes([b0, b1, b2, b3]);
        let low = match bar.kind {
            BarKind::Io => low & !3,
            BarKind::Rom => low & !0x7ff | ROM_ENABLE,
            _ => low & !0xf,
        };
        self.allow(bar.at, &low.to_le_bytes());
        if bar.kind.is_wide() {
            self.allow(bar.at.saturating_add(4), &high);
        }
        self.bars.push(bar);
    }

    /// Adds an expansion ROM, whose length is a power of two. For the making of a function; its `memory` must be that of the trait.
    pub fn add_rom(&mut self, rom: Arc<MemoryRegion>) {
        self.add_bar(Bar {
            at: reg::ROM,
            kind: BarKind::Rom,
            len: rom.len(),
            region: ROM_REGION,
        });
        self.rom = Some(rom);
    }

    /// Adds a capability of `len` bytes, its two of identifier and link included, at the end of the list, and returns its
    /// offset. `None` when there is no room. For the making of a function.
    pub fn add_capability(&mut self, id: u8, len: u8) -> Option<u16> {
        let at = self.next_capability;
        let end = at.checked_add(u16::from(len))?.checked_next_multiple_of(4)?;
        if end > Self::CONVENTIONAL || len < 2 {
            return None;
        }
        let [link, _] = at.to_le_bytes();
        let from = match self.last_capability {
            0 => reg::CAPABILITIES,
            last => last + 1,
        };
        self.fix(from, &[link]);
        self.fix(at, &[id, 0]);
        let status = self.word(reg::STATUS) | status::CAPABILITIES;
        self.fix(reg::STATUS, &status.to_le_bytes());
        (self.last_capability, self.next_capability) = (at, end);
        Some(at)
    }

    /// Says where the next capability goes: for functions whose own registers begin at 40h.
    pub fn capabilities_from(&mut self, at: u16) {
        self.next_capability = at;
    }

    /// What a guest reads. All ones beyond the end, and where an access is not aligned.
    #[must_use]
    pub fn read(&self, at: u16, width: Width) -> u32 {
        let ones = width.ones().try_into().unwrap_or(u32::MAX);
        if u64::from(at) % width.bytes() != 0 || usize::from(at) >= self.bytes.len() {
            return ones;
        }
        self.dword(at & !3) >> ((at & 3) * 8) & ones
    }

    /// What a guest writes: the bits that it may change.
    pub fn write(&mut self, at: u16, width: Width, value: u32) {
        if u64::from(at) % width.bytes() != 0 {
            return;
        }
        let new = value.to_le_bytes().into_iter().take(usize::from(width as u8));
        for (at, new) in (usize::from(at)..).zip(new) {
            let masks = self.writable.get(at).zip(self.clears.get(at));
            if let (Some(byte), Some((writable, clears))) = (self.bytes.get_mut(at), masks) {
                *byte = *byte & !writable & !(new & clears) | new & writable;
            }
        }
    }

    /// What the device itself writes: any bits.
    pub fn put(&mut self, at: u16, bytes: &[u8]) {
        replace(&mut self.bytes, at, bytes);
    }

    /// The byte at `at`; zero beyond the end.
    #[must_use]
    pub fn byte(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    /// The word at `at`.
    #[must_use]
    pub fn word(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at.saturating_add(1))])
    }

    /// The double word at `at`.
    #[must_use]
    pub fn dword(&self, at: u16) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at.saturating_add(2))) << 16
    }

    /// Whether all bits of `mask`, of [`command`], are set.
    #[must_use]
    pub fn commanded(&self, mask: u16) -> bool {
        self.word(reg::COMMAND) & mask == mask
    }

    /// Sets or clears the status bits of `mask`, of [`status`].
    pub fn set_status(&mut self, mask: u16, on: bool) {
        let old = self.word(reg::STATUS);
        let new = if on { old | mask } else { old & !mask };
        self.put(reg::STATUS, &new.to_le_bytes());
    }

    /// The base address registers.
    #[must_use]
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Where `bar` decodes at present: nowhere while it is disabled, or holds no address.
    #[must_use]
    pub fn window(&self, bar: &Bar) -> Option<PciWindow> {
        let low = self.dword(bar.at);
        let needs = match bar.kind {
            BarKind::Io => command::IO,
            _ => command::MEMORY,
        };
        if !self.commanded(needs) || bar.kind == BarKind::Rom && low & ROM_ENABLE == 0 {
            return None;
        }
        let high = if bar.kind.is_wide() {
            self.dword(bar.at.saturating_add(4))
        } else {
            0
        };
        let base = (u64::from(low) | u64::from(high) << 32) & !(bar.len.next_power_of_two() - 1);
        let limit = match bar.kind {
            BarKind::Io => IO_END,
            kind if kind.is_wide() => u64::MAX,
            _ => LOW_END,
        };
        let fits = base != 0 && base.checked_add(bar.len).is_some_and(|end| end <= limit);
        fits.then_some(PciWindow {
            region: bar.region,
            space: bar.kind.space(),
            base,
            len: bar.len,
        })
    }

    /// Where the base address registers decode at present.
    #[must_use]
    pub fn windows(&self) -> Vec<PciWindow> {
        self.bars.iter().filter_map(|bar| self.window(bar)).collect()
    }

    /// Goes back to what was fixed.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.initial);
    }

    /// The bytes, for a saved state.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes saved bytes back: those bits that can differ from what was fixed.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] when the length is another, or the vendor and device.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        if saved.len() != self.bytes.len() || saved.get(..4) != self.initial.get(..4) {
            let why = "configuration space of another PCI function";
            return Err(RestoreError::Invalid(why.to_owned()));
        }
        let masks = self.writable.iter().zip(&self.changing);
        let fixed = self.initial.iter().zip(saved);
        for (byte, ((fixed, saved), (writable, changing))) in self.bytes.iter_mut().zip(fixed.zip(masks)) {
            let mask = writable | changing;
            *byte = fixed & !mask | saved & mask;
        }
        Ok(())
    }
}

fn replace(into: &mut [u8], at: u16, bytes: &[u8]) {
    for (old, new) in into.iter_mut().skip(usize::from(at)).zip(bytes) {
        *old = *new;
    }
}

fn set_bits(into: &mut [u8], at: u16, mask: &[u8]) {
    for (old, new) in into.iter_mut().skip(usize::from(at)).zip(mask) {
        *old |= new;
    }
}

/// A device that is a function of a PCI bus.
///
/// Called by the bus under the device's lock, when the guest accesses configuration space, and after resets and restores.
/// A function never moves itself: whatever it does to its header, the bus looks afterwards where it decodes.
pub trait PciFunction {
    /// The configuration space.
    fn header(&self) -> &PciHeader;

    /// The configuration space, to be changed.
    fn header_mut(&mut self) -> &mut PciHeader;

    /// A guest reads a register.
    fn config_read(&mut self, at: u16, width: Width) -> u32 {
        self.header().read(at, width)
    }

    /// A guest writes a register. Functions with registers of their own let the header take what it takes first.
    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header_mut().write(at, width, value);
    }

    /// Where the function answers at present. Functions that also answer at fixed addresses add those.
    fn windows(&self) -> Vec<PciWindow> {
        self.header().windows()
    }

    /// What a bridge passes on to the bus behind it; none for a function that is no bridge.
    fn forwarding(&self) -> Option<Forwarding> {
        None
    }

    /// The memory behind a region, if it is memory rather than registers: the bus then maps it, and processors access it
    /// without the device. Such a region need not be among [`crate::Registers::regions`].
    fn memory(&self, region: usize) -> Option<Arc<MemoryRegion>> {
        self.header().rom.clone().filter(|_| region == ROM_REGION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> PciHeader {
        let mut header = PciHeader::new(PciHeader::CONVENTIONAL);
        header.fix(reg::VENDOR, &[0x34, 0x12, 0x78, 0x56]);
        header.allow(reg::COMMAND, &[7, 4]);
        header.clear_by_ones(reg::STATUS, &[0, 0xf9]);
        let bar = |at, kind, len, region| Bar { at, kind, len, region };
        header.add_bar(bar(0x10, BarKind::Io, 32, 0));
        header.add_bar(bar(0x14, BarKind::Memory32, 4096, 1));
        header.add_bar(bar(0x18, BarKind::Prefetch64, 1 << 20, 2));
        header.add_bar(bar(reg::ROM, BarKind::Rom, 65536, 3));
        header
    }

    #[test]
    fn expansion_rom_is_where_its_register_says_while_enabled() {
        struct Card(PciHeader);
        impl PciFunction for Card {
            fn header(&self) -> &PciHeader {
                &self.0
            }
            fn header_mut(&mut self) -> &mut PciHeader {
                &mut self.0
            }
        }
        let rom = MemoryRegion::new("rom", guest_memory::Kind::Rom, 65536).unwrap();
        let mut card = Card(PciHeader::new(PciHeader::CONVENTIONAL));
        card.0.allow(reg::COMMAND, &[7, 4]);
        card.0.add_rom(Arc::new(rom));
        card.config_write(reg::ROM, Width::Dword, 0xffff_ffff);
        assert_eq!(card.config_read(reg::ROM, Width::Dword), 0xffff_0001);
        card.config_write(reg::COMMAND, Width::Word, command::MEMORY.into());
        card.config_write(reg::ROM, Width::Dword, 0xfe00_0000);
        assert!(card.windows().is_empty());
        card.config_write(reg::ROM, Width::Dword, 0xfe00_0001);
        let window = card.windows()[0];
        assert_eq!((window.base, window.len), (0xfe00_0000, 65536));
        assert_eq!(card.memory(window.region).unwrap().len(), 65536);
        assert!(card.memory(0).is_none());
    }

    #[test]
    fn ones_written_to_base_addresses_tell_their_size_and_kind() {
        let mut header = header();
        let expected = [
            (0x10, 0xffff_ffe1u32),
            (0x14, 0xffff_f000),
            (0x18, 0xfff0_000c),
            (0x1c, 0xffff_ffff),
            (0x20, 0),
            (0x30, 0xffff_0001),
        ];
        for (at, value) in expected {
            header.write(at, Width::Dword, u32::MAX);
            assert_eq!(header.read(at, Width::Dword), value, "{at:#x}");
        }
    }

    #[test]
    fn window_is_there_while_its_command_bit_and_address_are() {
        let mut header = header();
        header.write(0x10, Width::Dword, 0xc001);
        header.write(0x14, Width::Dword, 0xfebf_0000);
        header.write(0x1c, Width::Dword, 8);
        assert_eq!(header.windows(), []);
        header.write(reg::COMMAND, Width::Byte, 1);
        assert_eq!(header.windows().iter().map(|w| w.base).collect::<Vec<_>>(), [0xc000]);
        header.write(reg::COMMAND, Width::Byte, 2);
        let bases: Vec<_> = header.windows().iter().map(|w| (w.region, w.base)).collect();
        assert_eq!(bases, [(1, 0xfebf_0000), (2, 0x8_0000_0000)]);
        header.write(reg::ROM, Width::Dword, 0xfeb0_0001);
        assert_eq!(header.windows().len(), 3);
        // The last bytes of the space would lie beyond its end.
        header.write(0x10, Width::Dword, 0xffff_ffe0);
        header.write(reg::COMMAND, Width::Byte, 1);
        assert_eq!(header.windows(), []);
    }

    #[test]
    fn only_allowed_bits_change_and_status_bits_clear_by_ones() {
        let mut header = header();
        header.write(reg::VENDOR, Width::Dword, u32::MAX);
        assert_eq!(header.read(reg::VENDOR, Width::Dword), 0x5678_1234);
        header.set_status(0x2000 | status::INTERRUPT, true);
        header.write(reg::STATUS, Width::Word, 0);
        assert_eq!(header.word(reg::STATUS), 0x2008);
        header.write(reg::STATUS, Width::Word, 0xffff);
        assert_eq!(header.word(reg::STATUS), 0x0008);
        header.write(reg::COMMAND, Width::Word, 0xffff);
        assert_eq!(header.read(reg::COMMAND, Width::Word), 0x0407);
        assert_eq!(header.read(reg::COMMAND + 1, Width::Word), 0xffff, "not aligned");
        assert_eq!(header.read(256, Width::Byte), 0xff);
    }

    #[test]
    fn capabilities_are_linked_in_their_order() {
        let mut header = header();
        assert_eq!(header.add_capability(5, 14), Some(0x40));
        assert_eq!(header.add_capability(0x11, 12), Some(0x50));
        assert_eq!(header.add_capability(9, 255), None);
        assert_eq!(header.byte(reg::CAPABILITIES), 0x40);
        assert_eq!([header.word(0x40), header.word(0x50)], [0x5005, 0x0011]);
        assert_eq!(header.word(reg::STATUS) & status::CAPABILITIES, status::CAPABILITIES);
    }

    #[test]
    fn restore_takes_only_what_can_differ() {
        let mut header = header();
        header.write(reg::COMMAND, Width::Word, 0x0003);
        let mut saved = header.save();
        saved[0x09] = 0xee;
        header.reset();
        assert_eq!(header.word(reg::COMMAND), 0);
        header.restore(&saved).unwrap();
        assert_eq!((header.word(reg::COMMAND), header.byte(0x09)), (3, 0));
        saved[0] = 0;
        assert!(header.restore(&saved).is_err());
        assert!(header.restore(&saved[..64]).is_err());
    }
}
