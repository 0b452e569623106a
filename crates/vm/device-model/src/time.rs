//! Guest time: one monotonic count of nanoseconds since power-on that stands still while the machine is paused.

use std::fmt;
use std::ops::Add;
use std::ops::Sub;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use serde::Serialize;

/// Nanoseconds of guest time since power-on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmTime(u64);

impl VmTime {
    /// Power-on.
    pub const ZERO: Self = Self(0);

    /// `ns` nanoseconds after power-on.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since power-on.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// This time in whole ticks of a `hz` oscillator that started at power-on.
    #[must_use]
    pub const fn to_ticks(self, hz: u64) -> u64 {
        // Whole gigahertz and short times do without the long division.
        if hz.is_multiple_of(1_000_000_000) {
            return self.0.wrapping_mul(hz / 1_000_000_000);
        }
        match self.0.checked_mul(hz) {
            Some(product) => product / 1_000_000_000,
            None => (self.0 as u128 * hz as u128 / 1_000_000_000) as u64,
        }
    }

    /// The first instant at which a `hz` oscillator that started at power-on has counted `ticks`.
    #[must_use]
    pub const fn from_ticks(ticks: u64, hz: u64) -> Self {
        let ns = (ticks as u128 * 1_000_000_000).div_ceil(hz as u128);
        Self(if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 })
    }

    /// Nanoseconds from `earlier` to this time; zero if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for VmTime {
    type Output = Self;
    fn add(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

impl Sub for VmTime {
    type Output = u64;
    fn sub(self, rhs: Self) -> u64 {
        self.since(rhs)
    }
}

impl fmt::Display for VmTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// Where guest time comes from: the host's clock, an instruction count, or a test.
pub trait Clock: Send + Sync {
    /// The guest time now. Never goes backwards.
    fn now(&self) -> VmTime;
}

/// A clock that stands still until a test moves it. Clones share the time.
#[derive(Clone, Debug, Default)]
pub struct TestClock(Arc<AtomicU64>);

impl TestClock {
    /// A clock at power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the time `ns` nanoseconds ahead and returns it.
    pub fn advance(&self, ns: u64) -> VmTime {
        VmTime(self.0.fetch_add(ns, Ordering::Relaxed) + ns)
    }

    /// Moves the time to `time`.
    pub fn set(&self, time: VmTime) {
        self.0.store(time.0, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> VmTime {
        VmTime(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_an_odd_frequency_do_not_drift() {
        const PIT_HZ: u64 = 1_193_182;
        let day = VmTime::from_ns(86_400 * 1_000_000_000);
        assert_eq!(day.to_ticks(PIT_HZ), 86_400 * PIT_HZ);
        for ticks in [0, 1, 2, 3, 65_535, 1_193_182, 1 << 40] {
            assert_eq!(VmTime::from_ticks(ticks, PIT_HZ).to_ticks(PIT_HZ), ticks);
        }
    }
}
