//! The PCI chipset as a BIOS leaves it, for machines that boot a kernel directly.
//!
//! RAM where it was, ACPI at its ports, interrupts 10 and 11 for the PCI lines, numbers for the buses behind bridges. Base
//! addresses and bridges' windows are left to the operating system.

use device_model::Bus;
use device_model::Width;
use device_model::pci::reg1;
use firmware::layout;
use pci::Bdf;
use pci::Root;
use pci::i440fx;
use pci::ich9_lpc;
use pci::ich9_smbus;
use pci::piix3;
use pci::piix4_pm;
use pci::q35_mch;
use storage::ide;

use crate::Plan;
use crate::registry::bdf;

/// ISA interrupts of four PCI lines.
const PCI_IRQS: [u8; 4] = [10, 10, 11, 11];
/// Edge/level control: interrupts 10 and 11, and the SCI, are level-triggered.
const ELCR: [(u64, u64); 2] = [(0x4d0, 0), (0x4d1, 0x0e)];
/// Attribute map: RAM for reads and writes of both segments.
const RAM: u8 = 0x33;
/// Ports of the SMBus controller follow those of ACPI.
const SMBUS_BASE: u16 = layout::PM_BASE + 0x100;

/// A byte that is written to a register of configuration space.
type Write = (Bdf, u16, u8);

/// Sets the chipset up.
pub(super) fn chipset(root: &Root, pio: &Bus, plan: &Plan) {
    let express = plan.devices.iter().any(|place| place.chip == "q35_mch");
    let writes = if express { q35() } else { i440fx() };
    for (bdf, register, value) in writes.into_iter().chain(bridges(plan)) {
        root.write(bdf, register, Width::Byte, value.into());
    }
    for (port, value) in ELCR {
        pio.write(port, Width::Byte, value);
    }
}

/// The bytes of `value` at a register and those after it, the last first: enable bits are in the first.
fn bytes(bdf: Bdf, at: u16, value: &[u8]) -> Vec<Write> {
    let mut writes: Vec<_> = (at..).zip(value).map(|(at, byte)| (bdf, at, *byte)).collect();
    writes.reverse();
    writes
}

fn routes(bdf: Bdf, at: u16) -> impl Iterator<Item = Write> {
    (at..).zip(PCI_IRQS).map(move |(at, irq)| (bdf, at, irq))
}

fn i440fx() -> Vec<Write> {
    let maps = (i440fx::PAM..).take(7).map(|at| (bdf::HOST_BRIDGE, at, RAM));
    let pm = bytes(bdf::PM, piix4_pm::PMBA, &(layout::PM_BASE | 1).to_le_bytes());
    let smbus = bytes(bdf::PM, piix4_pm::SMBBA, &(SMBUS_BASE | 1).to_le_bytes());
    let enables = [(piix4_pm::PMREGMISC, 1), (piix4_pm::SMBHSTCFG, 9)];
    let enables = enables.into_iter().map(|(at, value)| (bdf::PM, at, value));
    // Both channels decode their ports.
    let ide = [(0x04, 0x01), (ide::IDETIM + 1, 0x80), (ide::IDETIM + 3, 0x80)];
    let ide = ide.into_iter().map(|(at, value)| (bdf::IDE, at, value));
    let routes = routes(bdf::ISA_BRIDGE, piix3::PIRQRC);
    maps.chain(routes)
        .chain(pm)
        .chain(smbus)
        .chain(enables)
        .chain(ide)
        .collect()
}

fn q35() -> Vec<Write> {
    let maps = (q35_mch::PAM..).take(7).map(|at| (bdf::HOST_BRIDGE, at, RAM));
    let (ecam, _) = layout::ECAM;
    let ecam = bytes(bdf::HOST_BRIDGE, q35_mch::PCIEXBAR, &(ecam | 1).to_le_bytes());
    let first = routes(bdf::LPC, ich9_lpc::PIRQA_ROUT);
    let second = routes(bdf::LPC, ich9_lpc::PIRQE_ROUT);
    let pm = bytes(bdf::LPC, ich9_lpc::PMBASE, &(layout::PM_BASE | 1).to_le_bytes());
    let enable = [(bdf::LPC, ich9_lpc::ACPI_CNTL, ich9_lpc::ACPI_EN)];
    let config = bytes(bdf::LPC, ich9_lpc::RCBA, &(layout::RCBA | 1).to_le_bytes());
    let smbus = bytes(bdf::SMBUS, ich9_smbus::SMB_BASE, &(SMBUS_BASE | 1).to_le_bytes());
    let smbus_on = [(bdf::SMBUS, ich9_smbus::HOSTC, 1), (bdf::SMBUS, 0x04, 1)];
    maps.chain(ecam)
        .chain(first)
        .chain(second)
        .chain(pm)
        .chain(enable)
        .chain(config)
        .chain(smbus)
        .chain(smbus_on)
        .collect()
}

/// Numbers of the buses behind the bridges of the root bus, in their order; nothing passes through the windows.
fn bridges(plan: &Plan) -> Vec<Write> {
    let on_root = plan.devices.iter().filter_map(|place| place.wire.and(place.bdf));
    let mut writes = Vec::new();
    for (number, at) in (1..=u8::MAX).zip(on_root.filter(|bdf| bdf.bus() == 0)) {
        writes.extend(bytes(at, reg1::PRIMARY, &[0, number, number]));
        writes.extend(bytes(at, reg1::IO_BASE, &[0xf0, 0x00]));
        writes.extend(bytes(at, reg1::MEMORY_BASE, &[0xf0, 0xff, 0x00, 0x00]));
        writes.extend(bytes(at, reg1::PREFETCH_BASE, &[0xf0, 0xff, 0x00, 0x00]));
    }
    writes
}
