//! Guest time from the host's monotonic clock. It stands still while the machine is paused.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use device_model::Clock;
use device_model::VmTime;

/// `frozen` while the clock runs.
const RUNNING: u64 = u64::MAX;

/// The clock of a machine that runs in real time. It is made standing at power-on.
#[derive(Debug)]
pub struct HostClock {
    origin: Instant,
    /// Nanoseconds that guest time lags behind the host's clock since `origin`. Grows with every pause, so that it also
    /// tells a reader that a pause came between.
    behind: AtomicU64,
    /// The guest time at which the clock stands, or [`RUNNING`].
    frozen: AtomicU64,
    /// Held by whoever changes the two.
    writer: Mutex<()>,
}

impl HostClock {
    /// A clock that stands at power-on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            behind: AtomicU64::new(0),
            frozen: AtomicU64::new(0),
            writer: Mutex::new(()),
        }
    }

    /// Stops the clock.
    pub fn pause(&self) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.frozen.load(Ordering::SeqCst) == RUNNING {
            let now = self.host().wrapping_sub(self.behind.load(Ordering::SeqCst));
            self.frozen.store(now, Ordering::SeqCst);
        }
    }

    /// Lets the clock go on from where it stands.
    pub fn resume(&self) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let frozen = self.frozen.load(Ordering::SeqCst);
        if frozen != RUNNING {
            // A restored time may be ahead of the host's clock since `origin`: the difference wraps, and wraps back.
            self.behind.store(self.host().wrapping_sub(frozen), Ordering::SeqCst);
            self.frozen.store(RUNNING, Ordering::SeqCst);
        }
    }

    /// Sets the time at which the clock stands. False, and nothing is changed, while it runs.
    pub fn set(&self, time: VmTime) -> bool {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = self.frozen.load(Ordering::SeqCst) != RUNNING && time.as_ns() != RUNNING;
        if standing {
            self.frozen.store(time.as_ns(), Ordering::SeqCst);
        }
        standing
    }

    fn host(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn now(&self) -> VmTime {
        loop {
            let behind = self.behind.load(Ordering::Acquire);
            let host = self.host();
            let frozen = self.frozen.load(Ordering::Acquire);
            if frozen != RUNNING {
                return VmTime::from_ns(frozen);
            }
            if self.behind.load(Ordering::Acquire) == behind {
                return VmTime::from_ns(host.wrapping_sub(behind));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn paused_clock_stands_still_and_goes_on_from_there() {
        let clock = HostClock::new();
        assert_eq!(clock.now(), VmTime::ZERO);
        clock.resume();
        std::thread::sleep(Duration::from_millis(2));
        clock.pause();
        let stopped = clock.now();
        assert!(stopped >= VmTime::from_ns(2_000_000));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(clock.now(), stopped);
        clock.resume();
        assert!(clock.now() >= stopped);
        let lag = clock.host() - clock.now().as_ns();
        assert!(lag >= 20_000_000, "the pause does not count");
    }

    #[test]
    fn set_moves_a_standing_clock_only() {
        let clock = HostClock::new();
        let day = VmTime::from_ns(86_400_000_000_000);
        assert!(clock.set(day));
        clock.resume();
        assert!(clock.now() >= day);
        assert!(!clock.set(VmTime::ZERO));
        assert!(clock.now() >= day);
    }
}
