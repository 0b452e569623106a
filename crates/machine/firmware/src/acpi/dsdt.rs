//! DSDT: processors, the legacy devices with their ports and interrupts, and the sleep states.
//!
//! Devices that describe themselves hand in their AML. On a machine with PCI the legacy devices are below the ISA bridge.
//!
//! Spec: ACPI 6.5 §5.2.11.1 (DSDT), §6.1 (identification), §6.4.2 (small resources), §7.4.2 (`\_Sx`), §8.4 (processors).

use acpi_tables::Aml;
use acpi_tables::AmlSink;
use acpi_tables::aml::Device;
use acpi_tables::aml::EISAName;
use acpi_tables::aml::IO;
use acpi_tables::aml::Memory32Fixed;
use acpi_tables::aml::Name;
use acpi_tables::aml::Package;
use acpi_tables::aml::ResourceTemplate;
use acpi_tables::aml::Scope;
use acpi_tables::aml::ZERO;
use acpi_tables::sdt::Sdt;

use super::AcpiInput;
use super::ich9;
use super::root_bridge;
use super::slots;
use super::table;
use super::virtio;
use crate::layout;

/// Serial ports that device names have a digit for.
const UARTS_MAX: u8 = 15;
/// Bytes of the HPET's registers.
const HPET_LEN: u32 = 0x400;

/// IRQ descriptor without flags: an edge-triggered, active-high ISA interrupt (§6.4.2.1).
struct IrqNoFlags(u8);

impl Aml for IrqNoFlags {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

/// The table.
pub(super) fn build(input: &AcpiInput) -> Sdt {
    let mut dsdt = table(*b"DSDT", 2);
    let mut devices = Vec::new();
    for uid in 0..input.apic_ids.len() {
        devices.extend(processor(uid));
    }
    let mut isa = chipset();
    for (number, (port, irq)) in (1..=UARTS_MAX).zip(&input.uarts) {
        isa.extend(uart(number, *port, *irq));
    }
    if input.i8042 {
        isa.extend(keyboard_and_mouse());
    }
    if input.floppy {
        isa.extend(floppy());
    }
    if input.parallel {
        isa.extend(device("LPT1", "PNP0400", &[], &[&ports(0x378, 8), &IrqNoFlags(7)]));
    }
    match &input.pci {
        Some(pci) => devices.extend(root_bridge::aml(pci, isa)),
        None => devices.extend(isa),
    }
    if input.hpet {
        let registers = Memory32Fixed::new(true, layout::HPET as u32, HPET_LEN);
        devices.extend(device("HPET", "PNP0103", &[], &[&registers]));
    }
    if let Some(ecam) = input.pci.and_then(|pci| pci.ecam) {
        devices.extend(ich9::motherboard(ecam));
        dsdt.append_slice(&ich9::interrupt_model());
    }
    for (number, (registers, gsi)) in (0u8..).zip(&input.virtio) {
        devices.extend(virtio::device(number, *registers, *gsi));
    }
    devices.extend(input.extra.iter().flatten());
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), devices));
    if let Some(hot) = input.pci.and_then(|pci| pci.slots) {
        dsdt.append_slice(&slots::event(&hot));
    }
    dsdt.append_slice(&sleep_state("\\_S3_", input.pm.s3));
    dsdt.append_slice(&sleep_state("\\_S5_", input.pm.s5));
    dsdt
}

/// A sleep state with its value of SLP_TYP.
fn sleep_state(name: &str, slp_typ: u8) -> Vec<u8> {
    let mut aml = Vec::new();
    Name::new(name.into(), &Package::new(vec![&slp_typ, &slp_typ, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    aml
}

/// A device with a plug-and-play identifier, further names, and its resources.
pub(super) fn device(name: &str, id: &str, names: &[&Name], resources: &[&dyn Aml]) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new(id));
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()));
    let mut children: Vec<&dyn Aml> = vec![&hid];
    children.extend(names.iter().map(|name| *name as &dyn Aml));
    children.push(&crs);
    let mut aml = Vec::new();
    Device::new(name.into(), children).to_aml_bytes(&mut aml);
    aml
}

/// A range of I/O ports at a fixed place.
fn ports(first: u16, len: u8) -> IO {
    IO::new(first, first, 1, len)
}

/// A processor; its unique identifier is the one in the MADT.
fn processor(uid: usize) -> Vec<u8> {
    let name = format!("C{uid:03X}");
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &uid);
    let mut aml = Vec::new();
    Device::new(name.as_str().into(), vec![&hid, &uid]).to_aml_bytes(&mut aml);
    aml
}

/// What every machine has: interrupt controllers, timer, speaker port and clock.
fn chipset() -> Vec<u8> {
    [
        device(
            "PIC_",
            "PNP0000",
            &[],
            &[&ports(0x20, 2), &ports(0xa0, 2), &ports(0x4d0, 2), &IrqNoFlags(2)],
        ),
        device("TIMR", "PNP0100", &[], &[&ports(0x40, 4), &IrqNoFlags(0)]),
        device("SPKR", "PNP0800", &[], &[&ports(0x61, 1)]),
        device("RTC_", "PNP0B00", &[], &[&ports(0x70, 4), &IrqNoFlags(8)]),
    ]
    .concat()
}

/// A 16550A serial port; COM ports are numbered from one.
fn uart(number: u8, port: u16, irq: u8) -> Vec<u8> {
    let uid = Name::new("_UID".into(), &number);
    let name = format!("COM{number:X}");
    let ddn = Name::new("_DDN".into(), &name);
    device(&name, "PNP0501", &[&uid, &ddn], &[&ports(port, 8), &IrqNoFlags(irq)])
}

/// The floppy controller.
fn floppy() -> Vec<u8> {
    device(
        "FDC0",
        "PNP0700",
        &[],
        &[&ports(0x3f2, 4), &ports(0x3f7, 1), &IrqNoFlags(6), &Dma(2)],
    )
}

/// DMA descriptor: compatibility mode, 8-bit, not a bus master (§6.4.2.2).
struct Dma(u8);

impl Aml for Dma {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x2a);
        sink.byte(1u8.checked_shl(self.0.into()).unwrap_or(0));
        sink.byte(0);
    }
}

/// The keyboard with the controller's ports, and the mouse behind it.
fn keyboard_and_mouse() -> Vec<u8> {
    [
        device(
            "KBD_",
            "PNP0303",
            &[],
            &[&ports(0x60, 1), &ports(0x64, 1), &IrqNoFlags(1)],
        ),
        device("MOU_", "PNP0F13", &[], &[&IrqNoFlags(12)]),
    ]
    .concat()
}
