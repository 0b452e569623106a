//! SCSI logical units, apart from the wires to them: what a command descriptor block means.
//!
//! A transport carries commands to a [`LogicalUnit`] and does what it answers. Units keep no data of a transfer, and tell sense
//! data with the command that fails.
//!
//! Spec: SPC-4 §4.5 (sense data), §6 (commands), §7.8 (vital product data); SBC-3 §5 (commands).

mod disk;
mod reserve;
mod vpd;

use std::sync::Arc;

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use crate::ata::Drive;
use crate::ata::DriveState;
use crate::ata::Identity;
use crate::ata::Sense;
use crate::ata::Step;
use crate::ata::Tray;
use crate::ata::sense;
use crate::bytes;
use crate::medium::Medium;
use crate::work::Fault;
use crate::work::Request;
use disk::Disk;
use disk::DiskState;

/// Bytes of sense data.
pub const SENSE: usize = 18;
/// Sense code and qualifier of a unit whose medium is another one.
pub const MEDIUM_CHANGED: (u8, u8) = (sense::CHANGED.1, sense::CHANGED.2);
/// Command codes that are not a unit's own business alone.
const INQUIRY: u8 = 0x12;
const REPORT_LUNS: u8 = 0xA0;

/// What a command needs, or how it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It ends well.
    Good,
    /// CHECK CONDITION, with this sense data.
    Check([u8; SENSE]),
    /// RESERVATION CONFLICT.
    Conflict,
    /// The initiator gets bytes, and the command ends well.
    Send(Vec<u8>),
    /// The initiator gives so many bytes, which go to [`LogicalUnit::receive`].
    Take(usize),
    /// Data of the medium are moved; `data` of this request is yet to be filled in.
    Move(Request),
    /// The medium is asked for something that moves no data.
    Ask(Request),
}

/// Sense data in the fixed format (SPC-4 §4.5.3).
fn fixed(Sense(key, code, qualifier): Sense) -> [u8; SENSE] {
    let mut data = [0; SENSE];
    bytes::put(&mut data, 0, &[0x70, 0, key]);
    bytes::put(&mut data, 7, &[10]);
    bytes::put(&mut data, 12, &[code, qualifier]);
    data
}

/// What there is at a target beside its units: the answer to a command for a unit that does not exist (SPC-4 §6.4.2).
#[must_use]
pub fn nobody(cdb: &[u8]) -> Action {
    if bytes::at(cdb, 0) == INQUIRY && bytes::at(cdb, 1) & 1 == 0 {
        let mut data = vec![0; 36];
        bytes::put(&mut data, 0, &[0x7F, 0, 0x06, 0x02, 31]);
        data.truncate(bytes::be16(cdb, 3).into());
        return Action::Send(data);
    }
    Action::Check(fixed(Sense(5, 0x25, 0)))
}

/// The units of a target that has one, number zero; none if the command asks for something else.
#[must_use]
pub fn report_luns(cdb: &[u8]) -> Option<Action> {
    if bytes::at(cdb, 0) != REPORT_LUNS {
        return None;
    }
    // Well-known units only: there are none (SPC-4 §6.33).
    let units: &[u8] = if bytes::at(cdb, 2) == 1 { &[] } else { &[0; 8] };
    let mut data = bytes::low32(units.len() as u64).to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(units);
    data.truncate(bytes::index(bytes::be32(cdb, 6).into()));
    Some(Action::Send(data))
}

#[derive(Debug)]
enum Inner {
    Disk(Disk),
    Optical(Drive),
}

/// A disk, or a CD drive.
#[derive(Debug)]
pub struct LogicalUnit {
    inner: Inner,
    identity: Identity,
}

/// Saved state of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState(State);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Disk(DiskState),
    Optical(DriveState),
}

impl LogicalUnit {
    /// A disk of `medium`, with blocks of 512 bytes.
    #[must_use]
    pub fn disk(medium: Arc<dyn Medium>, identity: Identity) -> Self {
        Self {
            inner: Inner::Disk(Disk::new(medium, identity.clone())),
            identity,
        }
    }

    /// A CD or DVD drive, with or without a disc.
    #[must_use]
    pub fn optical(medium: Option<Arc<dyn Medium>>, identity: Identity) -> Self {
        Self {
            inner: Inner::Optical(Drive::optical(medium, identity.clone())),
            identity,
        }
    }

    /// Its medium, if there is one.
    #[must_use]
    pub fn medium(&self) -> Option<&Arc<dyn Medium>> {
        match &self.inner {
            Inner::Disk(disk) => Some(disk.medium()),
            Inner::Optical(drive) => drive.medium(),
        }
    }

    /// The disc's tray, if there is one.
    pub fn tray(&mut self) -> Option<&mut dyn Tray> {
        match &mut self.inner {
            Inner::Disk(_) => None,
            Inner::Optical(drive) => drive.tray(),
        }
    }

    /// A command has come.
    pub fn command(&mut self, cdb: &[u8]) -> Action {
        if bytes::at(cdb, 0) == INQUIRY && bytes::at(cdb, 1) & 1 != 0 {
            return self.vital(cdb);
        }
        match &mut self.inner {
            Inner::Disk(disk) => disk.command(cdb).unwrap_or_else(|why| Action::Check(fixed(why))),
            Inner::Optical(drive) => {
                let step = drive.packet(cdb);
                after(drive, step)
            }
        }
    }

    /// The bytes of an [`Action::Take`] are there.
    pub fn receive(&mut self, cdb: &[u8], given: &[u8]) -> Action {
        match &mut self.inner {
            Inner::Disk(disk) => disk.receive(cdb, given).unwrap_or_else(|why| Action::Check(fixed(why))),
            // MODE SELECT, of pages none of which can be changed.
            Inner::Optical(_) => Action::Good,
        }
    }

    /// Sense data for a request that the medium or guest memory failed.
    pub fn fault(&mut self, fault: Fault) -> [u8; SENSE] {
        match &mut self.inner {
            Inner::Disk(_) => fixed(disk::sense_of(fault)),
            Inner::Optical(drive) => {
                drive.fault(fault);
                fixed(drive.take_sense())
            }
        }
    }

    /// What resets do.
    pub fn reset(&mut self) {
        match &mut self.inner {
            Inner::Disk(disk) => disk.reset(),
            Inner::Optical(drive) => drive.reset(),
        }
    }

    /// What the loss of power does.
    pub fn power_off(&mut self) {
        match &mut self.inner {
            Inner::Disk(disk) => disk.power_off(),
            Inner::Optical(drive) => drive.reset(),
        }
    }

    fn vital(&self, cdb: &[u8]) -> Action {
        let disk = match &self.inner {
            Inner::Disk(disk) => Some(disk),
            Inner::Optical(_) => None,
        };
        match vpd::page(bytes::at(cdb, 2), &self.identity, disk) {
            Some(mut data) => {
                data.truncate(bytes::be16(cdb, 3).into());
                Action::Send(data)
            }
            None => Action::Check(fixed(Sense(5, 0x24, 0))),
        }
    }

    /// Its state, for a snapshot.
    #[must_use]
    pub fn save(&self) -> UnitState {
        UnitState(match &self.inner {
            Inner::Disk(disk) => State::Disk(disk.save()),
            Inner::Optical(drive) => State::Optical(drive.save()),
        })
    }

    /// Takes over what was saved.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] when it is of another kind of unit.
    pub fn restore(&mut self, state: UnitState) -> Result<(), RestoreError> {
        match (&mut self.inner, state.0) {
            (Inner::Disk(disk), State::Disk(state)) => disk.restore(state)?,
            (Inner::Optical(drive), State::Optical(state)) => drive.restore(state)?,
            _ => return Err(RestoreError::Invalid("state of another kind of unit".to_owned())),
        }
        Ok(())
    }

    /// What it is, and how it stands.
    #[must_use]
    pub fn inspect(&self) -> Node {
        match &self.inner {
            Inner::Disk(disk) => disk.inspect(),
            Inner::Optical(drive) => drive.inspect(),
        }
    }
}

/// What a packet's step is for a transport of SCSI: sense data go with the command.
fn after(drive: &mut Drive, step: Step) -> Action {
    match step {
        Step::End => Action::Good,
        Step::Fail(_) | Step::Packet => Action::Check(fixed(drive.take_sense())),
        Step::Send(data) => Action::Send(data),
        Step::Take(len) => Action::Take(len),
        Step::Move(transfer) => {
            let (offset, len) = (transfer.offset, transfer.len);
            Action::Move(crate::ata::request(&transfer, offset, len, crate::work::Data::None))
        }
        Step::Ask(request) => Action::Ask(request),
    }
}

#[cfg(test)]
mod tests;
