//! Hextile: tiles of 16 by 16 pixels, each a background with rectangles on it.
//!
//! Spec: RFC 6143 §7.7.4.

use display::Surface;

use super::Palette;
use super::tiles;
use crate::vnc::pixel::Translator;

const RAW: u8 = 1;
const BACKGROUND: u8 = 2;
const FOREGROUND: u8 = 4;
const SUBRECTS: u8 = 8;
const COLOURED: u8 = 16;

const SIDE: u32 = 16;

pub(super) fn encode(translator: &Translator, part: &Surface, out: &mut Vec<u8>) {
    let (mut background, mut foreground) = (None, None);
    for rect in tiles(&part.bounds(), SIDE, SIDE) {
        let tile = part.copy_out(&rect);
        let raw = tile.pixels().len() * translator.size();
        let start = out.len();
        let packed = subrects(translator, &tile, &mut background, &mut foreground, out);
        if !packed || out.len() - start > raw {
            out.truncate(start);
            out.push(RAW);
            translator.pixels(tile.pixels(), out);
            (background, foreground) = (None, None);
        }
    }
}

/// A tile as rectangles. False when there are too many.
fn subrects(
    translator: &Translator,
    tile: &Surface,
    background: &mut Option<u32>,
    foreground: &mut Option<u32>,
    out: &mut Vec<u8>,
) -> bool {
    let Some(palette) = Palette::of(tile.pixels(), 256) else {
        return false;
    };
    let base = most_frequent(tile, &palette);
    let rects = rectangles(tile, base);
    let Ok(count) = u8::try_from(rects.len()) else {
        return false;
    };
    let mut mask = 0;
    if *background != Some(base) {
        mask |= BACKGROUND;
    }
    let single = palette.colours.iter().copied().find(|colour| *colour != base);
    let coloured = palette.len() > 2;
    if count > 0 {
        mask |= SUBRECTS;
    }
    if coloured {
        mask |= COLOURED;
    } else if single.is_some() && *foreground != single {
        mask |= FOREGROUND;
    }
    out.push(mask);
    if mask & BACKGROUND != 0 {
        translator.pixel(base, out);
        *background = Some(base);
    }
    if mask & FOREGROUND != 0 {
        translator.pixel(single.unwrap_or(base), out);
        *foreground = single;
    }
    if coloured {
        *foreground = None;
    }
    if count > 0 {
        out.push(count);
    }
    for (colour, place, size) in rects {
        if coloured {
            translator.pixel(colour, out);
        }
        out.extend([place, size]);
    }
    true
}

fn most_frequent(tile: &Surface, palette: &Palette) -> u32 {
    let mut counts = [0u16; 256];
    for pixel in tile.pixels() {
        if let Some(count) = counts.get_mut(usize::from(palette.number(*pixel))) {
            *count += 1;
        }
    }
    let colours = palette.colours.iter().zip(counts);
    colours.max_by_key(|(_, count)| *count).map_or(0, |(colour, _)| *colour)
}

/// Rectangles that cover what is not of colour `base`: colour, place and size less one as two times four bits.
fn rectangles(tile: &Surface, base: u32) -> Vec<(u32, u8, u8)> {
    // A bit for each column that is done, for each row.
    let mut done = [0u16; SIDE as usize];
    let mut rects = Vec::new();
    for y in 0..tile.height() {
        for x in 0..tile.width() {
            let colour = tile.pixel(x, y);
            let is_done = |done: &[u16; 16], x: u32, y: u32| done.get(y as usize).is_none_or(|row| row >> x & 1 != 0);
            if colour == base || is_done(&done, x, y) {
                continue;
            }
            let same = |done: &[u16; 16], x: u32, y: u32| tile.pixel(x, y) == colour && !is_done(done, x, y);
            let width = (x..tile.width()).find(|x| !same(&done, *x, y)).unwrap_or(tile.width()) - x;
            let row_same = |y: &u32| (x..x + width).all(|x| same(&done, x, *y));
            let height = (y..tile.height()).find(|y| !row_same(y)).unwrap_or(tile.height()) - y;
            let covered = ((1u32 << width) - 1) << x;
            for row in done.iter_mut().skip(y as usize).take(height as usize) {
                *row |= u16::try_from(covered).unwrap_or(u16::MAX);
            }
            let pair = |high: u32, low: u32| u8::try_from(high << 4 | low).unwrap_or(0);
            rects.push((colour, pair(x, y), pair(width - 1, height - 1)));
        }
    }
    rects
}
