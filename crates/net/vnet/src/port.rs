//! A port of a switch: the queue of frames for its owner.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use device_model::Frame;
use device_model::FramePort;
use device_model::Inspect;
use device_model::Node;
use device_model::net::Accepts;
use device_model::net::ETHERNET_HEADER;
use device_model::net::FRAME_MAX;
use device_model::net::NetWaker;

use crate::Capture;
use crate::PortConfig;
use crate::Promiscuous;
use crate::Role;
use crate::Switch;
use crate::offload;

/// Frames that wait at most, and bytes of them. One frame always fits.
const FRAMES: usize = 1024;
const BYTES: usize = 4 << 20;

/// What has passed a port, from its owner's point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that the owner took, long segments counted once for each part if they were split for it.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that the owner sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames for the owner for which there was no room.
    pub dropped: u64,
    /// Frames that were none, in either direction.
    pub errors: u64,
}

#[derive(Default)]
struct Totals {
    received: AtomicU64,
    received_bytes: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
}

fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Frame>,
    bytes: usize,
    /// Segments of a frame that was split for the owner.
    split: VecDeque<Frame>,
    accepts: Accepts,
    /// The owner has found nothing, and is to be told of what comes.
    idle: bool,
    /// Owners whose frames were given back.
    blocked: Vec<NetWaker>,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.waiting.len() >= FRAMES || self.bytes >= BYTES
    }

    fn is_half_empty(&self) -> bool {
        self.waiting.len() <= FRAMES / 2 && self.bytes <= BYTES / 2
    }
}

/// A port of a [`Switch`]. Dropping it unplugs it.
pub struct Port {
    // Wiring
    switch: Arc<Switch>,
    waker: Mutex<Option<NetWaker>>,
    capture: Mutex<Option<Arc<Capture>>>,
    // Configuration
    id: u64,
    config: PortConfig,
    // State
    queue: Mutex<Queue>,
    link: AtomicBool,
    wants_all: AtomicBool,
    /// Whether there is a capture: looked at for each frame.
    captures: AtomicBool,
    totals: Totals,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Port {
    pub(crate) fn new(switch: Arc<Switch>, id: u64, config: PortConfig) -> Self {
        let queue = Queue {
            idle: true,
            ..Queue::default()
        };
        Self {
            switch,
            waker: Mutex::default(),
            capture: Mutex::default(),
            id,
            config,
            queue: Mutex::new(queue),
            link: AtomicBool::new(true),
            wants_all: AtomicBool::new(false),
            captures: AtomicBool::new(false),
            totals: Totals::default(),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn role(&self) -> Role {
        self.config.role
    }

    /// The port's name, in inspection.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Plugs the cable in or out. What waits is lost when it goes.
    pub fn set_link(&self, up: bool) {
        if self.link.swap(up, Ordering::AcqRel) == up {
            return;
        }
        let blocked = {
            let mut queue = self.lock();
            queue.waiting.clear();
            queue.split.clear();
            queue.bytes = 0;
            queue.idle = true;
            std::mem::take(&mut queue.blocked)
        };
        blocked.iter().for_each(|waker| waker());
        self.wake();
    }

    /// Writes what passes into `capture` from now on; none ends that.
    pub fn set_capture(&self, capture: Option<Arc<Capture>>) {
        self.captures.store(capture.is_some(), Ordering::Release);
        *self.capture.lock().unwrap_or_else(PoisonError::into_inner) = capture;
    }

    /// What has passed.
    pub fn counters(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let totals = &self.totals;
        Counters {
            received: get(&totals.received),
            received_bytes: get(&totals.received_bytes),
            sent: get(&totals.sent),
            sent_bytes: get(&totals.sent_bytes),
            dropped: get(&totals.dropped),
            errors: get(&totals.errors),
        }
    }

    /// Whether a frame between others, from a port of role `sender`, is shown to the owner.
    pub(crate) fn overhears(&self, sender: Role, target: Role) -> bool {
        self.wants_all.load(Ordering::Relaxed)
            && match self.config.promiscuous {
                Promiscuous::Deny => false,
                Promiscuous::Guests => sender == Role::Guest && target == Role::Guest,
                Promiscuous::All => true,
            }
    }

    /// Puts a frame into the owner's queue. A `patient` sender gets it back if there is no room, and is woken when there is.
    pub(crate) fn deliver(&self, frame: Frame, patient: Option<&Port>) -> Result<(), Frame> {
        if !self.link_up() {
            return Ok(());
        }
        let wake = {
            let mut queue = self.lock();
            if queue.is_full() {
                let Some(sender) = patient else {
                    add(&self.totals.dropped, 1);
                    return Ok(());
                };
                // Once is enough: such an owner sends nothing more until it is woken.
                if let Some(waker) = sender.waker() {
                    queue.blocked.retain(|other| !Arc::ptr_eq(other, &waker));
                    queue.blocked.push(waker);
                }
                return Err(frame);
            }
            queue.bytes += frame.bytes.len();
            queue.waiting.push_back(frame);
            std::mem::take(&mut queue.idle)
        };
        if wake {
            self.wake();
        }
        Ok(())
    }

    /// Whether the owner has frames to take.
    pub fn has_frames(&self) -> bool {
        let queue = self.lock();
        !(queue.waiting.is_empty() && queue.split.is_empty())
    }

    /// The next frame in a form that the owner takes, and who is to be told that there is room again.
    fn next(&self) -> (Option<Frame>, Vec<NetWaker>) {
        let mut queue = self.lock();
        let found = loop {
            if let Some(segment) = queue.split.pop_front() {
                break Some(segment);
            }
            let Some(frame) = queue.waiting.pop_front() else {
                queue.idle = true;
                break None;
            };
            queue.bytes = queue.bytes.saturating_sub(frame.bytes.len());
            let accepts = queue.accepts;
            if accepts.takes(&frame.offload) {
                break Some(frame);
            }
            let split = &mut queue.split;
            if offload::finish(frame, &accepts, &mut |segment| split.push_back(segment)).is_err() {
                add(&self.totals.errors, 1);
            }
        };
        let blocked = match queue.is_half_empty() {
            true => std::mem::take(&mut queue.blocked),
            false => Vec::new(),
        };
        (found, blocked)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waker(&self) -> Option<NetWaker> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker() {
            waker();
        }
    }

    fn record(&self, frame: &Frame) {
        if self.captures.load(Ordering::Acquire)
            && let Some(capture) = &*self.capture.lock().unwrap_or_else(PoisonError::into_inner)
        {
            capture.record(frame);
        }
    }
}

impl FramePort for Port {
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        let len = frame.bytes.len();
        if !(ETHERNET_HEADER..=FRAME_MAX).contains(&len) {
            add(&self.totals.errors, 1);
            return Ok(());
        }
        if !self.link_up() {
            return Ok(());
        }
        // A frame that is given back is captured when it is sent again.
        let shown = self.captures.load(Ordering::Acquire).then(|| frame.clone());
        self.switch.forward(self, frame)?;
        if let Some(shown) = shown {
            self.record(&shown);
        }
        add(&self.totals.sent, 1);
        add(&self.totals.sent_bytes, len);
        Ok(())
    }

    fn receive(&self) -> Option<Frame> {
        if !self.link_up() {
            return None;
        }
        let (frame, blocked) = self.next();
        blocked.iter().for_each(|waker| waker());
        let frame = frame?;
        add(&self.totals.received, 1);
        add(&self.totals.received_bytes, frame.bytes.len());
        self.record(&frame);
        Some(frame)
    }

    fn set_accepts(&self, accepts: Accepts) {
        self.lock().accepts = accepts;
    }

    fn set_promiscuous(&self, on: bool) {
        self.wants_all.store(on, Ordering::Relaxed);
    }

    fn set_waker(&self, waker: NetWaker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    fn link_up(&self) -> bool {
        self.link.load(Ordering::Acquire)
    }
}

impl Inspect for Port {
    fn inspect(&self) -> Node {
        let counters = self.counters();
        Node::tree()
            .with("link", self.link_up())
            .with("waiting", self.lock().waiting.len() as u64)
            .with("received", counters.received)
            .with("received_bytes", counters.received_bytes)
            .with("sent", counters.sent)
            .with("sent_bytes", counters.sent_bytes)
            .with("dropped", counters.dropped)
            .with("errors", counters.errors)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.switch.unplug(self.id);
        let blocked = std::mem::take(&mut self.lock().blocked);
        blocked.iter().for_each(|waker| waker());
    }
}
