//! The SMBus controller of Intel's ICH9, with nobody on its bus.
//!
//! Each transfer ends at once with a device error, and interrupts if it was asked to. The registers are in ports and in
//! memory, where the base addresses say. The slave side keeps what is written.
//!
//! Spec: Intel 316972 (ICH9) §"SMBus Controller Registers (D31:F3)", §5.21 (SMBus controller).

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
use device_model::Width;
use device_model::Widths;
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::PciWindow;
use device_model::pci::command;
use device_model::pci::status;
use serde::Deserialize;
use serde::Serialize;

use crate::Class;
use crate::Function;

/// Device identifier.
const DEVICE: u16 = 0x2930;
/// SMBMBAR, base address of the registers in memory.
const SMBMBAR: u16 = 0x10;
/// SMB_BASE, base address of the registers in ports.
pub const SMB_BASE: u16 = 0x20;
/// HOSTC, host configuration (RW): bit 0 lets the ports answer.
pub const HOSTC: u16 = 0x40;
const HST_EN: u8 = 1;

const LEN: usize = 32;
const MEMORY_LEN: u64 = 256;
const PORTS: usize = 0;
const MEMORY: usize = 1;
const REGIONS: [Region; 2] = [
    Region {
        name: "ports",
        space: Space::Pio,
        len: LEN as u64,
        widths: Widths::BYTE,
    },
    Region {
        name: "memory",
        space: Space::Mmio,
        len: MEMORY_LEN,
        widths: Widths::BYTE,
    },
];

/// Registers by offset.
mod reg {
    /// HST_STS, host status (RW1C).
    pub(super) const STATUS: usize = 0x00;
    /// HST_CNT, host control (RW).
    pub(super) const CONTROL: usize = 0x02;
    /// AUX_STS, auxiliary status (RW1C).
    pub(super) const AUX_STATUS: usize = 0x0c;
    /// SLV_STS, slave status (RW1C).
    pub(super) const SLAVE_STATUS: usize = 0x10;
}

/// Writable bits of the registers that keep what is written, and values after reset.
#[rustfmt::skip]
const WRITABLE: [u8; LEN] = [
    // HST_CNT's START and KILL read as zero; HST_CMD, XMIT_SLVA, HST_D0, HST_D1, HOST_BLOCK_DB
    0, 0, !(START | KILL), 0xff, 0xff, 0xff, 0xff, 0xff,
    // PEC, RCV_SLVA, SLV_DATA, AUX_STS, AUX_CTL, SMLINK_PIN_CTL, SMBUS_PIN_CTL
    0xff, 0x7f, 0, 0, 0, 0x03, 0x04, 0x04,
    // SLV_STS, SLV_CMD; what a slave was told
    0, 0x07, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
];
#[rustfmt::skip]
const RESET: [u8; LEN] = [
    0, 0, 0, 0, 0, 0, 0, 0,
    // The slave's address; the pins are high.
    0, 0x44, 0, 0, 0, 0, 0x07, 0x07,
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
];
/// HST_CNT: interrupts, the end of the transfer, its start.
const INTREN: u8 = 1 << 0;
const KILL: u8 = 1 << 1;
const START: u8 = 1 << 6;
/// HST_STS: nobody answered; it was ended; in use, which reading sets.
const DEV_ERR: u8 = 1 << 2;
const FAILED: u8 = 1 << 4;
const INUSE: u8 = 1 << 6;

/// The controller.
pub struct Ich9Smbus {
    // Wiring
    pin: IrqLine,
    // State
    header: PciHeader,
    registers: [u8; LEN],
}

impl Ich9Smbus {
    /// A controller that interrupts by `pin`.
    pub fn new(pin: IrqLine) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x0c, 0x05, 0x00));
        function.pin = 2;
        function.revision = 2;
        let mut header = function.header();
        header.fix(device_model::pci::reg::STATUS, &0x0280u16.to_le_bytes());
        let bar = |at, kind, len, region| Bar { at, kind, len, region };
        header.add_bar(bar(SMBMBAR, BarKind::Memory64, MEMORY_LEN, MEMORY));
        header.add_bar(bar(SMB_BASE, BarKind::Io, LEN as u64, PORTS));
        header.allow(HOSTC, &[0x0f]);
        Self {
            pin,
            header,
            registers: RESET,
        }
    }

    fn register(&self, at: usize) -> u8 {
        self.registers.get(at).copied().unwrap_or(0)
    }

    fn set(&mut self, at: usize, value: u8) {
        if let Some(register) = self.registers.get_mut(at) {
            *register = value;
        }
    }

    /// Drives the pin after a change.
    fn update(&mut self) {
        let asks = self.register(reg::STATUS) & (DEV_ERR | FAILED) != 0 && self.register(reg::CONTROL) & INTREN != 0;
        self.header.set_status(status::INTERRUPT, asks);
        self.pin.set(asks && !self.header.commanded(command::INTX_DISABLE));
    }

    fn control(&mut self, value: u8) {
        let ends = if value & KILL != 0 {
            FAILED
        } else if value & START != 0 {
            DEV_ERR
        } else {
            0
        };
        self.set(reg::STATUS, self.register(reg::STATUS) | ends);
    }
}

fn check(at: At, width: Width) -> Result<usize, IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    if at.offset >= region.len {
        return Err(IoError::NoRegister);
    }
    if width != Width::Byte {
        return Err(IoError::Width);
    }
    usize::try_from(at.offset).map_err(|_| IoError::NoRegister)
}

impl Registers for Ich9Smbus {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        let index = check(at, width)?;
        let value = self.register(index);
        if index == reg::STATUS {
            // A semaphore between drivers: whoever reads it clear has it.
            self.set(index, value | INUSE);
        }
        Ok(value.into())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        let index = check(at, width)?;
        let [byte, ..] = value.to_le_bytes();
        let old = self.register(index);
        match index {
            reg::STATUS | reg::AUX_STATUS | reg::SLAVE_STATUS => self.set(index, old & !byte),
            _ => {
                let writable = WRITABLE.get(index).copied().unwrap_or(0);
                self.set(index, old & !writable | byte & writable);
            }
        }
        if index == reg::CONTROL {
            self.control(byte);
        }
        self.update();
        Ok(())
    }
}

impl PciFunction for Ich9Smbus {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.update();
    }

    fn windows(&self) -> Vec<PciWindow> {
        let enabled = self.header.byte(HOSTC) & HST_EN != 0;
        let all = self.header.windows().into_iter();
        all.filter(|window| enabled || window.region != PORTS).collect()
    }
}

impl Device for Ich9Smbus {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        self.registers = RESET;
        self.update();
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Ich9Smbus {
    type State = Ich9SmbusV1;

    fn save(&self) -> Ich9SmbusV1 {
        let Self {
            pin: _,
            header,
            registers,
        } = self;
        Ich9SmbusV1 {
            header: header.save(),
            registers: *registers,
        }
    }

    fn restore(&mut self, state: Ich9SmbusV1) -> Result<(), RestoreError> {
        let Ich9SmbusV1 { header, registers } = state;
        self.header.restore(&header)?;
        self.registers = registers;
        self.update();
        Ok(())
    }
}

impl Inspect for Ich9Smbus {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("status", self.register(reg::STATUS))
            .with("control", self.register(reg::CONTROL))
    }
}

/// Saved state of [`Ich9Smbus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ich9SmbusV1 {
    header: Vec<u8>,
    registers: [u8; LEN],
}

impl Schema for Ich9SmbusV1 {
    const NAME: &'static str = "ich9_smbus";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use test_kit::IrqProbe;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    fn at(offset: u64) -> At {
        At { region: PORTS, offset }
    }

    #[test]
    fn keeps_the_contract() {
        let probe = IrqProbe::new();
        contract(&TestClock::new(), || Box::new(Ich9Smbus::new(probe.line(17))));
    }

    #[test]
    fn transfer_on_the_empty_bus_ends_with_a_device_error_and_interrupts() {
        let probe = IrqProbe::new();
        let mut chip = Ich9Smbus::new(probe.line(17));
        chip.write(at(4), Width::Byte, 0xa1).unwrap();
        chip.write(at(2), Width::Byte, 0x48).unwrap();
        assert_eq!(chip.read(at(0), Width::Byte), Ok(4));
        assert_eq!(chip.read(at(0), Width::Byte), Ok(0x44), "in use since it was read");
        assert!(!probe.level(17));
        chip.write(at(0), Width::Byte, 0xff).unwrap();
        chip.write(at(2), Width::Byte, 0x49).unwrap();
        assert!(probe.level(17));
        assert_eq!(chip.read(at(2), Width::Byte), Ok(0x09));
        chip.write(at(0), Width::Byte, 4).unwrap();
        assert!(!probe.level(17));
    }

    #[test]
    fn ports_answer_while_they_are_enabled() {
        let mut chip = Ich9Smbus::new(IrqProbe::new().line(17));
        chip.config_write(SMB_BASE, Width::Dword, 0x701);
        chip.config_write(SMBMBAR, Width::Dword, 0xfebf_0000);
        chip.config_write(device_model::pci::reg::COMMAND, Width::Word, 3);
        let places = |chip: &Ich9Smbus| chip.windows().iter().map(|w| (w.region, w.base)).collect::<Vec<_>>();
        assert_eq!(places(&chip), [(MEMORY, 0xfebf_0000)]);
        chip.config_write(HOSTC, Width::Byte, 1);
        assert_eq!(places(&chip), [(MEMORY, 0xfebf_0000), (PORTS, 0x700)]);
    }
}
