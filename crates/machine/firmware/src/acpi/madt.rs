//! MADT: local APICs, the I/O APIC, and how the ISA interrupts reach it.
//!
//! Processors whose identifiers fit are local APICs, the others are x2APICs. ISA interrupt 0 is pin 2; interrupt 9, the
//! SCI, is level-triggered and active high. LINT1 is NMI on every processor.
//!
//! Spec: ACPI 6.5 §5.2.12.

use acpi_tables::madt::EnabledStatus;
use acpi_tables::madt::IoApic;
use acpi_tables::madt::ProcessorLocalApic;
use acpi_tables::sdt::Sdt;
use zerocopy::IntoBytes;

use super::AcpiInput;
use super::fadt::SCI;
use super::root_bridge::PCI_IRQS;
use super::table;
use crate::layout;

/// Multiple APIC flags: there are also 8259s.
const PCAT_COMPAT: u32 = 1;
/// Structure types that the table library does not have.
const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
/// Interrupt flags: as the bus has it.
const CONFORMING: u16 = 0;
/// Interrupt flags: active high, level-triggered.
const HIGH_LEVEL: u16 = 0b1101;
/// Pin of ISA interrupt 0: pin 0 is the 8259s' output.
const TIMER_PIN: u32 = 2;
/// Local interrupt input of NMI.
const NMI_LINT: u8 = 1;

/// The table for the processors and their APIC IDs; their ACPI identifiers count from zero.
pub(super) fn build(input: &AcpiInput) -> Sdt {
    let apic_ids = &input.apic_ids;
    let mut body = Vec::new();
    body.extend((layout::LAPIC as u32).to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    let mut wide = false;
    for (uid, apic_id) in (0u32..).zip(apic_ids) {
        // FFh is every processor.
        match (u8::try_from(uid), u8::try_from(*apic_id)) {
            (Ok(uid), Ok(apic_id)) if uid < u8::MAX && apic_id < u8::MAX => {
                body.extend(ProcessorLocalApic::new(uid, apic_id, EnabledStatus::Enabled).as_bytes());
            }
            _ => {
                wide = true;
                body.extend([LOCAL_X2APIC, 16, 0, 0]);
                for field in [*apic_id, EnabledStatus::Enabled as u32, uid] {
                    body.extend(field.to_le_bytes());
                }
            }
        }
    }
    body.extend(IoApic::new(0, layout::IOAPIC as u32, 0).as_bytes());
    let pci = |irq: &u8| input.pci.is_some() && *irq != SCI as u8;
    let level = PCI_IRQS
        .iter()
        .filter(|irq| pci(irq))
        .map(|irq| (*irq, u32::from(*irq), HIGH_LEVEL));
    let fixed = [(0, TIMER_PIN, CONFORMING), (SCI as u8, SCI.into(), HIGH_LEVEL)];
    for (irq, pin, flags) in fixed.into_iter().chain(level) {
        body.extend([INTERRUPT_SOURCE_OVERRIDE, 10, 0, irq]);
        body.extend(u32::to_le_bytes(pin));
        body.extend(flags.to_le_bytes());
    }
    body.extend([LOCAL_APIC_NMI, 6, u8::MAX, 0, 0, NMI_LINT]);
    if wide {
        body.extend([LOCAL_X2APIC_NMI, 12, 0, 0]);
        body.extend(u32::MAX.to_le_bytes());
        body.extend([NMI_LINT, 0, 0, 0]);
    }
    let mut madt = table(*b"APIC", 5);
    madt.append_slice(&body);
    madt
}
