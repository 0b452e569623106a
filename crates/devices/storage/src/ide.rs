//! The IDE function of Intel's PIIX3: two channels at their traditional ports, with bus-master DMA.
//!
//! Both channels work in legacy mode only, as in hardware, on ISA interrupts 14 and 15. Timing registers keep what is
//! written and change nothing, but for the bits that let a channel decode its ports.
//!
//! Spec: Intel 290550-002 (PIIX3) §2.3 (configuration registers), §2.6 (bus-master registers); SFF-8038i §2-3.

mod cable;
mod dma;

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
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
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::PciWindow;
use device_model::pci::command;
use guest_memory::GuestMemory;
use pci::Class;
use pci::Function;
use serde::Deserialize;
use serde::Serialize;

use crate::Drive;
use crate::Executor;
use crate::Tray;
use crate::Waker;
use crate::bytes;
use crate::work::Channel;
use cable::Cable;
use cable::CableV1;

/// Device identifier.
const DEVICE: u16 = 0x7010;
/// BMIBA, base of the bus-master registers.
const BMIBA: u16 = 0x20;
/// IDETIM, timing of each channel (RW): bit 15 lets it decode its ports.
pub const IDETIM: u16 = 0x40;
const DECODE: u16 = 1 << 15;
/// SIDETIM, timing of second drives (RW).
const SIDETIM: u16 = 0x44;

/// Ports of the channels' command blocks and control registers.
pub const PORTS: [(u64, u64); 2] = [(0x1F0, 0x3F6), (0x170, 0x376)];
/// ISA interrupts of the channels.
pub const IRQS: [u8; 2] = [14, 15];

const COMMAND_LEN: u64 = 8;
const BUS_MASTER: usize = 4;
const BUS_MASTER_LEN: u64 = 16;

const fn region(name: &'static str, len: u64, widths: Widths) -> Region {
    Region {
        name,
        space: Space::Pio,
        len,
        widths,
    }
}

const REGIONS: [Region; 5] = [
    region("primary", COMMAND_LEN, Widths::UP_TO_DWORD),
    region("primary_control", 1, Widths::BYTE),
    region("secondary", COMMAND_LEN, Widths::UP_TO_DWORD),
    region("secondary_control", 1, Widths::BYTE),
    region("bus_master", BUS_MASTER_LEN, Widths::UP_TO_DWORD),
];

/// The controller.
pub struct Ide {
    // State
    header: PciHeader,
    cables: [Cable; 2],
}

impl Ide {
    /// A controller whose channels interrupt through `irqs`, and have the drives of `drives`: device 0 and 1 of the
    /// primary channel, then of the secondary.
    pub fn new(
        irqs: [IrqLine; 2],
        drives: [Option<Drive>; 4],
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        let mut header = Function::new(0x8086, DEVICE, Class(0x01, 0x01, 0x80)).header();
        header.fix(device_model::pci::reg::STATUS, &0x0280u16.to_le_bytes());
        header.add_bar(Bar {
            at: BMIBA,
            kind: BarKind::Io,
            len: BUS_MASTER_LEN,
            region: BUS_MASTER,
        });
        header.allow(IDETIM, &[0xFF, 0xF3, 0xFF, 0xF3]);
        // DEVIATION: the bits are clear after a reset of the chip. OVMF relies on a virtual machine's channels to decode
        // without being told, and waits for minutes for the drives that it reads FFh of.
        let [low, high] = DECODE.to_le_bytes();
        header.fix(IDETIM, &[low, high, low, high]);
        header.allow(SIDETIM, &[0xFF]);
        let [one, two] = irqs;
        let [a, b, c, d] = drives;
        let cable = |irq, drives| {
            let work = Channel::new(Arc::clone(executor), Arc::clone(memory), Arc::clone(waker));
            Cable::new(irq, work, drives)
        };
        let cables = [cable(one, [a, b]), cable(two, [c, d])];
        Self { header, cables }
    }

    /// The tray of drive `index`, in the order in which the drives were given; none where there is no such drive.
    pub fn tray(&mut self, index: usize) -> Option<&mut dyn Tray> {
        self.cables.get_mut(index / 2)?.drive_mut(index % 2)?.tray()
    }

    fn decodes(&self, channel: usize) -> bool {
        let at = if channel == 0 { IDETIM } else { IDETIM + 2 };
        self.header.commanded(command::IO) && self.header.word(at) & DECODE != 0
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
    if at.offset >= region.len {
        return Err(IoError::NoRegister);
    }
    let by_block = at.region.is_multiple_of(2) && at.region != BUS_MASTER;
    let fits = match width {
        Width::Byte => true,
        Width::Qword => false,
        // Only the data register is wider than a byte.
        _ if by_block => at.offset == 0,
        _ => end <= region.len && region.widths.max >= width,
    };
    if fits { Ok(()) } else { Err(IoError::Width) }
}

impl Registers for Ide {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        if at.region == BUS_MASTER {
            let cable = self
                .cables
                .get(bytes::index(at.offset / 8))
                .ok_or(IoError::NoRegister)?;
            return Ok(cable.read_bus_master(at.offset % 8, width));
        }
        let cable = self.cables.get_mut(at.region / 2).ok_or(IoError::NoRegister)?;
        Ok(match (at.region % 2, at.offset) {
            (0, 0) => cable.read_data(width),
            (0, offset) => cable.read_register(bytes::low8(offset)).into(),
            _ => cable.alternate_status().into(),
        })
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        if at.region == BUS_MASTER {
            let cable = self
                .cables
                .get_mut(bytes::index(at.offset / 8))
                .ok_or(IoError::NoRegister)?;
            cable.write_bus_master(at.offset % 8, width, value);
            return Ok(());
        }
        let cable = self.cables.get_mut(at.region / 2).ok_or(IoError::NoRegister)?;
        match (at.region % 2, at.offset) {
            (0, 0) => cable.write_data(width, value),
            (0, offset) => cable.write_register(bytes::low8(offset), bytes::low8(value)),
            _ => cable.write_control(bytes::low8(value)),
        }
        Ok(())
    }
}

impl PciFunction for Ide {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        let master = self.header.commanded(command::BUS_MASTER);
        for cable in &mut self.cables {
            cable.set_master(master);
        }
    }

    fn windows(&self) -> Vec<PciWindow> {
        let mut windows = self.header.windows();
        for (channel, (block, control)) in PORTS.into_iter().enumerate() {
            if self.decodes(channel) {
                for (region, base) in [(channel * 2, block), (channel * 2 + 1, control)] {
                    let len = REGIONS.get(region).map_or(0, |region| region.len);
                    windows.push(PciWindow {
                        region,
                        space: Space::Pio,
                        base,
                        len,
                    });
                }
            }
        }
        windows
    }
}

impl Device for Ide {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        for cable in &mut self.cables {
            cable.reset();
        }
    }

    fn poll(&mut self, _now: VmTime) -> Option<VmTime> {
        for cable in &mut self.cables {
            cable.go_on();
        }
        None
    }

    fn quiesce(&mut self) -> bool {
        // Both are held, whether or not the first is done.
        let quiet = self.cables.each_mut().map(Cable::quiesce);
        quiet == [true, true]
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Ide {
    type State = IdeV1;

    fn save(&self) -> IdeV1 {
        let Self { header, cables } = self;
        IdeV1 {
            header: header.save(),
            cables: cables.each_ref().map(Cable::save),
        }
    }

    fn restore(&mut self, state: IdeV1) -> Result<(), RestoreError> {
        let IdeV1 { header, cables } = state;
        self.header.restore(&header)?;
        let master = self.header.commanded(command::BUS_MASTER);
        for (cable, state) in self.cables.iter_mut().zip(cables) {
            cable.restore(state)?;
            cable.set_master(master);
        }
        Ok(())
    }
}

impl Inspect for Ide {
    fn inspect(&self) -> Node {
        let [primary, secondary] = &self.cables;
        Node::tree()
            .with("primary", primary.inspect())
            .with("secondary", secondary.inspect())
    }
}

/// Saved state of [`Ide`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdeV1 {
    header: Vec<u8>,
    cables: [CableV1; 2],
}

impl Schema for IdeV1 {
    const NAME: &'static str = "ide";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
