//! The gate that vCPU threads pass to execute guest code: open, held, or closed for good.
//!
//! ```text
//!            run()               exit()
//!   Hold ──────────► Run      Hold, Run ──────► Exit
//!     ▲               │
//!     └───── hold() ──┘
//! ```
//!
//! While the guest sleeps (ACPI S3) the gate stays held, whoever opens it.

use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use cpu_model::Signal;
use cpu_model::Signals;

const HOLD: u8 = 0;
const RUN: u8 = 1;
const EXIT: u8 = 2;

/// Who may execute guest code now.
pub(crate) struct Gate {
    mode: AtomicU8,
    /// The guest sleeps.
    asleep: AtomicBool,
    /// Number of vCPU threads inside.
    inside: Mutex<usize>,
    changed: Condvar,
    signals: Vec<Arc<Signals>>,
}

impl Gate {
    /// A held gate for the vCPUs of `signals`.
    pub(crate) fn new(signals: Vec<Arc<Signals>>) -> Self {
        Self {
            mode: AtomicU8::new(HOLD),
            asleep: AtomicBool::new(false),
            inside: Mutex::new(0),
            changed: Condvar::new(),
            signals,
        }
    }

    /// Waits until guest code may run, and enters. False when it never will again.
    pub(crate) fn enter(&self) -> bool {
        let mut inside = self.lock();
        loop {
            match self.mode.load(Ordering::SeqCst) {
                RUN => {
                    *inside += 1;
                    return true;
                }
                EXIT => return false,
                _ => inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Leaves after [`Self::enter`].
    pub(crate) fn leave(&self) {
        *self.lock() -= 1;
        self.changed.notify_all();
    }

    /// Whether guest code may run.
    pub(crate) fn is_open(&self) -> bool {
        self.mode.load(Ordering::SeqCst) == RUN
    }

    /// Asks every vCPU to leave. Does not wait and takes no lock that a device could hold: callable under a device's.
    pub(crate) fn hold(&self) {
        if self
            .mode
            .compare_exchange(RUN, HOLD, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            self.kick();
        }
    }

    /// Holds the gate until the guest is awake. Callable as [`Self::hold`] is.
    pub(crate) fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        self.hold();
    }

    /// Whether the guest sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Says whether the guest sleeps, while the gate is held.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::SeqCst);
    }

    /// Opens the gate, unless the guest sleeps or the gate is closed for good. No vCPU is inside yet, so that none can
    /// put the guest to sleep meanwhile.
    pub(crate) fn run(&self) {
        let _inside = self.lock();
        if self.is_asleep() {
            return;
        }
        let _ = self
            .mode
            .compare_exchange(HOLD, RUN, Ordering::SeqCst, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Closes the gate for good.
    pub(crate) fn exit(&self) {
        let inside = self.lock();
        self.mode.store(EXIT, Ordering::SeqCst);
        self.changed.notify_all();
        drop(inside);
        self.kick();
    }

    /// Waits until no vCPU is inside.
    pub(crate) fn wait_empty(&self) {
        let mut inside = self.lock();
        while *inside > 0 {
            inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn kick(&self) {
        for signals in &self.signals {
            signals.raise(Signal::Kick);
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_of_a_sleeping_guest_does_not_open() {
        let gate = Gate::new(Vec::new());
        gate.run();
        gate.sleep();
        assert!(!gate.is_open());
        gate.run();
        assert!(!gate.is_open());
        gate.set_asleep(false);
        gate.run();
        assert!(gate.is_open());
    }

    #[test]
    fn hold_kicks_and_wait_empty_returns_when_the_thread_has_left() {
        let signals = Arc::new(Signals::new());
        let gate = Arc::new(Gate::new(vec![Arc::clone(&signals)]));
        let inner = Arc::clone(&gate);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while inner.enter() {
                rounds += 1;
                signals.wait(Signal::Kick as u32, None);
                signals.take(Signal::Kick);
                inner.leave();
            }
            rounds
        });
        gate.run();
        while *gate.lock() == 0 {
            std::thread::yield_now();
        }
        gate.hold();
        gate.wait_empty();
        assert!(!gate.is_open());
        gate.exit();
        assert_eq!(thread.join().unwrap(), 1);
        gate.run();
        assert!(!gate.is_open(), "closed for good");
    }
}
