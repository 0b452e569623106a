//! virtio devices with memory-mapped registers, for systems without PCI.
//!
//! Spec: virtio 1.2 §4.2.1 (discovery is left to the platform); Linux drivers/virtio/virtio_mmio.c (`LNRO0005`);
//! ACPI 6.5 §6.4.3.6 (extended interrupts).

use acpi_tables::Aml;
use acpi_tables::aml::Device;
use acpi_tables::aml::Interrupt;
use acpi_tables::aml::Memory32Fixed;
use acpi_tables::aml::Name;
use acpi_tables::aml::ONE;
use acpi_tables::aml::ResourceTemplate;

/// Bytes of a device's registers.
const LEN: u32 = 0x200;

/// Device number `number`, whose registers begin at `registers` and which interrupts by the level of `gsi`.
pub(super) fn device(number: u8, registers: u32, gsi: u8) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &number);
    let coherent = Name::new("_CCA".into(), &ONE);
    let memory = Memory32Fixed::new(true, registers, LEN);
    let interrupt = Interrupt::new(true, false, false, true, gsi.into());
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory, &interrupt]));
    let name = format!("VR{number:02X}");
    let mut aml = Vec::new();
    Device::new(name.as_str().into(), vec![&hid, &uid, &coherent, &crs]).to_aml_bytes(&mut aml);
    aml
}
