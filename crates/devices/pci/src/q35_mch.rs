//! Host bridge of Intel's Q35 (82Q35 MCH): memory-mapped configuration space, shadow RAM, SMRAM.
//!
//! PCIEXBAR says where the configuration space of PCI Express is seen; it may be moved at any time. What is seen between
//! A0000h and FFFFFh is [`crate::shadow`]'s to show. There is no system management mode and no graphics of the chipset's own:
//! TSEG and stolen memory are registers that keep what is written, as are those of DRAM, and no memory is taken for them.
//!
//! Spec: Intel 316966 (MCH) §"Host Bridge/DRAM Controller (D0:F0)": PCIEXBAR, PAM0, LAC, SMRAM, ESMRAMC, TOM, TOUUD, GBSM, BGSM,
//! TSEGMB, TOLUD.

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
use crate::root::EcamWindow;
use crate::shadow;
use crate::shadow::Pages;
use crate::shadow::Shadow;

/// Device identifier.
const DEVICE: u16 = 0x29c0;
/// PCIEXBAR, base address of memory-mapped configuration space (RW): bit 0 enables it, bits 2-1 say how long it is.
pub const PCIEXBAR: u16 = 0x60;
const ENABLE: u64 = 1;
/// After reset: E000_0000h, disabled.
const PCIEXBAR_RESET: u64 = 0xe000_0000;
/// Address bits 35-26, length, enable.
const PCIEXBAR_BITS: u64 = 0xf_fc00_0007;
const MIB: u64 = 1 << 20;
/// Bytes by the length field; 3 is reserved.
const LENGTHS: [u64; 4] = [256 * MIB, 128 * MIB, 64 * MIB, 0];
/// First of the seven programmable attribute maps (RW).
pub const PAM: u16 = 0x90;
/// System management RAM control (RW).
const SMRAM: u16 = 0x9d;
/// ESMRAMC, extended system management RAM control (RW): the caching bits are always set.
const ESMRAMC: u16 = 0x9e;
const ESMRAMC_RESET: u8 = 0x38;
const ESMRAMC_BITS: u8 = 0x87;
/// Registers that keep what is written: offset, value after reset, writable bits.
#[rustfmt::skip]
const KEPT: [(u16, u64, u64); 13] = [
    (0x40, 0x0,    0xf_ffff_f001), // EPBAR, egress port registers
    (0x48, 0x0,    0xf_ffff_c001), // MCHBAR, the chipset's registers in memory
    (0x52, 0x30,   0x0002),        // GGC, graphics control: nothing is stolen
    (0x54, 0x3db,  0x0000),        // DEVEN, devices: none can be switched off
    (0x68, 0x0,    0xf_ffff_f001), // DMIBAR
    (0x97, 0x0,    0x83),          // LAC, legacy access
    (0xa0, 0x1,    0x03ff),        // TOM, top of memory
    (0xa2, 0x0,    0xffff),        // TOUUD, top of upper usable memory
    (0xa4, 0x0,    0xfff0_0000),   // GBSM, base of stolen memory
    (0xa8, 0x0,    0xfff0_0000),   // BGSM, base of stolen memory for the graphics table
    (0xac, 0x0,    0xfff0_0000),   // TSEGMB, base of TSEG
    (0xb0, 0x10,   0xfff0),        // TOLUD, top of low usable memory
    (0xdc, 0x0,    0xffff_ffff),   // SKPD, scratchpad
];

const REGIONS: [Region; 1] = [shadow::SEGMENTS];

/// The host bridge.
pub struct Q35Mch {
    // Wiring
    latch: Arc<ConfigLatch>,
    ecam: Arc<EcamWindow>,
    shadow: Shadow,
    // State
    header: PciHeader,
}

impl Q35Mch {
    /// A bridge that says where `ecam` is, and shows parts of `shadow`, of [`shadow::SHADOW_LEN`] bytes, and of `rom` in `memory`.
    pub fn new(
        (latch, ecam): (Arc<ConfigLatch>, Arc<EcamWindow>),
        memory: Arc<GuestMemory>,
        shadow: Arc<MemoryRegion>,
        rom: Option<Arc<MemoryRegion>>,
    ) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x06, 0x00, 0x00));
        function.revision = 2;
        let mut header = function.header();
        header.fix(device_model::pci::reg::COMMAND, &0x0006u16.to_le_bytes());
        header.fix(device_model::pci::reg::STATUS, &0x0080u16.to_le_bytes());
        for (at, value, writable) in KEPT {
            header.fix(at, &low_bytes(value));
            header.allow(at, &low_bytes(writable));
        }
        header.fix(PCIEXBAR, &PCIEXBAR_RESET.to_le_bytes());
        header.allow(PCIEXBAR, &PCIEXBAR_BITS.to_le_bytes());
        header.fix(ESMRAMC, &[ESMRAMC_RESET]);
        header.allow(ESMRAMC, &[ESMRAMC_BITS]);
        let shadow = Shadow::new("q35_mch", (PAM, SMRAM), memory, shadow, rom);
        shadow.make(&mut header);
        let this = Self {
            latch,
            ecam,
            shadow,
            header,
        };
        this.update();
        this
    }

    /// Where memory-mapped configuration space is, and how long.
    fn window(&self) -> Option<(u64, u64)> {
        let low = u64::from(self.header.dword(PCIEXBAR));
        let register = low | u64::from(self.header.dword(PCIEXBAR + 4)) << 32;
        let len = usize::try_from(register >> 1 & 3)
            .ok()
            .and_then(|code| LENGTHS.get(code));
        let len = len.copied().filter(|len| register & ENABLE != 0 && *len > 0)?;
        Some((register & PCIEXBAR_BITS & !(len - 1), len))
    }

    fn update(&self) {
        let (base, len) = self.window().unwrap_or_default();
        self.ecam.set(base, len);
        self.shadow.update(&self.header);
    }
}

/// The bytes of a number up to its last that is not zero.
fn low_bytes(value: u64) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.into_iter().take(used).collect()
}

impl Registers for Q35Mch {
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

impl PciFunction for Q35Mch {
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
        self.update();
    }
}

impl Device for Q35Mch {
    fn reset(&mut self, kind: Reset) {
        let maps = self.shadow.maps(&self.header);
        self.header.reset();
        if kind == Reset::Resume {
            self.shadow.keep_maps(&mut self.header, &maps);
        }
        self.latch.set(0);
        self.update();
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Q35Mch {
    type State = Q35MchV1;

    fn save(&self) -> Q35MchV1 {
        let Self {
            latch,
            ecam: _,
            shadow,
            header,
        } = self;
        Q35MchV1 {
            address: latch.get(),
            header: header.save(),
            shadow: shadow.save(),
        }
    }

    fn restore(&mut self, state: Q35MchV1) -> Result<(), RestoreError> {
        let Q35MchV1 {
            address,
            header,
            shadow,
        } = state;
        self.shadow.check(&shadow)?;
        self.header.restore(&header)?;
        self.shadow.keep_lock(&mut self.header, 0);
        self.latch.set(address);
        self.shadow.restore(&shadow);
        self.update();
        Ok(())
    }
}

impl Inspect for Q35Mch {
    fn inspect(&self) -> Node {
        let ecam = self.window().map_or(Node::from("off"), |(base, _)| Node::from(base));
        let tree = Node::tree()
            .with("config_address", self.latch.get())
            .with("ecam", ecam)
            .with("ecam_len", self.window().map_or(0, |(_, len)| len));
        self.shadow.inspect(&self.header, tree)
    }
}

/// Saved state of [`Q35Mch`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Q35MchV1 {
    address: u32,
    header: Vec<u8>,
    /// Pages that are not all zero.
    shadow: Pages,
}

impl Schema for Q35MchV1 {
    const NAME: &'static str = "q35_mch";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use guest_memory::Kind;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;
    use crate::shadow::SHADOW_LEN;

    fn make(ecam: &Arc<EcamWindow>) -> Q35Mch {
        let memory = Arc::new(GuestMemory::new());
        let shadow = Arc::new(MemoryRegion::new("shadow", Kind::Ram, SHADOW_LEN).unwrap());
        Q35Mch::new((Arc::default(), Arc::clone(ecam)), memory, shadow, None)
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(make(&Arc::default())));
    }

    #[test]
    fn configuration_space_is_where_pciexbar_says_and_as_long() {
        let ecam = Arc::<EcamWindow>::default();
        let mut chip = make(&ecam);
        assert_eq!(ecam.get(), None);
        for (register, place) in [
            (0xb000_0001, Some((0xb000_0000, 256 * MIB))),
            (0xb800_0001, Some((0xb000_0000, 256 * MIB))),
            (0xb800_0003, Some((0xb800_0000, 128 * MIB))),
            (0xec00_0005, Some((0xec00_0000, 64 * MIB))),
            (0xec00_0007, None),
            (0xec00_0004, None),
        ] {
            chip.config_write(PCIEXBAR, Width::Dword, register);
            assert_eq!(ecam.get(), place, "{register:#x}");
        }
        chip.config_write(PCIEXBAR, Width::Dword, 0xe000_0001);
        chip.config_write(PCIEXBAR + 4, Width::Dword, 0xffff_ffff);
        assert_eq!(ecam.get(), Some((0xf_e000_0000, 256 * MIB)));
        assert_eq!(ecam.offset(0xf_e010_0004), Some(0x10_0004));
        assert_eq!((ecam.offset(0xf_dfff_ffff), ecam.offset(0xf_f000_0000)), (None, None));
        chip.reset(Reset::Warm);
        assert_eq!(ecam.get(), None);
        assert_eq!(chip.config_read(PCIEXBAR, Width::Dword), 0xe000_0000);
    }

    #[test]
    fn attribute_maps_and_smram_are_at_their_places() {
        let mut chip = make(&Arc::default());
        chip.config_write(PAM, Width::Byte, 0x30);
        let tree = chip.inspect();
        assert_eq!(tree.at("f0000"), Some(&Node::from("ram")));
        chip.config_write(SMRAM, Width::Byte, 0x5a);
        chip.config_write(SMRAM, Width::Byte, 0x4a);
        assert_eq!(chip.config_read(SMRAM, Width::Byte), 0x1a, "locked");
        assert_eq!(chip.config_read(ESMRAMC, Width::Byte), 0x38);
    }
}
