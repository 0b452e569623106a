//! Tests of the SATA controller.

use guest_memory::Kind;
use guest_memory::MemoryRegion;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::contract;
use test_kit::fuzz_accesses;

use super::*;
use crate::Identity;
use crate::Inline;
use crate::MemoryMedium;

struct Bench {
    probe: Arc<IrqProbe>,
    memory: Arc<GuestMemory>,
    disk: Arc<MemoryMedium>,
    ahci: Ahci,
}

fn bench() -> Bench {
    let probe = IrqProbe::new();
    let mut memory = GuestMemory::new();
    memory
        .add(0, Arc::new(MemoryRegion::new("ram", Kind::Ram, 1 << 20).unwrap()))
        .unwrap();
    let memory = Arc::new(memory);
    let bytes = (0..1u32 << 20).map(|n| (n / 512 + n % 512) as u8).collect();
    let disk = Arc::new(MemoryMedium::new(bytes));
    let identity = Identity {
        model: "OXBOW TEST".to_owned(),
        serial: "S1".to_owned(),
        firmware: "1".to_owned(),
    };
    let disc = Arc::new(MemoryMedium::new(vec![9; 1 << 18]));
    let drives = [
        Some(Drive::disk(disk.clone(), identity.clone())),
        Some(Drive::optical(Some(disc), identity)),
        None,
        None,
        None,
        None,
    ];
    let executor: Arc<dyn Executor> = Arc::new(Inline);
    let waker: Waker = Arc::new(|| ());
    let ahci = Ahci::new((probe.line(0), probe.clone()), drives, &memory, &executor, &waker);
    Bench {
        probe,
        memory,
        disk,
        ahci,
    }
}

impl Bench {
    fn write(&mut self, offset: u64, value: u64) {
        self.ahci.write(At { region: 0, offset }, Width::Dword, value).unwrap();
    }

    fn read(&mut self, offset: u64) -> u64 {
        self.ahci.read(At { region: 0, offset }, Width::Dword).unwrap()
    }

    /// Starts port `port`: list at 1000h, received FISes at 1800h.
    fn start(&mut self, port: u64) -> u64 {
        self.ahci.config_write(4, Width::Word, 6);
        let base = 0x100 + port * 0x80;
        for (offset, value) in [
            (0x04, 2),
            (base, 0x1000),
            (base + 8, 0x1800),
            (base + 0x30, u64::MAX >> 32),
        ] {
            self.write(offset, value);
        }
        self.write(base + 0x14, 0xFFFF_FFFF);
        self.write(base + 0x18, 0x11);
        base
    }

    /// Puts a command into a slot, with a table at 2000h + slot * 1000h that has one region.
    fn slot(&self, slot: u64, fis: &[u8], region: u64, len: u32) {
        let table = 0x2000 + slot * 0x1000;
        let header = [5 | 1 << 16, 0, table as u32, 0];
        self.memory.write_obj(0x1000 + slot * 32, &header).unwrap();
        self.memory.write(table, &[0; 0x50]).unwrap();
        self.memory.write(table, fis).unwrap();
        let entry = [region as u32, 0, 0, len - 1];
        self.memory.write_obj(table + 0x80, &entry).unwrap();
    }
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || Box::new(bench().ahci));
}

#[test]
fn drives_show_their_signatures_and_empty_ports_none() {
    let mut bench = bench();
    assert_eq!((bench.read(0x124), bench.read(0x128)), (0x101, 0x133));
    assert_eq!((bench.read(0x1A4), bench.read(0x1A8)), (0xEB14_0101, 0x133));
    assert_eq!(bench.read(0x228), 0);
    // A link reset brings them again.
    bench.write(0x12C, 1);
    assert_eq!(bench.read(0x128), 1);
    bench.write(0x12C, 0);
    assert_eq!(bench.read(0x128), 0x133);
}

#[test]
fn dma_read_ends_with_a_register_fis_and_an_interrupt() {
    let mut bench = bench();
    let base = bench.start(0);
    bench.slot(3, &[0x27, 0x80, 0x25, 0, 7, 0, 0, 0x40, 0, 0, 0, 0, 2, 0], 0x8000, 1024);
    bench.write(base + 0x38, 8);
    assert_eq!((bench.read(base + 0x38), bench.read(base + 0x10)), (0, 1));
    assert!(bench.probe.level(0));
    let mut got = vec![0; 1024];
    bench.memory.read(0x8000, &mut got).unwrap();
    assert_eq!(got, bench.disk.bytes()[7 * 512..][..1024]);
    assert_eq!(bench.memory.read_obj::<u32>(0x1000 + 3 * 32 + 4).unwrap(), 1024);
    assert_eq!(bench.memory.read_obj::<[u8; 4]>(0x1840).unwrap(), [0x34, 0x40, 0x50, 0]);
    bench.write(base + 0x10, 1);
    bench.write(0x08, 1);
    assert!(!bench.probe.level(0));
}

#[test]
fn queued_commands_end_by_their_tags() {
    let mut bench = bench();
    let base = bench.start(0);
    for slot in [1u8, 30] {
        let fis = [0x27, 0x80, 0x60, 1, slot, 0, 0, 0x40, 0, 0, 0, 0, slot << 3, 0];
        bench.slot(slot.into(), &fis, 0x4_0000 + u64::from(slot) * 512, 512);
    }
    bench.write(base + 0x34, 1 << 1 | 1 << 30);
    bench.write(base + 0x38, 1 << 1 | 1 << 30);
    assert_eq!((bench.read(base + 0x34), bench.read(base + 0x38)), (0, 0));
    assert_eq!(bench.read(base + 0x10), 8);
    let got: [u8; 4] = bench.memory.read_obj(0x4_0000 + 30 * 512).unwrap();
    assert_eq!(got, bench.disk.bytes()[30 * 512..][..4]);
}

#[test]
fn failed_queued_command_is_told_by_the_log() {
    let mut bench = bench();
    let base = bench.start(0);
    let fis = [0x27, 0x80, 0x60, 1, 0xFF, 0xFF, 0xFF, 0x40, 0, 0, 0, 0, 4 << 3, 0];
    bench.slot(4, &fis, 0x8000, 512);
    bench.write(base + 0x34, 1 << 4);
    bench.write(base + 0x38, 1 << 4);
    assert_eq!(bench.read(base + 0x34), 1 << 4);
    assert_eq!(bench.read(base + 0x10) & 1 << 30, 1 << 30);
    assert_eq!(bench.read(base + 0x20) & 1, 1);
    bench.write(base + 0x18, 0x10);
    bench.write(base + 0x10, 0xFFFF_FFFF);
    bench.write(base + 0x18, 0x11);
    bench.slot(0, &[0x27, 0x80, 0x2F, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0x8000, 512);
    bench.write(base + 0x38, 1);
    assert_eq!(bench.memory.read_obj::<u8>(0x8000).unwrap(), 4);
}

#[test]
fn packet_reads_a_disc() {
    let mut bench = bench();
    let base = bench.start(1);
    let fis = [0x27, 0x80, 0xA0, 1, 0, 0, 0, 0];
    for (packet, expected) in [([0u8; 12], 0x41), ([0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0], 0x50)] {
        bench.slot(0, &fis, 0x8000, 2048);
        bench.memory.write(0x2040, &packet).unwrap();
        bench.write(base + 0x38, 1);
        assert_eq!(bench.read(base + 0x20) & 0xC1 | 0x10, expected | 0x10);
        bench.write(base + 0x18, 0x10);
        bench.write(base + 0x18, 0x11);
    }
    assert_eq!(bench.memory.read_obj::<u8>(0x87FF).unwrap(), 9);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_lists_cause_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        list in prop::collection::vec(any::<u8>(), 2048),
        table in prop::collection::vec(any::<u8>(), 256),
        code in any::<u8>(),
    ) {
        let clock = TestClock::new();
        let mut bench = bench();
        bench.memory.write(0x1000, &list).unwrap();
        let base = bench.start(0);
        // Some slots lead to a table that begins like a command.
        for slot in 0..8u64 {
            bench.memory.write_obj(0x1000 + slot * 32 + 8, &0x3000u64).unwrap();
        }
        bench.memory.write(0x3000, &table).unwrap();
        bench.memory.write(0x3000, &[0x27, 0x80, code]).unwrap();
        bench.write(base + 0x38, 0xFF);
        fuzz_accesses(&mut bench.ahci, &clock, &bytes);
    }
}

#[test]
fn plugged_drive_shows_by_link_signature_and_interrupt() {
    let mut bench = bench();
    let base = bench.start(2);
    let identity = Identity {
        model: "OXBOW TEST".to_owned(),
        serial: "S2".to_owned(),
        firmware: "1".to_owned(),
    };
    assert_eq!((bench.read(base + 0x28), bench.read(base + 0x10)), (0, 0));
    assert!(bench.ahci.plug(2, Some(Drive::disk(bench.disk.clone(), identity))));
    assert!(bench.ahci.is_occupied(2) && !bench.ahci.is_occupied(3));
    assert_eq!(bench.read(base + 0x28), 0x133);
    // PRCS and PCS follow DIAG.N and DIAG.X until those are cleared.
    assert_eq!(bench.read(base + 0x10) & 0x0040_0040, 0x0040_0040);
    assert_eq!(bench.read(base + 0x30), 0x0401_0000);
    assert_eq!(bench.read(0x08), 4);
    assert!(bench.probe.level(0));
    bench.write(base + 0x30, 0x0401_0000);
    bench.write(0x08, 4);
    assert!(!bench.probe.level(0));
    // COMRESET brings the signature.
    for value in [1, 0] {
        bench.write(base + 0x2C, value);
    }
    assert_eq!((bench.read(base + 0x24), bench.read(base + 0x20)), (0x101, 0x0150));
    assert!(!bench.ahci.plug(PORTS, None));
}

#[test]
fn pulled_drive_leaves_its_commands_and_the_next_one_does_not_get_them() {
    let mut bench = bench();
    let base = bench.start(0);
    bench.write(base + 0x30, u64::MAX >> 32);
    bench.slot(0, &[0x27, 0x80, 0x25, 0, 7, 0, 0, 0x40, 0, 0, 0, 0, 2, 0], 0x8000, 1024);
    bench.ahci.quiesce();
    bench.write(base + 0x38, 1);
    bench.ahci.plug(0, None);
    let mut before = [1u8; 4];
    bench.memory.read(0x8000, &mut before).unwrap();
    assert_eq!(bench.read(base + 0x28), 0);
    assert_eq!((bench.read(base + 0x24), bench.read(base + 0x20)), (0xFFFF_FFFF, 0x7F));
    assert_eq!(bench.read(base + 0x30), 0x0001_0000, "nothing was exchanged yet");
    assert!(bench.probe.level(0));
    assert_eq!(bench.read(base + 0x38), 1, "the command has not ended");
    let identity = Identity {
        model: "OXBOW TEST".to_owned(),
        serial: "S2".to_owned(),
        firmware: "1".to_owned(),
    };
    bench.ahci.plug(0, Some(Drive::disk(bench.disk.clone(), identity)));
    bench.ahci.poll(VmTime::from_ns(0));
    let mut after = [1u8; 4];
    bench.memory.read(0x8000, &mut after).unwrap();
    assert_eq!((bench.read(base + 0x38), after), (1, before));
    // A port that was stopped and reset works for the new drive.
    bench.write(base + 0x18, 0x10);
    assert_eq!(bench.read(base + 0x38), 0);
    bench.write(base + 0x18, 0x11);
    bench.write(base + 0x38, 1);
    assert_eq!(bench.read(base + 0x38), 0);
    bench.memory.read(0x8000, &mut after).unwrap();
    assert_eq!(after, [7, 8, 9, 10]);
}
