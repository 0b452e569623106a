//! A function's interrupts by whichever way the guest has chosen: its pin, MSI or MSI-X.
//!
//! A device says that its cause is there or gone, or that a vector has something to say; this sees to the command bits,
//! the status bit, masks and pending bits.
//!
//! Spec: PCI Local Bus 3.0 §6.2.2-6.2.3 (interrupt disable and status), §6.8.

use std::sync::Arc;

use device_model::IrqLine;
use device_model::MsiSink;
use device_model::PciHeader;
use device_model::Width;
use device_model::pci::command;
use device_model::pci::status;

use crate::Msi;
use crate::Msix;

/// The interrupt side of a function.
pub struct Interrupter {
    // Wiring
    pin: IrqLine,
    sink: Arc<dyn MsiSink>,
    // Configuration
    msi: Option<Msi>,
    // State: saved by the function, see `msix` and the header
    msix: Option<Msix>,
}

impl Interrupter {
    /// Interrupts by `pin` only.
    pub fn new(pin: IrqLine, sink: Arc<dyn MsiSink>) -> Self {
        Self {
            pin,
            sink,
            msi: None,
            msix: None,
        }
    }

    /// Interrupts by MSI too.
    #[must_use]
    pub fn with_msi(mut self, msi: Option<Msi>) -> Self {
        self.msi = msi;
        self
    }

    /// Interrupts by MSI-X too.
    #[must_use]
    pub fn with_msix(mut self, msix: Option<Msix>) -> Self {
        self.msix = msix;
        self
    }

    /// The MSI-X table.
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref()
    }

    /// The MSI-X table, to be reset or restored.
    pub fn msix_mut(&mut self) -> Option<&mut Msix> {
        self.msix.as_mut()
    }

    /// Whether messages are in use rather than the pin.
    pub fn by_message(&self, header: &PciHeader) -> bool {
        self.msi.is_some_and(|msi| msi.enabled(header)) || self.msix.as_ref().is_some_and(|msix| msix.enabled(header))
    }

    /// The function's one cause is there or gone: drives the pin, or sends message 0 when it appears.
    pub fn set(&mut self, header: &mut PciHeader, level: bool) {
        let was = header.word(device_model::pci::reg::STATUS) & status::INTERRUPT != 0;
        header.set_status(status::INTERRUPT, level);
        if level && !was {
            self.fire(header, 0);
        }
        self.update_pin(header);
    }

    /// Sends the message of `vector`, if messages are in use.
    pub fn fire(&mut self, header: &mut PciHeader, vector: u16) {
        if let Some(msix) = &mut self.msix
            && msix.enabled(header)
        {
            msix.fire(header, vector, &*self.sink);
        } else if let Some(msi) = self.msi {
            msi.fire(header, u32::from(vector), &*self.sink);
        }
    }

    /// Reads the region of the MSI-X table.
    pub fn read_table(&self, offset: u64, width: Width) -> u64 {
        self.msix.as_ref().map_or(width.ones(), |msix| msix.read(offset, width))
    }

    /// Writes the region of the MSI-X table.
    pub fn write_table(&mut self, header: &PciHeader, offset: u64, width: Width, value: u64) {
        if let Some(msix) = &mut self.msix {
            msix.write(header, offset, width, value, &*self.sink);
        }
    }

    /// The guest has written configuration space.
    pub fn written(&mut self, header: &mut PciHeader, at: u16, width: Width) {
        if let Some(msi) = self.msi {
            msi.written(header, at, width, &*self.sink);
        }
        if let Some(msix) = &mut self.msix {
            msix.written(header, &*self.sink);
        }
        self.update_pin(header);
    }

    /// Drives the pin anew: after a reset or restore of the header.
    pub fn update_pin(&self, header: &PciHeader) {
        let asked = header.word(device_model::pci::reg::STATUS) & status::INTERRUPT != 0;
        let by_pin = !header.commanded(command::INTX_DISABLE) && !self.by_message(header);
        self.pin.set(asked && by_pin);
    }
}

#[cfg(test)]
mod tests {
    use device_model::pci::reg;
    use test_kit::IrqProbe;

    use super::*;
    use crate::Class;
    use crate::Function;

    #[test]
    fn pin_follows_the_cause_unless_disabled_or_messages_are_used() {
        let probe = IrqProbe::new();
        let mut header = Function::new(0x1234, 1, Class(0xff, 0, 0)).header();
        let msi = Msi::add(&mut header, 0);
        let mut irq = Interrupter::new(probe.line(0), probe.clone()).with_msi(msi);
        irq.set(&mut header, true);
        assert!(probe.level(0));
        header.write(reg::COMMAND, Width::Word, 0x404);
        irq.written(&mut header, reg::COMMAND, Width::Word);
        assert!(!probe.level(0));
        assert_eq!(header.word(reg::STATUS) & status::INTERRUPT, status::INTERRUPT);
        header.write(reg::COMMAND, Width::Word, 4);
        irq.written(&mut header, reg::COMMAND, Width::Word);
        assert!(probe.level(0));
        header.write(0x42, Width::Word, 1);
        irq.written(&mut header, 0x42, Width::Word);
        assert!(!probe.level(0));
        probe.take_events();
        irq.set(&mut header, true);
        assert_eq!(probe.take_messages(), [], "it was there already");
        irq.set(&mut header, false);
        irq.set(&mut header, true);
        assert_eq!(probe.take_messages().len(), 1);
        assert!(!probe.level(0));
    }
}
