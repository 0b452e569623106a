//! Characters as the VGA draws them: two fonts in plane 2, attributes, blinking, underline, the ninth dot, the cursor.

use super::Line;
use super::planes;
use super::planes::Planes;
use crate::vga::Regs;

/// Where fonts lie in plane 2, by number.
const FONTS: [u32; 8] = [0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x6000, 0xA000, 0xE000];
/// Rows that a font has for each character.
const FONT_ROWS: u32 = 32;
/// Frames that the cursor is shown and hidden, and that blinking characters are.
const CURSOR_FRAMES: u64 = 8;
const BLINK_FRAMES: u64 = 16;

/// What is the same for all characters of a frame.
pub(super) struct Text<'a> {
    regs: &'a Regs,
    palette: [u32; 16],
    fonts: [u32; 2],
    cursor_shown: bool,
    blink_shown: bool,
}

impl<'a> Text<'a> {
    /// Characters in frame number `frame`.
    pub(super) fn new(regs: &'a Regs, frame: u64) -> Self {
        let font = |map: u8| FONTS.get(usize::from(map)).copied().unwrap_or(0);
        Self {
            regs,
            palette: planes::palette(regs, false),
            fonts: regs.char_maps().maps().map(font),
            cursor_shown: (frame / CURSOR_FRAMES).is_multiple_of(2),
            blink_shown: (frame / BLINK_FRAMES).is_multiple_of(2),
        }
    }

    /// A line of dots through the characters, with one character more for panning.
    pub(super) fn line(&self, planes: &Planes<'_>, line: &Line, dots: &mut Vec<u32>) {
        let nine = !self.regs.clocking().eight_dots();
        for column in 0..=self.regs.columns() {
            let counter = line.counter.wrapping_add(column);
            let (character, attribute) = planes.cell(counter, line.row);
            let (foreground, background, hidden) = self.colours(attribute);
            let mut glyph = if hidden {
                0
            } else {
                self.glyph(planes, character, attribute, line.row)
            };
            let mut ninth = self.ninth(character, glyph);
            if self.is_underlined(attribute, line.row) && !hidden || self.is_cursor(counter, line.row) {
                (glyph, ninth) = (0xFF, true);
            }
            let colour = |on| if on { foreground } else { background };
            dots.extend((0..8).rev().map(|bit| colour(glyph >> bit & 1 != 0)));
            if nine {
                dots.push(colour(ninth));
            }
        }
    }

    fn glyph(&self, planes: &Planes<'_>, character: u8, attribute: u8, row: u8) -> u8 {
        let [plain, bright] = self.fonts;
        let font = if attribute & 0x08 == 0 { plain } else { bright };
        planes.font(font + u32::from(character) * FONT_ROWS + u32::from(row))
    }

    /// The dot that a font does not have.
    fn ninth(&self, character: u8, glyph: u8) -> bool {
        self.regs.attr_mode().line_graphics() && (0xC0..=0xDF).contains(&character) && glyph & 1 != 0
    }

    /// Foreground, background, and whether the character is in the dark half of its blinking.
    fn colours(&self, attribute: u8) -> (u32, u32, bool) {
        let blink = self.regs.attr_mode().blink();
        let background = if blink { attribute >> 4 & 7 } else { attribute >> 4 };
        let colour = |pixel: u8| self.palette.get(usize::from(pixel)).copied().unwrap_or(0);
        let hidden = blink && attribute & 0x80 != 0 && !self.blink_shown;
        (colour(attribute & 15), colour(background), hidden)
    }

    fn is_underlined(&self, attribute: u8, row: u8) -> bool {
        self.regs.attr_mode().mono() && attribute & 0x07 == 1 && row == self.regs.underline().row()
    }

    fn is_cursor(&self, counter: u32, row: u8) -> bool {
        let start = self.regs.cursor_start();
        self.cursor_shown
            && !start.off()
            && counter & 0xFFFF == u32::from(self.regs.cursor_location())
            && (start.row()..=self.regs.cursor_end()).contains(&row)
    }
}
