//! IDENTIFY DEVICE and IDENTIFY PACKET DEVICE data.
//!
//! Spec: ACS-3 §7.12 and §7.13; SATA 3.3 §13.2 (words 76 to 79).

use super::Identity;
use super::page;
use super::put_words;
use super::set_checksum;
use crate::bytes;

/// What of a disk's state is shown.
pub(super) struct Shown {
    pub(super) sectors: u64,
    pub(super) sata: bool,
    pub(super) multiple: u8,
    pub(super) write_cache: bool,
    pub(super) look_ahead: bool,
    pub(super) smart: bool,
    /// Mode that SET FEATURES chose, as its sector count.
    pub(super) mode: u8,
    pub(super) geometry: (u16, u8, u8),
    pub(super) can_discard: bool,
}

/// Sectors that 28 bits address.
const LBA28: u64 = 0x0FFF_FFFF;

/// A text with the two characters of each word exchanged (ACS-3 §3.3.10).
fn text(page: &mut [u8], word: usize, len: usize, text: &str) {
    let chars = bytes::text(text, len);
    for (index, pair) in chars.chunks(2).enumerate() {
        let swapped: Vec<u8> = pair.iter().rev().copied().collect();
        bytes::put(page, (word + index) * 2, &swapped);
    }
}

fn names(page: &mut [u8], identity: &Identity) {
    text(page, 10, 20, &identity.serial);
    text(page, 23, 8, &identity.firmware);
    text(page, 27, 40, &identity.model);
}

/// A mode word: supported modes in the low byte, the selected one in the high byte.
fn mode_word(supported: u16, kind: u8, mode: u8) -> u16 {
    let selected = if mode & 0xF8 == kind { 1 << (mode & 7) } else { 0 };
    supported | selected << 8
}

/// Words of drives on a SATA link: queue depth, capabilities, link features.
fn sata_words(page: &mut [u8], queued: bool) {
    // Generations 1 to 3; native command queueing; unload while it is used.
    let capabilities = if queued { 0x010E } else { 0x000E };
    let depth = if queued { 31 } else { 0 };
    put_words(
        page,
        &[(75, depth), (76, capabilities), (78, 0), (79, 0), (222, 0x107F)],
    );
}

/// The geometry that a disk claims before anybody sets another.
pub(super) fn default_geometry(sectors: u64) -> (u16, u8, u8) {
    let cylinders = (sectors / (16 * 63)).clamp(1, 16_383);
    (bytes::low16(cylinders), 16, 63)
}

/// IDENTIFY DEVICE.
pub(super) fn disk(identity: &Identity, shown: &Shown) -> Vec<u8> {
    let mut page = page(512);
    let (cylinders, heads, track) = shown.geometry;
    let (own_cylinders, own_heads, own_track) = default_geometry(shown.sectors);
    let lba28 = bytes::low32(shown.sectors.min(LBA28)).to_le_bytes();
    let current = (u64::from(cylinders) * u64::from(heads) * u64::from(track)).min(LBA28);
    names(&mut page, identity);
    let multiple = if shown.multiple > 0 {
        0x100 | u16::from(shown.multiple)
    } else {
        0
    };
    let on = |bit: u16, is: bool| if is { bit } else { 0 };
    #[rustfmt::skip]
    put_words(&mut page, &[
        (0, 0x0040),                                    // fixed device
        (1, own_cylinders), (3, own_heads.into()), (6, own_track.into()),
        (47, 0x8010),                                   // 16 sectors in READ MULTIPLE
        (48, 0),
        (49, 0x2F00),                                   // standby timers, IORDY, LBA, DMA
        (50, 0x4000),
        (53, 7),                                        // words 54-58, 64-70 and 88 are valid
        (54, cylinders), (55, heads.into()), (56, track.into()),
        (59, multiple),
        (63, mode_word(7, 0x20, shown.mode)),           // multiword DMA 0-2
        (64, 3),                                        // PIO 3 and 4
        (65, 120), (66, 120), (67, 120), (68, 120),     // cycle times, ns
        (69, on(0x4020, shown.can_discard)),            // DSM reads are determinate, and zeros
        (80, 0x01F0),                                   // ATA/ATAPI-4 to ACS-2
        (82, 0x4061),                                   // NOP, write cache, look-ahead, SMART
        (83, 0x7400),                                   // FLUSH CACHE (EXT), 48-bit addresses
        (84, 0x4063),                                   // FUA writes, general purpose log, SMART log and self-test
        (85, 0x4000 | on(1, shown.smart) | on(0x20, shown.write_cache) | on(0x40, shown.look_ahead)),
        (86, 0x3400),
        (87, 0x4063),
        (88, mode_word(0x3F, 0x40, shown.mode)),        // Ultra DMA 0-5
        (93, on(0x600B, !shown.sata)),                  // 80-conductor cable, device 0 by jumper
        (105, on(8, shown.can_discard)),                // blocks of ranges in one DSM
        (106, 0x4000),
        (169, on(1, shown.can_discard)),                // TRIM
        (217, 1),                                       // does not rotate
    ]);
    bytes::put(&mut page, 57 * 2, &bytes::low32(current).to_le_bytes());
    bytes::put(&mut page, 60 * 2, &lba28);
    bytes::put(&mut page, 100 * 2, &shown.sectors.to_le_bytes());
    if shown.sata {
        sata_words(&mut page, true);
    }
    seal(&mut page);
    page
}

/// IDENTIFY PACKET DEVICE.
pub(super) fn optical(identity: &Identity, sata: bool, mode: u8) -> Vec<u8> {
    let mut page = page(512);
    names(&mut page, identity);
    #[rustfmt::skip]
    put_words(&mut page, &[
        (0, 0x85C0),                                    // CD/DVD, removable, DRQ within 50 us, 12-byte packets
        (49, 0x0F00),                                   // IORDY, LBA, DMA
        (50, 0x4000),
        (53, 6),
        (63, mode_word(7, 0x20, mode)),
        (64, 3),
        (65, 120), (66, 120), (67, 120), (68, 120),
        (80, 0x01F0),
        (82, 0x4210),                                   // NOP, DEVICE RESET, PACKET
        (83, 0x4000),
        (84, 0x4000),
        (85, 0x4210),
        (87, 0x4000),
        (88, mode_word(0x3F, 0x40, mode)),
        (93, if sata { 0 } else { 0x600B }),
    ]);
    if sata {
        sata_words(&mut page, false);
    }
    seal(&mut page);
    page
}

/// The integrity word (ACS-3 §7.12.7.77).
fn seal(page: &mut [u8]) {
    put_words(page, &[(255, 0x00A5)]);
    set_checksum(page);
}
