//! Packets of a socket device.
//!
//! Spec: virtio 1.2 §5.10.6.

use device_model::Flow;
use device_model::FlowKind;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;
use zerocopy::little_endian::U32;
use zerocopy::little_endian::U64;

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// Types of sockets.
pub(super) const STREAM: u16 = 1;
pub(super) const SEQPACKET: u16 = 2;
/// Flag of data: a message ends with them (§5.10.6.6).
pub(super) const END_OF_MESSAGE: u32 = 1;

/// What a packet is.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// What its sender does not do any more (§5.10.6.5).
pub(super) mod shutdown {
    pub(in super::super) const RECEIVE: u32 = 1;
    pub(in super::super) const SEND: u32 = 2;
    pub(in super::super) const BOTH: u32 = RECEIVE | SEND;
}

/// The type of sockets that a flow is between.
pub(super) fn kind(flow: Flow) -> u16 {
    match flow.kind {
        FlowKind::Stream => STREAM,
        FlowKind::Packets => SEQPACKET,
    }
}

/// In front of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub(super) src_cid: U64,
    pub(super) dst_cid: U64,
    pub(super) src_port: U32,
    pub(super) dst_port: U32,
    /// Bytes that follow.
    pub(super) len: U32,
    /// Type of the socket.
    pub(super) kind: U16,
    pub(super) op: U16,
    pub(super) flags: U32,
    /// Bytes that its sender keeps, and how many of those that it got it has passed on.
    pub(super) buf_alloc: U32,
    pub(super) fwd_cnt: U32,
}

impl Header {
    /// A packet to the guest.
    pub(super) fn new(flow: Flow, from: u64, cid: u32, op: u16) -> Self {
        Self {
            src_cid: from.into(),
            dst_cid: u64::from(cid).into(),
            src_port: flow.host.into(),
            dst_port: flow.guest.into(),
            len: 0.into(),
            kind: kind(flow).into(),
            op: op.into(),
            flags: 0.into(),
            buf_alloc: 0.into(),
            fwd_cnt: 0.into(),
        }
    }

    pub(super) fn with_kind(mut self, kind: u16) -> Self {
        self.kind = kind.into();
        self
    }

    /// The stream that a packet of the guest's belongs to.
    pub(super) fn flow(&self) -> Flow {
        Flow {
            host: self.dst_port.get(),
            guest: self.src_port.get(),
            kind: match self.kind.get() {
                SEQPACKET => FlowKind::Packets,
                _ => FlowKind::Stream,
            },
        }
    }
}
