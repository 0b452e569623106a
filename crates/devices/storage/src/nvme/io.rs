//! Commands to namespaces, and the PRPs that say where data are.
//!
//! Spec: NVMe base 1.4 §4.3 (PRPs), §6 (commands).
use super::Nvme;
use super::queue::Command;
use super::queue::Done;
use super::queue::status;
use crate::bytes;
use crate::work::Data;
use crate::work::Op;
use crate::work::Request;
use crate::work::Segment;

/// Bytes of a sector and of a page.
pub(super) const SECTOR: u64 = 512;
pub(super) const PAGE: u64 = 4096;
/// Bytes of one command's data at most: 2 to the power of MDTS pages.
pub(super) const MDTS: u8 = 7;
const DATA_MAX: u64 = PAGE << MDTS;
/// Force unit access, in double word 12.
const FUA: u32 = 1 << 30;
/// Deallocate, in double word 11 of DATASET MANAGEMENT.
const DEALLOCATE: u32 = 1 << 2;
const RANGE: usize = 16;

impl Nvme {
    pub(super) fn io(&mut self, command: &Command) -> Done {
        let namespace = command.namespace();
        let Some(size) = self.medium(namespace).map(|medium| medium.size() / SECTOR) else {
            // A flush may be for all.
            return Done::status(status::NAMESPACE);
        };
        let read_only = self.medium(namespace).is_some_and(|medium| medium.is_read_only());
        let (first, count) = (command.qword(10), u64::from(command.dword(12) & 0xFFFF) + 1);
        let inside = first.checked_add(count).is_some_and(|end| end <= size);
        let (offset, len) = (first.saturating_mul(SECTOR), count * SECTOR);
        let ask = |request| Done::Ask { namespace, request };
        let writes = matches!(command.opcode(), 0x01 | 0x08 | 0x09);
        match command.opcode() {
            0x00 if read_only => Done::status(status::OK),
            0x00 => ask(Request::flush()),
            _ if writes && read_only => Done::status(status::READ_ONLY),
            0x01 | 0x02 | 0x05 if len > DATA_MAX => Done::status(status::FIELD),
            0x01 | 0x02 | 0x05 | 0x08 | 0x0C if !inside => Done::status(status::BEYOND),
            0x08 => ask(Request::new(
                Op::WriteZeroes { through: false },
                offset,
                len,
                Data::None,
            )),
            0x0C => ask(Request::new(Op::Verify, offset, len, Data::None)),
            0x01 | 0x02 | 0x05 => {
                let through = command.dword(12) & FUA != 0;
                let op = match command.opcode() {
                    0x01 => Op::Write { through },
                    0x02 => Op::Read,
                    _ => Op::Compare,
                };
                match self.prps(command, len) {
                    Ok(segments) => ask(Request::new(op, offset, len, Data::Guest(segments))),
                    Err(status) => Done::status(status),
                }
            }
            0x09 => self.dataset(command, size),
            _ => Done::status(status::OPCODE),
        }
    }

    /// DATASET MANAGEMENT: ranges are given back; other hints change nothing.
    fn dataset(&self, command: &Command, size: u64) -> Done {
        let count = bytes::index((command.dword(10) & 0xFF).into()) + 1;
        let list = match self.take(command, count * RANGE) {
            Ok(list) => list,
            Err(status) => return Done::status(status),
        };
        if command.dword(11) & DEALLOCATE == 0 {
            return Done::status(status::OK);
        }
        let mut ranges = Vec::new();
        for entry in list.chunks_exact(RANGE) {
            let (len, first) = (u64::from(bytes::le32(entry, 4)), bytes::le64(entry, 8));
            if first.checked_add(len).is_none_or(|end| end > size) {
                return Done::status(status::BEYOND);
            }
            if len > 0 {
                ranges.push((first * SECTOR, len * SECTOR));
            }
        }
        Done::Ask {
            namespace: command.namespace(),
            request: Request::new(Op::Discard { through: false }, 0, 0, Data::Ranges(ranges)),
        }
    }

    /// The pieces of memory that the command's PRPs describe.
    pub(super) fn prps(&self, command: &Command, len: u64) -> Result<Vec<Segment>, u16> {
        if len > DATA_MAX {
            return Err(status::FIELD);
        }
        let (one, two) = (command.qword(6), command.qword(8));
        let first = (PAGE - one % PAGE).min(len);
        let segment = |gpa, len: u64| Segment {
            gpa,
            len: bytes::low32(len),
        };
        // The lowest two bits are reserved.
        let mut segments = vec![segment(one & !3, first)];
        let mut left = len - first;
        if left == 0 {
            return Ok(segments);
        }
        if left <= PAGE {
            if !two.is_multiple_of(PAGE) {
                return Err(status::PRP_OFFSET);
            }
            segments.push(segment(two, left));
            return Ok(segments);
        }
        let mut at = two & !7;
        while left > 0 {
            let entry: u64 = self.work.memory().read_obj(at).map_err(|_| status::TRANSFER)?;
            // The last entry of a page leads to the next page of the list, if there is more than one page of data left.
            if at % PAGE == PAGE - 8 && left > PAGE {
                if !entry.is_multiple_of(PAGE) {
                    return Err(status::PRP_OFFSET);
                }
                at = entry;
                let first: u64 = self.work.memory().read_obj(at).map_err(|_| status::TRANSFER)?;
                push_page(&mut segments, first, &mut left)?;
            } else {
                push_page(&mut segments, entry, &mut left)?;
            }
            at = at.wrapping_add(8);
        }
        Ok(segments)
    }

    /// Gives the host bytes, as far as it has asked for them.
    pub(super) fn give(&self, command: &Command, data: &[u8]) -> u16 {
        let segments = match self.prps(command, data.len() as u64) {
            Ok(segments) => segments,
            Err(status) => return status,
        };
        let mut rest = data;
        for segment in segments {
            let (now, later) = rest
                .split_at_checked(bytes::index(segment.len.into()))
                .unwrap_or_default();
            if self.work.memory().write(segment.gpa, now).is_err() {
                return status::TRANSFER;
            }
            rest = later;
        }
        status::OK
    }

    /// Takes `len` bytes from the host.
    fn take(&self, command: &Command, len: usize) -> Result<Vec<u8>, u16> {
        let mut data = vec![0; len];
        let mut rest = data.as_mut_slice();
        for segment in self.prps(command, len as u64)? {
            let all = std::mem::take(&mut rest);
            let (now, later) = all
                .split_at_mut_checked(bytes::index(segment.len.into()))
                .unwrap_or_default();
            self.work
                .memory()
                .read(segment.gpa, now)
                .map_err(|_| status::TRANSFER)?;
            rest = later;
        }
        Ok(data)
    }
}

/// A page of an entry of a PRP list.
fn push_page(segments: &mut Vec<Segment>, entry: u64, left: &mut u64) -> Result<(), u16> {
    if !entry.is_multiple_of(PAGE) {
        return Err(status::PRP_OFFSET);
    }
    let len = (*left).min(PAGE);
    segments.push(Segment {
        gpa: entry,
        len: bytes::low32(len),
    });
    *left -= len;
    Ok(())
}
