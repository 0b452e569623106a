//! Tests of the PCnet.

use device_model::Clock;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::contract;
use test_kit::fuzz_accesses;

use super::*;
use crate::cable::Cable;
use crate::cable::memory;

const MAC: Mac = [0x08, 0, 0x27, 1, 2, 3];
const BLOCK: u32 = 0x1000;
const RX_RING: u64 = 0x2000;
const TX_RING: u64 = 0x3000;
const BUFFERS: u64 = 0x1_0000;
const DATA: u64 = 0x8000;
const OWN: u32 = 1 << 31;

struct Bench {
    probe: Arc<IrqProbe>,
    memory: Arc<GuestMemory>,
    cable: Arc<Cable>,
    card: Pcnet,
    sent: u64,
}

fn card(model: Model, probe: &Arc<IrqProbe>, memory: &Arc<GuestMemory>, cable: &Arc<Cable>) -> Pcnet {
    let config = PcnetConfig { model, mac: MAC };
    Pcnet::new(
        (probe.line(0), probe.clone()),
        config,
        memory,
        cable.clone(),
        Arc::new(|| ()),
    )
}

fn bench() -> Bench {
    let (probe, memory, cable) = (IrqProbe::new(), memory(), Arc::new(Cable::default()));
    let card = card(Model::Am79C973, &probe, &memory, &cable);
    let mut bench = Bench {
        probe,
        memory,
        cable,
        card,
        sent: 0,
    };
    bench.card.config_write(4, Width::Word, 7);
    bench
}

impl Bench {
    fn port(&mut self, offset: u64, value: u16) {
        let at = At { region: 0, offset };
        self.card.write(at, Width::Word, value.into()).unwrap();
        self.poll();
    }

    fn poll(&mut self) {
        let next = self.card.poll(VmTime::ZERO);
        assert!(next.is_none_or(|next| next > VmTime::ZERO));
    }

    fn read(&mut self, offset: u64) -> u16 {
        self.card.read(At { region: 0, offset }, Width::Word).unwrap() as u16
    }

    fn csr(&mut self, at: u16) -> u16 {
        self.port(0x12, at);
        self.read(0x10)
    }

    fn set_csr(&mut self, at: u16, value: u16) {
        self.port(0x12, at);
        self.port(0x10, value);
    }

    fn bcr(&mut self, at: u16) -> u16 {
        self.port(0x12, at);
        self.read(0x16)
    }

    fn set_bcr(&mut self, at: u16, value: u16) {
        self.port(0x12, at);
        self.port(0x16, value);
    }

    /// Rings of four descriptors of 32 bits, buffers of 256 bytes.
    fn start(&mut self, mode: u16) {
        self.set_bcr(20, 2);
        let [a, b, c, d, e, f] = MAC;
        let mut block = Vec::new();
        block.extend(mode.to_le_bytes());
        block.extend([0x20, 0x20, a, b, c, d, e, f, 0, 0]);
        block.extend([0; 8]);
        block.extend((RX_RING as u32).to_le_bytes());
        block.extend((TX_RING as u32).to_le_bytes());
        self.memory.write(BLOCK.into(), &block).unwrap();
        for n in 0..4 {
            self.give(n, 256);
        }
        self.set_csr(1, BLOCK as u16);
        self.set_csr(2, (BLOCK >> 16) as u16);
        self.set_csr(0, 1);
        assert_eq!(self.csr(0) & 0x0185, 0x0181);
        self.set_csr(0, 0x0142);
        assert_eq!(self.csr(0), 0x0073);
    }

    /// Gives the card a receive descriptor.
    fn give(&self, n: u64, len: u32) {
        let words = [(BUFFERS + n * 2048) as u32, OWN | 0xf000 | (0x1000 - len) & 0xfff, 0, 0];
        self.memory.write_obj(RX_RING + n * 16, &words).unwrap();
    }

    fn received(&self, n: u64) -> (u32, u32) {
        let [_, flags, count, _]: [u32; 4] = self.memory.read_obj(RX_RING + n * 16).unwrap();
        (flags >> 16, count)
    }

    fn arrive(&mut self, bytes: Vec<u8>) {
        self.cable.to_card.lock().unwrap().push_back(Frame::new(bytes));
        self.poll();
    }

    fn describe(&mut self, at: u64, len: u32, flags: u32) {
        let words = [at as u32, OWN | flags << 16 | 0xf000 | (0x1000 - len) & 0xfff, 0, 0];
        self.memory.write_obj(TX_RING + self.sent % 4 * 16, &words).unwrap();
        self.sent += 1;
    }
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut bytes = to.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    bytes.extend((bytes.len()..len).map(|n| n as u8));
    bytes
}

#[test]
fn card_keeps_the_contract() {
    for model in [Model::Am79C973, Model::Am79C970A] {
        let memory = memory();
        let clock = TestClock::new();
        contract(&clock, || {
            Box::new(card(model, &IrqProbe::new(), &memory, &Arc::new(Cable::default())))
        });
    }
}

#[test]
fn card_says_what_it_is_in_words_and_double_words() {
    let mut bench = bench();
    assert_eq!((bench.csr(0), bench.csr(88), bench.csr(89)), (4, 0x5003, 0x0262));
    let prom: Vec<u16> = (0..16).step_by(2).map(|at| bench.read(at)).collect();
    assert_eq!((prom[0], prom[1], prom[2], prom[7]), (0x0008, 0x0127, 0x0302, 0x5757));
    let at = |offset| At { region: 1, offset };
    bench.card.write(at(0x10), Width::Dword, 0).unwrap();
    bench.card.write(at(0x14), Width::Dword, 88).unwrap();
    assert_eq!(bench.card.read(at(0x10), Width::Dword).unwrap(), 0x5003);
    assert_eq!(bench.card.read(at(0x10), Width::Word).unwrap(), 0);
    bench.card.read(at(0x18), Width::Dword).unwrap();
    assert_eq!(bench.csr(88), 0x5003, "a reset brings words back");
}

#[test]
fn transceiver_is_where_it_should_be_and_tells_of_the_link() {
    let mut bench = bench();
    bench.set_bcr(33, 30 << 5 | 1);
    assert_eq!(bench.bcr(34) & 0x24, 0x24);
    *bench.cable.unplugged.lock().unwrap() = true;
    bench.poll();
    assert_eq!((bench.bcr(34) & 0x24, bench.bcr(4) & 0x8000), (0, 0));
    bench.set_bcr(33, 3 << 5 | 2);
    assert_eq!(bench.bcr(34), 0xffff);
}

#[test]
fn frame_is_sent_from_several_buffers() {
    let mut bench = bench();
    bench.start(0);
    let whole = frame([2, 0, 0, 0, 0, 7], 100);
    bench.memory.write(DATA, &whole).unwrap();
    bench.describe(DATA, 40, 0x0200);
    bench.describe(DATA + 40, 60, 0x0100);
    bench.set_csr(0, 0x0048);
    assert_eq!(
        std::mem::take(&mut *bench.cable.from_card.lock().unwrap()),
        [Frame::new(whole)]
    );
    assert_eq!(bench.csr(0) & 0x0280, 0x0280);
    assert!(bench.probe.level(0));
    bench.set_csr(0, 0x0240);
    assert!(!bench.probe.level(0));
    let flags: u32 = bench.memory.read_obj(TX_RING + 20).unwrap();
    assert_eq!(flags & OWN, 0);
}

#[test]
fn frames_are_stored_over_descriptors_and_wait_for_them() {
    let mut bench = bench();
    bench.start(0);
    bench.arrive(frame(MAC, 400));
    assert_eq!(bench.received(0), (0x0200, 0));
    assert_eq!(bench.received(1), (0x0140, 404));
    assert_eq!(bench.csr(0) & 0x0400, 0x0400);
    bench.arrive(frame([0xff; 6], 60));
    assert_eq!(bench.received(2), (0x0310, 64));
    bench.arrive(frame([2, 0, 0, 0, 0, 7], 60));
    bench.arrive(frame(MAC, 60));
    bench.arrive(frame(MAC, 70));
    assert_eq!(bench.received(3).1, 64);
    assert!(bench.card.waiting.is_some());
    bench.give(0, 256);
    bench.poll();
    assert_eq!(bench.received(0), (0x0340, 74));
    let mut data = vec![0; 70];
    bench.memory.read(BUFFERS, &mut data).unwrap();
    assert_eq!(data, frame(MAC, 70));
}

#[test]
fn frame_without_room_for_its_end_is_marked() {
    let mut bench = bench();
    bench.start(0);
    for n in 1..4 {
        bench.memory.write_obj(RX_RING + n * 16 + 4, &0u32).unwrap();
    }
    bench.arrive(frame(MAC, 400));
    assert_eq!(bench.received(0).0, 0x4600);
}

#[test]
fn groups_pass_by_their_hash_and_everything_in_promiscuous_mode() {
    let mut bench = bench();
    bench.start(0);
    let group = [0x01, 0, 0x5e, 0, 0, 1];
    bench.arrive(frame(group, 60));
    assert_eq!(bench.csr(0) & 0x0400, 0);
    // As drivers compute it: the upper six bits of the little-endian sum.
    let mut crc = u32::MAX;
    for byte in group {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
    }
    let hash = crc >> 26;
    bench.set_csr(8 + (hash >> 4) as u16, 1 << (hash & 15));
    bench.arrive(frame(group, 60));
    assert_eq!(bench.received(0).0, 0x0320);
    bench.set_csr(15, 0x8000);
    assert!(*bench.cable.promiscuous.lock().unwrap());
    bench.arrive(frame([2, 0, 0, 0, 0, 7], 60));
    assert_eq!(bench.received(1).0, 0x0300);
}

#[test]
fn narrow_descriptors_work_too() {
    let mut bench = bench();
    let [a, b, c, d, e, f] = MAC;
    let mut block = vec![0, 0, a, b, c, d, e, f];
    block.extend([0; 8]);
    block.extend([0x00, 0x20, 0x00, 0x20, 0x00, 0x30, 0x00, 0x20]);
    bench.memory.write(BLOCK.into(), &block).unwrap();
    let rx: [u16; 4] = [0x0000, 0x8001, 0xf000 | (0x1000 - 1536), 0];
    bench.memory.write_obj(RX_RING, &rx).unwrap();
    bench.memory.write(DATA, &frame([2, 0, 0, 0, 0, 7], 64)).unwrap();
    let tx: [u16; 4] = [DATA as u16, 0x8300, 0xf000 | (0x1000 - 64), 0];
    bench.memory.write_obj(TX_RING, &tx).unwrap();
    bench.set_csr(1, BLOCK as u16);
    bench.set_csr(2, 0);
    bench.set_csr(0, 0x0043);
    bench.poll();
    assert_eq!(bench.cable.from_card.lock().unwrap().len(), 1);
    bench.arrive(frame(MAC, 80));
    let [_, status, _, count]: [u16; 4] = bench.memory.read_obj(RX_RING).unwrap();
    assert_eq!((status >> 8, count), (0x03, 84));
}

#[test]
fn looped_frame_comes_back() {
    let mut bench = bench();
    bench.start(4);
    bench.memory.write(DATA, &frame(MAC, 64)).unwrap();
    bench.describe(DATA, 64, 0x0300);
    bench.set_csr(0, 0x0048);
    assert!(bench.cable.from_card.lock().unwrap().is_empty());
    assert_eq!(bench.received(0), (0x0340, 68));
}

proptest! {
    #[test]
    fn random_rings_and_registers_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        words in proptest::collection::vec(any::<u32>(), 32),
        style in 0u16..4,
        frames in proptest::collection::vec(14usize..3000, 0..6),
    ) {
        let mut bench = bench();
        bench.start(0x8000);
        bench.set_bcr(20, style);
        for (at, word) in (RX_RING..).step_by(4).zip(&words) {
            bench.memory.write_obj(at, word).unwrap();
            bench.memory.write_obj(at + 0x1000, word).unwrap();
        }
        bench.set_csr(0, 0x0048);
        for len in frames {
            bench.arrive(frame(MAC, len));
        }
        let clock = TestClock::new();
        fuzz_accesses(&mut bench.card, &clock, &bytes);
        prop_assert!(clock.now() >= VmTime::ZERO);
    }
}
