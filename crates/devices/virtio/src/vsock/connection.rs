//! One connection: its credit in both directions, and what is next to be said to the guest.
//!
//! Spec: virtio 1.2 §5.10.6.3 (buffer space), §5.10.6.5 (shutdown).

use device_model::FlowStatus;
use device_model::Inspect;
use device_model::Node;

use super::BUFFER;
use super::packet::Header;
use super::packet::op;
use super::packet::shutdown;
use crate::queue::index;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest wants it; the host's program is being reached.
    Opening,
    /// A program of the host wants it; the guest has not answered.
    Offered,
    /// Both have it.
    Open,
}

/// What is said to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Request,
    Response,
    /// So many bytes at most.
    Data(u32),
    Credit,
    CreditRequest,
    Shutdown(u32),
}

impl Say {
    pub(super) fn op(self) -> u16 {
        match self {
            Self::Request => op::REQUEST,
            Self::Response => op::RESPONSE,
            Self::Data(_) => op::RW,
            Self::Credit => op::CREDIT_UPDATE,
            Self::CreditRequest => op::CREDIT_REQUEST,
            Self::Shutdown(_) => op::SHUTDOWN,
        }
    }
}

/// A connection. Counts are modulo 2 to the power of 32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) phase: Phase,
    /// It waits for its turn.
    pub(super) queued: bool,
    must_request: bool,
    pub(super) must_respond: bool,
    pub(super) must_tell_credit: bool,
    /// The guest was asked for credit, and has not said anything since.
    asked_credit: bool,
    /// What the guest keeps, and how much it has passed on to its program.
    guest_alloc: u32,
    guest_taken: u32,
    /// The guest has a part of a message.
    pub(super) within: bool,
    /// Bytes to and from the guest.
    pub(super) sent: u32,
    pub(super) received: u32,
    /// How much of the latter the guest knows to be delivered.
    told: u32,
    /// What the guest does not do any more, and what it knows that the host's program does not.
    pub(super) guest_done: u32,
    host_done: u32,
}

impl Connection {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            queued: false,
            must_request: phase == Phase::Offered,
            must_respond: false,
            must_tell_credit: false,
            asked_credit: false,
            guest_alloc: 0,
            guest_taken: 0,
            within: false,
            sent: 0,
            received: 0,
            told: 0,
            guest_done: 0,
            host_done: 0,
        }
    }

    /// Takes what every packet of the guest says.
    pub(super) fn hear(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc.get();
        self.guest_taken = header.fwd_cnt.get();
        self.asked_credit = false;
    }

    /// Bytes that the guest still keeps; none where it says that it has taken more than it was given.
    fn credit(&self) -> u32 {
        let kept = self.sent.wrapping_sub(self.guest_taken);
        self.guest_alloc.saturating_sub(kept)
    }

    /// Whether the next message is longer than what the guest keeps at all: it would wait for ever (§5.10.6.6).
    pub(super) fn is_too_long(&self, status: &FlowStatus) -> bool {
        let begins = self.phase == Phase::Open && !self.must_respond && !self.within;
        begins && index(self.guest_alloc.into()) < status.message
    }

    /// What is to be said next.
    pub(super) fn next(&self, status: &FlowStatus) -> Option<Say> {
        if self.must_request {
            return Some(Say::Request);
        }
        if self.must_respond {
            return Some(Say::Response);
        }
        if self.phase != Phase::Open || !status.open {
            return None;
        }
        let delivered = device_model::bytes::low32(status.delivered);
        if self.must_tell_credit || delivered.wrapping_sub(self.told) >= BUFFER / 2 {
            return Some(Say::Credit);
        }
        let takes = self.guest_done & shutdown::RECEIVE == 0;
        let credit = self.credit();
        match (status.readable > 0 && takes, credit) {
            (true, 0) if !self.asked_credit => return Some(Say::CreditRequest),
            (true, 0) => {}
            (true, credit) => return Some(Say::Data(credit)),
            (false, _) => {}
        }
        let mut done = 0;
        if status.ended && (status.readable == 0 || !takes) {
            done |= shutdown::SEND;
        }
        if status.deaf {
            done |= shutdown::RECEIVE;
        }
        (done & !self.host_done != 0).then_some(Say::Shutdown(done | self.host_done))
    }

    /// It was said, and with it how much was delivered.
    pub(super) fn said(&mut self, say: Say, delivered: u32) {
        self.told = delivered;
        match say {
            Say::Request => self.must_request = false,
            Say::Response => self.must_respond = false,
            Say::CreditRequest => self.asked_credit = true,
            Say::Shutdown(flags) => self.host_done = flags,
            Say::Data(_) | Say::Credit => {}
        }
        self.must_tell_credit = false;
    }
}

impl Inspect for Connection {
    fn inspect(&self) -> Node {
        let phase = match self.phase {
            Phase::Opening => "opening",
            Phase::Offered => "offered",
            Phase::Open => "open",
        };
        Node::tree()
            .with("phase", phase)
            .with("sent", self.sent)
            .with("received", self.received)
            .with("credit", self.credit())
            .with("guest_done", self.guest_done)
            .with("host_done", self.host_done)
    }
}
