//! SMART and the general purpose logs: the data of a drive in good health.
//!
//! Attributes count what a virtual disk has: power cycles and hours are those since the machine was made. Self-tests end at
//! once without an error. Logs of errors are empty.
//!
//! Spec: ATA/ATAPI-7 vol. 1 §6.16 (SMART), §8.55 (attribute data); ACS-3 §9 (logs).

use super::page;
use super::set_checksum;
use crate::bytes;

/// Attributes: identifier, flags, normalized value, threshold, raw value. The usual ones of solid-state disks.
#[rustfmt::skip]
const ATTRIBUTES: [(u8, u16, u8, u8, u64); 7] = [
    (1,   0x000B, 100, 50, 0),   // raw read error rate
    (5,   0x0033, 100, 10, 0),   // reallocated sectors
    (9,   0x0032, 100, 0,  0),   // power-on hours
    (12,  0x0032, 100, 0,  1),   // power cycles
    (194, 0x0022, 70,  0,  30),  // temperature, degrees Celsius
    (197, 0x0032, 100, 0,  0),   // pending sectors
    (199, 0x0032, 100, 0,  0),   // interface CRC errors
];

/// SMART READ DATA.
pub(super) fn data(self_test: u8) -> Vec<u8> {
    let mut page = page(512);
    bytes::put(&mut page, 0, &1u16.to_le_bytes());
    for (slot, (id, flags, value, _, raw)) in ATTRIBUTES.iter().enumerate() {
        let at = 2 + slot * 12;
        bytes::put(&mut page, at, &[*id]);
        bytes::put(&mut page, at + 1, &flags.to_le_bytes());
        bytes::put(&mut page, at + 3, &[*value, *value]);
        bytes::put(&mut page, at + 5, raw.to_le_bytes().get(..6).unwrap_or_default());
    }
    // Off-line collection complete; outcome of the self-test; they can be run; logs exist; minutes of self-tests.
    bytes::put(
        &mut page,
        362,
        &[0x02, self_test, 0, 0, 0, 0x1B, 0x03, 0x00, 0x01, 0, 1, 1],
    );
    set_checksum(&mut page);
    page
}

/// SMART READ THRESHOLDS.
pub(super) fn thresholds() -> Vec<u8> {
    let mut page = page(512);
    bytes::put(&mut page, 0, &1u16.to_le_bytes());
    for (slot, (id, _, _, threshold, _)) in ATTRIBUTES.iter().enumerate() {
        bytes::put(&mut page, 2 + slot * 12, &[*id, *threshold]);
    }
    set_checksum(&mut page);
    page
}

/// Pages of each log that there is: address, pages, whether SMART commands read it, whether READ LOG does.
const LOGS: [(u8, u8, bool, bool); 6] = [
    (0x00, 1, true, true),
    (0x01, 1, true, false),
    (0x03, 1, false, true),
    (0x06, 1, true, false),
    (0x07, 1, false, true),
    (0x10, 1, false, true),
];

/// A page of a log; none where there is none. Log 10h is the port's business, which knows what failed.
pub(super) fn log(address: u8, first: u16, count: u16, general: bool) -> Option<Vec<u8>> {
    let exists = |(at, _, by_smart, by_general): &&(u8, u8, bool, bool)| {
        *at == address && if general { *by_general } else { *by_smart }
    };
    let (_, pages, ..) = LOGS.iter().find(exists)?;
    if count == 0 || first.checked_add(count)? > u16::from(*pages) {
        return None;
    }
    let mut page = page(512);
    match address {
        0x00 => {
            bytes::put(&mut page, 0, &1u16.to_le_bytes());
            for (at, pages, by_smart, by_general) in LOGS.iter().skip(1) {
                let here = if general { *by_general } else { *by_smart };
                let pages = if here { *pages } else { 0 };
                bytes::put(&mut page, usize::from(*at) * 2, &[pages, 0]);
            }
        }
        // Logs of errors and self-tests: version 1, no entries.
        0x01 | 0x06 => {
            bytes::put(&mut page, 0, &1u16.to_le_bytes());
            set_checksum(&mut page);
        }
        0x03 | 0x07 => {
            bytes::put(&mut page, 0, &[1]);
            set_checksum(&mut page);
        }
        _ => {
            // No queued command has failed.
            bytes::put(&mut page, 0, &[0x80]);
            set_checksum(&mut page);
        }
    }
    Some(page)
}
