//! Frames that a guest sends to a network: a NAT with its DHCP, ARP, ICMP, TCP and UDP, which lets nothing out, and another
//! guest behind the same switch.
//!
//! Each frame is preceded by four bytes: its length, what is left to do on it, a size or an offset, a start; some begin with
//! the addresses and headers that get them further.

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

fn frame(input: &mut Input<'_>) -> Frame {
    let (len, left, size, start) = (input.byte(), input.byte(), input.byte(), input.byte());
    let mut bytes = match left & 7 {
        0 => Vec::new(),
        kind => {
            let mut head = [GATEWAY, GUEST].concat();
            head.extend(if kind & 1 == 0 { [8, 0] } else { [0x86, 0xdd] });
            if kind == 4 {
                head.extend([
                    0x45,
                    0,
                    0,
                    len.saturating_add(20),
                    0,
                    0,
                    0,
                    0,
                    64,
                    6,
                    0,
                    0,
                    10,
                    0,
                    2,
                    15,
                    10,
                    0,
                    2,
                    2,
                ]);
            }
            head
        }
    };
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
