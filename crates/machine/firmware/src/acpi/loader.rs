//! The script by which firmware puts the tables into memory: where each part goes, which addresses to correct, which
//! checksums to make.
//!
//! Spec: QEMU hw/acpi/bios-linker-loader.c (commands ALLOCATE, ADD_POINTER, ADD_CHECKSUM).

use super::ALIGN;
use super::CHECKSUM;
use super::RSDP_LEN;
use super::Tables;

/// Bytes of a command.
const COMMAND_LEN: usize = 128;
/// Bytes of a file's name.
const NAME_LEN: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Zone of an allocation: anywhere below 4 GiB.
const HIGH: u8 = 1;
/// Zone of an allocation: where BIOSes are searched.
const F_SEGMENT: u8 = 2;
/// The RSDP's alignment.
const RSDP_ALIGN: u32 = 16;
/// Where the RSDP has the addresses of RSDT and XSDT.
const RSDP_POINTERS: [(u32, u8); 2] = [(16, 4), (24, 8)];
/// The RSDP's checksums: offset, and the bytes from its start that they cover.
const RSDP_SUMS: [(u32, u32); 2] = [(8, 20), (32, RSDP_LEN as u32)];

/// Names of the items.
const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";

/// The commands.
pub(super) fn script(tables: &Tables) -> Vec<u8> {
    let mut script = Vec::new();
    let align = (ALIGN as u32).to_le_bytes();
    command(&mut script, ALLOCATE, &[&name(TABLES), &align, &[HIGH]]);
    command(
        &mut script,
        ALLOCATE,
        &[&name(RSDP), &RSDP_ALIGN.to_le_bytes(), &[F_SEGMENT]],
    );
    for pointer in &tables.pointers {
        let at = offset(pointer.at).to_le_bytes();
        let len = [u8::try_from(pointer.len).unwrap_or(4)];
        command(&mut script, ADD_POINTER, &[&name(TABLES), &name(TABLES), &at, &len]);
    }
    for table in &tables.summed {
        let (start, len) = (offset(table.start), offset(table.len()));
        checksum(&mut script, TABLES, start + offset(CHECKSUM), start, len);
    }
    for (at, len) in RSDP_POINTERS {
        command(
            &mut script,
            ADD_POINTER,
            &[&name(RSDP), &name(TABLES), &at.to_le_bytes(), &[len]],
        );
    }
    for (at, len) in RSDP_SUMS {
        checksum(&mut script, RSDP, at, 0, len);
    }
    script
}

fn checksum(script: &mut Vec<u8>, file: &str, at: u32, start: u32, len: u32) {
    let numbers = [at, start, len].map(u32::to_le_bytes).concat();
    command(script, ADD_CHECKSUM, &[&name(file), &numbers]);
}

fn command(script: &mut Vec<u8>, code: u32, fields: &[&[u8]]) {
    let end = script.len() + COMMAND_LEN;
    script.extend(code.to_le_bytes());
    script.extend(fields.concat());
    script.resize(end, 0);
}

fn name(text: &str) -> Vec<u8> {
    let mut name = text.as_bytes().to_vec();
    name.resize(NAME_LEN, 0);
    name
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
