//! What an ICH9 has that a PIIX lacks: memory-mapped configuration space, eight links, pins of the I/O APIC for PCI.
//!
//! With the 8259s, pins of PCI slots reach the links LNKE to LNKH, those of the chipset itself LNKA to LNKD. With the I/O APIC
//! the same eight lines are its pins 16 to 23, so `_PRT` depends on what the operating system has told `\_PIC`. It is given
//! control of hot plug, power management events and the capability structures; there is no error reporting to control.
//!
//! Spec: PCI Firmware 3.3 §4.1.2 (MCFG), §4.5.1 (_OSC); ACPI 6.5 §5.8.1 (_PIC), §6.2.13 (_PRT), §6.2.11 (_OSC); Intel 316972
//! (ICH9) §5.10 (interrupts).

use acpi_tables::Aml;
use acpi_tables::aml::And;
use acpi_tables::aml::Arg;
use acpi_tables::aml::CreateDWordField;
use acpi_tables::aml::EISAName;
use acpi_tables::aml::Else;
use acpi_tables::aml::Equal;
use acpi_tables::aml::If;
use acpi_tables::aml::Local;
use acpi_tables::aml::Memory32Fixed;
use acpi_tables::aml::Method;
use acpi_tables::aml::Name;
use acpi_tables::aml::NotEqual;
use acpi_tables::aml::ONE;
use acpi_tables::aml::Or;
use acpi_tables::aml::Path;
use acpi_tables::aml::Return;
use acpi_tables::aml::Store;
use acpi_tables::aml::Uuid;
use acpi_tables::aml::ZERO;
use acpi_tables::sdt::Sdt;

use super::dsdt;
use super::root_bridge::routes;
use super::table;
use crate::layout;

/// First slot whose pins reach the first four links.
const OWN_SLOTS: u32 = 25;
/// Pin of the I/O APIC of the first line.
const FIRST_PIN: u32 = 16;
/// Bytes of configuration space of each bus.
const BUS_LEN: u32 = 1 << 20;
/// Host bridges say by this what _OSC is about.
const HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// Native hot plug, power management events, capability structures.
const GRANTED: u8 = 1 << 0 | 1 << 2 | 1 << 4;
/// _OSC: unknown identifier; unknown revision; not all was granted.
const UNKNOWN_ID: u8 = 1 << 2;
const UNKNOWN_REVISION: u8 = 1 << 3;
const MASKED: u8 = 1 << 4;

/// The line that pin `pin`, from zero, of slot `slot` reaches.
fn line(slot: u32, pin: u8) -> u32 {
    let pin = u32::from(pin);
    match slot {
        OWN_SLOTS.. => pin % 4,
        _ => 4 + (slot + pin) % 4,
    }
}

/// _PRT, by the interrupt model.
pub(super) fn routing() -> Vec<u8> {
    let mut aml = routes("PRTP", |slot, pin| (Some(line(slot, pin) as usize), 0));
    aml.extend(routes("PRTA", |slot, pin| (None, FIRST_PIN + line(slot, pin))));
    let (model, pic, apic) = (Path::new("\\PICF"), Path::new("PRTP"), Path::new("PRTA"));
    let with_pic = Equal::new(&model, &ZERO);
    let (pic, apic) = (Return::new(&pic), Return::new(&apic));
    let (then, otherwise) = (If::new(&with_pic, vec![&pic]), Else::new(vec![&apic]));
    Method::new("_PRT".into(), 0, false, vec![&then, &otherwise]).to_aml_bytes(&mut aml);
    aml
}

/// `\_PIC` and what it notes. It is outside of all scopes.
pub(super) fn interrupt_model() -> Vec<u8> {
    let mut aml = Vec::new();
    Name::new("\\PICF".into(), &ZERO).to_aml_bytes(&mut aml);
    let (note, argument) = (Path::new("\\PICF"), Arg(0));
    let note = Store::new(&note, &argument);
    Method::new("\\_PIC".into(), 1, false, vec![&note]).to_aml_bytes(&mut aml);
    aml
}

/// What the host bridge says besides: that it is compatible with one of PCI, and what it lets the operating system do.
pub(super) fn host_bridge() -> Vec<u8> {
    let mut aml = Vec::new();
    Name::new("_CID".into(), &EISAName::new("PNP0A03")).to_aml_bytes(&mut aml);
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let (buffer, granted) = (Arg(3), Local(0));
    let first = CreateDWordField::new(&status, &buffer, &ZERO);
    let third = CreateDWordField::new(&control, &buffer, &8u8);
    let (id, ours) = (Arg(0), Uuid::new(HOST_BRIDGE));
    let is_ours = Equal::new(&id, &ours);
    let grant = And::new(&granted, &control, &GRANTED);
    let revision = Arg(1);
    let unknown = NotEqual::new(&revision, &ONE);
    let say_unknown = Or::new(&status, &status, &UNKNOWN_REVISION);
    let if_unknown = If::new(&unknown, vec![&say_unknown]);
    let less = NotEqual::new(&control, &granted);
    let say_less = Or::new(&status, &status, &MASKED);
    let if_less = If::new(&less, vec![&say_less]);
    let tell = Store::new(&control, &granted);
    let then = If::new(&is_ours, vec![&third, &grant, &if_unknown, &if_less, &tell]);
    let say_other = Or::new(&status, &status, &UNKNOWN_ID);
    let otherwise = Else::new(vec![&say_other]);
    let give = Return::new(&buffer);
    let children: Vec<&dyn Aml> = vec![&first, &then, &otherwise, &give];
    Method::new("_OSC".into(), 4, true, children).to_aml_bytes(&mut aml);
    aml
}

/// Addresses that are nobody else's: configuration space and the chipset's registers.
pub(super) fn motherboard((base, len): (u32, u32)) -> Vec<u8> {
    let ecam = Memory32Fixed::new(false, base, len);
    let chipset = Memory32Fixed::new(true, layout::RCBA, layout::RCBA_LEN);
    dsdt::device("DRAC", "PNP0C02", &[], &[&ecam, &chipset])
}

/// MCFG: where configuration space is.
pub(super) fn mcfg((base, len): (u32, u32)) -> Sdt {
    let mut mcfg = table(*b"MCFG", 1);
    mcfg.append(0u64);
    mcfg.append(u64::from(base));
    // Segment, first bus, last bus.
    mcfg.append(0u16);
    mcfg.append(0u8);
    mcfg.append(u8::try_from(len / BUS_LEN).map_or(u8::MAX, |buses| buses.saturating_sub(1)));
    mcfg.append(0u32);
    mcfg
}
