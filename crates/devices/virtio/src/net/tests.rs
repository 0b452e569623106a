//! Tests of the card, as a driver and as a network.

use std::collections::VecDeque;
use std::sync::Mutex;

use device_model::Width;
use device_model::net::Checksum;
use device_model::net::NetWaker;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::virtio::Link;

use super::*;
use crate::Mmio;
use crate::testing::Bench;
use crate::testing::memory;

const MAC: Mac = [0x08, 0, 0x27, 1, 2, 3];
const BROADCAST: Mac = [0xff; 6];

/// A network whose frames are looked at.
#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<Frame>>,
    coming: Mutex<VecDeque<Frame>>,
    full: Mutex<bool>,
    down: Mutex<bool>,
    accepts: Mutex<Accepts>,
    promiscuous: Mutex<bool>,
}

impl FramePort for Wire {
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        if *self.full.lock().unwrap() {
            return Err(frame);
        }
        self.sent.lock().unwrap().push(frame);
        Ok(())
    }

    fn receive(&self) -> Option<Frame> {
        self.coming.lock().unwrap().pop_front()
    }

    fn set_accepts(&self, accepts: Accepts) {
        *self.accepts.lock().unwrap() = accepts;
    }

    fn set_promiscuous(&self, on: bool) {
        *self.promiscuous.lock().unwrap() = on;
    }

    fn set_waker(&self, _: NetWaker) {}

    fn link_up(&self) -> bool {
        !*self.down.lock().unwrap()
    }
}

impl Wire {
    fn come(&self, to: Mac, len: usize, offload: Offload) {
        let mut bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
        bytes[..6].copy_from_slice(&to);
        self.coming.lock().unwrap().push_back(Frame { bytes, offload });
    }

    fn take_sent(&self) -> Vec<Frame> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

fn net(wire: &Arc<Wire>, pairs: u16) -> Net {
    let config = NetConfig { mac: MAC, pairs };
    Net::new(Arc::clone(wire) as _, config, Arc::new(|| ()))
}

fn bench(link: Link, pairs: u16) -> (Bench, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    (Bench::new(link, net(&wire, pairs)), wire)
}

/// A header that asks for a checksum and for segments of this kind.
fn header(kind: u8, size: u16) -> [u8; 12] {
    let [low, high] = size.to_le_bytes();
    [1, kind, 0, 0, low, high, 34, 0, 16, 0, 0, 0]
}

#[test]
fn frames_are_sent_with_what_is_left_to_do() {
    let (mut bench, wire) = bench(Link::Pci, 1);
    bench.start(u64::MAX);
    bench.memory.write(0x1000, &header(1, 1448)).unwrap();
    bench.memory.write(0x2000, &[7; 3000]).unwrap();
    bench.offer(1, &[(0x1000, 12), (0x2000, 1000), (0x2000 + 1000, 2000)], &[]);
    let sent = wire.take_sent();
    assert_eq!(sent[0].bytes, [7; 3000]);
    let checksum = Checksum::Missing { start: 34, offset: 16 };
    let segmentation = Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1448,
        ecn: false,
    };
    assert_eq!(sent[0].offload.checksum, checksum);
    assert_eq!(sent[0].offload.segmentation, Some(segmentation));
    assert_eq!(bench.used(1), Some((0, 0)));
}

#[test]
fn header_of_a_legacy_driver_is_short() {
    let (mut bench, wire) = bench(Link::Legacy, 1);
    bench.start(!net_feature::MRG_RXBUF);
    bench.memory.write(0x1000, &[0; 10]).unwrap();
    bench.memory.write(0x100a, &[9; 60]).unwrap();
    bench.offer(1, &[(0x1000, 70)], &[]);
    assert_eq!(wire.take_sent()[0].bytes, [9; 60]);
    wire.come(MAC, 60, Offload::default());
    bench.offer(0, &[], &[(0x3000, 100)]);
    assert_eq!(bench.used(0), Some((0, 70)));
}

#[test]
fn what_was_not_agreed_upon_is_dropped() {
    for (header, features) in [
        (header(0, 0), !net_feature::CSUM),
        (header(1, 1448), !net_feature::HOST_TSO4),
        (header(1, 0), u64::MAX),
        (header(3, 1448), u64::MAX),
        (header(0x81, 1448), !net_feature::HOST_ECN),
    ] {
        let (mut bench, wire) = bench(Link::Mmio, 1);
        bench.start(features);
        bench.memory.write(0x1000, &header).unwrap();
        bench.offer(1, &[(0x1000, 1000)], &[]);
        assert_eq!(bench.used(1), Some((0, 0)));
        assert_eq!(wire.take_sent(), []);
        assert!(!bench.is_broken());
    }
}

#[test]
fn frame_without_room_in_the_network_is_sent_later_also_after_a_restore() {
    let (mut bench, wire) = bench(Link::Mmio, 1);
    bench.start(u64::MAX);
    *wire.full.lock().unwrap() = true;
    bench.offer(1, &[(0x1000, 112)], &[]);
    assert_eq!(bench.used(1), None);
    let saved = bench.device.save_blob();
    *wire.full.lock().unwrap() = false;
    let mut other = Bench::with(Link::Mmio, &bench.memory, net(&wire, 1));
    other.device.restore_blob(&saved).unwrap();
    other.poll();
    assert_eq!(wire.take_sent().len(), 1);
    assert_eq!(bench.used(1), Some((0, 0)));
    assert!(wire.accepts.lock().unwrap().tcp4);
}

#[test]
fn long_frame_is_spread_over_buffers_that_come_together() {
    let (mut bench, wire) = bench(Link::Pci, 1);
    bench.start(u64::MAX);
    let segmentation = Some(Segmentation {
        kind: SegmentKind::Tcp6,
        size: 1000,
        ecn: true,
    });
    let checksum = Checksum::Missing { start: 54, offset: 16 };
    wire.come(MAC, 2500, Offload { checksum, segmentation });
    bench.offer(0, &[], &[(0x1_0000, 1000)]);
    bench.offer(0, &[], &[(0x2_0000, 1000)]);
    assert_eq!(bench.used(0), None);
    bench.offer(0, &[], &[(0x3_0000, 1000)]);
    let used: Vec<_> = (0..3).map(|_| bench.used(0)).collect();
    assert_eq!(used, [Some((0, 1000)), Some((1, 1000)), Some((2, 512))]);
    let header: [u8; 12] = bench.memory.read_obj(0x1_0000).unwrap();
    // The fourth word of the transport header tells how long it is.
    let len = 54 + (66 >> 4) * 4;
    assert_eq!(header, [1, 0x84, len, 0, 0xe8, 3, 54, 0, 16, 0, 3, 0]);
    assert_eq!(bench.memory.read_obj::<u8>(0x3_0000).unwrap(), (1988 % 256) as u8);
}

#[test]
fn small_buffers_lose_a_frame_that_cannot_be_spread() {
    let (mut bench, wire) = bench(Link::Mmio, 1);
    bench.start(!net_feature::MRG_RXBUF);
    wire.come(MAC, 1500, Offload::default());
    wire.come(MAC, 100, Offload::default());
    bench.offer(0, &[], &[(0x1_0000, 1000)]);
    assert_eq!(bench.used(0), Some((0, 112)));
}

#[test]
fn unwanted_frames_do_not_come() {
    let (mut bench, wire) = bench(Link::Mmio, 1);
    bench.start(u64::MAX);
    let group = [1, 0, 0x5e, 0, 0, 1];
    let come = |bench: &mut Bench, to: Mac| {
        wire.come(to, 60, Offload::default());
        bench.poll();
        bench.used(0).is_some()
    };
    for _ in 0..16 {
        bench.offer(0, &[], &[(0x1_0000, 1000)]);
    }
    assert!(come(&mut bench, MAC) && come(&mut bench, BROADCAST));
    assert!(!come(&mut bench, group) && !come(&mut bench, [2; 6]));
    let mut command = |bytes: &[u8]| {
        bench.memory.write(0x4000, bytes).unwrap();
        bench.offer(2, &[(0x4000, bytes.len() as u32)], &[(0x5000, 1)]);
        assert!(bench.used(2).is_some());
        bench.memory.read_obj::<u8>(0x5000).unwrap()
    };
    // A table of no address and of one group.
    let table = [&[1, 0][..], &[0; 4], &[1, 0, 0, 0], &group].concat();
    assert_eq!(command(&table), 0);
    assert_eq!(command(&table[..table.len() - 1]), 1);
    assert_eq!(command(&[1, 0, 0xff, 0xff, 0xff, 0xff]), 1);
    assert_eq!(command(&[9, 9]), 1);
    assert_eq!(command(&[0, 5, 1]), 0, "no broadcasts");
    assert!(come(&mut bench, group) && !come(&mut bench, BROADCAST));
    let mut command = |bytes: &[u8]| {
        bench.memory.write(0x4000, bytes).unwrap();
        bench.offer(2, &[(0x4000, bytes.len() as u32)], &[(0x5000, 1)]);
        assert!(bench.used(2).is_some());
        bench.memory.read_obj::<u8>(0x5000).unwrap()
    };
    assert_eq!(command(&[1, 1, 2, 2, 2, 2, 2, 2]), 0, "another address");
    assert_eq!(command(&[0, 0, 0]), 0);
    assert!(!*wire.promiscuous.lock().unwrap());
    assert!(come(&mut bench, [2; 6]) && !come(&mut bench, MAC));
}

#[test]
fn pairs_and_offloads_are_the_driver_s_to_choose() {
    let (mut bench, wire) = bench(Link::Pci, 2);
    bench.start(u64::MAX);
    assert_eq!(bench.config(8, Width::Word), 2);
    let mut command = |bytes: &[u8]| {
        bench.memory.write(0x4000, bytes).unwrap();
        bench.offer(4, &[(0x4000, bytes.len() as u32)], &[(0x5000, 1)]);
        assert!(bench.used(4).is_some());
        bench.memory.read_obj::<u8>(0x5000).unwrap()
    };
    assert_eq!(command(&[4, 0, 3, 0]), 1);
    assert_eq!(command(&[4, 0, 0, 0]), 1);
    assert_eq!(command(&[4, 0, 2, 0]), 0);
    assert_eq!(*wire.accepts.lock().unwrap(), Accepts::ALL);
    assert_eq!(
        command(&[&[5, 0][..], &net_feature::GUEST_CSUM.to_le_bytes()].concat()),
        0
    );
    let accepts = *wire.accepts.lock().unwrap();
    assert!(accepts.missing_checksum && !accepts.tcp4);
    assert_eq!(command(&[&[5, 0][..], &net_feature::MAC.to_le_bytes()].concat()), 1);
    bench.offer(3, &[(0x1000, 100)], &[]);
    assert_eq!(wire.take_sent().len(), 1);
    // Flows are spread, and each stays where it is.
    let mut pairs = [0; 2];
    for port in 0..64u8 {
        let mut frame = vec![0; 60];
        frame[12] = 8;
        frame[37] = port;
        let pair = frame::flow(&frame) % 2;
        assert_eq!(pair, frame::flow(&frame) % 2);
        pairs[pair as usize] += 1;
    }
    assert!(pairs.iter().all(|count| *count > 10), "{pairs:?}");
}

#[test]
fn unplugged_cable_is_told() {
    let (mut bench, wire) = bench(Link::Mmio, 1);
    bench.start(u64::MAX);
    assert_eq!(bench.config(6, Width::Word), 1);
    *wire.down.lock().unwrap() = true;
    bench.poll();
    assert_eq!(Link::Mmio.take_interrupts(&mut *bench.device), 2);
    assert_eq!(bench.config(6, Width::Word), 0);
}

#[test]
fn requests_without_their_parts_break_the_device() {
    for (queue, readable, writable) in [
        (1, vec![(0x1000, 11)], vec![]),
        (0, vec![(0x1000, 100)], vec![]),
        (2, vec![(0x1000, 1)], vec![(0x2000, 1)]),
        (2, vec![(0x1000, 3)], vec![]),
    ] {
        let (mut bench, wire) = bench(Link::Mmio, 1);
        bench.start(u64::MAX);
        wire.come(MAC, 60, Offload::default());
        bench.offer(queue, &readable, &writable);
        assert!(bench.is_broken(), "{queue}");
    }
}

#[test]
fn keeps_the_contract() {
    let (clock, memory, probe) = (TestClock::new(), memory(), IrqProbe::new());
    test_kit::contract(&clock, || {
        let wire = Arc::new(Wire::default());
        Box::new(Mmio::new(net(&wire, 2), probe.line(0), &memory))
    });
}
