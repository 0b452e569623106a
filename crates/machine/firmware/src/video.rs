//! The screen that a kernel finds: the mode that `vga=` on its command line asks for, and what the zero page says of it.
//!
//! Modes are `normal`, and the VESA modes by their numbers plus 200h, as Linux counts them: 788 or 0x314 is 800 by 600 with 16
//! bits. Menus (`ask`) and text modes with more lines are taken as `normal`.
//!
//! Spec: Linux Documentation/admin-guide/svga.rst, Documentation/arch/x86/boot.rst ("Special Command Line Options") and
//! include/uapi/linux/screen_info.h; VESA BIOS Extension 3.0 (mode numbers); SeaBIOS vgasrc/bochsvga.c (those from 140h).

/// What the board's screen shows when the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Screen {
    /// Nothing that software could use.
    #[default]
    None,
    /// 80 by 25 characters at B8000h.
    Text,
    /// Pixels.
    Linear(Linear),
}

/// A linear framebuffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// First address.
    pub base: u32,
    /// Bytes of video memory.
    pub len: u64,
    /// The mode.
    pub mode: Mode,
}

/// Size and depth of a linear mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Pixels of a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
    /// Bits of a pixel: 8, 15, 16, 24 or 32.
    pub bits: u16,
}

/// VESA mode numbers.
#[rustfmt::skip]
const MODES: [(u16, u16, u16, u16); 28] = [
    (0x100,  640,  400,  8), (0x101,  640,  480,  8), (0x103,  800,  600,  8), (0x105, 1024,  768,  8),
    (0x107, 1280, 1024,  8), (0x10d,  320,  200, 15), (0x10e,  320,  200, 16), (0x10f,  320,  200, 24),
    (0x110,  640,  480, 15), (0x111,  640,  480, 16), (0x112,  640,  480, 24), (0x113,  800,  600, 15),
    (0x114,  800,  600, 16), (0x115,  800,  600, 24), (0x116, 1024,  768, 15), (0x117, 1024,  768, 16),
    (0x118, 1024,  768, 24), (0x119, 1280, 1024, 15), (0x11a, 1280, 1024, 16), (0x11b, 1280, 1024, 24),
    (0x140,  320,  200, 32), (0x141,  640,  400, 32), (0x142,  640,  480, 32), (0x143,  800,  600, 32),
    (0x144, 1024,  768, 32), (0x145, 1280, 1024, 32), (0x146,  320,  200,  8), (0x147, 1600, 1200, 32),
];
/// Linux's number of VESA mode 0.
const FIRST_VESA: u16 = 0x200;

/// The linear mode that a command line asks for; none for text.
///
/// # Errors
/// What `vga=` says, when there is no such mode.
pub fn wanted(cmdline: &str) -> Result<Option<Mode>, &str> {
    let mut words = cmdline.split_ascii_whitespace().rev();
    let value = match words.find_map(|word| word.strip_prefix("vga=")) {
        None | Some("normal" | "ask" | "ext") => return Ok(None),
        Some(value) => value,
    };
    let number = match value.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    };
    let number = number.and_then(|number| number.checked_sub(FIRST_VESA));
    let mode = MODES.iter().find(|(mode, ..)| number == Some(*mode));
    let (_, width, height, bits) = *mode.ok_or(value)?;
    Ok(Some(Mode { width, height, bits }))
}

/// Offsets in the zero page.
mod screen_info {
    pub(super) const MODE: usize = 0x06;
    pub(super) const COLS: usize = 0x07;
    pub(super) const EGA_BX: usize = 0x0a;
    pub(super) const LINES: usize = 0x0e;
    pub(super) const IS_VGA: usize = 0x0f;
    pub(super) const POINTS: usize = 0x10;
    pub(super) const LFB_WIDTH: usize = 0x12;
    pub(super) const LFB_HEIGHT: usize = 0x14;
    pub(super) const LFB_DEPTH: usize = 0x16;
    pub(super) const LFB_BASE: usize = 0x18;
    pub(super) const LFB_SIZE: usize = 0x1c;
    pub(super) const LFB_LINELENGTH: usize = 0x24;
    /// Size and position of red, green, blue and what is left, a byte each.
    pub(super) const COLOURS: usize = 0x26;
    pub(super) const PAGES: usize = 0x32;
    pub(super) const ATTRIBUTES: usize = 0x34;
}

/// The screen is a VGA in a text mode.
const VGA_TEXT: u8 = 1;
/// The screen is a VESA linear framebuffer.
const VESA_LINEAR: u8 = 0x23;
/// Columns, lines, and lines of a character.
const TEXT: (u8, u8, u16) = (80, 25, 16);
/// 256 KiB and colour, as interrupt 10h function 12h tells.
const EGA_256K: u16 = 3;
/// Mode attributes: supported, colour, graphics, linear framebuffer.
const LINEAR_ATTRIBUTES: u16 = 0x9b;

impl Screen {
    /// What the zero page says of it: values and where they go.
    pub(crate) fn fields(&self) -> Vec<(usize, Vec<u8>)> {
        use screen_info as at;
        let word = |value: u16| value.to_le_bytes().to_vec();
        let (columns, lines, points) = TEXT;
        match self {
            Self::None => Vec::new(),
            Self::Text => vec![
                (at::MODE, vec![3]),
                (at::COLS, vec![columns]),
                (at::EGA_BX, word(EGA_256K)),
                (at::LINES, vec![lines]),
                (at::IS_VGA, vec![VGA_TEXT]),
                (at::POINTS, word(points)),
            ],
            Self::Linear(Linear { base, len, mode }) => vec![
                (at::IS_VGA, vec![VESA_LINEAR]),
                (at::LFB_WIDTH, word(mode.width)),
                (at::LFB_HEIGHT, word(mode.height)),
                (at::LFB_DEPTH, word(mode.bits)),
                (at::LFB_BASE, base.to_le_bytes().to_vec()),
                (
                    at::LFB_SIZE,
                    u32::try_from(len >> 16).unwrap_or(u32::MAX).to_le_bytes().to_vec(),
                ),
                (at::LFB_LINELENGTH, word(mode.pitch())),
                (at::COLOURS, mode.colours().to_vec()),
                (at::PAGES, word(1)),
                (at::ATTRIBUTES, word(LINEAR_ATTRIBUTES)),
            ],
        }
    }
}

impl Mode {
    /// Bytes of a line.
    fn pitch(self) -> u16 {
        self.width * self.bits.div_ceil(8)
    }

    /// Size and position of red, green, blue and the rest.
    #[rustfmt::skip]
    fn colours(self) -> [u8; 8] {
        match self.bits {
            15 => [5, 10, 5, 5, 5, 0, 1, 15],
            16 => [5, 11, 6, 5, 5, 0, 0, 0],
            24 => [8, 16, 8, 8, 8, 0, 0, 0],
            32 => [8, 16, 8, 8, 8, 0, 8, 24],
            _ => [0; 8],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vga_parameter_names_modes_by_number() {
        let mode = |width, height, bits| Ok(Some(Mode { width, height, bits }));
        assert_eq!(wanted("quiet vga=788 splash"), mode(800, 600, 16));
        assert_eq!(wanted("vga=normal vga=0x318"), mode(1024, 768, 24));
        for text in ["", "quiet", "vga=788 vga=normal", "vga=ask", "xvga=788"] {
            assert_eq!(wanted(text), Ok(None), "{text}");
        }
        for value in ["1", "0x9999", "", "-1", "0x"] {
            assert_eq!(wanted(&format!("vga={value}")), Err(value));
        }
    }

    #[test]
    fn pixels_of_each_depth_fill_their_bits() {
        for (_, width, height, bits) in MODES {
            let mode = Mode { width, height, bits };
            let [red, _, green, _, blue, _, rest, _] = mode.colours();
            let sum = u16::from(red + green + blue + rest);
            assert_eq!(sum, if bits == 8 { 0 } else { bits.next_multiple_of(8) }, "{mode:?}");
            assert!(mode.pitch() >= width);
        }
    }
}
