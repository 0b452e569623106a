//! Bochs VBE display interface ("DISPI"): linear modes of any size behind an index and a data register.
//!
//! Identifiers B0C0h to B0C5h, modes of 4 (planar), 8, 15, 16, 24 and 32 bits, virtual width, offsets, banks, the linear
//! framebuffer, capabilities and the 8-bit DAC are modelled. There is no hardware cursor: the interface has none.
//!
//! Spec: Bochs VBE display interface (SeaBIOS vgasrc/bochsvga.h); QEMU docs/specs/standard-vga.rst.

use bitfield_struct::bitfield;
use serde::Deserialize;
use serde::Serialize;

/// Widest mode, in pixels.
pub const MAX_WIDTH: u16 = 2560;
/// Highest mode, in pixels.
pub const MAX_HEIGHT: u16 = 1600;
const MAX_BPP: u16 = 32;

const ID_FIRST: u16 = 0xB0C0;
const ID_LAST: u16 = 0xB0C5;

/// Registers by index.
pub(crate) mod index {
    pub(crate) const ID: u16 = 0;
    pub(crate) const XRES: u16 = 1;
    pub(crate) const YRES: u16 = 2;
    pub(crate) const BPP: u16 = 3;
    pub(crate) const ENABLE: u16 = 4;
    pub(crate) const BANK: u16 = 5;
    pub(crate) const VIRT_WIDTH: u16 = 6;
    pub(crate) const VIRT_HEIGHT: u16 = 7;
    pub(crate) const X_OFFSET: u16 = 8;
    pub(crate) const Y_OFFSET: u16 = 9;
    pub(crate) const VIDEO_MEMORY_64K: u16 = 10;
}

/// Register ENABLE.
#[bitfield(u16)]
pub(crate) struct Enable {
    pub(crate) enabled: bool,
    /// XRES, YRES and BPP read as the largest there are.
    pub(crate) get_caps: bool,
    #[bits(3)]
    __: u8,
    /// Colours of the DAC have eight bits.
    pub(crate) dac8: bool,
    /// The linear framebuffer is used; it is there in any case.
    pub(crate) linear: bool,
    /// Video memory keeps its contents when a mode is set.
    pub(crate) no_clear: bool,
    __: u8,
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dispi {
    pub(crate) index: u16,
    id: u16,
    pub(crate) xres: u16,
    pub(crate) yres: u16,
    pub(crate) bpp: u16,
    enable: u16,
    pub(crate) bank: u16,
    pub(crate) virt_width: u16,
    pub(crate) virt_height: u16,
    pub(crate) x_offset: u16,
    pub(crate) y_offset: u16,
}

/// What a write asks of the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// A mode was set: the first bytes of video memory become zero.
    Clear(u64),
}

impl Dispi {
    pub(crate) fn new() -> Self {
        Self {
            index: 0,
            id: ID_LAST,
            xres: 0,
            yres: 0,
            bpp: 8,
            enable: 0,
            bank: 0,
            virt_width: 0,
            virt_height: 0,
            x_offset: 0,
            y_offset: 0,
        }
    }

    pub(crate) fn enable(&self) -> Enable {
        Enable::from_bits(self.enable)
    }

    /// Whether its mode is shown, and not that of the VGA's own registers.
    pub(crate) fn is_on(&self) -> bool {
        self.enable().enabled()
    }

    /// Bytes of a line of `width` pixels.
    fn line_bytes(&self, width: u16) -> u32 {
        let width = u32::from(width);
        match self.bpp {
            4 => width / 2,
            15 => width * 2,
            bpp => width * u32::from(bpp / 8),
        }
    }

    /// Bytes from one line to the next; in planar modes those of all planes together.
    pub(crate) fn pitch(&self) -> u32 {
        self.line_bytes(self.virt_width)
    }

    /// The byte of video memory that is shown first; in planar modes the first of the eight pixels.
    pub(crate) fn start(&self) -> u64 {
        u64::from(self.y_offset) * u64::from(self.pitch())
            + u64::from(self.line_bytes(self.x_offset & !self.pan_mask()))
    }

    fn pan_mask(&self) -> u16 {
        if self.bpp == 4 { 7 } else { 0 }
    }

    /// Pixels that a planar mode is panned by.
    pub(crate) fn pan(&self) -> u16 {
        self.x_offset & self.pan_mask()
    }

    pub(crate) fn read(&self, index: u16, vram: u64) -> u16 {
        let caps = self.enable().get_caps();
        match index {
            index::ID => self.id,
            index::XRES if caps => MAX_WIDTH,
            index::YRES if caps => MAX_HEIGHT,
            index::BPP if caps => MAX_BPP,
            index::XRES => self.xres,
            index::YRES => self.yres,
            index::BPP => self.bpp,
            index::ENABLE => self.enable,
            index::BANK => self.bank,
            index::VIRT_WIDTH => self.virt_width,
            index::VIRT_HEIGHT => self.virt_height,
            index::X_OFFSET => self.x_offset,
            index::Y_OFFSET => self.y_offset,
            index::VIDEO_MEMORY_64K => u16::try_from(vram >> 16).unwrap_or(u16::MAX),
            _ => 0,
        }
    }

    /// Writes a register. Values that make no picture are brought to the nearest that do.
    pub(crate) fn write(&mut self, index: u16, value: u16, vram: u64) -> Effect {
        match index {
            index::ID if (ID_FIRST..=ID_LAST).contains(&value) => self.id = value,
            index::XRES => self.xres = value.min(MAX_WIDTH) & !7,
            index::YRES => self.yres = value.min(MAX_HEIGHT),
            // Zero means eight, as in the first of these interfaces.
            index::BPP if value == 0 => self.bpp = 8,
            index::BPP if [4, 8, 15, 16, 24, 32].contains(&value) => self.bpp = value,
            index::BANK => self.bank = value.min(last_bank(vram)),
            index::VIRT_WIDTH => self.virt_width = value & !7,
            index::X_OFFSET => self.x_offset = value,
            index::Y_OFFSET => self.y_offset = value,
            index::ENABLE => return self.set_enable(value, vram),
            _ => return Effect::None,
        }
        if self.is_on() {
            self.fix(vram);
        }
        Effect::None
    }

    fn set_enable(&mut self, value: u16, vram: u64) -> Effect {
        let was_on = self.is_on();
        let wanted = Enable::from_bits(value);
        self.enable = Enable::new()
            .with_enabled(wanted.enabled())
            .with_get_caps(wanted.get_caps())
            .with_dac8(wanted.dac8())
            .with_linear(wanted.linear())
            .with_no_clear(wanted.no_clear())
            .into_bits();
        if was_on == self.is_on() {
            return Effect::None;
        }
        self.bank = 0;
        if !self.is_on() {
            return Effect::None;
        }
        (self.virt_width, self.x_offset, self.y_offset) = (self.xres, 0, 0);
        self.fix(vram);
        let shown = u64::from(self.pitch()) * u64::from(self.yres);
        if wanted.no_clear() {
            Effect::None
        } else {
            Effect::Clear(shown)
        }
    }

    /// Makes the mode one that video memory has room for.
    fn fix(&mut self, vram: u64) {
        self.xres = self.xres.clamp(8, MAX_WIDTH) & !7;
        self.virt_width = self.virt_width.max(self.xres);
        if u64::from(self.pitch()) > vram {
            self.virt_width = self.xres;
        }
        let lines = vram / u64::from(self.pitch().max(1));
        let lines = u16::try_from(lines).unwrap_or(u16::MAX);
        self.yres = self.yres.clamp(1, MAX_HEIGHT).min(lines);
        self.virt_height = lines;
        self.x_offset = self.x_offset.min(self.virt_width - self.xres);
        self.y_offset = self.y_offset.min(lines - self.yres);
    }

    /// Whether a saved state is one that writes could have made.
    pub(crate) fn is_valid(&self, vram: u64) -> bool {
        let mut fixed = self.clone();
        if self.is_on() {
            fixed.fix(vram);
        }
        fixed == *self
            && [4, 8, 15, 16, 24, 32].contains(&self.bpp)
            && (ID_FIRST..=ID_LAST).contains(&self.id)
            && self.bank <= last_bank(vram)
            && self.xres <= MAX_WIDTH
            && self.yres <= MAX_HEIGHT
    }
}

fn last_bank(vram: u64) -> u16 {
    u16::try_from((vram >> 16).saturating_sub(1)).unwrap_or(u16::MAX)
}
