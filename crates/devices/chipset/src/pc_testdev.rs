//! QEMU's `pc-testdev`: ports and memory by which kvm-unit-tests drive interrupt lines and exercise I/O.
//!
//! A 32-bit read-back port register, a page-flush port, one port per interrupt line, and 64 KiB of memory-mapped scratch
//! RAM. The flush port asks QEMU to unmap a page from the host's view for a moment; there is no such second view here, so
//! it takes its address and does nothing.
//!
//! Spec: QEMU hw/misc/pc-testdev.c; kvm-unit-tests lib/x86/asm/io.h, x86/ioapic.c, x86/eventinj.c.

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

/// Port of the read-back register.
pub const IOPORT_PORT: u64 = 0xE0;
/// Port of the page flush.
pub const FLUSH_PORT: u64 = 0xE4;
/// First of the interrupt line ports.
pub const IRQ_PORT: u64 = 0x2000;
/// Address of the scratch memory.
pub const IOMEM_ADDRESS: u64 = 0xFF00_0000;
/// Interrupt line ports.
pub const LINES: usize = 24;

const IOMEM_LEN: usize = 0x1_0000;
const BLOCK: usize = 256;

const IOPORT: usize = 0;
const FLUSH: usize = 1;
const IRQ: usize = 2;
const IOMEM: usize = 3;

const REGIONS: [Region; 4] = [
    Region {
        name: "ioport",
        space: Space::Pio,
        len: 4,
        widths: Widths::UP_TO_DWORD,
    },
    Region {
        name: "flush",
        space: Space::Pio,
        len: 4,
        widths: Widths::UP_TO_DWORD,
    },
    Region {
        name: "irq",
        space: Space::Pio,
        len: LINES as u64,
        widths: Widths::UP_TO_DWORD,
    },
    Region {
        name: "iomem",
        space: Space::Mmio,
        len: IOMEM_LEN as u64,
        widths: Widths::ANY,
    },
];

/// The test device.
pub struct PcTestdev {
    // Wiring
    lines: Vec<IrqLine>,
    // State
    ioport: [u8; 4],
    levels: u32,
    iomem: Vec<u8>,
}

impl PcTestdev {
    /// A test device whose line port `n` drives `lines[n]`; ports past the end of `lines` drive nothing.
    pub fn new(lines: Vec<IrqLine>) -> Self {
        Self {
            lines,
            ioport: [0; 4],
            levels: 0,
            iomem: vec![0; IOMEM_LEN],
        }
    }

    fn drive(&mut self, pin: u64, level: bool) {
        let Some(line) = usize::try_from(pin).ok().and_then(|pin| self.lines.get(pin)) else {
            return;
        };
        line.set(level);
        let bit = 1u32.checked_shl(lanes::dword(pin)).unwrap_or(0);
        self.levels = if level { self.levels | bit } else { self.levels & !bit };
    }

    fn drive_all(&self) {
        for (pin, line) in (0u32..).zip(&self.lines) {
            line.set(self.levels.checked_shr(pin).unwrap_or(0) & 1 != 0);
        }
    }
}

/// The cells that an access covers, when all of them exist.
fn cells(memory: &mut [u8], offset: u64, width: Width) -> Result<&mut [u8], IoError> {
    let start = usize::try_from(offset).map_err(|_| IoError::NoRegister)?;
    let end = start.checked_add(usize::from(width as u8)).ok_or(IoError::NoRegister)?;
    memory.get_mut(start..end).ok_or(IoError::NoRegister)
}

fn load(memory: &mut [u8], offset: u64, width: Width) -> Result<u64, IoError> {
    let cells = cells(memory, offset, width)?;
    Ok(cells.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn store(memory: &mut [u8], offset: u64, width: Width, value: u64) -> Result<(), IoError> {
    let cells = cells(memory, offset, width)?;
    for (cell, byte) in cells.iter_mut().zip(value.to_le_bytes()) {
        *cell = byte;
    }
    Ok(())
}

impl Registers for PcTestdev {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        match at.region {
            IOPORT => load(&mut self.ioport, at.offset, width),
            FLUSH | IRQ => Ok(0),
            IOMEM => load(&mut self.iomem, at.offset, width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        match at.region {
            IOPORT => store(&mut self.ioport, at.offset, width, value),
            FLUSH => Ok(()),
            IRQ => {
                self.drive(at.offset, value != 0);
                Ok(())
            }
            IOMEM => store(&mut self.iomem, at.offset, width, value),
            _ => Err(IoError::NoRegister),
        }
    }
}

impl Device for PcTestdev {
    fn reset(&mut self, _kind: Reset) {
        self.ioport = [0; 4];
        self.levels = 0;
        self.iomem.fill(0);
        self.drive_all();
    }
}

impl Snapshot for PcTestdev {
    type State = PcTestdevV1;

    fn save(&self) -> PcTestdevV1 {
        let Self {
            lines: _,
            ioport,
            levels,
            iomem,
        } = self;
        PcTestdevV1 {
            ioport: *ioport,
            levels: *levels,
            iomem: used_blocks(iomem),
        }
    }

    fn restore(&mut self, state: PcTestdevV1) -> Result<(), RestoreError> {
        let PcTestdevV1 { ioport, levels, iomem } = state;
        let iomem = filled_blocks(&iomem)?;
        let known = 1u32
            .checked_shl(u32::try_from(self.lines.len()).unwrap_or(u32::MAX))
            .map_or(u32::MAX, |bit| bit - 1);
        if levels & !known != 0 {
            return Err(RestoreError::Invalid(
                "pc_testdev drives a line it does not have".into(),
            ));
        }
        self.ioport = ioport;
        self.levels = levels;
        self.iomem = iomem;
        self.drive_all();
        Ok(())
    }
}

fn used_blocks(iomem: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let numbered = (0u8..=u8::MAX).zip(iomem.chunks(BLOCK));
    let used = numbered.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    used.map(|(number, block)| (number, block.to_vec())).collect()
}

fn filled_blocks(blocks: &[(u8, Vec<u8>)]) -> Result<Vec<u8>, RestoreError> {
    let mut iomem = vec![0; IOMEM_LEN];
    for (number, block) in blocks {
        let target = iomem.chunks_mut(BLOCK).nth(usize::from(*number));
        match target {
            Some(target) if target.len() == block.len() => target.copy_from_slice(block),
            _ => return Err(RestoreError::Invalid("pc_testdev memory block of another size".into())),
        }
    }
    Ok(iomem)
}

impl Inspect for PcTestdev {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("ioport", u32::from_le_bytes(self.ioport))
            .with("levels", self.levels)
    }
}

/// Saved state of [`PcTestdev`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PcTestdevV1 {
    ioport: [u8; 4],
    levels: u32,
    /// Blocks of 256 bytes that are not all zero, by number.
    iomem: Vec<(u8, Vec<u8>)>,
}

impl Schema for PcTestdevV1 {
    const NAME: &'static str = "pc_testdev";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use device_model::TestClock;
    use proptest::prelude::*;
    use test_kit::contract;
    use test_kit::fuzz_registers;

    use super::*;

    fn at(region: usize, offset: u64) -> At {
        At { region, offset }
    }

    fn device() -> (PcTestdev, Vec<IrqLine>) {
        let lines: Vec<_> = (0..LINES).map(|_| IrqLine::detached()).collect();
        (PcTestdev::new(lines.clone()), lines)
    }

    #[test]
    fn ioport_merges_accesses_of_all_widths() {
        let (mut device, _) = device();
        device.write(at(IOPORT, 0), Width::Dword, 0x1122_3344).unwrap();
        device.write(at(IOPORT, 1), Width::Byte, 0xAA).unwrap();
        device.write(at(IOPORT, 2), Width::Word, 0xBBCC).unwrap();
        assert_eq!(device.read(at(IOPORT, 0), Width::Dword), Ok(0xBBCC_AA44));
        assert_eq!(device.read(at(IOPORT, 3), Width::Byte), Ok(0xBB));
        assert_eq!(device.read(at(IOPORT, 3), Width::Word), Err(IoError::NoRegister));
    }

    #[test]
    fn irq_port_drives_its_line_only() {
        let (mut device, lines) = device();
        device.write(at(IRQ, 5), Width::Dword, 0x100).unwrap();
        device.write(at(IRQ, 23), Width::Byte, 1).unwrap();
        let high: Vec<_> = (0..LINES).filter(|&pin| lines[pin].level()).collect();
        assert_eq!(high, [5, 23]);
        device.write(at(IRQ, 5), Width::Byte, 0).unwrap();
        assert!(!lines[5].level() && lines[23].level());
    }

    #[test]
    fn iomem_holds_what_was_written() {
        let (mut device, _) = device();
        device
            .write(at(IOMEM, 0xFFF8), Width::Qword, 0x0102_0304_0506_0708)
            .unwrap();
        assert_eq!(device.read(at(IOMEM, 0xFFFF), Width::Byte), Ok(1));
        assert_eq!(device.read(at(IOMEM, 0xFFFA), Width::Word), Ok(0x0506));
        assert_eq!(device.read(at(IOMEM, 0xFFFC), Width::Qword), Err(IoError::NoRegister));
    }

    #[test]
    fn restore_drives_the_lines_again() {
        let (mut first, _) = device();
        first.write(at(IRQ, 9), Width::Byte, 1).unwrap();
        let (mut second, lines) = device();
        second.restore(first.save()).unwrap();
        assert!(lines[9].level());
    }

    #[test]
    fn restore_brings_back_all_of_the_memory() {
        let (mut first, _) = device();
        for (offset, value) in [(0, 1), (0x8123, 2), (0xFFFF, 3)] {
            first.write(at(IOMEM, offset), Width::Byte, value).unwrap();
        }
        let (mut second, _) = device();
        second.write(at(IOMEM, 0x4000), Width::Byte, 9).unwrap();
        second.restore(first.save()).unwrap();
        assert!(first.iomem == second.iomem);
        let mut state = first.save();
        state.iomem[0].1.pop();
        assert!(second.restore(state).is_err());
    }

    fn boxed() -> Box<PcTestdev> {
        Box::new(device().0)
    }

    #[test]
    fn keeps_the_contract() {
        let clock = TestClock::new();
        contract(&clock, boxed);
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let clock = TestClock::new();
            fuzz_registers(&mut *boxed(), &clock, &bytes);
        }
    }
}
