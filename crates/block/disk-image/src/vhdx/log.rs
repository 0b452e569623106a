//! The log of a VHDX file: changes of metadata that a crash kept from their place.
//!
//! Since VHDX is only read here, the changes are made to the cache of metadata and not to the file.
//!
//! Spec: MS-VHDX §2.3.

use crate::Result;
use crate::bytes;
use crate::meta::Meta;
use crate::meta::Stage;
use crate::store::File;

const SECTOR: u64 = 4096;
/// Logs are 1 MiB usually.
const MAX_LOG: u64 = 64 << 20;
/// What a log may change, in bytes.
const MAX_CHANGES: u64 = 64 << 20;

/// An entry of the log with its descriptors and data.
struct Entry {
    /// Where it is in the log.
    at: u64,
    tail: u64,
    sequence: u64,
    bytes: Vec<u8>,
}

/// Applies the log at `offset` to the cached metadata. Returns how long the file is: changes may be behind its end.
pub(super) fn replay(file: &File, meta: &mut Meta, offset: u64, len: u64, guid: [u8; 16]) -> Result<u64> {
    let bad = |what: &str| {
        file.corrupt(format!(
            "the log at {offset:#x} {what}; attach the image to Windows once to recover it"
        ))
    };
    let inside = offset
        .checked_add(len)
        .is_some_and(|end| end <= file.len().unwrap_or(0));
    if len == 0 || len > MAX_LOG || !len.is_multiple_of(SECTOR) || !inside {
        return Err(bad("is not within the file"));
    }
    let mut log = vec![0; len as usize];
    file.read_exact(offset, &mut log)?;
    let entries: Vec<Entry> = (0..len / SECTOR)
        .filter_map(|sector| entry(&log, sector * SECTOR, guid))
        .collect();
    // The newest sequence that is whole, from its tail to its head.
    let mut heads: Vec<&Entry> = entries.iter().collect();
    heads.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
    let active = heads
        .iter()
        .find_map(|head| sequence(&entries, head, len))
        .ok_or_else(|| bad("has no valid entry"))?;
    let mut changes = 0;
    let mut end = file.len()?;
    for entry in active {
        // What was on the medium when the entry was written must be there still.
        if bytes::u64_le(&entry.bytes, 48) > file.len()? {
            return Err(file.corrupt("the file is shorter than its log says; it was cut off"));
        }
        let last = bytes::u64_le(&entry.bytes, 56);
        end = end.max(last.min(i64::MAX as u64));
        apply(meta, entry, &mut changes).ok_or_else(|| bad("is damaged"))??;
    }
    Ok(end)
}

/// The entry at `at`, if there is one with a right checksum.
fn entry(log: &[u8], at: u64, guid: [u8; 16]) -> Option<Entry> {
    let start = usize::try_from(at).ok()?;
    let head = log.get(start..start + 64)?;
    let len = u64::from(bytes::u32_le(head, 8));
    if !head.starts_with(b"loge") || bytes::get::<16>(head, 32) != guid {
        return None;
    }
    if len == 0 || !len.is_multiple_of(SECTOR) || len > log.len() as u64 {
        return None;
    }
    // The log is a ring.
    let bytes: Vec<u8> = log.iter().cycle().skip(start).take(len as usize).copied().collect();
    let mut sum = crc32c::crc32c(bytes.get(..4)?);
    sum = crc32c::crc32c_append(sum, &[0; 4]);
    sum = crc32c::crc32c_append(sum, bytes.get(8..)?);
    (sum == bytes::u32_le(&bytes, 4)).then(|| Entry {
        at,
        tail: bytes::u32_le(&bytes, 12).into(),
        sequence: bytes::u64_le(&bytes, 16),
        bytes,
    })
}

/// The entries from the tail that `head` names to `head` itself. None when one is missing.
fn sequence<'a>(entries: &'a [Entry], head: &Entry, len: u64) -> Option<Vec<&'a Entry>> {
    let mut at = head.tail;
    let mut found: Vec<&Entry> = Vec::new();
    while found.len() <= entries.len() {
        let entry = entries.iter().find(|entry| entry.at == at)?;
        if found.last().is_some_and(|last| last.sequence + 1 != entry.sequence) {
            return None;
        }
        found.push(entry);
        if entry.at == head.at {
            return Some(found);
        }
        at = (at + entry.bytes.len() as u64) % len;
    }
    None
}

fn zero(meta: &mut Meta, target: u64, len: u64) -> Result<()> {
    const ZEROS: [u8; SECTOR as usize] = [0; SECTOR as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(SECTOR);
        meta.put(target + done, ZEROS.get(..part as usize).unwrap_or(&ZEROS), Stage::Late)?;
        done += part;
    }
    Ok(())
}

/// Makes an entry's changes. None when it contradicts itself.
fn apply(meta: &mut Meta, entry: &Entry, changes: &mut u64) -> Option<Result<()>> {
    let count = bytes::u32_le(&entry.bytes, 24) as usize;
    let mut data = (64 + count.checked_mul(32)?).checked_next_multiple_of(SECTOR as usize)?;
    for index in 0..count {
        let at = 64 + index * 32;
        let descriptor = entry.bytes.get(at..at + 32)?;
        let target = bytes::u64_le(descriptor, 16);
        let (len, content) = match descriptor.get(..4)? {
            b"zero" => (bytes::u64_le(descriptor, 8), None),
            b"desc" => {
                let sector = entry.bytes.get(data..data + SECTOR as usize)?;
                data += SECTOR as usize;
                let mut content = bytes::get::<8>(descriptor, 8).to_vec();
                content.extend(sector.get(8..4092)?);
                content.extend(bytes::get::<4>(descriptor, 4));
                (SECTOR, Some(content))
            }
            _ => return None,
        };
        *changes = changes.checked_add(len)?;
        if *changes > MAX_CHANGES || target.checked_add(len)? > i64::MAX as u64 {
            return None;
        }
        let result = match content {
            Some(content) => meta.put(target, &content, Stage::Late),
            None => zero(meta, target, len),
        };
        if let Err(error) = result {
            return Some(Err(error));
        }
    }
    Some(Ok(()))
}
