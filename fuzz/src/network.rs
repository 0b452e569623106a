//! Frames that a guest sends to a network: a NAT with its DHCP, ARP, ICMP, TCP and UDP, names, TFTP and fragments, which lets
//! nothing out, and another guest behind the same switch.
//!
//! Each frame is preceded by four bytes: its length, what is left to do on it, a size or an offset, a start; some begin with
//! the addresses and headers that get them further, to a service if the size says so.

use device_model::Frame;
use device_model::FramePort;
use device_model::net::Checksum;
use device_model::net::FRAME_MAX;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use vnet::PortConfig;
use vnet::Switch;
use vnet::nat::NatConfig;
use vnet::nat::SteppedNat;

use crate::input::Input;

const GATEWAY: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x35, 0x02];
const GUEST: [u8; 6] = [0x08, 0x00, 0x27, 0x00, 0x00, 0x01];

/// Executes one input.
///
/// # Panics
/// When the network panics, or sends what is no frame.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let switch = Switch::new();
    let config = NatConfig {
        restricted: true,
        resolv_conf: "/nonexistent".into(),
        tftp: Some("/nonexistent".into()),
        boot_file: Some("file".to_owned()),
        ..NatConfig::default()
    };
    let Ok(mut nat) = SteppedNat::new(&switch, config) else {
        return;
    };
    let guest = switch.plug(PortConfig::guest("guest"));
    let other = switch.plug(PortConfig::guest("other"));
    while !input.is_empty() {
        // What the network has no room for is lost.
        let _ = guest.send(frame(&mut input));
        nat.step();
        for port in [&guest, &other] {
            while let Some(frame) = port.receive() {
                assert!((14..=FRAME_MAX).contains(&frame.bytes.len()));
                assert_eq!(frame.offload.segmentation, None);
            }
        }
    }
}

/// The port of a service, and a guest's to it.
fn ports(which: u8) -> [u8; 4] {
    let (from, to) = match which & 3 {
        0 => (68, 67u16),
        1 => (1024, 53),
        2 => (2070, 69),
        _ => (546, 547),
    };
    let ([a, b], [c, d]) = (u16::to_be_bytes(from), to.to_be_bytes());
    [a, b, c, d]
}

/// Headers of a datagram to a service, by IPv4.
fn datagram4(which: u8, len: u8) -> Vec<u8> {
    let total = 28 + u16::from(len);
    let to = if which & 3 == 1 { 3 } else { 2 };
    let mut out = vec![0x45, 0];
    out.extend(total.to_be_bytes());
    out.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, to]);
    out.extend(ports(which));
    out.extend((total - 20).to_be_bytes());
    out.extend([0, 0]);
    out
}

/// The same by IPv6, to the DHCP server if nobody else.
fn datagram6(which: u8, len: u8) -> Vec<u8> {
    let total = 8 + u16::from(len);
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(total.to_be_bytes());
    out.extend([17, 64, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15]);
    out.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]);
    out.extend(ports(which | 3));
    out.extend(total.to_be_bytes());
    out.extend([0, 0]);
    out
}

/// The header of IPv6 and that of a fragment.
fn fragment(place: u8, id: u8, len: u8) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((8 + u16::from(len)).to_be_bytes());
    out.extend([44, 64, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15]);
    out.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    out.extend([17, 0, 0, place, 0, 0, 0, id & 3]);
    out
}

/// The headers that a frame of a kind begins with: addresses, and what is on top of them.
fn headers(kind: u8, len: u8, size: u8, start: u8) -> Vec<u8> {
    if kind == 0 {
        return Vec::new();
    }
    let mut head = [GATEWAY, GUEST].concat();
    head.extend(if matches!(kind, 2 | 4 | 6) {
        [8, 0]
    } else {
        [0x86, 0xdd]
    });
    match kind {
        4 => {
            head.extend([0x45, 0, 0, len.saturating_add(20), 0, 0, 0, 0, 64, 6, 0, 0]);
            head.extend([10, 0, 2, 15, 10, 0, 2, 2]);
        }
        5 => head.extend(fragment(size, start, len)),
        6 => head.extend(datagram4(size, len)),
        7 => head.extend(datagram6(size, len)),
        _ => {}
    }
    head
}

fn frame(input: &mut Input<'_>) -> Frame {
    let (len, left, size, start) = (input.byte(), input.byte(), input.byte(), input.byte());
    let mut bytes = headers(left & 7, len, size, start);
    bytes.extend_from_slice(input.bytes(len.into()));
    let kind = match left >> 3 & 3 {
        0 => None,
        1 => Some(SegmentKind::Tcp4),
        2 => Some(SegmentKind::Tcp6),
        _ => Some(SegmentKind::Udp),
    };
    let segmentation = kind.map(|kind| Segmentation {
        kind,
        size: size.into(),
        ecn: left & 0x80 != 0,
    });
    let checksum = match left >> 5 & 3 {
        0 => Checksum::Present,
        1 => Checksum::Good,
        _ => Checksum::Missing {
            start: start.into(),
            offset: size.into(),
        },
    };
    let offload = Offload { checksum, segmentation };
    Frame { bytes, offload }
}
