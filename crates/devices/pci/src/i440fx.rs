//! Host bridge of Intel's 440FX (82441FX PMC): configuration address, shadow RAM, SMRAM.
//!
//! What is seen between A0000h and FFFFFh is decided here. Programmable attribute maps choose, for each of thirteen
//! segments from C0000h, whether reads and writes go to RAM or to the bus; on the bus there is the end of the firmware's
//! ROM from E0000h, and nothing below. RAM behind the video memory is seen while SMRAM is open. There is no system
//! management mode, so SMRAM that is closed is not seen at all. DRAM timing and row registers keep what is written.
//!
//! Spec: Intel 290549-001 (82441FX) §3.1 (CONFADD), §3.2.13 (PAM), §3.2.18 (SMRAM).

use std::sync::Arc;

use device_model::At;
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
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use guest_memory::Piece;
use serde::Deserialize;
use serde::Serialize;

use crate::Class;
use crate::Function;
use crate::root::ConfigLatch;

/// Device identifier.
const DEVICE: u16 = 0x1237;
/// First of the seven programmable attribute maps (RW).
pub const PAM: u16 = 0x59;
const MAPS: u16 = 7;
/// System management RAM control (RW).
const SMRAM: u16 = 0x72;
/// SMRAM: locked, so that D_OPEN is zero for ever.
const D_LCK: u8 = 1 << 4;
/// SMRAM: seen outside of system management mode.
const D_OPEN: u8 = 1 << 6;
const SMRAM_RESET: u8 = 0x02;
const SMRAM_BITS: u8 = 0x78;

/// Name under which memory is mapped.
const OWNER: &str = "i440fx";
/// Where the RAM begins that is shadowed: video memory first.
pub const SHADOW_BASE: u64 = 0xa_0000;
/// Bytes of it.
pub const SHADOW_LEN: u64 = 0x6_0000;
/// First segment of the attribute maps.
const SEGMENTS_BASE: u64 = 0xc_0000;
const SEGMENTS_LEN: u64 = 0x4_0000;
/// What of the firmware's ROM is seen below 1 MiB.
const ROM_BASE: u64 = 0xe_0000;
const ROM_LEN: u64 = 0x2_0000;
const MIB: u64 = 0x10_0000;
/// Attribute map: reads, and writes, go to RAM.
const READ: u8 = 1;
const WRITE: u8 = 2;

const REGIONS: [Region; 1] = [Region {
    name: "segments",
    space: Space::Mmio,
    len: SEGMENTS_LEN,
    widths: Widths::BYTE,
}];

/// A segment: first address, length, register and shift of its attributes.
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
        register: PAM,
        shift: 4,
    };
    let others = (0u16..12).map(|index| Segment {
        base: SEGMENTS_BASE + u64::from(index) * 0x4000,
        len: 0x4000,
        register: PAM + 1 + index / 2,
        shift: if index % 2 == 0 { 0 } else { 4 },
    });
    std::iter::once(top).chain(others)
}

/// The host bridge.
pub struct I440fx {
    // Wiring
    latch: Arc<ConfigLatch>,
    memory: Arc<GuestMemory>,
    /// RAM from [`SHADOW_BASE`] to 1 MiB.
    shadow: Arc<MemoryRegion>,
    /// Firmware's ROM, whose end is seen below 1 MiB.
    rom: Option<Arc<MemoryRegion>>,
    // State
    header: PciHeader,
}

impl I440fx {
    /// A bridge that shows parts of `shadow`, of [`SHADOW_LEN`] bytes, and of `rom` in `memory`.
    pub fn new(
        latch: Arc<ConfigLatch>,
        memory: Arc<GuestMemory>,
        shadow: Arc<MemoryRegion>,
        rom: Option<Arc<MemoryRegion>>,
    ) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x06, 0x00, 0x00));
        function.revision = 2;
        let mut header = function.header();
        header.fix(device_model::pci::reg::COMMAND, &0x0006u16.to_le_bytes());
        header.fix(device_model::pci::reg::STATUS, &0x0280u16.to_le_bytes());
        for at in PAM..PAM + MAPS {
            header.allow(at, &[0x33]);
        }
        // PMCCFG, DETURBO, DBC, DRAMC, DRAMT; DRAM row boundaries; the fixed hole and SMRAM are between them.
        for (at, len) in [(0x50, 9), (0x60, 8), (0x68, 1)] {
            header.allow(at, vec![0xff; len].as_slice());
        }
        header.fix(0x57, &[0x01]);
        header.fix(SMRAM, &[SMRAM_RESET]);
        header.allow(SMRAM, &[SMRAM_BITS]);
        let this = Self {
            latch,
            memory,
            shadow,
            rom,
            header,
        };
        this.update_map();
        this
    }

    fn attributes(&self, segment: &Segment) -> u8 {
        self.header.byte(segment.register) >> segment.shift & (READ | WRITE)
    }

    /// Shows what the registers say.
    fn update_map(&self) {
        let mut pieces = Vec::new();
        for segment in segments() {
            let attributes = self.attributes(&segment);
            let shadow = |kind| Piece {
                gpa: segment.base,
                len: segment.len,
                region: Arc::clone(&self.shadow),
                offset: segment.base - SHADOW_BASE,
                kind,
            };
            match attributes {
                0 => pieces.extend(self.rom_piece(&segment)),
                READ => pieces.push(shadow(Kind::Rom)),
                // Writes and reads go to different places: each of them comes here.
                WRITE => {}
                _ => pieces.push(shadow(Kind::Ram)),
            }
        }
        if self.header.byte(SMRAM) & D_OPEN != 0 {
            pieces.push(Piece {
                gpa: SHADOW_BASE,
                len: SEGMENTS_BASE - SHADOW_BASE,
                region: Arc::clone(&self.shadow),
                offset: 0,
                kind: Kind::Ram,
            });
        }
        self.memory.remap(OWNER, pieces);
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
    fn attributes_at(&self, gpa: u64) -> u8 {
        let holds = |s: &Segment| (s.base..s.base + s.len).contains(&gpa);
        segments().find(holds).map_or(0, |segment| self.attributes(&segment))
    }

    /// Once locked, SMRAM stays closed, and the register as it is.
    fn keep_lock(&mut self, was: u8) {
        let now = self.header.byte(SMRAM);
        if was & D_LCK != 0 {
            self.header.put(SMRAM, &[was]);
        } else if now & D_LCK != 0 {
            self.header.put(SMRAM, &[now & !D_OPEN]);
        }
    }
}

/// Where in the ROM the byte is that is seen at `gpa` below 1 MiB.
fn rom_offset(rom: &MemoryRegion, gpa: u64) -> Option<u64> {
    let below_end = MIB
        .checked_sub(gpa)
        .filter(|_| gpa >= ROM_BASE && rom.len() >= ROM_LEN)?;
    rom.len().checked_sub(below_end)
}

impl Registers for I440fx {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    /// Only segments without a piece are read here.
    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        let gpa = place(at, width)?;
        let mut byte = [0xff];
        if self.attributes_at(gpa) & READ != 0 {
            let _ = self.shadow.fetch(gpa - SHADOW_BASE, &mut byte);
        } else if let Some(rom) = &self.rom
            && let Some(offset) = rom_offset(rom, gpa)
        {
            let _ = rom.fetch(offset, &mut byte);
        }
        let [byte] = byte;
        Ok(u64::from(byte))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        let gpa = place(at, width)?;
        if self.attributes_at(gpa) & WRITE != 0 {
            let [byte, ..] = value.to_le_bytes();
            let _ = self.shadow.load(gpa - SHADOW_BASE, &[byte]);
        }
        Ok(())
    }
}

fn place(at: At, width: Width) -> Result<u64, IoError> {
    match at {
        At { region: 0, offset } if offset < SEGMENTS_LEN && width == Width::Byte => Ok(SEGMENTS_BASE + offset),
        At { region: 0, offset } if offset < SEGMENTS_LEN => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl PciFunction for I440fx {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        let smram = self.header.byte(SMRAM);
        self.header.write(at, width, value);
        self.keep_lock(smram);
        self.update_map();
    }
}

impl Device for I440fx {
    fn reset(&mut self, kind: Reset) {
        let maps: Vec<u8> = (PAM..PAM + MAPS).map(|at| self.header.byte(at)).collect();
        self.header.reset();
        if kind == Reset::Resume {
            // DEVIATION: hardware forgets the attribute maps too. SeaBIOS looks into its shadow RAM to see that it resumes.
            self.header.put(PAM, &maps);
        }
        self.latch.set(0);
        self.update_map();
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for I440fx {
    type State = I440fxV1;

    fn save(&self) -> I440fxV1 {
        let Self {
            latch,
            memory: _,
            shadow,
            rom: _,
            header,
        } = self;
        let mut bytes = vec![0; usize::try_from(shadow.len()).unwrap_or(0)];
        let _ = shadow.fetch(0, &mut bytes);
        I440fxV1 {
            address: latch.get(),
            header: header.save(),
            shadow: pages(&bytes),
        }
    }

    fn restore(&mut self, state: I440fxV1) -> Result<(), RestoreError> {
        let I440fxV1 {
            address,
            header,
            shadow,
        } = state;
        let invalid = || RestoreError::Invalid("a page of shadow RAM that does not exist".to_owned());
        let len = self.shadow.len() / PAGE;
        if shadow
            .iter()
            .any(|(page, bytes)| u64::from(*page) >= len || bytes.len() as u64 != PAGE)
        {
            return Err(invalid());
        }
        self.header.restore(&header)?;
        self.keep_lock(0);
        self.latch.set(address);
        let zeros = [0; PAGE_BYTES];
        for page in 0..len {
            let saved = shadow.iter().find(|(index, _)| u64::from(*index) == page);
            let bytes = saved.map_or(zeros.as_slice(), |(_, bytes)| bytes);
            let _ = self.shadow.load(page * PAGE, bytes);
        }
        self.update_map();
        Ok(())
    }
}

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

/// The pages that are not all zero, with their numbers.
fn pages(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let chunks = bytes.chunks(PAGE_BYTES);
    let used = (0u8..)
        .zip(chunks)
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    used.map(|(number, page)| (number, page.to_vec())).collect()
}

impl Inspect for I440fx {
    fn inspect(&self) -> Node {
        let names = ["bus", "read", "write", "ram"];
        let tree = Node::tree()
            .with("config_address", self.latch.get())
            .with("smram", self.header.byte(SMRAM));
        segments().fold(tree, |tree, segment| {
            let name = names.get(usize::from(self.attributes(&segment))).copied();
            tree.with(&format!("{:05x}", segment.base), name.unwrap_or("?"))
        })
    }
}

/// Saved state of [`I440fx`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct I440fxV1 {
    address: u32,
    header: Vec<u8>,
    /// Pages that are not all zero.
    shadow: Vec<(u8, Vec<u8>)>,
}

impl Schema for I440fxV1 {
    const NAME: &'static str = "i440fx";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    struct Bench {
        memory: Arc<GuestMemory>,
        chip: I440fx,
    }

    fn make() -> Bench {
        let memory = Arc::new(GuestMemory::new());
        let shadow = Arc::new(MemoryRegion::new("shadow", Kind::Ram, SHADOW_LEN).unwrap());
        let rom = Arc::new(MemoryRegion::new("bios", Kind::Rom, 0x4_0000).unwrap());
        rom.load(0x3_fff0, b"reset vector").unwrap();
        rom.load(0x2_0000, b"start of E0000h").unwrap();
        let chip = I440fx::new(Arc::default(), Arc::clone(&memory), shadow, Some(rom));
        Bench { memory, chip }
    }

    impl Bench {
        fn set(&mut self, at: u16, value: u32) {
            self.chip.config_write(at, Width::Byte, value);
        }

        fn byte(&self, gpa: u64) -> Option<u8> {
            self.memory.read_obj(gpa).ok()
        }
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(make().chip));
    }

    #[test]
    fn rom_is_seen_after_reset_and_ram_where_the_maps_say() {
        let mut bench = make();
        assert_eq!((bench.byte(0xf_fff0), bench.byte(0xe_0000)), (Some(b'r'), Some(b's')));
        assert_eq!(bench.byte(0xc_0000), None);
        bench.set(PAM, 0x30);
        assert_eq!(bench.byte(0xf_fff0), Some(0));
        bench.memory.write(0xf_fff0, b"R").unwrap();
        bench.set(PAM, 0x10);
        bench.memory.write(0xf_fff0, b"X").unwrap();
        assert_eq!(bench.byte(0xf_fff0), Some(b'R'), "writes go to the bus");
        assert!(matches!(bench.memory.page(0xf_f000).unwrap().kind, Kind::Rom));
        bench.set(PAM, 0);
        assert_eq!(bench.byte(0xf_fff0), Some(b'r'));
        bench.set(PAM + 1, 0x03);
        assert_eq!((bench.byte(0xc_0000), bench.byte(0xc_4000)), (Some(0), None));
        bench.set(PAM + 1, 0x30);
        assert_eq!((bench.byte(0xc_0000), bench.byte(0xc_4000)), (None, Some(0)));
        bench.chip.reset(Reset::Warm);
        assert_eq!(bench.byte(0xc_4000), None);
    }

    #[test]
    fn segment_that_reads_the_bus_and_writes_ram_copies_rom_onto_itself() {
        let mut bench = make();
        bench.set(PAM, 0x20);
        assert!(bench.memory.page(0xf_f000).is_none());
        let at = |gpa: u64| At {
            region: 0,
            offset: gpa - SEGMENTS_BASE,
        };
        for gpa in 0xf_fff0..0xf_fffc {
            let byte = bench.chip.read(at(gpa), Width::Byte).unwrap();
            bench.chip.write(at(gpa), Width::Byte, byte).unwrap();
        }
        bench.set(PAM, 0x10);
        assert_eq!(bench.memory.read_obj::<[u8; 12]>(0xf_fff0).unwrap(), *b"reset vector");
    }

    #[test]
    fn smram_opens_until_it_is_locked() {
        let mut bench = make();
        assert_eq!(bench.byte(0xa_0000), None);
        bench.set(SMRAM, 0x4a);
        assert_eq!(bench.byte(0xa_0000), Some(0));
        bench.set(SMRAM, 0x5a);
        assert_eq!(bench.byte(0xa_0000), None);
        bench.set(SMRAM, 0x4a);
        assert_eq!(bench.byte(0xa_0000), None, "locked");
        bench.chip.reset(Reset::Warm);
        bench.set(SMRAM, 0x4a);
        assert_eq!(bench.byte(0xa_0000), Some(0));
    }
}
