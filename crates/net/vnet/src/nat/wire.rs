//! What one TCP connection's protocol machine sees as its network device: the packets of this connection, and the way back.
//!
//! It may send segments longer than the wire's, without checksums; the port finishes them for guests that need it.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use device_model::Frame;
use device_model::FramePort;
use device_model::net::ETHERNET_HEADER;
use device_model::net::Mac;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use device_model::net::packet::IPV4;
use device_model::net::packet::IPV6;
use device_model::net::packet::put;
use smoltcp::phy::Checksum;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::phy::Device;
use smoltcp::phy::DeviceCapabilities;
use smoltcp::phy::Medium;
use smoltcp::phy::PacketMeta;
use smoltcp::phy::RxToken;
use smoltcp::phy::SegmentationCapabilities;
use smoltcp::phy::TxToken;
use smoltcp::time::Instant;

use super::fragments;
use super::packet;
use crate::Port;

/// Frames that wait for room in the guest's port. Answers to what comes in may still be added when others may not.
const WAITING: usize = 256;
/// Bytes of a segment that is to be split, its IP header included.
const LONGEST: usize = 65_000;

/// The way out of the network, for all that it sends.
#[derive(Debug)]
pub(super) struct Out {
    port: Arc<Port>,
    waiting: VecDeque<Frame>,
    mtu: usize,
}

impl Out {
    pub(super) fn new(port: Arc<Port>, mtu: usize) -> Self {
        Self {
            port,
            waiting: VecDeque::new(),
            mtu,
        }
    }

    /// Bytes of an IP packet at most.
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Whether frames wait for room: then no more are to be made.
    pub(super) fn is_blocked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends a frame, or keeps it; drops it if too many are kept.
    pub(super) fn send(&mut self, frame: Frame) {
        if self.waiting.is_empty() {
            if let Err(frame) = self.port.send(frame) {
                self.waiting.push_back(frame);
            }
        } else if self.waiting.len() < WAITING {
            self.waiting.push_back(frame);
        }
    }

    /// Sends a packet that may have to be fragmented.
    pub(super) fn send_packet(&mut self, frame: Frame) {
        for fragment in fragments::split(frame, self.mtu) {
            self.send(fragment);
        }
    }

    /// Sends what waits. True if nothing waits any more.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(frame) = self.waiting.pop_front() {
            if let Err(frame) = self.port.send(frame) {
                self.waiting.push_front(frame);
                return false;
            }
        }
        true
    }
}

/// The device of one connection, for as long as it is served.
pub(super) struct Wire<'a> {
    pub(super) out: &'a mut Out,
    /// Frames of the guest's for this connection.
    pub(super) incoming: &'a mut VecDeque<Frame>,
    pub(super) to: Mac,
    pub(super) from: Mac,
}

/// A frame that came.
pub(super) struct Incoming(Frame);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.bytes.get(ETHERNET_HEADER..).unwrap_or_default())
    }
}

/// Room for a packet.
pub(super) struct Outgoing<'a> {
    out: &'a mut Out,
    to: Mac,
    from: Mac,
    meta: PacketMeta,
}

impl TxToken for Outgoing<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; ETHERNET_HEADER + len];
        let packet = bytes.get_mut(ETHERNET_HEADER..).unwrap_or_default();
        let result = f(packet);
        let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
        put(&mut bytes, 0, &self.to);
        put(&mut bytes, 6, &self.from);
        put(&mut bytes, 12, &if is_ipv6 { IPV6 } else { IPV4 }.to_be_bytes());
        let mut frame = Frame::new(bytes);
        if packet::leave_checksum(&mut frame).is_some() {
            frame.offload.segmentation = self.meta.segmentation_offload_size.map(|size| Segmentation {
                kind: if is_ipv6 { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 },
                size: size.get(),
                ecn: false,
            });
        }
        self.out.send(frame);
        result
    }
}

impl Device for Wire<'_> {
    type RxToken<'a>
        = Incoming
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.incoming.pop_front()?;
        let outgoing = Outgoing {
            out: self.out,
            to: self.to,
            from: self.from,
            meta: PacketMeta::default(),
        };
        Some((Incoming(frame), outgoing))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        (!self.out.is_blocked()).then_some(Outgoing {
            out: self.out,
            to: self.to,
            from: self.from,
            meta: PacketMeta::default(),
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        let mut segmentation = SegmentationCapabilities::default();
        segmentation.tcpv4 = NonZeroUsize::new(LONGEST);
        // Not of IPv6: smoltcp 0.14 drops what is longer than the MTU there.
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.out.mtu();
        capabilities.checksum = checksum;
        capabilities.segmentation = segmentation;
        capabilities
    }
}
