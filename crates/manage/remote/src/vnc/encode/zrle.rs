//! ZRLE: tiles of 64 by 64 pixels as they are, as runs, or as numbers of a palette; compressed together.
//!
//! Spec: RFC 6143 §7.7.6.

use display::Surface;

use super::Palette;
use super::pack;
use super::tiles;
use crate::vnc::pixel::Translator;

const SIDE: u32 = 64;
/// Colours of a palette for runs at most.
const PALETTE: usize = 127;
/// Colours of a palette for packed pixels at most.
const PACKED: usize = 16;
const RUNS: u8 = 128;

/// The data of a rectangle before compression.
pub(super) fn encode(translator: &Translator, part: &Surface) -> Vec<u8> {
    let mut out = Vec::new();
    for rect in tiles(&part.bounds(), SIDE, SIDE) {
        tile(translator, &part.copy_out(&rect), &mut out);
    }
    out
}

fn tile(translator: &Translator, tile: &Surface, out: &mut Vec<u8>) {
    let pixels = tile.pixels();
    let palette = Palette::of(pixels, PALETTE);
    if let Some(palette) = &palette
        && let [only] = palette.colours.as_slice()
    {
        out.push(1);
        return translator.cpixel(*only, out);
    }
    let mut cpixel = Vec::new();
    translator.cpixel(0, &mut cpixel);
    let size = cpixel.len();
    let raw = pixels.len() * size;
    let runs = runs(pixels);
    let plain_runs: usize = runs.iter().map(|(_, len)| size + len_bytes(*len)).sum();
    let palette_runs = palette.as_ref().map(|palette| {
        let of_runs = runs
            .iter()
            .map(|(_, len)| if *len == 1 { 1 } else { 1 + len_bytes(*len) });
        palette.len() * size + of_runs.sum::<usize>()
    });
    let packed = palette.as_ref().and_then(|palette| {
        let width = packed_width(palette.len())?;
        let row = (tile.width() * width).div_ceil(8) as usize;
        Some(palette.len() * size + row * tile.height() as usize)
    });
    let least = [Some(raw), Some(plain_runs), palette_runs, packed]
        .into_iter()
        .flatten()
        .min();
    match &palette {
        Some(palette) if packed == least => packed_tile(translator, tile, palette, out),
        Some(palette) if palette_runs == least => palette_run_tile(translator, &runs, palette, out),
        _ if Some(plain_runs) == least => {
            out.push(RUNS);
            for (colour, len) in runs {
                translator.cpixel(colour, out);
                put_len(len, out);
            }
        }
        _ => {
            out.push(0);
            pixels.iter().for_each(|pixel| translator.cpixel(*pixel, out));
        }
    }
}

fn palette_run_tile(translator: &Translator, runs: &[(u32, usize)], palette: &Palette, out: &mut Vec<u8>) {
    out.push(RUNS | colours(palette));
    for colour in &palette.colours {
        translator.cpixel(*colour, out);
    }
    for (colour, len) in runs {
        let number = palette.number(*colour);
        if *len == 1 {
            out.push(number);
        } else {
            out.push(number | RUNS);
            put_len(*len, out);
        }
    }
}

fn colours(palette: &Palette) -> u8 {
    u8::try_from(palette.len()).unwrap_or(0)
}

fn packed_tile(translator: &Translator, tile: &Surface, palette: &Palette, out: &mut Vec<u8>) {
    out.push(colours(palette));
    palette
        .colours
        .iter()
        .for_each(|colour| translator.cpixel(*colour, out));
    let width = packed_width(palette.len()).unwrap_or(4);
    for y in 0..tile.height() {
        pack(tile.row(y).iter().map(|pixel| palette.number(*pixel)), width, out);
    }
}

/// Bits of a number of a palette.
fn packed_width(colours: usize) -> Option<u32> {
    match colours {
        2 => Some(1),
        3..=4 => Some(2),
        5..=PACKED => Some(4),
        _ => None,
    }
}

fn runs(pixels: &[u32]) -> Vec<(u32, usize)> {
    pixels
        .chunk_by(|a, b| a == b)
        .filter_map(|run| run.first().map(|colour| (*colour, run.len())))
        .collect()
}

/// Bytes of a run's length: 255 each, and what is left less one.
fn len_bytes(len: usize) -> usize {
    (len - 1) / 255 + 1
}

fn put_len(len: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + (len - 1) / 255, 255);
    out.push(u8::try_from((len - 1) % 255).unwrap_or(0));
}
