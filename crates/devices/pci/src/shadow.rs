//! What a host bridge shows between A0000h and FFFFFh: the firmware's ROM, the RAM that shadows it, system management RAM.
//!
//! Programmable attribute maps choose, for each of thirteen segments from C0000h, whether reads and writes go to RAM or to
//! the bus; on the bus there is the end of the firmware's ROM from E0000h, and nothing below. RAM behind the video memory is
//! seen while SMRAM is open. There is no system management mode, so SMRAM that is closed is not seen at all.
//!
//! Spec: Intel 290549-001 (82441FX) §3.2.13 (PAM), §3.2.18 (SMRAM); Intel 316966 (MCH) §"PAM0", §"SMRAM".

use std::sync::Arc;

use device_model::At;
use device_model::IoError;
use device_model::Node;
use device_model::PciHeader;
use device_model::Region;
use device_model::RestoreError;
use device_model::Space;
use device_model::Width;
use device_model::Widths;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use guest_memory::Piece;

/// Where the RAM begins that is shadowed: video memory first.
pub const SHADOW_BASE: u64 = 0xa_0000;
/// Bytes of it.
pub const SHADOW_LEN: u64 = 0x6_0000;
/// Attribute map registers.
pub const MAPS: u16 = 7;
/// Writable bits of one of them.
pub(crate) const MAP_BITS: u8 = 0x33;

/// SMRAM: locked, so that D_OPEN is zero for ever.
const D_LCK: u8 = 1 << 4;
/// SMRAM: seen outside of system management mode.
const D_OPEN: u8 = 1 << 6;
/// SMRAM's value after reset, and its writable bits.
pub(crate) const SMRAM_RESET: u8 = 0x02;
pub(crate) const SMRAM_BITS: u8 = 0x78;

/// First segment of the attribute maps.
pub(crate) const SEGMENTS_BASE: u64 = 0xc_0000;
const SEGMENTS_LEN: u64 = 0x4_0000;
/// What of the firmware's ROM is seen below 1 MiB.
const ROM_BASE: u64 = 0xe_0000;
const ROM_LEN: u64 = 0x2_0000;
const MIB: u64 = 0x10_0000;
/// Attribute map: reads, and writes, go to RAM.
const READ: u8 = 1;
const WRITE: u8 = 2;

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

/// The segments where they are not memory of one kind.
pub(crate) const SEGMENTS: Region = Region {
    name: "segments",
    space: Space::Mmio,
    len: SEGMENTS_LEN,
    widths: Widths::BYTE,
};

/// A segment: first address, length, register (from the first) and shift of its attributes.
struct Segment {
    base: u64,
    len: u64,
    register: u16,
    shift: u8,
}

/// The segments in the order of their registers: F0000h first, the others from C0000h.
fn segments() -> impl Iterator<Item = Segment> {
    let top = Segment {
        base: 0xf_0000,
        len: 0x1_0000,
        register: 0,
        shift: 4,
    };
    let others = (0u16..12).map(|index| Segment {
        base: SEGMENTS_BASE + u64::from(index) * 0x4000,
        len: 0x4000,
        register: 1 + index / 2,
        shift: if index % 2 == 0 { 0 } else { 4 },
    });
    std::iter::once(top).chain(others)
}

/// Pages of shadow RAM that are not all zero, with their numbers.
pub(crate) type Pages = Vec<(u8, Vec<u8>)>;

/// The shadowed memory of a host bridge, whose registers are in its header.
pub(crate) struct Shadow {
    // Wiring
    memory: Arc<GuestMemory>,
    /// RAM from [`SHADOW_BASE`] to 1 MiB.
    ram: Arc<MemoryRegion>,
    /// Firmware's ROM, whose end is seen below 1 MiB.
    rom: Option<Arc<MemoryRegion>>,
    // Configuration
    /// Name under which memory is mapped.
    owner: &'static str,
    /// Register of the first attribute map.
    pam: u16,
    /// Register of SMRAM.
    smram: u16,
}

impl Shadow {
    pub(crate) fn new(
        owner: &'static str,
        (pam, smram): (u16, u16),
        memory: Arc<GuestMemory>,
        ram: Arc<MemoryRegion>,
        rom: Option<Arc<MemoryRegion>>,
    ) -> Self {
        Self {
            memory,
            ram,
            rom,
            owner,
            pam,
            smram,
        }
    }

    /// Makes the registers.
    pub(crate) fn make(&self, header: &mut PciHeader) {
        for at in (self.pam..).take(usize::from(MAPS)) {
            header.allow(at, &[MAP_BITS]);
        }
        header.fix(self.smram, &[SMRAM_RESET]);
        header.allow(self.smram, &[SMRAM_BITS]);
    }

    fn attributes(&self, header: &PciHeader, segment: &Segment) -> u8 {
        header.byte(self.pam + segment.register) >> segment.shift & (READ | WRITE)
    }

    /// Shows what the registers say.
    pub(crate) fn update(&self, header: &PciHeader) {
        let mut pieces = Vec::new();
        for segment in segments() {
            let shadow = |kind| Piece {
                gpa: segment.base,
                len: segment.len,
                region: Arc::clone(&self.ram),
                offset: segment.base - SHADOW_BASE,
                kind,
            };
            match self.attributes(header, &segment) {
                0 => pieces.extend(self.rom_piece(&segment)),
                READ => pieces.push(shadow(Kind::Rom)),
                // Writes and reads go to different places: each of them comes to the bridge.
                WRITE => {}
                _ => pieces.push(shadow(Kind::Ram)),
            }
        }
        if header.byte(self.smram) & D_OPEN != 0 {
            pieces.push(Piece {
                gpa: SHADOW_BASE,
                len: SEGMENTS_BASE - SHADOW_BASE,
                region: Arc::clone(&self.ram),
                offset: 0,
                kind: Kind::Ram,
            });
        }
        self.memory.remap(self.owner, pieces);
    }

    /// The part of the ROM that is seen at a segment.
    fn rom_piece(&self, segment: &Segment) -> Option<Piece> {
        let rom = self.rom.as_ref()?;
        let offset = rom_offset(rom, segment.base)?;
        Some(Piece {
            gpa: segment.base,
            len: segment.len,
            region: Arc::clone(rom),
            offset,
            kind: Kind::Rom,
        })
    }

    /// The attributes at an address between C0000h and FFFFFh.
    fn attributes_at(&self, header: &PciHeader, gpa: u64) -> u8 {
        let holds = |s: &Segment| (s.base..s.base + s.len).contains(&gpa);
        segments()
            .find(holds)
            .map_or(0, |segment| self.attributes(header, &segment))
    }

    /// SMRAM before a write, for [`Self::keep_lock`].
    pub(crate) fn smram(&self, header: &PciHeader) -> u8 {
        header.byte(self.smram)
    }

    /// Once locked, SMRAM stays closed, and the register as it is.
    pub(crate) fn keep_lock(&self, header: &mut PciHeader, was: u8) {
        let now = header.byte(self.smram);
        if was & D_LCK != 0 {
            header.put(self.smram, &[was]);
        } else if now & D_LCK != 0 {
            header.put(self.smram, &[now & !D_OPEN]);
        }
    }

    /// The attribute maps, for a reset that keeps them.
    pub(crate) fn maps(&self, header: &PciHeader) -> Vec<u8> {
        (self.pam..).take(usize::from(MAPS)).map(|at| header.byte(at)).collect()
    }

    /// DEVIATION: hardware forgets the attribute maps in a sleep too. SeaBIOS looks into its shadow RAM to see that it resumes.
    pub(crate) fn keep_maps(&self, header: &mut PciHeader, maps: &[u8]) {
        header.put(self.pam, maps);
    }

    /// Reads a segment: only those without a piece come here.
    pub(crate) fn read(&self, header: &PciHeader, at: At, width: Width) -> Result<u64, IoError> {
        let gpa = place(at, width)?;
        let mut byte = [0xff];
        if self.attributes_at(header, gpa) & READ != 0 {
            let _ = self.ram.fetch(gpa - SHADOW_BASE, &mut byte);
        } else if let Some(rom) = &self.rom
            && let Some(offset) = rom_offset(rom, gpa)
        {
            let _ = rom.fetch(offset, &mut byte);
        }
        let [byte] = byte;
        Ok(u64::from(byte))
    }

    /// Writes a segment.
    pub(crate) fn write(&self, header: &PciHeader, at: At, width: Width, value: u64) -> Result<(), IoError> {
        let gpa = place(at, width)?;
        if self.attributes_at(header, gpa) & WRITE != 0 {
            let [byte, ..] = value.to_le_bytes();
            let _ = self.ram.load(gpa - SHADOW_BASE, &[byte]);
        }
        Ok(())
    }

    /// What the RAM holds.
    pub(crate) fn save(&self) -> Pages {
        let mut bytes = vec![0; usize::try_from(self.ram.len()).unwrap_or(0)];
        let _ = self.ram.fetch(0, &mut bytes);
        let chunks = (0u8..).zip(bytes.chunks(PAGE_BYTES));
        let used = chunks.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        used.map(|(number, page)| (number, page.to_vec())).collect()
    }

    /// Whether `pages` are pages of the RAM.
    pub(crate) fn check(&self, pages: &Pages) -> Result<(), RestoreError> {
        let last = self.ram.len() / PAGE;
        let bad = |(page, bytes): &(u8, Vec<u8>)| u64::from(*page) >= last || bytes.len() as u64 != PAGE;
        if pages.iter().any(bad) {
            let why = "a page of shadow RAM that does not exist";
            return Err(RestoreError::Invalid(why.to_owned()));
        }
        Ok(())
    }

    /// Takes back what was saved; [`Self::check`] has passed it.
    pub(crate) fn restore(&self, pages: &Pages) {
        let zeros = [0; PAGE_BYTES];
        for page in 0..self.ram.len() / PAGE {
            let saved = pages.iter().find(|(index, _)| u64::from(*index) == page);
            let bytes = saved.map_or(zeros.as_slice(), |(_, bytes)| bytes);
            let _ = self.ram.load(page * PAGE, bytes);
        }
    }

    /// Where each segment is read and written.
    pub(crate) fn inspect(&self, header: &PciHeader, tree: Node) -> Node {
        let names = ["bus", "read", "write", "ram"];
        let tree = tree.with("smram", header.byte(self.smram));
        segments().fold(tree, |tree, segment| {
            let name = names.get(usize::from(self.attributes(header, &segment))).copied();
            tree.with(&format!("{:05x}", segment.base), name.unwrap_or("?"))
        })
    }
}

/// Where in the ROM the byte is that is seen at `gpa` below 1 MiB.
fn rom_offset(rom: &MemoryRegion, gpa: u64) -> Option<u64> {
    let below_end = MIB
        .checked_sub(gpa)
        .filter(|_| gpa >= ROM_BASE && rom.len() >= ROM_LEN)?;
    rom.len().checked_sub(below_end)
}

fn place(at: At, width: Width) -> Result<u64, IoError> {
    match at {
        At { region: 0, offset } if offset < SEGMENTS_LEN && width == Width::Byte => Ok(SEGMENTS_BASE + offset),
        At { region: 0, offset } if offset < SEGMENTS_LEN => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}
