//! Events: targets that come and go, and parameters that change.
//!
//! An event waits for the driver's next buffer only until the device is polled: one that finds none then is lost, and the next
//! buffer tells that some were.
//!
//! Spec: virtio 1.2 §5.6.6.3 (event queue).

use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::EVENTS;
use super::Scsi;
use super::TARGETS;
use crate::RingError;
use crate::Rings;

/// Features of a SCSI host (§5.6.3).
pub(super) mod scsi_feature {
    /// Targets come and go.
    pub(in super::super) const HOTPLUG: u64 = 1 << 1;
    /// Parameters of units change.
    pub(in super::super) const CHANGE: u64 = 1 << 2;
}

/// Types of events, and the bit that says that others were lost.
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
const MISSED: u32 = 1 << 31;
/// Why there is a transport reset.
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;
/// Bytes of an event.
pub(super) const LEN: u16 = 16;
/// Events that wait for a poll at most: two for each target.
const MOST: usize = 2 * TARGETS;

/// What has happened at a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    Came,
    Went,
    /// Sense code and qualifier say how its unit has changed.
    Changed(u8, u8),
}

impl What {
    /// The feature without which nobody is told.
    fn feature(self) -> u64 {
        match self {
            Self::Came | Self::Went => scsi_feature::HOTPLUG,
            Self::Changed(..) => scsi_feature::CHANGE,
        }
    }

    /// Type and reason.
    fn code(self) -> (u32, u32) {
        match self {
            Self::Came => (TRANSPORT_RESET, RESCAN),
            Self::Went => (TRANSPORT_RESET, REMOVED),
            Self::Changed(code, qualifier) => (PARAM_CHANGE, u16::from_le_bytes([code, qualifier]).into()),
        }
    }
}

/// What the driver has not been told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Events {
    /// What the driver listens to; nothing while it is not up.
    features: u64,
    waiting: Vec<(u8, What)>,
    /// Some were lost.
    missed: bool,
}

impl Events {
    /// The driver is up.
    pub(super) fn listen(&mut self, features: u64) {
        self.features = features & (scsi_feature::HOTPLUG | scsi_feature::CHANGE);
    }

    /// Something has happened at `target`.
    pub(super) fn add(&mut self, target: usize, what: What) {
        let Ok(target) = u8::try_from(target) else { return };
        if self.features & what.feature() == 0 {
            return;
        }
        match self.waiting.len() < MOST {
            true => self.waiting.push((target, what)),
            false => self.missed = true,
        }
    }

    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let known = self.waiting.iter().all(|(target, _)| usize::from(*target) < TARGETS);
        if known && self.waiting.len() <= MOST {
            return Ok(());
        }
        Err(RestoreError::Invalid(
            "events that a SCSI host does not have".to_owned(),
        ))
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Some were lost, and the driver does not know.
    pub(super) fn missed(&self) -> bool {
        self.missed
    }
}

impl Scsi {
    /// Tells the driver what has happened.
    pub(super) fn tell(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let events = &mut self.state.events;
        while events.missed || !events.waiting.is_empty() {
            let Some(mut chain) = rings.pop(EVENTS) else {
                // Unless the next poll goes on.
                if !rings.is_spent() && !std::mem::take(&mut events.waiting).is_empty() {
                    events.missed = true;
                }
                break;
            };
            if chain.writable_len() < LEN.into() {
                return Err(RingError::Shape);
            }
            let told = (!events.waiting.is_empty()).then(|| events.waiting.remove(0));
            let (mut kind, reason) = told.map_or((0, 0), |(_, what)| what.code());
            if std::mem::take(&mut events.missed) {
                kind |= MISSED;
            }
            // The unit is number zero.
            let lun = told.map_or([0; 8], |(target, _)| [1, target, 0, 0, 0, 0, 0, 0]);
            let bytes = [&kind.to_le_bytes()[..], &lun, &reason.to_le_bytes()].concat();
            let put = chain.put(rings.memory(), &bytes)?;
            rings.push(EVENTS, chain.head, u32::try_from(put).unwrap_or(0));
        }
        Ok(())
    }
}
