//! AML of the PCI host bridge: its windows, the routing of interrupt pins, and the ISA bridge with the links.
//!
//! Each slot's four pins reach the four links shifted by the slot's number; a link is a register of the PIIX3, which says
//! which ISA interrupt it becomes. Links are level-triggered and active high in both interrupt models, for the I/O APIC has
//! the same inputs as the 8259s. What is else on an ICH9 is in [`super::ich9`].
//!
//! Spec: ACPI 6.5 §6.2.13 (_PRT), §6.4.3.6 (extended interrupt descriptor), §6.4.3.5 (address spaces), §19.6; PCI Firmware
//! 3.3 §4.2; Intel 290550-002 (PIIX3) §2.2.10 (PIRQRC).

use acpi_tables::Aml;
use acpi_tables::AmlSink;
use acpi_tables::aml::AddressSpace;
use acpi_tables::aml::AddressSpaceCacheable;
use acpi_tables::aml::And;
use acpi_tables::aml::Arg;
use acpi_tables::aml::CreateDWordField;
use acpi_tables::aml::Device;
use acpi_tables::aml::EISAName;
use acpi_tables::aml::Else;
use acpi_tables::aml::Field;
use acpi_tables::aml::FieldAccessType;
use acpi_tables::aml::FieldEntry;
use acpi_tables::aml::FieldLockRule;
use acpi_tables::aml::FieldUpdateRule;
use acpi_tables::aml::IO;
use acpi_tables::aml::If;
use acpi_tables::aml::Local;
use acpi_tables::aml::Method;
use acpi_tables::aml::Name;
use acpi_tables::aml::OpRegion;
use acpi_tables::aml::OpRegionSpace;
use acpi_tables::aml::Or;
use acpi_tables::aml::Package;
use acpi_tables::aml::Path;
use acpi_tables::aml::ResourceTemplate;
use acpi_tables::aml::Return;
use acpi_tables::aml::Store;
use acpi_tables::aml::ZERO;

use super::PciInput;
use super::ich9;
use super::slots;

/// ISA interrupts that the links may become.
pub(super) const PCI_IRQS: [u8; 3] = [5, 10, 11];
/// Devices on a bus.
const SLOTS: u32 = 32;
/// The links and their registers: a PIIX has the first four.
const LINKS: [(&str, &str); 8] = [
    ("LNKA", "PRQ0"),
    ("LNKB", "PRQ1"),
    ("LNKC", "PRQ2"),
    ("LNKD", "PRQ3"),
    ("LNKE", "PRQ4"),
    ("LNKF", "PRQ5"),
    ("LNKG", "PRQ6"),
    ("LNKH", "PRQ7"),
];
/// Links of a PIIX, and in one block of an ICH9's registers.
const HALF: usize = 4;
/// Bits between the two blocks.
const GAP: usize = 32;
/// Register of the first link: PIRQRC[A].
const PIRQRC: u8 = 0x60;
/// PIRQRC: not routed.
const UNROUTED: u8 = 0x80;
/// Where in an extended interrupt descriptor the first number is.
const NUMBER_OFFSET: u8 = 5;

/// Extended interrupt descriptor: consumed, level-triggered, active high, shared.
struct Interrupts<'a>(&'a [u8]);

impl Aml for Interrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let count = u8::try_from(self.0.len()).unwrap_or(0);
        sink.byte(0x89);
        sink.word(2 + 4 * u16::from(count));
        sink.byte(0b1001);
        sink.byte(count);
        for number in self.0 {
            sink.dword((*number).into());
        }
    }
}

/// AML that was made before.
pub(super) struct Made<'a>(pub(super) &'a [u8]);

impl Aml for Made<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        self.0.iter().for_each(|byte| sink.byte(*byte));
    }
}

/// The host bridge, with `isa` among the devices of its ISA bridge.
pub(super) fn aml(pci: &PciInput, isa: Vec<u8>) -> Vec<u8> {
    let express = pci.ecam.is_some();
    let hid = Name::new(
        "_HID".into(),
        &EISAName::new(if express { "PNP0A08" } else { "PNP0A03" }),
    );
    let adr = Name::new("_ADR".into(), &ZERO);
    let uid = Name::new("_UID".into(), &ZERO);
    let crs = windows(pci);
    let (prt, more) = if express {
        (ich9::routing(), ich9::host_bridge())
    } else {
        (routing(), Vec::new())
    };
    let isa = isa_bridge(express, &isa);
    let slots = pci.slots.as_ref().map(slots::bridge).unwrap_or_default();
    let (prt, isa, more, slots) = (Made(&prt), Made(&isa), Made(&more), Made(&slots));
    let children: Vec<&dyn Aml> = vec![&hid, &adr, &uid, &crs, &more, &prt, &isa, &slots];
    let mut aml = Vec::new();
    Device::new("PCI0".into(), children).to_aml_bytes(&mut aml);
    aml
}

/// What the bridge passes on: bus numbers, ports but those of configuration space, video memory, memory up to the I/O APIC
/// around configuration space.
fn windows(pci: &PciInput) -> Name {
    let buses = AddressSpace::new_bus_number(0u16, 0xff);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports_below = AddressSpace::new_io(0u16, 0x0cf7, None);
    let ports_above = AddressSpace::new_io(0x0d00u16, 0xffff, None);
    let memory =
        |min: u32, max: u32| AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, min, max, None);
    let video = memory(0xa_0000, 0xb_ffff);
    let mut all: Vec<&dyn Aml> = vec![&buses, &config, &ports_below, &ports_above, &video];
    let low: Vec<_> = pci.low().into_iter().map(|(first, last)| memory(first, last)).collect();
    all.extend(low.iter().map(|window| window as &dyn Aml));
    let high = pci.high.map(|(base, len)| {
        AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, base, base + (len - 1), None)
    });
    if let Some(high) = &high {
        all.push(high);
    }
    Name::new("_CRS".into(), &ResourceTemplate::new(all))
}

/// A _PRT or what it may be: each pin of each slot reaches what `to` says.
/// What is reached is a link, or nothing and the number of an interrupt.
pub(super) fn routes(name: &str, to: impl Fn(u32, u8) -> (Option<usize>, u32)) -> Vec<u8> {
    let links = LINKS.map(|(link, _)| Path::new(&format!("\\_SB_.PCI0.ISA_.{link}")));
    let mut rows = Vec::new();
    for slot in 0..SLOTS {
        for pin in 0..4u8 {
            let address = slot << 16 | 0xffff;
            let mut row = Vec::new();
            let (link, number) = to(slot, pin);
            let source: &dyn Aml = match link.and_then(|link| links.get(link)) {
                Some(link) => link,
                None => &ZERO,
            };
            Package::new(vec![&address, &pin, source, &number]).to_aml_bytes(&mut row);
            rows.push(row);
        }
    }
    let rows: Vec<Made<'_>> = rows.iter().map(|row| Made(row)).collect();
    let mut aml = Vec::new();
    let package = Package::new(rows.iter().map(|row| row as &dyn Aml).collect());
    Name::new(name.into(), &package).to_aml_bytes(&mut aml);
    aml
}
/// _PRT: pin `n` of slot `s` reaches link `s + n - 1`.
fn routing() -> Vec<u8> {
    routes("_PRT", |slot, pin| {
        let link = slot + u32::from(pin) + 3;
        (Some(link as usize % HALF), 0)
    })
}

/// Function 0 of device 1, or of device 31 where there are eight links, with their registers and what else is on the ISA bus.
fn isa_bridge(express: bool, isa: &[u8]) -> Vec<u8> {
    let (address, len, count) = if express {
        (0x001f_0000u32, 12u8, 2 * HALF)
    } else {
        (0x0001_0000, 4, HALF)
    };
    let adr = Name::new("_ADR".into(), &address);
    let registers = OpRegion::new("PIRQ".into(), OpRegionSpace::PCIConfig, &PIRQRC, &len);
    let name = |text: &str| text.as_bytes().first_chunk().copied().unwrap_or(*b"XXXX");
    let field = |(_, register): (&str, &str)| FieldEntry::Named(name(register), 8);
    let mut fields: Vec<FieldEntry> = LINKS.into_iter().take(count).map(field).collect();
    if express {
        fields.insert(HALF, FieldEntry::Reserved(GAP));
    }
    let fields = Field::new(
        "PIRQ".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        fields,
    );
    let links: Vec<u8> = (1u8..)
        .zip(LINKS)
        .take(count)
        .flat_map(|(uid, (name, register))| link(uid, name, register))
        .collect();
    let (links, isa) = (Made(&links), Made(isa));
    let children: Vec<&dyn Aml> = vec![&adr, &registers, &fields, &links, &isa];
    let mut aml = Vec::new();
    Device::new("ISA_".into(), children).to_aml_bytes(&mut aml);
    aml
}

/// A link: which interrupts it may be, which it is, and how that is changed.
fn link(uid: u8, name: &str, register: &str) -> Vec<u8> {
    let (field, number, buffer) = (Path::new(register), Path::new("IRQN"), Path::new("RES0"));
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0F"));
    let uid = Name::new("_UID".into(), &uid);
    let possible = Name::new("_PRS".into(), &ResourceTemplate::new(vec![&Interrupts(&PCI_IRQS)]));

    let unrouted = And::new(&ZERO, &field, &UNROUTED);
    let (off, on) = (Return::new(&0x09u8), Return::new(&0x0bu8));
    let (then, otherwise) = (If::new(&unrouted, vec![&off]), Else::new(vec![&on]));
    let status = Method::new("_STA".into(), 0, false, vec![&then, &otherwise]);

    let take_away = Or::new(&field, &field, &UNROUTED);
    let disable = Method::new("_DIS".into(), 0, false, vec![&take_away]);

    let empty = Name::new("RES0".into(), &ResourceTemplate::new(vec![&Interrupts(&[0])]));
    let in_buffer = CreateDWordField::new(&number, &buffer, &NUMBER_OFFSET);
    let (now, local) = (And::new(&Local(0), &field, &0x0fu8), Local(0));
    let fill = Store::new(&number, &local);
    let routed = And::new(&ZERO, &field, &UNROUTED);
    let none = Store::new(&local, &ZERO);
    let clear = If::new(&routed, vec![&none]);
    let give = Return::new(&buffer);
    let current = Method::new(
        "_CRS".into(),
        0,
        true,
        vec![&empty, &in_buffer, &now, &clear, &fill, &give],
    );

    let argument = Arg(0);
    let in_argument = CreateDWordField::new(&number, &argument, &NUMBER_OFFSET);
    let route = Store::new(&field, &number);
    let set = Method::new("_SRS".into(), 1, true, vec![&in_argument, &route]);

    let children: Vec<&dyn Aml> = vec![&hid, &uid, &possible, &status, &disable, &current, &set];
    let mut aml = Vec::new();
    Device::new(name.into(), children).to_aml_bytes(&mut aml);
    aml
}
