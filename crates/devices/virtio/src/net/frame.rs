//! The header in front of each frame, and the flow that a frame belongs to.
//!
//! Spec: virtio 1.2 §5.1.6 (header), §5.1.6.2 (sending), §5.1.6.4 (receiving).

use device_model::Frame;
use device_model::net::Checksum;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use device_model::net::header;

use super::net_feature;

/// Bytes of the header, and of that without a number of buffers.
pub(super) const HEADER: usize = 12;
pub(super) const SHORT_HEADER: usize = header::LEN;

/// What is left to do on a frame of the driver's; none when it asks for what was not agreed upon.
pub(super) fn outgoing(bytes: &[u8; HEADER], features: u64) -> Option<Offload> {
    let mut offload = header::read(bytes.first_chunk()?)?;
    match offload.checksum {
        // The frame has been on no wire.
        Checksum::Present => offload.checksum = Checksum::Good,
        Checksum::Good => {}
        Checksum::Missing { .. } if features & net_feature::CSUM == 0 => return None,
        Checksum::Missing { .. } => {}
    }
    let Some(Segmentation { kind, ecn, .. }) = offload.segmentation else {
        return Some(offload);
    };
    let needed = match kind {
        SegmentKind::Tcp4 => net_feature::HOST_TSO4,
        SegmentKind::Tcp6 => net_feature::HOST_TSO6,
        SegmentKind::Udp => net_feature::HOST_USO,
    };
    let agreed = features & needed != 0 && (!ecn || features & net_feature::HOST_ECN != 0);
    agreed.then_some(offload)
}

/// The header of a frame for the driver, in `buffers` buffers.
pub(super) fn incoming(frame: &Frame, buffers: u16) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let (first, last) = bytes.split_at_mut(header::LEN);
    first.copy_from_slice(&header::write(frame));
    last.copy_from_slice(&buffers.to_le_bytes());
    bytes
}

/// A number that all frames of a flow have in common: of addresses, and of the ports behind a plain header.
pub(super) fn flow(frame: &[u8]) -> u64 {
    let part = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26..38),
        Some([0x86, 0xdd]) => frame.get(22..58),
        _ => None,
    };
    // FNV-1a, whose last bytes reach the upper half only by the factor at the end.
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    part.unwrap_or_default()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, mix)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        >> 32
}
