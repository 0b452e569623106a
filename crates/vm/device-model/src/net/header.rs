//! The virtio-net header: what is left to do on a frame, as virtio devices and the host's taps and packet sockets write it.
//!
//! Spec: virtio 1.2 §5.1.6 (header, without the number of buffers).

use super::Checksum;
use super::Frame;
use super::Offload;
use super::SegmentKind;
use super::Segmentation;

/// Bytes of a header.
pub const LEN: usize = 10;

/// Flags.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// Kinds of segmentation.
const NONE: u8 = 0;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

/// What a header says. None if it says what cannot be: a kind of segmentation that is unknown, parts of no bytes, or a long
/// segment whose checksum is not left to be made.
#[must_use]
pub fn read(header: &[u8; LEN]) -> Option<Offload> {
    let [flags, kind, _, _, z0, z1, s0, s1, o0, o1] = *header;
    let checksum = match flags & (NEEDS_CSUM | DATA_VALID) {
        0 => Checksum::Present,
        DATA_VALID => Checksum::Good,
        _ => Checksum::Missing {
            start: u16::from_le_bytes([s0, s1]),
            offset: u16::from_le_bytes([o0, o1]),
        },
    };
    let ecn = kind & ECN != 0;
    let kind = match kind & !ECN {
        NONE => {
            let segmentation = None;
            return Some(Offload { checksum, segmentation });
        }
        TCPV4 => SegmentKind::Tcp4,
        TCPV6 => SegmentKind::Tcp6,
        UDP_L4 => SegmentKind::Udp,
        _ => return None,
    };
    let size = u16::from_le_bytes([z0, z1]);
    let whole = size > 0 && matches!(checksum, Checksum::Missing { .. });
    whole.then_some(Offload {
        checksum,
        segmentation: Some(Segmentation { kind, size, ecn }),
    })
}

/// The header of a frame.
#[must_use]
pub fn write(frame: &Frame) -> [u8; LEN] {
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
    let ([l0, l1], [z0, z1]) = (len.to_le_bytes(), u16::to_le_bytes(size));
    let ([s0, s1], [o0, o1]) = (u16::to_le_bytes(start), u16::to_le_bytes(offset));
    [flags, kind, l0, l1, z0, z1, s0, s1, o0, o1]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        let missing = Checksum::Missing { start: 34, offset: 16 };
        let split = |kind| {
            Some(Segmentation {
                kind,
                size: 1448,
                ecn: true,
            })
        };
        let whole = [Checksum::Present, Checksum::Good, missing].map(|checksum| (checksum, None));
        let long = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp].map(|kind| (missing, split(kind)));
        for (checksum, segmentation) in whole.into_iter().chain(long) {
            let offload = Offload { checksum, segmentation };
            let bytes = vec![0x50; 60];
            assert_eq!(read(&write(&Frame { bytes, offload })), Some(offload));
        }
    }

    #[test]
    fn what_cannot_be_is_no_header() {
        assert_eq!(read(&[1, 9, 0, 0, 5, 0, 0, 0, 0, 0]), None);
        assert_eq!(read(&[1, TCPV4, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(read(&[0, TCPV4, 0, 0, 5, 0, 0, 0, 0, 0]), None);
    }
}
