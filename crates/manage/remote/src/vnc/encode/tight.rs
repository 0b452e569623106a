//! Tight: a single colour, numbers of a palette, or pixels; each kind compressed in a stream of its own.
//!
//! Spec: rfbproto.rst "Tight Encoding".

use display::Surface;

use super::Palette;
use super::Stream;
use super::bits;
use crate::vnc::pixel::Translator;

const FILL: u8 = 0x80;
/// Pixels as they are, by stream 0.
const COPY: u8 = 0x00;
/// A filter follows; by streams 1 and 2.
const FILTER_TWO: u8 = 0x50;
const FILTER_MANY: u8 = 0x60;
const PALETTE: u8 = 1;
/// Less than this is not compressed.
const SHORT: usize = 12;

pub(super) fn encode(
    translator: &Translator,
    streams: &mut [Stream; 3],
    level: u32,
    part: &Surface,
    out: &mut Vec<u8>,
) {
    let [full, two, many] = streams;
    let most = if translator.size() == 1 { 2 } else { 256 };
    match Palette::of(part.pixels(), most) {
        Some(palette) if palette.len() <= 1 => {
            out.push(FILL);
            translator.tpixel(palette.colours.first().copied().unwrap_or(0), out);
        }
        Some(palette) if palette.len() == 2 => {
            filter(translator, FILTER_TWO, &palette, out);
            let mut data = Vec::new();
            for y in 0..part.height() {
                bits(part.row(y).iter().map(|pixel| palette.number(*pixel) != 0), &mut data);
            }
            compressed(two, level, &data, out);
        }
        Some(palette) => {
            filter(translator, FILTER_MANY, &palette, out);
            let data: Vec<u8> = part.pixels().iter().map(|pixel| palette.number(*pixel)).collect();
            compressed(many, level, &data, out);
        }
        None => {
            out.push(COPY);
            let mut data = Vec::with_capacity(part.pixels().len() * translator.size());
            part.pixels()
                .iter()
                .for_each(|pixel| translator.tpixel(*pixel, &mut data));
            compressed(full, level, &data, out);
        }
    }
}

fn filter(translator: &Translator, control: u8, palette: &Palette, out: &mut Vec<u8>) {
    let last = u8::try_from(palette.len().saturating_sub(1)).unwrap_or(u8::MAX);
    out.extend([control, PALETTE, last]);
    palette
        .colours
        .iter()
        .for_each(|colour| translator.tpixel(*colour, out));
}

fn compressed(stream: &mut Stream, level: u32, data: &[u8], out: &mut Vec<u8>) {
    if data.len() < SHORT {
        return out.extend(data);
    }
    let mut packed = Vec::new();
    stream.deflate(data, level, &mut packed);
    compact_len(packed.len(), out);
    out.append(&mut packed);
}

/// Seven bits a byte, low ones first; the third has eight. Pieces are small enough for that.
fn compact_len(len: usize, out: &mut Vec<u8>) {
    let [a, b, c, ..] = len.to_le_bytes();
    let (first, second, third) = (a & 0x7F, b << 1 & 0x7E | a >> 7, c << 2 | b >> 6);
    match len {
        0..=0x7F => out.push(first),
        0x80..=0x3FFF => out.extend([first | 0x80, second]),
        _ => out.extend([first | 0x80, second | 0x80, third]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_in_the_specification() {
        let bytes = |len| {
            let mut out = Vec::new();
            compact_len(len, &mut out);
            out
        };
        assert_eq!(bytes(0x7F), [0x7F]);
        assert_eq!(bytes(10_000), [0x90, 0x4E]);
        assert_eq!(bytes(0x3FFF), [0xFF, 0x7F]);
        assert_eq!(bytes(0x4000), [0x80, 0x80, 0x01]);
        assert_eq!(bytes(0x3F_FFFF), [0xFF, 0xFF, 0xFF]);
    }
}
