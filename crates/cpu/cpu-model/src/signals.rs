//! The inputs of a vCPU that other threads raise, and its bed to sleep in.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An input of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Signal {
    /// The local APIC or PIC may have an interrupt: ask [`crate::CpuBoard::take_interrupt`].
    Interrupt = 1,
    /// Non-maskable interrupt (edge).
    Nmi = 2,
    /// INIT.
    Init = 4,
    /// Start-up IPI; the vector travels beside it.
    Sipi = 8,
    /// Leave [`crate::Vcpu::run`].
    Kick = 16,
    /// For the engine's own use between its vCPUs.
    Engine = 32,
}

/// Pending inputs of one vCPU.
#[derive(Debug, Default)]
pub struct Signals {
    pending: AtomicU32,
    sipi_vector: AtomicU8,
    sleeping: Mutex<bool>,
    woken: Condvar,
}

impl Signals {
    /// No input pending.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises `signal`, and wakes the vCPU if it sleeps.
    pub fn raise(&self, signal: Signal) {
        self.pending.fetch_or(signal as u32, Ordering::SeqCst);
        let sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        if *sleeping {
            self.woken.notify_all();
        }
    }

    /// Raises SIPI with its vector: execution starts at physical `vector << 12`.
    pub fn raise_sipi(&self, vector: u8) {
        self.sipi_vector.store(vector, Ordering::SeqCst);
        self.raise(Signal::Sipi);
    }

    /// The vector of the last SIPI.
    #[must_use]
    pub fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Ordering::SeqCst)
    }

    /// All pending signals as a bit set of [`Signal`] values. One relaxed load: for the engine's hot path.
    #[inline(always)]
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Where the pending signals are, for generated code. Only to be read.
    #[must_use]
    pub fn pending_cell(&self) -> &AtomicU32 {
        &self.pending
    }

    /// Takes `signal` back; true if it was pending.
    pub fn take(&self, signal: Signal) -> bool {
        self.pending.fetch_and(!(signal as u32), Ordering::SeqCst) & signal as u32 != 0
    }

    /// Sleeps until any signal of `mask` is pending or `timeout` has passed. True when one is pending.
    pub fn wait(&self, mask: u32, timeout: Option<Duration>) -> bool {
        let mut sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        *sleeping = true;
        while self.pending.load(Ordering::SeqCst) & mask == 0 {
            match timeout {
                None => sleeping = self.woken.wait(sleeping).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    (sleeping, _) = self
                        .woken
                        .wait_timeout(sleeping, time)
                        .unwrap_or_else(PoisonError::into_inner);
                    break;
                }
            }
        }
        *sleeping = false;
        self.pending.load(Ordering::SeqCst) & mask != 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn wait_wakes_for_a_signal_of_its_mask_only() {
        let signals = Arc::new(Signals::new());
        signals.raise(Signal::Interrupt);
        assert!(!signals.wait(Signal::Nmi as u32, Some(Duration::from_millis(5))));
        let other = Arc::clone(&signals);
        let thread = std::thread::spawn(move || other.wait(Signal::Nmi as u32, None));
        signals.raise(Signal::Nmi);
        assert!(thread.join().unwrap());
        assert!(signals.take(Signal::Nmi));
        assert!(!signals.take(Signal::Nmi));
    }
}
