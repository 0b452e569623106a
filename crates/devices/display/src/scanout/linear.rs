//! Linear modes of the Bochs interface.

use guest_memory::MemoryRegion;

use super::planes;
use crate::Surface;
use crate::lanes::index;
use crate::vga::Dispi;
use crate::vga::Regs;

/// A mode of 8 to 32 bits.
pub(super) fn render(regs: &Regs, dispi: &Dispi, vram: &MemoryRegion, surface: &mut Surface) {
    let eight_bits = dispi.enable().dac8();
    let palette: Vec<u32> = (0..=255).map(|pixel| regs.dac.rgb(pixel, eight_bits)).collect();
    let bytes = match dispi.bpp {
        8 => 1,
        15 | 16 => 2,
        24 => 3,
        _ => 4,
    };
    let mut line = vec![0; index(surface.width()) * bytes];
    for y in 0..surface.height() {
        read_line(vram, dispi.start() + u64::from(y) * u64::from(dispi.pitch()), &mut line);
        let row = surface.row_mut(y);
        match dispi.bpp {
            8 => fill(row, &line, |[pixel]: [u8; 1]| {
                palette.get(usize::from(pixel)).copied().unwrap_or(0)
            }),
            15 => fill(row, &line, |pixel| rgb555(u16::from_le_bytes(pixel))),
            16 => fill(row, &line, |pixel| rgb565(u16::from_le_bytes(pixel))),
            24 => fill(row, &line, |[blue, green, red]: [u8; 3]| {
                u32::from_be_bytes([0, red, green, blue])
            }),
            _ => fill(row, &line, |pixel| u32::from_le_bytes(pixel) & 0xFF_FFFF),
        }
    }
}

/// Four bits in planes of any size.
pub(super) fn render_planar(regs: &Regs, dispi: &Dispi, vram: &MemoryRegion, surface: &mut Surface) {
    let palette = planes::palette(regs, dispi.enable().dac8());
    let characters = index(surface.width()).div_ceil(8) + 1;
    let mut line = vec![0; characters * 4];
    for y in 0..surface.height() {
        read_line(vram, dispi.start() + u64::from(y) * u64::from(dispi.pitch()), &mut line);
        let (bytes, _) = line.as_chunks();
        let pixels = bytes.iter().flat_map(|bytes| planes::separate(*bytes));
        let pixels = pixels.skip(usize::from(dispi.pan()));
        for (to, pixel) in surface.row_mut(y).iter_mut().zip(pixels) {
            *to = palette.get(usize::from(pixel)).copied().unwrap_or(0);
        }
    }
}

/// A line of video memory. What lies beyond its end is black.
fn read_line(vram: &MemoryRegion, at: u64, line: &mut [u8]) {
    let there = usize::try_from(vram.len().saturating_sub(at)).unwrap_or(usize::MAX);
    let (inside, outside) = line.split_at_mut(there.min(line.len()));
    // The length is what there is.
    let _ = vram.fetch(at, inside);
    outside.fill(0);
}

fn fill<const N: usize>(row: &mut [u32], line: &[u8], colour: impl Fn([u8; N]) -> u32) {
    let (pixels, _) = line.as_chunks();
    for (to, pixel) in row.iter_mut().zip(pixels) {
        *to = colour(*pixel);
    }
}

/// Five bits as eight, so that full stays full.
fn five(value: u16) -> u8 {
    let [_, value] = (value & 31).to_be_bytes();
    value << 3 | value >> 2
}

fn rgb555(pixel: u16) -> u32 {
    u32::from_be_bytes([0, five(pixel >> 10), five(pixel >> 5), five(pixel)])
}

fn rgb565(pixel: u16) -> u32 {
    let [_, green] = (pixel >> 5 & 63).to_be_bytes();
    u32::from_be_bytes([0, five(pixel >> 11), green << 2 | green >> 4, five(pixel)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_components_stay_full() {
        assert_eq!((rgb555(0x7FFF), rgb565(0xFFFF)), (0xFF_FFFF, 0xFF_FFFF));
        assert_eq!(
            (rgb565(0xF800), rgb565(0x07E0), rgb565(0x001F)),
            (0xFF_0000, 0xFF00, 0xFF)
        );
        assert_eq!((rgb555(0x7C00), rgb555(0x03E0), rgb555(0x8000)), (0xFF_0000, 0xFF00, 0));
    }
}
