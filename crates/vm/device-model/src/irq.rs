//! Interrupt lines and messages: handles that a device may use under its own lock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// The receiving end of interrupt lines: an interrupt controller, a CPU pin, or a test probe.
///
/// Called under the lock of the device that drives the line. An implementation may lock interrupt controllers, which
/// never call any other device, and nothing else.
pub trait LineTarget: Send + Sync {
    /// Input `pin` is now at `level`.
    fn set_line(&self, pin: u32, level: bool);
}

/// One end of an interrupt line. A device never knows its IRQ number.
#[derive(Clone)]
pub struct IrqLine {
    target: Option<Arc<dyn LineTarget>>,
    pin: u32,
    level: Arc<AtomicBool>,
}

impl IrqLine {
    /// A line into input `pin` of `target`.
    #[must_use]
    pub fn new(target: Arc<dyn LineTarget>, pin: u32) -> Self {
        Self {
            target: Some(target),
            pin,
            level: Arc::default(),
        }
    }

    /// A line that goes nowhere.
    #[must_use]
    pub fn detached() -> Self {
        Self {
            target: None,
            pin: 0,
            level: Arc::default(),
        }
    }

    /// Drives the line. Only changes reach the target.
    pub fn set(&self, level: bool) {
        if self.level.swap(level, Ordering::AcqRel) != level
            && let Some(target) = &self.target
        {
            target.set_line(self.pin, level);
        }
    }

    /// A low-high-low pulse: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// The level last driven.
    #[must_use]
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Acquire)
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine")
            .field("pin", &self.pin)
            .field("level", &self.level())
            .finish_non_exhaustive()
    }
}

/// A message-signalled interrupt: a memory write with meaning to the interrupt controllers (PCI 3.0 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Where message-signalled interrupts go.
pub trait MsiSink: Send + Sync {
    /// Delivers a message. Safe under a device's lock.
    fn send(&self, message: MsiMessage);
}
