//! Host bridge of Intel's 440FX (82441FX PMC): configuration address, shadow RAM, SMRAM.
//!
//! What is seen between A0000h and FFFFFh is [`crate::shadow`]'s to show. DRAM timing and row registers keep what is written.
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
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::MemoryRegion;
use serde::Deserialize;
use serde::Serialize;

use crate::Class;
use crate::Function;
use crate::root::ConfigLatch;
use crate::shadow;
use crate::shadow::Pages;
use crate::shadow::Shadow;

/// Device identifier.
const DEVICE: u16 = 0x1237;
/// First of the seven programmable attribute maps (RW).
pub const PAM: u16 = 0x59;
/// System management RAM control (RW).
const SMRAM: u16 = 0x72;

const REGIONS: [Region; 1] = [shadow::SEGMENTS];

/// The host bridge.
pub struct I440fx {
    // Wiring
    latch: Arc<ConfigLatch>,
    shadow: Shadow,
    // State
    header: PciHeader,
}

impl I440fx {
    /// A bridge that shows parts of `shadow`, of [`shadow::SHADOW_LEN`] bytes, and of `rom` in `memory`.
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
        // PMCCFG, DETURBO, DBC, DRAMC, DRAMT; DRAM row boundaries; the fixed hole and SMRAM are between them.
        for (at, len) in [(0x50, 9), (0x60, 8), (0x68, 1)] {
            header.allow(at, vec![0xff; len].as_slice());
        }
        header.fix(0x57, &[0x01]);
        let shadow = Shadow::new("i440fx", (PAM, SMRAM), memory, shadow, rom);
        shadow.make(&mut header);
        shadow.update(&header);
        Self { latch, shadow, header }
    }
}

impl Registers for I440fx {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        self.shadow.read(&self.header, at, width)
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        self.shadow.write(&self.header, at, width, value)
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
        let smram = self.shadow.smram(&self.header);
        self.header.write(at, width, value);
        self.shadow.keep_lock(&mut self.header, smram);
        self.shadow.update(&self.header);
    }
}

impl Device for I440fx {
    fn reset(&mut self, kind: Reset) {
        let maps = self.shadow.maps(&self.header);
        self.header.reset();
        if kind == Reset::Resume {
            self.shadow.keep_maps(&mut self.header, &maps);
        }
        self.latch.set(0);
        self.shadow.update(&self.header);
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for I440fx {
    type State = I440fxV1;

    fn save(&self) -> I440fxV1 {
        let Self { latch, shadow, header } = self;
        I440fxV1 {
            address: latch.get(),
            header: header.save(),
            shadow: shadow.save(),
        }
    }

    fn restore(&mut self, state: I440fxV1) -> Result<(), RestoreError> {
        let I440fxV1 {
            address,
            header,
            shadow,
        } = state;
        self.shadow.check(&shadow)?;
        self.header.restore(&header)?;
        self.shadow.keep_lock(&mut self.header, 0);
        self.latch.set(address);
        self.shadow.restore(&shadow);
        self.shadow.update(&self.header);
        Ok(())
    }
}

impl Inspect for I440fx {
    fn inspect(&self) -> Node {
        let tree = Node::tree().with("config_address", self.latch.get());
        self.shadow.inspect(&self.header, tree)
    }
}

/// Saved state of [`I440fx`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct I440fxV1 {
    address: u32,
    header: Vec<u8>,
    /// Pages that are not all zero.
    shadow: Pages,
}

impl Schema for I440fxV1 {
    const NAME: &'static str = "i440fx";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use guest_memory::Kind;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;
    use crate::shadow::SEGMENTS_BASE;
    use crate::shadow::SHADOW_LEN;

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
