//! Vital product data.
//!
//! Spec: SPC-4 §7.8 (pages 00h, 80h, 83h); SBC-3 §6.5 (pages B0h, B1h, B2h).

use super::disk::Disk;
use super::disk::SAME_BLOCKS;
use super::disk::UNMAP_BLOCKS;
use super::disk::UNMAP_RANGES;
use crate::ata::Identity;
use crate::ata::SECTOR;
use crate::bytes;
use crate::work::MOST;

/// Blocks of a page of the host, in which space is given back.
const PAGE_BLOCKS: u32 = 8;

/// A page of a disk, or of a CD drive where there is none; none if it has no such page.
pub(super) fn page(code: u8, identity: &Identity, disk: Option<&Disk>) -> Option<Vec<u8>> {
    let kind = if disk.is_some() { 0x00 } else { 0x05 };
    let body = match (code, disk) {
        (0x00, Some(_)) => vec![0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2],
        (0x00, None) => vec![0x00, 0x80, 0x83],
        (0x80, _) => identity.serial.clone().into_bytes(),
        (0x83, _) => designator(identity),
        (0xB0, Some(disk)) => limits(disk),
        // It does not rotate.
        (0xB1, Some(_)) => [vec![0, 1], vec![0; 58]].concat(),
        // UNMAP and both forms of WRITE SAME give space back, which reads as zeros; thin.
        (0xB2, Some(disk)) if disk.is_thin() => vec![0, 0xE4, 2, 0],
        (0xB2, Some(_)) => vec![0; 4],
        _ => return None,
    };
    let [high, low] = bytes::low16(body.len() as u64).to_be_bytes();
    Some([vec![kind, code, high, low], body].concat())
}

/// What names the unit: vendor and serial number (T10 vendor ID, in ASCII).
fn designator(identity: &Identity) -> Vec<u8> {
    let mut name = bytes::text("OXBOW", 8);
    name.extend(identity.serial.as_bytes());
    let head = [0x02, 0x01, 0, bytes::low8(name.len() as u64)];
    [head.to_vec(), name].concat()
}

/// What one command may ask for at most.
fn limits(disk: &Disk) -> Vec<u8> {
    let mut page = vec![0; 60];
    // Offsets are four less than in the standard, which counts the head. WRITE SAME of zero blocks is refused.
    bytes::put(&mut page, 0, &[1]);
    let [.., high, low] = PAGE_BLOCKS.to_be_bytes();
    bytes::put(&mut page, 2, &[high, low]);
    bytes::put(&mut page, 4, &bytes::low32(MOST / SECTOR).to_be_bytes());
    if disk.is_thin() {
        bytes::put(&mut page, 16, &UNMAP_BLOCKS.to_be_bytes());
        bytes::put(&mut page, 20, &UNMAP_RANGES.to_be_bytes());
        bytes::put(&mut page, 24, &PAGE_BLOCKS.to_be_bytes());
        bytes::put(&mut page, 28, &0x8000_0000u32.to_be_bytes());
        bytes::put(&mut page, 32, &SAME_BLOCKS.to_be_bytes());
    }
    page
}
