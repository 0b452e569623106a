//! The local APIC's timer: a count-down at a divided bus clock, or a deadline of the TSC.
//!
//! Times are counted in ticks of the undivided bus clock since power-on, so nothing drifts.
//!
//! Spec: SDM vol. 3 §11.5.4.

use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use super::spec::DIVIDE_WRITABLE;

/// Shortest time between two interrupts of the periodic timer: a shorter period would keep the host busy with a guest
/// that cannot keep up. What is missed in between is one interrupt.
const MIN_PERIOD_NS: u64 = 10_000;

/// What the timer does, from bits 18-17 of its vector table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// Both clocks at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instant {
    pub(super) time: VmTime,
    /// Ticks of the bus clock.
    pub(super) bus: u64,
    /// Guest TSC.
    pub(super) tsc: u64,
}

/// The timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Initial count register.
    initial: u32,
    /// Divide configuration register.
    divide: u32,
    /// The count at `since`; 0 when it stands.
    count: u32,
    /// Bus tick at which the count was `count`.
    since: u64,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    deadline: u64,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self {
            initial: 0,
            divide: 0,
            count: 0,
            since: 0,
            deadline: 0,
        }
    }

    pub(super) fn is_legal(&self) -> bool {
        self.divide & !DIVIDE_WRITABLE == 0 && self.count <= self.initial
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Bus ticks per count: 2, 4, … 128, and 1 for 111b.
    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn elapsed(&self, now: Instant) -> u64 {
        now.bus.saturating_sub(self.since) / self.divisor()
    }

    /// Current count register. What is due must have been taken by [`Self::expire`].
    pub(super) fn current(&self, now: Instant) -> u32 {
        let left = u64::from(self.count).saturating_sub(self.elapsed(now));
        u32::try_from(left).unwrap_or(self.count)
    }

    /// Writes the initial count: the count-down starts anew, or stops with 0.
    pub(super) fn start(&mut self, initial: u32, now: Instant) {
        self.initial = initial;
        self.count = initial;
        self.since = now.bus;
    }

    /// Writes the divide configuration: counting goes on at the new rate.
    pub(super) fn set_divide(&mut self, divide: u32, now: Instant) {
        self.count = self.current(now);
        self.since = now.bus;
        self.divide = divide & DIVIDE_WRITABLE;
    }

    /// Writes IA32_TSC_DEADLINE; 0 disarms.
    pub(super) fn set_deadline(&mut self, deadline: u64) {
        self.deadline = deadline;
    }

    /// Neither count nor deadline any more: the mode changed to or from the deadline.
    pub(super) fn disarm(&mut self) {
        self.count = 0;
        self.deadline = 0;
    }

    /// Does what is due, and says whether the timer has fired since the last call.
    pub(super) fn expire(&mut self, mode: Mode, now: Instant) -> bool {
        if mode == Mode::TscDeadline {
            let due = self.deadline != 0 && now.tsc >= self.deadline;
            if due {
                self.deadline = 0;
            }
            return due;
        }
        let Some(over) = self.elapsed(now).checked_sub(self.count.into()) else {
            return false;
        };
        if self.count == 0 {
            return false;
        }
        if mode == Mode::OneShot {
            self.count = 0;
            return true;
        }
        // The count is not lost to whole periods that passed unnoticed, nor to the ticks since the last one ended.
        let into_period = over % u64::from(self.initial.max(1));
        let ticks = u64::from(self.count)
            .saturating_add(over - into_period)
            .saturating_mul(self.divisor());
        self.since = self.since.saturating_add(ticks);
        self.count = self.initial;
        true
    }

    /// When the timer fires next, seen right after [`Self::expire`].
    pub(super) fn next(&self, mode: Mode, now: Instant, bus_hz: u64, tsc_hz: u64) -> Option<VmTime> {
        if mode == Mode::TscDeadline {
            let left = self.deadline.checked_sub(now.tsc).filter(|_| self.deadline != 0)?;
            return Some(VmTime::from_ticks(now.time.to_ticks(tsc_hz).checked_add(left)?, tsc_hz));
        }
        if self.count == 0 {
            return None;
        }
        let ticks = u64::from(self.count).saturating_mul(self.divisor());
        let due = VmTime::from_ticks(self.since.checked_add(ticks)?, bus_hz);
        Some(match mode {
            Mode::Periodic => due.max(now.time + MIN_PERIOD_NS),
            _ => due,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000_000;

    fn at(ns: u64) -> Instant {
        Instant {
            time: VmTime::from_ns(ns),
            bus: ns,
            tsc: ns * 2,
        }
    }

    #[test]
    fn divisors_are_those_of_the_table() {
        let divisors = [0, 1, 2, 3, 8, 9, 10, 11].map(|divide| {
            let mut timer = Timer::new();
            timer.set_divide(divide, at(0));
            timer.divisor()
        });
        assert_eq!(divisors, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn new_divisor_applies_from_now_on() {
        let mut timer = Timer::new();
        timer.set_divide(11, at(0));
        timer.start(1_000, at(0));
        timer.set_divide(0, at(400));
        assert_eq!(timer.current(at(400)), 600);
        assert_eq!(timer.current(at(600)), 500);
        assert_eq!(timer.next(Mode::OneShot, at(600), HZ, HZ), Some(VmTime::from_ns(1_600)));
    }

    #[test]
    fn periodic_keeps_phase_when_polled_late() {
        let mut timer = Timer::new();
        timer.set_divide(11, at(0));
        timer.start(100_000, at(0));
        assert!(!timer.expire(Mode::Periodic, at(99_999)));
        assert!(timer.expire(Mode::Periodic, at(330_000)));
        assert_eq!(timer.current(at(330_000)), 70_000);
        assert_eq!(
            timer.next(Mode::Periodic, at(330_000), HZ, HZ),
            Some(VmTime::from_ns(400_000))
        );
        assert!(!timer.expire(Mode::Periodic, at(399_999)));
        assert!(timer.expire(Mode::Periodic, at(400_000)));
    }

    #[test]
    fn tiny_period_is_polled_no_faster_than_the_host_bears() {
        let mut timer = Timer::new();
        timer.start(1, at(0));
        assert!(timer.expire(Mode::Periodic, at(50)));
        let next = timer.next(Mode::Periodic, at(50), HZ, HZ);
        assert_eq!(next, Some(VmTime::from_ns(50 + MIN_PERIOD_NS)));
    }

    #[test]
    fn tsc_deadline_fires_once_at_its_tick() {
        let mut timer = Timer::new();
        timer.set_deadline(2_001);
        assert_eq!(
            timer.next(Mode::TscDeadline, at(10), HZ, 2 * HZ),
            Some(VmTime::from_ns(1_001))
        );
        assert!(!timer.expire(Mode::TscDeadline, at(1_000)));
        assert!(timer.expire(Mode::TscDeadline, at(1_001)));
        assert_eq!(timer.deadline(), 0);
        assert!(!timer.expire(Mode::TscDeadline, at(1_002)));
        assert_eq!(timer.next(Mode::TscDeadline, at(1_002), HZ, HZ), None);
    }
}
