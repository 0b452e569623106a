//! The ISA bridge of Intel's PIIX3: function 0 of the south bridge, with the routing of PCI interrupts.
//!
//! The chips behind it are devices of their own, as are ELCR (`chipset::pic`) and the reset control register. What is left
//! are its configuration registers: PIRQ routing works, the others keep what firmware writes.
//!
//! Spec: Intel 290550-002 (PIIX3) §2.2 (ISA bridge configuration registers).

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
use serde::Deserialize;
use serde::Serialize;

use crate::Class;
use crate::Function;
use crate::PirqRouter;
use crate::pirq;

/// Device identifier.
const DEVICE: u16 = 0x7000;
/// PIRQRC[A:D], interrupt routes (RW): bit 7 for none, else the ISA interrupt in bits 3-0.
pub const PIRQRC: u16 = 0x60;
/// Interrupts that a line may be routed to (§2.2.10).
const ROUTABLE: u16 = 0xdef8;
/// Registers that keep what is written: offset, value after reset, writable bits.
#[rustfmt::skip]
const KEPT: [(u16, u8, u8); 11] = [
    (0x4c, 0x4d, 0xff), // IORT, I/O recovery timer
    (0x4e, 0x03, 0xff), // XBCS, X-bus chip selects
    (0x4f, 0x00, 0x01),
    (0x69, 0x02, 0xfe), // TOM, top of memory
    (0x70, 0x80, 0xef), // MBIRQ, motherboard interrupt
    (0x76, 0x0c, 0x8f), // MBDMA, motherboard DMA
    (0x77, 0x0c, 0x8f),
    (0x80, 0x00, 0x7f), // APICBASE
    (0x82, 0x00, 0x0f), // DLC, deterministic latency
    (0xa0, 0x08, 0x1f), // SMICNTL
    (0xac, 0x00, 0xff), // CTLTMR
];

/// The bridge.
pub struct Piix3 {
    // Wiring
    router: Arc<PirqRouter>,
    // State
    header: PciHeader,
}

impl Piix3 {
    /// A bridge that routes by `router`.
    pub fn new(router: Arc<PirqRouter>) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x06, 0x01, 0x00));
        function.multifunction = true;
        let mut header = function.header();
        // It always answers (§2.2.3), and its speed of decoding is medium.
        header.fix(device_model::pci::reg::COMMAND, &0x0007u16.to_le_bytes());
        header.fix(device_model::pci::reg::STATUS, &0x0200u16.to_le_bytes());
        for (at, value, writable) in KEPT {
            header.fix(at, &[value]);
            header.allow(at, &[writable]);
        }
        for at in (PIRQRC..).take(pirq::LINES) {
            header.fix(at, &[0x80]);
            header.allow(at, &[0x8f]);
        }
        let this = Self { router, header };
        this.update_routes();
        this
    }

    fn route(&self, line: usize) -> Option<u8> {
        let register = self.header.byte(PIRQRC + u16::try_from(line).ok()?);
        let irq = register & 0x0f;
        (register & 0x80 == 0 && ROUTABLE >> irq & 1 != 0).then_some(irq)
    }

    fn update_routes(&self) {
        for line in 0..pirq::LINES {
            self.router.route(line, self.route(line));
        }
    }
}

impl Registers for Piix3 {
    fn regions(&self) -> &[Region] {
        &[]
    }

    fn read(&mut self, _at: At, _width: Width) -> Result<u64, IoError> {
        Err(IoError::NoRegister)
    }

    fn write(&mut self, _at: At, _width: Width, _value: u64) -> Result<(), IoError> {
        Err(IoError::NoRegister)
    }
}

impl PciFunction for Piix3 {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.update_routes();
    }
}

impl Device for Piix3 {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        self.update_routes();
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Piix3 {
    type State = Piix3V1;

    fn save(&self) -> Piix3V1 {
        let Self { router: _, header } = self;
        Piix3V1 { header: header.save() }
    }

    fn restore(&mut self, state: Piix3V1) -> Result<(), RestoreError> {
        let Piix3V1 { header } = state;
        self.header.restore(&header)?;
        self.update_routes();
        Ok(())
    }
}

impl Inspect for Piix3 {
    fn inspect(&self) -> Node {
        let route = |line| self.route(line).map_or(Node::from("none"), Node::from);
        ["pirqa", "pirqb", "pirqc", "pirqd"]
            .iter()
            .enumerate()
            .fold(Node::tree(), |tree, (line, name)| tree.with(name, route(line)))
    }
}

/// Saved state of [`Piix3`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Piix3V1 {
    header: Vec<u8>,
}

impl Schema for Piix3V1 {
    const NAME: &'static str = "piix3";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use test_kit::IrqProbe;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    #[test]
    fn keeps_the_contract() {
        let probe = IrqProbe::new();
        let make = || Box::new(Piix3::new(PirqRouter::new(|irq| probe.line(irq))));
        contract(&TestClock::new(), make);
    }

    #[test]
    fn routes_follow_their_registers_and_reset() {
        let probe = IrqProbe::new();
        let router = PirqRouter::new(|irq| probe.line(irq));
        let mut chip = Piix3::new(Arc::clone(&router));
        let line = router.pin(2, 1);
        line.set(true);
        let mut route = |value: u32| {
            chip.config_write(PIRQRC + 1, Width::Byte, value);
        };
        route(11);
        assert!(probe.level(11));
        // Interrupts 0, 1, 2, 8 and 13 are not to be had.
        route(13);
        assert!(!probe.level(11) && !probe.level(13));
        route(0x8b);
        assert!(!probe.level(11));
        route(5);
        assert!(probe.level(5));
        chip.reset(Reset::Warm);
        assert!(!probe.level(5));
    }
}
