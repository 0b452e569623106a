//! Standard VGA with the Bochs VBE extensions, as the PCI device 1234:1111 has it.
//!
//! Text, CGA, planar and 256-colour modes with everything that the registers can make of them: panning, split screen, start
//! address, double scan, blinking, two fonts, all write and read modes. Linear modes to 2560 by 1600 by DISPI, and an EDID.
//! Not modelled: the vertical interrupt, the light pen, count-by-two and shift-load for planes of 16 KiB, interlace, the
//! border, and a hardware cursor, which neither the VGA nor DISPI has in graphics modes.
//!
//! Video memory is a region of RAM that the bus maps at BAR 0. It is saved with the machine's memory, not with the device's
//! state. BAR 2 has the registers as memory, the expansion ROM the firmware. The legacy ports and the window at A0000h are at
//! fixed addresses, and follow the command register like the others.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Video Subsystem"; QEMU
//! docs/specs/standard-vga.rst (the register window of BAR 2).

use std::sync::Arc;

use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::Node;
use device_model::PciFunction;
use device_model::PciHeader;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::Width;
use device_model::Widths;
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::PciWindow;
use device_model::pci::command;
use device_model::pci::reg;
use guest_memory::MemoryRegion;
use guest_memory::PAGE_SIZE;
use pci::Class;
use pci::Function;
use serde::Deserialize;
use serde::Serialize;

pub use self::dispi::MAX_HEIGHT;
pub use self::dispi::MAX_WIDTH;
pub use self::power_on::LinearMode;

pub(crate) use self::dispi::Dispi;
pub(crate) use self::regs::Regs;
pub(crate) use self::timing::Timing;

use self::dispi::Effect;
use crate::ScanOut;
use crate::lanes;

mod dispi;
mod edid;
mod power_on;
mod regs;
mod timing;
mod window;

/// First port of region [`MONO`].
pub const MONO_PORT: u64 = 0x3B0;
/// First port of region [`VGA`].
pub const VGA_PORT: u64 = 0x3C0;
/// First port of region [`COLOUR`].
pub const COLOUR_PORT: u64 = 0x3D0;
/// First port of region [`DISPI`].
pub const DISPI_PORT: u64 = 0x1CE;
/// First address of region [`WINDOW`].
pub const WINDOW_BASE: u64 = 0xA_0000;

/// CRT controller and status as on a monochrome adapter.
pub const MONO: usize = 0;
/// Sequencer, graphics and attribute controller, DAC.
pub const VGA: usize = 1;
/// CRT controller and status as on a colour adapter.
pub const COLOUR: usize = 2;
/// Index and data of the Bochs interface.
pub const DISPI: usize = 3;
/// The planes at A0000h.
pub const WINDOW: usize = 4;
/// All registers as memory: BAR 2.
pub const REGISTERS: usize = 5;
/// Video memory: BAR 0. The bus maps it; there are no registers.
const VRAM: usize = 6;
/// Firmware: the expansion ROM. As [`VRAM`].
const ROM: usize = 7;

const fn region(name: &'static str, space: Space, len: u64, widths: Widths) -> Region {
    Region {
        name,
        space,
        len,
        widths,
    }
}

const UP_TO_WORD: Widths = Widths {
    min: Width::Byte,
    max: Width::Word,
};

const REGIONS: [Region; 6] = [
    region("mono", Space::Pio, 12, Widths::BYTE),
    region("vga", Space::Pio, 16, Widths::BYTE),
    region("colour", Space::Pio, 16, Widths::BYTE),
    region("dispi", Space::Pio, 4, UP_TO_WORD),
    region("window", Space::Mmio, 0x2_0000, Widths::ANY),
    region("registers", Space::Mmio, 0x1000, UP_TO_WORD),
];

/// Least video memory: four planes of 64 KiB.
pub const MIN_VRAM: u64 = 256 << 10;
/// Most video memory.
pub const MAX_VRAM: u64 = 256 << 20;
/// Bytes of a bank, and of a plane without extensions.
const BANK: u32 = 0x1_0000;

/// The register window of BAR 2.
const MMIO_PORTS: u64 = 0x400;
const MMIO_DISPI: u64 = 0x500;
const MMIO_EXTENDED: u64 = 0x600;
/// Length of the extended registers, and "the framebuffer is little endian".
const EXTENDED: [u8; 8] = [8, 0, 0, 0, 0x1E, 0x1E, 0x1E, 0x1E];

/// What the adapter's owner chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VgaConfig {
    /// Resolution that the monitor prefers, in pixels.
    pub preferred: (u16, u16),
}

impl Default for VgaConfig {
    fn default() -> Self {
        Self { preferred: (1280, 800) }
    }
}

/// Video memory has a size that no adapter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes of video memory: there must be 256 KiB to 256 MiB, a power of two")]
pub struct VramError(u64);

/// What the adapter is on its bus.
fn header(vram: &MemoryRegion, rom: Option<&Arc<MemoryRegion>>) -> PciHeader {
    let mut function = Function::new(0x1234, 0x1111, Class(0x03, 0x00, 0x00));
    // The one with the register window.
    function.revision = 2;
    let mut header = function.header();
    let bar = |at, kind, len, region| Bar { at, kind, len, region };
    header.add_bar(bar(reg::BAR0, BarKind::Prefetch32, vram.len(), VRAM));
    header.add_bar(bar(reg::BAR0 + 8, BarKind::Memory32, 0x1000, REGISTERS));
    if let Some(rom) = rom {
        header.add_bar(bar(reg::ROM, BarKind::Rom, rom.len().next_power_of_two(), ROM));
    }
    header
}

/// A part of the window at A0000h that is plain memory as things stand, so that the board may map it as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAlias {
    /// Offset from A0000h.
    pub window: u64,
    /// Offset in video memory.
    pub vram: u64,
    /// Bytes.
    pub len: u64,
}

/// The adapter.
pub struct Vga {
    // Wiring
    clock: Arc<dyn Clock>,
    vram: Arc<MemoryRegion>,
    rom: Option<Arc<MemoryRegion>>,
    // Configuration
    edid: [u8; 128],
    // State
    header: PciHeader,
    regs: Regs,
    dispi: Dispi,
    /// A byte of each plane, plane 0 lowest.
    latches: u32,
    /// Vertical retraces that the guest has had a chance to see.
    seen_retraces: u64,
}

impl Vga {
    /// An adapter with `vram` as its video memory, and with its firmware in `rom`.
    ///
    /// # Errors
    /// [`VramError`] when video memory is too small, too large or odd.
    pub fn new(
        clock: Arc<dyn Clock>,
        vram: Arc<MemoryRegion>,
        rom: Option<Arc<MemoryRegion>>,
        config: &VgaConfig,
    ) -> Result<Self, VramError> {
        let len = vram.len();
        if !(MIN_VRAM..=MAX_VRAM).contains(&len) || !len.is_power_of_two() {
            return Err(VramError(len));
        }
        let (width, height) = config.preferred;
        Ok(Self {
            clock,
            header: header(&vram, rom.as_ref()),
            vram,
            rom,
            edid: edid::block(width.clamp(640, MAX_WIDTH), height.clamp(480, MAX_HEIGHT)),
            regs: Regs::new(),
            dispi: Dispi::new(),
            latches: 0,
            seen_retraces: 0,
        })
    }

    /// Video memory.
    #[must_use]
    pub fn vram(&self) -> &Arc<MemoryRegion> {
        &self.vram
    }

    /// What is shown now, to make a picture of without holding the device.
    #[must_use]
    pub fn scan_out(&self) -> ScanOut {
        ScanOut::new(
            self.regs.clone(),
            self.dispi.clone(),
            Arc::clone(&self.vram),
            self.clock.now(),
        )
    }

    /// The part of the window that is plain memory in the present mode.
    #[must_use]
    pub fn window_alias(&self) -> Option<WindowAlias> {
        let alias = |vram| WindowAlias {
            window: 0,
            vram,
            len: u64::from(BANK),
        };
        if self.is_linear() {
            return Some(alias(u64::from(self.dispi.bank) << 16));
        }
        let (regs, rotate) = (&self.regs, self.regs.rotate());
        let plain = regs.memory_mode().chain4()
            && regs.graphics_misc().map() == 1
            && regs.map_mask() == 0x0F
            && regs.graphics_mode().write_mode() == 0
            && (regs.gfx[1], regs.gfx[8]) == (0, 0xFF)
            && (rotate.count(), rotate.function()) == (0, 0)
            && regs.misc().ram_enable();
        (plain && !self.dispi.is_on()).then(|| alias(0))
    }

    /// A linear DISPI mode is on: the window shows a bank of video memory.
    fn is_linear(&self) -> bool {
        self.dispi.is_on() && self.dispi.bpp != 4
    }
}

impl Registers for Vga {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        match at.region {
            WINDOW => self.read_window(at.offset, width),
            DISPI => Ok(self.read_dispi(at.offset).into()),
            REGISTERS => Ok(self.read_registers(at.offset, width)),
            region => self.read_port(port(region, at.offset)).map(u64::from),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        match at.region {
            WINDOW => self.write_window(at.offset, width, value),
            DISPI => {
                self.write_dispi(at.offset, lanes::word(value));
                Ok(())
            }
            REGISTERS => {
                self.write_registers(at.offset, width, value);
                Ok(())
            }
            region => self.write_port(port(region, at.offset), lanes::byte(value)),
        }
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    let inside = at
        .offset
        .checked_add(width.bytes())
        .is_some_and(|end| end <= region.len);
    if !inside {
        return Err(IoError::NoRegister);
    }
    if width > region.widths.max {
        return Err(IoError::Width);
    }
    Ok(())
}

fn port(region: usize, offset: u64) -> u16 {
    let base = match region {
        MONO => MONO_PORT,
        VGA => VGA_PORT,
        _ => COLOUR_PORT,
    };
    lanes::word(base + offset)
}

impl Vga {
    /// Whether a port of the CRT controller is where the adapter listens now.
    fn listens(&self, port: u16) -> bool {
        let colour = match port {
            0x3B0..=0x3BB => false,
            0x3D0..=0x3DF => true,
            _ => return true,
        };
        self.regs.misc().colour() == colour
    }

    fn read_port(&mut self, port: u16) -> Result<u8, IoError> {
        if !self.listens(port) {
            return Err(IoError::NoRegister);
        }
        let regs = &mut self.regs;
        Ok(match port {
            0x3C0 => regs.attr_index,
            0x3C1 => regs.read_attr(),
            // Input status 0: the monitor answers to every level that is tried.
            0x3C2 => 0x10,
            0x3C4 => regs.seq_index,
            0x3C5 => regs.read_seq(),
            0x3C6 => regs.dac.mask,
            0x3C7 if regs.dac.reading => 3,
            0x3C7 => 0,
            0x3C8 => regs.dac.write_index,
            0x3C9 => regs.dac.read(),
            0x3CA => regs.feature,
            0x3CC => regs.misc().into_bits(),
            0x3CE => regs.gfx_index,
            0x3CF => regs.read_gfx(),
            0x3B4 | 0x3D4 => regs.crtc_index,
            0x3B5 | 0x3D5 => regs.read_crtc(),
            0x3BA | 0x3DA => self.input_status(),
            _ => return Err(IoError::NoRegister),
        })
    }

    fn write_port(&mut self, port: u16, value: u8) -> Result<(), IoError> {
        if !self.listens(port) {
            return Err(IoError::NoRegister);
        }
        let eight_bits = self.dispi.enable().dac8();
        let regs = &mut self.regs;
        match port {
            0x3C0 => regs.write_attr(value),
            0x3C2 => regs.set_misc(value),
            0x3C4 => regs.seq_index = value & 7,
            0x3C5 => regs.write_seq(value),
            0x3C6 => regs.dac.mask = value,
            0x3C7 => regs.dac.set_read_index(value),
            0x3C8 => regs.dac.set_write_index(value),
            0x3C9 => regs.dac.write(value, eight_bits),
            0x3CE => regs.gfx_index = value & 15,
            0x3CF => regs.write_gfx(value),
            0x3B4 | 0x3D4 => regs.crtc_index = value & 0x3F,
            0x3B5 | 0x3D5 if regs.crtc_index < 0x20 => regs.write_crtc(value),
            0x3BA | 0x3DA => regs.feature = value & 0x03,
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    /// Input status 1; reading it makes the next write to 3C0h an index.
    ///
    /// The vertical retrace shows in at least one read of each frame, however seldom the guest looks: on a slow processor a
    /// loop that waits for it could miss 64 microseconds for ever.
    fn input_status(&mut self) -> u8 {
        self.regs.attr_data = false;
        let (now, timing) = (self.clock.now(), Timing::of(&self.regs));
        let retraces = timing.retraces(now);
        let unseen = std::mem::replace(&mut self.seen_retraces, retraces) != retraces;
        let retrace = unseen || timing.in_vertical_retrace(now);
        let blank = retrace || timing.is_blank(now);
        u8::from(retrace) << 3 | u8::from(blank)
    }

    fn read_dispi(&self, offset: u64) -> u16 {
        match offset {
            0 => self.dispi.index,
            1 | 2 => self.dispi.read(self.dispi.index, self.vram.len()),
            _ => u16::MAX,
        }
    }

    fn write_dispi(&mut self, offset: u64, value: u16) {
        match offset {
            0 => self.dispi.index = value,
            1 | 2 => self.set_dispi(self.dispi.index, value),
            _ => {}
        }
    }

    fn set_dispi(&mut self, index: u16, value: u16) {
        let effect = self.dispi.write(index, value, self.vram.len());
        if let Effect::Clear(bytes) = effect {
            self.clear(bytes);
        }
    }

    /// Zeroes the first bytes of video memory. Pages that are zero stay untouched: the host need not provide them.
    fn clear(&self, bytes: u64) {
        let mut page = [0; lanes::index(PAGE_SIZE_32)];
        for at in (0..bytes.min(self.vram.len())).step_by(page.len()) {
            if self.vram.fetch(at, &mut page).is_some() && page.iter().any(|byte| *byte != 0) {
                page.fill(0);
                let _ = self.vram.load(at, &page);
            }
        }
    }

    fn read_registers(&mut self, offset: u64, width: Width) -> u64 {
        let byte = |this: &mut Self, offset: u64| match offset {
            0..MMIO_PORTS => usize::try_from(offset)
                .ok()
                .and_then(|at| this.edid.get(at).copied())
                .unwrap_or(0),
            MMIO_PORTS..=0x41F => {
                let port = lanes::word(VGA_PORT + offset - MMIO_PORTS);
                this.read_port(port).unwrap_or(0xFF)
            }
            MMIO_DISPI..=0x515 => {
                let index = lanes::word((offset - MMIO_DISPI) / 2);
                let [low, high] = this.dispi.read(index, this.vram.len()).to_le_bytes();
                if offset & 1 == 0 { low } else { high }
            }
            MMIO_EXTENDED..=0x607 => EXTENDED
                .get(lanes::index(lanes::dword(offset - MMIO_EXTENDED)))
                .copied()
                .unwrap_or(0),
            _ => 0,
        };
        let low = byte(self, offset);
        if width == Width::Byte {
            return low.into();
        }
        u16::from_le_bytes([low, byte(self, offset + 1)]).into()
    }

    fn write_registers(&mut self, offset: u64, width: Width, value: u64) {
        match offset {
            MMIO_PORTS..=0x41F => {
                for (at, byte) in (offset..offset + width.bytes()).zip(value.to_le_bytes()) {
                    // A port that does not exist drops the write.
                    let _ = self.write_port(lanes::word(VGA_PORT + at - MMIO_PORTS), byte);
                }
            }
            MMIO_DISPI..=0x515 if offset & 1 == 0 && width == Width::Word => {
                self.set_dispi(lanes::word((offset - MMIO_DISPI) / 2), lanes::word(value));
            }
            _ => {}
        }
    }

    fn read_window(&mut self, offset: u64, width: Width) -> Result<u64, IoError> {
        let mut bytes = [0; 8];
        let count = usize::from(width as u8);
        for (byte, at) in bytes.iter_mut().take(count).zip(offset..) {
            *byte = self.read_byte(lanes::dword(at)).ok_or(IoError::NoRegister)?;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn write_window(&mut self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        for (at, byte) in (offset..offset + width.bytes()).zip(value.to_le_bytes()) {
            self.write_byte(lanes::dword(at), byte).ok_or(IoError::NoRegister)?;
        }
        Ok(())
    }

    /// A byte of the window; none where the adapter does not answer.
    fn read_byte(&mut self, at: u32) -> Option<u8> {
        if self.is_linear() {
            let mut byte = [0];
            self.vram.fetch(self.banked(at)?, &mut byte)?;
            return Some(byte[0]);
        }
        let place = self.place(at)?;
        self.latches = window::load(&self.vram, place.offset);
        Some(window::read_value(&self.regs, self.latches, place.read_plane))
    }

    fn write_byte(&mut self, at: u32, value: u8) -> Option<()> {
        if self.is_linear() {
            return self.vram.load(self.banked(at)?, &[value]);
        }
        let place = self.place(at)?;
        let data = window::write_value(&self.regs, self.latches, value);
        let planes = place.planes & self.regs.map_mask();
        window::store(&self.vram, place.offset, planes, data);
        Some(())
    }

    fn banked(&self, at: u32) -> Option<u64> {
        (at < BANK).then(|| u64::from(self.dispi.bank) << 16 | u64::from(at))
    }

    fn place(&self, at: u32) -> Option<window::Place> {
        if !self.regs.misc().ram_enable() {
            return None;
        }
        if self.dispi.is_on() {
            // Planar modes of DISPI have planes as large as video memory allows.
            return window::place(&self.regs, at, self.dispi.bank.into());
        }
        let place = window::place(&self.regs, at, 0)?;
        Some(window::Place {
            offset: place.offset & (BANK - 1),
            ..place
        })
    }
}

/// [`PAGE_SIZE`] as an index.
const PAGE_SIZE_32: u32 = {
    assert!(PAGE_SIZE == 4096, "pages of the guest have 4 KiB");
    4096
};

impl PciFunction for Vga {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn windows(&self) -> Vec<PciWindow> {
        let mut windows = self.header.windows();
        let fixed = [
            (MONO, MONO_PORT),
            (VGA, VGA_PORT),
            (COLOUR, COLOUR_PORT),
            (DISPI, DISPI_PORT),
            (WINDOW, WINDOW_BASE),
        ];
        for (region, base) in fixed {
            let Some(Region { space, len, .. }) = REGIONS.get(region).copied() else {
                continue;
            };
            let needs = match space {
                Space::Pio => command::IO,
                Space::Mmio => command::MEMORY,
            };
            if self.header.commanded(needs) {
                windows.push(PciWindow {
                    region,
                    space,
                    base,
                    len,
                });
            }
        }
        windows
    }

    fn memory(&self, region: usize) -> Option<Arc<MemoryRegion>> {
        match region {
            VRAM => Some(Arc::clone(&self.vram)),
            ROM => self.rom.clone(),
            _ => None,
        }
    }
}

impl Device for Vga {
    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn reset(&mut self, kind: Reset) {
        self.header.reset();
        self.regs = Regs::new();
        self.dispi = Dispi::new();
        self.latches = 0;
        self.seen_retraces = 0;
        if kind == Reset::Cold {
            self.clear(u64::MAX);
        }
    }
}

impl Snapshot for Vga {
    type State = VgaV1;

    fn save(&self) -> VgaV1 {
        let Self {
            clock: _,
            vram: _,
            rom: _,
            edid: _,
            header,
            regs,
            dispi,
            latches,
            seen_retraces,
        } = self;
        VgaV1 {
            header: header.save(),
            regs: regs.clone(),
            dispi: dispi.clone(),
            latches: *latches,
            seen_retraces: *seen_retraces,
        }
    }

    fn restore(&mut self, state: VgaV1) -> Result<(), RestoreError> {
        let VgaV1 {
            header,
            regs,
            dispi,
            latches,
            seen_retraces,
        } = state;
        if !regs.is_valid() || !dispi.is_valid(self.vram.len()) {
            return Err(RestoreError::Invalid("display mode or palette".into()));
        }
        self.header.restore(&header)?;
        self.regs = regs;
        self.dispi = dispi;
        self.latches = latches;
        self.seen_retraces = seen_retraces;
        Ok(())
    }
}

impl Inspect for Vga {
    fn inspect(&self) -> Node {
        let scan = self.scan_out();
        let (width, height) = scan.size();
        let list = |registers: &[u8]| {
            let hex: Vec<String> = registers.iter().map(|value| format!("{value:02x}")).collect();
            hex.join(" ")
        };
        Node::tree()
            .with("mode", scan.mode().name())
            .with("width", width)
            .with("height", height)
            .with("vram", self.vram.len())
            .with("misc", self.regs.misc().into_bits())
            .with("seq", list(&self.regs.seq[..5]))
            .with("gfx", list(&self.regs.gfx[..9]))
            .with("crtc", list(&self.regs.crtc[..0x19]))
            .with("attr", list(&self.regs.attr[..0x15]))
    }
}

/// Saved state of [`Vga`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VgaV1 {
    header: Vec<u8>,
    regs: Regs,
    dispi: Dispi,
    latches: u32,
    seen_retraces: u64,
}

impl Schema for VgaV1 {
    const NAME: &'static str = "vga";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
