//! Layouts of a SCSI host: configuration, commands, answers.
//!
//! Spec: virtio 1.2 §5.6.4 (configuration), §5.6.6.1 (requests).

use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::ENTRIES;
use super::SENSE;

/// Bytes of a command before its descriptor block.
pub(super) const COMMAND: usize = 19;
/// Bytes of an answer before its sense data.
const ANSWER: u64 = 12;
/// Bytes that drivers may make sense data and descriptor blocks at most.
const MOST: u16 = 260;
/// Where the two are in configuration space.
const SENSE_SIZE: usize = 20;
const CDB_SIZE: usize = 24;
/// CHECK CONDITION and RESERVATION CONFLICT.
const CHECK: u8 = 2;
const CONFLICT: u8 = 0x18;

/// How a command ends for the transport (§5.6.6.1).
pub(super) mod response {
    pub(in super::super) const OK: u8 = 0;
    pub(in super::super) const OVERRUN: u8 = 1;
    pub(in super::super) const BAD_TARGET: u8 = 3;
    pub(in super::super) const FUNCTION_SUCCEEDED: u8 = 10;
    pub(in super::super) const FUNCTION_REJECTED: u8 = 11;
    pub(in super::super) const INCORRECT_LUN: u8 = 12;
}

/// Lengths that the driver may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) sense: u16,
    pub(super) cdb: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sense: 96, cdb: 32 }
    }
}

impl Limits {
    /// Bytes of an answer.
    pub(super) fn answer(self) -> u64 {
        ANSWER + u64::from(self.sense)
    }

    /// Configuration space.
    pub(super) fn config(self, queues: u16, targets: u16) -> Vec<u8> {
        let seg_max = u32::from(ENTRIES) - 2;
        let max_sectors = u32::try_from(storage::MOST / 512).unwrap_or(u32::MAX);
        let words = [
            u32::from(queues),
            seg_max,
            max_sectors,
            u32::from(ENTRIES) / 2,
            super::events::LEN.into(),
            self.sense.into(),
            self.cdb.into(),
        ];
        let mut config: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // One channel; the last target; the last unit, as drivers count them.
        config.extend(0u16.to_le_bytes());
        config.extend(targets.saturating_sub(1).to_le_bytes());
        config.extend(0u32.to_le_bytes());
        config
    }

    /// The driver writes configuration space: whole fields that are not too large.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else { return };
        let size = u16::try_from(u32::from_le_bytes(bytes)).ok();
        let Some(size) = size.filter(|size| (1..=MOST).contains(size)) else {
            return;
        };
        match offset {
            SENSE_SIZE => self.sense = size,
            CDB_SIZE => self.cdb = size,
            _ => {}
        }
    }

    pub(super) fn check(self) -> Result<(), RestoreError> {
        let fits = |size: u16| (1..=MOST).contains(&size);
        if fits(self.sense) && fits(self.cdb) {
            return Ok(());
        }
        Err(RestoreError::Invalid(
            "lengths that a SCSI host does not have".to_owned(),
        ))
    }
}

/// Whom a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) target: u8,
    pub(super) unit: u16,
}

/// The address in eight bytes: one, the target, the unit in single-level form (§5.6.6.1). None where it is none.
pub(super) fn address(lun: [u8; 8]) -> Option<Address> {
    match lun {
        [1, target, high, low, ..] if high & 0xC0 != 0x80 => Some(Address {
            target,
            unit: u16::from_be_bytes([high & 0x3F, low]),
        }),
        _ => None,
    }
}

/// Whom a command is for, and what the driver calls it.
pub(super) fn addressed(head: &[u8]) -> (Option<Address>, u64) {
    let (lun, rest) = head.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let tag = rest.first_chunk::<8>().copied().unwrap_or_default();
    (address(*lun), u64::from_le_bytes(tag))
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) response: u8,
    pub(super) residual: u32,
    status: u8,
    sense: Option<[u8; SENSE]>,
}

impl Answer {
    pub(super) fn new(response: u8) -> Self {
        Self {
            response,
            residual: 0,
            status: 0,
            sense: None,
        }
    }

    /// It ends with CHECK CONDITION.
    pub(super) fn check(&mut self, sense: [u8; SENSE]) {
        (self.status, self.sense) = (CHECK, Some(sense));
    }

    /// It ends with RESERVATION CONFLICT.
    pub(super) fn conflict(&mut self) {
        self.status = CONFLICT;
    }

    pub(super) fn has_failed(&self) -> bool {
        self.response != response::OK || self.status != 0
    }

    /// As the driver reads it, with room for `room` bytes of sense data.
    pub(super) fn bytes(&self, room: u16) -> Vec<u8> {
        let mut sense = self.sense.map_or_else(Vec::new, |sense| sense.to_vec());
        sense.truncate(room.into());
        let len = u32::try_from(sense.len()).unwrap_or(0);
        let mut bytes = [len.to_le_bytes(), self.residual.to_le_bytes()].concat();
        bytes.extend([0, 0, self.status, self.response]);
        sense.resize(room.into(), 0);
        bytes.extend(sense);
        bytes
    }
}
