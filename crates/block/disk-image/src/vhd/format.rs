//! The structures of a VHD file: footer, dynamic header, parent locators.

use std::time::SystemTime;

use crate::Result;
use crate::Uuid;
use crate::bytes;
use crate::bytes::put;
use crate::store::File;

pub(crate) const SECTOR: u64 = 512;
/// A block that is not there.
pub(crate) const UNUSED: u32 = 0xffff_ffff;
/// 2040 GiB: what Windows takes.
pub(crate) const MAX_SIZE: u64 = 2040 << 30;
/// The table takes 64 MiB at most.
const MAX_ENTRIES: u32 = 1 << 24;
/// Seconds from 1970 to 2000.
const EPOCH: u64 = 946_684_800;

pub(crate) const FIXED: u32 = 2;
pub(crate) const DYNAMIC: u32 = 3;
pub(crate) const DIFFERENCING: u32 = 4;

/// Parent locators: a path relative to the child, and an absolute one; both UTF-16, little-endian.
pub(crate) const W2RU: u32 = u32::from_be_bytes(*b"W2ru");
const W2KU: u32 = u32::from_be_bytes(*b"W2ku");

const LOCATORS: usize = 8;
const AT_LOCATORS: usize = 576;

/// The sum of all bytes but the checksum's own, complemented.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |sum: u32, (index, &byte): (usize, &u8)| match index {
        index if (at..at + 4).contains(&index) => sum,
        _ => sum.wrapping_add(byte.into()),
    };
    !bytes.iter().enumerate().fold(0, sum)
}

/// A sector that is a footer, with the right checksum.
pub(crate) fn is_footer(sector: &[u8; 512]) -> bool {
    sector.starts_with(b"conectix") && bytes::u32_be(sector, 64) == checksum(sector, 64)
}

#[derive(Clone, Debug)]
pub(crate) struct Footer {
    pub(crate) data: u64,
    pub(crate) size: u64,
    pub(crate) kind: u32,
    pub(crate) uuid: Uuid,
    /// As it is in the file.
    pub(crate) sector: [u8; 512],
}

impl Footer {
    /// The footer at the end of the file, or its copy at the beginning. Tells whether it is at the end.
    pub(crate) fn read(file: &File) -> Result<(Self, bool)> {
        let len = file.len()?;
        let mut sector = [0; 512];
        if len >= SECTOR {
            file.read_padded(len - SECTOR, &mut sector)?;
            if is_footer(&sector) {
                return Ok((Self::parse(file, sector)?, true));
            }
        }
        file.read_padded(0, &mut sector)?;
        if is_footer(&sector) {
            return Ok((Self::parse(file, sector)?, false));
        }
        let mut last = [0; 8];
        file.read_padded(len.saturating_sub(SECTOR), &mut last)?;
        if !sector.starts_with(b"conectix") && last != *b"conectix" {
            return Err(file.no_such_image(crate::Format::Vhd));
        }
        Err(file.corrupt("neither the end nor the beginning of the file is a VHD footer with the right checksum"))
    }

    fn parse(file: &File, sector: [u8; 512]) -> Result<Self> {
        let footer = Self {
            data: bytes::u64_be(&sector, 16),
            size: bytes::u64_be(&sector, 48),
            kind: bytes::u32_be(&sector, 60),
            uuid: Uuid(bytes::get(&sector, 68)),
            sector,
        };
        if bytes::u32_be(&sector, 12) >> 16 != 1 {
            return Err(file.unsupported(format!(
                "VHD version {:#x} is not supported; 1.0 is",
                bytes::u32_be(&sector, 12)
            )));
        }
        if !footer.size.is_multiple_of(SECTOR) || i64::try_from(footer.size).is_err() {
            return Err(file.corrupt(format!("the footer says a disk of {} bytes", footer.size)));
        }
        Ok(footer)
    }

    /// A new one.
    pub(crate) fn make(size: u64, kind: u32, uuid: Uuid) -> [u8; 512] {
        let mut sector = [0; 512];
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        put(&mut sector, 0, b"conectix");
        put(&mut sector, 8, &2u32.to_be_bytes());
        put(&mut sector, 12, &0x1_0000u32.to_be_bytes());
        put(
            &mut sector,
            16,
            &(if kind == FIXED { u64::MAX } else { SECTOR }).to_be_bytes(),
        );
        put(&mut sector, 24, &(now.saturating_sub(EPOCH) as u32).to_be_bytes());
        // QUIRK(QEMU): of images by creators that it does not know, it takes the size from the geometry, which is less.
        put(&mut sector, 28, b"win ");
        put(&mut sector, 32, &0x6_0001u32.to_be_bytes());
        put(&mut sector, 36, b"Wi2k");
        put(&mut sector, 40, &size.to_be_bytes());
        put(&mut sector, 48, &size.to_be_bytes());
        put(&mut sector, 56, &geometry(size / SECTOR));
        put(&mut sector, 60, &kind.to_be_bytes());
        put(&mut sector, 68, &uuid.0);
        let sum = checksum(&sector, 64);
        put(&mut sector, 64, &sum.to_be_bytes());
        sector
    }
}

/// Cylinders, heads and sectors per track. VHD §"Appendix: CHS Calculation".
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(65535 * 16 * 255);
    let (cylinders, heads, track) = if sectors >= 65535 * 16 * 63 {
        (sectors / 255 / 16, 16, 255)
    } else {
        let mut track = 17;
        let mut cylinder_heads = sectors / track;
        let mut heads = cylinder_heads.div_ceil(1024).max(4);
        if cylinder_heads >= heads * 1024 || heads > 16 {
            (track, heads) = (31, 16);
            cylinder_heads = sectors / track;
        }
        if cylinder_heads >= heads * 1024 {
            (track, heads) = (63, 16);
            cylinder_heads = sectors / track;
        }
        (cylinder_heads / heads, heads, track)
    };
    let [low, high] = (cylinders as u16).to_le_bytes();
    [high, low, heads as u8, track as u8]
}

/// The header of dynamic and differencing images.
#[derive(Clone, Debug)]
pub(crate) struct DynamicHeader {
    pub(crate) table: u64,
    pub(crate) entries: u32,
    pub(crate) block: u64,
    pub(crate) parent: Uuid,
    /// Paths of the parent, the most trustworthy first.
    pub(crate) parents: Vec<String>,
}

impl DynamicHeader {
    pub(crate) fn read(file: &File, footer: &Footer) -> Result<Self> {
        let mut head = [0; 1024];
        file.read_exact(footer.data, &mut head)?;
        if !head.starts_with(b"cxsparse") || bytes::u32_be(&head, 36) != checksum(&head, 36) {
            return Err(file.corrupt(format!(
                "the dynamic header at {:#x} has no signature or a wrong checksum",
                footer.data
            )));
        }
        let mut header = Self {
            table: bytes::u64_be(&head, 16),
            entries: bytes::u32_be(&head, 28),
            block: bytes::u32_be(&head, 32).into(),
            parent: Uuid(bytes::get(&head, 40)),
            parents: Vec::new(),
        };
        if !header.block.is_power_of_two() || !(4096..=256 << 20).contains(&header.block) {
            return Err(file.corrupt(format!("the header says blocks of {} bytes", header.block)));
        }
        if header.entries > MAX_ENTRIES || footer.size.div_ceil(header.block) > header.entries.into() {
            return Err(file.corrupt(format!(
                "a disk of {} bytes does not fit a table of {} entries",
                footer.size, header.entries
            )));
        }
        let end = header.table.checked_add(u64::from(header.entries) * 4);
        if !header.table.is_multiple_of(SECTOR)
            || header.table == 0
            || end.is_none_or(|end| end > file.len().unwrap_or(0))
        {
            return Err(file.corrupt(format!(
                "the block table at {:#x} is not within the file; it was cut off",
                header.table
            )));
        }
        if footer.kind == DIFFERENCING {
            header.parents = parents(file, &head)?;
        }
        Ok(header)
    }

    /// A new one.
    pub(crate) fn make(table: u64, entries: u32, block: u64, parent: Option<(Uuid, &str, u64)>) -> [u8; 1024] {
        let mut head = [0; 1024];
        put(&mut head, 0, b"cxsparse");
        put(&mut head, 8, &u64::MAX.to_be_bytes());
        put(&mut head, 16, &table.to_be_bytes());
        put(&mut head, 24, &0x1_0000u32.to_be_bytes());
        put(&mut head, 28, &entries.to_be_bytes());
        put(&mut head, 32, &(block as u32).to_be_bytes());
        if let Some((uuid, name, locator)) = parent {
            put(&mut head, 40, &uuid.0);
            let file = name.rsplit('/').next().unwrap_or(name);
            let text: Vec<u8> = file.encode_utf16().take(255).flat_map(u16::to_be_bytes).collect();
            put(&mut head, 64, &text);
            let len = windows_path(name).len() as u32;
            put(&mut head, AT_LOCATORS, &W2RU.to_be_bytes());
            put(&mut head, AT_LOCATORS + 4, &len.next_multiple_of(512).to_be_bytes());
            put(&mut head, AT_LOCATORS + 8, &len.to_be_bytes());
            put(&mut head, AT_LOCATORS + 16, &locator.to_be_bytes());
        }
        let sum = checksum(&head, 36);
        put(&mut head, 36, &sum.to_be_bytes());
        head
    }
}

/// A path as Windows writes it, in UTF-16.
pub(crate) fn windows_path(name: &str) -> Vec<u8> {
    let path = if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("./{name}")
    };
    path.replace('/', "\\")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// Where the parent may be, by all that the header says.
fn parents(file: &File, head: &[u8]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for code in [W2RU, W2KU] {
        for index in 0..LOCATORS {
            let at = AT_LOCATORS + index * 24;
            let (len, offset) = (bytes::u32_be(head, at + 8), bytes::u64_be(head, at + 16));
            if bytes::u32_be(head, at) != code || len == 0 {
                continue;
            }
            if len > 65536 {
                return Err(file.corrupt(format!("a parent locator has {len} bytes")));
            }
            let mut text = vec![0; len as usize];
            file.read_exact(offset, &mut text)?;
            names.push(unix_path(
                text.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit)),
            ));
        }
    }
    let name = head.get(64..576).unwrap_or_default();
    let units = name
        .as_chunks()
        .0
        .iter()
        .map(|unit| u16::from_be_bytes(*unit))
        .take_while(|&unit| unit != 0);
    let name = unix_path(units);
    // The name may be a path of another machine: the file itself may lie beside the child.
    names.push(name.rsplit('/').next().unwrap_or_default().to_owned());
    names.push(name);
    names.retain(|name| !name.is_empty());
    Ok(names)
}

fn unix_path(units: impl Iterator<Item = u16>) -> String {
    let text: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or('\u{fffd}'))
        .collect();
    let text = text.replace('\\', "/");
    match text.split_once(':') {
        Some((drive, rest)) if drive.len() == 1 => rest.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footer_has_a_checksum_that_notices_flipped_bits() {
        let mut sector = Footer::make(1 << 30, DYNAMIC, Uuid::random());
        assert!(is_footer(&sector));
        sector[50] ^= 1;
        assert!(!is_footer(&sector));
    }

    #[test]
    fn geometry_is_that_of_the_specification() {
        // 40 MiB, 1 GiB and 127 GiB.
        for (sectors, geometry_of) in [(81920, [5, 17]), (2_097_152, [16, 63]), (266_338_304, [16, 255])] {
            let [_, _, heads, track] = geometry(sectors);
            assert_eq!([heads, track], geometry_of, "{sectors}");
        }
    }

    #[test]
    fn paths_survive_windows() {
        let text = windows_path("../base/x.vhd");
        let units = text.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
        assert_eq!(unix_path(units), "./../base/x.vhd");
        assert_eq!(unix_path("C:\\vm\\x.vhd".encode_utf16()), "/vm/x.vhd");
    }
}
