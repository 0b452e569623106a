//! SMBIOS tables: what inventory tools say of the machine.
//!
//! BIOS, system, chassis, processors, memory array and devices, their address ranges, boot status. Firmware puts them into
//! memory and completes the entry point.
//!
//! Spec: DMTF DSP0134 2.8 §5.2.1 (entry point), §6.1 (structures), §7 (types 0, 1, 3, 4, 16, 17, 19, 32, 127).

/// What the tables describe.
#[derive(Clone, Debug, Default)]
pub struct SmbiosInput {
    /// Number of processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Where RAM is: first address and length of each piece.
    pub ram: Vec<(u64, u64)>,
}

/// The tables, and the entry point that leads to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// Structures, one after the other.
    pub tables: Vec<u8>,
    /// The entry point of 2.8, whose address and checksums are firmware's to fill in.
    pub anchor: Vec<u8>,
}

const MANUFACTURER: &str = "Oxbow";
/// Largest memory device that is told in MiB in 15 bits.
const LARGE_MIB: u64 = 0x7fff;
/// Memory devices are at most of this size, as modules of a real machine.
const MODULE: u64 = 16 << 30;
/// Handles of the first structure of some types.
const HANDLE_ARRAY: u16 = 0x1000;
const HANDLE_CHASSIS: u16 = 0x0300;
const NONE: u16 = 0xfffe;

/// Structures as they are put together.
#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Tables {
    /// A structure: type, handle, fields behind the header, and strings.
    fn add(&mut self, kind: u8, handle: u16, fields: &[&[u8]], strings: &[&str]) {
        let body = fields.concat();
        let mut bytes = vec![kind, u8::try_from(body.len() + 4).unwrap_or(u8::MAX)];
        bytes.extend(handle.to_le_bytes());
        bytes.extend(body);
        for text in strings {
            bytes.extend(text.bytes());
            bytes.push(0);
        }
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes.push(0);
        self.largest = self.largest.max(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        self.count += 1;
        self.bytes.extend(bytes);
    }
}

/// Makes the tables.
#[must_use]
pub fn build(input: &SmbiosInput) -> Smbios {
    let mut tables = Tables::default();
    let version = env!("CARGO_PKG_VERSION");
    bios(&mut tables, version);
    system(&mut tables, version);
    chassis(&mut tables);
    for cpu in 0..input.cpus {
        processor(&mut tables, cpu);
    }
    memory(&mut tables, input);
    // Type 32, system boot information: no errors detected.
    tables.add(32, 0x2000, &[&[0; 6], &[0]], &[]);
    tables.add(127, 0x7f00, &[], &[]);
    let anchor = anchor(&tables);
    Smbios {
        tables: tables.bytes,
        anchor,
    }
}

/// Type 0: vendor, version, date, and that this is a virtual machine.
fn bios(tables: &mut Tables, version: &str) {
    let segment = 0xe800u16.to_le_bytes();
    // Characteristics: only that they are in the extension bytes; there: ACPI, virtual machine.
    let characteristics = 8u64.to_le_bytes();
    let fields: [&[u8]; 7] = [
        &[1, 2],
        &segment,
        &[3, 0],
        &characteristics,
        &[0x01, 0x10],
        &[0, 0],
        &[0xff, 0xff],
    ];
    tables.add(0, 0, &fields, &[MANUFACTURER, version, "04/01/2014"]);
}

/// Type 1: manufacturer, product, version; no serial number and no UUID; woken by the power switch.
fn system(tables: &mut Tables, version: &str) {
    let fields: [&[u8]; 3] = [&[1, 2, 3, 0], &[0; 16], &[6, 0, 4]];
    tables.add(
        1,
        0x0100,
        &fields,
        &[MANUFACTURER, "Oxbow PC", version, "Virtual machine"],
    );
}

/// Type 3: another kind of chassis, in a safe state.
fn chassis(tables: &mut Tables) {
    let fields: [&[u8]; 4] = [&[1, 1, 0, 0, 0], &[3, 3, 3, 2], &[0; 4], &[0, 0, 0, 0, 0]];
    tables.add(3, HANDLE_CHASSIS, &fields, &[MANUFACTURER]);
}

/// Type 4: a socket with a processor of one core, enabled.
fn processor(tables: &mut Tables, cpu: u32) {
    let socket = format!("CPU {cpu}");
    let handle = 0x0400u16.saturating_add(u16::try_from(cpu).unwrap_or(u16::MAX));
    let no_cache = u16::MAX.to_le_bytes();
    let fields: [&[u8]; 14] = [
        &[1, 3, 1, 2],
        &[0; 8],
        &[3, 0x80],
        // External clock unknown; at most, and now, 2 GHz.
        &[0, 0],
        &2000u16.to_le_bytes(),
        &2000u16.to_le_bytes(),
        &[0x41, 1],
        &no_cache,
        &no_cache,
        &no_cache,
        &[0, 0, 0],
        &[1, 1, 1],
        // 64-bit capable.
        &4u16.to_le_bytes(),
        &1u16.to_le_bytes(),
    ];
    tables.add(4, handle, &fields, &[&socket, MANUFACTURER]);
}

/// Types 16, 17, 19: an array of modules on the board, the modules, and where they are.
fn memory(tables: &mut Tables, input: &SmbiosInput) {
    let mut left = input.memory;
    let mut modules = Vec::new();
    while left > 0 {
        modules.push(left.min(MODULE));
        left -= left.min(MODULE);
    }
    let kib = u32::try_from(input.memory >> 10).unwrap_or(1 << 31);
    let large = kib >= 1 << 31;
    let shown = if large { 1 << 31 } else { kib };
    let extended = if large { input.memory } else { 0 };
    let count = u16::try_from(modules.len()).unwrap_or(u16::MAX);
    let fields: [&[u8]; 6] = [
        &[1, 3, 6],
        &shown.to_le_bytes(),
        &NONE.to_le_bytes(),
        &count.to_le_bytes(),
        &extended.to_le_bytes(),
        &[],
    ];
    tables.add(16, HANDLE_ARRAY, &fields, &[]);
    for (index, bytes) in (0u16..).zip(&modules) {
        module(tables, index, *bytes);
    }
    for (index, (base, len)) in (0u16..).zip(&input.ram) {
        let end = base + len - 1;
        let short = |address: u64| u32::try_from(address >> 10).ok();
        let (first, last, wide) = match (short(*base), short(end)) {
            (Some(first), Some(last)) if last < u32::MAX => (first, last, (0, 0)),
            _ => (u32::MAX, u32::MAX, (*base, end)),
        };
        let fields: [&[u8]; 6] = [
            &first.to_le_bytes(),
            &last.to_le_bytes(),
            &HANDLE_ARRAY.to_le_bytes(),
            &[1],
            &wide.0.to_le_bytes(),
            &wide.1.to_le_bytes(),
        ];
        tables.add(19, 0x1300u16.saturating_add(index), &fields, &[]);
    }
}

/// Type 17: a module of RAM.
fn module(tables: &mut Tables, index: u16, bytes: u64) {
    let mib = bytes >> 20;
    let (size, extended) = match u16::try_from(mib) {
        Ok(size) if mib < LARGE_MIB => (size, 0),
        _ => (0x7fff, u32::try_from(mib).unwrap_or(u32::MAX)),
    };
    let locator = format!("DIMM {index}");
    let fields: [&[u8]; 13] = [
        &HANDLE_ARRAY.to_le_bytes(),
        &NONE.to_le_bytes(),
        &u16::MAX.to_le_bytes(),
        &u16::MAX.to_le_bytes(),
        &size.to_le_bytes(),
        // DIMM, of no set, RAM, of another type.
        &[9, 0, 1, 0, 7],
        &2u16.to_le_bytes(),
        &[0, 0],
        &[2, 0, 0, 0, 0],
        &extended.to_le_bytes(),
        &[0, 0],
        &[0; 4],
        &[0, 0],
    ];
    tables.add(17, 0x1100u16.saturating_add(index), &fields, &[&locator, MANUFACTURER]);
}

/// The entry point. Its checksums are right for tables at address zero.
fn anchor(tables: &Tables) -> Vec<u8> {
    let len = u16::try_from(tables.bytes.len()).unwrap_or(u16::MAX);
    let mut anchor = b"_SM_\0\x1f\x02\x08".to_vec();
    anchor.extend(tables.largest.to_le_bytes());
    anchor.extend([0; 6]);
    anchor.extend(b"_DMI_\0");
    anchor.extend(len.to_le_bytes());
    anchor.extend([0; 4]);
    anchor.extend(tables.count.to_le_bytes());
    anchor.push(0x28);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    let inner = sum(anchor.get(16..).unwrap_or(&[]));
    if let Some(byte) = anchor.get_mut(21) {
        *byte = inner;
    }
    let outer = sum(&anchor);
    if let Some(byte) = anchor.get_mut(4) {
        *byte = outer;
    }
    anchor
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, and formatted part, of each structure.
    fn parse(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut all = Vec::new();
        while let [kind, len, ..] = *bytes {
            let (body, rest) = bytes.split_at(len.into());
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[..end].split(|byte| *byte == 0);
            let strings = strings.filter(|s| !s.is_empty());
            let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap()).collect();
            all.push((kind, body.to_vec(), strings));
            bytes = &rest[end + 2..];
        }
        all
    }

    fn input() -> SmbiosInput {
        SmbiosInput {
            cpus: 2,
            memory: 40 << 30,
            ram: vec![(0, 0xa_0000), (0x10_0000, 0xbff0_0000), (1 << 32, 37 << 30)],
        }
    }

    #[test]
    fn structures_have_their_types_and_lengths() {
        let all = parse(&build(&input()).tables);
        let kinds: Vec<(u8, usize)> = all.iter().map(|(kind, body, _)| (*kind, body.len())).collect();
        let expected = [
            (0, 0x18),
            (1, 0x1b),
            (3, 0x16),
            (4, 0x2a),
            (4, 0x2a),
            (16, 0x17),
            (17, 0x28),
            (17, 0x28),
            (17, 0x28),
            (19, 0x1f),
            (19, 0x1f),
            (19, 0x1f),
            (32, 0x0b),
            (127, 4),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(all[1].2[..2], ["Oxbow", "Oxbow PC"]);
    }

    #[test]
    fn modules_add_up_and_ranges_beyond_32_bits_of_kib_are_wide() {
        let all = parse(&build(&input()).tables);
        let modules = all.iter().filter(|(kind, ..)| *kind == 17);
        let mib = |body: &[u8]| match u16::from_le_bytes([body[12], body[13]]) {
            0x7fff => u32::from_le_bytes(body[28..32].try_into().unwrap()),
            small => small.into(),
        };
        let sum: u32 = modules.map(|(_, body, _)| mib(body)).sum();
        assert_eq!(sum, 40 << 10);
        let range = &all.iter().find(|(kind, ..)| *kind == 19).unwrap().1;
        assert_eq!(range[4..12], [0, 0, 0, 0, 0x7f, 2, 0, 0]);
    }

    #[test]
    fn anchor_has_both_checksums_and_counts() {
        let smbios = build(&input());
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let anchor = &smbios.anchor;
        assert_eq!((anchor.len(), sum(anchor), sum(&anchor[16..])), (31, 0, 0));
        assert_eq!(u16::from_le_bytes([anchor[28], anchor[29]]), 14);
        let len = u16::from_le_bytes([anchor[22], anchor[23]]);
        assert_eq!(usize::from(len), smbios.tables.len());
    }
}
