//! ACPI tables of the machine, put where software without EFI looks for them.
//!
//! ```text
//!   RSDP ─┬─► RSDT ─┐
//!         └─► XSDT ─┴─► FADT ─┬─► FACS
//!                  │          └─► DSDT (+ the devices' own AML)
//!                  ├────► MADT
//!                  └────► HPET
//! ```
//!
//! The hardware is fixed-feature ACPI that is in ACPI mode from power-on, so there is no SMI command port. Sleep states
//! other than S3 and S5, processor power states, PCI and thermal zones are not described. After S3 the operating system
//! is entered in real mode; a 64-bit waking vector in the FACS is not looked at.
//!
//! Spec: ACPI 6.5 §5.2, §16.3.2 (waking); IA-PC HPET Specification 1.0a §3.2.4 (HPET table).

mod dsdt;
mod fadt;
mod madt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::gas::AccessSize;
use acpi_tables::gas::AddressSpace;
use acpi_tables::gas::GAS;
use acpi_tables::sdt::Sdt;
use guest_memory::GuestMemory;
use guest_memory::MemoryError;

use crate::layout;

/// OEM of every table.
const OEM_ID: [u8; 6] = *b"OXBOW ";
/// OEM table of every table.
const OEM_TABLE_ID: [u8; 8] = *b"OXBOWPC ";
/// Revision of every table's content.
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER_LEN: u32 = 36;
/// Tables begin on multiples of this: the FACS asks for it.
const ALIGN: u64 = 64;
/// Processors that device names have digits for.
const PROCESSORS_MAX: usize = 0x1000;
/// Revision of the RSDP since ACPI 2.0.
const RSDP_REVISION: u8 = 2;
/// Bytes of an RSDP since ACPI 2.0.
const RSDP_LEN: u64 = 36;
/// Low half of the HPET's capabilities: Intel, revision 1, three 64-bit timers, legacy replacement.
const HPET_ID: u32 = 0x8086_a201;
/// Shortest period in ticks that the HPET keeps up with in periodic mode.
const HPET_MIN_TICK: u16 = 128;
/// Where the FACS is: the first table after the RSDP.
const FACS_ADDRESS: u64 = (layout::ACPI_START + RSDP_LEN).next_multiple_of(ALIGN);
/// Where in the FACS the firmware waking vector is.
const FACS_WAKING_VECTOR: u64 = 12;

/// Ports of the ACPI fixed hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmPorts {
    /// PM1a event block, 4 bytes.
    pub event: u16,
    /// PM1a control block, 2 bytes.
    pub control: u16,
    /// PM timer, 4 bytes, 32 bits wide.
    pub timer: u16,
    /// General-purpose event block 0, 4 bytes.
    pub gpe0: u16,
    /// Value of SLP_TYP that means suspend to RAM.
    pub s3: u8,
    /// Value of SLP_TYP that means soft-off.
    pub s5: u8,
}

impl Default for PmPorts {
    fn default() -> Self {
        Self {
            event: 0x600,
            control: 0x604,
            timer: 0x608,
            gpe0: 0x620,
            s3: 1,
            s5: 5,
        }
    }
}

/// What the tables describe.
#[derive(Clone, Debug, Default)]
pub struct AcpiInput {
    /// APIC ID of each processor, the boot processor first.
    pub apic_ids: Vec<u32>,
    /// Whether there is an HPET.
    pub hpet: bool,
    /// Serial ports COM1 and up: I/O port and ISA interrupt.
    pub uarts: Vec<(u16, u8)>,
    /// Whether there are a keyboard controller, a keyboard and a mouse.
    pub i8042: bool,
    /// The fixed hardware's ports.
    pub pm: PmPorts,
    /// AML of further devices, each put into `\_SB`.
    pub extra: Vec<Vec<u8>>,
}

/// Where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiAddresses {
    /// The RSDP.
    pub rsdp: u64,
    /// First address after the last table.
    pub end: u64,
}

/// Why the tables cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They do not fit below 1 MiB.
    #[error("the ACPI tables of {0} processors do not fit below 1 MiB")]
    TooLarge(usize),
    /// There is no RAM where they go.
    #[error("the ACPI tables cannot be written")]
    Memory(#[from] MemoryError),
}

/// Writes all tables into `memory`. Called before every boot of the machine, resets included.
///
/// # Errors
/// See [`AcpiError`].
pub fn build(input: &AcpiInput, memory: &GuestMemory) -> Result<AcpiAddresses, AcpiError> {
    if input.apic_ids.len() > PROCESSORS_MAX {
        return Err(AcpiError::TooLarge(input.apic_ids.len()));
    }
    let rsdp = layout::ACPI_START;
    let mut writer = Writer {
        memory,
        next: rsdp + RSDP_LEN,
        processors: input.apic_ids.len(),
    };
    let mut facs = Vec::new();
    FACS::new().to_aml_bytes(&mut facs);
    let facs = writer.put(&facs)?;
    let dsdt = writer.put(dsdt::build(input).as_slice())?;
    let mut tables = vec![
        writer.put(&fadt::build(input, facs, dsdt))?,
        writer.put(madt::build(&input.apic_ids).as_slice())?,
    ];
    if input.hpet {
        tables.push(writer.put(hpet().as_slice())?);
    }
    let mut rsdt = table(*b"RSDT", 1);
    let mut xsdt = table(*b"XSDT", 1);
    for address in tables {
        rsdt.append(address);
        xsdt.append(u64::from(address));
    }
    let rsdt = writer.put(rsdt.as_slice())?;
    let xsdt = writer.put(xsdt.as_slice())?;
    memory.write(rsdp, &root_pointer(rsdt, xsdt))?;
    Ok(AcpiAddresses { rsdp, end: writer.next })
}

/// Where the operating system wants to be entered after S3, in real mode: the firmware waking vector of the FACS. `None`
/// when it left none there, or when the FACS is gone.
#[must_use]
pub fn waking_vector(memory: &GuestMemory) -> Option<u32> {
    let signature: [u8; 4] = memory.read_obj(FACS_ADDRESS).ok()?;
    let vector: u32 = memory.read_obj(FACS_ADDRESS + FACS_WAKING_VECTOR).ok()?;
    (signature == *b"FACS" && vector != 0).then_some(vector)
}

/// Puts tables one after the other.
struct Writer<'m> {
    memory: &'m GuestMemory,
    next: u64,
    processors: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<u32, AcpiError> {
        let too_large = AcpiError::TooLarge(self.processors);
        let at = self.next.next_multiple_of(ALIGN);
        let next = at + bytes.len() as u64;
        let (Ok(address), true) = (u32::try_from(at), next <= layout::ACPI_END) else {
            return Err(too_large);
        };
        self.memory.write(at, bytes)?;
        self.next = next;
        Ok(address)
    }
}

/// A table that is its header so far.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// The RSDP: one checksum over ACPI 1.0's 20 bytes, and one over all.
fn root_pointer(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let first = |checksum: u8| -> Vec<u8> {
        let address = rsdt.to_le_bytes();
        [b"RSD PTR ".as_slice(), &[checksum], &OEM_ID, &[RSDP_REVISION], &address].concat()
    };
    let first = first(complement(&first(0)));
    let all = |checksum: u8| -> Vec<u8> {
        let (len, address) = ((RSDP_LEN as u32).to_le_bytes(), u64::from(xsdt).to_le_bytes());
        [first.as_slice(), &len, &address, &[checksum, 0, 0, 0]].concat()
    };
    all(complement(&all(0)))
}

/// The byte that makes the sum of `bytes` and itself zero.
fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

/// The HPET's description table.
fn hpet() -> Sdt {
    let mut hpet = table(*b"HPET", 1);
    hpet.append(HPET_ID);
    let mut address = Vec::new();
    GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, layout::HPET).to_aml_bytes(&mut address);
    hpet.append_slice(&address);
    hpet.append(0u8);
    hpet.append(HPET_MIN_TICK);
    hpet.append(0u8);
    hpet
}

#[cfg(test)]
mod tests;
