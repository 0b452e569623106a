//! The PCI bridge of Intel's ICH9 (82801): a bus for conventional cards.
//!
//! It decodes subtractively: besides what its windows say, it passes on what nobody else claims. Buffers, arbitration and
//! delayed transactions are registers that keep what is written.
//!
//! Spec: Intel 316972 (ICH9) §"PCI-to-PCI Bridge Registers (D30:F0)"; PCI-to-PCI Bridge 1.2 §3.2.

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
use device_model::pci::Forwarding;
use serde::Deserialize;
use serde::Serialize;

use crate::Class;
use crate::Function;

/// Device identifier.
const DEVICE: u16 = 0x244e;
/// Subtractive decoding.
const SUBTRACTIVE: u8 = 1;
/// Registers that keep what is written: offset, writable bits.
#[rustfmt::skip]
const KEPT: [(u16, u32); 3] = [
    (0x80, 0x0000_00ff), // SPDH, secondary PCI device hiding: nothing is hidden
    (0x84, 0xffff_ffff), // DTC, delayed transaction control
    (0x8c, 0x0000_ffff), // BPC, bridge policy configuration
];

/// The bridge.
pub struct PciBridge {
    // State
    header: PciHeader,
}

impl Default for PciBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBridge {
    /// A bridge whose bus has no number yet.
    #[must_use]
    pub fn new() -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x06, 0x04, SUBTRACTIVE));
        function.revision = 0x92;
        let mut header = function.bridge_header();
        for (at, writable) in KEPT {
            header.allow(at, &writable.to_le_bytes());
        }
        Self { header }
    }
}

impl Registers for PciBridge {
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

impl PciFunction for PciBridge {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn forwarding(&self) -> Option<Forwarding> {
        Some(Forwarding::subtractive(&self.header))
    }
}

impl Device for PciBridge {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for PciBridge {
    type State = PciBridgeV1;

    fn save(&self) -> PciBridgeV1 {
        let Self { header } = self;
        PciBridgeV1 { header: header.save() }
    }

    fn restore(&mut self, state: PciBridgeV1) -> Result<(), RestoreError> {
        let PciBridgeV1 { header } = state;
        self.header.restore(&header)
    }
}

impl Inspect for PciBridge {
    fn inspect(&self) -> Node {
        inspect(&Forwarding::of(&self.header))
    }
}

/// What a bridge passes on, for people.
pub(crate) fn inspect(forwarding: &Forwarding) -> Node {
    let extent = |extent: Option<(u64, u64)>| match extent {
        Some((first, last)) => Node::from(format!("{first:x}-{last:x}")),
        None => Node::from("none"),
    };
    Node::tree()
        .with("secondary", forwarding.secondary)
        .with("subordinate", forwarding.subordinate)
        .with("ports", extent(forwarding.ports))
        .with("memory", extent(forwarding.memory))
        .with("prefetchable", extent(forwarding.prefetch))
        .with("vga", forwarding.vga_ports || forwarding.vga_memory)
}

/// Saved state of [`PciBridge`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PciBridgeV1 {
    header: Vec<u8>,
}

impl Schema for PciBridgeV1 {
    const NAME: &'static str = "pci_bridge";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use device_model::Space;
    use device_model::pci::PciWindow;
    use device_model::pci::reg;
    use device_model::pci::reg1;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(PciBridge::new()));
    }

    #[test]
    fn what_nobody_claims_goes_through_while_it_decodes() {
        let mut chip = PciBridge::new();
        let window = PciWindow {
            region: 0,
            space: Space::Mmio,
            base: 0xfe00_0000,
            len: 4096,
        };
        let passes = |chip: &PciBridge| chip.forwarding().is_some_and(|passed| passed.passes(&window));
        assert!(!passes(&chip));
        chip.config_write(reg::COMMAND, Width::Word, 2);
        chip.config_write(reg1::PRIMARY, Width::Dword, 0x0003_0200);
        assert!(passes(&chip));
        assert!(
            chip.forwarding()
                .is_some_and(|passed| passed.leads_to(3) && !passed.leads_to(4))
        );
        chip.reset(Reset::Warm);
        assert!(!passes(&chip));
    }
}
