//! A PCI function for tests: one register that is seen through ports and through memory, and a page of memory.
//!
//! Identifiers are those of the PCI test device of QEMU's, which drivers leave alone.

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
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::reg;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use serde::Deserialize;
use serde::Serialize;

const LEN: u64 = 16;
/// The region that is memory.
const MEMORY: usize = 2;

const fn region(name: &'static str, space: Space) -> Region {
    Region {
        name,
        space,
        len: LEN,
        widths: Widths::DWORD,
    }
}

const REGIONS: [Region; 2] = [region("ports", Space::Pio), region("memory", Space::Mmio)];

/// The function: base address 0 is ports, 1 memory registers, 2 a page of memory.
pub struct Endpoint {
    memory: Arc<MemoryRegion>,
    header: PciHeader,
    value: u32,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::new()
    }
}

impl Endpoint {
    /// A function whose register holds zero.
    ///
    /// # Panics
    /// When the host has no page of memory left.
    #[must_use]
    pub fn new() -> Self {
        let mut header = PciHeader::new(PciHeader::CONVENTIONAL);
        header.fix(reg::VENDOR, &0x0001_1b36u32.to_le_bytes());
        header.fix(reg::REVISION, &0xff00_0000u32.to_le_bytes());
        header.allow(reg::COMMAND, &[7, 4]);
        header.allow(reg::INTERRUPT_LINE, &[0xff]);
        let bars = [
            (BarKind::Io, LEN),
            (BarKind::Memory32, LEN),
            (BarKind::Prefetch32, 4096),
        ];
        for (region, (at, (kind, len))) in (reg::BAR0..).step_by(4).zip(bars).enumerate() {
            header.add_bar(Bar { at, kind, len, region });
        }
        Self {
            memory: Arc::new(MemoryRegion::new("endpoint", Kind::Ram, 4096).expect("a page of memory")),
            header,
            value: 0,
        }
    }
}

impl Registers for Endpoint {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        match at {
            At {
                region: 0 | 1,
                offset: 0,
            } if width == Width::Dword => Ok(self.value.into()),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        match at {
            At {
                region: 0 | 1,
                offset: 0,
            } if width == Width::Dword => self.value = value as u32,
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
}

impl PciFunction for Endpoint {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn memory(&self, region: usize) -> Option<Arc<MemoryRegion>> {
        (region == MEMORY).then(|| Arc::clone(&self.memory))
    }
}

impl Device for Endpoint {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        self.value = 0;
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Endpoint {
    type State = EndpointV1;

    fn save(&self) -> EndpointV1 {
        let Self {
            memory: _,
            header,
            value,
        } = self;
        EndpointV1 {
            header: header.save(),
            value: *value,
        }
    }

    fn restore(&mut self, state: EndpointV1) -> Result<(), RestoreError> {
        let EndpointV1 { header, value } = state;
        self.header.restore(&header)?;
        self.value = value;
        Ok(())
    }
}

impl Inspect for Endpoint {
    fn inspect(&self) -> Node {
        Node::tree().with("value", self.value)
    }
}

/// Saved state of [`Endpoint`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointV1 {
    header: Vec<u8>,
    value: u32,
}

impl Schema for EndpointV1 {
    const NAME: &'static str = "endpoint";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use device_model::TestClock;

    use super::*;

    #[test]
    fn keeps_the_contract() {
        crate::contract(&TestClock::new(), || Box::new(Endpoint::new()));
    }
}
