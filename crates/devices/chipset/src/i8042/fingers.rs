//! The user's fingers: keys that are pressed faster than the guest takes their codes.
//!
//! A keyboard remembers sixteen bytes, which is enough for people. Programs that type for them send whole lines at once, and a
//! guest can be slow or stopped. What does not fit waits here and is pressed one after the other once the keyboard is empty, at
//! the pace of a fast typist, since a BIOS remembers few keys too.

use std::collections::VecDeque;

use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use super::keyboard::KeyCode;

/// Presses and releases that wait at most. Beyond that, keys are no longer pressed, but still let go.
const PRESSES: usize = 4096;
const MOST: usize = 2 * PRESSES;
/// From one to the next.
const PACE_NS: u64 = 5_000_000;

/// What is still to be pressed and let go, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingers {
    waiting: VecDeque<(KeyCode, bool)>,
    /// When the next may come.
    due: VmTime,
}

impl Fingers {
    /// A key that has to wait.
    pub(super) fn push(&mut self, key: KeyCode, down: bool, now: VmTime) {
        if self.waiting.is_empty() {
            self.due = now + PACE_NS;
        }
        if self.waiting.len() < if down { PRESSES } else { MOST } {
            self.waiting.push_back((key, down));
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next, when its time has come.
    pub(super) fn next(&mut self, now: VmTime) -> Option<(KeyCode, bool)> {
        if self.due > now {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.due = now + PACE_NS;
        Some(next)
    }

    /// When to look again.
    pub(super) fn deadline(&self, now: VmTime) -> Option<VmTime> {
        let overdue = self.due <= now;
        let next = if overdue { now + PACE_NS } else { self.due };
        (!self.waiting.is_empty()).then_some(next)
    }

    /// Whether a saved state is one that there can be.
    pub(super) fn is_valid(&self) -> bool {
        self.waiting.len() <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_beyond_the_limit_are_let_go_but_not_pressed() {
        let mut fingers = Fingers::default();
        for _ in 0..MOST {
            fingers.push(KeyCode(0x1E), true, VmTime::ZERO);
        }
        assert_eq!(fingers.len(), PRESSES);
        for _ in 0..2 * MOST {
            fingers.push(KeyCode(0x1E), false, VmTime::ZERO);
        }
        assert_eq!(fingers.len(), MOST);
        assert!(fingers.is_valid());
        fingers.waiting.push_back((KeyCode(0x1E), false));
        assert!(!fingers.is_valid());
    }
}
