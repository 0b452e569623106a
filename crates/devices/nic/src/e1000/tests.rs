//! Tests of the gigabit controllers.

use std::collections::VecDeque;
use std::sync::Mutex;

use device_model::Clock;
use device_model::Frame;
use device_model::net::Accepts;
use device_model::net::Checksum;
use device_model::net::SegmentKind;
use device_model::net::packet::Layout;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::contract;
use test_kit::fuzz_accesses;

use super::*;

const MAC: Mac = [0x08, 0, 0x27, 1, 2, 3];
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const DATA: u64 = 0x8000;

/// Both ends of a cable.
#[derive(Default)]
struct Cable {
    to_card: Mutex<VecDeque<Frame>>,
    from_card: Mutex<Vec<Frame>>,
    full: Mutex<bool>,
    unplugged: Mutex<bool>,
    promiscuous: Mutex<bool>,
}

impl FramePort for Cable {
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        if *self.full.lock().unwrap() {
            return Err(frame);
        }
        self.from_card.lock().unwrap().push(frame);
        Ok(())
    }
    fn receive(&self) -> Option<Frame> {
        self.to_card.lock().unwrap().pop_front()
    }
    fn set_accepts(&self, _: Accepts) {}
    fn set_promiscuous(&self, on: bool) {
        *self.promiscuous.lock().unwrap() = on;
    }
    fn set_waker(&self, _: NetWaker) {}
    fn link_up(&self) -> bool {
        !*self.unplugged.lock().unwrap()
    }
}

struct Bench {
    probe: Arc<IrqProbe>,
    memory: Arc<GuestMemory>,
    cable: Arc<Cable>,
    card: E1000,
    now: VmTime,
    tail: u32,
}

fn memory() -> Arc<GuestMemory> {
    let mut memory = GuestMemory::new();
    let ram = MemoryRegion::new("ram", Kind::Ram, 1 << 20).unwrap();
    memory.add(0, Arc::new(ram)).unwrap();
    Arc::new(memory)
}

fn card(model: Model, probe: &Arc<IrqProbe>, memory: &Arc<GuestMemory>, cable: &Arc<Cable>) -> E1000 {
    let config = E1000Config { model, mac: MAC };
    E1000::new(
        (probe.line(0), probe.clone()),
        config,
        memory,
        cable.clone(),
        Arc::new(|| ()),
    )
}

fn bench() -> Bench {
    let (probe, memory, cable) = (IrqProbe::new(), memory(), Arc::new(Cable::default()));
    let card = card(Model::I82540Em, &probe, &memory, &cable);
    let mut bench = Bench {
        probe,
        memory,
        cable,
        card,
        now: VmTime::ZERO,
        tail: 0,
    };
    bench.card.config_write(4, Width::Word, 7);
    bench
}

impl Bench {
    fn write(&mut self, offset: u64, value: u32) {
        let at = At { region: 0, offset };
        self.card.write(at, Width::Dword, value.into()).unwrap();
        self.poll();
    }

    fn read(&mut self, offset: u64) -> u32 {
        self.card.read(At { region: 0, offset }, Width::Dword).unwrap() as u32
    }

    fn poll(&mut self) {
        let next = self.card.poll(self.now);
        assert!(next.is_none_or(|next| next > self.now));
    }

    /// Rings of eight descriptors, buffers of 2048 bytes, all interrupts.
    fn start(&mut self) {
        for n in 0..8 {
            self.memory.write_obj(RX_RING + n * 16, &(BUFFERS + n * 2048)).unwrap();
            self.memory.write_obj(RX_RING + n * 16 + 8, &0u64).unwrap();
        }
        self.write(0x2800, RX_RING as u32);
        self.write(0x2808, 128);
        self.write(0x3800, TX_RING as u32);
        self.write(0x3808, 128);
        self.write(0x5000, 0x300);
        self.write(0xd0, 0x1f6dc | 3);
        self.write(0x2818, 7);
        self.write(0x0100, 1 << 1 | 1 << 15);
        self.write(0x0400, 1 << 1 | 1 << 3);
        self.read(0xc0);
    }

    fn arrive(&mut self, bytes: Vec<u8>) {
        self.cable.to_card.lock().unwrap().push_back(Frame::new(bytes));
        self.poll();
    }

    /// Length, checksum, status, errors and special of a receive descriptor, and what is in its buffer.
    fn received(&self, n: u64) -> ((u16, u16, u8, u8, u16), Vec<u8>) {
        let words: [u16; 4] = self.memory.read_obj(RX_RING + n * 16 + 8).unwrap();
        let [len, sum, state, special] = words;
        let [status, errors] = state.to_le_bytes();
        let mut data = vec![0; len.into()];
        self.memory.read(BUFFERS + n * 2048, &mut data).unwrap();
        ((len, sum, status, errors, special), data)
    }

    fn describe(&mut self, low: u64, high: u64) {
        let at = TX_RING + u64::from(self.tail) * 16;
        self.memory.write_obj(at, &[low, high]).unwrap();
        self.tail = (self.tail + 1) % 8;
    }

    fn ring(&mut self) {
        let tail = self.tail;
        self.write(0x3818, tail);
    }

    fn sent(&self) -> Vec<Frame> {
        std::mem::take(&mut self.cable.from_card.lock().unwrap())
    }
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    bytes.extend((bytes.len()..len).map(|n| n as u8));
    bytes
}

/// A TCP segment without checksums and lengths, as drivers leave it for segmentation.
fn tcp(len: usize, total: u16, pseudo_len: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let [t0, t1] = total.to_be_bytes();
    bytes.extend([0x45, 0, t0, t1, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    bytes.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0x10, 0, 0, 0, 0, 0,
    ]);
    let pseudo = device_model::net::packet::sum(&bytes[26..34]) + 6 + pseudo_len as u64;
    bytes[50..52].copy_from_slice(&device_model::net::packet::fold(pseudo).to_be_bytes());
    bytes.extend((0..len).map(|n| (n % 251) as u8));
    bytes
}

#[test]
fn card_keeps_the_contract() {
    for model in [Model::I82540Em, Model::I82543Gc, Model::I82545Em] {
        let memory = memory();
        let clock = TestClock::new();
        contract(&clock, || {
            Box::new(card(model, &IrqProbe::new(), &memory, &Arc::new(Cable::default())))
        });
    }
}

#[test]
fn frame_is_stored_with_its_check_sequence_and_interrupts() {
    let mut bench = bench();
    bench.start();
    let sent = frame(MAC, 100);
    bench.arrive(sent.clone());
    let ((len, _, status, errors, _), data) = bench.received(0);
    assert_eq!((len, status, errors), (104, 1 | 2 | 4, 0));
    assert_eq!(data[..100], sent);
    assert_eq!(data[100..], crc32fast::hash(&sent).to_le_bytes());
    assert!(bench.probe.level(0));
    assert_eq!(bench.read(0xc0) & 0x80, 0x80);
    assert!(!bench.probe.level(0));
    assert_eq!(bench.read(0x2810), 1);
    assert_eq!((bench.read(0x4074), bench.read(0x4074)), (1, 0));
}

#[test]
fn short_frame_is_padded_and_others_addresses_pass_by() {
    let mut bench = bench();
    bench.start();
    bench.arrive(frame([2, 0, 0, 0, 0, 7], 60));
    bench.arrive(frame([0xff; 6], 20));
    assert_eq!(bench.received(0).0.0, 64);
    assert_eq!(bench.read(0x2810), 1);
    bench.write(0x0100, 1 << 1 | 1 << 15 | 1 << 3);
    assert!(*bench.cable.promiscuous.lock().unwrap());
    bench.arrive(frame([2, 0, 0, 0, 0, 7], 60));
    assert_eq!(bench.read(0x2810), 2);
}

#[test]
fn frames_wait_for_descriptors() {
    let mut bench = bench();
    bench.start();
    for _ in 0..10 {
        bench.arrive(frame(MAC, 60));
    }
    assert_eq!(bench.read(0x2810), 7);
    assert_eq!(bench.cable.to_card.lock().unwrap().len(), 3);
    bench.write(0x2818, 2);
    assert_eq!(bench.cable.to_card.lock().unwrap().len(), 0);
    assert_eq!(bench.read(0x2810), 2);
}

#[test]
fn long_frame_takes_several_buffers_when_that_is_allowed() {
    let mut bench = bench();
    bench.start();
    bench.arrive(frame(MAC, 4000));
    assert_eq!((bench.read(0x2810), bench.read(0x40ac)), (0, 1));
    bench.write(0x0100, 1 << 1 | 1 << 5 | 1 << 26);
    bench.arrive(frame(MAC, 4000));
    assert_eq!(bench.received(0).0, (2048, bench.received(0).0.1, 1 | 4, 0, 0));
    assert_eq!(bench.received(1).0, (1952, bench.received(1).0.1, 1 | 2 | 4, 0, 0));
}

#[test]
fn checksums_of_received_segments_are_looked_at() {
    let mut bench = bench();
    bench.start();
    let mut right = tcp(11, 51, 31);
    right[..6].copy_from_slice(&MAC);
    let head = device_model::net::packet::checksum(device_model::net::packet::sum(&right[14..34]));
    right[24..26].copy_from_slice(&head.to_be_bytes());
    let sum = device_model::net::packet::checksum(device_model::net::packet::sum(&right[34..]));
    right[50..52].copy_from_slice(&sum.to_be_bytes());
    bench.arrive(right.clone());
    let mut wrong = right.clone();
    wrong[60] ^= 1;
    wrong[22] ^= 1;
    bench.arrive(wrong);
    let both = 1 | 2 | 0x20 | 0x40;
    assert_eq!((bench.received(0).0.2, bench.received(0).0.3), (both, 0));
    assert_eq!((bench.received(1).0.2, bench.received(1).0.3), (both, 0x60));
}

#[test]
fn vlan_tag_is_stripped_and_inserted() {
    let mut bench = bench();
    bench.start();
    let ctrl = bench.read(0);
    bench.write(0, ctrl | 1 << 30);
    let mut tagged = frame(MAC, 64);
    tagged.splice(12..12, [0x81, 0, 0x60, 7]);
    bench.arrive(tagged.clone());
    let ((len, _, status, _, special), data) = bench.received(0);
    assert_eq!((len, status & 8, special), (68, 8, 0x6007));
    bench.memory.write(DATA, &data[..64]).unwrap();
    bench.describe(DATA, 64 | (1 | 2 | 8 | 0x40) << 24 | 0x6007 << 48);
    bench.ring();
    assert_eq!(bench.sent()[0].bytes, tagged);
}

#[test]
fn frame_is_gathered_and_its_descriptors_written_back() {
    let mut bench = bench();
    bench.start();
    let whole = frame([2, 0, 0, 0, 0, 7], 90);
    bench.memory.write(DATA, &whole).unwrap();
    bench.describe(DATA, 50);
    bench.describe(DATA + 50, 40 | (1 | 2 | 8) << 24);
    bench.ring();
    assert_eq!(bench.sent(), [Frame::new(whole)]);
    assert_eq!(bench.memory.read_obj::<u8>(TX_RING + 12).unwrap(), 0);
    assert_eq!(bench.memory.read_obj::<u8>(TX_RING + 28).unwrap(), 1);
    assert_eq!(bench.read(0xc0) & 3, 3);
    assert_eq!(bench.read(0x3810), 2);
}

#[test]
fn legacy_checksum_is_left_to_the_network() {
    let mut bench = bench();
    bench.start();
    bench.memory.write(DATA, &tcp(20, 60, 40)).unwrap();
    bench.describe(DATA, 74 | 50 << 16 | (1 | 4 | 8) << 24 | 34 << 40);
    bench.ring();
    let sent = bench.sent().remove(0);
    assert_eq!(sent.offload.checksum, Checksum::Missing { start: 34, offset: 16 });
}

#[test]
fn long_segment_is_handed_over_with_whole_headers() {
    let mut bench = bench();
    bench.start();
    let long = tcp(4000, 0, 0);
    bench.memory.write(DATA, &long).unwrap();
    let context_low = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    bench.describe(context_low, 4000 | (1 | 2 | 4 | 0x20) << 24 | 54 << 40 | 1460 << 48);
    bench.describe(DATA, 54 | 1 << 20 | (4 | 0x20) << 24 | 3 << 40);
    bench.describe(DATA + 54, 4000 | 1 << 20 | (1 | 4 | 8 | 0x20) << 24 | 3 << 40);
    bench.ring();
    let sent = bench.sent().remove(0);
    let segmentation = sent.offload.segmentation.unwrap();
    assert_eq!((segmentation.kind, segmentation.size), (SegmentKind::Tcp4, 1460));
    assert_eq!(sent.bytes[16..18], 4040u16.to_be_bytes());
    assert_eq!(sent.bytes[54..], long[54..]);
    let layout = Layout::of(&sent.bytes).unwrap();
    let header = &sent.bytes[layout.network..layout.transport];
    assert_eq!(
        device_model::net::packet::checksum(device_model::net::packet::sum(header)),
        0
    );
    let finished = tx_finished(sent);
    assert_eq!(layout.checksum_is_right(&finished.bytes), Some(true));
}

fn tx_finished(mut frame: Frame) -> Frame {
    let Checksum::Missing { start, offset } = frame.offload.checksum else {
        panic!("{:?}", frame.offload)
    };
    let start = usize::from(start);
    let value = device_model::net::packet::checksum(device_model::net::packet::sum(&frame.bytes[start..]));
    let at = start + usize::from(offset);
    frame.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    frame
}

#[test]
fn full_network_stops_the_ring_and_loses_nothing() {
    let mut bench = bench();
    bench.start();
    *bench.cable.full.lock().unwrap() = true;
    for n in 0..3 {
        bench
            .memory
            .write(DATA + n * 64, &frame([2, 0, 0, 0, 0, n as u8], 60))
            .unwrap();
        bench.describe(DATA + n * 64, 60 | 9 << 24);
    }
    bench.ring();
    assert_eq!(bench.read(0x3810), 1);
    *bench.cable.full.lock().unwrap() = false;
    bench.poll();
    let order: Vec<u8> = bench.sent().iter().map(|frame| frame.bytes[5]).collect();
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn link_goes_and_comes_with_an_interrupt() {
    let mut bench = bench();
    bench.start();
    assert_eq!(bench.read(8) & 2, 2);
    *bench.cable.unplugged.lock().unwrap() = true;
    bench.poll();
    assert_eq!(bench.read(8) & 2, 0);
    assert!(bench.probe.level(0));
    assert_eq!(bench.read(0xc0), 4);
    bench.memory.write(DATA, &frame(MAC, 60)).unwrap();
    bench.describe(DATA, 60 | 9 << 24);
    bench.ring();
    assert!(bench.sent().is_empty());
    *bench.cable.unplugged.lock().unwrap() = false;
    bench.poll();
    assert_eq!((bench.read(8) & 2, bench.read(0xc0) & 4), (2, 4));
}

#[test]
fn throttled_interrupt_waits() {
    let mut bench = bench();
    bench.start();
    bench.write(0xc4, 1000);
    bench.arrive(frame(MAC, 60));
    assert!(bench.probe.level(0));
    bench.read(0xc0);
    bench.arrive(frame(MAC, 60));
    assert!(!bench.probe.level(0));
    bench.now = bench.now + 256_000;
    bench.poll();
    assert!(bench.probe.level(0));
}

#[test]
fn transceiver_loops_frames_back() {
    let mut bench = bench();
    bench.start();
    bench.write(0x20, 1 << 26 | 1 << 21 | 0x4140);
    bench.memory.write(DATA, &frame(MAC, 80)).unwrap();
    bench.describe(DATA, 80 | 9 << 24);
    bench.ring();
    assert!(bench.sent().is_empty());
    assert_eq!(bench.received(0).0.0, 84);
}

#[test]
fn reset_loads_the_address_again_and_forgets_the_rings() {
    let mut bench = bench();
    bench.start();
    bench.write(0x5400, 0);
    bench.write(0, 1 << 26);
    assert_eq!((bench.read(0x5400), bench.read(0x5404)), (0x0127_0008, 0x8000_0302));
    assert_eq!((bench.read(0x0100), bench.read(0x2808), bench.read(0xd0)), (0, 0, 0));
    assert!(!bench.probe.level(0));
}

#[test]
fn registers_are_reached_through_ports() {
    let mut bench = bench();
    let ports = |offset| At { region: 1, offset };
    bench.card.write(ports(0), Width::Dword, 0x5400).unwrap();
    assert_eq!(bench.card.read(ports(4), Width::Dword).unwrap(), 0x0127_0008);
    bench.card.write(ports(4), Width::Dword, 7).unwrap();
    assert_eq!(bench.read(0x5400), 7);
}

#[test]
fn nothing_moves_without_the_bus() {
    let mut bench = bench();
    bench.start();
    bench.card.config_write(4, Width::Word, 3);
    bench.arrive(frame(MAC, 60));
    bench.describe(DATA, 60 | 9 << 24);
    bench.ring();
    assert_eq!((bench.read(0x2810), bench.read(0x3810)), (0, 0));
}

proptest! {
    #[test]
    fn random_descriptors_and_registers_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        rings in proptest::collection::vec(any::<u64>(), 64),
        frames in proptest::collection::vec((any::<u8>(), 0usize..3000), 0..8),
    ) {
        let mut bench = bench();
        bench.start();
        for (at, word) in (RX_RING..).step_by(8).zip(&rings) {
            bench.memory.write_obj(at, &(word & 0xffff_ffff_000f_ffff)).unwrap();
            bench.memory.write_obj(at + 0x1000, &(word & 0x0f7f_ffff_7f1f_ffff)).unwrap();
        }
        bench.write(0x3818, 5);
        for (last, len) in frames {
            bench.arrive(frame([0xff, 0xff, 0xff, 0xff, 0xff, last | 0xf0], len.max(14)));
        }
        let clock = TestClock::new();
        fuzz_accesses(&mut bench.card, &clock, &bytes);
        prop_assert!(clock.now() >= VmTime::ZERO);
    }
}
