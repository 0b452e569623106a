//! Tests of finishing frames.

use device_model::net::packet::fold;
use proptest::prelude::*;

use super::*;

/// A TCP segment over IPv4 of `len` bytes of payload, whose checksum is missing.
fn tcp4(len: usize, flags: u8) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let total = len16(40 + len).to_be_bytes();
    bytes.extend([
        0x45, 0, total[0], total[1], 0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2,
    ]);
    bytes.extend([
        0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1, 0x50, flags, 0x10, 0, 0, 0, 0, 0,
    ]);
    bytes.extend((0..len).map(|n| (n % 251) as u8));
    missing(bytes, 34, 16)
}

/// A UDP datagram over IPv6.
fn udp6(len: usize) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    let total = len16(8 + len).to_be_bytes();
    bytes.extend([0x60, 0, 0, 0, total[0], total[1], 17, 64]);
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfe; 16]);
    bytes.extend([0x12, 0x34, 0, 53, total[0], total[1], 0, 0]);
    bytes.extend((0..len).map(|n| (n % 251) as u8));
    missing(bytes, 54, 6)
}

fn missing(mut bytes: Vec<u8>, start: u16, offset: u16) -> Frame {
    let at = Layout::of(&bytes).unwrap();
    let pseudo = fold(at.pseudo_header(&bytes, bytes.len() - at.transport).unwrap());
    put(&mut bytes, usize::from(start + offset), &pseudo.to_be_bytes()).unwrap();
    let mut frame = Frame::new(bytes);
    frame.offload.checksum = Checksum::Missing { start, offset };
    frame
}

fn finished(frame: Frame) -> Vec<Frame> {
    let mut out = Vec::new();
    finish(frame, &Accepts::default(), &mut |frame| out.push(frame)).unwrap();
    out
}

/// As a receiver that trusts nobody sees it.
fn is_right(frame: &Frame) -> bool {
    checksum_is_right(&Frame::new(frame.bytes.clone()))
}

#[test]
fn missing_checksum_is_filled_in() {
    for frame in [tcp4(0, 0x10), tcp4(1461, 0x10), udp6(0), udp6(99)] {
        assert!(!is_right(&frame));
        let out = finished(frame);
        assert_eq!(out.len(), 1);
        assert!(is_right(&out[0]));
        let mut wrong = out[0].clone();
        *wrong.bytes.last_mut().unwrap() ^= 1;
        assert!(!is_right(&wrong));
    }
}

#[test]
fn long_segment_becomes_segments_that_carry_the_same_bytes() {
    let mut frame = tcp4(4000, 0x99);
    frame.offload.segmentation = Some(Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1460,
        ecn: true,
    });
    let payload = frame.bytes[54..].to_vec();
    let out = finished(frame);
    assert_eq!(
        out.iter().map(|f| f.bytes.len() - 54).collect::<Vec<_>>(),
        [1460, 1460, 1080]
    );
    assert!(out.iter().all(is_right));
    let carried: Vec<u8> = out.iter().flat_map(|frame| frame.bytes[54..].to_vec()).collect();
    assert_eq!(carried, payload);
    let headers: Vec<(u16, u32, u8)> = out
        .iter()
        .map(|f| (be16(&f.bytes, 18).unwrap(), be32(&f.bytes, 38).unwrap(), f.bytes[47]))
        .collect();
    // Identification and sequence wrap; CWR first, PSH and FIN last.
    assert_eq!(
        headers,
        [(0xffff, 0xffff_ff00, 0x90), (0, 0x4b4, 0x10), (1, 0xa68, 0x19)]
    );
    assert!(out.iter().all(|f| checksum(sum(&f.bytes[14..34])) == 0));
}

#[test]
fn long_datagram_becomes_datagrams() {
    let mut frame = udp6(2500);
    frame.offload.segmentation = Some(Segmentation {
        kind: SegmentKind::Udp,
        size: 1000,
        ecn: false,
    });
    let out = finished(frame);
    assert_eq!(
        out.iter().map(|f| be16(&f.bytes, 58).unwrap()).collect::<Vec<_>>(),
        [1008, 1008, 508]
    );
    assert!(out.iter().all(is_right));
}

#[test]
fn receiver_gets_unfinished_what_it_takes() {
    let mut frame = tcp4(4000, 0x10);
    frame.offload.segmentation = Some(Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1460,
        ecn: false,
    });
    let mut out = Vec::new();
    finish(frame.clone(), &Accepts::ALL, &mut |frame| out.push(frame)).unwrap();
    assert_eq!(out, [frame]);
}

#[test]
fn lying_metadata_is_an_error() {
    let long = |kind, size| {
        let mut frame = tcp4(3000, 0x10);
        frame.offload.segmentation = Some(Segmentation { kind, size, ecn: false });
        frame
    };
    let mut beyond = tcp4(10, 0x10);
    beyond.offload.checksum = Checksum::Missing { start: 60, offset: 60 };
    let mut outside = tcp4(10, 0x10);
    outside.offload.checksum = Checksum::Missing { start: 5000, offset: 0 };
    let bad = [
        long(SegmentKind::Tcp6, 1460),
        long(SegmentKind::Udp, 1460),
        long(SegmentKind::Tcp4, 0),
        long(SegmentKind::Tcp4, 1),
        beyond,
        outside,
    ];
    for frame in bad {
        assert_eq!(finish(frame, &Accepts::default(), &mut |_| ()), Err(BadFrame));
    }
}

proptest! {
    #[test]
    fn truncated_and_scribbled_frames_do_no_harm(
        cut in 0usize..1500, at in 0usize..120, value in any::<u8>(), size in 0u16..2000, kind in 0u8..3,
    ) {
        let mut frame = if kind == 2 { udp6(1400) } else { tcp4(1400, 0x18) };
        frame.bytes.truncate(cut);
        if let Some(byte) = frame.bytes.get_mut(at) {
            *byte = value;
        }
        let kind = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][usize::from(kind)];
        frame.offload.segmentation = Some(Segmentation { kind, size, ecn: false });
        let mut total = 0;
        let _ = finish(frame.clone(), &Accepts::default(), &mut |frame| total += frame.bytes.len());
        prop_assert!(total <= 1024 * 1600);
        let _ = checksum_is_right(&Frame::new(frame.bytes));
    }
}
