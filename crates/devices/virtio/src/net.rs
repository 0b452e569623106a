//! Network card: frames by up to eight pairs of queues, with checksums and segments left to the far end in both directions.
//!
//! Frames that arrive are spread over the pairs by the flow that they belong to. A network may lose frames: what has been
//! taken from it and is not in the guest's buffers yet is no part of a saved state. There are no VLAN filters, no receive-side
//! scaling and no announcements.
//!
//! Spec: virtio 1.2 §5.1.

mod control;
mod frame;

use std::sync::Arc;

use device_model::Frame;
use device_model::FramePort;
use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use device_model::net::Accepts;
use device_model::net::FRAME_MAX;
use device_model::net::Mac;
use serde::Deserialize;
use serde::Serialize;

use crate::Chain;
use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;
use crate::queue::index;
use control::Filter;

/// Pairs of queues at most.
pub const PAIRS: u16 = 8;
/// Entries of the queues of frames, and of that of commands.
const ENTRIES: u16 = 256;
const COMMANDS: u16 = 64;
/// Buffers that one frame is spread over at most.
const SPREAD: usize = 256;
/// Frames that one poll takes from the network at most.
const TURN: usize = 512;

/// Features (§5.1.3).
mod net_feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const CTRL_RX: u64 = 1 << 18;
    pub(super) const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(super) const GUEST_USO4: u64 = 1 << 54;
    pub(super) const GUEST_USO6: u64 = 1 << 55;
    pub(super) const HOST_USO: u64 = 1 << 56;
    /// What the driver may turn off again (§5.1.6.5.6).
    pub(super) const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
}

/// What a card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address.
    pub mac: Mac,
    /// Pairs of queues, 1 to 8: one for each processor.
    pub pairs: u16,
}

/// State of a pair of queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    /// Buffers for the next frame that were taken already, since one is too small for it.
    gathered: Vec<Chain>,
    /// A frame of the guest's that the network has no room for.
    stalled: Option<Chain>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    sent: u64,
    received: u64,
    sent_bytes: u64,
    received_bytes: u64,
    /// Frames that could not be sent, and that found no buffer large enough.
    malformed: u64,
    too_long: u64,
    filtered: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    mac: Mac,
    features: u64,
    /// Features of `GUEST_OFFLOADS` that are on at present.
    offloads: u64,
    /// Pairs of queues that the driver uses.
    pairs: u16,
    /// The link as the driver was told of it.
    link: bool,
    filter: Filter,
    queues: Vec<Pair>,
    counters: Counters,
}

impl State {
    fn new(config: &NetConfig) -> Self {
        Self {
            mac: config.mac,
            features: 0,
            offloads: 0,
            pairs: 1,
            link: false,
            filter: Filter::default(),
            queues: vec![Pair::default(); config.pairs.into()],
            counters: Counters::default(),
        }
    }
}

/// The device.
pub struct Net {
    // Wiring
    port: Arc<dyn FramePort>,
    // Configuration
    config: NetConfig,
    // State
    state: State,
    /// A frame that waits for buffers, and the pair that it goes to. Lost when the state is saved.
    arrived: Option<(usize, Frame)>,
}

impl Net {
    /// A card at `port`, which asks for polls by `waker`.
    #[must_use]
    pub fn new(port: Arc<dyn FramePort>, config: NetConfig, waker: device_model::net::NetWaker) -> Self {
        let pairs = config.pairs.clamp(1, PAIRS);
        let config = NetConfig { pairs, ..config };
        port.set_waker(waker);
        let net = Self {
            port,
            state: State::new(&config),
            config,
            arrived: None,
        };
        net.tell_port();
        net
    }

    fn has(&self, feature: u64) -> bool {
        self.state.features & feature != 0
    }

    /// The queue of commands (§5.1.2).
    fn control_queue(&self) -> usize {
        let pairs = if self.has(net_feature::MQ) {
            self.config.pairs
        } else {
            1
        };
        usize::from(pairs) * 2
    }

    /// Tells the network what the driver takes and wants to see.
    fn tell_port(&self) {
        let on = |feature: u64| self.state.offloads & feature == feature;
        self.port.set_accepts(Accepts {
            missing_checksum: on(net_feature::GUEST_CSUM),
            tcp4: on(net_feature::GUEST_TSO4),
            tcp6: on(net_feature::GUEST_TSO6),
            udp: on(net_feature::GUEST_USO4 | net_feature::GUEST_USO6),
            ecn: on(net_feature::GUEST_ECN),
        });
        self.port.set_promiscuous(self.state.filter.promiscuous);
    }

    /// Bytes of the header in front of each frame (§5.1.6.1).
    fn header_len(&self) -> usize {
        let long = self.has(crate::feature::VERSION_1 | net_feature::MRG_RXBUF);
        if long { frame::HEADER } else { frame::SHORT_HEADER }
    }

    /// Sends what the driver has given.
    fn transmit(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        for number in 0..usize::from(self.state.pairs) {
            let queue = number * 2 + 1;
            loop {
                let stalled = self.state.queues.get_mut(number).and_then(|pair| pair.stalled.take());
                let Some(chain) = stalled.or_else(|| rings.pop(queue)) else {
                    break;
                };
                if !self.send(&chain, rings)? {
                    if let Some(pair) = self.state.queues.get_mut(number) {
                        pair.stalled = Some(chain);
                    }
                    break;
                }
                rings.push(queue, chain.head, 0);
            }
        }
        Ok(())
    }

    /// Sends a frame. False when the network has no room for it now.
    fn send(&mut self, chain: &Chain, rings: &Rings<'_>) -> Result<bool, RingError> {
        let header_len = self.header_len();
        let mut chain = chain.clone();
        let mut header = [0; frame::HEADER];
        chain.take(rings.memory(), header.get_mut(..header_len).unwrap_or_default())?;
        let len = index(chain.readable_len());
        let offload = frame::outgoing(&header, self.state.features);
        let (Some(offload), true) = (offload, len <= FRAME_MAX) else {
            self.state.counters.malformed = self.state.counters.malformed.wrapping_add(1);
            return Ok(true);
        };
        let mut bytes = vec![0; len];
        chain.take(rings.memory(), &mut bytes)?;
        if self.port.send(Frame { bytes, offload }).is_err() {
            return Ok(false);
        }
        let counters = &mut self.state.counters;
        counters.sent = counters.sent.wrapping_add(1);
        counters.sent_bytes = counters.sent_bytes.wrapping_add(len as u64);
        Ok(true)
    }

    /// Gives the driver what has come. Whether there may be more than one poll takes.
    fn receive(&mut self, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        for _ in 0..TURN {
            let Some((number, frame)) = self.arrived.take().or_else(|| self.next_frame()) else {
                return Ok(false);
            };
            if !self.deliver(number, &frame, rings)? {
                self.arrived = Some((number, frame));
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next frame that the driver wants to see, and the pair that it goes to.
    fn next_frame(&mut self) -> Option<(usize, Frame)> {
        for _ in 0..TURN {
            let frame = self.port.receive()?;
            let filters = self.has(net_feature::CTRL_RX);
            if !filters || self.state.filter.passes(&frame.bytes, self.state.mac) {
                let pair = frame::flow(&frame.bytes) % u64::from(self.state.pairs.max(1));
                return Some((index(pair), frame));
            }
            self.state.counters.filtered = self.state.counters.filtered.wrapping_add(1);
        }
        None
    }

    /// Puts a frame into buffers. False when there are not enough of them.
    fn deliver(&mut self, number: usize, frame: &Frame, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        let header_len = self.header_len();
        let needed = (header_len + frame.bytes.len()) as u64;
        let merges = self.has(net_feature::MRG_RXBUF);
        let Some(pair) = self.state.queues.get_mut(number) else {
            return Ok(true);
        };
        let room = |chains: &[Chain]| chains.iter().map(Chain::writable_len).sum::<u64>();
        while pair.gathered.is_empty() || merges && room(&pair.gathered) < needed {
            let Some(chain) = rings.pop(number * 2) else {
                return Ok(false);
            };
            if chain.writable_len() == 0 || pair.gathered.len() >= SPREAD {
                return Err(RingError::Shape);
            }
            pair.gathered.push(chain);
        }
        let counters = &mut self.state.counters;
        if room(&pair.gathered) < needed {
            // A driver whose buffers are that small loses it; they are there for the next one.
            counters.too_long = counters.too_long.wrapping_add(1);
            return Ok(true);
        }
        let count = u16::try_from(pair.gathered.len()).unwrap_or(u16::MAX);
        let header = frame::incoming(frame, count);
        // PERF: the frame goes from its own bytes to the buffers; it may be 64 KiB long.
        let mut parts = [header.get(..header_len).unwrap_or_default(), &frame.bytes];
        let mut used = Vec::new();
        for mut chain in std::mem::take(&mut pair.gathered) {
            let mut len = 0;
            for part in &mut parts {
                let put = chain.put(rings.memory(), part)?;
                *part = part.get(put..).unwrap_or_default();
                len += put;
            }
            used.push((chain.head, u32::try_from(len).unwrap_or(0)));
        }
        rings.push_all(number * 2, &used);
        counters.received = counters.received.wrapping_add(1);
        counters.received_bytes = counters.received_bytes.wrapping_add(frame.bytes.len() as u64);
        Ok(true)
    }

    fn go(&mut self, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        if self.has(net_feature::CTRL_VQ) {
            self.commands(rings)?;
        }
        let link = self.port.link_up();
        if link != self.state.link {
            self.state.link = link;
            if self.has(net_feature::STATUS) {
                rings.config_changed();
            }
        }
        self.transmit(rings)?;
        self.receive(rings)
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u16 {
        id::NET
    }

    fn features(&self) -> u64 {
        use net_feature as f;
        let guest = f::GUEST_OFFLOADS | f::CTRL_GUEST_OFFLOADS;
        let host = f::CSUM | f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_ECN | f::HOST_USO;
        let control = f::CTRL_VQ | f::CTRL_RX | f::CTRL_RX_EXTRA | f::CTRL_MAC_ADDR;
        let several = if self.config.pairs > 1 { f::MQ } else { 0 };
        guest | host | control | several | f::MAC | f::MRG_RXBUF | f::STATUS
    }

    fn queues(&self) -> Vec<u16> {
        let mut queues = vec![ENTRIES; usize::from(self.config.pairs) * 2];
        queues.push(COMMANDS);
        queues
    }

    fn config(&self) -> Vec<u8> {
        let status = u16::from(self.port.link_up());
        let pairs = self.config.pairs.to_le_bytes();
        [self.state.mac.as_slice(), &status.to_le_bytes(), &pairs].concat()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        // Legacy drivers write the address here.
        if self.has(crate::feature::VERSION_1) {
            return;
        }
        for (old, new) in self.state.mac.iter_mut().skip(offset).zip(bytes) {
            *old = *new;
        }
    }

    fn activate(&mut self, features: u64) {
        self.state.features = features;
        self.state.offloads = features & net_feature::GUEST_OFFLOADS;
        self.state.link = self.port.link_up();
        self.tell_port();
    }

    fn poll(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        let more = self.go(rings);
        rings.check(more).unwrap_or(false).then_some(now + 1)
    }

    fn reset(&mut self) {
        let counters = self.state.counters;
        self.state = State {
            counters,
            ..State::new(&self.config)
        };
        self.arrived = None;
        self.tell_port();
    }
}

impl Snapshot for Net {
    type State = NetV1;

    fn save(&self) -> NetV1 {
        let Self {
            port: _,
            config: _,
            state,
            arrived: _,
        } = self;
        NetV1(state.clone())
    }

    fn restore(&mut self, saved: NetV1) -> Result<(), RestoreError> {
        let NetV1(state) = saved;
        let pairs = (1..=self.config.pairs).contains(&state.pairs);
        let gathered = |pair: &Pair| pair.gathered.len() <= SPREAD;
        let queues = state.queues.len() == self.state.queues.len() && state.queues.iter().all(gathered);
        if !pairs || !queues || !state.filter.is_sound() {
            return Err(RestoreError::Invalid("a network card of another shape".to_owned()));
        }
        for pair in &state.queues {
            for chain in pair.gathered.iter().chain(&pair.stalled) {
                chain.check()?;
            }
        }
        self.state = state;
        self.arrived = None;
        self.tell_port();
        Ok(())
    }
}

impl Inspect for Net {
    fn inspect(&self) -> Node {
        let State { counters, .. } = &self.state;
        let mac = self.state.mac.map(|byte| format!("{byte:02x}")).join(":");
        Node::tree()
            .with("mac", mac)
            .with("link", self.port.link_up())
            .with("pairs", self.state.pairs)
            .with("promiscuous", self.state.filter.promiscuous)
            .with("sent", counters.sent)
            .with("received", counters.received)
            .with("sent_bytes", counters.sent_bytes)
            .with("received_bytes", counters.received_bytes)
            .with("malformed", counters.malformed)
            .with("too_long", counters.too_long)
            .with("filtered", counters.filtered)
    }
}

/// Saved state of [`Net`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetV1(State);

impl Schema for NetV1 {
    const NAME: &'static str = "virtio_net";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
