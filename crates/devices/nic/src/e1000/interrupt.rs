//! Interrupt causes of the 8254x: mask, delays, throttling.
//!
//! Spec: SDM 8254x §13.4.17-13.4.21 (ICR to IMC), §13.4.18 (ITR), §13.4.30-31, §13.4.44-45 (delays).

use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use super::regs::cause;

/// Nanoseconds in a unit of ITR, and in one of the delay timers.
pub(super) const THROTTLE_UNIT: u64 = 256;
pub(super) const DELAY_UNIT: u64 = 1024;

/// A cause that waits: until a time after the last event of its kind, but no longer than until one after the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Delay {
    due: Option<VmTime>,
    latest: Option<VmTime>,
}

impl Delay {
    fn start(&mut self, now: VmTime, delay: u64, absolute: u64) {
        self.due = Some(now + delay);
        if absolute != 0 && self.latest.is_none() {
            self.latest = Some(now + absolute);
        }
    }

    fn next(&self) -> Option<VmTime> {
        [self.due, self.latest].into_iter().flatten().min()
    }

    /// Whether it is over by `now`; then it begins anew.
    fn passed(&mut self, now: VmTime) -> bool {
        let passed = self.next().is_some_and(|due| due <= now);
        if passed {
            *self = Self::default();
        }
        passed
    }
}

/// The causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Causes {
    icr: u32,
    ims: u32,
    rx: Delay,
    tx: Delay,
    /// The pin is driven.
    level: bool,
    /// Throttling lets it come again.
    earliest: VmTime,
}

impl Causes {
    pub(super) fn all(&self) -> u32 {
        self.icr
    }

    pub(super) fn mask(&self) -> u32 {
        self.ims
    }

    fn asks(&self) -> bool {
        self.icr & self.ims != 0
    }

    /// Whether nothing asks any more; the pin has gone then.
    pub(super) fn rest(&mut self) -> bool {
        self.level &= self.asks();
        !self.level
    }

    pub(super) fn raise(&mut self, causes: u32) {
        self.icr |= causes;
    }

    /// Reads all, which clears them.
    pub(super) fn take(&mut self) -> u32 {
        std::mem::take(&mut self.icr)
    }

    pub(super) fn clear(&mut self, causes: u32) {
        self.icr &= !causes;
    }

    pub(super) fn unmask(&mut self, causes: u32) {
        self.ims |= causes;
    }

    pub(super) fn hide(&mut self, causes: u32) {
        self.ims &= !causes;
    }

    /// Frames were received: the cause comes at once, or after delays in their units.
    pub(super) fn received(&mut self, now: VmTime, delay: u32, absolute: u32) {
        if delay == 0 {
            self.flush_rx();
        } else {
            self.rx.start(now, delay_ns(delay), delay_ns(absolute));
        }
    }

    /// Descriptors were written back.
    pub(super) fn sent(&mut self, now: VmTime, delay: u32, absolute: u32) {
        if delay == 0 {
            self.flush_tx();
        } else {
            self.tx.start(now, delay_ns(delay), delay_ns(absolute));
        }
    }

    /// Ends the delay of received frames.
    pub(super) fn flush_rx(&mut self) {
        self.rx = Delay::default();
        self.icr |= cause::RXT0;
    }

    /// Ends the delay of sent frames.
    pub(super) fn flush_tx(&mut self) {
        self.tx = Delay::default();
        self.icr |= cause::TXDW;
    }

    /// Raises what is due. Returns the level of the pin, and when something is due next.
    pub(super) fn settle(&mut self, now: VmTime, throttle: u64) -> (bool, Option<VmTime>) {
        if self.rx.passed(now) {
            self.icr |= cause::RXT0;
        }
        if self.tx.passed(now) {
            self.icr |= cause::TXDW;
        }
        let mut waits = None;
        if !self.asks() {
            self.level = false;
        } else if !self.level {
            // A restored state may be of a time that is far ahead.
            self.earliest = self.earliest.min(now + throttle);
            if self.earliest <= now {
                self.level = true;
                self.earliest = now + throttle;
            } else {
                waits = Some(self.earliest);
            }
        }
        let next = [waits, self.rx.next(), self.tx.next()].into_iter().flatten().min();
        (self.level, next)
    }
}

fn delay_ns(units: u32) -> u64 {
    u64::from(units) * DELAY_UNIT
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ns: u64) -> VmTime {
        VmTime::from_ns(ns)
    }

    #[test]
    fn throttled_pin_comes_again_when_its_time_has_come() {
        let mut causes = Causes::default();
        causes.unmask(cause::RXT0);
        causes.raise(cause::RXT0);
        assert_eq!(causes.settle(at(1000), 5000), (true, None));
        assert_eq!(causes.take(), cause::RXT0);
        assert!(causes.rest());
        causes.raise(cause::RXT0);
        assert_eq!(causes.settle(at(1200), 5000), (false, Some(at(6000))));
        assert_eq!(causes.settle(at(6000), 5000), (true, None));
    }

    #[test]
    fn delay_begins_anew_with_each_frame_but_not_beyond_the_absolute_one() {
        let mut causes = Causes::default();
        causes.unmask(cause::RXT0);
        causes.received(at(0), 10, 25);
        assert_eq!(causes.settle(at(0), 0), (false, Some(at(10_240))));
        causes.received(at(9_000), 10, 25);
        assert_eq!(causes.settle(at(10_240), 0), (false, Some(at(19_240))));
        causes.received(at(19_000), 10, 25);
        assert_eq!(causes.settle(at(19_240), 0), (false, Some(at(25_600))));
        assert_eq!(causes.settle(at(25_600), 0), (true, None));
    }
}
