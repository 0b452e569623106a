//! What a display adapter shows, as a value: its registers at one instant and a handle on its video memory.
//!
//! Sizes are those of the picture on a monitor, in dots: a mode of 320 by 200 pixels has 640 by 400. Text is 720 by 400.
//! The border is not part of the picture.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Video Subsystem".

use std::sync::Arc;

use device_model::VmTime;
use guest_memory::MemoryRegion;

use crate::Surface;
use crate::lanes::index;
use crate::vga::Dispi;
use crate::vga::Regs;
use crate::vga::Timing;

mod linear;
mod planes;
mod text;

use self::planes::Planes;

/// The kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the screen is off, or no mode is set.
    Blank,
    /// Characters.
    Text,
    /// Pixels of one, two or four bits in planes.
    Planar,
    /// Pixels of eight bits, by the VGA's own registers.
    Chained,
    /// A linear mode of the Bochs interface with this many bits.
    Linear(u16),
    /// A planar mode of the Bochs interface.
    LinearPlanar,
}

impl Mode {
    /// A word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Text => "text",
            Self::Planar => "planar",
            Self::Chained => "256 colours",
            Self::Linear(8) => "linear 8",
            Self::Linear(15) => "linear 15",
            Self::Linear(16) => "linear 16",
            Self::Linear(24) => "linear 24",
            Self::Linear(_) => "linear 32",
            Self::LinearPlanar => "linear 4",
        }
    }
}

/// What is shown.
#[derive(Clone, Debug)]
pub struct ScanOut {
    regs: Regs,
    dispi: Dispi,
    vram: Arc<MemoryRegion>,
    now: VmTime,
}

impl ScanOut {
    pub(crate) fn new(regs: Regs, dispi: Dispi, vram: Arc<MemoryRegion>, now: VmTime) -> Self {
        Self { regs, dispi, vram, now }
    }

    /// The kind of picture.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let regs = &self.regs;
        if self.dispi.is_on() && self.dispi.bpp != 4 {
            return Mode::Linear(self.dispi.bpp);
        }
        let shown = regs.palette_shown() && !regs.clocking().screen_off();
        if self.dispi.is_on() && shown {
            return Mode::LinearPlanar;
        }
        if !shown || !regs.crtc_mode().enable() {
            return Mode::Blank;
        }
        if !regs.graphics_misc().graphics() {
            return Mode::Text;
        }
        if regs.graphics_mode().shift256() {
            return Mode::Chained;
        }
        Mode::Planar
    }

    /// Width and height in dots.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        if self.dispi.is_on() {
            return (self.dispi.xres.into(), self.dispi.yres.into());
        }
        let regs = &self.regs;
        if !regs.crtc_mode().enable() {
            // Before any mode is set.
            return (720, 400);
        }
        let width = (regs.columns() * self.dots()) << u32::from(regs.clocking().half_dot_clock());
        let height = regs.display_end() << u32::from(regs.crtc_mode().half_vertical());
        (width, height)
    }

    /// Dots of a character, before half dot clocks double them.
    fn dots(&self) -> u32 {
        // Pixels have no ninth dot.
        let nine = !self.regs.clocking().eight_dots() && !self.regs.graphics_misc().graphics();
        if nine { 9 } else { 8 }
    }

    /// Makes the picture.
    pub fn render(&self, surface: &mut Surface) {
        let (width, height) = self.size();
        surface.resize(width, height);
        match self.mode() {
            Mode::Blank => surface.pixels_mut().fill(0),
            Mode::Linear(_) => linear::render(&self.regs, &self.dispi, &self.vram, surface),
            Mode::LinearPlanar => linear::render_planar(&self.regs, &self.dispi, &self.vram, surface),
            mode => self.render_lines(mode, surface),
        }
    }

    fn render_lines(&self, mode: Mode, surface: &mut Surface) {
        let planes = Planes::new(&self.regs, &self.vram);
        let text = text::Text::new(&self.regs, Timing::of(&self.regs).frame(self.now));
        let scale = 1 << u32::from(self.regs.clocking().half_dot_clock());
        let mut dots = Vec::new();
        for (y, line) in (0..surface.height()).zip(Lines::new(&self.regs)) {
            dots.clear();
            match mode {
                Mode::Text => text.line(&planes, &line, &mut dots),
                Mode::Chained => planes.chained_line(&line, &mut dots),
                _ => planes.planar_line(&line, &mut dots),
            }
            let shown = dots.iter().skip(self.panned(&line));
            let doubled = shown.flat_map(|dot| std::iter::repeat_n(*dot, scale));
            for (to, from) in surface.row_mut(y).iter_mut().zip(doubled) {
                *to = from;
            }
        }
    }

    /// Dots that the line begins left of the picture.
    fn panned(&self, line: &Line) -> usize {
        let mode = self.regs.attr_mode();
        if line.below_split && mode.pan_above_split() {
            return 0;
        }
        let pan = u32::from(self.regs.attr[0x13]);
        index(match (self.dots(), pan) {
            (9, 8..) => 0,
            (9, pan) => pan + 1,
            // Two dots a pixel.
            _ if mode.eight_bit() => pan & 6,
            _ => pan & 7,
        })
    }

    /// The text of a text mode, a line for each row of characters without trailing blanks. None in other modes.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        if self.mode() != Mode::Text {
            return None;
        }
        let planes = Planes::new(&self.regs, &self.vram);
        let rows_of_cell = u32::from(self.regs.max_scan().rows()) + 1;
        let mut screen = String::new();
        let (_, height) = self.size();
        let cells = (0..height)
            .zip(Lines::new(&self.regs))
            .filter(|(_, line)| line.is_first());
        let rows = (height / rows_of_cell).max(1) >> u32::from(self.regs.max_scan().double());
        for (_, line) in cells.take(index(rows.max(1))) {
            let row: String = planes.characters(&line, self.regs.columns()).collect();
            screen.push_str(row.trim_end());
            screen.push('\n');
        }
        Some(screen)
    }
}

/// A line of the picture as the CRT controller counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    /// The counter at the line's first character.
    counter: u32,
    /// Row within the characters.
    row: u8,
    /// The first time that this row is shown: with double scan it comes twice.
    first: bool,
    below_split: bool,
}

impl Line {
    /// Whether a row of characters begins here.
    fn is_first(&self) -> bool {
        self.row == 0 && self.first
    }
}

/// The lines of a frame.
struct Lines<'a> {
    regs: &'a Regs,
    next: Line,
    /// The counter at the first character of this row of characters.
    base: u32,
    y: u32,
}

impl<'a> Lines<'a> {
    fn new(regs: &'a Regs) -> Self {
        let base = u32::from(regs.start_address()) + u32::from(regs.byte_panning());
        let next = Line {
            counter: base,
            row: regs.preset_row(),
            first: true,
            below_split: false,
        };
        Self { regs, next, base, y: 0 }
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    /// There is no end: lines go on as long as there is a picture.
    fn next(&mut self) -> Option<Line> {
        let line = self.next;
        let max = self.regs.max_scan();
        // With half vertical counts the line compare counts pairs of lines, too.
        let count = self.y >> u32::from(self.regs.crtc_mode().half_vertical());
        let next_count = (self.y + 1) >> u32::from(self.regs.crtc_mode().half_vertical());
        self.y += 1;
        if count == self.regs.line_compare() && next_count != count {
            self.base = 0;
            self.next = Line {
                counter: 0,
                row: 0,
                first: true,
                below_split: true,
            };
            return Some(line);
        }
        if max.double() && line.first {
            self.next.first = false;
            return Some(line);
        }
        self.next.first = true;
        if line.row == max.rows() {
            self.base = self.base.wrapping_add(self.regs.row_pitch());
            self.next.row = 0;
        } else {
            self.next.row = (line.row + 1) & 0x1F;
        }
        self.next.counter = self.base;
        Some(line)
    }
}
