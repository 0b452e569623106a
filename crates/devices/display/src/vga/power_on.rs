//! What a video BIOS leaves behind: 80 by 25 characters with their font and colours, or a linear mode.
//!
//! For kernels that are booted without one. The font is the one in the adapter's own firmware, which is looked for there, since
//! nothing says where it is but firmware that has run.
//!
//! Spec: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference (1987), "Interrupt 10h, Video"
//! (modes, default palette); Bochs VBE display interface (SeaBIOS vgasrc/bochsvga.h).

use guest_memory::MemoryRegion;

use super::Vga;
use super::dispi::index;
use super::regs::Regs;
use super::window;

/// Registers of mode 3 at 720 by 400.
#[rustfmt::skip]
mod mode3 {
    pub(super) const MISC: u8 = 0x67;
    pub(super) const SEQ: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
    pub(super) const CRTC: [u8; 25] = [
        0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00,
        0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
    ];
    pub(super) const GFX: [u8; 9] = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x0f, 0xff];
    pub(super) const ATTR: [u8; 21] = [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
        0x0c, 0x00, 0x0f, 0x08, 0x00,
    ];
}

/// Index of the attribute controller with its colours shown.
const PALETTE_ON: u8 = 0x20;
/// Characters on the screen, and a blank one: light grey on black.
const CHARACTERS: u32 = 80 * 25;
const BLANK: [u8; 2] = [b' ', 0x07];
/// Lines of a character of the font, and its distance from the next in plane 2.
const LINES: usize = 16;
const FONT_STRIDE: u32 = 32;
const FONT_PLANE: u8 = 1 << 2;
const FONT_LEN: usize = 256 * LINES;
/// The first two characters of every such font: nothing, and the white smiling face.
const FONT_START: [u8; 2 * LINES] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
    0, 0, 0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e, 0, 0, 0, 0,
];
/// ENABLE: enabled, with the linear framebuffer.
const LINEAR: u16 = 0x41;

/// A linear mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearMode {
    /// Pixels of a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
    /// Bits of a pixel: 8, 15, 16, 24 or 32.
    pub bits: u16,
}

impl Vga {
    /// Shows 80 by 25 blank characters, as a video BIOS does when it is initialised. False where the adapter has no firmware
    /// and so no font: the screen then stays dark.
    pub fn set_text_mode(&mut self) -> bool {
        let Some(font) = self.rom.as_deref().and_then(font) else {
            return false;
        };
        self.set_dispi(index::ENABLE, 0);
        self.regs = text_registers();
        for (character, glyph) in (0..).zip(font.as_chunks::<LINES>().0) {
            for (line, dots) in (0..FONT_STRIDE).zip(glyph) {
                let data = u32::from_le_bytes([*dots; 4]);
                window::store(&self.vram, character * FONT_STRIDE + line, FONT_PLANE, data);
            }
        }
        let [character, attribute] = BLANK;
        for at in 0..CHARACTERS {
            // Even addresses are plane 0, odd ones plane 1 at the same place.
            let data = u32::from_le_bytes([character, attribute, 0, 0]);
            window::store(&self.vram, at * 2, 0x03, data);
        }
        true
    }

    /// Shows a black picture in a linear mode. False where there is no such mode.
    pub fn set_linear_mode(&mut self, mode: LinearMode) -> bool {
        let LinearMode { width, height, bits } = mode;
        self.set_text_mode();
        let set = [(index::XRES, width), (index::YRES, height), (index::BPP, bits)];
        for (index, value) in set.into_iter().chain([(index::ENABLE, LINEAR)]) {
            self.set_dispi(index, value);
        }
        let dispi = &self.dispi;
        let done = (dispi.xres, dispi.yres, dispi.bpp) == (width, height, bits);
        if !done {
            self.set_dispi(index::ENABLE, 0);
        }
        done
    }
}

fn text_registers() -> Regs {
    let mut regs = Regs::new();
    regs.set_misc(mode3::MISC);
    for (file, values) in [
        (regs.seq.as_mut_slice(), mode3::SEQ.as_slice()),
        (&mut regs.crtc, &mode3::CRTC),
        (&mut regs.gfx, &mode3::GFX),
        (&mut regs.attr, &mode3::ATTR),
    ] {
        file.iter_mut()
            .zip(values)
            .for_each(|(register, value)| *register = *value);
    }
    regs.attr_index = PALETTE_ON;
    for (number, colour) in (0..64).zip(&mut regs.dac.colours) {
        *colour = default_colour(number);
    }
    regs
}

/// Colour of the default palette: bits 5 to 3 are a third of red, green and blue, bits 2 to 0 two thirds.
fn default_colour(number: u8) -> [u8; 3] {
    [2, 1, 0].map(|bit| (number >> bit & 1) * 0x2a + (number >> (bit + 3) & 1) * 0x15)
}

/// The font of 8 by 16 dots in the adapter's firmware.
fn font(rom: &MemoryRegion) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(rom.len()).ok()?];
    rom.fetch(0, &mut bytes)?;
    let at = bytes.windows(FONT_START.len()).position(|part| part == FONT_START)?;
    bytes.get(at..at + FONT_LEN).map(<[u8]>::to_vec)
}
