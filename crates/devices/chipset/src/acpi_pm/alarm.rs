//! The wire from the real-time clock's alarm to the power management block: it catches each rise of the alarm's line.
//!
//! Spec: ACPI 6.5 §4.8.2.4 (real-time clock alarm), §4.8.3.1.1 (RTC_STS).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use device_model::IrqLine;
use device_model::LineTarget;

/// Keeps that the alarm's line rose until the power management block looks.
///
/// The clock drives it under its own lock, so that it locks nothing.
pub struct AlarmLatch {
    rose: AtomicBool,
    attend: Box<dyn Fn() + Send + Sync>,
}

impl AlarmLatch {
    /// A latch that calls `attend`, under the clock's lock, to have the power management block polled.
    #[must_use]
    pub fn new(attend: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            rose: AtomicBool::new(false),
            attend: Box::new(attend),
        })
    }

    /// The line for the clock.
    #[must_use]
    pub fn line(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(Arc::clone(self) as Arc<dyn LineTarget>, 0)
    }

    pub(super) fn rose(&self) -> bool {
        self.rose.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> bool {
        self.rose.swap(false, Ordering::AcqRel)
    }
}

impl LineTarget for AlarmLatch {
    fn set_line(&self, _pin: u32, level: bool) {
        if level {
            self.rose.store(true, Ordering::Release);
            (self.attend)();
        }
    }
}

impl fmt::Debug for AlarmLatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlarmLatch")
            .field("rose", &self.rose())
            .finish_non_exhaustive()
    }
}
