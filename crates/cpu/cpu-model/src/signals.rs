//! The inputs of a vCPU that other threads raise, and its bed to sleep in.

use std::fmt;
use std::sync::Arc;
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
    /// Out of HLT, whatever RFLAGS.IF is: another vCPU's KVM_HC_KICK_CPU.
    Unhalt = 64,
}

/// Who gets a vCPU out of guest code that does not look at [`Signals::pending`] by itself: code that the host's processor
/// executes directly.
///
/// Called on whatever thread raises a signal, perhaps the vCPU's own, perhaps under the lock of a device. It neither waits
/// nor raises signals.
pub trait Waker: Send + Sync {
    /// A signal was raised.
    fn wake(&self);
}

/// Where a vCPU is that does not look at its signals.
#[derive(Default)]
struct Bed {
    sleeping: bool,
    waker: Option<Arc<dyn Waker>>,
}

impl fmt::Debug for Bed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sleeping, waker } = self;
        f.debug_struct("Bed")
            .field("sleeping", sleeping)
            .field("waker", &waker.is_some())
            .finish()
    }
}

/// Pending inputs of one vCPU.
#[derive(Debug, Default)]
pub struct Signals {
    pending: AtomicU32,
    sipi_vector: AtomicU8,
    bed: Mutex<Bed>,
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
        let bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        if bed.sleeping {
            self.woken.notify_all();
        }
        if let Some(waker) = &bed.waker {
            waker.wake();
        }
    }

    /// Calls `waker` whenever a signal is raised, from now on. When this returns, the one before is not called any more.
    pub fn set_waker(&self, waker: Option<Arc<dyn Waker>>) {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner).waker = waker;
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
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        bed.sleeping = true;
        while self.pending.load(Ordering::SeqCst) & mask == 0 {
            match timeout {
                None => bed = self.woken.wait(bed).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    (bed, _) = self
                        .woken
                        .wait_timeout(bed, time)
                        .unwrap_or_else(PoisonError::into_inner);
                    break;
                }
            }
        }
        bed.sleeping = false;
        self.pending.load(Ordering::SeqCst) & mask != 0
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn raise_calls_the_waker_until_it_is_taken_back() {
        #[derive(Default)]
        struct Count(AtomicU32);
        impl Waker for Count {
            fn wake(&self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (signals, count) = (Signals::new(), Arc::new(Count::default()));
        signals.set_waker(Some(Arc::clone(&count) as _));
        signals.raise(Signal::Kick);
        signals.set_waker(None);
        signals.raise(Signal::Kick);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
