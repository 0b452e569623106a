//! The bus master of an IDE channel: it carries a drive's data to and from the regions of a table in memory.
//!
//! Spec: SFF-8038i §2 (descriptors), §3 (registers); Intel 290550-002 (PIIX3) §2.6.
use device_model::Node;
use device_model::Width;
use serde::Deserialize;
use serde::Serialize;

use super::cable::Cable;
use super::cable::Phase;
use crate::ata;
use crate::ata::error;
use crate::bytes;
use crate::work::Data;
use crate::work::Segment;

const START: u8 = 1 << 0;
/// Towards memory. Drives know the direction; the bit is kept only.
const TO_MEMORY: u8 = 1 << 3;

const ACTIVE: u8 = 1 << 0;
const ERROR: u8 = 1 << 1;
const INTERRUPT: u8 = 1 << 2;
/// A note of firmware's that drives can do DMA.
const CAPABLE: u8 = 3 << 5;

/// Bytes of a table at most: it does not cross 64 KiB.
const TABLE: u64 = 64 << 10;
const ENTRY: u64 = 8;
const END_OF_TABLE: u32 = 1 << 31;

/// Registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Master {
    command: u8,
    status: u8,
    table: u32,
}

impl Master {
    pub(super) fn note_interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// The drive was reset: nothing comes any more.
    pub(super) fn stop(&mut self) {
        self.status &= !ACTIVE;
    }

    /// The transfer is over. It stays active while regions are left (SFF-8038i §3.1).
    pub(super) fn finish(&mut self, exact: bool, failed: bool) {
        if exact || failed {
            self.status &= !ACTIVE;
        }
        if failed {
            self.status |= ERROR;
        }
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("command", self.command)
            .with("status", self.status)
            .with("table", self.table)
    }
}

impl Cable {
    pub(super) fn read_bus_master(&self, offset: u64, width: Width) -> u64 {
        let Master { command, status, table } = self.state.master;
        let [a, b, c, d] = table.to_le_bytes();
        let registers = [command, 0, status, 0, a, b, c, d];
        bytes::le64(&registers, bytes::index(offset)) & width.ones()
    }

    pub(super) fn write_bus_master(&mut self, offset: u64, width: Width, value: u64) {
        let given = value.to_le_bytes();
        for (at, byte) in (offset..8).zip(given.into_iter().take(usize::from(width as u8))) {
            match at {
                0 => self.write_command_register(byte),
                2 => {
                    let master = &mut self.state.master;
                    let kept = master.status & (ACTIVE | ERROR | INTERRUPT) & !(byte & (ERROR | INTERRUPT));
                    master.status = kept | byte & CAPABLE;
                }
                4..=7 => {
                    let mut table = self.state.master.table.to_le_bytes();
                    bytes::put(&mut table, bytes::index(at - 4), &[byte]);
                    self.state.master.table = u32::from_le_bytes(table) & !3;
                }
                _ => {}
            }
        }
    }

    fn write_command_register(&mut self, value: u8) {
        let was = self.state.master.command;
        self.state.master.command = value & (START | TO_MEMORY);
        match (was & START != 0, value & START != 0) {
            (false, true) => {
                self.state.master.status |= ACTIVE;
                self.try_master();
            }
            (true, false) => {
                self.state.master.status &= !ACTIVE;
                self.unmaster();
            }
            _ => {}
        }
    }

    /// Begins the transfer if both the drive and the bus master are ready for it.
    pub(super) fn try_master(&mut self) {
        let Phase::Dma { take } = self.state.phase else {
            return;
        };
        if self.state.master.status & ACTIVE == 0 || !self.may_master {
            return;
        }
        let need = match self.state.transfer {
            Some(transfer) => transfer.len,
            None if take > 0 => take.into(),
            None => self.state.buffer.len() as u64,
        };
        let Some((regions, exact)) = self.regions(need) else {
            self.state.master.finish(true, true);
            return self.end(error::ABRT);
        };
        if let Some(transfer) = self.state.transfer {
            let request = ata::request(&transfer, transfer.offset, transfer.len, Data::Guest(regions));
            return self.ask_mastered(request, exact);
        }
        let mut data = std::mem::take(&mut self.state.buffer);
        data.resize(bytes::index(need), 0);
        let done = self.carry(&regions, &mut data, take == 0);
        self.state.master.finish(exact, !done);
        match (done, take) {
            (false, _) => self.end(error::ABRT),
            (true, 0) => self.end(0),
            (true, _) => self.taken(&data),
        }
    }

    /// A few bytes that are no sectors.
    fn carry(&self, regions: &[Segment], mut data: &mut [u8], to_memory: bool) -> bool {
        let memory = self.work.memory();
        regions.iter().all(|region| {
            let len = bytes::index(region.len.into()).min(data.len());
            let (now, later) = std::mem::take(&mut data).split_at_mut_checked(len).unwrap_or_default();
            data = later;
            match to_memory {
                true => memory.write(region.gpa, now).is_ok(),
                false => memory.read(region.gpa, now).is_ok(),
            }
        })
    }

    /// The first `need` bytes of the table's regions, and whether there are no more. None when the table is shorter, or
    /// is no memory.
    fn regions(&self, need: u64) -> Option<(Vec<Segment>, bool)> {
        let base = u64::from(self.state.master.table);
        let (mut regions, mut left) = (Vec::new(), need);
        for at in (0..TABLE / ENTRY).map(|nth| base + nth * ENTRY) {
            let entry: [u8; 8] = self.work.memory().read_obj(at).ok()?;
            let (gpa, count) = (bytes::le32(&entry, 0) & !1, bytes::le16(&entry, 4) & !1);
            let len = if count == 0 { 0x1_0000 } else { u64::from(count) };
            let last = bytes::le32(&entry, 4) & END_OF_TABLE != 0;
            regions.push(Segment {
                gpa: gpa.into(),
                len: bytes::low32(len.min(left)),
            });
            if len >= left {
                return Some((regions, last && len == left));
            }
            left -= len;
            if last {
                break;
            }
        }
        None
    }
}
