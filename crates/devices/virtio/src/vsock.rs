//! Socket device: streams between the guest's programs and the host's.
//!
//! Each connection has credit in both directions: the guest sends no more than the device promised to keep, and is sent no
//! more than it promised. What there is to say to the guest goes round the connections, a packet each. Sockets carry bytes
//! (STREAM) or messages (SEQPACKET).
//!
//! A restored machine has no connections: the guest is told so by an event.
//!
//! Spec: virtio 1.2 §5.10.

mod connection;
mod packet;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use device_model::Flow;
use device_model::FlowKind;
use device_model::FlowStatus;
use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::StreamHost;
use device_model::StreamWaker;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use crate::Chain;
use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;
use crate::queue::index;
use connection::Connection;
use connection::Phase;
use connection::Say;
use packet::END_OF_MESSAGE;
use packet::HEADER;
use packet::Header;
use packet::SEQPACKET;
use packet::STREAM;
use packet::op;
use packet::shutdown;

/// The host's context identifier (§5.10.4).
pub const HOST_CID: u64 = 2;
/// Guests' context identifiers.
pub const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
/// Connections at most.
pub const CONNECTIONS: usize = 1024;
/// Bytes of one connection that are kept for the host's program.
pub const BUFFER: u32 = 128 << 10;
/// Entries of each queue.
const ENTRIES: u16 = 256;
/// Queues (§5.10.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// Connections that were refused and whose programs do not know yet; the guest is not listened to while there are more.
const REFUSED: usize = 256;
/// Sockets of bytes and of messages are there (§5.10.3).
const F_STREAM: u64 = 1 << 0;
const F_SEQPACKET: u64 = 1 << 1;
/// Event: connections are gone (§5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    to_guest: u64,
    to_host: u64,
    refused: u64,
}

/// The device.
pub struct Vsock {
    // Wiring
    host: Arc<dyn StreamHost>,
    // Configuration
    cid: u32,
    // State
    /// The driver is up.
    up: bool,
    /// It knows sockets of messages.
    packets: bool,
    // Derived
    connections: BTreeMap<Flow, Connection>,
    /// Connections that may have something to say, each at most once.
    turn: VecDeque<Flow>,
    /// Packets that are answered by a reset.
    refused: VecDeque<(Flow, u64, u16)>,
    /// The guest does not know yet that its connections are gone.
    tell_reset: bool,
    counters: Counters,
}

impl Vsock {
    /// A device that the guest finds itself as `cid` by, of [`CIDS`], with the programs of `host`, which asks for polls by
    /// `waker`.
    #[must_use]
    pub fn new(cid: u32, host: Arc<dyn StreamHost>, waker: StreamWaker) -> Self {
        host.set_waker(waker);
        Self {
            host,
            cid,
            up: false,
            packets: false,
            connections: BTreeMap::new(),
            turn: VecDeque::new(),
            refused: VecDeque::new(),
            tell_reset: false,
            counters: Counters::default(),
        }
    }

    fn forget_all(&mut self) {
        self.host.reset();
        self.connections.clear();
        self.turn.clear();
        self.refused.clear();
        self.tell_reset = false;
    }

    /// The connection may have something to say.
    fn queue(&mut self, flow: Flow) {
        if let Some(connection) = self.connections.get_mut(&flow)
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.turn.push_back(flow);
        }
    }

    /// Ends a connection, of which the guest is told.
    fn refuse(&mut self, flow: Flow, flush: bool) {
        if self.connections.remove(&flow).is_some() {
            self.host.close(flow, flush);
        }
        self.answer_reset(flow, HOST_CID, packet::kind(flow));
    }

    fn answer_reset(&mut self, flow: Flow, cid: u64, kind: u16) {
        self.counters.refused = self.counters.refused.wrapping_add(1);
        self.refused.push_back((flow, cid, kind));
    }

    /// Does what the guest sends.
    fn transmit(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        while self.refused.len() < REFUSED {
            let Some(mut chain) = rings.pop(TRANSMIT) else { break };
            let header: Header = chain.take_obj(rings.memory())?;
            self.take(&header, &mut chain, rings)?;
            rings.push(TRANSMIT, chain.head, 0);
        }
        Ok(())
    }

    fn take(&mut self, header: &Header, chain: &mut Chain, rings: &Rings<'_>) -> Result<(), RingError> {
        // A guest that speaks for another is not answered.
        if header.src_cid.get() != self.cid.into() {
            return Ok(());
        }
        let (flow, what) = (header.flow(), header.op.get());
        let (cid, kind) = (header.dst_cid.get(), header.kind.get());
        let known = kind == STREAM || kind == SEQPACKET && self.packets;
        if cid != HOST_CID || !known {
            if what != op::RST {
                self.answer_reset(flow, cid, kind);
            }
            return Ok(());
        }
        if what == op::REQUEST {
            self.requested(header);
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&flow) else {
            if what != op::RST {
                self.answer_reset(flow, HOST_CID, kind);
            }
            return Ok(());
        };
        connection.hear(header);
        match (what, connection.phase) {
            (op::RST, _) => {
                self.connections.remove(&flow);
                self.host.close(flow, true);
            }
            (op::RESPONSE, Phase::Offered) => {
                connection.phase = Phase::Open;
                self.host.accept(flow);
            }
            (op::SHUTDOWN, Phase::Open) => self.shut_down(flow, header.flags.get()),
            (op::RW, Phase::Open) => self.data(flow, header, chain, rings)?,
            (op::CREDIT_UPDATE, _) => {}
            (op::CREDIT_REQUEST, _) => connection.must_tell_credit = true,
            _ => self.refuse(flow, false),
        }
        self.queue(flow);
        Ok(())
    }

    /// The guest wants a connection.
    fn requested(&mut self, header: &Header) {
        let flow = header.flow();
        if self.connections.contains_key(&flow) {
            self.refuse(flow, false);
        } else if self.connections.len() >= CONNECTIONS || !self.host.connect(flow) {
            self.answer_reset(flow, HOST_CID, packet::kind(flow));
        } else {
            let mut connection = Connection::new(Phase::Opening);
            connection.hear(header);
            self.connections.insert(flow, connection);
        }
    }

    /// The guest sends or takes nothing any more.
    fn shut_down(&mut self, flow: Flow, flags: u32) {
        let Some(connection) = self.connections.get_mut(&flow) else {
            return;
        };
        connection.guest_done |= flags & shutdown::BOTH;
        let done = connection.guest_done;
        if done == shutdown::BOTH {
            // What it has sent is delivered all the same.
            self.refuse(flow, true);
        } else {
            let (sends, takes) = (done & shutdown::SEND != 0, done & shutdown::RECEIVE != 0);
            self.host.shut_down(flow, sends, takes);
        }
    }

    fn data(&mut self, flow: Flow, header: &Header, chain: &mut Chain, rings: &Rings<'_>) -> Result<(), RingError> {
        let len = header.len.get();
        let status = self.host.status(flow);
        let Some(connection) = self.connections.get_mut(&flow) else {
            return Ok(());
        };
        let delivered = status.map_or(0, |status| device_model::bytes::low32(status.delivered));
        let kept = connection.received.wrapping_sub(delivered);
        // More than was promised to be kept, or something after the last.
        if len > BUFFER.saturating_sub(kept) || connection.guest_done & shutdown::SEND != 0 {
            self.refuse(flow, false);
            return Ok(());
        }
        let mut bytes = vec![0; index(len.into())];
        chain.take(rings.memory(), &mut bytes)?;
        connection.received = connection.received.wrapping_add(len);
        self.counters.to_host = self.counters.to_host.wrapping_add(len.into());
        self.host.send(flow, &bytes, header.flags.get() & END_OF_MESSAGE != 0);
        Ok(())
    }

    /// Takes what the host's programs want.
    fn listen(&mut self) {
        while self.refused.len() < REFUSED {
            let Some(flow) = self.host.offered() else { break };
            let unknown = flow.kind == FlowKind::Packets && !self.packets;
            if unknown || self.connections.len() >= CONNECTIONS || self.connections.contains_key(&flow) {
                self.host.close(flow, false);
                continue;
            }
            self.connections.insert(flow, Connection::new(Phase::Offered));
            self.queue(flow);
        }
        while self.refused.len() < REFUSED {
            let Some(flow) = self.host.changed() else { break };
            self.look(flow);
        }
    }

    /// Something has changed on the host's side.
    fn look(&mut self, flow: Flow) {
        let status = self.host.status(flow);
        match (self.connections.get_mut(&flow), status) {
            (Some(_), None) => self.refuse(flow, false),
            (Some(connection), Some(status)) => {
                if status.open && connection.phase == Phase::Opening {
                    connection.phase = Phase::Open;
                    connection.must_respond = true;
                }
                self.queue(flow);
            }
            (None, _) => {}
        }
    }

    /// Tells the guest what was refused. False when it has no room for more.
    fn tell_refused(&mut self, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        while let Some((flow, cid, kind)) = self.refused.front().copied() {
            let Some(chain) = rings.pop(RECEIVE) else {
                return Ok(false);
            };
            self.refused.pop_front();
            let header = Header::new(flow, cid, self.cid, op::RST).with_kind(kind);
            self.put(chain, header, &[], rings)?;
        }
        Ok(true)
    }

    /// Says to the guest what there is to say.
    fn receive(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        while self.tell_refused(rings)?
            && let Some(flow) = self.turn.pop_front()
        {
            let status = self.host.status(flow);
            let Some(connection) = self.connections.get_mut(&flow) else {
                continue;
            };
            if flow.kind == FlowKind::Packets && status.is_some_and(|status| connection.is_too_long(&status)) {
                self.refuse(flow, false);
                continue;
            }
            let Some((say, status)) = status.and_then(|status| Some((connection.next(&status)?, status))) else {
                connection.queued = false;
                continue;
            };
            let Some(chain) = rings.pop(RECEIVE) else {
                self.turn.push_front(flow);
                return Ok(());
            };
            self.turn.push_back(flow);
            self.say(flow, say, &status, chain, rings)?;
        }
        Ok(())
    }

    fn say(
        &mut self,
        flow: Flow,
        say: Say,
        status: &FlowStatus,
        chain: Chain,
        rings: &mut Rings<'_>,
    ) -> Result<(), RingError> {
        let Some(connection) = self.connections.get_mut(&flow) else {
            return Ok(());
        };
        let mut header = Header::new(flow, HOST_CID, self.cid, say.op());
        let mut bytes = Vec::new();
        match say {
            Say::Data(most) => {
                let room = index(chain.writable_len()).saturating_sub(HEADER);
                if room == 0 {
                    return Err(RingError::Shape);
                }
                let end;
                (bytes, end) = self.host.receive(flow, index(most.into()).min(room));
                if flow.kind == FlowKind::Packets {
                    connection.within = !end;
                    header.flags = if end { END_OF_MESSAGE } else { 0 }.into();
                }
                let len = u32::try_from(bytes.len()).unwrap_or(0);
                connection.sent = connection.sent.wrapping_add(len);
                header.len = len.into();
            }
            Say::Shutdown(flags) => header.flags = flags.into(),
            Say::Request | Say::Response | Say::Credit | Say::CreditRequest => {}
        }
        let delivered = device_model::bytes::low32(status.delivered);
        connection.said(say, delivered);
        (header.buf_alloc, header.fwd_cnt) = (BUFFER.into(), delivered.into());
        self.counters.to_guest = self.counters.to_guest.wrapping_add(bytes.len() as u64);
        self.put(chain, header, &bytes, rings)
    }

    fn put(&mut self, mut chain: Chain, header: Header, bytes: &[u8], rings: &mut Rings<'_>) -> Result<(), RingError> {
        if chain.writable_len() < HEADER as u64 {
            return Err(RingError::Shape);
        }
        let head = zerocopy::IntoBytes::as_bytes(&header);
        let put = chain.put(rings.memory(), head)? + chain.put(rings.memory(), bytes)?;
        rings.push(RECEIVE, chain.head, u32::try_from(put).unwrap_or(0));
        Ok(())
    }

    fn tell_events(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        if self.tell_reset
            && let Some(mut chain) = rings.pop(EVENT)
        {
            let event = TRANSPORT_RESET.to_le_bytes();
            if chain.writable_len() < event.len() as u64 {
                return Err(RingError::Shape);
            }
            let put = chain.put(rings.memory(), &event)?;
            rings.push(EVENT, chain.head, u32::try_from(put).unwrap_or(0));
            self.tell_reset = false;
        }
        Ok(())
    }

    /// Whether there is more to do that waited for what was refused to be told.
    fn go(&mut self, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        self.tell_events(rings)?;
        self.listen();
        self.transmit(rings)?;
        let full = self.refused.len() >= REFUSED;
        self.receive(rings)?;
        Ok(full && self.refused.len() < REFUSED)
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u16 {
        id::VSOCK
    }

    fn features(&self) -> u64 {
        F_STREAM | F_SEQPACKET
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; 3]
    }

    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn activate(&mut self, features: u64) {
        self.up = true;
        self.packets = features & F_SEQPACKET != 0;
    }

    fn poll(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        let more = self.go(rings);
        rings.check(more).unwrap_or(false).then_some(now + 1)
    }

    fn reset(&mut self) {
        self.forget_all();
        (self.up, self.packets) = (false, false);
    }
}

impl Snapshot for Vsock {
    type State = VsockV1;

    fn save(&self) -> VsockV1 {
        let Self {
            host: _,
            cid: _,
            up,
            packets,
            connections: _,
            turn: _,
            refused: _,
            tell_reset: _,
            counters: _,
        } = self;
        VsockV1 {
            up: *up,
            packets: *packets,
        }
    }

    fn restore(&mut self, state: VsockV1) -> Result<(), RestoreError> {
        let VsockV1 { up, packets } = state;
        self.forget_all();
        (self.up, self.packets) = (up, packets);
        self.tell_reset = up;
        Ok(())
    }
}

impl Inspect for Vsock {
    fn inspect(&self) -> Node {
        let mut connections = Node::tree();
        for (flow, connection) in &self.connections {
            let kind = match flow.kind {
                FlowKind::Stream => "",
                FlowKind::Packets => "-packets",
            };
            let name = format!("host{}-guest{}{kind}", flow.host, flow.guest);
            connections = connections.with(&name, connection.inspect());
        }
        let Counters {
            to_guest,
            to_host,
            refused,
        } = self.counters;
        Node::tree()
            .with("cid", self.cid)
            .with("up", self.up)
            .with("packets", self.packets)
            .with("to_guest", to_guest)
            .with("to_host", to_host)
            .with("refused", refused)
            .with("connections", connections)
    }
}

/// Saved state of [`Vsock`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VsockV1 {
    up: bool,
    packets: bool,
}

impl Schema for VsockV1 {
    const NAME: &'static str = "virtio_vsock";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
