//! AML of slots whose PCI cards come and go: a device for each, and the general-purpose event that tells which.
//!
//! The method of the event reads which cards have come and which are to go, and notifies their slots: 1 (device check), 3 (eject
//! request). `_EJ0` gives the slot's card up. The registers are [`HotSlots::port`] and the two after it.
//!
//! Spec: ACPI 6.5 §5.6.4.1 (_Exx), §5.6.6 (notifications), §6.1.11 (_SUN), §6.3.3 (_EJx); QEMU
//! docs/specs/acpi_pci_hotplug.rst (registers).

use acpi_tables::Aml;
use acpi_tables::aml::And;
use acpi_tables::aml::Device;
use acpi_tables::aml::Field;
use acpi_tables::aml::FieldAccessType;
use acpi_tables::aml::FieldEntry;
use acpi_tables::aml::FieldLockRule;
use acpi_tables::aml::FieldUpdateRule;
use acpi_tables::aml::If;
use acpi_tables::aml::Local;
use acpi_tables::aml::Method;
use acpi_tables::aml::MethodCall;
use acpi_tables::aml::Name;
use acpi_tables::aml::Notify;
use acpi_tables::aml::OpRegion;
use acpi_tables::aml::OpRegionSpace;
use acpi_tables::aml::Path;
use acpi_tables::aml::Scope;
use acpi_tables::aml::Store;

use super::HotSlots;
use super::dsdt;
use super::root_bridge::Made;

/// Bytes of the registers that methods use: up, down, eject.
const USED: u8 = 12;
/// Notifications.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

impl HotSlots {
    fn numbers(&self) -> impl Iterator<Item = u8> + '_ {
        (0u8..32).filter(|slot| self.slots >> slot & 1 != 0)
    }
}

fn name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

/// What the host bridge has among its devices.
pub(super) fn bridge(slots: &HotSlots) -> Vec<u8> {
    let mut aml = Vec::new();
    let port = slots.port;
    OpRegion::new("PCST".into(), OpRegionSpace::SystemIO, &port, &USED).to_aml_bytes(&mut aml);
    let fields = [*b"PCIU", *b"PCID", *b"B0EJ"].map(|name| FieldEntry::Named(name, 32));
    let (access, lock, update) = (
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
    );
    Field::new("PCST".into(), access, lock, update, fields.into()).to_aml_bytes(&mut aml);
    slots.numbers().for_each(|slot| aml.extend(device(slot)));
    aml.extend(notice(slots));
    aml.extend(dsdt::device(
        "PHPR",
        "PNP0C02",
        &[],
        &[&acpi_tables::aml::IO::new(port, port, 1, slots.len)],
    ));
    aml
}

/// A slot.
fn device(slot: u8) -> Vec<u8> {
    let address = Name::new("_ADR".into(), &(u32::from(slot) << 16));
    let number = Name::new("_SUN".into(), &slot);
    let (register, bit) = (Path::new("B0EJ"), 1u32 << (slot & 31));
    let give_up = Store::new(&register, &bit);
    let eject = Method::new("_EJ0".into(), 1, true, vec![&give_up]);
    let mut aml = Vec::new();
    Device::new(name(slot).as_str().into(), vec![&address, &number, &eject]).to_aml_bytes(&mut aml);
    aml
}

/// The method that tells slots of what has happened to them.
fn notice(slots: &HotSlots) -> Vec<u8> {
    let mut body = Vec::new();
    for (register, local, what) in [("PCIU", 0, DEVICE_CHECK), ("PCID", 1, EJECT_REQUEST)] {
        let (register, local) = (Path::new(register), Local(local));
        Store::new(&local, &register).to_aml_bytes(&mut body);
        for slot in slots.numbers() {
            let bit = 1u32 << (slot & 31);
            let path = Path::new(&name(slot));
            let (asked, tell) = (
                And::new(&acpi_tables::aml::ZERO, &local, &bit),
                Notify::new(&path, &what),
            );
            If::new(&asked, vec![&tell]).to_aml_bytes(&mut body);
        }
    }
    let mut aml = Vec::new();
    Method::new("PCNT".into(), 0, true, vec![&Made(&body)]).to_aml_bytes(&mut aml);
    aml
}

/// The method of the event. It is outside of all scopes.
pub(super) fn event(slots: &HotSlots) -> Vec<u8> {
    let call = MethodCall::new("\\_SB_.PCI0.PCNT".into(), Vec::new());
    let name = format!("_E{:02X}", slots.gpe);
    let method = Method::new(name.as_str().into(), 0, false, vec![&call]);
    let mut aml = Vec::new();
    Scope::new("\\_GPE".into(), vec![&method]).to_aml_bytes(&mut aml);
    aml
}
