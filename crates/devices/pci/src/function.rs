//! Making the configuration header of a function.
//!
//! Headers of type 0, or 1 for bridges, with the registers that every function has; base addresses, capabilities and own
//! registers are added to the [`PciHeader`] that comes out.
//!
//! Spec: PCI Local Bus 3.0 §6.1-6.2, appendix D (class codes); PCI-to-PCI Bridge 1.2 §3.2 (type 1), §3.2.5.13 (subsystem).

use device_model::PciHeader;
use device_model::pci::command;
use device_model::pci::make_bridge;
use device_model::pci::reg;

/// Command bits that every function of ours has: I/O, memory, bus master, SERR#, INTx disable.
const COMMAND_BITS: u16 = command::IO | command::MEMORY | command::BUS_MASTER | 1 << 8 | command::INTX_DISABLE;
/// Status bits that guests clear: parity, aborts and errors.
const STATUS_CLEARS: u16 = 0xf900;
/// The subsystem that firmware takes for a virtual machine of its own kind: Red Hat's, "QEMU virtual machine".
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// Identifier of the capability that names a bridge's subsystem.
const SUBSYSTEM_CAPABILITY: u8 = 0x0d;

/// Class, subclass and programming interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u8, pub u8, pub u8);

/// What a function is, before it has registers of its own.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// What it does.
    pub class: Class,
    /// Interrupt pin: 0 for none, 1 for INTA# to 4 for INTD#.
    pub pin: u8,
    /// Function 0 of a device that has others.
    pub multifunction: bool,
}

impl Function {
    /// A function that is alone in its device and has no interrupt pin.
    #[must_use]
    pub const fn new(vendor: u16, device: u16, class: Class) -> Self {
        Self {
            vendor,
            device,
            revision: 0,
            class,
            pin: 0,
            multifunction: false,
        }
    }

    /// The header of type 0: identifiers, command and status, the interrupt pin.
    #[must_use]
    pub fn header(&self) -> PciHeader {
        self.with_subsystem(self.sized(PciHeader::CONVENTIONAL))
    }

    /// As [`Self::header`], with the configuration space of PCI Express.
    #[must_use]
    pub fn express_header(&self) -> PciHeader {
        self.with_subsystem(self.sized(PciHeader::EXPRESS))
    }

    /// The header of type 1 of a conventional bridge.
    #[must_use]
    pub fn bridge_header(&self) -> PciHeader {
        self.bridge(self.sized(PciHeader::CONVENTIONAL))
    }

    /// As [`Self::bridge_header`], with the configuration space of PCI Express.
    #[must_use]
    pub fn express_bridge_header(&self) -> PciHeader {
        self.bridge(self.sized(PciHeader::EXPRESS))
    }

    fn bridge(&self, mut header: PciHeader) -> PciHeader {
        make_bridge(&mut header);
        // The subsystem is in a capability, since its usual place is taken.
        if let Some(at) = header.add_capability(SUBSYSTEM_CAPABILITY, 8) {
            let (vendor, id) = SUBSYSTEM;
            header.fix(at + 4, &vendor.to_le_bytes());
            header.fix(at + 6, &id.to_le_bytes());
        }
        header
    }

    fn with_subsystem(&self, mut header: PciHeader) -> PciHeader {
        let (vendor, id) = SUBSYSTEM;
        header.fix(reg::SUBSYSTEM, &vendor.to_le_bytes());
        header.fix(reg::SUBSYSTEM + 2, &id.to_le_bytes());
        header
    }

    fn sized(&self, len: u16) -> PciHeader {
        let mut header = PciHeader::new(len);
        header.fix(reg::VENDOR, &self.vendor.to_le_bytes());
        header.fix(reg::VENDOR + 2, &self.device.to_le_bytes());
        let Class(class, subclass, interface) = self.class;
        header.fix(reg::REVISION, &[self.revision, interface, subclass, class]);
        header.fix(reg::HEADER_TYPE, &[if self.multifunction { 0x80 } else { 0 }]);
        header.allow(reg::COMMAND, &COMMAND_BITS.to_le_bytes());
        header.clear_by_ones(reg::STATUS, &STATUS_CLEARS.to_le_bytes());
        header.changes(reg::STATUS, &device_model::pci::status::INTERRUPT.to_le_bytes());
        // Cache line size and latency timer hold what firmware notes there.
        header.allow(0x0c, &[0xff, 0xf8]);
        header.allow(reg::INTERRUPT_LINE, &[0xff]);
        header.fix(reg::INTERRUPT_PIN, &[self.pin]);
        header
    }
}

#[cfg(test)]
mod tests {
    use device_model::Width;

    use super::*;

    #[test]
    fn header_says_what_the_function_is() {
        let mut function = Function::new(0x8086, 0x7000, Class(6, 1, 0));
        function.pin = 2;
        function.multifunction = true;
        let header = function.header();
        assert_eq!(header.read(0, Width::Dword), 0x7000_8086);
        assert_eq!(header.read(8, Width::Dword), 0x0601_0000);
        assert_eq!(header.read(0x0e, Width::Byte), 0x80);
        assert_eq!(header.read(0x2c, Width::Dword), 0x1100_1af4);
        assert_eq!(header.read(0x3d, Width::Byte), 2);
        assert_eq!(function.express_header().read(0xffc, Width::Dword), 0);
        let bridge = function.bridge_header();
        assert_eq!(bridge.read(0x0e, Width::Byte), 0x81);
        assert_eq!(bridge.read(0x2c, Width::Dword), 0);
        assert_eq!(bridge.read(0x40, Width::Dword), 0x0000_000d);
        assert_eq!(bridge.read(0x44, Width::Dword), 0x1100_1af4);
    }
}
