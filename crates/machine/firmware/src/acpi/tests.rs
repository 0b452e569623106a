//! Tests of the tables as an operating system finds them: from the RSDP down, by checksum, length and reference.

use super::*;
use crate::layout::tests::memory;

/// Guest memory with tables in it.
struct Tables {
    memory: GuestMemory,
    rsdp: u64,
}

impl Tables {
    fn build(input: &AcpiInput) -> Self {
        let memory = memory(1 << 20);
        let addresses = build(input, &memory).unwrap();
        assert!(addresses.end <= layout::ACPI_END);
        Self {
            memory,
            rsdp: addresses.rsdp,
        }
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(at, &mut bytes).unwrap();
        bytes
    }

    fn dword(&self, at: u64) -> u32 {
        self.memory.read_obj(at).unwrap()
    }

    fn qword(&self, at: u64) -> u64 {
        self.memory.read_obj(at).unwrap()
    }

    /// A table's bytes, after the check of its checksum.
    fn table(&self, at: u64) -> Vec<u8> {
        let bytes = self.bytes(at, self.dword(at + 4) as usize);
        assert_eq!(complement(&bytes), 0, "{at:#x}");
        assert_eq!(bytes[10..16], OEM_ID);
        bytes
    }

    /// Addresses in the XSDT, after the check that the RSDT has the same.
    fn roots(&self) -> Vec<u64> {
        let rsdp = self.bytes(self.rsdp, 36);
        assert_eq!(rsdp[..8], *b"RSD PTR ");
        assert_eq!((complement(&rsdp[..20]), complement(&rsdp)), (0, 0));
        let rsdt = self.table(self.dword(self.rsdp + 16).into());
        let xsdt = self.table(self.qword(self.rsdp + 24));
        assert_eq!((&rsdt[..4], &xsdt[..4]), (&b"RSDT"[..], &b"XSDT"[..]));
        let of = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let long: Vec<u64> = xsdt[36..].chunks(8).map(of).collect();
        assert_eq!(rsdt[36..].chunks(4).map(of).collect::<Vec<_>>(), long);
        long
    }

    fn find(&self, signature: &[u8; 4]) -> Vec<u8> {
        let tables = self.roots().into_iter().map(|at| self.table(at));
        tables.into_iter().find(|t| t[..4] == *signature).unwrap()
    }
}

fn pc(processors: u32) -> AcpiInput {
    AcpiInput {
        apic_ids: (0..processors).collect(),
        hpet: true,
        uarts: vec![(0x3f8, 4), (0x2f8, 3)],
        i8042: true,
        ..AcpiInput::default()
    }
}

fn contains(table: &[u8], part: &[u8]) -> bool {
    table.windows(part.len()).any(|w| w == part)
}

fn word(table: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([table[at], table[at + 1]])
}

fn dword(table: &[u8], at: usize) -> u32 {
    u32::from(word(table, at)) | u32::from(word(table, at + 2)) << 16
}

#[test]
fn rsdp_leads_to_tables_with_right_checksums() {
    let tables = Tables::build(&pc(2));
    assert_eq!(tables.rsdp, 0xe_0000);
    let signatures: Vec<_> = tables.roots().iter().map(|at| tables.bytes(*at, 4)).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"HPET"]);
    assert!(tables.roots().iter().all(|at| at % ALIGN == 0));
    assert_eq!(Tables::build(&AcpiInput { hpet: false, ..pc(1) }).roots().len(), 2);
}

#[test]
fn fadt_describes_the_fixed_hardware() {
    let tables = Tables::build(&pc(1));
    let fadt = tables.find(b"FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let facs = u64::from(dword(&fadt, 36));
    assert_eq!((tables.bytes(facs, 4), facs % 64), (b"FACS".to_vec(), 0));
    assert_eq!(u64::from(dword(&fadt, 40)), tables.qword_in(&fadt, 140));
    assert_eq!(tables.table(dword(&fadt, 40).into())[..4], *b"DSDT");
    assert_eq!((word(&fadt, 46), dword(&fadt, 48)), (9, 0), "SCI, SMI_CMD");
    let blocks = [56, 64, 76, 80].map(|at| dword(&fadt, at));
    assert_eq!(blocks, [0x600, 0x604, 0x608, 0x620]);
    assert_eq!(fadt[88..93], [4, 2, 0, 4, 4]);
    assert_eq!(word(&fadt, 109), 0b111, "boot architecture flags");
    let flags = dword(&fadt, 112);
    assert_eq!(flags, 1 << 0 | 1 << 2 | 1 << 5 | 1 << 8 | 1 << 10);
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0, 6]);
    assert_eq!(fadt[148..156], [1, 32, 0, 2, 0, 6, 0, 0]);
    let without = Tables::build(&AcpiInput { i8042: false, ..pc(1) });
    assert_eq!(word(&without.find(b"FACP"), 109), 0b101);
}

impl Tables {
    fn qword_in(&self, table: &[u8], at: usize) -> u64 {
        u64::from(dword(table, at)) | u64::from(dword(table, at + 4)) << 32
    }
}

/// Type and bytes of each structure of a MADT.
fn structures(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut all = Vec::new();
    while let [kind, len, ..] = *rest {
        all.push((kind, &rest[..len.into()]));
        rest = &rest[len.into()..];
    }
    all
}

#[test]
fn madt_lists_processors_and_interrupt_overrides() {
    let tables = Tables::build(&pc(2));
    let madt = tables.find(b"APIC");
    assert_eq!((dword(&madt, 36), dword(&madt, 40)), (0xfee0_0000, 1));
    assert_eq!(
        structures(&madt),
        [
            (0, &[0, 8, 0, 0, 1, 0, 0, 0][..]),
            (0, &[0, 8, 1, 1, 1, 0, 0, 0]),
            (1, &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
            (2, &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]),
            (2, &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0]),
            (4, &[4, 6, 255, 0, 0, 1]),
        ]
    );
}

#[test]
fn apic_id_past_254_is_an_x2apic() {
    let tables = Tables::build(&AcpiInput {
        apic_ids: vec![0, 254, 255, 0x1_0000],
        ..pc(0)
    });
    let madt = tables.find(b"APIC");
    let all = structures(&madt);
    assert_eq!(all[1].1, [0, 8, 1, 254, 1, 0, 0, 0]);
    assert_eq!(all[2].1, [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(all[3].1[4..8], [0, 0, 1, 0]);
    assert_eq!(all.last().unwrap().0, LOCAL_X2APIC_NMI);
}

const LOCAL_X2APIC_NMI: u8 = 10;

#[test]
fn dsdt_names_the_devices_that_there_are() {
    let dsdt = |input: &AcpiInput| {
        let tables = Tables::build(input);
        tables.table(dword(&tables.find(b"FACP"), 40).into())
    };
    let full = dsdt(&AcpiInput {
        extra: vec![b"\x08XTRA\x0a\x2a".to_vec()],
        ..pc(3)
    });
    for part in [&b"C002"[..], b"COM2", b"KBD_", b"HPET", b"\x08XTRA\x0a\x2a"] {
        assert!(contains(&full, part), "{part:?}");
    }
    assert!(contains(&full, b"\x08\\_S3_\x12\x06\x04\x01\x01\0\0"));
    assert!(contains(&full, b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\0\0"));
    // COM2's resources: ports 2F8h to 2FFh, interrupt 3.
    assert!(contains(&full, &[0x47, 1, 0xf8, 2, 0xf8, 2, 1, 8, 0x22, 8, 0, 0x79]));
    let bare = dsdt(&AcpiInput::default());
    for part in [&b"C000"[..], b"COM1", b"KBD_", b"HPET"] {
        assert!(!contains(&bare, part), "{part:?}");
    }
}

#[test]
fn waking_vector_is_what_the_system_wrote_into_the_facs() {
    let tables = Tables::build(&pc(1));
    let facs = u64::from(dword(&tables.find(b"FACP"), 36));
    assert_eq!(waking_vector(&tables.memory), None);
    tables.memory.write(facs + 12, &0x9_a120u32.to_le_bytes()).unwrap();
    assert_eq!(waking_vector(&tables.memory), Some(0x9_a120));
    tables.memory.write(facs, b"G").unwrap();
    assert_eq!(waking_vector(&tables.memory), None);
    assert_eq!(waking_vector(&memory(4096)), None);
}

#[test]
fn hpet_table_gives_address_and_capabilities() {
    let hpet = Tables::build(&pc(1)).find(b"HPET");
    assert_eq!((hpet.len(), dword(&hpet, 36)), (56, 0x8086_a201));
    assert_eq!(hpet[40..52], [0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0]);
}

#[test]
fn as_many_processors_as_fit_and_no_more() {
    assert!(build(&pc(1024), &memory(1 << 20)).is_ok());
    for processors in [4096, 5000] {
        assert!(matches!(
            build(&pc(processors), &memory(1 << 20)),
            Err(AcpiError::TooLarge(n)) if n == processors as usize
        ));
    }
    assert!(matches!(build(&pc(1), &memory(4096)), Err(AcpiError::Memory(_))));
}

/// A PC with everything that its tables can have.
fn whole_pc() -> AcpiInput {
    AcpiInput {
        pm: PmPorts::PIIX4,
        pci: Some(PciInput {
            high: Some((0x1_4000_0000, 1 << 36)),
            slots: Some(HotSlots {
                port: 0xae00,
                len: 0x14,
                gpe: 1,
                slots: 0x8000_0018,
            }),
            ..PciInput::below(0x8000_0000)
        }),
        floppy: true,
        parallel: true,
        ..pc(2)
    }
}

/// Does what firmware does with the script: tables at `base`, the RSDP at `rsdp`. Returns both.
fn load(linked: &Linked, base: u64, rsdp: u64) -> (Vec<u8>, Vec<u8>) {
    let mut files = [linked.tables.clone(), linked.rsdp.clone()];
    let bases = [base, rsdp];
    let name = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        usize::from(text.trim_end_matches('\0') == "etc/acpi/rsdp")
    };
    let mut allocated = 0;
    for command in linked.loader.chunks(128) {
        let file = name(&command[4..60]);
        match dword(command, 0) {
            1 => {
                allocated |= 1 << file;
                let (align, zone) = (dword(command, 60), command[64]);
                assert!(bases[file].is_multiple_of(u64::from(align)) && zone == [1, 2][file]);
            }
            2 => {
                let (from, at, len) = (
                    name(&command[60..116]),
                    dword(command, 116) as usize,
                    command[120] as usize,
                );
                let mut value = [0; 8];
                value[..len].copy_from_slice(&files[file][at..at + len]);
                let moved = u64::from_le_bytes(value) + bases[from];
                files[file][at..at + len].copy_from_slice(&moved.to_le_bytes()[..len]);
            }
            3 => {
                let [at, start, len] = [60, 64, 68].map(|field| dword(command, field) as usize);
                // SeaBIOS takes what is there into account, UEFI's firmware adds it up.
                assert_eq!(files[file][at], 0, "the checksum is not made yet");
                files[file][at] = complement(&files[file][start..start + len]);
            }
            other => panic!("command {other}"),
        }
    }
    assert_eq!(allocated, 3);
    let [tables, rsdp] = files;
    (tables, rsdp)
}

#[test]
fn script_gives_what_is_written_without_firmware() {
    let input = whole_pc();
    let linked = linked(&input);
    let (tables, rsdp) = load(&linked, FACS_ADDRESS, layout::ACPI_START);
    let written = Tables::build(&input);
    assert_eq!(written.bytes(FACS_ADDRESS, tables.len()), tables);
    assert_eq!(written.bytes(layout::ACPI_START, rsdp.len()), rsdp);
    assert_eq!(written.roots().len(), 3);
}

#[test]
fn fadt_of_a_piix4_begins_in_legacy_mode() {
    let fadt = Tables::build(&whole_pc()).find(b"FACP");
    assert_eq!((dword(&fadt, 48), &fadt[52..54]), (0xb2, &[0xf1, 0xf0][..]));
    assert_eq!(
        [56, 64, 76, 80].map(|at| dword(&fadt, at)),
        [0x600, 0x604, 0x608, 0x60c]
    );
}

#[test]
fn madt_of_a_pc_has_the_pci_interrupts_level_triggered() {
    let madt = Tables::build(&whole_pc()).find(b"APIC");
    for irq in [5, 9, 10, 11] {
        assert!(contains(&madt, &[2, 10, 0, irq, irq, 0, 0, 0, 13, 0]), "{irq}");
    }
}

/// Bytes as lines of hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    bytes.chunks(32).map(|bytes| line(bytes) + "\n").collect()
}

/// The whole PC with PCI Express.
fn whole_q35() -> AcpiInput {
    AcpiInput {
        pm: PmPorts::ich9(layout::PM_BASE),
        pci: Some(PciInput {
            high: Some((0x1_4000_0000, 1 << 36)),
            ..PciInput::express(0x8000_0000, layout::ECAM)
        }),
        vga: true,
        ..whole_pc()
    }
}

/// DSDT of a PC, as it is written.
fn dsdt_of(input: &AcpiInput) -> Vec<u8> {
    let tables = Tables::build(input);
    tables.table(dword(&tables.find(b"FACP"), 40).into())
}

fn is_golden(name: &str, bytes: &[u8]) {
    let golden = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = hex(bytes);
    if std::env::var_os("OXBOW_BLESS").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(text == expected, "{name}: run with OXBOW_BLESS=1 if this is right");
}

#[test]
fn dsdt_of_a_pc_is_as_its_golden_file_says() {
    is_golden("pc-dsdt.hex", &dsdt_of(&whole_pc()));
    is_golden("q35-dsdt.hex", &dsdt_of(&whole_q35()));
}

/// ACPICA's compiler reads the table, and compiles what it has read without an error. None where there is no compiler.
fn compiles(dsdt: &[u8]) -> Option<String> {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("dsdt.dat"), dsdt).unwrap();
    let iasl = |args: &[&str]| {
        let command = std::process::Command::new("iasl")
            .current_dir(dir.path())
            .args(args)
            .output();
        command.ok()
    };
    let Some(read) = iasl(&["-d", "dsdt.dat"]) else {
        eprintln!("SKIPPED: there is no iasl; `apt-get install acpica-tools` brings it");
        return None;
    };
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let source = std::fs::read_to_string(dir.path().join("dsdt.dsl")).unwrap();
    let compiled = iasl(&["-f", "dsdt.dsl"]).unwrap();
    let said = String::from_utf8_lossy(&compiled.stdout).into_owned();
    assert!(compiled.status.success() && said.contains(" 0 Errors"), "{said}");
    Some(source)
}

#[test]
fn dsdt_of_a_pc_stands_before_the_acpica_compiler() {
    let Some(source) = compiles(&dsdt_of(&whole_pc())) else {
        return;
    };
    for part in [
        "Device (PCI0)",
        "Device (LNKD)",
        "Device (FDC0)",
        "Device (LPT1)",
        "Name (_PRT, Package (0x80)",
        "OperationRegion (PIRQ, PCI_Config, 0x60, 0x04)",
        "Interrupt (ResourceConsumer, Level, ActiveHigh, Shared",
        "0x80000000,         // Range Minimum",
        "0xFEBFFFFF,         // Range Maximum",
        "0x0000000140000000, // Range Minimum",
    ] {
        assert!(source.contains(part), "no `{part}` in:\n{source}");
    }
}

#[test]
fn dsdt_of_a_q35_stands_before_the_acpica_compiler() {
    let Some(source) = compiles(&dsdt_of(&whole_q35())) else {
        return;
    };
    for part in [
        "EisaId (\"PNP0A08\")",
        "Device (LNKH)",
        "Name (PRTP, Package (0x80)",
        "Name (PRTA, Package (0x80)",
        "Method (\\_PIC, 1, NotSerialized)",
        "Method (_OSC, 4, Serialized)",
        "ToUUID (\"33db4d5b-1ff7-401c-9657-7441c03dd766\")",
        "OperationRegion (PIRQ, PCI_Config, 0x60, 0x0C)",
        "Device (DRAC)",
        "0xAFFFFFFF,         // Range Maximum",
        "0xC0000000,         // Range Minimum",
    ] {
        assert!(source.contains(part), "no `{part}` in:\n{source}");
    }
}

#[test]
fn mcfg_and_fadt_of_a_q35_say_where_its_registers_are() {
    let tables = Tables::build(&whole_q35());
    let mcfg = tables.find(b"MCFG");
    assert_eq!(mcfg[44..60], [0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0]);
    let fadt = tables.find(b"FACP");
    assert_eq!(
        [56, 64, 76, 80].map(|at| dword(&fadt, at)),
        [0x600, 0x604, 0x608, 0x620]
    );
    assert_eq!(fadt[92], 16);
    assert_eq!(word(&fadt, 109) & 1 << 2, 0, "there is a VGA");
}

#[test]
fn windows_go_around_configuration_space() {
    let low = |low_end, ecam| PciInput::express(low_end, ecam).low();
    let ecam = |base| (base, 0x1000_0000);
    assert_eq!(
        low(0x2000_0000, ecam(0xb000_0000)),
        [(0x8000_0000, 0xafff_ffff), (0xc000_0000, 0xfebf_ffff)]
    );
    assert_eq!(low(0xb000_0000, ecam(0xb000_0000)), [(0xc000_0000, 0xfebf_ffff)]);
    assert_eq!(
        low(0xb000_0000, ecam(0xe000_0000)),
        [(0xb000_0000, 0xdfff_ffff), (0xf000_0000, 0xfebf_ffff)]
    );
    assert_eq!(PciInput::below(0x2000_0000).low(), [(0x8000_0000, 0xfebf_ffff)]);
}
