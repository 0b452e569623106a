//! A CD or DVD drive: tray, disc, sense data, and the few commands that are not packets.
//!
//! Discs hold one data track of 2048-byte sectors. Sound, writing and copy protection are not modelled.
//!
//! Spec: ACS-3 §7 (commands of the PACKET feature set); MMC-5 §4 (model), §6.39 (TEST UNIT READY and unit attention).

use std::sync::Arc;

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::Identity;
use super::Step;
use super::Taskfile;
use super::code;
use super::error;
use super::identify;
use crate::medium::Medium;
use crate::work::Fault;

/// Bytes of a disc's sector.
pub(super) const BLOCK: u64 = 2048;

/// Key, code and qualifier (SPC-4 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sense(pub(crate) u8, pub(crate) u8, pub(crate) u8);

pub(crate) mod sense {
    use super::Sense;

    pub(crate) const NONE: Sense = Sense(0, 0, 0);
    pub(crate) const NO_MEDIUM: Sense = Sense(2, 0x3A, 0);
    pub(crate) const UNREADABLE: Sense = Sense(3, 0x11, 0);
    pub(crate) const HARDWARE: Sense = Sense(4, 0x08, 0);
    pub(crate) const NO_SUCH_COMMAND: Sense = Sense(5, 0x20, 0);
    pub(crate) const OUT_OF_RANGE: Sense = Sense(5, 0x21, 0);
    pub(crate) const BAD_FIELD: Sense = Sense(5, 0x24, 0);
    pub(crate) const BAD_LIST: Sense = Sense(5, 0x26, 0);
    pub(crate) const LOCKED: Sense = Sense(5, 0x53, 2);
    pub(crate) const CHANGED: Sense = Sense(6, 0x28, 0);
    pub(crate) const RESET: Sense = Sense(6, 0x29, 0);
}

/// What GET EVENT STATUS NOTIFICATION tells of the medium (MMC-5 table 340).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum MediaEvent {
    None = 0,
    EjectRequest = 1,
    NewMedia = 2,
    Removal = 3,
}

/// The tray from outside the machine.
///
/// Called under the controller's lock.
pub trait Tray {
    /// Puts a disc in, in the place of the one that is there, and closes the tray.
    fn insert(&mut self, medium: Arc<dyn Medium>);

    /// Takes the disc out. While the guest has locked the tray it is only asked to; false then, unless `force` is set.
    fn eject(&mut self, force: bool) -> bool;

    /// There is a disc.
    fn is_loaded(&self) -> bool;
}

/// A drive.
pub struct Optical {
    // Wiring
    pub(super) medium: Option<Arc<dyn Medium>>,
    // Configuration
    pub(super) identity: Identity,
    // State
    pub(super) state: OpticalState,
}

/// Saved state of a CD or DVD drive. The disc itself is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpticalState {
    pub(super) sense: Sense,
    /// Unit attention that the host has not been told.
    pub(super) attention: Option<Sense>,
    pub(super) event: MediaEvent,
    pub(super) locked: bool,
    pub(super) open: bool,
    mode: u8,
}

impl OpticalState {
    fn new() -> Self {
        Self {
            sense: sense::NONE,
            attention: Some(sense::RESET),
            event: MediaEvent::None,
            locked: false,
            open: false,
            mode: 0x45,
        }
    }
}

impl std::fmt::Debug for Optical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optical")
            .field("identity", &self.identity)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Tray for Optical {
    fn insert(&mut self, medium: Arc<dyn Medium>) {
        self.medium = Some(medium);
        self.state.open = false;
        self.state.attention = Some(sense::CHANGED);
        self.state.event = MediaEvent::NewMedia;
    }

    fn eject(&mut self, force: bool) -> bool {
        if self.state.locked && !force {
            self.state.event = MediaEvent::EjectRequest;
            return false;
        }
        self.medium = None;
        self.state.open = true;
        self.state.locked = false;
        self.state.event = MediaEvent::Removal;
        true
    }

    fn is_loaded(&self) -> bool {
        self.medium.is_some()
    }
}

impl Optical {
    pub(super) fn new(medium: Option<Arc<dyn Medium>>, identity: Identity) -> Self {
        Self {
            medium,
            identity,
            state: OpticalState::new(),
        }
    }

    /// The disc, unless the tray is open.
    pub(super) fn medium(&self) -> Option<&Arc<dyn Medium>> {
        self.medium.as_ref().filter(|_| !self.state.open)
    }

    pub(super) fn reset(&mut self) {
        let open = self.state.open;
        self.state = OpticalState {
            open,
            ..OpticalState::new()
        };
    }

    /// Keeps why a command failed, and returns the error register: the key, and that it was aborted.
    pub(super) fn refuse(&mut self, why: Sense) -> u8 {
        self.state.sense = why;
        why.0 << 4 | error::ABRT
    }

    pub(super) fn fault(&mut self, fault: Fault) -> u8 {
        self.refuse(match fault {
            Fault::Medium(_) => sense::UNREADABLE,
            Fault::Memory | Fault::Differs => sense::HARDWARE,
        })
    }

    pub(super) fn command(&mut self, command: u8, task: &mut Taskfile, sata: bool) -> Step {
        match command {
            code::PACKET => Step::Packet,
            0xA1 => Step::Send(identify::optical(&self.identity, sata, self.state.mode)),
            0xEF => self.set_features(task),
            // Idle, standby, sleep.
            0xE0..=0xE3 | 0xE6 => Step::End,
            0xE5 => {
                task.count[0] = 0xFF;
                Step::End
            }
            // IDENTIFY DEVICE and READ SECTORS tell a host that this is no disk (ACS-3 §7.12.3, §7.32.3).
            0xEC | 0x20 => {
                task.set_signature(true);
                Step::Fail(error::ABRT)
            }
            _ => Step::Fail(error::ABRT),
        }
    }

    fn set_features(&mut self, task: &Taskfile) -> Step {
        match (task.features[0], task.count[0]) {
            (0x03, mode @ (0x00 | 0x01 | 0x08..=0x0C | 0x20..=0x22 | 0x40..=0x45)) => {
                self.state.mode = mode;
                Step::End
            }
            (0x10 | 0x90 | 0x66 | 0xCC, _) => Step::End,
            _ => Step::Fail(error::ABRT),
        }
    }

    /// Sectors of the disc.
    pub(super) fn blocks(&self) -> Option<u64> {
        Some(self.medium()?.size() / BLOCK)
    }

    pub(super) fn save(&self) -> OpticalState {
        self.state.clone()
    }

    pub(super) fn restore(&mut self, state: OpticalState) -> Result<(), RestoreError> {
        self.state = state;
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("model", self.identity.model.as_str())
            .with("loaded", self.is_loaded())
            .with("open", self.state.open)
            .with("locked", self.state.locked)
            .with("sense", format!("{:?}", self.state.sense))
    }
}
