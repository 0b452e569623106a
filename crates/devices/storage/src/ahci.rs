//! The SATA controller of Intel's ICH9 in AHCI mode: six ports with native command queueing.
//!
//! Disks and CD drives; commands by DMA and PIO, thirty-two slots, hot plug, MSI. Port multipliers, staggered spin-up,
//! enclosure management, link power states and the legacy IDE mode are not modelled; the controller says so.
//!
//! Spec: AHCI 1.3.1 §2 (PCI), §3 (registers), §5 (operation).

mod command;
mod fis;
mod port;

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::MsiSink;
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
use device_model::pci::command::BUS_MASTER;
use guest_memory::GuestMemory;
use pci::Class;
use pci::Function;
use pci::Interrupter;
use pci::Msi;
use serde::Deserialize;
use serde::Serialize;

use crate::Drive;
use crate::Executor;
use crate::Tray;
use crate::Waker;
use crate::bytes;
use crate::work::Channel;
use port::Port;
use port::PortV1;

/// Device identifier.
const DEVICE: u16 = 0x2922;
/// ABAR, base of the registers.
const ABAR: u16 = 0x24;
/// Ports.
pub const PORTS: usize = 6;

/// Offsets of the generic registers (§3.1).
mod reg {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const GHC: u64 = 0x04;
    pub(super) const IS: u64 = 0x08;
    pub(super) const PI: u64 = 0x0C;
    pub(super) const VS: u64 = 0x10;
    pub(super) const PORTS: u64 = 0x100;
    pub(super) const PORT_LEN: u64 = 0x80;
}

/// 64-bit addresses, command queueing, command list override, generation 3, AHCI only, 32 slots, `PORTS` ports (from 0).
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 3 << 20 | 1 << 18 | 31 << 8 | 5;
const _: () = assert!(PORTS == 6, "CAP counts the ports");
/// AHCI 1.3.
const VS: u32 = 0x0001_0300;
/// GHC: reset, interrupts, AHCI mode.
const HR: u32 = 1 << 0;
const IE: u32 = 1 << 1;
const AE: u32 = 1 << 31;

const LEN: u64 = 0x1000;
const REGIONS: [Region; 1] = [Region {
    name: "abar",
    space: Space::Mmio,
    len: LEN,
    widths: Widths::DWORD,
}];

/// The controller.
pub struct Ahci {
    // Wiring, and state in the header
    interrupter: Interrupter,
    // State
    header: PciHeader,
    ghc: u32,
    /// Interrupts of ports.
    is: u32,
    ports: [Port; PORTS],
}

impl Ahci {
    /// A controller with the drives of `drives`, that interrupts through `pin` or by messages to `sink`.
    pub fn new(
        (pin, sink): (IrqLine, Arc<dyn MsiSink>),
        drives: [Option<Drive>; PORTS],
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x01, 0x06, 0x01));
        function.pin = 1;
        function.revision = 2;
        let mut header = function.header();
        header.add_bar(Bar {
            at: ABAR,
            kind: BarKind::Memory32,
            len: LEN,
            region: 0,
        });
        let msi = Msi::add(&mut header, 0);
        let ports = drives.map(|drive| {
            let work = Channel::new(Arc::clone(executor), Arc::clone(memory), Arc::clone(waker));
            Port::new(work, drive)
        });
        Self {
            interrupter: Interrupter::new(pin, sink).with_msi(msi),
            header,
            ghc: AE,
            is: 0,
            ports,
        }
    }

    /// The tray of the drive at port `index`; none where there is no such drive.
    pub fn tray(&mut self, index: usize) -> Option<&mut dyn Tray> {
        self.ports.get_mut(index)?.drive_mut()?.tray()
    }

    /// Whether there is a drive at port `index`.
    #[must_use]
    pub fn is_occupied(&self, index: usize) -> bool {
        self.ports.get(index).is_some_and(|port| port.drive.is_some())
    }

    /// Plugs a drive into port `index`, or pulls it out. False when there is no such port.
    pub fn plug(&mut self, index: usize, drive: Option<Drive>) -> bool {
        let plugged = self.ports.get_mut(index).map(|port| port.plug(drive)).is_some();
        self.update();
        plugged
    }

    /// Notes which ports ask for an interrupt, and drives it.
    fn update(&mut self) {
        for (index, port) in self.ports.iter().enumerate() {
            if port.interrupts() {
                self.is |= 1 << index;
            }
        }
        let level = self.is != 0 && self.ghc & IE != 0;
        self.interrupter.set(&mut self.header, level);
    }

    fn reset_hba(&mut self) {
        self.ghc = AE;
        self.is = 0;
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn write_is(&mut self, value: u32) {
        self.is &= !value;
        // A message tells of bits that are left, and of those that come again at once.
        self.interrupter.set(&mut self.header, false);
    }

    fn port(&mut self, offset: u64) -> Option<(&mut Port, u64)> {
        let from = offset.checked_sub(reg::PORTS)?;
        let port = self.ports.get_mut(bytes::index(from / reg::PORT_LEN))?;
        Some((port, from % reg::PORT_LEN))
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    if at.region != 0 || at.offset >= LEN {
        return Err(IoError::NoRegister);
    }
    let whole = width == Width::Dword && at.offset.is_multiple_of(4);
    if whole { Ok(()) } else { Err(IoError::Width) }
}

impl Registers for Ahci {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = match at.offset {
            reg::CAP => CAP,
            reg::GHC => self.ghc,
            reg::IS => self.is,
            reg::PI => (1 << PORTS) - 1,
            reg::VS => VS,
            offset => self.port(offset).map_or(0, |(port, offset)| port.read(offset)),
        };
        Ok(value.into())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = bytes::low32(value);
        match at.offset {
            reg::GHC if value & HR != 0 => self.reset_hba(),
            reg::GHC => self.ghc = AE | value & IE,
            reg::IS => self.write_is(value),
            offset => {
                if let Some((port, offset)) = self.port(offset) {
                    port.write(offset, value);
                }
            }
        }
        self.update();
        Ok(())
    }
}

impl PciFunction for Ahci {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.interrupter.written(&mut self.header, at, width);
        let master = self.header.commanded(BUS_MASTER);
        self.ports.iter_mut().for_each(|port| port.set_master(master));
    }
}

impl Device for Ahci {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        self.reset_hba();
        self.ports.iter_mut().for_each(|port| port.set_master(false));
        self.interrupter.set(&mut self.header, false);
    }

    fn poll(&mut self, _now: VmTime) -> Option<VmTime> {
        self.ports.iter_mut().for_each(Port::go_on);
        self.update();
        None
    }

    fn quiesce(&mut self) -> bool {
        let quiet = self.ports.each_mut().map(Port::quiesce);
        self.update();
        quiet.iter().all(|quiet| *quiet)
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Ahci {
    type State = AhciV1;

    fn save(&self) -> AhciV1 {
        let Self {
            interrupter: _,
            header,
            ghc,
            is,
            ports,
        } = self;
        AhciV1 {
            header: header.save(),
            ghc: *ghc,
            is: *is,
            ports: ports.each_ref().map(Port::save),
        }
    }

    fn restore(&mut self, state: AhciV1) -> Result<(), RestoreError> {
        let AhciV1 { header, ghc, is, ports } = state;
        if is >> PORTS != 0 || ghc & !(AE | IE) != 0 {
            return Err(RestoreError::Invalid("ahci state that cannot be".to_owned()));
        }
        self.header.restore(&header)?;
        (self.ghc, self.is) = (ghc, is);
        let master = self.header.commanded(BUS_MASTER);
        for (port, state) in self.ports.iter_mut().zip(ports) {
            port.restore(state)?;
            port.set_master(master);
        }
        self.interrupter.update_pin(&self.header);
        Ok(())
    }
}

impl Inspect for Ahci {
    fn inspect(&self) -> Node {
        let tree = Node::tree().with("ghc", self.ghc).with("is", self.is);
        let ports = self.ports.iter().enumerate();
        ports.fold(tree, |tree, (index, port)| {
            tree.with(&format!("port{index}"), port.inspect())
        })
    }
}

/// Saved state of [`Ahci`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AhciV1 {
    header: Vec<u8>,
    ghc: u32,
    is: u32,
    ports: [PortV1; PORTS],
}

impl Schema for AhciV1 {
    const NAME: &'static str = "ahci";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
