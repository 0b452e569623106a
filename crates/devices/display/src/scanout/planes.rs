//! Planes as they are shown: addresses of the CRT controller, and pixels of the shift registers.

use guest_memory::MemoryRegion;

use super::Line;
use crate::codepage;
use crate::lanes::index;
use crate::vga::Regs;

/// Bytes of video memory that the VGA's own modes show.
const SHOWN: usize = 0x4_0000;

/// Video memory and what the registers say of it, at the start of a frame.
pub(super) struct Planes<'a> {
    regs: &'a Regs,
    bytes: Vec<u8>,
    /// Colours of pixels of four bits.
    palette: [u32; 16],
}

impl<'a> Planes<'a> {
    pub(super) fn new(regs: &'a Regs, vram: &MemoryRegion) -> Self {
        let mut bytes = vec![0; SHOWN];
        // No adapter has less.
        let _ = vram.fetch(0, &mut bytes);
        Self {
            regs,
            bytes,
            palette: palette(regs, false),
        }
    }

    /// The four planes at `offset`.
    fn fetch(&self, offset: u32) -> [u8; 4] {
        let at = index(offset & 0xFFFF) * 4;
        self.bytes
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or_default()
    }

    /// A byte of plane 2, where fonts are.
    pub(super) fn font(&self, offset: u32) -> u8 {
        let [_, _, font, _] = self.fetch(offset);
        font
    }

    /// Character and attribute at a count.
    pub(super) fn cell(&self, counter: u32, row: u8) -> (u8, u8) {
        let [character, attribute, _, _] = self.fetch(self.address(counter, row));
        (character, attribute)
    }

    /// The first `columns` characters of a line.
    pub(super) fn characters(&self, line: &Line, columns: u32) -> impl Iterator<Item = char> {
        let line = *line;
        (0..columns).map(move |column| {
            let (code, _) = self.cell(line.counter.wrapping_add(column), 0);
            codepage::unicode(code)
        })
    }

    /// Where in the planes a count lies.
    fn address(&self, counter: u32, row: u8) -> u32 {
        let mode = self.regs.crtc_mode();
        let counter = counter & 0xFFFF;
        let mut address = if mode.byte() || self.regs.underline().dword() {
            // Planes are packed with chain 4, so double words count like bytes.
            counter
        } else {
            let wrap = if mode.wrap() { counter >> 15 } else { counter >> 13 };
            counter << 1 & 0xFFFF | wrap & 1
        };
        let row = u32::from(row);
        if !mode.not_cga() {
            address = address & !(1 << 13) | (row & 1) << 13;
        }
        if !mode.not_hercules() {
            address = address & !(1 << 14) | (row >> 1 & 1) << 14;
        }
        address
    }

    /// The planes at the characters of a line, with one more for panning.
    fn fetches(&self, line: &Line) -> impl Iterator<Item = [u8; 4]> {
        let line = *line;
        (0..=self.regs.columns()).map(move |column| {
            let counter = line.counter.wrapping_add(column);
            self.fetch(self.address(counter, line.row))
        })
    }

    /// A line of pixels of one to four bits, a dot each.
    pub(super) fn planar_line(&self, line: &Line, dots: &mut Vec<u32>) {
        let interleave = self.regs.graphics_mode().interleave();
        for planes in self.fetches(line) {
            let pixels = if interleave {
                interleaved(planes)
            } else {
                separate(planes)
            };
            dots.extend(pixels.map(|pixel| self.colour(pixel)));
        }
    }

    fn colour(&self, pixel: u8) -> u32 {
        self.palette.get(usize::from(pixel)).copied().unwrap_or(0)
    }

    /// A line of pixels of eight bits: two dots each, or one for each half.
    pub(super) fn chained_line(&self, line: &Line, dots: &mut Vec<u32>) {
        let eight_bit = self.regs.attr_mode().eight_bit();
        for byte in self.fetches(line).flatten() {
            if eight_bit {
                let colour = self.regs.dac.rgb(byte, false);
                dots.extend([colour, colour]);
            } else {
                dots.extend([self.colour(byte >> 4), self.colour(byte & 15)]);
            }
        }
    }
}

/// Colours of pixels of four bits.
pub(super) fn palette(regs: &Regs, eight_bits: bool) -> [u32; 16] {
    let mut pixel = 0;
    [(); 16].map(|()| {
        let colour = regs.dac.rgb(regs.palette_index(pixel), eight_bits);
        pixel += 1;
        colour
    })
}

/// Eight pixels with a bit in each plane.
pub(super) fn separate(planes: [u8; 4]) -> [u8; 8] {
    let mut shift = 8;
    [(); 8].map(|()| {
        shift -= 1;
        let [a, b, c, d] = planes.map(|plane| plane >> shift & 1);
        a | b << 1 | c << 2 | d << 3
    })
}

/// Four pixels of planes 0 and 2, then four of 1 and 3, with two bits of each plane.
fn interleaved(planes: [u8; 4]) -> [u8; 8] {
    let [a, b, c, d] = planes;
    let mut shift = 16;
    let low = u16::from_be_bytes([a, b]);
    let high = u16::from_be_bytes([c, d]);
    [(); 8].map(|()| {
        shift -= 2;
        let [_, pixel] = (low >> shift & 3 | (high >> shift & 3) << 2).to_be_bytes();
        pixel
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_leave_the_shift_registers_from_the_left() {
        assert_eq!(separate([0x80, 0xC0, 0xE0, 0xF1]), [15, 14, 12, 8, 0, 0, 0, 8]);
        assert_eq!(interleaved([0b0001_1011, 0b1110_0100, 0, 0]), [0, 1, 2, 3, 3, 2, 1, 0]);
        assert_eq!(interleaved([0, 0, 0b0100_0000, 0b0000_0011]), [4, 0, 0, 0, 0, 0, 0, 12]);
    }
}
