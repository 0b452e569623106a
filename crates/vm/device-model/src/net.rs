//! The cable between a network card and a network: frames in both directions, and what is left to do on them.
//!
//! A card hands frames over as it has them, unfinished ones too: a checksum that is still to be filled in, a segment that is
//! longer than the wire's. What the far end cannot take in this form, the network finishes.
//!
//! Spec: virtio 1.2 §5.1.6 (the same metadata in a virtio-net header); IEEE 802.3-2018 §3.1 (frames, here without FCS).

pub mod header;
pub mod packet;

use std::sync::Arc;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of a frame at most, its headers included: an IP packet of 64 KiB and a VLAN tag.
pub const FRAME_MAX: usize = 65_535 + ETHERNET_HEADER + 4;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What is known of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame; nobody has looked at it.
    #[default]
    Present,
    /// It is in the frame or was never needed: the frame has not been on a wire.
    Good,
    /// The field holds the sum of the pseudo-header; the sum of all bytes from `start` on is to be put at `start + offset`.
    Missing {
        /// Where summing begins, from the start of the frame.
        start: u16,
        /// Where the field is, from `start`.
        offset: u16,
    },
}

/// What a long segment is to be split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over IPv4 or IPv6.
    Udp,
}

/// A frame that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// What they are.
    pub kind: SegmentKind,
    /// Bytes of payload of each, but for the last.
    pub size: u16,
    /// CWR is set on the first one only.
    pub ecn: bool,
}

/// What is left to do on a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its transport checksum.
    pub checksum: Checksum,
    /// How it is split, if it has to be. Its checksum is then [`Checksum::Missing`].
    pub segmentation: Option<Segmentation>,
}

/// An Ethernet frame without preamble, padding and frame check sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The destination's address first.
    pub bytes: Vec<u8>,
    /// What is left to do.
    pub offload: Offload,
}

impl Frame {
    /// A finished frame.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        let offload = Offload::default();
        Self { bytes, offload }
    }
}

/// What a receiver takes as it is. The default is: finished frames only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// [`Checksum::Missing`].
    pub missing_checksum: bool,
    /// [`SegmentKind::Tcp4`].
    pub tcp4: bool,
    /// [`SegmentKind::Tcp6`].
    pub tcp6: bool,
    /// [`SegmentKind::Udp`].
    pub udp: bool,
    /// [`Segmentation::ecn`].
    pub ecn: bool,
}

impl Accepts {
    /// Everything.
    pub const ALL: Self = Self {
        missing_checksum: true,
        tcp4: true,
        tcp6: true,
        udp: true,
        ecn: true,
    };

    /// Whether frames of this kind are taken.
    #[must_use]
    pub fn takes(&self, offload: &Offload) -> bool {
        let whole = match offload.segmentation {
            None => true,
            Some(Segmentation { kind, ecn, .. }) => {
                let kind = match kind {
                    SegmentKind::Tcp4 => self.tcp4,
                    SegmentKind::Tcp6 => self.tcp6,
                    SegmentKind::Udp => self.udp,
                };
                kind && (self.ecn || !ecn)
            }
        };
        whole && (self.missing_checksum || !matches!(offload.checksum, Checksum::Missing { .. }))
    }
}

/// Asks for a poll of the card at the port. Called on any thread, with no lock of the network held; must not block.
pub type NetWaker = Arc<dyn Fn() + Send + Sync>;

/// A card's end of the cable.
///
/// Every method may be called from any thread and under a device's lock, and returns at once. Frames wait in the port until
/// the card has buffers for them: it takes as many as it has room for and leaves the others. The waker is called when frames
/// have come after [`Self::receive`] found none, when [`Self::send`] may succeed again, and when the link has changed.
pub trait FramePort: Send + Sync {
    /// Sends a frame. What is no frame, or cannot be delivered, is dropped and counted.
    ///
    /// # Errors
    /// Gives the frame back when there is no room for it now: the card is to stop, and to send it first when it is woken.
    fn send(&self, frame: Frame) -> Result<(), Frame>;

    /// Takes the next frame that has come; none while the link is down.
    fn receive(&self) -> Option<Frame>;

    /// Says what the card takes, from the next frame on. Frames that have come already are finished as they are taken.
    fn set_accepts(&self, accepts: Accepts);

    /// Says whether the card wants frames that are addressed to others. The network may not allow it.
    fn set_promiscuous(&self, on: bool);

    /// Whom to wake; replaces the one before.
    fn set_waker(&self, waker: NetWaker);

    /// Whether the cable is plugged in at both ends.
    fn link_up(&self) -> bool;
}
