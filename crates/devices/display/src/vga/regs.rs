//! The register files of a VGA: sequencer, graphics controller, CRT controller, attribute controller, DAC.
//!
//! Registers are kept as they were written, with what the chip ignores masked out; what they mean is in the types here.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Video Subsystem".

use bitfield_struct::bitfield;
use serde::Deserialize;
use serde::Serialize;

/// Miscellaneous output register (3C2h WO, 3CCh RO).
#[bitfield(u8)]
pub(crate) struct Misc {
    /// The CRT controller is at 3Dxh, not 3Bxh.
    pub(crate) colour: bool,
    /// The host reaches video memory.
    pub(crate) ram_enable: bool,
    /// 0: 25.175 MHz, 1: 28.322 MHz.
    #[bits(2)]
    pub(crate) clock: u8,
    __: bool,
    pub(crate) page: bool,
    pub(crate) hsync_negative: bool,
    pub(crate) vsync_negative: bool,
}

/// SR1, clocking mode.
#[bitfield(u8)]
pub(crate) struct Clocking {
    /// Characters are 8 dots wide, not 9.
    pub(crate) eight_dots: bool,
    __: bool,
    pub(crate) shift_load: bool,
    /// Each dot is two wide.
    pub(crate) half_dot_clock: bool,
    pub(crate) shift_four: bool,
    pub(crate) screen_off: bool,
    #[bits(2)]
    __: u8,
}

/// SR3, character map select.
#[bitfield(u8)]
pub(crate) struct CharMaps {
    #[bits(2)]
    b_low: u8,
    #[bits(2)]
    a_low: u8,
    b_high: bool,
    a_high: bool,
    #[bits(2)]
    __: u8,
}

impl CharMaps {
    /// Maps for characters whose attribute has bit 3 clear, set.
    pub(crate) fn maps(self) -> [u8; 2] {
        [
            self.b_low() | u8::from(self.b_high()) << 2,
            self.a_low() | u8::from(self.a_high()) << 2,
        ]
    }
}

/// SR4, memory mode.
#[bitfield(u8)]
pub(crate) struct MemoryMode {
    __: bool,
    /// More than 64 KiB.
    pub(crate) extended: bool,
    /// Addresses go to all planes; clear, even ones go to planes 0 and 2 and odd ones to planes 1 and 3.
    pub(crate) sequential: bool,
    /// The two low bits of an address choose the plane.
    pub(crate) chain4: bool,
    #[bits(4)]
    __: u8,
}

/// GR3, data rotate.
#[bitfield(u8)]
pub(crate) struct Rotate {
    #[bits(3)]
    pub(crate) count: u8,
    /// 0 replace, 1 AND, 2 OR, 3 XOR with the latches.
    #[bits(2)]
    pub(crate) function: u8,
    #[bits(3)]
    __: u8,
}

/// GR5, graphics mode.
#[bitfield(u8)]
pub(crate) struct GraphicsMode {
    #[bits(2)]
    pub(crate) write_mode: u8,
    __: bool,
    /// Reads compare colours.
    pub(crate) compare: bool,
    /// Reads take the plane from the address, as in [`MemoryMode::sequential`].
    pub(crate) odd_even: bool,
    /// Pixels of two bits, as the CGA has them.
    pub(crate) interleave: bool,
    /// Pixels of eight bits.
    pub(crate) shift256: bool,
    __: bool,
}

/// GR6, miscellaneous.
#[bitfield(u8)]
pub(crate) struct GraphicsMisc {
    pub(crate) graphics: bool,
    /// Address bit 0 chooses the plane and is no part of the place in it.
    pub(crate) chain_odd_even: bool,
    /// 0: A0000h-BFFFFh, 1: A0000h-AFFFFh, 2: B0000h-B7FFFh, 3: B8000h-BFFFFh.
    #[bits(2)]
    pub(crate) map: u8,
    #[bits(4)]
    __: u8,
}

/// AR10, attribute mode control.
#[bitfield(u8)]
pub(crate) struct AttrMode {
    pub(crate) graphics: bool,
    pub(crate) mono: bool,
    /// The ninth dot of line-drawing characters is their eighth.
    pub(crate) line_graphics: bool,
    /// Attribute bit 7 blinks; clear, it is background intensity.
    pub(crate) blink: bool,
    __: bool,
    /// No panning below the split.
    pub(crate) pan_above_split: bool,
    /// Two dots make one pixel of eight bits.
    pub(crate) eight_bit: bool,
    /// AR14 gives bits 4 and 5 of colours.
    pub(crate) p54_select: bool,
}

/// CR17, mode control.
#[bitfield(u8)]
pub(crate) struct CrtcMode {
    /// Clear: address bit 13 is bit 0 of the row scan counter.
    pub(crate) not_cga: bool,
    /// Clear: address bit 14 is bit 1 of the row scan counter.
    pub(crate) not_hercules: bool,
    /// Vertical counts are of two lines.
    pub(crate) half_vertical: bool,
    pub(crate) count_by_two: bool,
    __: bool,
    /// In word mode, address bit 0 is bit 15 of the counter, not 13.
    pub(crate) wrap: bool,
    /// Addresses are the counter as it is, not doubled.
    pub(crate) byte: bool,
    /// Clear: no retrace, nothing to see.
    pub(crate) enable: bool,
}

/// CR9, maximum scan line.
#[bitfield(u8)]
pub(crate) struct MaxScan {
    #[bits(5)]
    pub(crate) rows: u8,
    pub(crate) blank_start9: bool,
    pub(crate) line_compare9: bool,
    /// Each line is shown twice.
    pub(crate) double: bool,
}

/// CR7, overflow: the high bits of vertical counts.
#[bitfield(u8)]
pub(crate) struct Overflow {
    pub(crate) total8: bool,
    pub(crate) display_end8: bool,
    pub(crate) retrace_start8: bool,
    pub(crate) blank_start8: bool,
    pub(crate) line_compare8: bool,
    pub(crate) total9: bool,
    pub(crate) display_end9: bool,
    pub(crate) retrace_start9: bool,
}

/// CR11, vertical retrace end.
#[bitfield(u8)]
pub(crate) struct RetraceEnd {
    #[bits(4)]
    pub(crate) end: u8,
    #[bits(3)]
    __: u8,
    /// CR0 to CR7 are read-only, but for [`Overflow::line_compare8`].
    pub(crate) protect: bool,
}

/// CR0Ah, cursor start.
#[bitfield(u8)]
pub(crate) struct CursorStart {
    #[bits(5)]
    pub(crate) row: u8,
    pub(crate) off: bool,
    #[bits(2)]
    __: u8,
}

/// CR14h, underline location.
#[bitfield(u8)]
pub(crate) struct Underline {
    #[bits(5)]
    pub(crate) row: u8,
    pub(crate) count_by_four: bool,
    /// Addresses are four times the counter.
    pub(crate) dword: bool,
    __: bool,
}

/// What the sequencer, the graphics controller and the attribute controller keep of a write, by index.
const SEQ_MASKS: [u8; 8] = [0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0];
const GFX_MASKS: [u8; 16] = [
    0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF, 0, 0, 0, 0, 0, 0, 0,
];
const ATTR_MASKS: [u8; 5] = [0xEF, 0xFF, 0x3F, 0x0F, 0x0F];

/// The DAC: 256 colours, and where its ports stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dac {
    /// Red, green, blue; 256 of them.
    pub(crate) colours: Vec<[u8; 3]>,
    pub(crate) mask: u8,
    pub(crate) read_index: u8,
    pub(crate) write_index: u8,
    pub(crate) component: u8,
    /// The last index written was for reading.
    pub(crate) reading: bool,
    /// Components not yet complete.
    pub(crate) pending: [u8; 2],
}

impl Dac {
    fn new() -> Self {
        Self {
            colours: vec![[0; 3]; 256],
            mask: 0xFF,
            read_index: 0,
            write_index: 0,
            component: 0,
            reading: false,
            pending: [0; 2],
        }
    }

    pub(crate) fn set_read_index(&mut self, index: u8) {
        (self.read_index, self.component, self.reading) = (index, 0, true);
    }

    pub(crate) fn set_write_index(&mut self, index: u8) {
        (self.write_index, self.component, self.reading) = (index, 0, false);
    }

    pub(crate) fn read(&mut self) -> u8 {
        let colour = self.colour(self.read_index);
        let value = colour.get(usize::from(self.component)).copied().unwrap_or(0);
        self.component += 1;
        if self.component == 3 {
            self.component = 0;
            self.read_index = self.read_index.wrapping_add(1);
        }
        value
    }

    /// A colour changes when its third component has come.
    pub(crate) fn write(&mut self, value: u8, eight_bits: bool) {
        let value = if eight_bits { value } else { value & 0x3F };
        if let Some(pending) = self.pending.get_mut(usize::from(self.component)) {
            *pending = value;
            self.component += 1;
            return;
        }
        let [red, green] = self.pending;
        if let Some(colour) = self.colours.get_mut(usize::from(self.write_index)) {
            *colour = [red, green, value];
        }
        self.component = 0;
        self.write_index = self.write_index.wrapping_add(1);
    }

    pub(crate) fn colour(&self, index: u8) -> [u8; 3] {
        self.colours.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// A colour as `0x00RRGGBB`; components are of eight bits or of six.
    pub(crate) fn rgb(&self, index: u8, eight_bits: bool) -> u32 {
        let [red, green, blue] = self.colour(index & self.mask).map(|value| match eight_bits {
            true => value,
            false => (value & 0x3F) << 2 | (value & 0x3F) >> 4,
        });
        u32::from_be_bytes([0, red, green, blue])
    }

    fn is_valid(&self) -> bool {
        self.colours.len() == 256 && self.component < 3
    }
}

/// All registers with their indexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Regs {
    misc: u8,
    pub(crate) feature: u8,
    pub(crate) seq_index: u8,
    pub(crate) seq: [u8; 8],
    pub(crate) gfx_index: u8,
    pub(crate) gfx: [u8; 16],
    pub(crate) crtc_index: u8,
    pub(crate) crtc: [u8; 32],
    /// Index and palette address source, bit 5.
    pub(crate) attr_index: u8,
    /// The next write to 3C0h is data.
    pub(crate) attr_data: bool,
    pub(crate) attr: [u8; 32],
    pub(crate) dac: Dac,
}

impl Regs {
    pub(crate) fn new() -> Self {
        Self {
            misc: 0,
            feature: 0,
            seq_index: 0,
            seq: [0; 8],
            gfx_index: 0,
            gfx: [0; 16],
            crtc_index: 0,
            crtc: [0; 32],
            attr_index: 0,
            attr_data: false,
            attr: [0; 32],
            dac: Dac::new(),
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.dac.is_valid()
    }

    pub(crate) fn misc(&self) -> Misc {
        Misc::from_bits(self.misc)
    }

    pub(crate) fn set_misc(&mut self, value: u8) {
        self.misc = value & 0xEF;
    }

    pub(crate) fn clocking(&self) -> Clocking {
        Clocking::from_bits(self.seq[1])
    }

    pub(crate) fn map_mask(&self) -> u8 {
        self.seq[2] & 0x0F
    }

    pub(crate) fn char_maps(&self) -> CharMaps {
        CharMaps::from_bits(self.seq[3])
    }

    pub(crate) fn memory_mode(&self) -> MemoryMode {
        MemoryMode::from_bits(self.seq[4])
    }

    pub(crate) fn graphics_mode(&self) -> GraphicsMode {
        GraphicsMode::from_bits(self.gfx[5])
    }

    pub(crate) fn graphics_misc(&self) -> GraphicsMisc {
        GraphicsMisc::from_bits(self.gfx[6])
    }

    pub(crate) fn rotate(&self) -> Rotate {
        Rotate::from_bits(self.gfx[3])
    }

    pub(crate) fn attr_mode(&self) -> AttrMode {
        AttrMode::from_bits(self.attr[0x10])
    }

    pub(crate) fn crtc_mode(&self) -> CrtcMode {
        CrtcMode::from_bits(self.crtc[0x17])
    }

    pub(crate) fn max_scan(&self) -> MaxScan {
        MaxScan::from_bits(self.crtc[9])
    }

    pub(crate) fn overflow(&self) -> Overflow {
        Overflow::from_bits(self.crtc[7])
    }

    pub(crate) fn underline(&self) -> Underline {
        Underline::from_bits(self.crtc[0x14])
    }

    pub(crate) fn cursor_start(&self) -> CursorStart {
        CursorStart::from_bits(self.crtc[0x0A])
    }

    /// Last row of the cursor.
    pub(crate) fn cursor_end(&self) -> u8 {
        self.crtc[0x0B] & 0x1F
    }

    /// Where the cursor is, as a count of characters.
    pub(crate) fn cursor_location(&self) -> u16 {
        u16::from_be_bytes([self.crtc[0x0E], self.crtc[0x0F]])
    }

    pub(crate) fn start_address(&self) -> u16 {
        u16::from_be_bytes([self.crtc[0x0C], self.crtc[0x0D]])
    }

    /// Counts from one row of characters to the next.
    pub(crate) fn row_pitch(&self) -> u32 {
        u32::from(self.crtc[0x13]) * 2
    }

    /// Row of the characters that is shown first (CR8).
    pub(crate) fn preset_row(&self) -> u8 {
        self.crtc[8] & 0x1F
    }

    /// Bytes that the picture is panned by, besides its dots (CR8).
    pub(crate) fn byte_panning(&self) -> u8 {
        self.crtc[8] >> 5 & 3
    }

    pub(crate) fn vertical_total(&self) -> u32 {
        let high = self.overflow();
        count(self.crtc[6], high.total8(), high.total9()) + 2
    }

    pub(crate) fn display_end(&self) -> u32 {
        let high = self.overflow();
        count(self.crtc[0x12], high.display_end8(), high.display_end9()) + 1
    }

    pub(crate) fn retrace_start(&self) -> u32 {
        let high = self.overflow();
        count(self.crtc[0x10], high.retrace_start8(), high.retrace_start9())
    }

    pub(crate) fn line_compare(&self) -> u32 {
        count(
            self.crtc[0x18],
            self.overflow().line_compare8(),
            self.max_scan().line_compare9(),
        )
    }

    /// Characters in a line that are shown.
    pub(crate) fn columns(&self) -> u32 {
        u32::from(self.crtc[1]) + 1
    }

    pub(crate) fn write_seq(&mut self, value: u8) {
        let at = usize::from(self.seq_index & 7);
        if let (Some(reg), Some(mask)) = (self.seq.get_mut(at), SEQ_MASKS.get(at)) {
            *reg = value & mask;
        }
    }

    pub(crate) fn write_gfx(&mut self, value: u8) {
        let at = usize::from(self.gfx_index & 15);
        if let (Some(reg), Some(mask)) = (self.gfx.get_mut(at), GFX_MASKS.get(at)) {
            *reg = value & mask;
        }
    }

    pub(crate) fn write_crtc(&mut self, value: u8) {
        let at = self.crtc_index & 0x1F;
        let mut value = value;
        if at <= 7 && RetraceEnd::from_bits(self.crtc[0x11]).protect() {
            if at != 7 {
                return;
            }
            let free = Overflow::from_bits(value).line_compare8();
            value = self.overflow().with_line_compare8(free).into_bits();
        }
        if let Some(reg) = self.crtc.get_mut(usize::from(at)) {
            *reg = value;
        }
    }

    /// A write to 3C0h: index and data in turn.
    pub(crate) fn write_attr(&mut self, value: u8) {
        let data = self.attr_data;
        self.attr_data = !data;
        if !data {
            self.attr_index = value & 0x3F;
            return;
        }
        let at = usize::from(self.attr_index & 0x1F);
        let mask = match at.checked_sub(0x10) {
            None => 0x3F,
            Some(mode) => ATTR_MASKS.get(mode).copied().unwrap_or(0),
        };
        if let Some(reg) = self.attr.get_mut(at) {
            *reg = value & mask;
        }
    }

    pub(crate) fn read_seq(&self) -> u8 {
        self.seq.get(usize::from(self.seq_index & 7)).copied().unwrap_or(0)
    }

    pub(crate) fn read_gfx(&self) -> u8 {
        self.gfx.get(usize::from(self.gfx_index & 15)).copied().unwrap_or(0)
    }

    pub(crate) fn read_crtc(&self) -> u8 {
        self.crtc.get(usize::from(self.crtc_index & 0x1F)).copied().unwrap_or(0)
    }

    pub(crate) fn read_attr(&self) -> u8 {
        self.attr.get(usize::from(self.attr_index & 0x1F)).copied().unwrap_or(0)
    }

    /// Palette address source: the palette serves the picture, and not the host.
    pub(crate) fn palette_shown(&self) -> bool {
        self.attr_index & 0x20 != 0
    }

    /// The DAC's colour of a pixel of four bits.
    pub(crate) fn palette_index(&self, pixel: u8) -> u8 {
        let pixel = pixel & self.attr[0x12] & 0x0F;
        let colour = self.attr.get(usize::from(pixel)).copied().unwrap_or(0) & 0x3F;
        let select = self.attr[0x14];
        let low = match self.attr_mode().p54_select() {
            true => colour & 0x0F | (select & 3) << 4,
            false => colour,
        };
        low | (select & 0x0C) << 4
    }
}

fn count(low: u8, bit8: bool, bit9: bool) -> u32 {
    u32::from(low) | u32::from(bit8) << 8 | u32::from(bit9) << 9
}
