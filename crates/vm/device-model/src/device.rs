//! A device, and the slot that the board keeps it in.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::At;
use crate::Clock;
use crate::DynSnapshot;
use crate::Inspect;
use crate::PciFunction;
use crate::Registers;
use crate::VmTime;
use crate::Width;

/// Kinds of reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Power was applied.
    Cold,
    /// The reset line was asserted: what survives a warm reset in hardware survives.
    Warm,
    /// Power came back after a suspend to RAM: as a warm reset, but for what runs on standby power.
    Resume,
}

/// A device model.
///
/// Every method is called under the device's lock. A device spawns no thread, takes no lock of its own, and never calls
/// another device except through [`crate::IrqLine`], [`crate::MsiSink`] and DMA handles.
pub trait Device: Registers + DynSnapshot + Inspect + Send {
    /// Goes to the state after reset, and drives its lines accordingly.
    fn reset(&mut self, kind: Reset);

    /// Does what is due at `now`, and returns when it next wants to be called.
    ///
    /// Called when the deadline has come, when a backend asked for it, and after every register write. Never called
    /// while the machine is paused.
    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let _ = now;
        None
    }

    /// Starts no more host work; true when none is in flight.
    fn quiesce(&mut self) -> bool {
        true
    }

    /// The device as a function of a PCI bus, if it is one.
    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        None
    }
}

/// Tells the event thread that a slot's deadline moved or that a backend has something for it.
///
/// Called under a device's lock: an implementation takes no lock under which a device is locked.
pub trait Wake: Send + Sync {
    /// Look at the slots again.
    fn wake(&self);
}

/// A device that the bus and the event thread share.
pub type SharedDevice = Arc<Slot<dyn Device>>;

/// Lock, name and deadline around one device.
///
/// `Arc<Slot<Pit>>` coerces to [`SharedDevice`], so the board may keep both the typed and the erased handle.
pub struct Slot<D: ?Sized> {
    name: String,
    clock: Arc<dyn Clock>,
    wake: Arc<dyn Wake>,
    /// Nanoseconds of guest time; `u64::MAX` when the device waits for nothing.
    deadline: AtomicU64,
    device: Mutex<D>,
}

impl<D: Device> Slot<D> {
    /// Puts `device` into a slot called `name`.
    pub fn new(name: &str, device: D, clock: Arc<dyn Clock>, wake: Arc<dyn Wake>) -> Arc<Self> {
        let deadline = AtomicU64::new(u64::MAX);
        Arc::new(Self {
            name: name.to_owned(),
            clock,
            wake,
            deadline,
            device: Mutex::new(device),
        })
    }
}

impl<D: Device + ?Sized> Slot<D> {
    /// The slot's name in plans, traces, snapshots and inspection.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device itself. A panic in another holder is not passed on: device state is plain data.
    pub fn lock(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a register; all ones where there is none.
    pub fn read(&self, at: At, width: Width) -> u64 {
        self.lock()
            .read(at, width)
            .map_or(width.ones(), |value| value & width.ones())
    }

    /// Writes a register, and lets the device do what that made due.
    pub fn write(&self, at: At, width: Width, value: u64) {
        let mut device = self.lock();
        // A write to no register is dropped, as on a real bus.
        let _ = device.write(at, width, value & width.ones());
        let next = device.poll(self.clock.now());
        self.set_deadline(&device, next);
    }

    /// Calls `f` with the device, then lets the device do what that made due: for typed access that may move a deadline.
    pub fn with<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        let mut device = self.lock();
        let result = f(&mut device);
        let next = device.poll(self.clock.now());
        self.set_deadline(&device, next);
        result
    }

    /// Lets the device do what is due, and keeps its new deadline.
    pub fn poll(&self) {
        self.with(|_| ());
    }

    /// When the device wants to be polled next.
    pub fn deadline(&self) -> Option<VmTime> {
        match self.deadline.load(Ordering::Acquire) {
            u64::MAX => None,
            ns => Some(VmTime::from_ns(ns)),
        }
    }

    /// The device is still locked: between two threads that polled it, the older deadline must not replace the newer.
    fn set_deadline(&self, _locked: &MutexGuard<'_, D>, next: Option<VmTime>) {
        let ns = next.map_or(u64::MAX, VmTime::as_ns);
        // Only an earlier deadline needs the event thread's attention: a later one is found when the old one passes.
        if ns < self.deadline.swap(ns, Ordering::AcqRel) {
            self.wake.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::IoError;
    use crate::Node;
    use crate::Region;
    use crate::RestoreError;
    use crate::Schema;
    use crate::Snapshot;
    use crate::TestClock;

    /// Wants to be polled at the time that was written last.
    struct Timer(Option<VmTime>);

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Nothing;

    impl Schema for Nothing {
        const NAME: &'static str = "nothing";
        const VERSION: u32 = 1;
    }

    impl Registers for Timer {
        fn regions(&self) -> &[Region] {
            &[]
        }
        fn read(&mut self, _: At, _: Width) -> Result<u64, IoError> {
            Err(IoError::NoRegister)
        }
        fn write(&mut self, _: At, _: Width, value: u64) -> Result<(), IoError> {
            self.0 = Some(VmTime::from_ns(value));
            Ok(())
        }
    }

    impl Snapshot for Timer {
        type State = Nothing;
        fn save(&self) -> Nothing {
            Nothing
        }
        fn restore(&mut self, _: Nothing) -> Result<(), RestoreError> {
            Ok(())
        }
    }

    impl Inspect for Timer {
        fn inspect(&self) -> Node {
            Node::tree()
        }
    }

    impl Device for Timer {
        fn reset(&mut self, _: Reset) {}
        fn poll(&mut self, _: VmTime) -> Option<VmTime> {
            self.0
        }
    }

    /// Counts the wakes at which the slot's device was locked.
    #[derive(Default)]
    struct Watcher {
        slot: OnceLock<Arc<Slot<Timer>>>,
        locked: AtomicUsize,
        free: AtomicUsize,
    }

    impl Wake for Watcher {
        fn wake(&self) {
            let locked = self.slot.get().unwrap().device.try_lock().is_err();
            let counter = if locked { &self.locked } else { &self.free };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn deadline_moves_before_another_thread_can_poll() {
        let watcher = Arc::new(Watcher::default());
        let slot = Slot::new("timer", Timer(None), Arc::new(TestClock::new()), watcher.clone());
        let _ = watcher.slot.set(Arc::clone(&slot));
        slot.write(At { region: 0, offset: 0 }, Width::Qword, 100);
        assert_eq!(slot.deadline(), Some(VmTime::from_ns(100)));
        slot.with(|timer| timer.0 = Some(VmTime::from_ns(50)));
        assert_eq!(slot.deadline(), Some(VmTime::from_ns(50)));
        // A later deadline wakes nobody.
        slot.with(|timer| timer.0 = None);
        assert_eq!(slot.deadline(), None);
        assert_eq!(watcher.locked.load(Ordering::Relaxed), 2);
        assert_eq!(watcher.free.load(Ordering::Relaxed), 0);
    }
}
