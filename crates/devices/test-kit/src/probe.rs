//! The far end of interrupt lines and messages, with a memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use device_model::IrqLine;
use device_model::LineTarget;
use device_model::MsiMessage;
use device_model::MsiSink;

/// Events kept until they are taken; a fuzzed device may make any number.
const KEPT_EVENTS: usize = 1 << 16;

/// Something that reached the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqEvent {
    /// A line changed to this level.
    Line {
        /// Pin of the probe.
        pin: u32,
        /// New level.
        level: bool,
    },
    /// A message arrived.
    Message(MsiMessage),
}

#[derive(Default)]
struct Seen {
    levels: BTreeMap<u32, bool>,
    rises: BTreeMap<u32, u64>,
    events: Vec<IrqEvent>,
}

impl Seen {
    fn push(&mut self, event: IrqEvent) {
        if self.events.len() < KEPT_EVENTS {
            self.events.push(event);
        }
    }
}

/// Records what a device does with its lines and messages.
#[derive(Default)]
pub struct IrqProbe {
    seen: Mutex<Seen>,
}

impl IrqProbe {
    /// A probe that has seen nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A line into pin `pin`.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u32) -> IrqLine {
        IrqLine::new(Arc::clone(self) as Arc<dyn LineTarget>, pin)
    }

    /// The level of pin `pin` now; low until driven.
    #[must_use]
    pub fn level(&self, pin: u32) -> bool {
        self.lock().levels.get(&pin).copied().unwrap_or(false)
    }

    /// How often pin `pin` has risen.
    #[must_use]
    pub fn rises(&self, pin: u32) -> u64 {
        self.lock().rises.get(&pin).copied().unwrap_or(0)
    }

    /// Everything since the last call, in order.
    pub fn take_events(&self) -> Vec<IrqEvent> {
        std::mem::take(&mut self.lock().events)
    }

    /// The messages since the last call; what lines did is forgotten.
    pub fn take_messages(&self) -> Vec<MsiMessage> {
        let message = |event| match event {
            IrqEvent::Message(message) => Some(message),
            IrqEvent::Line { .. } => None,
        };
        self.take_events().into_iter().filter_map(message).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineTarget for IrqProbe {
    fn set_line(&self, pin: u32, level: bool) {
        let mut seen = self.lock();
        let was = seen.levels.insert(pin, level).unwrap_or(false);
        if level && !was {
            *seen.rises.entry(pin).or_default() += 1;
        }
        seen.push(IrqEvent::Line { pin, level });
    }
}

impl MsiSink for IrqProbe {
    fn send(&self, message: MsiMessage) {
        self.lock().push(IrqEvent::Message(message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulse_is_one_rise_and_ends_low() {
        let probe = IrqProbe::new();
        let line = probe.line(3);
        line.pulse();
        line.pulse();
        assert_eq!((probe.rises(3), probe.level(3), probe.rises(4)), (2, false, 0));
        assert_eq!(probe.take_events().len(), 4);
        assert!(probe.take_events().is_empty());
    }
}
