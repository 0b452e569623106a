//! A cable with limits: so many bits a second, so much delay, so many frames lost.
//!
//! Both directions are alike and apart. A frame leaves when the cable has carried those before it, arrives the latency later, and
//! is lost by chance. What the cable has no room for waits with its sender.

use std::collections::VecDeque;
use std::fmt;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use device_model::Frame;
use device_model::FramePort;
use device_model::net::Accepts;
use device_model::net::NetWaker;

use crate::Port;

/// Bytes on the cable at most, in each direction; one frame always fits.
const BYTES: usize = 1 << 20;

/// What a cable is like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bits a second in each direction; none: as many as there are.
    pub bandwidth: Option<u64>,
    /// Time from one end to the other.
    pub latency: Duration,
    /// Frames that are lost, of a million.
    pub loss: u32,
}

impl Limits {
    /// Whether it limits anything.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// One direction.
#[derive(Default)]
struct Lane {
    /// Frames, and when they arrive.
    frames: VecDeque<(Instant, Frame)>,
    bytes: usize,
    /// The last frame has left by then.
    free: Option<Instant>,
}

impl Lane {
    fn is_full(&self) -> bool {
        self.bytes >= BYTES
    }

    /// Puts a frame on the cable; `chance` is a random number.
    fn push(&mut self, frame: Frame, limits: &Limits, chance: u64, now: Instant) {
        let len = frame.bytes.len() as u64;
        let carried = match limits.bandwidth {
            Some(bits) => Duration::from_secs_f64(len as f64 * 8.0 / bits.max(1) as f64),
            None => Duration::ZERO,
        };
        let left = self.free.map_or(now, |free| free.max(now)) + carried;
        self.free = Some(left);
        if chance % 1_000_000 < u64::from(limits.loss) {
            return;
        }
        self.bytes += frame.bytes.len();
        self.frames.push_back((left + limits.latency, frame));
    }

    /// The next frame, if it has arrived.
    fn pop(&mut self, now: Instant) -> Option<Frame> {
        self.frames.front().filter(|(at, _)| *at <= now)?;
        let (_, frame) = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(frame.bytes.len());
        Some(frame)
    }

    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|(at, _)| *at)
    }
}

#[derive(Default)]
struct State {
    out: Lane,
    /// It arrived, and the network had no room.
    stuck: Option<Frame>,
    back: Lane,
    /// What has arrived for the card.
    arrived: VecDeque<Frame>,
    waker: Option<NetWaker>,
    /// The card is to be woken for a frame, or for room.
    idle: bool,
    blocked: bool,
    /// The port has frames or room.
    woken: bool,
    ended: bool,
    random: u64,
}

impl State {
    fn chance(&mut self) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

struct Shared {
    port: Arc<Port>,
    limits: Limits,
    state: Mutex<State>,
    changed: Condvar,
}

/// A card's end of a cable with limits, the other end of which is a port.
pub struct ShapedPort {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for ShapedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShapedPort")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl ShapedPort {
    /// A cable to `port`.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(port: Arc<Port>, limits: Limits) -> io::Result<Self> {
        let state = State {
            idle: true,
            random: RandomState::new().hash_one(0u8) | 1,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            port,
            limits,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        // The port must not keep its own cable alive.
        let told = Arc::downgrade(&shared);
        shared.port.set_waker(Arc::new(move || {
            if let Some(shared) = told.upgrade() {
                shared.lock().woken = true;
                shared.changed.notify_all();
            }
        }));
        let body = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("cable".to_owned())
            .spawn(move || body.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.ended {
            state.woken = false;
            let wake = self.carry(&mut state);
            if wake && let Some(waker) = state.waker.clone() {
                drop(state);
                waker();
                state = self.lock();
                continue;
            }
            if state.woken || state.ended {
                continue;
            }
            // What is stuck goes on when the port has room, which it tells.
            let out = state.out.next().filter(|_| state.stuck.is_none());
            let next = [out, state.back.next()].into_iter().flatten().min();
            state = match next {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let wait = at.saturating_duration_since(Instant::now());
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Moves what has arrived. True if the card is to be woken.
    fn carry(&self, state: &mut State) -> bool {
        let now = Instant::now();
        while let Some(frame) = state.stuck.take().or_else(|| state.out.pop(now)) {
            if let Err(frame) = self.port.send(frame) {
                state.stuck = Some(frame);
                break;
            }
        }
        while !state.back.is_full()
            && let Some(frame) = self.port.receive()
        {
            let chance = state.chance();
            state.back.push(frame, &self.limits, chance, now);
        }
        // What the card does not take stays on the cable, and so in the port.
        let waiting: usize = state.arrived.iter().map(|frame| frame.bytes.len()).sum();
        let mut room = BYTES.saturating_sub(waiting);
        while room > 0
            && let Some(frame) = state.back.pop(now)
        {
            room = room.saturating_sub(frame.bytes.len());
            state.arrived.push_back(frame);
        }
        let has_frames = !state.arrived.is_empty() && std::mem::take(&mut state.idle);
        let has_room = state.blocked && !state.out.is_full();
        state.blocked &= !has_room;
        has_frames || has_room
    }
}

impl FramePort for ShapedPort {
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        let mut state = self.shared.lock();
        if state.out.is_full() {
            state.blocked = true;
            return Err(frame);
        }
        let chance = state.chance();
        state.out.push(frame, &self.shared.limits, chance, Instant::now());
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn receive(&self) -> Option<Frame> {
        let mut state = self.shared.lock();
        let frame = state.arrived.pop_front();
        if frame.is_none() {
            state.idle = true;
        }
        if state.arrived.is_empty() {
            state.woken = true;
            self.shared.changed.notify_all();
        }
        frame.filter(|_| self.shared.port.link_up())
    }

    fn set_accepts(&self, accepts: Accepts) {
        self.shared.port.set_accepts(accepts);
    }

    fn set_promiscuous(&self, on: bool) {
        self.shared.port.set_promiscuous(on);
    }

    fn set_waker(&self, waker: NetWaker) {
        self.shared.lock().waker = Some(waker);
    }

    fn link_up(&self) -> bool {
        self.shared.port.link_up()
    }
}

impl Drop for ShapedPort {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::PortConfig;
    use crate::Switch;

    fn frame(n: u8, len: usize) -> Frame {
        let mut bytes = vec![0xff; 12];
        bytes[6] = 2;
        bytes.extend([0x88, 0xb5, n]);
        bytes.resize(len, 0);
        Frame::new(bytes)
    }

    fn cable(limits: Limits) -> (ShapedPort, Arc<Port>, mpsc::Receiver<()>) {
        let switch = Switch::new();
        let cable = ShapedPort::new(switch.plug(PortConfig::guest("card")), limits).unwrap();
        let (sender, woken) = mpsc::channel();
        cable.set_waker(Arc::new(move || {
            let _ = sender.send(());
        }));
        (cable, switch.plug(PortConfig::guest("other")), woken)
    }

    fn wait(port: &dyn FramePort) -> Frame {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(frame) = port.receive() {
                return frame;
            }
            assert!(Instant::now() < end, "nothing came");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn frames_take_their_time_and_keep_their_order_both_ways() {
        let latency = Duration::from_millis(50);
        let limits = Limits {
            bandwidth: Some(8_000_000),
            latency,
            loss: 0,
        };
        let (cable, other, woken) = cable(limits);
        let start = Instant::now();
        (0..50).for_each(|n| cable.send(frame(n, 1000)).unwrap());
        let order: Vec<u8> = (0..50).map(|_| wait(&*other).bytes[14]).collect();
        assert!(order.iter().copied().eq(0..50));
        // 50 kB at 1 MB a second, and the latency.
        assert!(start.elapsed() >= latency + Duration::from_millis(50));
        let start = Instant::now();
        other.send(frame(7, 1000)).unwrap();
        woken.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(cable.receive().unwrap().bytes[14], 7);
        assert!(start.elapsed() >= latency);
    }

    #[test]
    fn so_many_are_lost_as_is_said() {
        let limits = Limits {
            loss: 250_000,
            ..Limits::default()
        };
        let mut lane = Lane::default();
        let mut state = State {
            random: 0x1234_5678_9abc_def1,
            ..State::default()
        };
        let now = Instant::now();
        for _ in 0..4000 {
            let chance = state.chance();
            lane.push(frame(0, 60), &limits, chance, now);
        }
        assert!((2850..3150).contains(&lane.frames.len()), "{}", lane.frames.len());
    }

    #[test]
    fn full_cable_gives_frames_back_and_wakes_the_card_when_it_has_room() {
        let limits = Limits {
            bandwidth: Some(80_000_000),
            ..Limits::default()
        };
        let (cable, other, woken) = cable(limits);
        let mut sent = 0;
        while cable.send(frame(0, 60_000)).is_ok() {
            sent += 1;
        }
        assert!((17..25).contains(&sent), "{sent}");
        woken.recv_timeout(Duration::from_secs(60)).unwrap();
        cable.send(frame(1, 60_000)).unwrap();
        (0..=sent).for_each(|_| drop(wait(&*other)));
    }
}
