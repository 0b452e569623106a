//! The event thread: it sleeps until the earliest deadline of any device, then polls what is due.

use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use device_model::Clock;
use device_model::SharedDevice;
use device_model::Wake;

/// What the event thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Polls nothing.
    Hold,
    /// Polls what is due.
    Run,
    /// Ends.
    Exit,
}

#[derive(Debug)]
struct Inner {
    mode: Mode,
    /// A deadline moved or a poll was asked for since the thread last looked.
    woken: bool,
    /// The thread is polling devices.
    busy: bool,
}

/// The far end of the event thread. It knows no device, so that devices may hold it.
#[derive(Debug)]
pub(crate) struct Events {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                mode: Mode::Hold,
                woken: false,
                busy: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Lets the thread poll.
    pub(crate) fn run(&self) {
        self.set_mode(Mode::Run);
    }

    /// Ends the thread.
    pub(crate) fn exit(&self) {
        self.set_mode(Mode::Exit);
    }

    /// Stops polling; returns when no poll is under way.
    pub(crate) fn hold(&self) {
        self.set_mode(Mode::Hold);
        let mut inner = self.lock();
        while inner.busy {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set_mode(&self, mode: Mode) {
        let mut inner = self.lock();
        if inner.mode != Mode::Exit {
            inner.mode = mode;
        }
        inner.woken = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until something may be due. False when the thread is to end.
    fn begin(&self, mut timeout: Option<Duration>) -> bool {
        let mut inner = self.lock();
        inner.busy = false;
        self.changed.notify_all();
        loop {
            match inner.mode {
                Mode::Exit => return false,
                Mode::Run if inner.woken || timeout.is_some_and(|t| t.is_zero()) => {
                    inner.woken = false;
                    inner.busy = true;
                    return true;
                }
                Mode::Run => {}
                // Time stands still; whoever lets it go on wakes the thread, which then computes its timeout anew.
                Mode::Hold => timeout = None,
            }
            match timeout {
                None => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = self.changed.wait_timeout(inner, time);
                    let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
                    inner = guard;
                    if result.timed_out() {
                        timeout = Some(Duration::ZERO);
                    }
                }
            }
        }
    }
}

impl Wake for Events {
    fn wake(&self) {
        let mut inner = self.lock();
        if !inner.woken {
            inner.woken = true;
            // While busy the thread looks at `woken` before it sleeps again.
            if !inner.busy {
                self.changed.notify_all();
            }
        }
    }
}

/// Asks for a poll of one device: how a backend says that it has something. Callable from any thread, under any lock.
#[derive(Clone, Debug)]
pub struct PollRequest {
    asked: Arc<AtomicBool>,
    events: Arc<Events>,
}

impl PollRequest {
    pub(crate) fn new(events: Arc<Events>) -> Self {
        Self {
            asked: Arc::default(),
            events,
        }
    }

    /// The device is polled soon.
    pub fn raise(&self) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            self.events.wake();
        }
    }

    /// Takes the request back; true when there was one.
    fn take(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::AcqRel)
    }
}

/// A device that the event thread looks after.
pub(crate) struct Watched {
    pub(crate) device: SharedDevice,
    pub(crate) request: Option<PollRequest>,
}

/// The body of the event thread.
pub(crate) fn run(events: &Events, clock: &dyn Clock, devices: &RwLock<Vec<Watched>>) {
    let mut timeout = None;
    while events.begin(timeout) {
        timeout = poll_due(clock, &devices.read().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Polls every device that is due, and returns how long nothing will be.
fn poll_due(clock: &dyn Clock, devices: &[Watched]) -> Option<Duration> {
    let mut earliest = None;
    for Watched { device, request } in devices {
        let asked = request.as_ref().is_some_and(PollRequest::take);
        if asked || device.deadline().is_some_and(|d| d <= clock.now()) {
            device.poll();
        }
        earliest = [earliest, device.deadline()].into_iter().flatten().min();
    }
    earliest.map(|at| Duration::from_nanos(at.since(clock.now())))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use device_model::At;
    use device_model::Device;
    use device_model::Inspect;
    use device_model::IoError;
    use device_model::Node;
    use device_model::Region;
    use device_model::Registers;
    use device_model::Reset;
    use device_model::RestoreError;
    use device_model::Schema;
    use device_model::Slot;
    use device_model::Snapshot;
    use device_model::VmTime;
    use device_model::Width;

    use super::*;
    use crate::HostClock;

    /// Reports each poll, and asks for another after each deadline.
    struct Alarm {
        polled: mpsc::Sender<VmTime>,
        next: Option<VmTime>,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Nothing;

    impl Schema for Nothing {
        const NAME: &'static str = "nothing";
        const VERSION: u32 = 1;
    }

    impl Registers for Alarm {
        fn regions(&self) -> &[Region] {
            &[]
        }
        fn read(&mut self, _: At, _: Width) -> Result<u64, IoError> {
            Err(IoError::NoRegister)
        }
        fn write(&mut self, _: At, _: Width, value: u64) -> Result<(), IoError> {
            self.next = Some(VmTime::from_ns(value));
            Ok(())
        }
    }

    impl Snapshot for Alarm {
        type State = Nothing;
        fn save(&self) -> Nothing {
            Nothing
        }
        fn restore(&mut self, _: Nothing) -> Result<(), RestoreError> {
            Ok(())
        }
    }

    impl Inspect for Alarm {
        fn inspect(&self) -> Node {
            Node::tree()
        }
    }

    impl Device for Alarm {
        fn reset(&mut self, _: Reset) {}
        fn poll(&mut self, now: VmTime) -> Option<VmTime> {
            self.next = self.next.filter(|next| *next > now);
            self.polled.send(now).unwrap();
            self.next
        }
    }

    struct Bench {
        events: Arc<Events>,
        clock: Arc<HostClock>,
        slot: Arc<Slot<Alarm>>,
        request: PollRequest,
        polled: mpsc::Receiver<VmTime>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Bench {
        fn new() -> Self {
            let events = Arc::new(Events::new());
            let clock = Arc::new(HostClock::new());
            let (sender, polled) = mpsc::channel();
            let alarm = Alarm {
                polled: sender,
                next: None,
            };
            let slot = Slot::new("alarm", alarm, clock.clone(), events.clone());
            let request = PollRequest::new(Arc::clone(&events));
            let watched = RwLock::new(vec![Watched {
                device: slot.clone(),
                request: Some(request.clone()),
            }]);
            let (e, c) = (Arc::clone(&events), Arc::clone(&clock));
            let thread = Some(std::thread::spawn(move || run(&e, &*c, &watched)));
            Self {
                events,
                clock,
                slot,
                request,
                polled,
                thread,
            }
        }

        fn arm(&self, at: VmTime) {
            let nowhere = At { region: 0, offset: 0 };
            self.slot.write(nowhere, Width::Qword, at.as_ns());
            self.polled.recv().unwrap();
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.events.exit();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn device_is_polled_at_its_deadline_and_not_before() {
        let bench = Bench::new();
        bench.clock.resume();
        bench.events.run();
        let at = bench.clock.now() + 5_000_000;
        bench.arm(at);
        assert!(bench.polled.recv().unwrap() >= at);
    }

    #[test]
    fn held_thread_polls_nothing_until_it_runs_again() {
        let bench = Bench::new();
        bench.events.hold();
        bench.request.raise();
        bench.arm(VmTime::from_ns(1));
        bench.events.hold();
        assert!(bench.polled.try_recv().is_err());
        bench.clock.resume();
        bench.events.run();
        bench.polled.recv().unwrap();
    }

    #[test]
    fn request_polls_a_device_without_a_deadline() {
        let bench = Bench::new();
        bench.events.run();
        for _ in 0..3 {
            bench.request.raise();
            bench.polled.recv().unwrap();
        }
    }
}
