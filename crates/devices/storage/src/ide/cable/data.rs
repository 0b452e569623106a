//! The data register of an IDE channel: blocks of sectors, and command packets.
//!
//! Spec: ATA8-APT §4 (PIO protocols); ACS-3 §7.18 (PACKET).

use device_model::Width;

use super::Cable;
use super::PACKET;
use super::Phase;
use super::Then;
use crate::ata;
use crate::ata::Step;
use crate::ata::error;
use crate::ata::status;
use crate::bytes;
use crate::work::Data;

impl Cable {
    pub(in crate::ide) fn read_data(&mut self, width: Width) -> u64 {
        if self.state.phase != Phase::DataIn || self.state.second != self.state.by_second {
            return 0;
        }
        let from = bytes::index(self.state.passed.into());
        let value = bytes::le64(&self.state.buffer, from) & width.ones();
        let end = self.state.block_end;
        self.state.passed = self.state.passed.saturating_add(u32::from(width as u8)).min(end);
        if self.state.passed == end {
            self.block_sent();
        }
        value
    }

    fn block_sent(&mut self) {
        if bytes::index(self.state.passed.into()) < self.state.buffer.len() {
            return self.begin_block(true);
        }
        if self.state.transfer.is_some() {
            return self.fetch();
        }
        if self.by_packet() {
            return self.end(0);
        }
        // The last block of a disk's data brings no interrupt of its own.
        self.state.phase = Phase::Idle;
        self.state.buffer = Vec::new();
        self.executing().status = status::READY;
    }

    pub(in crate::ide) fn write_data(&mut self, width: Width, value: u64) {
        if self.state.second != self.state.by_second {
            return;
        }
        let room = match self.state.phase {
            Phase::Packet => PACKET.saturating_sub(self.state.buffer.len()),
            Phase::DataOut => bytes::index(self.state.block_end.into()).saturating_sub(self.state.buffer.len()),
            _ => return,
        };
        let given = value.to_le_bytes();
        let taken = given.iter().take(usize::from(width as u8).min(room));
        self.state.buffer.extend(taken);
        let len = self.state.buffer.len();
        if self.state.phase == Phase::Packet {
            if len >= PACKET {
                self.packet_given();
            }
        } else if len as u64 >= self.state.block_end.into() {
            self.block_taken();
        }
    }

    fn packet_given(&mut self) {
        let packet = std::mem::take(&mut self.state.buffer);
        let drive = self.drive_mut(usize::from(self.state.by_second));
        let step = drive.map_or(Step::Fail(error::ABRT), |drive| drive.packet(&packet));
        self.follow(step);
    }

    fn block_taken(&mut self) {
        self.state.passed = self.state.block_end;
        if self.state.passed < self.state.total {
            return self.begin_block(true);
        }
        let given = std::mem::take(&mut self.state.buffer);
        match self.next_chunk() {
            Some((transfer, offset, len)) => {
                let request = ata::request(&transfer, offset, len, Data::Bytes(given));
                self.ask(request, Then::Written);
            }
            None => self.taken(&given),
        }
    }
}
