//! ACPI tables of the machine, put where software without EFI looks for them.
//!
//! ```text
//!   RSDP ─┬─► RSDT ─┐
//!         └─► XSDT ─┴─► FADT ─┬─► FACS
//!                  │          └─► DSDT (+ the devices' own AML)
//!                  ├────► MADT
//!                  ├────► MCFG
//!                  └────► HPET
//! ```
//!
//! The hardware is fixed-feature ACPI. On a machine without firmware it is in ACPI mode from power-on, so there is no SMI
//! command port. Sleep states other than S3 and S5, processor power states and thermal zones are not described. After S3
//! the operating system is entered in real mode; a 64-bit waking vector in the FACS is not looked at.
//!
//! Spec: ACPI 6.5 §5.2, §16.3.2 (waking); IA-PC HPET Specification 1.0a §3.2.4 (HPET table); PCI Firmware 3.3 §4.1.2 (MCFG).

mod dsdt;
mod fadt;
mod ich9;
mod loader;
mod madt;
mod root_bridge;
mod slots;
mod virtio;

use std::ops::Range;

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
/// Offset of a table's checksum.
const CHECKSUM: usize = 9;
/// Tables begin on multiples of this: the FACS asks for it.
const ALIGN: u64 = 64;
/// Processors that device names have digits for.
const PROCESSORS_MAX: usize = 0x1000;
/// Revision of the RSDP since ACPI 2.0.
const RSDP_REVISION: u8 = 2;
/// Bytes of an RSDP since ACPI 2.0.
const RSDP_LEN: u64 = 36;
/// Offsets of an RSDP's checksums.
const RSDP_CHECKSUMS: [usize; 2] = [8, 32];
/// Low half of the HPET's capabilities: Intel, revision 1, three 64-bit timers, legacy replacement.
const HPET_ID: u32 = 0x8086_a201;
/// Shortest period in ticks that the HPET keeps up with in periodic mode.
const HPET_MIN_TICK: u16 = 128;
/// Where the FACS is: the first table after the RSDP.
const FACS_ADDRESS: u64 = (layout::ACPI_START + RSDP_LEN).next_multiple_of(ALIGN);
/// Where in the FACS the firmware waking vector is.
const FACS_WAKING_VECTOR: u64 = 12;

/// What configures system management: FADT SMI_CMD and what is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmiPort {
    /// The port.
    pub port: u16,
    /// Switches to ACPI mode.
    pub enable: u8,
    /// Switches to legacy mode.
    pub disable: u8,
}

/// Slots of the root bus whose cards come and go, by ACPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotSlots {
    /// First port of their registers.
    pub port: u16,
    /// Bytes of them.
    pub len: u8,
    /// The general-purpose event that tells of them.
    pub gpe: u8,
    /// The slots, a bit for each.
    pub slots: u32,
}

/// The PCI buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciInput {
    /// First address of the window for memory below 4 GiB.
    pub memory: u32,
    /// The window for memory above 4 GiB: first address and bytes; none where it is empty.
    pub high: Option<(u64, u64)>,
    /// Memory-mapped configuration space, first address and bytes, on a machine with an ICH9; else it has a PIIX.
    pub ecam: Option<(u32, u32)>,
    /// Slots of the root bus whose cards come and go, if there are any.
    pub slots: Option<HotSlots>,
}

impl PciInput {
    /// Windows for a machine whose RAM below 4 GiB ends at `low_end`: what BIOSes use too.
    #[must_use]
    pub fn below(low_end: u64) -> Self {
        let memory = match low_end {
            0..=0x8000_0000 => 0x8000_0000,
            0x8000_0001..=0xc000_0000 => 0xc000_0000,
            _ => 0xe000_0000,
        };
        Self {
            memory,
            high: None,
            ecam: None,
            slots: None,
        }
    }

    /// The same for a machine with PCI Express, whose configuration space is at `ecam`.
    #[must_use]
    pub fn express(low_end: u64, ecam: (u32, u32)) -> Self {
        let memory = match low_end {
            0..=0x8000_0000 => 0x8000_0000,
            _ => 0xb000_0000,
        };
        Self {
            memory,
            high: None,
            ecam: Some(ecam),
            slots: None,
        }
    }

    /// First and last address of what is left of the window below 4 GiB around configuration space.
    fn low(&self) -> Vec<(u32, u32)> {
        const LAST: u32 = (layout::IOAPIC - 1) as u32;
        let (hole, len) = self.ecam.unwrap_or((LAST, 0));
        let parts = [
            (self.memory, hole.wrapping_sub(1).min(LAST)),
            (hole.saturating_add(len).max(self.memory), LAST),
        ];
        match len {
            0 => vec![(self.memory, LAST)],
            _ => parts.into_iter().filter(|(first, last)| first < last).collect(),
        }
    }

    /// With a window above all RAM, which ends at `end`, up to the last physical address.
    #[must_use]
    pub fn with_high(self, end: u64) -> Self {
        const GIB: u64 = 1 << 30;
        let base = end.max(layout::HOLE_END).next_multiple_of(GIB);
        let len = layout::PHYSICAL_END.saturating_sub(base);
        Self {
            high: (len > 0).then_some((base, len)),
            ..self
        }
    }
}

/// Ports of the ACPI fixed hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmPorts {
    /// PM1a event block, 4 bytes.
    pub event: u16,
    /// PM1a control block, 2 bytes.
    pub control: u16,
    /// PM timer, 4 bytes, 32 bits wide.
    pub timer: u16,
    /// General-purpose event block 0.
    pub gpe0: u16,
    /// Bytes of it: half of them status, half enables.
    pub gpe0_len: u8,
    /// Value of SLP_TYP that means suspend to RAM.
    pub s3: u8,
    /// Value of SLP_TYP that means soft-off.
    pub s5: u8,
    /// Where the mode is switched; none where it is always ACPI.
    pub smi: Option<SmiPort>,
}

impl PmPorts {
    /// Intel's PIIX4 at its usual place.
    pub const PIIX4: Self = Self::piix4(layout::PM_BASE);

    /// Intel's PIIX4 where firmware puts it.
    #[must_use]
    pub const fn piix4(base: u16) -> Self {
        Self {
            event: base,
            control: base + 4,
            timer: base + 8,
            gpe0: base + 12,
            gpe0_len: 4,
            s3: 1,
            s5: 0,
            smi: Some(SmiPort {
                port: 0xb2,
                enable: 0xf1,
                disable: 0xf0,
            }),
        }
    }

    /// Intel's ICH9, which is the same at other places.
    #[must_use]
    pub const fn ich9(base: u16) -> Self {
        Self {
            gpe0: base + 0x20,
            gpe0_len: 16,
            ..Self::piix4(base)
        }
    }
}

impl Default for PmPorts {
    fn default() -> Self {
        Self {
            event: 0x600,
            control: 0x604,
            timer: 0x608,
            gpe0: 0x620,
            gpe0_len: 4,
            s3: 1,
            s5: 5,
            smi: None,
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
    /// virtio devices with memory-mapped registers: where those are, and the global system interrupt.
    pub virtio: Vec<(u32, u8)>,
    /// Whether there are a keyboard controller, a keyboard and a mouse.
    pub i8042: bool,
    /// Whether there is a floppy controller.
    pub floppy: bool,
    /// Whether there is a parallel port.
    pub parallel: bool,
    /// Whether there is a screen that answers as a VGA does.
    pub vga: bool,
    /// The PCI buses, if there are any.
    pub pci: Option<PciInput>,
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
    let too_large = || AcpiError::TooLarge(input.apic_ids.len());
    if input.apic_ids.len() > PROCESSORS_MAX {
        return Err(too_large());
    }
    let mut tables = Tables::of(input);
    let end = FACS_ADDRESS + tables.bytes.len() as u64;
    if end > layout::ACPI_END {
        return Err(too_large());
    }
    tables.move_to(FACS_ADDRESS);
    let at = |offset: u32| FACS_ADDRESS + u64::from(offset);
    let rsdp = root_pointer(at(tables.rsdt) as u32, at(tables.xsdt) as u32);
    memory.write(FACS_ADDRESS, &tables.bytes)?;
    memory.write(layout::ACPI_START, &rsdp)?;
    Ok(AcpiAddresses {
        rsdp: layout::ACPI_START,
        end,
    })
}

/// The tables for firmware that puts them where it likes, with the script that says what to correct then.
#[must_use]
pub fn linked(input: &AcpiInput) -> Linked {
    let mut tables = Tables::of(input);
    let mut rsdp = root_pointer(tables.rsdt, tables.xsdt);
    // UEFI's firmware adds up what is there already into the checksum that it makes.
    let sums: Vec<usize> = tables.summed.iter().map(|table| table.start + CHECKSUM).collect();
    clear(&mut tables.bytes, &sums);
    clear(&mut rsdp, &RSDP_CHECKSUMS);
    let loader = loader::script(&tables);
    Linked {
        rsdp,
        tables: tables.bytes,
        loader,
    }
}

fn clear(bytes: &mut [u8], places: &[usize]) {
    for place in places {
        if let Some(byte) = bytes.get_mut(*place) {
            *byte = 0;
        }
    }
}

/// What [`linked`] makes: the contents of three items of `fw_cfg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// `etc/acpi/rsdp`.
    pub rsdp: Vec<u8>,
    /// `etc/acpi/tables`.
    pub tables: Vec<u8>,
    /// `etc/table-loader`.
    pub loader: Vec<u8>,
}

/// Where the operating system wants to be entered after S3, in real mode: the firmware waking vector of the FACS. `None`
/// when it left none there, or when the FACS is gone.
#[must_use]
pub fn waking_vector(memory: &GuestMemory) -> Option<u32> {
    let signature: [u8; 4] = memory.read_obj(FACS_ADDRESS).ok()?;
    let vector: u32 = memory.read_obj(FACS_ADDRESS + FACS_WAKING_VECTOR).ok()?;
    (signature == *b"FACS" && vector != 0).then_some(vector)
}

/// An address in a table: where, and in how many bytes.
struct Pointer {
    at: usize,
    len: usize,
}

/// All tables but the RSDP in one block that begins at address zero.
struct Tables {
    bytes: Vec<u8>,
    /// Addresses of other tables in them.
    pointers: Vec<Pointer>,
    /// Tables with a checksum.
    summed: Vec<Range<usize>>,
    rsdt: u32,
    xsdt: u32,
}

impl Tables {
    fn of(input: &AcpiInput) -> Self {
        let mut this = Self {
            bytes: Vec::new(),
            pointers: Vec::new(),
            summed: Vec::new(),
            rsdt: 0,
            xsdt: 0,
        };
        let mut facs = Vec::new();
        FACS::new().to_aml_bytes(&mut facs);
        let facs = this.put(&facs);
        let dsdt = this.put_summed(dsdt::build(input).as_slice(), &[]);
        let fadt = fadt::build(input, facs, dsdt);
        let mut roots = vec![
            this.put_summed(&fadt, &fadt::POINTERS),
            this.put_summed(madt::build(input).as_slice(), &[]),
        ];
        if let Some(ecam) = input.pci.and_then(|pci| pci.ecam) {
            roots.push(this.put_summed(ich9::mcfg(ecam).as_slice(), &[]));
        }
        if input.hpet {
            roots.push(this.put_summed(hpet().as_slice(), &[]));
        }
        let (mut rsdt, mut xsdt) = (table(*b"RSDT", 1), table(*b"XSDT", 1));
        for address in &roots {
            rsdt.append(*address);
            xsdt.append(u64::from(*address));
        }
        let entries = |len: usize| -> Vec<(usize, usize)> {
            (HEADER_LEN as usize..)
                .step_by(len)
                .zip(std::iter::repeat_n(len, roots.len()))
                .collect()
        };
        this.rsdt = this.put_summed(rsdt.as_slice(), &entries(4));
        this.xsdt = this.put_summed(xsdt.as_slice(), &entries(8));
        this
    }

    fn put(&mut self, bytes: &[u8]) -> u32 {
        let at = self.bytes.len().next_multiple_of(ALIGN as usize);
        self.bytes.resize(at, 0);
        self.bytes.extend(bytes);
        // Processors are limited, and with them the length.
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// A table with a checksum, and with addresses at (offset, length).
    fn put_summed(&mut self, bytes: &[u8], pointers: &[(usize, usize)]) -> u32 {
        let address = self.put(bytes);
        let at = address as usize;
        self.summed.push(at..at + bytes.len());
        self.pointers.extend(pointers.iter().map(|(offset, len)| Pointer {
            at: at + offset,
            len: *len,
        }));
        address
    }

    /// Corrects addresses and checksums for tables that begin at `base`.
    fn move_to(&mut self, base: u64) {
        for pointer in &self.pointers {
            let Some(place) = self.bytes.get_mut(pointer.at..pointer.at + pointer.len) else {
                continue;
            };
            let mut address = [0; 8];
            for (to, from) in address.iter_mut().zip(place.iter()) {
                *to = *from;
            }
            let moved = (u64::from_le_bytes(address) + base).to_le_bytes();
            for (to, from) in place.iter_mut().zip(moved) {
                *to = from;
            }
        }
        for table in &self.summed {
            if let Some(bytes) = self.bytes.get_mut(table.clone())
                && let Some(sum) = bytes.get_mut(CHECKSUM)
            {
                *sum = 0;
                let right = complement(bytes);
                if let Some(sum) = bytes.get_mut(CHECKSUM) {
                    *sum = right;
                }
            }
        }
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
