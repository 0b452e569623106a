//! Pictures of a guest's screen, as far as tests understand them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;
use anyhow::ensure;

/// Size of a character of Linux' console on a framebuffer.
const CELL: (usize, usize) = (8, 16);

/// A picture.
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pixels: Vec<[u8; 3]>,
}

/// A part of a picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Which pixels of a character are lit, a byte for each of its lines.
type Glyph = [u8; CELL.1];

impl Picture {
    /// Reads a screenshot, or one that was made smaller by a palette.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut decoder = png::Decoder::new(BufReader::new(File::open(path)?));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().context("a picture of that size")?];
        let info = reader.next_frame(&mut bytes)?;
        ensure!(
            (info.color_type, info.bit_depth) == (png::ColorType::Rgb, png::BitDepth::Eight),
            "{} has other pixels than screenshots have",
            path.display()
        );
        let pixels = bytes[..info.buffer_size()].as_chunks().0.to_vec();
        Ok(Self {
            width: info.width as usize,
            height: info.height as usize,
            pixels,
        })
    }

    /// Of a thousand pixels in an area, how many look the same in both pictures.
    pub(super) fn likeness(&self, other: &Self, area: Area) -> anyhow::Result<usize> {
        let mut same = 0;
        for line in area.top..area.top + area.height {
            let (ours, theirs) = (self.line(line, area), other.line(line, area));
            let (ours, theirs) = ours.zip(theirs).context("the area is not in both pictures")?;
            same += ours
                .iter()
                .zip(theirs)
                .filter(|(ours, theirs)| alike(ours, theirs))
                .count();
        }
        Ok(same * 1000 / (area.width * area.height))
    }

    fn line(&self, line: usize, area: Area) -> Option<&[[u8; 3]]> {
        let start = line * self.width + area.left;
        let inside = line < self.height && area.left + area.width <= self.width;
        self.pixels.get(start..start + area.width).filter(|_| inside)
    }

    /// Whether these lines of text are what is to be seen: every space is empty, every other character is drawn in one way
    /// only, and differently from all others. A few cells may differ, since the cursor is somewhere.
    pub(super) fn shows(&self, lines: &[&str]) -> anyhow::Result<()> {
        const CURSOR: usize = 2;
        let mut drawn: BTreeMap<char, BTreeMap<Glyph, usize>> = BTreeMap::new();
        for (row, line) in lines.iter().enumerate() {
            for (column, character) in line.chars().enumerate() {
                let glyph = self.glyph(row, column).with_context(|| {
                    format!(
                        "line {row}, column {column} is outside of {} x {}",
                        self.width, self.height
                    )
                })?;
                *drawn.entry(character).or_default().entry(glyph).or_default() += 1;
            }
        }
        let mut wrong = 0;
        let mut usual: BTreeMap<Glyph, char> = BTreeMap::new();
        for (&character, glyphs) in &drawn {
            let Some((&glyph, &count)) = glyphs.iter().max_by_key(|(_, count)| **count) else {
                continue;
            };
            wrong += glyphs.values().sum::<usize>() - count;
            let empty = glyph == [0; CELL.1];
            ensure!(empty == (character == ' '), "{character:?} is drawn as {glyph:x?}");
            if let Some(other) = usual.insert(glyph, character) {
                ensure!(false, "{character:?} looks like {other:?}");
            }
        }
        ensure!(wrong <= CURSOR, "{wrong} characters look unlike others of their kind");
        Ok(())
    }

    fn glyph(&self, row: usize, column: usize) -> Option<Glyph> {
        let mut glyph = [0; CELL.1];
        for (line, byte) in glyph.iter_mut().enumerate() {
            let area = Area {
                left: column * CELL.0,
                top: row * CELL.1 + line,
                width: CELL.0,
                height: 1,
            };
            let lit = self.line(area.top, area)?;
            *byte = lit.iter().fold(0, |byte, pixel| byte << 1 | u8::from(*pixel != [0; 3]));
        }
        Some(glyph)
    }
}

/// Whether two colours look the same. Pictures with a palette have colours near those that were shown.
fn alike(ours: &[u8; 3], theirs: &[u8; 3]) -> bool {
    const NEAR: u8 = 24;
    ours.iter()
        .zip(theirs)
        .all(|(ours, theirs)| ours.abs_diff(*theirs) <= NEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A screen on which each character is drawn as its code.
    fn screen(lines: &[&str]) -> Picture {
        let (width, height) = (8 * lines[0].len(), 16 * lines.len());
        let lit = |x: usize, y: usize| {
            let code = lines[y / 16].as_bytes()[x / 8];
            code != b' ' && code >> (7 - x % 8) & 1 != 0
        };
        let pixels = (0..width * height).map(|at| [if lit(at % width, at / width) { 170 } else { 0 }; 3]);
        Picture {
            width,
            height,
            pixels: pixels.collect(),
        }
    }

    #[test]
    fn shows_tells_a_screen_from_others() {
        let text = ["oxbow login: ", "Debian  oxbow"];
        let picture = screen(&text);
        picture.shows(&text).unwrap();
        assert!(picture.shows(&["oxbow logjn: ", "Debiin  oxbow"]).is_err());
        assert!(picture.shows(&["             ", "             "]).is_err());
        assert!(picture.shows(&["oxbow login: and more"]).is_err());
        assert!(screen(&["aaaaaaaaaa"]).shows(&["abcdefghij"]).is_err());
    }

    #[test]
    fn likeness_counts_the_pixels_of_an_area() {
        let (ours, theirs) = (screen(&["ab", "cd"]), screen(&["ab", "c "]));
        let area = |left, top, width, height| Area {
            left,
            top,
            width,
            height,
        };
        assert_eq!(ours.likeness(&theirs, area(0, 0, 16, 16)).unwrap(), 1000);
        // Three of eight bits of "d".
        assert_eq!(ours.likeness(&theirs, area(8, 16, 8, 16)).unwrap(), 625);
        assert!(ours.likeness(&theirs, area(9, 16, 8, 16)).is_err());
        assert!(ours.likeness(&theirs, area(0, 17, 8, 16)).is_err());
    }
}
