//! The header in front of each frame, and the flow that a frame belongs to.
//!
//! Spec: virtio 1.2 §5.1.6 (header), §5.1.6.2 (sending), §5.1.6.4 (receiving).

use device_model::Frame;
use device_model::net::Checksum;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;

use super::net_feature;

/// Bytes of the header, and of that without a number of buffers.
pub(super) const HEADER: usize = 12;
pub(super) const SHORT_HEADER: usize = 10;
/// Flags.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// Kinds of segmentation.
const NONE: u8 = 0;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

/// What is left to do on a frame of the driver's; none when it asks for what was not agreed upon.
pub(super) fn outgoing(header: &[u8; HEADER], features: u64) -> Option<Offload> {
    let [
        flags,
        kind,
        _,
        _,
        size_low,
        size_high,
        start_low,
        start_high,
        offset_low,
        offset_high,
        ..,
    ] = *header;
    let checksum = match (flags & NEEDS_CSUM != 0, features & net_feature::CSUM != 0) {
        (false, _) => Checksum::Good,
        (true, false) => return None,
        (true, true) => Checksum::Missing {
            start: u16::from_le_bytes([start_low, start_high]),
            offset: u16::from_le_bytes([offset_low, offset_high]),
        },
    };
    let ecn = kind & ECN != 0;
    let (kind, needed) = match kind & !ECN {
        NONE => {
            return Some(Offload {
                checksum,
                segmentation: None,
            });
        }
        TCPV4 => (SegmentKind::Tcp4, net_feature::HOST_TSO4),
        TCPV6 => (SegmentKind::Tcp6, net_feature::HOST_TSO6),
        UDP_L4 => (SegmentKind::Udp, net_feature::HOST_USO),
        _ => return None,
    };
    let size = u16::from_le_bytes([size_low, size_high]);
    let agreed = features & needed != 0 && (!ecn || features & net_feature::HOST_ECN != 0);
    let whole = size > 0 && matches!(checksum, Checksum::Missing { .. });
    (agreed && whole).then_some(Offload {
        checksum,
        segmentation: Some(Segmentation { kind, size, ecn }),
    })
}

/// The header of a frame for the driver, in `buffers` buffers.
pub(super) fn incoming(frame: &Frame, buffers: u16) -> [u8; HEADER] {
    let (flags, start, offset) = match frame.offload.checksum {
        Checksum::Present => (0, 0, 0),
        Checksum::Good => (DATA_VALID, 0, 0),
        Checksum::Missing { start, offset } => (NEEDS_CSUM, start, offset),
    };
    let (kind, size, len) = match frame.offload.segmentation {
        None => (NONE, 0, 0),
        Some(Segmentation { kind, size, ecn }) => {
            let number = match kind {
                SegmentKind::Tcp4 => TCPV4,
                SegmentKind::Tcp6 => TCPV6,
                SegmentKind::Udp => UDP_L4,
            };
            let number = if ecn { number | ECN } else { number };
            (number, size, headers(frame, kind, start))
        }
    };
    let [len_low, len_high] = len.to_le_bytes();
    let [size_low, size_high] = size.to_le_bytes();
    let [start_low, start_high] = start.to_le_bytes();
    let [offset_low, offset_high] = offset.to_le_bytes();
    let [low, high] = buffers.to_le_bytes();
    [
        flags,
        kind,
        len_low,
        len_high,
        size_low,
        size_high,
        start_low,
        start_high,
        offset_low,
        offset_high,
        low,
        high,
    ]
}

/// Bytes of all headers of a frame whose transport header begins at `start`.
fn headers(frame: &Frame, kind: SegmentKind, start: u16) -> u16 {
    let transport = match kind {
        SegmentKind::Udp => 8,
        SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
            let words = frame.bytes.get(usize::from(start) + 12).map_or(5, |byte| byte >> 4);
            u16::from(words) * 4
        }
    };
    start.saturating_add(transport)
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
