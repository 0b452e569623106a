//! ATA and ATAPI drives, apart from the wires to them: what a command means, given the registers that a host has written.
//!
//! IDE channels and AHCI ports carry commands to a [`Drive`] and do what it answers: send or take bytes, move sectors, or ask
//! the medium for something. Drives keep no data of a transfer.
//!
//! Spec: ACS-3 §4 (features), §7 (commands); ATA8-APT §3 (registers).

mod disk;
mod identify;
mod optical;
mod packet;
mod smart;

use std::sync::Arc;

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use crate::bytes;
use crate::medium::Medium;
use crate::work::Fault;
use crate::work::Op;
use crate::work::Request;

pub(crate) use disk::Disk;
pub(crate) use disk::DiskState;
pub(crate) use optical::Optical;
pub(crate) use optical::OpticalState;
pub(crate) use optical::Sense;
pub use optical::Tray;
pub(crate) use optical::sense;

/// Bytes of a disk's sector.
pub(crate) const SECTOR: u64 = 512;

/// Bits of the status register (ACS-3 §6.3).
pub(crate) mod status {
    pub(crate) const ERR: u8 = 1 << 0;
    pub(crate) const DRQ: u8 = 1 << 3;
    /// Seek complete; with overlap, service.
    pub(crate) const DSC: u8 = 1 << 4;
    pub(crate) const DRDY: u8 = 1 << 6;
    pub(crate) const BSY: u8 = 1 << 7;
    /// A disk that waits for a command.
    pub(crate) const READY: u8 = DRDY | DSC;
}

/// Bits of the error register (ACS-3 §6.2).
pub(crate) mod error {
    pub(crate) const ABRT: u8 = 1 << 2;
    pub(crate) const IDNF: u8 = 1 << 4;
    pub(crate) const UNC: u8 = 1 << 6;
    pub(crate) const ICRC: u8 = 1 << 7;
}

/// Command codes that are not the drives' own business alone.
pub(crate) mod code {
    pub(crate) const DEVICE_RESET: u8 = 0x08;
    pub(crate) const DIAGNOSTIC: u8 = 0x90;
    pub(crate) const PACKET: u8 = 0xA0;
}

/// What a drive says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Model number, at most 40 characters.
    pub model: String,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Firmware revision, at most 8 characters.
    pub firmware: String,
}

/// A drive's registers. Those of two bytes are written one after the other: `[0]` is the last value, `[1]` the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taskfile {
    pub(crate) features: [u8; 2],
    pub(crate) count: [u8; 2],
    pub(crate) low: [u8; 2],
    pub(crate) mid: [u8; 2],
    pub(crate) high: [u8; 2],
    pub(crate) device: u8,
    pub(crate) error: u8,
    pub(crate) status: u8,
}

impl Taskfile {
    /// The 48-bit address.
    pub(crate) fn lba48(&self) -> u64 {
        let ([a, d], [b, e], [c, f]) = (self.low, self.mid, self.high);
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    pub(crate) fn set_lba48(&mut self, lba: u64) {
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        (self.low, self.mid, self.high) = ([a, d], [b, e], [c, f]);
    }

    /// The 28-bit address, in either form.
    fn lba28(&self) -> u64 {
        u64::from_le_bytes([self.low[0], self.mid[0], self.high[0], self.device & 0x0F, 0, 0, 0, 0])
    }

    fn set_lba28(&mut self, lba: u64) {
        let [a, b, c, d, ..] = lba.to_le_bytes();
        (self.low[0], self.mid[0], self.high[0]) = (a, b, c);
        self.device = self.device & 0xF0 | d & 0x0F;
    }

    /// What a drive shows after a reset, by which hosts tell disks from packet devices (ATA8-APT §5.3.2).
    pub(crate) fn set_signature(&mut self, packet: bool) {
        let (mid, high) = if packet { (0x14, 0xEB) } else { (0, 0) };
        self.count = [1, 0];
        self.low = [1, 0];
        self.mid = [mid, 0];
        self.high = [high, 0];
        self.device &= 0x10;
        self.features = [0; 2];
    }
}

/// How the bytes of a transfer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Protocol {
    /// Through the data register, in blocks of so many bytes.
    Pio {
        block: u32,
    },
    Dma,
    /// Under a tag, between others (AHCI only).
    Queued,
}

/// Sectors to be moved between medium and host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) write: bool,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) protocol: Protocol,
    /// The data are safe before the command ends.
    pub(crate) through: bool,
}

/// What a command needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing more.
    End,
    /// It fails with these bits of the error register.
    Fail(u8),
    /// The host gets bytes.
    Send(Vec<u8>),
    /// The host gives so many bytes, which go to [`Drive::receive`].
    Take(usize),
    Move(Transfer),
    Ask(Request),
    /// The host gives a command packet, which goes to [`Drive::packet`].
    Packet,
}

/// A drive.
#[derive(Debug)]
pub enum Drive {
    /// A hard disk.
    Disk(Disk),
    /// A CD or DVD drive.
    Optical(Optical),
}

impl Drive {
    /// A hard disk of `medium`.
    #[must_use]
    pub fn disk(medium: Arc<dyn Medium>, identity: Identity) -> Self {
        Self::Disk(Disk::new(medium, identity))
    }

    /// A CD or DVD drive, with or without a disc.
    #[must_use]
    pub fn optical(medium: Option<Arc<dyn Medium>>, identity: Identity) -> Self {
        Self::Optical(Optical::new(medium, identity))
    }

    pub(crate) fn is_packet(&self) -> bool {
        matches!(self, Self::Optical(_))
    }

    pub(crate) fn medium(&self) -> Option<&Arc<dyn Medium>> {
        match self {
            Self::Disk(disk) => Some(disk.medium()),
            Self::Optical(optical) => optical.medium(),
        }
    }

    /// The disc's tray, if there is one.
    pub(crate) fn tray(&mut self) -> Option<&mut dyn Tray> {
        match self {
            Self::Disk(_) => None,
            Self::Optical(optical) => Some(optical),
        }
    }

    /// A command was written. Commands of packet devices leave sense data when they fail.
    pub(crate) fn command(&mut self, code: u8, task: &mut Taskfile, sata: bool) -> Step {
        match self {
            Self::Disk(disk) => disk.command(code, task, sata),
            Self::Optical(optical) => optical.command(code, task, sata),
        }
    }

    /// The bytes of a [`Step::Take`] are there.
    pub(crate) fn receive(&mut self, code: u8, task: &Taskfile, given: &[u8]) -> Step {
        match self {
            Self::Disk(disk) => disk.receive(code, task, given),
            Self::Optical(optical) => optical.receive(given),
        }
    }

    /// A command packet has come.
    pub(crate) fn packet(&mut self, packet: &[u8]) -> Step {
        match self {
            Self::Disk(_) => Step::Fail(error::ABRT),
            Self::Optical(optical) => optical.packet(packet),
        }
    }

    /// The error register for a request that the medium or guest memory failed.
    pub(crate) fn fault(&mut self, fault: Fault) -> u8 {
        match self {
            Self::Disk(disk) => disk.fault(fault),
            Self::Optical(optical) => optical.fault(fault),
        }
    }

    /// Why the last packet failed; it is told once.
    pub(crate) fn take_sense(&mut self) -> Sense {
        match self {
            Self::Disk(_) => sense::NONE,
            Self::Optical(optical) => std::mem::replace(&mut optical.state.sense, sense::NONE),
        }
    }

    /// What hardware reset and power-on do.
    pub(crate) fn reset(&mut self) {
        match self {
            Self::Disk(disk) => disk.reset(),
            Self::Optical(optical) => optical.reset(),
        }
    }

    pub(crate) fn save(&self) -> DriveState {
        match self {
            Self::Disk(disk) => DriveState::Disk(disk.save()),
            Self::Optical(optical) => DriveState::Optical(optical.save()),
        }
    }

    pub(crate) fn restore(&mut self, state: DriveState) -> Result<(), RestoreError> {
        match (self, state) {
            (Self::Disk(disk), DriveState::Disk(state)) => disk.restore(state),
            (Self::Optical(optical), DriveState::Optical(state)) => optical.restore(state),
            _ => Err(RestoreError::Invalid("state of another kind of drive".to_owned())),
        }
    }

    pub(crate) fn inspect(&self) -> Node {
        match self {
            Self::Disk(disk) => disk.inspect(),
            Self::Optical(optical) => optical.inspect(),
        }
    }
}

/// Saved state of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DriveState {
    Disk(DiskState),
    Optical(OpticalState),
}

/// A request that reads or writes what `transfer` says.
pub(crate) fn request(transfer: &Transfer, offset: u64, len: u64, data: crate::work::Data) -> Request {
    let op = match transfer.write {
        true => Op::Write {
            through: transfer.through,
        },
        false => Op::Read,
    };
    Request::new(op, offset, len, data)
}

/// Makes the last byte such that all bytes add up to zero.
fn set_checksum(sector: &mut [u8]) {
    if let Some((last, bytes)) = sector.split_last_mut() {
        *last = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    }
}

/// A page of `len` zeros.
fn page(len: usize) -> Vec<u8> {
    vec![0; len]
}

/// Puts 16-bit words at word offsets.
fn put_words(page: &mut [u8], words: &[(usize, u16)]) {
    for (at, word) in words {
        bytes::put(page, at * 2, &word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
